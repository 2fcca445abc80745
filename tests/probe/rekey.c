/*
 * A client of TLS 1.3, over a WebSocket if it is to be, that asks for new keys without an end and reads no answer.
 *
 *     rekey ADDRESS PORT tls|wss
 *
 * It says which port is its own, and "blocked" once the server takes nothing more. It ends when the server closes.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/ssl.h>

static const char upgrade[] =
	"GET / HTTP/1.1\r\nHost: probe\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sip\r\n\r\n";

static int die(const char *what)
{
	fprintf(stderr, "rekey: %s: %s\n", what, strerror(errno));
	return 1;
}

int main(int argc, char *argv[])
{
	/* Little room for answers: the server has to keep them. */
	int sock = socket(AF_INET, SOCK_STREAM, 0), small = 2304, blocked = 0;
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t size = sizeof address;
	char answer[4096] = "";
	SSL *ssl;

	if (argc != 4)
		return die("usage: rekey ADDRESS PORT tls|wss");
	address.sin_port = htons(atoi(argv[2]));
	if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1 ||
	    setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &small, sizeof small) ||
	    connect(sock, (void *) &address, sizeof address) || getsockname(sock, (void *) &address, &size))
		return die("can't connect");

	ssl = SSL_new(SSL_CTX_new(TLS_client_method()));
	if (!SSL_set_min_proto_version(ssl, TLS1_3_VERSION) || !SSL_set_fd(ssl, sock) || SSL_connect(ssl) != 1)
		return die("no TLS 1.3");
	if (!strcmp(argv[3], "wss") && (SSL_write(ssl, upgrade, sizeof upgrade - 1) <= 0 ||
					SSL_read(ssl, answer, sizeof answer - 1) <= 0 || !strstr(answer, " 101 ")))
		return die("no WebSocket");

	printf("%u\n", ntohs(address.sin_port));
	fflush(stdout);
	fcntl(sock, F_SETFL, O_NONBLOCK);

	for (;;) {
		/* The end is seen, and nothing is read. */
		struct pollfd wait = { sock, POLLRDHUP, 0 };
		int n;

		if (!SSL_want_write(ssl))
			SSL_key_update(ssl, SSL_KEY_UPDATE_REQUESTED);
		n = SSL_do_handshake(ssl);
		if (n <= 0 && SSL_get_error(ssl, n) != SSL_ERROR_WANT_WRITE)
			return 0;
		if (n <= 0)
			wait.events |= POLLOUT;

		n = poll(&wait, 1, n > 0 ? 0 : blocked ? -1 : 500);
		if (wait.revents & (POLLRDHUP | POLLHUP | POLLERR))
			return 0;
		if (n == 0 && (wait.events & POLLOUT)) {
			blocked = 1;
			puts("blocked");
			fflush(stdout);
		}
	}
}
