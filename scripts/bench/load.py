"""SIP clients of the benchmark, in a process of their own that can be killed as a whole.

Raw sockets and one epoll: the load must not be what is measured. Nothing here
imports more than the standard library, so the process starts quickly.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import re
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Self

from scripts.errors import ToolkitError

DOMAIN = "bench.test"
ECHO = "9196"
# Requests in flight. More than FreeSWITCH can handle at once, fewer than it refuses.
WINDOW = 64
TIMEOUT = 60.0
# After so many seconds without any answer, requests are sent once more and counted. Stock FreeSWITCH
# destroys all that come in a second or more where they are above `max-recv-requests-per-second`.
PATIENCE = 5.0
# Ports are taken by hand: the kernel's own range is used up by what is in TIME_WAIT.
FIRST_PORT, LAST_PORT = 10000, 60999
SPARE_DESCRIPTORS = 256
LENGTH = re.compile(rb"(?im)^(?:content-length|l)[ \t]*:[ \t]*(\d+)")

processes = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Endpoint:
    """The endpoint that the clients connect to; `first_port` is the first one they bind at the near end."""

    host: str
    port: int
    first_port: int = FIRST_PORT


@dataclass
class PortAllocator:
    """Ports of the near end, handed out so that none comes again soon."""

    _next: int = 0

    def take(self, count: int) -> int:
        """Return the first of `count` ports."""
        first = self._next
        self._next = (first + count + 500) % 50000
        return FIRST_PORT + first


@dataclass(frozen=True)
class LoadResult:
    """The result of a load: requests that were answered, in seconds, refused, and sent once more."""

    answered: int
    refused: int
    seconds: float
    repeated: int = 0


def user(number: int) -> str:
    return f"u{number:06}"


def split(buffer: bytes) -> tuple[list[bytes], bytes]:
    """Return the complete SIP messages in `buffer`, and the rest."""
    messages: list[bytes] = []
    while True:
        buffer = buffer.lstrip(b"\r\n")
        head, separator, rest = buffer.partition(b"\r\n\r\n")
        if not separator:
            return messages, buffer
        length = LENGTH.search(head)
        size = int(length.group(1)) if length else 0
        if len(rest) < size:
            return messages, buffer
        messages.append(head + separator + rest[:size])
        buffer = rest[size:]


def register(name: str, near: tuple[str, int], sequence: int, transport: str = "tcp") -> bytes:
    """Return a REGISTER of `name`; those with a higher `sequence` refresh it."""
    host, port = near
    return (
        f"REGISTER sip:{DOMAIN} SIP/2.0\r\n"
        f"Via: SIP/2.0/{transport.upper()} {host}:{port};branch=z9hG4bK{name}{port}{sequence};rport\r\n"
        "Max-Forwards: 70\r\n"
        f"From: <sip:{name}@{DOMAIN}>;tag={name}{port}\r\n"
        f"To: <sip:{name}@{DOMAIN}>\r\n"
        f"Call-ID: {name}-{port}@{host}\r\n"
        f"CSeq: {sequence} REGISTER\r\n"
        f"Contact: <sip:{name}@{host}:{port};transport={transport}>\r\n"
        "Expires: 3600\r\n"
        "User-Agent: bench\r\n"
        "Content-Length: 0\r\n\r\n"
    ).encode()


def options(near: tuple[str, int], sequence: int) -> bytes:
    host, port = near
    return (
        f"OPTIONS sip:{DOMAIN} SIP/2.0\r\n"
        f"Via: SIP/2.0/TCP {host}:{port};branch=z9hG4bKo{port}{sequence};rport\r\n"
        "Max-Forwards: 70\r\n"
        f"From: <sip:probe@{DOMAIN}>;tag=o{port}{sequence}\r\n"
        f"To: <sip:{DOMAIN}>\r\n"
        f"Call-ID: o{port}-{sequence}@{host}\r\n"
        f"CSeq: {sequence} OPTIONS\r\n"
        f"Contact: <sip:probe@{host}:{port};transport=tcp>\r\n"
        "Content-Length: 0\r\n\r\n"
    ).encode()


@dataclass
class LoadClient:
    """One connection and how many REGISTERs it has sent."""

    name: str
    sock: socket.socket
    near: tuple[str, int] = ("", 0)
    sequence: int = 0
    buffer: bytes = b""

    def request(self) -> bytes:
        self.sequence += 1
        return self.repetition()

    def repetition(self) -> bytes:
        return register(self.name, self.near, self.sequence)

    def is_answer(self, message: bytes) -> bool:
        """Return whether `message` is the final answer to the latest request."""
        cseq = f"{self.sequence} REGISTER".encode()
        return bool(re.match(rb"SIP/2\.0 [2-6]", message)) and header(message, rb"cseq") == cseq


@dataclass
class ClientPool:
    """Registered clients with one connection each."""

    target: Endpoint
    names: Sequence[str]
    clients: list[LoadClient] = field(default_factory=list)
    _port: int = 0

    def register(self) -> LoadResult:
        """Connect and register all."""
        self._port = self.target.first_port
        return self._run(self._connect(name) for name in self.names)

    def refresh(self, rounds: int = 1) -> LoadResult:
        """Register all again over the connections they have."""
        results = [self._run(self._again(client) for client in self.clients) for _ in range(rounds)]
        return LoadResult(
            sum(result.answered for result in results),
            sum(result.refused for result in results),
            sum(result.seconds for result in results),
            sum(result.repeated for result in results),
        )

    def finish(self, first: int, gaps: Sequence[float]) -> list[int]:
        """Close one connection after the other, from client `first` on, with a pause before each; return when (ns)."""
        closed = []
        for client, gap in zip(self.clients[first:], gaps, strict=False):
            time.sleep(gap)
            closed.append(time.monotonic_ns())
            client.sock.close()
        return closed

    def _connect(self, name: str) -> tuple[LoadClient, int]:
        for _ in range(LAST_PORT - FIRST_PORT):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            port, self._port = self._port, self._port + 1 if self._port < LAST_PORT else FIRST_PORT
            try:
                sock.bind(("", port))
                sock.connect((self.target.host, self.target.port))
            except BlockingIOError:
                pass
            except OSError as error:
                sock.close()
                if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                    continue
                raise
            client = LoadClient(name, sock)
            self.clients.append(client)
            return client, select.EPOLLOUT
        raise OSError(errno.EADDRNOTAVAIL, "no free port")

    @staticmethod
    def _again(client: LoadClient) -> tuple[LoadClient, int]:
        client.sock.send(client.request())
        return client, select.EPOLLIN

    def _run(self, work: Iterator[tuple[LoadClient, int]]) -> LoadResult:
        """Start `work` piece by piece, WINDOW at a time, until all requests are answered."""
        busy: dict[int, LoadClient] = {}
        answered = refused = repeated = 0
        start = latest = time.monotonic()
        with select.epoll() as poll:
            while True:
                while len(busy) < WINDOW and (item := next(work, None)):
                    client, events = item
                    busy[client.sock.fileno()] = client
                    poll.register(client.sock, events)
                if not busy:
                    return LoadResult(answered, refused, time.monotonic() - start, repeated)
                ready = poll.poll(PATIENCE)
                if ready:
                    latest = time.monotonic()
                elif time.monotonic() - latest > TIMEOUT:
                    raise TimeoutError(
                        f"{len(busy)} requests have no answer after {TIMEOUT:g} s, {answered} had been answered"
                    )
                else:
                    waiting = [client for client in busy.values() if client.near[0]]
                    repeated += len(waiting)
                    for client in waiting:
                        client.sock.send(client.repetition())
                for number, _ in ready:
                    client = busy[number]
                    if not client.near[0]:
                        client.near = client.sock.getsockname()
                        client.sock.send(client.request())
                        poll.modify(number, select.EPOLLIN)
                        continue
                    data = client.sock.recv(65536)
                    if not data:
                        raise ConnectionError("the server closed a connection")
                    messages, client.buffer = split(client.buffer + data)
                    finals = [message for message in messages if client.is_answer(message)]
                    if finals:
                        answered += finals[0].startswith(b"SIP/2.0 2")
                        refused += not finals[0].startswith(b"SIP/2.0 2")
                        poll.unregister(number)
                        del busy[number]


def call(target: Endpoint, count: int, window: int) -> LoadResult:
    """Make `count` calls, `window` at a time, that are answered and hung up at once."""
    sock = socket.create_connection((target.host, target.port), TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    host, port = sock.getsockname()
    body = (
        f"v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\nc=IN IP4 {host}\r\nt=0 0\r\n"
        "m=audio 40000 RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\n"
    )

    def request(method: str, call_id: bytes, sequence: int, to: bytes = f"<sip:{ECHO}@{DOMAIN}>".encode()) -> bytes:
        text = body if method == "INVITE" else ""
        lines = [
            f"{method} sip:{ECHO}@{target.host}:{target.port};transport=tcp SIP/2.0",
            f"Via: SIP/2.0/TCP {host}:{port};branch=z9hG4bK{method}{call_id.decode()};rport",
            "Max-Forwards: 70",
            f"From: <sip:caller@{DOMAIN}>;tag={call_id.decode()}",
            f"To: {to.decode()}",
            f"Call-ID: {call_id.decode()}",
            f"CSeq: {sequence} {method}",
            f"Contact: <sip:caller@{host}:{port};transport=tcp>",
            *(["Content-Type: application/sdp"] if text else []),
            f"Content-Length: {len(text)}",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n" + text).encode()

    ids = iter(f"c{port}-{number}-{time.monotonic_ns()}".encode() for number in range(count))
    start = time.monotonic()
    open_calls = 0
    answered = refused = 0
    buffer = b""
    while True:
        while open_calls < window and (call_id := next(ids, None)):
            sock.sendall(request("INVITE", call_id, 1))
            open_calls += 1
        if not open_calls:
            sock.close()
            return LoadResult(answered, refused, time.monotonic() - start)
        data = sock.recv(65536)
        if not data:
            raise ConnectionError("FreeSWITCH closed the connection of the calls")
        messages, buffer = split(buffer + data)
        for message in messages:
            final = re.match(rb"SIP/2\.0 ([2-6])", message)
            if not final:
                continue
            call_id = header(message, rb"call-id|i")
            to = header(message, rb"to|t")
            if header(message, rb"cseq").endswith(b"INVITE"):
                sock.sendall(request("ACK", call_id, 1, to))
                if final.group(1) == b"2":
                    sock.sendall(request("BYE", call_id, 2, to))
                else:
                    refused += 1
                    open_calls -= 1
            else:
                answered += 1
                open_calls -= 1


def header(message: bytes, name: bytes) -> bytes:
    """Return the first value of the header that the expression `name` matches."""
    found = re.search(rb"(?im)^(?:" + name + rb")[ \t]*:[ \t]*(.*?)\r?$", message)
    return found.group(1) if found else b""


def probe(target: Endpoint, stop: Callable[[], bool], pause: float) -> list[tuple[str, float | None]]:
    """Send OPTIONS and REGISTER in turns until `stop` says so; return the seconds each answer took.

    None if there was none in 5 s.
    """
    results: list[tuple[str, float | None]] = []
    sock = socket.create_connection((target.host, target.port), 5)
    sock.settimeout(5)
    near = sock.getsockname()
    buffer = b""
    sequence = 0
    while not stop():
        sequence += 1
        method = "OPTIONS" if sequence % 2 else "REGISTER"
        start = time.monotonic()
        sock.sendall(options(near, sequence) if sequence % 2 else register("probe", near, sequence))
        answer = False
        try:
            while not answer:
                data = sock.recv(65536)
                if not data:
                    raise ConnectionError("FreeSWITCH closed the connection of the probe")
                messages, buffer = split(buffer + data)
                cseq = f"{sequence} {method}".encode()
                answer = any(m.startswith(b"SIP/2.0 2") and header(m, b"cseq") == cseq for m in messages)
        except TimeoutError:
            pass
        results.append((method, time.monotonic() - start if answer else None))
        time.sleep(pause)
    sock.close()
    return results


def raise_limit(descriptors: int) -> None:
    """Allow this process that many open files; ToolkitError if it may not."""
    wanted = descriptors + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, OSError):
        raise ToolkitError(
            f"{descriptors} connections need {wanted} open files, {hard} are allowed: raise it (`ulimit -Hn`) "
            "or use --quick"
        ) from None


def obey(pipe: Connection, commands: Mapping[str, Callable[..., Any]]) -> None:
    """Carry out `commands` that come through `pipe`, until it's closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            command, *arguments = pipe.recv()
            if command == "stop":
                continue
            try:
                pipe.send(commands[command](*arguments))
            except (OSError, ToolkitError) as error:
                pipe.send(ToolkitError(str(error)))


def _serve(pipe: Connection, target: Endpoint, names: Sequence[str]) -> None:
    """Carry out commands that come through `pipe`, until it's closed."""
    clients = ClientPool(target, names)

    def register_all() -> LoadResult:
        raise_limit(len(names))
        return clients.register()

    obey(
        pipe,
        {
            "register": register_all,
            "refresh": clients.refresh,
            "finish": clients.finish,
            "call": lambda count, window: call(target, count, window),
            "probe": lambda pause: probe(target, pipe.poll, pause),
        },
    )


class Worker:
    """A process that serves commands, seen from outside. A context manager; leaving it kills the process.

    `serve` gets the far end of the pipe (see `obey`) and the `arguments`.
    """

    def __init__(self, serve: Callable[..., None], *arguments: object) -> None:
        self._pipe, far = processes.Pipe()
        self._process = processes.Process(target=serve, args=(far, *arguments), daemon=True)
        self._process.start()
        far.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def begin(self, command: str, *arguments: object) -> None:
        """Start `command`; `result` waits for it."""
        try:
            self._pipe.send((command, *arguments))
        except OSError:
            raise ToolkitError("the process that makes the load died") from None

    def result(self, timeout: float = 600.0) -> Any:
        """Return what the command returned. Raises ToolkitError if it failed."""
        try:
            if not self._pipe.poll(timeout):
                raise ToolkitError(f"the load is not done after {timeout:g} s")
            result = self._pipe.recv()
        except (EOFError, OSError):
            raise ToolkitError("the process that makes the load died") from None
        if isinstance(result, ToolkitError):
            raise ToolkitError(f"the load failed: {result}")
        return result

    def do(self, command: str, *arguments: object) -> Any:
        self.begin(command, *arguments)
        return self.result()

    def kill(self) -> int:
        """Kill the process, and with it all connections; return when (monotonic ns)."""
        assert self._process.pid
        now = time.monotonic_ns()
        os.kill(self._process.pid, signal.SIGKILL)
        return now


class LoadGenerator(Worker):
    """The process that owns the clients `names`, which `_serve` commands are about."""

    def __init__(self, target: Endpoint, names: Sequence[str] = ()) -> None:
        self.names = names
        super().__init__(_serve, target, names)
