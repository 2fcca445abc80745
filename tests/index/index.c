/*
 * The index of registrations alone: a thread reads REGISTER requests and lost connections in an order, as the stack
 * does, others handle the requests as the registrar does, another one sweeps, and what was told is compared with what
 * happened.
 *
 *   index SEED SCENARIOS WORKERS
 *
 * With 0 workers each scenario has another number of them.
 *
 * Prints what was run as JSON, and each thing that is wrong in a line of its own on standard error. The seed of a
 * scenario makes the same requests; in which order they cross is up to the machine.
 */
#define _GNU_SOURCE
#include "mod_sofia.h"
#include "index.h"
#include <pthread.h>
#include <stdarg.h>
#include <unistd.h>

#define USERS 12
#define REQUESTS 1200
#define CONNS 800
#define EVENTS 20000
#define WORKERS 9
#define PORTS 24
#define CROWD 150
/* How many rows one statement may delete */
#define ROWS 64
/* How many requests may be on their way */
#define REQUESTS_MAX 10000
/* How long a request crosses with another one, in seconds of the index, less what the clock may go on */
#define CROSSING 9
/* How often a quiet index is looked at until it must be right, 5 ms apart: a busy machine is not a fault */
#define LOOKS 6000
/* How long registrations live, in seconds of the index */
#define SHORT 2
#define LONG 360000

typedef struct conn {
	size_t id;
	nua_t *nua;
	int port;
	int trunk;
	/* The end is being told, and has been */
	int lost;
	int told;
	uint64_t number;
	switch_time_t at;
} conn_t;

typedef enum { REGISTER, UNREGISTER, REFUSED } kind_t;

typedef struct {
	sofia_dispatch_event_t de;
	sip_t sip;
	sip_addr_t to;
	sip_cseq_t cseq;
	sip_call_id_t id;
	int user;
	conn_t *conn;
	kind_t kind;
	char call_id[16];
	char contact[16];
	int path;
	int renewed;
	int any;
	int expires;
	unsigned int delay;
	uint64_t number;
	int handled;
	switch_time_t ended;
	/* That of the event which tells of it */
	uint64_t sequence;
} request_t;

/* A registration and its row; the row's removal is by a later request, by time, or because the connection is lost */
typedef struct {
	int user;
	conn_t *conn;
	char call_id[16];
	char contact[16];
	uint32_t cseq;
	uint64_t number;
	time_t registered;
	time_t expires;
	int path;
	int unregister;
	int row;
	int swept;
	request_t *by;
	/* One of the user that was read before `by` was on its way then */
	int crossed;
	/* The one among them that has moved or removed it */
	request_t *earlier;
	int unsure;
	int reports;
	int unregisters;
} reg_t;

static struct {
	uint64_t seed;
	sofia_tp_match_t mode;
	sofia_profile_t profile;
	nua_t nuas[2];
	int users;
	int workers;
	int unregister_conn;
	int slow;
	int short_lived;
	/* Guarded by the mutex of the database */
	reg_t regs[REQUESTS];
	int reg_count;
	conn_t conns[CONNS];
	int conn_count;
	request_t requests[REQUESTS];
	int request_count;
	int ended;
	switch_event_t *events[EVENTS];
	int event_count;
	pthread_mutex_t event_mutex;
	/* Nobody gets on who fires an event, but one thread */
	int held;
	/* The queue of messages */
	pthread_mutex_t queue_mutex;
	pthread_cond_t queue_cond;
	int queued;
	int popped;
	int closed;
} world;

static const char *names[USERS] = { "u0", "u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8", "u9", "u10", "u11" };
static const char *modes[] = { "user", "call-id", "contact" };
static __thread int never_held;
/* The test itself holds the mutex of the database */
static __thread int holds;
static int wrong;
static long total_requests, total_losses, total_reports, total_trunks, total_unregisters, total_outdated;

#define GET(x) __atomic_load_n(&(x), __ATOMIC_SEQ_CST)
#define PUT(x, value) __atomic_store_n(&(x), value, __ATOMIC_SEQ_CST)

static void __attribute__((format(printf, 1, 2))) fault(const char *format, ...)
{
	char line[512];
	va_list list;

	va_start(list, format);
	vsnprintf(line, sizeof(line), format, list);
	va_end(list);
	fprintf(stderr, "seed %llu (%s, %d workers, wait %u, report %d, unregister %d/%d): %s\n", (unsigned long long) world.seed,
			modes[world.mode], world.workers, world.profile.tp_error_wait, world.profile.pflags[PFLAG_TP_ERROR_REPORT],
			world.profile.pflags[PFLAG_TP_ERROR_UNREGISTER], world.unregister_conn, line);
	__atomic_add_fetch(&wrong, 1, __ATOMIC_SEQ_CST);
}

/* xorshift64* */
static uint32_t draw(uint64_t *state, uint32_t below)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return (uint32_t) (*state * 0x2545f4914f6cdd1dULL >> 33) % below;
}

static uint64_t state_of(uint64_t seed)
{
	uint64_t state = seed * 0x9e3779b97f4a7c15ULL + 1;
	int i;

	for (i = 0; i < 8; i++) {
		draw(&state, 2);
	}
	return state;
}

switch_status_t switch_event_fire(switch_event_t **event)
{
	if (mutexes_held && !holds) {
		fault("an event is fired with a mutex held");
	}
	while (GET(world.held) && !never_held) {
		usleep(1000);
	}
	pthread_mutex_lock(&world.event_mutex);
	if (world.event_count == EVENTS) {
		abort();
	}
	world.events[world.event_count++] = *event;
	pthread_mutex_unlock(&world.event_mutex);
	*event = NULL;
	return SWITCH_STATUS_SUCCESS;
}

switch_status_t switch_core_del_registration(const char *user, const char *realm, const char *token)
{
	return SWITCH_STATUS_SUCCESS;
}

static void value_of(const reg_t *reg, const char *column, char *value, size_t len)
{
	if (!strcmp(column, "call_id")) {
		snprintf(value, len, "%s", reg->call_id);
	} else if (!strcmp(column, "contact")) {
		snprintf(value, len, "%s", reg->contact);
	} else if (!strcmp(column, "sip_user")) {
		snprintf(value, len, "%s", names[reg->user]);
	} else if (!strcmp(column, "sip_host")) {
		snprintf(value, len, "example.org");
	} else if (!strcmp(column, "network_ip")) {
		snprintf(value, len, "192.0.2.1");
	} else if (!strcmp(column, "network_port")) {
		snprintf(value, len, "%d", reg->conn->port);
	} else if (!strcmp(column, "hostname")) {
		snprintf(value, len, "%s", mod_sofia_globals.hostname);
	} else {
		fault("no column %s", column);
	}
}

/* Reads "(a='x' and b='y')" up to the end of the parenthesis; true if it is this registration */
static int condition(const char **p, const reg_t *reg)
{
	char column[32], wanted[64], value[64];
	int matches = 1, len = 0;

	while (sscanf(*p, "%*1[( ]%31[a-z_]='%63[^']'%n", column, wanted, &len) == 2 && len) {
		value_of(reg, column, value, sizeof(value));
		matches &= !strcmp(value, wanted);
		*p += len;
		*p += strncmp(*p, " and", 4) ? 0 : 4;
		len = 0;
	}
	*p += **p == ')';
	return matches;
}

/* Nobody but the index deletes rows this way, and none may be of a connection that is alive */
void sofia_glue_execute_sql_now(sofia_profile_t *profile, char **sql, switch_bool_t sql_already_dynamic)
{
	static const char start[] = "delete from sip_registrations where ";
	const char *p;
	int i, matches, terms;

	if (strncmp(*sql, start, sizeof(start) - 1)) {
		fault("unexpected statement %s", *sql);
	}
	for (i = 0; i < world.reg_count; i++) {
		reg_t *reg = &world.regs[i];

		p = *sql + sizeof(start) - 1;
		matches = condition(&p, reg);
		for (terms = 1; !strncmp(p, " or ", 4); terms++) {
			p += 4;
			matches |= condition(&p, reg);
		}
		if (*p) {
			fault("unexpected statement %s", *sql);
		} else if (terms > ROWS) {
			fault("%d rows are deleted at once", terms);
		}
		if (matches && reg->row) {
			if (reg->path || !GET(reg->conn->lost)) {
				fault("the row of reg-%d of %s is deleted, which is alive", i, names[reg->user]);
			}
			reg->row = 0;
		}
	}
	switch_safe_free(*sql);
}

/* What is in the database when a profile starts */
switch_bool_t sofia_glue_execute_sql_callback(sofia_profile_t *profile, switch_mutex_t *mutex, char *sql,
											  switch_core_db_callback_func_t callback, void *pdata)
{
	static const char *rows[][6] = {
		{ "r1", "restored", "example.org", "sip:a@192.0.2.9:5060", "4000000000", "Registered(UDP)" },
		{ "r2", "restored", "example.org", "sip:a@192.0.2.9:5061;transport=tcp", "4000000000", "Registered(TCP)" },
		{ "r6", "restored", "example.org", "sip:a@192.0.2.9:5064", "4000000000", "Registered(TCP)" },
		{ "r3", "restored", "example.org", "sip:a@192.0.2.9:5062", "4000000000", "Registered(TLS-NAT)" },
		{ "r4", "restored", "example.org", "sips:a@192.0.2.9:5063", "4000000000", NULL },
		{ "r5", "restored", "example.org", "sip:a@192.0.2.9;transport=ws;fs_path=%3Csip%3A192.0.2.8%3Blr%3E", "4000000000", "Registered(TCP)" },
	};
	unsigned int i;

	switch_mutex_lock(mutex);
	for (i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		callback(pdata, 6, (char **) rows[i], NULL);
	}
	switch_mutex_unlock(mutex);
	return SWITCH_TRUE;
}

static int left_of(const char *user)
{
	sofia_tp_binding_t nobody = { "no such call-id", user, "example.org" };
	switch_event_t *event = NULL;
	int left;

	sofia_tp_error_expire(&world.profile, &nobody, &event);
	left = atoi(event_get(event, "registrations-left"));
	event_free(event);
	return left;
}

static void profile_start(void)
{
	sofia_profile_t *profile = &world.profile;
	sofia_tp_binding_t old = { "r1", "restored", "example.org", "sip:a@192.0.2.9:5060" };

	old.expires = 1;
	profile->name = "internal";
	profile->url = "sip:mod_sofia@192.0.2.10";
	profile->pool = pool_new();
	profile->dbname = "sofia_reg_internal";
	mod_sofia_globals.pool = profile->pool;
	mod_sofia_globals.tp_db = NULL;
	switch_mutex_init(&mod_sofia_globals.mutex, SWITCH_MUTEX_NESTED, profile->pool);
	sofia_tp_error_init(profile);
	profile->dbh_mutex = sofia_tp_error_dbh_mutex(profile);
	sofia_tp_error_start(profile);
	profile->pflags[PFLAG_RUNNING] = 1;
	/* A row that has expired tells nothing of one that was refreshed since */
	sofia_tp_error_expire(profile, &old, NULL);
	/* The one over UDP and the one with a path */
	if (left_of("restored") != 2) {
		fault("%d registrations are restored", left_of("restored"));
	}
}

static void profile_end(void)
{
	int i;

	world.profile.pflags[PFLAG_RUNNING] = 0;
	sofia_tp_error_stop(&world.profile);
	sofia_tp_error_destroy(&world.profile);
	pool_free(world.profile.pool);
	for (i = 0; i < world.event_count; i++) {
		event_free(world.events[i]);
	}
	world.event_count = 0;
}

static conn_t *conn_new(int trunk, int port)
{
	conn_t *conn = &world.conns[world.conn_count];

	memset(conn, 0, sizeof(*conn));
	/* Each stack numbers its own */
	conn->nua = &world.nuas[world.conn_count & 1];
	conn->id = (size_t) world.conn_count / 2 + 1;
	conn->trunk = trunk;
	conn->port = port;
	world.conn_count++;
	return conn;
}

static void conn_lose(conn_t *conn, uint64_t number)
{
	tagi_t tags = { conn->id, ECONNRESET, "reset", "tcp", "[192.0.2.1]", "1", (unsigned int) (conn - world.conns), 3, 4 };

	conn->number = number;
	conn->at = switch_mono_micro_time_now();
	PUT(conn->lost, 1);
	sofia_handle_tp_error_report(503, "Connection lost", conn->nua, &world.profile, &tags);
	PUT(conn->told, 1);
}

static request_t *request_begin(int user, conn_t *conn, kind_t kind, const char *call_id, const char *contact, uint64_t number)
{
	request_t *request = &world.requests[world.request_count];
	tagi_t tags = { conn->id };

	memset(request, 0, sizeof(*request));
	request->user = user;
	request->conn = conn;
	request->kind = kind;
	request->number = number;
	request->path = conn->trunk;
	request->expires = LONG;
	snprintf(request->call_id, sizeof(request->call_id), "%s", call_id);
	snprintf(request->contact, sizeof(request->contact), "%s", contact);
	request->to.a_url->url_user = names[user];
	request->to.a_url->url_host = "example.org";
	request->sip.sip_to = &request->to;
	request->sip.sip_cseq = &request->cseq;
	request->sip.sip_call_id = &request->id;
	request->id.i_id = request->call_id;
	request->cseq.cs_seq = (uint32_t) number;
	request->de.profile = &world.profile;
	request->de.sip = &request->sip;
	request->de.tp_request = sofia_tp_error_register_begin(&world.profile, conn->nua, &request->sip, &tags);
	if (!request->de.tp_request) {
		return NULL;
	}
	world.request_count++;
	return request;
}

static sofia_tp_match_t match_of(const request_t *request)
{
	return request->any ? SOFIA_TP_MATCH_USER : world.mode;
}

static int matches(const reg_t *reg, const request_t *request, sofia_tp_match_t match)
{
	switch (match) {
	case SOFIA_TP_MATCH_CALL_ID:
		return !strcmp(reg->call_id, request->call_id);
	case SOFIA_TP_MATCH_CONTACT:
		return reg->user == request->user && !strcmp(reg->contact, request->contact);
	default:
		return reg->user == request->user;
	}
}

/* The request came before the end of the connection */
static int before(const request_t *request, const conn_t *conn)
{
	return request->number < conn->number;
}

/* A later request has moved or removed the registration, and was read before the end of its connection */
static int moved(const reg_t *reg)
{
	return reg->by && reg->by->number > reg->number && before(reg->by, reg->conn);
}

/* True if a request is about a registration */
static int concerns(const request_t *request, const reg_t *reg)
{
	return matches(reg, request, match_of(request)) || (request->kind == REGISTER && request->renewed &&
		match_of(request) != SOFIA_TP_MATCH_USER && matches(reg, request, SOFIA_TP_MATCH_CONTACT));
}

static void row_remove(reg_t *reg, request_t *request)
{
	const request_t *other;

	reg->row = 0;
	reg->by = request;
	reg->crossed |= request->number < reg->number;
	for (other = world.requests; other < request; other++) {
		reg->crossed |= other->user == request->user && !GET(other->ended);
	}
}

/* What a later request has taken away already may have been this one's, but not if it may only refresh what is `told`
   as lost, or is being told */
static void take_earlier(request_t *request, int outdated, int told)
{
	int refused = request->kind == REGISTER && outdated;
	int i;

	for (i = 0; i < world.reg_count; i++) {
		reg_t *reg = &world.regs[i];

		if (!reg->row && reg->by && reg->user == request->user && reg->number < request->number && GET(reg->conn->lost) &&
			before(request, reg->conn) && !moved(reg) && concerns(request, reg) && !(refused && told) &&
			(!reg->earlier || reg->unsure)) {
			reg->earlier = request;
			reg->unsure = refused && GET(request->conn->lost);
		}
	}
}

static int same_conn(const conn_t *a, const conn_t *b)
{
	return a->id && a == b;
}

/* True if a request takes a registration of its own client back */
static int takes_back(const request_t *request, const reg_t *reg)
{
	return request->kind == UNREGISTER &&
		(request->any || !strcmp(reg->call_id, request->call_id) || !strcmp(reg->contact, request->contact));
}

/* True if a request would displace a registration that is newer or, if its own connection is `told` as lost, alive */
static int must_wait(request_t *request, time_t registered, int told)
{
	int i;

	for (i = 0; i < world.reg_count; i++) {
		reg_t *reg = &world.regs[i];

		if (!reg->row || reg->user != request->user || same_conn(reg->conn, request->conn) || reg->expires <= registered + 1 ||
			(GET(reg->conn->lost) && !reg->path)) {
			continue;
		}
		if (concerns(request, reg) && (request->number < reg->number ||
			(told && reg->conn->id && !reg->path && !takes_back(request, reg)))) {
			return 1;
		}
		if (reg->conn->id && !reg->path && !strcmp(reg->call_id, request->call_id) && request->cseq.cs_seq < reg->cseq &&
			(match_of(request) != SOFIA_TP_MATCH_CONTACT || !strcmp(reg->contact, request->contact)) &&
			registered - reg->registered <= CROSSING) {
			return 1;
		}
	}
	return 0;
}

/* True if there is a reason to refuse a request; what was alive then may be lost since */
static int may_wait(const request_t *request, time_t registered)
{
	int i;

	for (i = 0; i < world.reg_count; i++) {
		const reg_t *reg = &world.regs[i];
		int flow = reg->conn->id && !reg->path;

		/* The loss may have been reported already */
		if (reg->user == request->user && same_conn(reg->conn, request->conn) && !request->path && GET(request->conn->lost) &&
			request->kind == REGISTER) {
			return 1;
		}
		if (!reg->row || reg->user != request->user || same_conn(reg->conn, request->conn)) {
			continue;
		}
		if (concerns(request, reg) &&
			(request->number < reg->number || (flow && GET(request->conn->lost) && !takes_back(request, reg)))) {
			return 1;
		}
		if (flow && !strcmp(reg->call_id, request->call_id) && request->cseq.cs_seq < reg->cseq &&
			(match_of(request) != SOFIA_TP_MATCH_CONTACT || !strcmp(reg->contact, request->contact)) &&
			registered - reg->registered <= CROSSING + 2) {
			return 1;
		}
	}
	return 0;
}

/* Requests of a user that have a connection or a call-id in common are handled in order */
static void check_turn(const request_t *request)
{
	const request_t *other;

	for (other = world.requests; other < request; other++) {
		if (other->user == request->user && !GET(other->handled) &&
			(!strcmp(other->call_id, request->call_id) || same_conn(other->conn, request->conn))) {
			fault("request %llu of %s overtakes %llu", (unsigned long long) request->number, names[request->user],
				  (unsigned long long) other->number);
		}
	}
}

/* As the registrar does it: what is in its statements is here, too */
static void handle(request_t *request, uint64_t *state)
{
	sofia_profile_t *profile = &world.profile;
	sofia_tp_match_t match = match_of(request);
	int multi = match != SOFIA_TP_MATCH_USER, told, outdated, removed = 0, alive = 0, reported = 0, unregistered = 0, i;
	sofia_tp_binding_t binding = { request->call_id, names[request->user], "example.org", request->contact };
	char agent[16], port[16];
	sofia_tp_events_t events = { 0 };
	switch_event_t *event = NULL, *other;
	reg_t *reg;

	check_turn(request);

	if (request->delay) {
		usleep(request->delay);
	}
	if (request->kind == REFUSED) {
		return;
	}

	binding.registered = switch_epoch_time_now(NULL);
	binding.expires = binding.registered + (request->kind == REGISTER ? request->expires : 0);
	binding.match = match;
	binding.contact = request->any && request->kind == UNREGISTER ? "*" : request->contact;
	binding.removed = request->kind == UNREGISTER;
	binding.updated = request->kind == REGISTER && request->renewed && multi;
	binding.path = request->path;
	binding.unregister = world.unregister_conn && !request->path && request->conn->id;
	binding.network_ip = "192.0.2.1";
	snprintf(port, sizeof(port), "%d", request->conn->port);
	binding.network_port = port;
	binding.user_agent = agent;

	if (!draw(state, 3)) {
		usleep(draw(state, 200));
	}

	switch_mutex_lock(profile->dbh_mutex);

	told = GET(request->conn->told);
	outdated = sofia_tp_error_outdated(profile, &request->de, &binding);
	if (!outdated && must_wait(request, binding.registered, told)) {
		fault("request %llu of %s displaces what is newer", (unsigned long long) request->number, names[request->user]);
	} else if (outdated && !may_wait(request, binding.registered)) {
		fault("request %llu of %s is refused", (unsigned long long) request->number, names[request->user]);
	}
	take_earlier(request, outdated, told);
	if (outdated) {
		switch_mutex_unlock(profile->dbh_mutex);
		__atomic_fetch_add(&total_outdated, 1, __ATOMIC_SEQ_CST);
		return;
	}

	if (request->kind == REGISTER) {
		if (!request->renewed || !multi) {
			for (i = 0; i < world.reg_count; i++) {
				if (world.regs[i].row && matches(&world.regs[i], request, match)) {
					row_remove(&world.regs[i], request);
				}
			}
		} else {
			binding.updated = SWITCH_FALSE;
			/* Rows that are updated become the same */
			for (i = 0; i < world.reg_count; i++) {
				if (world.regs[i].row && matches(&world.regs[i], request, SOFIA_TP_MATCH_CONTACT)) {
					row_remove(&world.regs[i], request);
					binding.updated = SWITCH_TRUE;
				}
			}
		}
		for (i = 0; multi && i < world.reg_count; i++) {
			reg = &world.regs[i];
			if (reg->row && reg->user == request->user &&
				(match == SOFIA_TP_MATCH_CONTACT
				 ? !strcmp(reg->contact, request->contact) && reg->expires != binding.expires
				 : !strcmp(reg->call_id, request->call_id) && (reg->expires != binding.expires || strcmp(reg->contact, request->contact)))) {
				row_remove(reg, request);
			}
		}
		if (!draw(state, 4)) {
			usleep(draw(state, 100));
		}

		snprintf(agent, sizeof(agent), "reg-%d", world.reg_count);
		reg = &world.regs[world.reg_count++];
		memset(reg, 0, sizeof(*reg));
		reg->user = request->user;
		reg->conn = request->conn;
		memcpy(reg->call_id, request->call_id, sizeof(reg->call_id));
		memcpy(reg->contact, request->contact, sizeof(reg->contact));
		reg->cseq = request->cseq.cs_seq;
		reg->number = request->number;
		reg->registered = binding.registered;
		reg->expires = binding.expires;
		reg->path = request->path;
		reg->unregister = binding.unregister;
		reg->row = 1;

		binding.replaced = !request->renewed || !multi;
		sofia_tp_error_bind(profile, &request->de, &binding, &events, &event);
	} else {
		for (i = 0; i < world.reg_count; i++) {
			if (world.regs[i].row && matches(&world.regs[i], request, match)) {
				row_remove(&world.regs[i], request);
				removed++;
			}
		}
		sofia_tp_error_unbind(profile, &request->de, &binding, &events, &event);
		for (i = 0; i < world.reg_count; i++) {
			reg = &world.regs[i];
			alive += reg->by == request && !GET(reg->conn->lost) && reg->expires > binding.registered + 1;
			reported += reg->conn == request->conn && matches(reg, request, match) && !reg->row && !reg->by && !reg->swept;
		}
		for (other = events.first; other; other = other->next) {
			unregistered += !strcmp(event_get(other, "reason"), "socket-disconnection");
		}
		/* It tells nothing if it removes nothing that the report of a lost connection has not told */
		if (event ? (told && !removed && reported) || (unregistered && unregistered == removed)
				  : alive || (!unregistered && !GET(request->conn->lost))) {
			fault("request %llu of %s removes %d registrations, %d of them alive, and tells %s", (unsigned long long) request->number,
				  names[request->user], removed, alive, event ? "it" : "nothing");
		}
	}

	request->sequence = event ? event->sequence : event_last();
	switch_mutex_unlock(profile->dbh_mutex);
	sofia_tp_error_fire(&events);
	if (!event) {
		return;
	}

	if (!draw(state, 4)) {
		usleep(draw(state, 100));
	}
	switch_event_add_header_string(event, SWITCH_STACK_BOTTOM, "from-user", names[request->user]);
	switch_event_fire(&event);
}

/* Returns the events that are next */
static sofia_dispatch_event_t *dispatch(sofia_dispatch_event_t *de, uint64_t *state)
{
	sofia_dispatch_event_t *next = de->next;
	request_t *request;

	if (!sofia_tp_error_register_turn(de)) {
		return NULL;
	}
	request = (request_t *) de;
	handle(request, state);
	PUT(request->handled, 1);
	de = sofia_tp_error_register_end(&world.profile, request->de.tp_request, next);
	PUT(request->ended, switch_mono_micro_time_now());
	__atomic_add_fetch(&world.ended, 1, __ATOMIC_SEQ_CST);
	return de;
}

static void request_end(request_t *request)
{
	sofia_dispatch_event_t *de = &request->de;
	uint64_t state = 1;

	while (de) {
		de = dispatch(de, &state);
	}
}

static void *work(void *obj)
{
	uint64_t state = state_of(world.seed + 1000 * (uint64_t) (intptr_t) obj);
	sofia_dispatch_event_t *de;

	for (;;) {
		pthread_mutex_lock(&world.queue_mutex);
		while (world.popped == world.queued && !world.closed) {
			pthread_cond_wait(&world.queue_cond, &world.queue_mutex);
		}
		if (world.popped == world.queued) {
			pthread_mutex_unlock(&world.queue_mutex);
			return NULL;
		}
		de = &world.requests[world.popped++].de;
		pthread_mutex_unlock(&world.queue_mutex);

		if (!draw(&state, 3)) {
			usleep(draw(&state, 300));
		}
		while (de) {
			de = dispatch(de, &state);
		}
	}
}

static void sweep(void)
{
	sofia_profile_t *profile = &world.profile;
	switch_event_t *event;
	time_t now;
	int i;

	switch_mutex_lock(profile->dbh_mutex);
	holds = 1;
	now = switch_epoch_time_now(NULL);
	for (i = 0; i < world.reg_count; i++) {
		reg_t *reg = &world.regs[i];

		if (reg->row && reg->expires <= now) {
			sofia_tp_binding_t binding = { reg->call_id, names[reg->user], "example.org", reg->contact };

			binding.expires = reg->expires;
			sofia_tp_error_expire(profile, &binding, &event);
			switch_event_add_header_string(event, SWITCH_STACK_BOTTOM, "from-user", names[reg->user]);
			switch_event_fire(&event);
			reg->row = 0;
			reg->swept = 1;
		}
	}
	holds = 0;
	switch_mutex_unlock(profile->dbh_mutex);
	sofia_tp_error_sweep(profile, now);
}

static void *sweep_often(void *obj)
{
	int closed;

	do {
		usleep(1500);
		sweep();
		pthread_mutex_lock(&world.queue_mutex);
		closed = world.closed;
		pthread_mutex_unlock(&world.queue_mutex);
	} while (!closed);
	return NULL;
}

static int by_sequence(const void *a, const void *b)
{
	uint64_t left = (*(switch_event_t *const *) a)->sequence, right = (*(switch_event_t *const *) b)->sequence;

	return left < right ? -1 : left > right;
}

static int expired(const reg_t *reg, time_t now)
{
	return reg->swept || reg->expires <= now;
}

/* A request that took longer than a report waits */
static int excused(request_t *request, const conn_t *conn)
{
	return GET(request->ended) - conn->at >= (switch_time_t) world.profile.tp_error_wait * 1000000;
}

/* Compares what was told with what happened. Nothing is under way; with `say` what is wrong is printed. */
static int check(int say)
{
	const sofia_profile_t *profile = &world.profile;
	int reporting = profile->pflags[PFLAG_TP_ERROR_REPORT], bad = 0, i, user, alive;
	static switch_event_t *events[EVENTS], *last[USERS];
	static int trunks[CONNS], told[CONNS], least[CONNS], most[CONNS];
	time_t now = switch_epoch_time_now(NULL);
	int count;

#define BAD(...) do { bad++; if (say) fault(__VA_ARGS__); } while (0)

	switch_mutex_lock(profile->dbh_mutex);
	pthread_mutex_lock(&world.event_mutex);
	count = world.event_count;
	memcpy(events, world.events, sizeof(*events) * (size_t) count);
	pthread_mutex_unlock(&world.event_mutex);
	qsort(events, (size_t) count, sizeof(*events), by_sequence);

	memset(last, 0, sizeof(last));
	memset(trunks, 0, sizeof(trunks));
	memset(least, 0, sizeof(least));
	memset(most, 0, sizeof(most));
	for (i = 0; i < world.reg_count; i++) {
		world.regs[i].reports = world.regs[i].unregisters = 0;
	}

	for (i = 0; i < count; i++) {
		switch_event_t *event = events[i];
		const char *agent = event_get(event, "user-agent");
		reg_t *reg = !strncmp(agent, "reg-", 4) ? &world.regs[atoi(agent + 4)] : NULL;

		if (!strcmp(event->subclass, MY_EVENT_TP_ERROR_TRUNK)) {
			int conn = atoi(event_get(event, "connected-at"));

			trunks[conn]++;
			told[conn] = atoi(event_get(event, "registrations"));
		} else if (*event->subclass) {
			for (user = 0; user < world.users && strcmp(names[user], event_get(event, "from-user")); user++);
			last[user] = event;
		}
		if (!reg || !*event->subclass) {
			continue;
		}
		if (reg->by && event->sequence > reg->by->sequence && (!reg->crossed || moved(reg))) {
			BAD("reg-%d of %s is told after request %llu has taken it away", (int) (reg - world.regs), names[reg->user],
				(unsigned long long) reg->by->number);
		}
		if (!GET(reg->conn->lost) || reg->path) {
			BAD("reg-%d of %s is told, which is alive", (int) (reg - world.regs), names[reg->user]);
		}
		if (!strcmp(event->subclass, MY_EVENT_TP_ERROR_REPORT)) {
			reg->reports++;
		} else {
			reg->unregisters++;
		}
	}

	for (i = 0; i < world.reg_count; i++) {
		reg_t *reg = &world.regs[i];
		int conn = (int) (reg->conn - world.conns), unregister = reg->unregister || profile->pflags[PFLAG_TP_ERROR_UNREGISTER];
		int low = 0, high = 0, crossed = reg->by && reg->crossed && !moved(reg);

		if (reg->path) {
			least[conn] += !reg->by && !expired(reg, now);
			most[conn] += !(reg->by && reg->by->conn == reg->conn && before(reg->by, reg->conn));
			continue;
		}
		if (reg->conn->lost) {
			low = !expired(reg, now) && !moved(reg) && !reg->earlier;
			high = !(moved(reg) && !excused(reg->by, reg->conn)) &&
				!(reg->earlier && !excused(reg->earlier, reg->conn) && !reg->unsure);
		}
		if (reg->reports < low * reporting || reg->reports > high * reporting) {
			BAD("reg-%d of %s is reported %d times, not %d to %d", i, names[reg->user], reg->reports, low * reporting, high * reporting);
		}
		if (reg->unregisters < (low && !crossed) * unregister || reg->unregisters > high * unregister) {
			BAD("reg-%d of %s is told as unregistered %d times, not %d to %d", i, names[reg->user], reg->unregisters,
				(low && !crossed) * unregister, high * unregister);
		}
		if (reporting && unregister && reg->reports != reg->unregisters && !(crossed && !reg->unregisters)) {
			BAD("reg-%d of %s is reported %d times, but %d times told as unregistered", i, names[reg->user], reg->reports, reg->unregisters);
		}
		if (reg->row && unregister && reg->conn->lost) {
			BAD("the row of reg-%d of %s stays", i, names[reg->user]);
		}
	}

	for (user = 0; user < world.users; user++) {
		int left = left_of(names[user]);

		for (i = alive = 0; i < world.reg_count; i++) {
			reg_t *reg = &world.regs[i];

			alive += reg->user == user && reg->row && !expired(reg, now) && (reg->path || !reg->conn->lost);
		}
		if (left != alive) {
			BAD("%s has %d registrations in the index, and %d that are alive", names[user], left, alive);
		}
		if (!reporting || !last[user]) {
			continue;
		}
		if (strcmp(last[user]->subclass, MY_EVENT_REGISTER) ? atoi(event_get(last[user], "registrations-left")) != alive : !alive) {
			BAD("%s has %d registrations, but the last event is %s with %s left", names[user], alive, last[user]->subclass,
				event_get(last[user], "registrations-left"));
		}
	}

	for (i = 0; i < world.conn_count; i++) {
		if (!world.conns[i].trunk || !world.conns[i].lost) {
			continue;
		}
		if (trunks[i] > 1 || trunks[i] < !!least[i] || (trunks[i] && (told[i] < least[i] || told[i] > most[i] || !told[i]))) {
			BAD("trunk %d is told %d times with %d registrations, not %d to %d", i, trunks[i], told[i], least[i], most[i]);
		}
	}
	switch_mutex_unlock(profile->dbh_mutex);
	return bad;
}

static void check_quiet(void)
{
	int i;

	/* Those that don't live long are gone by then */
	if (world.short_lived) {
		usleep((SHORT + 1) * 1000000 / clock_speed);
		sweep();
	}
	for (i = 0; i < LOOKS && check(0); i++) {
		usleep(5000);
	}
	check(1);
}

static int port_free(uint64_t *state)
{
	int port, i;

	do {
		port = 1 + (int) draw(state, PORTS);
		for (i = 0; i < world.conn_count; i++) {
			if (!world.conns[i].lost && world.conns[i].port == port) {
				port = 0;
			}
		}
	} while (!port);
	return port;
}

static conn_t *conn_alive(uint64_t *state, int trunk)
{
	int tries, i, alive = 0;

	for (i = 1; i < world.conn_count; i++) {
		alive += !world.conns[i].lost && world.conns[i].trunk == trunk;
	}
	if (alive > (trunk ? 1 : PORTS / 2) || (alive && draw(state, 3))) {
		for (tries = 0; tries < 1000; tries++) {
			/* The newer ones more often */
			i = world.conn_count - 1 - (int) draw(state, 1 + draw(state, (uint32_t) world.conn_count));
			if (i && !world.conns[i].lost && world.conns[i].trunk == trunk) {
				return &world.conns[i];
			}
		}
	}
	return conn_new(trunk, port_free(state));
}

/* The thread of the stack */
static void read_some(uint64_t *state, int count, uint64_t *number)
{
	static conn_t *recent[USERS];
	char call_id[16], contact[16];
	request_t *request;
	conn_t *conn;
	kind_t kind;
	int user, dice;

	if (*number == 0) {
		memset(recent, 0, sizeof(recent));
	}

	while (count-- && world.conn_count < CONNS - 2) {
		++*number;
		dice = (int) draw(state, 100);
		user = (int) draw(state, (uint32_t) world.users);

		if (dice < 25) {
			conn = recent[user] && draw(state, 2) ? recent[user] : conn_alive(state, !draw(state, 8));
			if (!conn->lost && conn->id) {
				conn_lose(conn, *number);
				total_losses++;
			}
		} else {
			kind = dice < 40 ? UNREGISTER : dice < 46 ? REFUSED : REGISTER;
			if (!draw(state, 12)) {
				conn = &world.conns[0];
			} else if (recent[user] && !recent[user]->lost && draw(state, 2)) {
				conn = recent[user];
			} else {
				conn = conn_alive(state, !draw(state, 8));
			}
			recent[user] = conn;
			snprintf(call_id, sizeof(call_id), "call-%d-%u", user, draw(state, 2) ? 0 : draw(state, 3));
			/* Some users have a contact in common */
			snprintf(contact, sizeof(contact), "contact-%d-%u", draw(state, 4) ? user : USERS, draw(state, 4) ? 0 : draw(state, 3));
			if (!(request = request_begin(user, conn, kind, call_id, contact, *number))) {
				continue;
			}
			request->renewed = !!draw(state, 2);
			request->any = !draw(state, 16);
			/* Some are older than what was sent over another connection */
			request->cseq.cs_seq -= draw(state, 6) || *number < 20 ? 0 : draw(state, 20);
			if (world.short_lived && !draw(state, 4)) {
				request->expires = SHORT;
			}
			if (world.slow && !draw(state, 10)) {
				request->delay = 2 * world.profile.tp_error_wait * 1000000 / clock_speed;
			}
			total_requests++;
			pthread_mutex_lock(&world.queue_mutex);
			world.queued = world.request_count;
			pthread_cond_signal(&world.queue_cond);
			pthread_mutex_unlock(&world.queue_mutex);
		}
		if (!draw(state, 4)) {
			usleep(draw(state, 400));
		}
	}
}

static void world_new(uint64_t seed, sofia_tp_match_t mode, uint32_t wait)
{
	memset(&world, 0, sizeof(world));
	world.seed = seed;
	world.mode = mode;
	world.users = USERS;
	world.profile.tp_error_wait = wait;
	world.profile.pflags[PFLAG_TP_ERROR_REPORT] = 1;
	world.profile.pflags[PFLAG_MULTIREG_CONTACT] = mode == SOFIA_TP_MATCH_CONTACT;
	pthread_mutex_init(&world.event_mutex, NULL);
	pthread_mutex_init(&world.queue_mutex, NULL);
	pthread_cond_init(&world.queue_cond, NULL);
	/* UDP has none */
	conn_new(0, 5060)->id = 0;
}

static void scenario(uint64_t seed, int workers)
{
	uint64_t state = state_of(seed), number = 0;
	pthread_t threads[WORKERS], sweeper;
	int i, phase, phases, quiet;

	world_new(seed, (sofia_tp_match_t) draw(&state, 3), 0);
	world.users = 1 + (int) draw(&state, USERS);
	world.workers = workers ? workers : 1 + (int) draw(&state, WORKERS);
	world.profile.pflags[PFLAG_TP_ERROR_REPORT] = draw(&state, 8) != 0;
	world.profile.pflags[PFLAG_TP_ERROR_UNREGISTER] = draw(&state, 2) != 0;
	world.unregister_conn = draw(&state, 2) != 0;
	/* Either nothing waits for too long, or much does, or nothing waits at all */
	clock_speed = draw(&state, 2) ? 1 : 50;
	world.short_lived = clock_speed != 1;
	world.slow = clock_speed != 1 && draw(&state, 2);
	world.profile.tp_error_wait = !draw(&state, 6) ? 0 : clock_speed == 1 ? 60 : 1;
	quiet = draw(&state, 6) != 0;

	profile_start();
	for (i = 0; i < world.workers; i++) {
		pthread_create(&threads[i], NULL, work, (void *) (intptr_t) (i + 1));
	}
	pthread_create(&sweeper, NULL, sweep_often, NULL);

	phases = 1 + (int) draw(&state, 4);
	for (phase = 0; phase < phases; phase++) {
		read_some(&state, 20 + (int) draw(&state, 180), &number);
		while (quiet && GET(world.ended) < world.request_count) {
			usleep(1000);
		}
		if (quiet) {
			check_quiet();
		}
	}

	pthread_mutex_lock(&world.queue_mutex);
	world.closed = 1;
	pthread_cond_broadcast(&world.queue_cond);
	pthread_mutex_unlock(&world.queue_mutex);
	for (i = 0; i < world.workers; i++) {
		pthread_join(threads[i], NULL);
	}
	pthread_join(sweeper, NULL);

	if (GET(world.ended) != world.request_count) {
		fault("%d of %d requests were handled", world.ended, world.request_count);
	}
	pthread_mutex_lock(&world.event_mutex);
	for (i = 0; i < world.event_count; i++) {
		total_reports += !strcmp(world.events[i]->subclass, MY_EVENT_TP_ERROR_REPORT);
		total_trunks += !strcmp(world.events[i]->subclass, MY_EVENT_TP_ERROR_TRUNK);
		total_unregisters += !strcmp(event_get(world.events[i], "reason"), "socket-disconnection");
	}
	pthread_mutex_unlock(&world.event_mutex);
	profile_end();
}

/* A report waits for a bounded time for a second request, also if its registration came late */
static void late(void)
{
	request_t *first, *second;
	conn_t *lost, *other;

	clock_speed = 2;
	world_new(1, SOFIA_TP_MATCH_CALL_ID, 1);
	profile_start();
	/* The thread that reports waits for something to do by then */
	usleep(50000);
	lost = conn_new(0, 1);
	other = conn_new(0, 2);
	first = request_begin(0, lost, REGISTER, "one", "one", 1);
	second = request_begin(0, other, REGISTER, "two", "two", 2);
	conn_lose(lost, 3);
	request_end(first);
	check_quiet();
	request_end(second);
	check_quiet();
	profile_end();
}

/* One that is registered again over a trunk, or removed, while that is lost is one, or none */
static void trunk(kind_t kind)
{
	request_t *request;
	conn_t *conn;

	clock_speed = 1;
	world_new(2, SOFIA_TP_MATCH_CALL_ID, 60);
	profile_start();
	conn = conn_new(1, 1);
	request_end(request_begin(0, conn, REGISTER, "one", "one", 1));
	request_end(request_begin(1, conn, REGISTER, "two", "two", 2));
	request = request_begin(0, conn, kind, "one", "one", 3);
	conn_lose(conn, 4);
	request_end(request);
	check_quiet();
	profile_end();
}

/* A client that is back from the same port with the same Call-ID has another row only if its contact is another one */
static void same_port(const char *contact)
{
	conn_t *conn;

	clock_speed = 1;
	world_new(3, SOFIA_TP_MATCH_CONTACT, 60);
	world.profile.pflags[PFLAG_TP_ERROR_UNREGISTER] = 1;
	profile_start();
	conn = conn_new(0, 1);
	request_end(request_begin(0, conn, REGISTER, "one", "one", 1));
	/* It is back before the row of the lost one is deleted */
	switch_mutex_lock(world.profile.dbh_mutex);
	holds = 1;
	conn_lose(conn, 2);
	request_end(request_begin(0, conn_new(0, 1), REGISTER, "one", contact, 3));
	holds = 0;
	switch_mutex_unlock(world.profile.dbh_mutex);
	check_quiet();
	profile_end();
}

static void *lose(void *obj)
{
	conn_lose(obj, 1000);
	return NULL;
}

/* Those of a large connection that are back before it is their turn to be reported are reported then */
static void crowd(void)
{
	char contact[16];
	pthread_t thread;
	conn_t *conn;
	int i;

	clock_speed = 1;
	world_new(5, SOFIA_TP_MATCH_CONTACT, 60);
	world.profile.pflags[PFLAG_TP_ERROR_UNREGISTER] = 1;
	profile_start();
	conn = conn_new(0, 1);
	for (i = 0; i < CROWD; i++) {
		snprintf(contact, sizeof(contact), "%d", i);
		request_end(request_begin(0, conn, REGISTER, "one", contact, (uint64_t) i + 1));
	}
	never_held = 1;
	PUT(world.held, 1);
	pthread_create(&thread, NULL, lose, conn);
	for (i = 0; i < LOOKS && left_of(names[0]); i++) {
		usleep(5000);
	}
	if (left_of(names[0])) {
		fault("%d registrations of a lost connection count", left_of(names[0]));
	}
	conn = conn_new(0, 2);
	for (i = 0; i < CROWD; i++) {
		snprintf(contact, sizeof(contact), "%d", i);
		request_end(request_begin(0, conn, i % 3 ? REGISTER : UNREGISTER, "one", contact, (uint64_t) i + 1001));
	}
	PUT(world.held, 0);
	never_held = 0;
	pthread_join(thread, NULL);
	check_quiet();
	profile_end();
}

/* What is on its way is bounded, and what was not handled is freed */
static void many(void)
{
	sofia_tp_request_t *first = NULL, *request;
	char user[24], call_id[24];
	request_t any = { 0 };
	tagi_t tags = { 0 };
	conn_t *conn;
	int i;

	clock_speed = 1;
	world_new(4, SOFIA_TP_MATCH_USER, 60);
	profile_start();
	conn = conn_new(0, 1);
	tags.id = conn->id;
	any.to.a_url->url_user = user;
	any.to.a_url->url_host = "example.org";
	any.id.i_id = call_id;
	any.sip.sip_to = &any.to;
	any.sip.sip_call_id = &any.id;
	for (i = 0; i < 2 * REQUESTS_MAX; i++) {
		snprintf(user, sizeof(user), "user-%d", i);
		snprintf(call_id, sizeof(call_id), "call-%d", i);
		/* Not all over one connection */
		tags.id = i % 16 ? 100 + (size_t) i : conn->id;
		if (!(request = sofia_tp_error_register_begin(&world.profile, conn->nua, &any.sip, &tags))) {
			break;
		}
		first = first ? first : request;
	}
	if (i != REQUESTS_MAX) {
		fault("%d requests are taken", i);
	}
	sofia_tp_error_register_end(&world.profile, first, NULL);
	if (!sofia_tp_error_register_begin(&world.profile, conn->nua, &any.sip, &tags) ||
		sofia_tp_error_register_begin(&world.profile, conn->nua, &any.sip, &tags)) {
		fault("a request that ends does not make room for one");
	}
	conn_lose(conn, 203);
	profile_end();
}

/* Requests of a user wait only for those with the same connection or Call-ID, and all that have waited are let go */
static void apart(void)
{
	request_t *requests[6];
	conn_t *first, *second;
	uint64_t state = 1;
	int i;

	clock_speed = 1;
	world_new(6, SOFIA_TP_MATCH_CONTACT, 60);
	profile_start();
	first = conn_new(0, 1);
	second = conn_new(0, 2);
	requests[0] = request_begin(0, first, REGISTER, "one", "one", 1);
	requests[1] = request_begin(0, second, REGISTER, "two", "two", 2);
	requests[2] = request_begin(0, first, REGISTER, "two", "three", 3);
	requests[3] = request_begin(0, conn_new(0, 3), REGISTER, "one", "four", 4);
	requests[4] = request_begin(0, second, REGISTER, "five", "five", 5);
	requests[5] = request_begin(0, &world.conns[0], REGISTER, "six", "six", 6);
	for (i = 4; i >= 2; i--) {
		request_end(requests[i]);
	}
	request_end(requests[5]);
	if (world.ended != 1) {
		fault("%d requests are handled before what they wait for", world.ended - 1);
	}
	/* The thread has others to go on with */
	requests[1]->de.next = &request_begin(1, first, REGISTER, "seven", "seven", 7)->de;
	if (dispatch(&requests[1]->de, &state) != &requests[4]->de || requests[4]->de.next != requests[1]->de.next) {
		fault("what waits for one request is not what goes on");
	}
	request_end(requests[4]);
	request_end(requests[0]);
	if (world.ended != 7) {
		fault("%d of 7 requests are handled", world.ended);
	}
	check_quiet();
	profile_end();
}

/* How many events of a kind there are */
static int told(const char *subclass)
{
	int i, count = 0;

	pthread_mutex_lock(&world.event_mutex);
	for (i = 0; i < world.event_count; i++) {
		count += !strcmp(world.events[i]->subclass, subclass);
	}
	pthread_mutex_unlock(&world.event_mutex);
	return count;
}

/* An unregister that comes late tells nothing that the report has not */
static void unregister_late(void)
{
	request_t *request;
	conn_t *conn;
	int i;

	clock_speed = 1;
	world_new(7, SOFIA_TP_MATCH_CALL_ID, 0);
	profile_start();
	conn = conn_new(0, 1);
	request_end(request_begin(0, conn, REGISTER, "one", "one", 1));
	request = request_begin(0, conn, UNREGISTER, "one", "one", 2);
	conn_lose(conn, 3);
	for (i = 0; i < LOOKS && !told(MY_EVENT_TP_ERROR_REPORT); i++) {
		usleep(5000);
	}
	request_end(request);
	check_quiet();
	if (told(MY_EVENT_TP_ERROR_REPORT) != 1 || told(MY_EVENT_UNREGISTER)) {
		fault("%d reports and %d unregisters are told", told(MY_EVENT_TP_ERROR_REPORT), told(MY_EVENT_UNREGISTER));
	}

	/* Of what the index doesn't know, a row of before a restart, there is no report */
	conn = conn_new(0, 1);
	request = request_begin(1, conn, UNREGISTER, "two", "two", 1);
	conn_lose(conn, 3);
	request_end(request);
	check_quiet();
	if (told(MY_EVENT_UNREGISTER) != 1) {
		fault("an unregister without a report is told %d times", told(MY_EVENT_UNREGISTER));
	}
	profile_end();
}

/* One that was read before does not displace what one that does not wait for it has bound */
static void older(int udp, int trunk)
{
	request_t *first, *second;
	long outdated = total_outdated;

	clock_speed = 1;
	world_new(8, SOFIA_TP_MATCH_USER, 60);
	profile_start();
	first = request_begin(0, conn_new(0, 1), REGISTER, "one", "one", 1);
	second = request_begin(0, udp ? &world.conns[0] : conn_new(trunk, 2), REGISTER, "two", "two", 2);
	request_end(second);
	request_end(first);
	if (total_outdated != outdated + 1) {
		fault("an older request is not refused");
	}
	check_quiet();
	profile_end();
}

/* Of a connection whose loss a later REGISTER has had reported, nothing that is still on its way registers anybody */
static void twice(int lost, int leaves)
{
	request_t *refresh, *other, *goodbye;
	conn_t *first, *second;
	long outdated = total_outdated;
	int reports = 1 + (lost && !leaves);

	clock_speed = 1;
	world_new(9, SOFIA_TP_MATCH_USER, 60);
	profile_start();
	first = conn_new(0, 1);
	second = conn_new(0, 2);
	request_end(request_begin(0, first, REGISTER, "one", "one", 1));
	refresh = request_begin(0, first, REGISTER, "one", "one", 2);
	conn_lose(first, 3);
	other = request_begin(0, second, REGISTER, "two", "two", 4);
	goodbye = leaves ? request_begin(0, second, UNREGISTER, "two", "two", 5) : NULL;
	if (lost) {
		conn_lose(second, 6);
	}
	request_end(other);
	if (goodbye) {
		request_end(goodbye);
	}
	request_end(refresh);
	check_quiet();
	if (total_outdated != outdated + 1 || told(MY_EVENT_TP_ERROR_REPORT) != reports || told(MY_EVENT_REGISTER) != 2) {
		fault("%ld requests are refused, %d reports and %d registers are told", total_outdated - outdated,
			  told(MY_EVENT_TP_ERROR_REPORT), told(MY_EVENT_REGISTER));
	}
	profile_end();
}

/* Who has left, or moved to another connection, and comes back before that is handled, was not lost */
static void back(sofia_tp_match_t mode, kind_t kind, int over_other, int removed)
{
	conn_t *first, *second, *third;
	request_t *earlier, *later;
	int reports = kind == REFUSED || (kind == REGISTER && !over_other);

	clock_speed = 1;
	world_new(12, mode, 60);
	profile_start();
	first = conn_new(0, 1);
	second = conn_new(0, 2);
	third = conn_new(0, 3);
	request_end(request_begin(0, first, REGISTER, "one", "one", 1));
	earlier = request_begin(0, over_other ? third : first, kind, "one", "one", 2);
	conn_lose(first, 3);
	later = request_begin(0, second, removed ? UNREGISTER : REGISTER, "two", "one", 4);
	later->any = removed;
	request_end(later);
	if (told(MY_EVENT_TP_ERROR_REPORT)) {
		fault("it is reported before what was read before it is handled");
	}
	request_end(earlier);
	check_quiet();
	if (told(MY_EVENT_TP_ERROR_REPORT) != reports) {
		fault("kind %d, over another %d, removed %d: %d reports", kind, over_other, removed, told(MY_EVENT_TP_ERROR_REPORT));
	}
	profile_end();
}

/* What was read before a registration does not keep the end of its connection from being told */
static void swallow(sofia_tp_match_t mode, kind_t kind, int any)
{
	conn_t *first, *second;
	request_t *earlier;

	clock_speed = 1;
	world_new(13, mode, 60);
	profile_start();
	first = conn_new(0, 1);
	second = conn_new(0, 2);
	request_end(request_begin(0, first, REGISTER, "one", "one", 1));
	earlier = request_begin(0, first, kind, "one", "one", 2);
	earlier->any = any;
	request_end(request_begin(0, second, REGISTER, "two", "two", 3));
	conn_lose(second, 4);
	request_end(earlier);
	check_quiet();
	if (told(MY_EVENT_TP_ERROR_REPORT) != 1) {
		fault("kind %d, any %d: %d reports", kind, any, told(MY_EVENT_TP_ERROR_REPORT));
	}
	profile_end();
}

/* Who takes his registration back over a connection that is lost then means it, another client does not */
static void leave(sofia_tp_match_t mode, const char *call_id, const char *contact, int any, int counts)
{
	request_t *request;
	conn_t *first, *second;
	long outdated = total_outdated;

	clock_speed = 1;
	world_new(10, mode, 60);
	profile_start();
	first = conn_new(0, 1);
	second = conn_new(0, 2);
	request_end(request_begin(0, first, REGISTER, "one", "one", 1));
	request = request_begin(0, second, UNREGISTER, call_id, contact, 2);
	request->any = any;
	conn_lose(second, 3);
	request_end(request);
	conn_lose(first, 4);
	check_quiet();
	if (total_outdated != outdated + !counts || told(MY_EVENT_UNREGISTER) != counts || told(MY_EVENT_TP_ERROR_REPORT) != !counts) {
		fault("%s and %s: %ld requests are refused, %d unregisters and %d reports are told", call_id, contact,
			  total_outdated - outdated, told(MY_EVENT_UNREGISTER), told(MY_EVENT_TP_ERROR_REPORT));
	}
	profile_end();
}

/* What the registrar asks of each row of a user that a "*" is to remove: is it to be kept? */
static int kept(const request_t *request, const char *call_id, const char *contact)
{
	sofia_tp_binding_t row = { call_id, names[0], "example.org", contact };

	row.match = SOFIA_TP_MATCH_ROW;
	row.removed = SWITCH_TRUE;
	row.registered = switch_epoch_time_now(NULL);
	return sofia_tp_error_outdated(&world.profile, &request->de, &row);
}

/* A "*" removes what other clients have bound, too, whatever their CSeq, and over a lost connection, reported or not */
static void star(sofia_tp_match_t mode, int lost, uint32_t wait, unsigned theirs, unsigned own)
{
	request_t *request;
	conn_t *first, *second;

	clock_speed = 1;
	world_new(11, mode, 60);
	world.profile.tp_error_wait = wait;
	profile_start();
	first = conn_new(0, 1);
	second = conn_new(0, 2);
	request = request_begin(0, second, REGISTER, "two", "two", 1);
	request->cseq.cs_seq = theirs;
	request_end(request);
	request = request_begin(0, first, UNREGISTER, "one", "*", 2);
	request->cseq.cs_seq = own;
	request->any = 1;
	if (lost) {
		conn_lose(first, 3);
		usleep(50000);
	}
	if (kept(request, "two", "two")) {
		fault("a row is kept: CSeq %u and %u, lost %d, wait %u", theirs, own, lost, wait);
	}
	request_end(request);
	profile_end();
}

int main(int argc, char **argv)
{
	uint64_t seed;
	int i, count, workers;

	if (argc != 4) {
		fprintf(stderr, "usage: index SEED SCENARIOS WORKERS\n");
		return 2;
	}
	seed = strtoull(argv[1], NULL, 10);
	count = atoi(argv[2]);
	workers = atoi(argv[3]);

	late();
	trunk(REGISTER);
	trunk(UNREGISTER);
	same_port("one");
	same_port("two");
	crowd();
	many();
	apart();
	unregister_late();
	older(0, 0);
	older(1, 0);
	older(0, 1);
	twice(0, 0);
	twice(1, 0);
	twice(1, 1);
	for (i = 0; i < 24; i++) {
		back(i % 2 ? SOFIA_TP_MATCH_USER : SOFIA_TP_MATCH_CONTACT, i % 3 ? i % 3 > 1 ? REGISTER : UNREGISTER : REFUSED, i / 6 % 2, i / 12);
	}
	swallow(SOFIA_TP_MATCH_USER, REGISTER, 0);
	swallow(SOFIA_TP_MATCH_USER, UNREGISTER, 0);
	swallow(SOFIA_TP_MATCH_CONTACT, UNREGISTER, 1);
	leave(SOFIA_TP_MATCH_USER, "one", "one", 0, 1);
	leave(SOFIA_TP_MATCH_USER, "one", "two", 0, 1);
	leave(SOFIA_TP_MATCH_USER, "two", "one", 0, 1);
	leave(SOFIA_TP_MATCH_USER, "two", "two", 0, 0);
	leave(SOFIA_TP_MATCH_CALL_ID, "one", "two", 0, 1);
	leave(SOFIA_TP_MATCH_CONTACT, "two", "one", 0, 1);
	leave(SOFIA_TP_MATCH_CONTACT, "two", "", 1, 1);
	for (i = 0; i < 8; i++) {
		star(i % 2 ? SOFIA_TP_MATCH_CALL_ID : SOFIA_TP_MATCH_CONTACT, i & 2, i & 4 ? 60 : 0, 50, 2);
	}
	star(SOFIA_TP_MATCH_USER, 0, 60, 50, 2);
	star(SOFIA_TP_MATCH_USER, 0, 60, 2, 50);
	for (i = 0; i < count && !GET(wrong); i++) {
		scenario(seed + (uint64_t) i, workers);
	}

	printf("{\"scenarios\": %d, \"requests\": %ld, \"losses\": %ld, \"reports\": %ld, \"unregisters\": %ld, \"trunks\": %ld, "
		   "\"outdated\": %ld, \"wrong\": %d}\n",
		   i, total_requests, total_losses, total_reports, total_unregisters, total_trunks, total_outdated, wrong);
	return wrong != 0;
}
