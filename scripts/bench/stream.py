"""The event stream of a FreeSWITCH, its bytes stamped on arrival by a process of their own.

The login is spoken here, not by a library: a library hands out an event after
it has parsed it, and in a storm that would be what is measured. Here the bytes
are stamped and kept; they are parsed when all is over.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from typing import Any
from urllib.parse import quote, unquote

from scripts.bench.load import processes
from scripts.errors import ToolkitError

CHUNK = 1 << 20
TIMEOUT = 30.0


@dataclass(frozen=True)
class TimestampedEvent:
    """The headers of one event and when its last byte arrived (monotonic ns)."""

    headers: dict[str, str]
    arrived_ns: int


class Esl:
    """A logged-in event socket that sends commands and waits for the answers."""

    def __init__(self, host: str, port: int, password: str, timeout: float = TIMEOUT, receive_buffer: int = 0) -> None:
        self.sock = socket.socket()
        try:
            if receive_buffer:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.sock.settimeout(timeout)
            self.sock.connect((host, port))
            self._buffer = b""
            self._message()
            self.command(f"auth {password}")
        except BaseException:
            self.sock.close()
            raise

    def command(self, line: str) -> str:
        """Return the answer to the command `line`. Raises ToolkitError if FreeSWITCH refuses it."""
        self.sock.sendall(f"{line}\n\n".encode())
        headers, body = self._message()
        reply = headers.get("Reply-Text", "+OK")
        if not reply.startswith("+OK"):
            raise ToolkitError(f"FreeSWITCH refuses '{line.split()[0]}': {reply}")
        return body.decode(errors="replace")

    def skip(self, count: int) -> None:
        """Read `count` answers to commands that were sent at once."""
        for _ in range(count):
            self._message()

    def _message(self) -> tuple[dict[str, str], bytes]:
        while not (found := frame(self._buffer, 0)):
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("FreeSWITCH closed the event socket")
            self._buffer += data
        headers, start, end = found
        body, self._buffer = self._buffer[start:end], self._buffer[end:]
        return headers, body


def frame(data: bytes, position: int) -> tuple[dict[str, str], int, int] | None:
    """Return the headers of the message at `position`, and where its body starts and ends; None if it's incomplete."""
    end = data.find(b"\n\n", position)
    if end < 0:
        return None
    headers = parse_headers(data[position:end])
    start = end + 2
    stop = start + int(headers.get("Content-Length", 0))
    return (headers, start, stop) if stop <= len(data) else None


def parse_headers(text: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.decode(errors="replace").splitlines())
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs}


def parse(chunks: Sequence[tuple[int, bytes]]) -> Iterator[TimestampedEvent]:
    """Yield the events in `chunks`, pairs of the arrival and the bytes; what is incomplete is left out."""
    ends, total = [], 0
    for _, chunk in chunks:
        total += len(chunk)
        ends.append(total)
    data = b"".join(chunk for _, chunk in chunks)
    position = 0
    while found := frame(data, position):
        headers, start, position = found
        if headers.get("Content-Type") == "text/event-plain":
            inner = parse_headers(data[start:position].partition(b"\n\n")[0])
            yield TimestampedEvent(inner, chunks[bisect_left(ends, position)][0])


def _read(pipe: Connection, address: tuple[str, int], password: str, subclass: str, count: Synchronized[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    esl = Esl(*address, password)
    esl.command(f"event plain CUSTOM {subclass}")
    marker = marker_of(subclass)
    chunks: list[tuple[int, bytes]] = []
    tail = b""
    pipe.send(True)
    with contextlib.suppress(EOFError, OSError):
        while True:
            sources: list[Any] = [esl.sock, pipe]
            ready, _, _ = select.select(sources, [], [])
            if esl.sock in ready:
                data = esl.sock.recv(CHUNK)
                chunks.append((time.monotonic_ns(), data))
                if not data:
                    return
                tail += data
                count.value += tail.count(marker)
                tail = tail[-len(marker) + 1 :]
            elif pipe in ready:
                pipe.recv()
                pipe.send(chunks)
                chunks = []


def marker_of(subclass: str) -> bytes:
    """Return the bytes that an event of `subclass` contains once."""
    return f"Event-Subclass: {quote(subclass, safe='')}\n".encode()


class EventReader:
    """The process that reads the events, seen from outside. A context manager; leaving it ends the process."""

    def __init__(self, address: tuple[str, int], password: str, subclass: str) -> None:
        self._count: Synchronized[int] = processes.Value("q", 0)
        self._pipe, far = processes.Pipe()
        arguments: Any = (far, address, password, subclass, self._count)
        self._process = processes.Process(target=_read, args=arguments, daemon=True)
        self._process.start()
        far.close()

    def __enter__(self) -> EventReader:
        self._get()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _get(self) -> Any:
        try:
            if self._pipe.poll(TIMEOUT):
                return self._pipe.recv()
        except (EOFError, OSError):
            pass
        raise ToolkitError("the process that reads the events died: is the server still running?")

    @property
    def count(self) -> int:
        """How many events have come."""
        return self._count.value

    def wait(self, count: int, silence: float, limit: float) -> None:
        """Wait until `count` events have come in all, nothing came for `silence` or `limit` is over (seconds)."""
        deadline = time.monotonic() + limit
        last, since = self.count, time.monotonic()
        while last < count and time.monotonic() < min(deadline, since + silence):
            time.sleep(0.02)
            if self.count != last:
                last, since = self.count, time.monotonic()

    def take(self) -> list[TimestampedEvent]:
        """Return what has come since the last time."""
        self._pipe.send("take")
        return list(parse(self._get()))
