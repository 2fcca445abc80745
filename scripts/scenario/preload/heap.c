/* Loaded into FreeSWITCH (LD_PRELOAD), writes how many bytes are allocated to
 * a file, once a second: those of malloc() in all arenas, and of these the ones
 * of SQLite. Resident memory does not tell: the page caches of SQLite fill and
 * empty, and what they leave behind in the arenas is free but resident.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PATH "/var/run/freeswitch/heap"

static void *measure(void *arg)
{
	int fd = open(PATH, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

	(void) arg;
	while (fd >= 0) {
		long long (*sqlite)(void) = (long long (*)(void)) dlsym(RTLD_DEFAULT, "sqlite3_memory_used");
		struct mallinfo2 info = mallinfo2();
		char line[64];
		int len = snprintf(line, sizeof(line), "%20zu %20lld\n", info.uordblks + info.hblkhd, sqlite ? sqlite() : 0);

		if (pwrite(fd, line, len, 0) != len) {
			break;
		}
		sleep(1);
	}
	return NULL;
}

__attribute__((constructor)) static void start(void)
{
	pthread_t thread;

	/* Not in the shell of the entry point, nor in what it runs */
	if (!strcmp(program_invocation_short_name, "freeswitch")) {
		pthread_create(&thread, NULL, measure, NULL);
	}
}
