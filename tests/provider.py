"""A provider's SIP server: what FreeSWITCH's gateways register with and ask, over TCP and TLS."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

COPIED = re.compile(r"(Via|From|Call-ID|CSeq|Contact|Expires):", re.IGNORECASE)


@dataclass(frozen=True)
class Taken:
    """A request that came: its method, when on the monotonic clock, and over which connection (from 0)."""

    method: str
    at: float
    connection: int


@dataclass
class Provider:
    """Answers each request over TCP, or TLS with `context`, with 200 OK; `statuses` has other answers by method.

    A status of 0 is no answer. A context manager; it listens from the start.
    """

    host: str
    context: ssl.SSLContext | None = None
    statuses: dict[str, int] = field(default_factory=dict)
    requests: list[Taken] = field(default_factory=list)
    port: int = 0
    backlog: int = 64

    def __post_init__(self) -> None:
        self._connections: list[socket.socket] = []
        self._count = 0
        self._lock = threading.Lock()
        self._accepts = threading.Event()
        self._accepts.set()
        self.listen()

    def __enter__(self) -> Provider:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self.lose()

    def listen(self) -> None:
        """Take connections, on the same port as before."""
        self._listener = socket.create_server((self.host, self.port), backlog=self.backlog)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def refuse(self) -> None:
        """Take no more connections; those that are there stay."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def lose(self, reset: bool = False) -> None:
        """End all connections, with a FIN or a RST."""
        with self._lock:
            ended, self._connections = self._connections, []
        for connection in ended:
            with contextlib.suppress(OSError):
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                # A thread is reading from it; to read no more sends nothing.
                socket.socket.shutdown(connection, socket.SHUT_RD if reset else socket.SHUT_RDWR)
            connection.close()

    def hold(self) -> None:
        """Take one more connection, then none until `go_on`: the kernel queues `backlog` and drops the rest."""
        self._accepts.clear()

    def go_on(self) -> None:
        self._accepts.set()

    def count(self, method: str) -> int:
        return sum(taken.method == method for taken in self.requests)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            self._accepts.wait()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            with self._lock:
                self._connections.append(connection)
                number, self._count = self._count, self._count + 1
            data = b""
            while more := connection.recv(1 << 16):
                data += more
                while b"\r\n\r\n" in data:
                    head, _, data = data.partition(b"\r\n\r\n")
                    if head.strip():
                        self._answer(connection, number, head.decode())
        except OSError:
            connection.close()

    def _answer(self, connection: socket.socket, number: int, request: str) -> None:
        method = request.partition(" ")[0]
        self.requests.append(Taken(method, time.monotonic(), number))
        status = self.statuses.get(method, 200)
        if not status or method == "ACK":
            return
        lines = [line for line in request.split("\r\n") if COPIED.match(line)]
        to = re.search(r"^To:[^\r]*", request, re.MULTILINE)
        assert to, request
        lines.append(to[0] if ";tag=" in to[0] else f"{to[0]};tag=provider")
        connection.sendall("\r\n".join([f"SIP/2.0 {status} -", *lines, "Content-Length: 0", "", ""]).encode())
