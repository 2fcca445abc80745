/* FreeSWITCH as far as sofia_tp_error.c needs it. Its clock can run faster than ours. */
#define _GNU_SOURCE
#include "mod_sofia.h"
#include "index.h"
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <unistd.h>
#include <sofia-sip/nua_tp_tag.h>

struct switch_mutex {
	pthread_mutex_t mutex;
};

struct switch_thread_cond {
	pthread_cond_t cond;
};

struct switch_thread {
	pthread_t thread;
	switch_thread_start_t run;
	void *obj;
};

/* Blocks, the newest first */
struct switch_memory_pool {
	struct block {
		struct block *next;
		max_align_t data[];
	} *blocks;
	pthread_mutex_t mutex;
};

typeof(mod_sofia_globals) mod_sofia_globals = { "here" };
unsigned int clock_speed = 1;
__thread int mutexes_held;

static uint64_t last_sequence;

void *stub_zmalloc(size_t len)
{
	void *p = calloc(1, len);

	if (!p) {
		abort();
	}
	return p;
}

/* Reads what is to be logged, so that the sanitizers see it */
void stub_format(const char *format, ...)
{
	char line[1024];
	va_list list;

	va_start(list, format);
	vsnprintf(line, sizeof(line), format, list);
	va_end(list);
}

switch_memory_pool_t *pool_new(void)
{
	switch_memory_pool_t *pool = stub_zmalloc(sizeof(*pool));

	pthread_mutex_init(&pool->mutex, NULL);
	return pool;
}

void pool_free(switch_memory_pool_t *pool)
{
	struct block *block;

	while ((block = pool->blocks)) {
		pool->blocks = block->next;
		free(block);
	}
	free(pool);
}

void *switch_core_alloc(switch_memory_pool_t *pool, size_t len)
{
	struct block *block = stub_zmalloc(sizeof(*block) + len);

	pthread_mutex_lock(&pool->mutex);
	block->next = pool->blocks;
	pool->blocks = block;
	pthread_mutex_unlock(&pool->mutex);
	return block->data;
}

char *switch_core_strdup(switch_memory_pool_t *pool, const char *text)
{
	return strcpy(switch_core_alloc(pool, strlen(text) + 1), text);
}

/* Knows %s, %q, %d, %u and %ld */
char *switch_mprintf(const char *format, ...)
{
	char *text = NULL;
	size_t len = 0;
	FILE *out = open_memstream(&text, &len);
	const char *p, *s;
	va_list list;

	va_start(list, format);
	for (p = format; *p; p++) {
		if (*p != '%') {
			fputc(*p, out);
		} else if (*++p == 'q') {
			for (s = va_arg(list, const char *); *s; s++) {
				fputs(*s == '\'' ? "''" : (char[2]) { *s }, out);
			}
		} else if (*p == 's') {
			fputs(va_arg(list, const char *), out);
		} else if (*p == 'd' || *p == 'u') {
			fprintf(out, "%d", va_arg(list, int));
		} else if (*p == 'l' && *++p == 'd') {
			fprintf(out, "%ld", va_arg(list, long));
		} else {
			abort();
		}
	}
	va_end(list);
	fclose(out);
	return text;
}

char *switch_copy_string(char *to, const char *from, size_t len)
{
	snprintf(to, len, "%s", switch_str_nil(from));
	return to;
}

const char *switch_stristr(const char *part, const char *text)
{
	return part && text ? strcasestr(text, part) : NULL;
}

void switch_uuid_get(switch_uuid_t *uuid)
{
	unsigned int i;

	for (i = 0; i < sizeof(uuid->data); i++) {
		uuid->data[i] = (unsigned char) (i * 41 + 7);
	}
}

switch_time_t switch_mono_micro_time_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec * 1000000LL + now.tv_nsec / 1000) * clock_speed;
}

time_t switch_epoch_time_now(time_t *now)
{
	time_t seconds = (time_t) (1700000000 + switch_mono_micro_time_now() / 1000000);

	if (now) {
		*now = seconds;
	}
	return seconds;
}

void switch_cond_next(void)
{
	sched_yield();
}

void switch_yield(unsigned int us)
{
	usleep(us);
}

switch_status_t switch_mutex_init(switch_mutex_t **mutex, unsigned int flags, switch_memory_pool_t *pool)
{
	pthread_mutexattr_t attr;

	*mutex = switch_core_alloc(pool, sizeof(**mutex));
	pthread_mutexattr_init(&attr);
	/* An error of a thread that locks it twice ends the test */
	pthread_mutexattr_settype(&attr, flags & SWITCH_MUTEX_NESTED ? PTHREAD_MUTEX_RECURSIVE : PTHREAD_MUTEX_ERRORCHECK);
	pthread_mutex_init(&(*mutex)->mutex, &attr);
	return SWITCH_STATUS_SUCCESS;
}

switch_status_t switch_mutex_lock(switch_mutex_t *mutex)
{
	if (pthread_mutex_lock(&mutex->mutex)) {
		abort();
	}
	mutexes_held++;
	return SWITCH_STATUS_SUCCESS;
}

switch_status_t switch_mutex_unlock(switch_mutex_t *mutex)
{
	if (pthread_mutex_unlock(&mutex->mutex)) {
		abort();
	}
	mutexes_held--;
	return SWITCH_STATUS_SUCCESS;
}

switch_status_t switch_thread_cond_create(switch_thread_cond_t **cond, switch_memory_pool_t *pool)
{
	pthread_condattr_t attr;

	*cond = switch_core_alloc(pool, sizeof(**cond));
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&(*cond)->cond, &attr);
	return SWITCH_STATUS_SUCCESS;
}

switch_status_t switch_thread_cond_wait(switch_thread_cond_t *cond, switch_mutex_t *mutex)
{
	pthread_cond_wait(&cond->cond, &mutex->mutex);
	return SWITCH_STATUS_SUCCESS;
}

switch_status_t switch_thread_cond_timedwait(switch_thread_cond_t *cond, switch_mutex_t *mutex, switch_time_t wait)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	wait = wait / clock_speed + until.tv_nsec / 1000 + 1;
	until.tv_sec += wait / 1000000;
	until.tv_nsec = wait % 1000000 * 1000;
	return pthread_cond_timedwait(&cond->cond, &mutex->mutex, &until) ? SWITCH_STATUS_FALSE : SWITCH_STATUS_SUCCESS;
}

switch_status_t switch_thread_cond_signal(switch_thread_cond_t *cond)
{
	pthread_cond_signal(&cond->cond);
	return SWITCH_STATUS_SUCCESS;
}

switch_status_t switch_threadattr_create(switch_threadattr_t **attr, switch_memory_pool_t *pool)
{
	*attr = NULL;
	return SWITCH_STATUS_SUCCESS;
}

switch_status_t switch_threadattr_stacksize_set(switch_threadattr_t *attr, size_t size)
{
	return SWITCH_STATUS_SUCCESS;
}

static void *thread_run(void *obj)
{
	switch_thread_t *thread = obj;

	return thread->run(thread, thread->obj);
}

switch_status_t switch_thread_create(switch_thread_t **thread, switch_threadattr_t *attr, switch_thread_start_t run, void *obj,
									 switch_memory_pool_t *pool)
{
	*thread = switch_core_alloc(pool, sizeof(**thread));
	(*thread)->run = run;
	(*thread)->obj = obj;
	return pthread_create(&(*thread)->thread, NULL, thread_run, *thread) ? SWITCH_STATUS_FALSE : SWITCH_STATUS_SUCCESS;
}

switch_status_t switch_thread_join(switch_status_t *status, switch_thread_t *thread)
{
	*status = SWITCH_STATUS_SUCCESS;
	pthread_join(thread->thread, NULL);
	return SWITCH_STATUS_SUCCESS;
}

switch_status_t switch_event_create_subclass(switch_event_t **event, switch_event_types_t type, const char *subclass)
{
	*event = stub_zmalloc(sizeof(**event));
	(*event)->subclass = subclass;
	(*event)->sequence = __atomic_add_fetch(&last_sequence, 1, __ATOMIC_SEQ_CST);
	return SWITCH_STATUS_SUCCESS;
}

switch_status_t switch_event_create(switch_event_t **event, switch_event_types_t type)
{
	return switch_event_create_subclass(event, type, "");
}

switch_status_t switch_event_add_header_string(switch_event_t *event, switch_stack_t stack, const char *name, const char *value)
{
	switch_header_t *header = &event->headers[event->count++];

	if (event->count > (int) (sizeof(event->headers) / sizeof(*header))) {
		abort();
	}
	header->name = strdup(name);
	header->value = strdup(value);
	return SWITCH_STATUS_SUCCESS;
}

switch_status_t switch_event_add_header(switch_event_t *event, switch_stack_t stack, const char *name, const char *format, ...)
{
	char value[512];
	va_list list;

	va_start(list, format);
	vsnprintf(value, sizeof(value), format, list);
	va_end(list);
	return switch_event_add_header_string(event, stack, name, value);
}

const char *event_get(const switch_event_t *event, const char *name)
{
	int i;

	for (i = 0; i < event->count; i++) {
		if (!strcmp(event->headers[i].name, name)) {
			return event->headers[i].value;
		}
	}
	return "";
}

void event_free(switch_event_t *event)
{
	int i;

	for (i = 0; i < event->count; i++) {
		free(event->headers[i].name);
		free(event->headers[i].value);
	}
	free(event);
}

/* The sequence of the event that was created last */
uint64_t event_last(void)
{
	return __atomic_load_n(&last_sequence, __ATOMIC_SEQ_CST);
}

int tl_gets(tagi_t const *tags, ...)
{
	va_list list;
	stub_tag_t tag;

	va_start(list, tags);
	while ((tag = va_arg(list, stub_tag_t)) != STUB_END) {
		switch (tag) {
		case STUB_ID:
			*va_arg(list, size_t *) = tags->id;
			break;
		case STUB_ERRNO:
			*va_arg(list, int *) = tags->errcode;
			break;
		case STUB_CAUSE:
			*va_arg(list, const char **) = tags->cause;
			break;
		case STUB_PROTO:
			*va_arg(list, const char **) = tags->proto;
			break;
		case STUB_PEER_HOST:
			*va_arg(list, const char **) = tags->peer_host;
			break;
		case STUB_PEER_PORT:
			*va_arg(list, const char **) = tags->peer_port;
			break;
		case STUB_OPENED:
			*va_arg(list, unsigned int *) = tags->opened;
			break;
		case STUB_NOTICED:
			*va_arg(list, unsigned int *) = tags->noticed;
			break;
		case STUB_NOTICED_USEC:
			*va_arg(list, unsigned int *) = tags->noticed_usec;
			break;
		default:
			abort();
		}
	}
	va_end(list);
	return 0;
}
