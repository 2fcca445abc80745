/* Loaded into FreeSWITCH (LD_PRELOAD), makes it believe in as many CPUs as the
 * variable FAKE_CPUS says: how many threads it starts to handle SIP messages
 * and events is derived from that.
 *
 * It starts most of these threads only when more than a thousand messages wait
 * for each that there is. mod_sofia is told that so many wait, always: as many
 * as are not yet too many (sofia_event_callback() answers 503 then). A few
 * messages are enough to start all threads, and the queue works as it does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Of mod_sofia: SOFIA_MSG_QUEUE_SIZE, of which nine tenths are not too many */
#define NOT_TOO_MANY (1000 * 900 / 1000)

static int cpus(void)
{
	const char *given = getenv("FAKE_CPUS");

	return given ? atoi(given) : 0;
}

long sysconf(int name)
{
	static long (*real)(int);

	if ((name == _SC_NPROCESSORS_CONF || name == _SC_NPROCESSORS_ONLN) && cpus() > 0) {
		return cpus();
	}
	if (!real) {
		real = (long (*)(int)) dlsym(RTLD_NEXT, "sysconf");
	}
	return real(name);
}

int get_nprocs(void)
{
	return (int) sysconf(_SC_NPROCESSORS_ONLN);
}

int get_nprocs_conf(void)
{
	return (int) sysconf(_SC_NPROCESSORS_CONF);
}

/* Looked for once by each thread and caller: it costs more than the rest */
static int is_mod_sofia(void *address)
{
	static _Thread_local void *last;
	static _Thread_local int is;
	Dl_info caller;

	if (address != last) {
		is = dladdr(address, &caller) && strstr(caller.dli_fname, "/mod_sofia.so");
		last = address;
	}
	return is;
}

unsigned int switch_queue_size(void *queue)
{
	static unsigned int (*real)(void *);
	unsigned int size, least = NOT_TOO_MANY * (cpus() / 2 + 1);

	if (!real) {
		real = (unsigned int (*)(void *)) dlsym(RTLD_NEXT, "switch_queue_size");
	}
	size = real(queue);
	if (size < least && cpus() > 0 && is_mod_sofia(__builtin_return_address(0))) {
		return least;
	}
	return size;
}
