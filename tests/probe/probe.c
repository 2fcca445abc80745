/*
 * probe - a registrar that tells how its connections end
 *
 * It is linked with the patched sofia-sip alone. Each event of nua is printed
 * as one line of JSON, and so is the end of each connection, be it one that
 * nua does not report. It ends, in good order, when it gets SIGTERM or when its
 * standard input ends.
 */

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct handle;

#define NUA_MAGIC_T  struct probe
#define NUA_HMAGIC_T struct handle

#include <sofia-sip/nua.h>
#include <sofia-sip/nua_tag.h>
#include <sofia-sip/nua_tp_tag.h>
#include <sofia-sip/sip_status.h>
#include <sofia-sip/su_tagarg.h>
#include <sofia-sip/tport.h>
#include <sofia-sip/tport_end.h>
#include <sofia-sip/tport_tag.h>
#include <sofia-sip/url.h>

/* A handle of a REGISTER that is kept, as FreeSWITCH does */
struct handle {
  struct handle *next;
  nua_handle_t *nh;
};

struct probe {
  su_root_t *root;
  nua_t *nua;
  int keep;
  int down;
  struct handle *handles;
};

static volatile sig_atomic_t stop, late;
static int torn;
static unsigned lateness, slowness;

/* The kernel puts events together one after the other: with an error that comes
   meanwhile, the input or the hangup that goes with it can be missing */
int __real_epoll_wait(int epfd, struct epoll_event *events, int most, int timeout);

int __wrap_epoll_wait(int epfd, struct epoll_event *events, int most, int timeout)
{
  static unsigned const missing[] = { EPOLLIN, EPOLLHUP, EPOLLIN | EPOLLHUP };
  static unsigned turn;
  int i, n = __real_epoll_wait(epfd, events, most, timeout);

  /* A stack that was busy comes to its timers before it asks for input */
  if (late) {
    usleep(lateness * 1000);
    late = 0;
    return 0;
  }

  for (i = 0; torn && i < n; i++)
    if (events[i].events & EPOLLERR)
      events[i].events &= ~missing[__atomic_fetch_add(&turn, 1, __ATOMIC_RELAXED) % 3];

  return n;
}

static void on_signal(int number)
{
  if (number == SIGUSR1)
    late = 1;
  else
    stop = 1;
}

static void print_string(char const *name, char const *value)
{
  printf(", \"%s\": ", name);

  if (value == NULL) {
    fputs("null", stdout);
    return;
  }

  putchar('"');
  for (; *value; value++) {
    unsigned char c = (unsigned char)*value;

    /* Bytes of bad input are printed as Latin-1 */
    if (c < 0x20 || c > 0x7e || c == '"' || c == '\\')
      printf("\\u%04x", c);
    else
      putchar(c);
  }
  putchar('"');
}

static void print_report(tagi_t const *tags)
{
  size_t id = 0;
  unsigned opened = 0, noticed = 0, usec = 0;
  int error = -1;
  char const *cause = NULL, *proto = NULL;
  char const *peer_host = NULL, *peer_port = NULL;
  char const *own_host = NULL, *own_port = NULL;

  tl_gets(tags,
	  NUTAG_TP_ID_REF(id),
	  NUTAG_TP_CAUSE_REF(cause),
	  NUTAG_TP_ERRNO_REF(error),
	  NUTAG_TP_PROTO_REF(proto),
	  NUTAG_TP_PEER_HOST_REF(peer_host),
	  NUTAG_TP_PEER_PORT_REF(peer_port),
	  NUTAG_TP_OWN_HOST_REF(own_host),
	  NUTAG_TP_OWN_PORT_REF(own_port),
	  NUTAG_TP_OPENED_REF(opened),
	  NUTAG_TP_NOTICED_REF(noticed),
	  NUTAG_TP_NOTICED_USEC_REF(usec),
	  TAG_END());

  printf(", \"id\": %zu, \"errno\": %d", id, error);
  printf(", \"opened\": %u, \"noticed\": %u.%06u", opened, noticed, usec);
  print_string("cause", cause);
  print_string("proto", proto);
  print_string("peer_host", peer_host);
  print_string("peer_port", peer_port);
  print_string("own_host", own_host);
  print_string("own_port", own_port);
}

static void print_register(sip_t const *sip, tagi_t const *tags)
{
  size_t id = 0;
  char aor[1024] = "";

  tl_gets(tags, NUTAG_TP_ID_REF(id), TAG_END());
  url_e(aor, sizeof aor, sip->sip_to->a_url);

  printf(", \"id\": %zu", id);
  print_string("call_id", sip->sip_call_id->i_id);
  print_string("aor", aor);
}

/* Wraps what nta calls when a connection has ended (ld --wrap). With -t this is another thread. */
void __real_nua_stack_tp_error_report(nua_t *nua, tport_t *tport);

void __wrap_nua_stack_tp_error_report(nua_t *nua, tport_t *tport)
{
  tport_end_t const *te = tport_end(tport);
  tp_name_t const *tpn = tport_name(tport);

  /* Not a socket that failed, nor an attempt to connect */
  if (te && te->te_reported) {
    flockfile(stdout);
    printf("{\"event\": \"ended\", \"id\": %llu, \"errno\": %d", (unsigned long long)te->te_id, te->te_error);
    print_string("cause", tport_end_cause_name(te->te_cause));
    print_string("proto", tpn->tpn_proto);
    print_string("peer_host", tpn->tpn_host);
    print_string("peer_port", tpn->tpn_port);
    puts("}");
    fflush(stdout);
    funlockfile(stdout);
  }

  __real_nua_stack_tp_error_report(nua, tport);
}

static void forget(struct probe *probe, struct handle *handle)
{
  struct handle **place;

  for (place = &probe->handles; *place != handle; place = &(*place)->next)
    ;
  *place = handle->next;
  nua_handle_destroy(handle->nh);
  free(handle);
}

static void answer_register(struct probe *probe, nua_handle_t *nh, struct handle *handle, sip_t const *sip)
{
  usleep(slowness * 1000);

  nua_respond(nh, SIP_200_OK, NUTAG_WITH_THIS(probe->nua), SIPTAG_CONTACT(sip->sip_contact), TAG_END());

  if (!probe->keep) {
    nua_handle_destroy(nh);
  }
  else if (handle == NULL) {
    handle = calloc(1, sizeof *handle);
    if (handle == NULL)
      abort();
    handle->nh = nh;
    handle->next = probe->handles;
    probe->handles = handle;
    nua_handle_bind(nh, handle);
  }
}

static void on_event(nua_event_t event, int status, char const *phrase,
		     nua_t *nua, struct probe *probe,
		     nua_handle_t *nh, struct handle *handle,
		     sip_t const *sip, tagi_t tags[])
{
  (void)nua;

  flockfile(stdout);
  printf("{\"event\": \"%s\", \"status\": %d", nua_event_name(event), status);
  print_string("phrase", phrase);
  if (event == nua_i_tp_error_report)
    print_report(tags);
  else if (event == nua_i_register || (sip && tl_find(tags, nutag_tp_id)))
    print_register(sip, tags);
  puts("}");
  fflush(stdout);
  funlockfile(stdout);

  if (event == nua_r_shutdown) {
    if (status >= 200)
      probe->down = 1;
  }
  else if (event == nua_i_register)
    answer_register(probe, nh, handle, sip);
  else if (event == nua_i_media_error && handle)
    forget(probe, handle);
  else if (nh && handle == NULL)
    nua_handle_destroy(nh);
}

static int on_input(su_root_magic_t *magic, su_wait_t *wait, su_wakeup_arg_t *arg)
{
  char buffer[256];

  (void)magic, (void)wait, (void)arg;

  if (read(STDIN_FILENO, buffer, sizeof buffer) <= 0)
    stop = 1;

  return 0;
}

/* nua does not tell which ports the kernel chose for it, but they are bound in the order of `names` */
static void print_ports(char const *names[], int number, int udp)
{
  int fd, type, yes, i = 0;
  socklen_t len;
  su_sockaddr_t su[1];

  fputs("{\"event\": \"listening\"", stdout);
  for (fd = 0; fd < 256 && i < number; fd++) {
    len = sizeof type;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
      continue;
    len = sizeof yes;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &len) < 0)
      continue;
    len = sizeof su;
    if (getsockname(fd, &su->su_sa, &len) < 0 || su->su_family != AF_INET)
      continue;
    if (yes)
      printf(", \"%s\": %u", names[i++], ntohs(su->su_port));
    else if (type == SOCK_DGRAM && udp)
      printf(", \"udp\": %u", ntohs(su->su_port)), udp = 0;
  }
  puts("}");
  fflush(stdout);
}

static void usage(void)
{
  fputs("usage: probe [-k] [-t] [-u] [-e] [-a ADDRESS] [-c CERTIFICATES] [-d SECONDS] [-m SECONDS] [-p MS] [-l MS] tcp=PORT [PROTOCOL=PORT]...\n"
	"  -k  keep the handles of registrations\n"
	"  -t  run the stack in a thread of its own\n"
	"  -u  listen on UDP, too\n"
	"  -e  have an error told without the input or the hangup that go with it\n"
	"  -a  listen on ADDRESS (default: 127.0.0.1)\n"
	"  -c  directory of agent.pem, cafile.pem and wss.pem\n"
	"  -d  close a connection whose peer is silent for SECONDS\n"
	"  -m  close a connection without a message after SECONDS\n"
	"  -p  send PINGs every MS milliseconds, and wait as long for the PONG\n"
	"  -l  be busy for MS milliseconds after SIGUSR1\n"
	"  -b  be busy for MS milliseconds with each REGISTER\n"
	"  PROTOCOL is tcp, tls, ws or wss; PORT 0 lets the kernel choose\n", stderr);
  exit(2);
}

int main(int argc, char *argv[])
{
  static char const *known[4] = { "tcp", "tls", "ws", "wss" };
  char const *listening[4];
  char const *address = "127.0.0.1", *certificates = ".";
  char urls[4][256] = { "", "", "", "" };
  struct probe probe[1] = {{ 0 }};
  struct sigaction action = { .sa_handler = on_signal };
  su_wait_t wait[1] = { SU_WAIT_INIT };
  unsigned dead_peer = 0, first = 0, pong = 0;
  int threaded = 0, udp = 0, number = 0, option, i;

  while ((option = getopt(argc, argv, "kteua:c:d:m:p:l:b:")) != -1) {
    switch (option) {
    case 'k': probe->keep = 1; break;
    case 't': threaded = 1; break;
    case 'e': torn = 1; break;
    case 'u': udp = 1; break;
    case 'a': address = optarg; break;
    case 'c': certificates = optarg; break;
    case 'd': dead_peer = (unsigned)strtoul(optarg, NULL, 10); break;
    case 'm': first = (unsigned)strtoul(optarg, NULL, 10); break;
    case 'l': lateness = (unsigned)strtoul(optarg, NULL, 10); break;
    case 'b': slowness = (unsigned)strtoul(optarg, NULL, 10); break;
    case 'p': pong = (unsigned)strtoul(optarg, NULL, 10); break;
    default: usage();
    }
  }

  for (; optind < argc; optind++) {
    char const *port = strchr(argv[optind], '=');

    for (i = 0; i < 4; i++)
      if (port && strlen(known[i]) == (size_t)(port - argv[optind]) &&
	  strncmp(known[i], argv[optind], (size_t)(port - argv[optind])) == 0)
	break;
    if (i == 4)
      usage();
    snprintf(urls[i], sizeof urls[i], "%s:%s:%s;transport=%s%s", i & 1 ? "sips" : "sip", address,
	     strcmp(port + 1, "0") ? port + 1 : "*", udp && i == 0 ? "udp," : "", known[i]);
  }
  /* nua makes its transports in this order */
  for (i = 0; i < 4; i++)
    if (urls[i][0])
      listening[number++] = known[i];
  /* Without NUTAG_URL() nua listens on the default ports, too */
  if (urls[0][0] == 0)
    usage();

  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGUSR1, &action, NULL);

  su_init();
  probe->root = su_root_create(probe);
  su_root_threading(probe->root, threaded);
  probe->nua = nua_create(probe->root, on_event, probe,
			  TAG_IF(urls[0][0], NUTAG_URL(urls[0])),
			  TAG_IF(urls[1][0], NUTAG_SIPS_URL(urls[1])),
			  TAG_IF(urls[2][0], NUTAG_WS_URL(urls[2])),
			  TAG_IF(urls[3][0], NUTAG_WSS_URL(urls[3])),
			  NUTAG_CERTIFICATE_DIR(certificates),
			  NUTAG_ALLOW("REGISTER"),
			  NUTAG_APPL_METHOD("REGISTER"),
			  NUTAG_AUTOANSWER(0),
			  TPTAG_DEAD_PEER(dead_peer), TPTAG_PONG2PING(1),
			  TAG_IF(first, TPTAG_FIRST_MESSAGE(first)),
			  TAG_IF(pong, TPTAG_KEEPALIVE(pong)),
			  TAG_IF(pong, TPTAG_PINGPONG(pong)),
			  TAG_END());
  if (probe->nua == NULL) {
    fputs("probe: can't listen\n", stderr);
    return 1;
  }

  print_ports(listening, number, udp);

  su_wait_create(wait, STDIN_FILENO, SU_WAIT_IN | SU_WAIT_HUP);
  su_root_register(probe->root, wait, on_input, NULL, 0);

  while (!stop)
    su_root_step(probe->root, 100);

  while (probe->handles)
    forget(probe, probe->handles);
  nua_shutdown(probe->nua);
  while (!probe->down)
    su_root_step(probe->root, 100);

  nua_destroy(probe->nua);
  su_root_unregister(probe->root, wait, on_input, NULL);
  su_root_destroy(probe->root);
  su_deinit();

  return 0;
}
