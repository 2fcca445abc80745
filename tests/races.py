"""Things that cross: many clients that do two things within a few milliseconds, and what came of it.

A repetition is a generator: it sends, closes and yields what it waits for. All
repetitions of a run play side by side in one thread, each with users of its
own, their steps in the order of their moments. What came is judged by events
in the order of their Event-Sequence and by the rows of the registrar, never by
time stamps.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import itertools
import json
import math
import random
import re
import select
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

from docker.models.containers import Container

from scripts.bench.stream import Esl, frame, parse_headers
from scripts.freeswitch.events import REGISTER, UNREGISTER
from scripts.freeswitch.recorder import ESL_PORT
from scripts.freeswitch.sip import CONTEXT
from scripts.pins.settings import Settings
from scripts.scenario import lab as lab_module
from scripts.scenario.lab import DOMAIN, Lab
from tests.deaths import DEATHS

TRUNK = "sofia::tp_error_trunk"
TRANSPORTS = ("tcp", "tls", "ws", "wss")
# The most that lies between two things that cross, seconds.
OFFSET = 0.002
# How long what must come is waited for, and how long what must not has to turn up. Nothing else depends on time.
LATE, SETTLE = 8.0, 0.25
# Repetitions of a run.
REPETITIONS = 500
# How many of them must have been played to the end, or else a run proves nothing.
PLAYED = 0.9
# Seconds between the starts of two repetitions: so many that the server has some in hand at a time.
PACE = 0.001
# Repetitions that wait for an answer at a time: a slow machine is not a fault.
WINDOW = 200
# The headers of an event that are looked at.
SEQUENCE, PORT, LEFT = "Event-Sequence", "network-port", "registrations-left"

Headers = dict[str, str]


class Wire:
    """A connection to the server that is never waited for once it is open, a WebSocket's handshake included."""

    def __init__(self, transport: str, target: tuple[str, int], source: tuple[str, int] | None = None) -> None:
        self.transport = transport
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.settimeout(10)
        if source:
            self.sock.bind(source)
        self.sock.connect(target)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.near: tuple[str, int] = self.sock.getsockname()
        self.answers: deque[Answer] = deque()
        # Whether the stack has read all that was sent before `probe()`.
        self.read = False
        self.ended = False
        self._outgoing: deque[bytes] = deque()
        self._buffer = b""
        self._frames = b""
        if transport in ("tls", "wss"):
            self.sock = CONTEXT.wrap_socket(self.sock)
        self._is_ws = transport in ("ws", "wss")
        if self._is_ws:
            self._upgrade(target)
        self.sock.setblocking(False)

    def _upgrade(self, target: tuple[str, int]) -> None:
        self.sock.sendall(
            f"GET / HTTP/1.1\r\nHost: {target[0]}:{target[1]}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: sip\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.sock.recv(4096)
            if not data:
                raise ConnectionError("the server closed in the handshake")
            head += data
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise ConnectionError(head.split(b"\r\n")[0].decode(errors="replace"))
        self._frames = head.partition(b"\r\n\r\n")[2]

    def send(self, *messages: bytes) -> None:
        """Send messages, each in a frame of its own over WebSocket. An end by the server shows in `ended`."""
        try:
            # Not in one: sofia-sip would leave a second frame of one TLS record until the next one comes.
            for message in messages:
                self._outgoing.append(_framed(message) if self._is_ws else message)
            self._flush()
        except (BrokenPipeError, ConnectionResetError):
            self.ended = True

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
            while self._outgoing:
                sent = self.sock.send(self._outgoing[0])
                self._outgoing[0] = self._outgoing[0][sent:]
                if not self._outgoing[0]:
                    self._outgoing.popleft()

    def receive(self) -> None:
        """Take in what has come, and send what could not be sent before; never blocks."""
        try:
            self._flush()
            while True:
                data = self.sock.recv(65536)
                if not data:
                    self.ended = True
                    break
                if self._is_ws:
                    data = self._unframed(data)
                self._buffer += data
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            self.ended = True
        while True:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            length = re.search(rb"(?i)\r\n(?:content-length|l)[ \t]*:[ \t]*(\d+)", head)
            size = int(length.group(1)) if length else 0
            if len(rest) < size:
                return
            self._buffer = rest[size:]
            self._take(head.decode(errors="replace"))

    def _take(self, head: str) -> None:
        found = re.match(r"\s*SIP/2\.0 (\d+)", head)
        method = re.search(r"(?i)\r\ncseq[ \t]*:[ \t]*(\d+) (\w+)", head)
        if not found or not method:
            return
        status = int(found.group(1))
        if method.group(2) == "CANCEL":
            self.read = True
        elif status >= 200:
            self.answers.append(Answer(status, int(method.group(1)), head))

    def _unframed(self, data: bytes) -> bytes:
        self._frames += data
        payloads = []
        while len(self._frames) >= 2:
            size, start = self._frames[1] & 0x7F, 2
            if size == 126:
                start = 4
                if len(self._frames) < start:
                    break
                (size,) = struct.unpack_from("!H", self._frames, 2)
            if len(self._frames) < start + size:
                break
            if self._frames[0] & 0x0F == 1:
                payloads.append(self._frames[start : start + size])
            self._frames = self._frames[start + size :]
        return b"".join(payloads)

    def close(self) -> None:
        """Close with FIN (with RST if there is something that was not read)."""
        self.sock.close()

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def _framed(message: bytes) -> bytes:
    # A mask of zeros leaves the text as it is.
    size = len(message)
    head = struct.pack("!BB", 0x81, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x81, 0xFE, size)
    return head + bytes(4) + message


@dataclass(frozen=True)
class Answer:
    """A final answer to a REGISTER."""

    status: int
    cseq: int
    head: str


# What a repetition can wait for


@dataclass(frozen=True)
class Pause:
    """So many seconds, to a fraction of a millisecond."""

    seconds: float


@dataclass(frozen=True)
class Reply:
    """The next answer to a REGISTER over `wire`; None if the connection ends instead."""

    wire: Wire


@dataclass(frozen=True)
class Read:
    """That the stack has read what was sent over `wire` (with a probe at the end)."""

    wire: Wire


@dataclass(frozen=True)
class Settled:
    """That `done` says of the events so far that all has come, for every repetition; and then some time for the rest.

    Gives the rows of the registrar by Call-ID.
    """

    done: Callable[[Sequence[Headers]], bool]


Step = Pause | Reply | Read | Settled
Play = Generator[Step, Any, None]


class Taken(Exception):
    """The port of a connection that has ended is in use again."""


class Unanswered(Exception):
    """An answer did not come."""


class Stream:
    """The events of a FreeSWITCH, by Call-ID, and its API; parsed only when they are asked for."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._esl = Esl(lab.freeswitch.address, ESL_PORT, lab.password)
        self._esl.command(f"event plain CUSTOM {lab.settings.esl_event} {REGISTER} {UNREGISTER} {TRUNK}")
        self._commands = Esl(lab.freeswitch.address, ESL_PORT, lab.password, timeout=120)
        self._lock = threading.Lock()
        self._data = bytearray()
        self.error: Exception | None = None
        self.by_call: dict[str, list[Headers]] = {}
        # By profile, transport and port of the far end.
        self.trunks: dict[tuple[str, str, str], list[Headers]] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._esl.sock.settimeout(None)
        try:
            while data := self._esl.sock.recv(1 << 18):
                with self._lock:
                    self._data += data
        except OSError as error:
            self.error = error

    def close(self) -> None:
        for esl in (self._esl, self._commands):
            with contextlib.suppress(OSError):
                esl.sock.shutdown(socket.SHUT_RDWR)
            esl.sock.close()
        self._thread.join(5)

    def update(self) -> int:
        """File what has come since the last time; return how many events that were."""
        with self._lock:
            data = bytes(self._data)
        position = count = 0
        while found := frame(data, position):
            headers, start, position = found
            if headers.get("Content-Type") == "text/event-plain":
                event = parse_headers(data[start:position].partition(b"\n\n")[0])
                key = event.get("call-id", "")
                if event.get("Event-Subclass") == TRUNK:
                    place = (event.get("profile-name", ""), event.get("transport", ""), event.get(PORT, ""))
                    self.trunks.setdefault(place, []).append(event)
                else:
                    self.by_call.setdefault(key, []).append(event)
                count += 1
        with self._lock:
            del self._data[:position]
        return count

    def of(self, calls: Iterable[str]) -> list[Headers]:
        """Return the events of these Call-IDs in their order."""
        found = (event for call in calls for event in self.by_call.get(call, ()))
        return sorted(found, key=lambda event: int(event[SEQUENCE]))

    def api(self, command: str) -> str:
        return self._commands.command(f"api {command}")

    def rows(self, profile: str) -> dict[str, list[Headers]]:
        """Return what is registered in `profile`, by Call-ID."""
        found: dict[str, list[Headers]] = {}
        text = self.api(f"sofia xmlstatus profile {profile} reg").strip()
        for node in ElementTree.fromstring(text).iterfind("registrations/registration"):
            row = {child.tag: child.text or "" for child in node}
            found.setdefault(row["call-id"], []).append(row)
        return found

    def flush(self, profile: str) -> None:
        """Remove what is registered in `profile`."""
        # Of the domain: without an argument it would take the nonces, too, and only later.
        self.api(f"sofia profile {profile} flush_inbound_reg {DOMAIN}")


@dataclass
class Login:
    """A nonce, and how often it has been used."""

    nonce: str
    realm: str
    password: str
    count: int = 0

    def header(self, user: str) -> str:
        self.count += 1
        cnonce, count = "c0ffee", f"{self.count:08x}"
        first, second = _md5(f"{user}:{self.realm}:{self.password}"), _md5(f"REGISTER:sip:{DOMAIN}")
        response = _md5(f"{first}:{self.nonce}:{count}:{cnonce}:auth:{second}")
        return (
            f'Authorization: Digest username="{user}", realm="{self.realm}", nonce="{self.nonce}", '
            f'uri="sip:{DOMAIN}", response="{response}", algorithm=MD5, cnonce="{cnonce}", qop=auth, nc={count}\r\n'
        )


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


@dataclass
class Repetition:
    """One repetition: its dice, connections and Call-IDs, and what it found."""

    number: int
    users: list[str]
    transport: str
    profile: str
    target: tuple[str, int]
    container: Container
    # The password, if the server asks for one.
    password: str
    dice: random.Random
    token: str
    stock: bool
    wires: list[Wire] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    # How many events there were at each Settled.
    marks: list[int] = field(default_factory=list)
    # Tells of a connection that it opens while it is played.
    opened: Callable[[Wire], None] = lambda wire: None
    _cseq: Counter[str] = field(default_factory=Counter)

    @property
    def user(self) -> str:
        return self.users[0]

    def open(self, count: int) -> None:
        for _ in range(count):
            self.wires.append(Wire(self.transport, self.target))

    def reopen(self, wire: Wire) -> Wire:
        """Return a new connection with the near end of `wire`, which is closed.

        Raises Taken if that port is in use: another connection has got it, or a process that was just being
        started still holds a copy of the closed socket.
        """
        try:
            self.wires.append(Wire(self.transport, self.target, wire.near))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise Taken from error
            raise
        self.opened(self.wires[-1])
        return self.wires[-1]

    def call(self) -> str:
        """Return a new Call-ID."""
        self.calls.append(f"{self.token}-{self.number}-{len(self.calls)}")
        return self.calls[-1]

    def offset(self, most: float = OFFSET) -> Pause:
        """Return a pause of up to `most` seconds, in half of the cases none."""
        return Pause(self.dice.choice((0, 1)) * self.dice.uniform(0, most))

    def contact(self, wire: Wire, user: str = "") -> str:
        host, port = wire.near
        return f"<sip:{user or self.user}@{host}:{port};transport={wire.transport}>"

    def request(
        self,
        wire: Wire,
        call: str,
        expires: int = 3600,
        user: str = "",
        contact: str = "",
        login: Login | None = None,
        more: str = "",
    ) -> bytes:
        """Return the next REGISTER of the Call-ID `call`; `more` are further header lines."""
        user = user or self.user
        host, port = wire.near
        self._cseq[call] += 1
        cseq = self._cseq[call]
        return (
            f"REGISTER sip:{DOMAIN} SIP/2.0\r\n"
            f"Via: SIP/2.0/{wire.transport.upper()} {host}:{port};branch=z9hG4bK{call}{cseq};rport\r\n"
            "Max-Forwards: 70\r\n"
            f"From: <sip:{user}@{DOMAIN}>;tag={call}{port}\r\n"
            f"To: <sip:{user}@{DOMAIN}>\r\n"
            f"Call-ID: {call}\r\n"
            f"CSeq: {cseq} REGISTER\r\n"
            f"Contact: {contact or self.contact(wire, user)}\r\n"
            f"Expires: {expires}\r\n"
            f"{login.header(user) if login else ''}{more}"
            "User-Agent: races\r\nContent-Length: 0\r\n\r\n"
        ).encode()

    def probe(self, wire: Wire) -> bytes:
        """Return a request that the stack answers itself, as soon as it has read it: see Wire.read."""
        host, port = wire.near
        via = (
            f"Via: SIP/2.0/{wire.transport.upper()} {host}:{port};branch=z9hG4bK{self.token}{self.number}p{port};rport"
        )
        return (
            f"CANCEL sip:{DOMAIN} SIP/2.0\r\n{via}\r\n"
            "Max-Forwards: 70\r\n"
            f"From: <sip:probe@{DOMAIN}>;tag=p{port}\r\nTo: <sip:{DOMAIN}>\r\n"
            f"Call-ID: probe-{self.token}-{port}\r\nCSeq: 1 CANCEL\r\nContent-Length: 0\r\n\r\n"
        ).encode()

    def log_in(self, wire: Wire, call: str, user: str = "") -> Generator[Step, Any, Login | None]:
        """Get a nonce; None where nobody asks for one."""
        if not self.password:
            return None
        wire.send(self.request(wire, call, user=user))
        answer = yield Reply(wire)
        if not answer or answer.status != 401:
            raise Unanswered(f"no challenge but {answer and answer.status}")
        nonce = re.search(r'nonce="([^"]+)"', answer.head)
        assert nonce
        return Login(nonce.group(1), DOMAIN, self.password)

    def register(self, wire: Wire, call: str, **options: Any) -> Generator[Step, Any, Answer]:
        """Register and wait until it is done."""
        wire.send(self.request(wire, call, **options))
        answer = yield Reply(wire)
        if not answer or answer.status != 200:
            raise Unanswered(f"not registered: {answer and answer.status}")
        return answer  # type: ignore[no-any-return]

    # What came, in the order of Event-Sequence; of stock an unregister that nobody asked for is the report.

    def is_register(self, event: Headers) -> bool:
        return event["Event-Subclass"] == REGISTER

    def is_removal(self, event: Headers) -> bool:
        """Return whether stock's watching of sockets has removed a row."""
        return event["Event-Subclass"] == UNREGISTER and "reason" in event

    def is_leave(self, event: Headers) -> bool:
        return event["Event-Subclass"] == UNREGISTER and "reason" not in event

    def is_report(self, event: Headers) -> bool:
        return self.is_removal(event) if self.stock else event["Event-Subclass"] not in (REGISTER, UNREGISTER)

    def is_offline(self, event: Headers) -> bool:
        return self.is_report(event) and event.get(LEFT, "0") == "0"

    def online(self, events: Sequence[Headers]) -> bool:
        """Return whether the last event that tells says that the user is there."""
        for event in reversed(events):
            if self.is_register(event):
                return True
            if self.is_report(event):
                return not self.is_offline(event)
            if self.is_leave(event):
                # Stock's does not tell of others.
                return event.get(LEFT, "0") != "0"
        return False


class Race:
    """What crosses: how it is played and when it is wrong."""

    name: ClassVar[str]
    # The table's words for what the client does.
    title: ClassVar[str]
    # Profiles by the turn of the repetition.
    profiles: ClassVar[tuple[str, ...]] = ("main",)
    transports: ClassVar[tuple[str, ...]] = TRANSPORTS
    # Connections that are open before it begins, and users.
    wires: ClassVar[int] = 1
    users: ClassVar[int] = 1
    pace: ClassVar[float] = PACE
    # The same when they go on together, after Settled.
    pace_after: ClassVar[float] = PACE
    window: ClassVar[int] = WINDOW
    repetitions: ClassVar[int] = REPETITIONS
    # So many at least, however few are asked for.
    least: ClassVar[int] = 1
    # Whether it is played with passwords, too.
    digest: ClassVar[bool] = True
    # Whether stock has what it takes.
    on_stock: ClassVar[bool] = True

    def repetitions_over(self, transport: str) -> int:
        """Return how many repetitions a run has over `transport`."""
        return self.repetitions

    def play(self, own: Repetition) -> Play:
        raise NotImplementedError

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        """Return whether all that must come at the end has come."""
        raise NotImplementedError

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        """Return what is wrong, a few words each; `rows` are those that are left."""
        raise NotImplementedError


class Leave(Race):
    name = "leave"
    title = "REGISTER Expires 0 and close, without waiting for the answer"
    profiles: ClassVar[tuple[str, ...]] = ("main", "multi", "contact")

    def play(self, own: Repetition) -> Play:
        wire, call = own.wires[0], own.call()
        login = yield from own.log_in(wire, call)
        yield from own.register(wire, call, login=login)
        yield own.offset(0.02)
        wire.send(own.request(wire, call, expires=0, login=login))
        yield own.offset()
        self.end(wire)

    def end(self, wire: Wire) -> None:
        wire.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return any(map(own.is_leave, events))

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        leaves, removals = sum(map(own.is_leave, events)), sum(map(own.is_removal, events))
        wrong = []
        if any(map(own.is_report, events)):
            wrong.append("reported as lost")
        if not leaves:
            wrong.append("no unregister")
        if leaves > 1 or (leaves and removals):
            wrong.append("unregistered twice")
        if own.online(events):
            wrong.append("ends online")
        if rows:
            wrong.append("row stays")
        return wrong


class LeaveWithReset(Leave):
    """What a kernel makes of a close with an answer unread."""

    name = "leave-with-reset"
    title = "REGISTER Expires 0 and reset"

    def end(self, wire: Wire) -> None:
        wire.reset()


class LeaveOverAnother(Leave):
    """The connection that the client is registered over is alive when it leaves."""

    name = "leave-over-another"
    title = "registered over A: REGISTER Expires 0 over B, which ends at once; later A closes"
    # Not "contact": there the Contact of a WebSocket is another one over each connection.
    profiles = ("main", "multi")
    wires = 2

    def play(self, own: Repetition) -> Play:
        first, second = own.wires
        call, contact = own.call(), own.contact(first)
        login = yield from own.log_in(first, call)
        yield from own.register(first, call, login=login, contact=contact)
        login = yield from own.log_in(second, call)
        yield own.offset(0.02)
        second.send(own.request(second, call, expires=0, login=login, contact=contact))
        yield own.offset()
        second.close() if own.dice.random() < 0.5 else second.reset()
        yield Settled(lambda events: any(map(own.is_leave, events)))
        first.close()


class Cross(Race):
    """Two connections of one device, A and B: the later REGISTER is that over B."""

    profiles: ClassVar[tuple[str, ...]] = ("main", "multi")
    wires = 2

    def reports_of(self, own: Repetition, events: Sequence[Headers], wire: Wire) -> list[Headers]:
        """Return the reports of the end of `wire`; stock's do not tell of which."""
        return [event for event in events if own.is_report(event) and event.get(PORT) in (None, str(wire.near[1]))]

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return bool(self.reports_of(own, events[own.marks[0] :], own.wires[1]))

    def end(self, own: Repetition) -> Play:
        """See that the user is online with A gone, then close B."""
        yield Settled(own.online)
        own.wires[1].close()

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        before, after = events[: own.marks[0]], events[own.marks[0] :]
        wrong = []
        if not own.online(before):
            wrong.append("ends offline, alive over B")
        elif own.facts["read"] and any(map(own.is_offline, before)):
            wrong.append("offline for a moment, alive over B")
        if any(map(own.is_removal, before)) and not own.stock:
            own.facts["note"] = "stock's unregister, alive over B"
        wrong += self.judge_end(own, after)
        return wrong

    def judge_end(self, own: Repetition, after: Sequence[Headers]) -> list[str]:
        mine = self.reports_of(own, after, own.wires[1])
        if not mine:
            return ["the end of B is not reported"]
        if len(mine) > 1:
            return ["the end of B is reported twice"]
        if own.online(after):
            return ["ends online, nobody there"]
        return []


class TwoRegisters(Cross):
    name = "two-registers"
    title = "one Call-ID: CSeq 1 over A, CSeq 2 over B, back to back; A closes; later B closes"

    def play(self, own: Repetition) -> Play:
        first, second = own.wires
        call = own.call()
        contact = own.contact(first) if own.dice.random() < 0.5 and own.transport in ("tcp", "tls") else ""
        one = yield from own.log_in(first, call)
        other = yield from own.log_in(second, call)
        early = own.request(first, call, login=one, contact=contact)
        late = own.request(second, call, login=other, contact=contact)
        first.send(early)
        second.send(late, own.probe(second))
        if own.dice.random() < 0.5:
            yield Reply(first)
            answer = yield Reply(second)
            own.facts["read"] = True
            yield own.offset()
            first.close()
        else:
            yield own.offset()
            second.receive()
            own.facts["read"] = second.read
            first.close()
            answer = yield Reply(second)
        if not answer or answer.status != 200:
            raise Unanswered(f"CSeq 2: {answer and answer.status}")
        yield from self.end(own)


class Move(Cross):
    name = "move"
    title = "REGISTER over B, A closes 0 to 1.5 ms later"

    def play(self, own: Repetition) -> Play:
        first, second = own.wires
        call = own.call()
        login = yield from own.log_in(first, call)
        yield from own.register(first, call, login=login)
        # The same device with the same or a new contact or, where that is possible, a second one.
        device = own.dice.randrange(3 if own.profile == "multi" else 2)
        own.facts["second"] = device == 2
        contact = own.contact(first) if device == 0 else ""
        if device == 2:
            call = own.call()
        if own.dice.random() < 0.5:
            login = yield from own.log_in(second, call)
        yield own.offset(0.02)
        second.send(own.request(second, call, login=login, contact=contact), own.probe(second))
        if own.dice.random() < 0.5:
            yield own.offset(0.0015)
            second.receive()
        else:
            # The sharpest: the stack has it, a worker may not have begun.
            yield Read(second)
        own.facts["read"] = second.read
        first.reset() if own.dice.random() < 0.5 else first.close()
        answer = yield Reply(second)
        if not answer or answer.status != 200:
            raise Unanswered(f"over B: {answer and answer.status}")
        yield from self.end(own)

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        wrong = super().judge(own, events, rows)
        if own.facts["second"] and len(self.reports_of(own, events, own.wires[0])) != 1 and not own.stock:
            wrong.append("the end of A is not reported once")
        return wrong


class NewCall(Cross):
    name = "new-call"
    title = "one Contact: refreshed over A, then registered over B with another Call-ID; A closes; later B closes"
    profiles = ("multi",)

    def play(self, own: Repetition) -> Play:
        first, second = own.wires
        call, other = own.call(), own.call()
        contact = own.contact(first)
        login = yield from own.log_in(first, call)
        yield from own.register(first, call, login=login, contact=contact)
        login_over_second = yield from own.log_in(second, other)
        yield own.offset(0.02)
        # Two connections are read in any order: which REGISTER is the later one must be beyond doubt.
        first.send(own.request(first, call, login=login, contact=contact), own.probe(first))
        yield Read(first)
        second.send(own.request(second, other, login=login_over_second, contact=contact), own.probe(second))
        yield Reply(first)
        answer = yield Reply(second)
        if not answer or answer.status != 200:
            raise Unanswered(f"over B: {answer and answer.status}")
        own.facts["read"] = True
        yield own.offset()
        first.close()
        yield from self.end(own)


class LeaveAndReturn(Cross):
    name = "leave-and-return"
    title = "REGISTER Expires 0 and close, then REGISTER over B with another Call-ID; later B closes"
    profiles = ("main", "multi", "contact")

    def play(self, own: Repetition) -> Play:
        first, second = own.wires
        call, other = own.call(), own.call()
        login = yield from own.log_in(first, call)
        yield from own.register(first, call, login=login)
        login_over_second = yield from own.log_in(second, other)
        yield own.offset(0.02)
        # Two connections are read in any order: that the client has left before it returns must be beyond doubt.
        first.send(own.request(first, call, expires=0, login=login), own.probe(first))
        yield Read(first)
        first.reset() if own.dice.random() < 0.5 else first.close()
        yield own.offset()
        second.send(own.request(second, other, login=login_over_second))
        answer = yield Reply(second)
        if not answer or answer.status != 200:
            raise Unanswered(f"over B: {answer and answer.status}")
        yield from self.end(own)

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        own.facts["read"] = False
        wrong = super().judge(own, events, rows)
        if any(map(own.is_report, events[: own.marks[0]])):
            wrong.append("reported as lost")
        return wrong


class MoveInList(Cross):
    name = "move-in-list"
    title = "over C a new Contact, and the one of A with expires=0; A closes; that of A again over B; later B closes"
    profiles = ("multi", "contact")
    # The Contact of a WebSocket is another one over each connection.
    transports = ("tcp", "tls")
    wires = 3

    def play(self, own: Repetition) -> Play:
        first, second, third = own.wires
        call, other = own.call(), own.call()
        again = call if own.profile == "multi" else own.call()
        contact = own.contact(first)
        login = yield from own.log_in(first, call)
        yield from own.register(first, call, login=login, contact=contact)
        login_over_third = yield from own.log_in(third, other)
        login_over_second = yield from own.log_in(second, again)
        yield own.offset(0.02)
        contacts = f"{own.contact(third)}, {contact};expires=0"
        third.send(own.request(third, other, login=login_over_third, contact=contacts), own.probe(third))
        yield Read(third)
        first.reset() if own.dice.random() < 0.5 else first.close()
        yield own.offset()
        second.send(own.request(second, again, login=login_over_second, contact=contact))
        yield Reply(third)
        answer = yield Reply(second)
        if not answer or answer.status != 200:
            raise Unanswered(f"over B: {answer and answer.status}")
        third.close()
        yield from self.end(own)

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        own.facts["read"] = False
        wrong = super().judge(own, events, rows)
        if self.reports_of(own, events, own.wires[0]) and not own.stock:
            wrong.append("reported as lost")
        return wrong


class Lines(Race):
    name = "lines"
    title = "three lines of one phone: one Call-ID, one nonce; close"
    profiles = ("multi",)
    users = 3
    # All three within a second.
    window = 8

    def play(self, own: Repetition) -> Play:
        wire, call = own.wires[0], own.call()
        login = yield from own.log_in(wire, call)
        # With a nonce in common one has to be done before the next one.
        together = not login and own.dice.random() < 0.5
        for user in own.users:
            wire.send(own.request(wire, call, user=user, login=login))
            if not together:
                yield Reply(wire)
        for _ in own.users if together else ():
            yield Reply(wire)
        rows = yield Settled(lambda events: sum(map(own.is_register, events)) == len(own.users))
        own.facts["rows"] = sorted(row["user"].partition("@")[0] for row in rows.get(call, ()))
        wire.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return sum(map(own.is_report, events)) >= len(own.facts["rows"])

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        came = sorted(event.get("from-user", "") for event in events if own.is_report(event))
        wanted = own.facts["rows"]
        if not wanted:
            return ["no row"]
        if came == wanted:
            return []
        return [f"{len(wanted)} rows, {len(came)} reports" if len(wanted) != len(came) else "reports of other users"]


class Back(Race):
    name = "back"
    title = "RST, back at once from the same source port with the same Call-ID"
    profiles = ("remove", "both")

    def play(self, own: Repetition) -> Play:
        wire, call = own.wires[0], own.call()
        login = yield from own.log_in(wire, call)
        yield from own.register(wire, call, login=login)
        yield own.offset(0.02)
        wire.reset()
        yield own.offset()
        again = own.reopen(wire)
        answer = yield from own.register(again, call, login=login)
        own.facts["status"] = answer.status
        rows = yield Settled(lambda events: sum(map(own.is_register, events)) == 2 and own.online(events))
        own.facts["rows"] = len(rows.get(call, ()))
        again.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return any(map(own.is_report, events[own.marks[0] :]))

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        before, after = events[: own.marks[0]], events[own.marks[0] :]
        wrong = []
        if not own.facts["rows"]:
            wrong.append("the new row is deleted")
        if not own.online(before):
            wrong.append("ends offline, alive")
        if sum(map(own.is_report, before)) > 1:
            wrong.append("the first end is reported twice")
        if sum(map(own.is_report, after)) != 1:
            wrong.append(f"the second end is reported {sum(map(own.is_report, after))} times")
        if (
            any(event["Event-Subclass"] == UNREGISTER for event in before[2:])
            and before[-1]["Event-Subclass"] == UNREGISTER
        ):
            wrong.append("the last event is an unregister, alive")
        if sum(event["Event-Subclass"] == UNREGISTER for event in after) > 1:
            wrong.append("unregistered twice")
        if rows:
            wrong.append("row stays")
        return wrong


class Storm(Race):
    name = "storm"
    title = "many clients REGISTER and close at once"
    profiles = ("remove", "both")
    pace = 0

    def play(self, own: Repetition) -> Play:
        wire, call = own.wires[0], own.call()
        login = yield from own.log_in(wire, call)
        yield Pause(own.dice.uniform(0, 0.05))
        wire.send(own.request(wire, call, login=login))
        yield own.offset()
        wire.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return any(map(own.is_report, events))

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        registered, reports = sum(map(own.is_register, events)), sum(map(own.is_report, events))
        removed = sum(event["Event-Subclass"] == UNREGISTER for event in events)
        wrong = []
        if reports != registered:
            wrong.append(f"registered {registered} times, {reports} reports")
        if removed > 1:
            wrong.append("unregistered twice")
        if own.online(events):
            wrong.append("ends online, nobody there")
        if rows:
            wrong.append("row stays")
        return wrong


class Trunk(Race):
    """Several users over one connection of a proxy, which ends."""

    name = "trunk"
    title = "a proxy in front (REGISTER with a Path header), which closes its connection or loses it"
    profiles: ClassVar[tuple[str, ...]] = ("main", "multi", "remove", "both")
    users = 3

    def play(self, own: Repetition) -> Play:
        wire = own.wires[0]
        host, port = wire.near
        calls = [own.call() for _ in own.users]
        logins = []
        for user, call in zip(own.users, calls, strict=True):
            logins.append((yield from own.log_in(wire, call, user)))
        waits = own.dice.random() < 0.5
        for user, call, login in zip(own.users, calls, logins, strict=True):
            more = f"Path: <sip:{host}:{port};transport={wire.transport};lr>\r\nSupported: path\r\n"
            contact = f"<sip:{user}@192.0.2.{own.dice.randrange(1, 255)}:5060>"
            wire.send(own.request(wire, call, user=user, login=login, more=more, contact=contact))
            if waits:
                yield Reply(wire)
        yield own.offset()
        wire.reset() if waits and own.dice.random() < 0.5 else wire.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return bool(own.facts["trunks"]())

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        wrong = []
        trunks = own.facts["trunks"]()
        if any(map(own.is_report, events)):
            wrong.append("users reported as lost")
        if any(event["Event-Subclass"] == UNREGISTER for event in events):
            wrong.append("users unregistered")
        # A password that another thread does not know yet is refused.
        registered = sum(map(own.is_register, events))
        if not registered:
            wrong.append("nobody registered")
        if len(rows) != registered:
            wrong.append("users removed")
        if own.stock:
            return wrong
        if len(trunks) != 1:
            wrong.append(f"{len(trunks)} events of the trunk")
        elif trunks[0].get("registrations") != str(registered):
            wrong.append("the event of the trunk counts wrongly")
        return wrong


class OldTrunk(Trunk):
    name = "trunk-old-way"
    title = "the same with tp-error-path"
    profiles = ("path",)
    on_stock = False

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return sum(map(own.is_report, events)) == sum(map(own.is_register, events)) > 0

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        came = sorted(event["from-user"] for event in events if own.is_offline(event))
        registered = sorted(event["from-user"] for event in events if own.is_register(event))
        return [] if came == registered else [f"{len(came)} reports of {len(registered)} users"]


class ContactExpires(Race):
    name = "contact-expires"
    title = "Contact with expires=0 together with Expires 3600, or old;expires=0 and new in one REGISTER"
    profiles = ("main", "multi", "contact")

    def play(self, own: Repetition) -> Play:
        wire, call = own.wires[0], own.call()
        login = yield from own.log_in(wire, call)
        old = f"<sip:{own.user}-old@192.0.2.1:5060;transport={wire.transport}>"
        own.facts["renew"] = renew = own.dice.random() < 0.5
        yield from own.register(wire, call, login=login, contact=old if renew else "")
        contact = f"{old};expires=0, {own.contact(wire)}" if renew else f"{own.contact(wire)};expires=0"
        wire.send(own.request(wire, call, login=login, contact=contact))
        if own.dice.random() < 0.5:
            yield Reply(wire)
        yield own.offset()
        rows: dict[str, list[Headers]] = {}
        if renew:
            rows = yield Settled(lambda events: len([event for event in events if own.is_register(event)]) == 2)
        own.facts["contacts"] = [row["contact"] for row in rows.get(call, ())]
        wire.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return any(map(own.is_report if own.facts["renew"] else own.is_leave, events))

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        reports = sum(map(own.is_report, events))
        wrong = []
        if own.facts["renew"]:
            mine = own.contact(own.wires[0]).partition(";")[0].lstrip("<")
            if len(own.facts["contacts"]) != 1 or mine not in own.facts["contacts"][0]:
                wrong.append("the old contact is stored")
            if reports != 1:
                wrong.append(f"its end is reported {reports} times")
            return wrong
        if not any(map(own.is_leave, events)):
            wrong.append("stays registered")
        if reports:
            wrong.append("reported as lost")
        if rows:
            wrong.append("row stays")
        return wrong


class Crowd(Race):
    """Thousands of registered connections die at once, and one more client goes on."""

    name = "crowd"
    title = "thousands of registered connections die, another client wants to register"
    profiles = ("remove",)
    transports = ("tcp", "ws")
    pace = pace_after = 0
    # One by one, slower than what a burst would fill the queue of messages with.
    asks, ask_pace = 100, 0.01
    repetitions, least = 6000, 2000
    digest = False

    def repetitions_over(self, transport: str) -> int:
        return self.repetitions if transport == "tcp" else self.least

    def play(self, own: Repetition) -> Play:
        wire, call = own.wires[0], own.call()
        if own.number == 0:
            yield Settled(lambda events: True)
            # It finds them dead all at once.
            own.container.pause()
            yield Pause(1)
            own.container.unpause()
            for _ in range(self.asks):
                wire.send(own.request(wire, call))
                yield Pause(self.ask_pace)
            own.facts["refused"] = refused = Counter[str]()
            for _ in range(self.asks):
                answer = yield Reply(wire)
                if not answer or answer.status != 200:
                    refused[answer.head.partition("\r\n")[0] if answer else "no answer"] += 1
            wire.close()
            return
        yield from own.register(wire, call)
        yield Settled(lambda events: any(map(own.is_register, events)))
        wire.reset() if own.number % 2 else wire.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return any(map(own.is_report, events))

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        reports = sum(map(own.is_report, events))
        wrong = [f"reported {reports} times"] if reports != 1 else []
        if rows:
            wrong.append("row stays")
        for answer, count in own.facts.get("refused", {}).items():
            wrong.append(f"another client gets {answer} {count} of {self.asks} times")
        return wrong


RACES: tuple[Race, ...] = (
    Leave(), LeaveWithReset(), LeaveOverAnother(), TwoRegisters(), Move(), NewCall(), LeaveAndReturn(), MoveInList(),
    Lines(), Back(), Storm(), Trunk(), OldTrunk(), ContactExpires(), Crowd(),
)  # fmt: skip


@dataclass
class Outcome:
    """How many repetitions there were, how many were wrong and what was wrong with them; the seed plays them again."""

    seed: str
    repetitions: int
    wrong: int = 0
    # Those that could not be played to the end, for reasons of this machine.
    unplayed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    # One of each kind: its events and rows.
    examples: dict[str, str] = field(default_factory=dict)
    seconds: float = 0

    @property
    def proves(self) -> bool:
        """Return whether enough were played to the end."""
        return self.unplayed <= self.repetitions * (1 - PLAYED)

    def __str__(self) -> str:
        why = "; ".join(f"{reason}: {count}" for reason, count in self.reasons.most_common())
        unplayed = f", {self.unplayed} not played to the end" if self.unplayed else ""
        return f"{self.wrong} of {self.repetitions - self.unplayed} wrong{unplayed}" + (f" ({why})" if why else "")


class Engine:
    """Plays races against a lab whose FreeSWITCH answers `password` or, blindly, everybody."""

    def __init__(self, lab: Lab, blind: bool, stock: bool = False) -> None:
        self.lab, self.blind, self.stock = lab, blind, stock
        self.epoll = select.epoll()
        self.stream = Stream(lab)
        self._tokens = itertools.count()

    def close(self) -> None:
        self.stream.close()
        self.epoll.close()

    def run(self, race: Race, transport: str, repetitions: int, seed: str) -> Outcome:
        """Play `race` so often; the dice of each repetition come from `seed` and its number."""
        began = time.monotonic()
        token = re.sub(r"\W+", "-", f"{seed} {next(self._tokens)}")
        users = (f"u{number:04}" for number in itertools.count())
        everybody = [
            Repetition(
                number,
                list(itertools.islice(users, race.users)),
                transport,
                profile := race.profiles[number % len(race.profiles)],
                self.lab.target(profile, transport),
                self.lab.freeswitch.container,
                "" if self.blind else self.lab.password,
                random.Random(f"{seed} {number}"),
                token,
                self.stock,
            )
            for number in range(repetitions)
        ]
        self.stream.trunks.clear()
        for own in everybody:
            own.facts["trunks"] = lambda own=own: self.stream.trunks.get(
                (own.profile, own.transport, str(own.wires[0].near[1])), []
            )
        outcome = Outcome(seed, repetitions)
        try:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda own: own.open(race.wires), everybody))
            failures = _Scheduler(self, everybody, race).run()
            self._wait(
                lambda own: lambda events: race.done(own, events),
                [own for own in everybody if own.number not in failures],
            )
            rows = self.rows(race.profiles)
            for own in everybody:
                events = self.stream.of(own.calls)
                left = [row for call in own.calls for row in rows.get(call, ())]
                failure = failures.get(own.number)
                # One that was not played to the end proves nothing.
                wrong = race.judge(own, events, left) if failure is None else [failure] if failure else []
                outcome.wrong += bool(wrong)
                outcome.unplayed += failure == ""
                outcome.reasons.update(wrong)
                if note := own.facts.get("note"):
                    outcome.notes[note] += 1
                for reason in wrong:
                    outcome.examples.setdefault(reason, self._example(own, events, left))
        finally:
            for own in everybody:
                for wire in own.wires:
                    wire.sock.close()
            for profile in race.profiles:
                self.stream.flush(profile)
        outcome.seconds = time.monotonic() - began
        return outcome

    def rows(self, profiles: Iterable[str]) -> dict[str, list[Headers]]:
        found: dict[str, list[Headers]] = {}
        for profile in profiles:
            found |= self.stream.rows(profile)
        return found

    def _wait(
        self,
        done: Callable[[Repetition], Callable[[Sequence[Headers]], bool]],
        waiting: Sequence[Repetition],
    ) -> None:
        deadline = time.monotonic() + LATE
        rest = [(own, done(own)) for own in waiting]
        while rest and time.monotonic() < deadline:
            self.stream.update()
            rest = [(own, is_done) for own, is_done in rest if not is_done(self.stream.of(own.calls))]
            time.sleep(0.05)
        # Until nothing comes any more.
        deadline = time.monotonic() + LATE
        time.sleep(SETTLE)
        while self.stream.update() and time.monotonic() < deadline:
            time.sleep(SETTLE)

    def _example(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> str:
        lines = [f"repetition {own.number}, {own.profile}: near ends {[wire.near[1] for wire in own.wires]}"]
        lines += [
            f"  {event[SEQUENCE]} {event['Event-Subclass']} {event.get('from-user')} port {event.get(PORT)} "
            f"left {event.get(LEFT)} {event.get('reason', '')}{' <' if place in own.marks else ''}"
            for place, event in enumerate(events[-20:], max(1, len(events) - 19))
        ]
        lines += [f"  trunk {event}" for event in own.facts["trunks"]()]
        lines += [f"  row {row['user']} {row['contact']}" for row in rows]
        return "\n".join(lines)


class _Scheduler:
    """Takes the steps of all repetitions, each when its moment has come, in one thread."""

    def __init__(self, engine: Engine, everybody: Sequence[Repetition], race: Race) -> None:
        self.engine, self.race = engine, race
        self.failures: dict[int, str] = {}
        self._queue: list[tuple[float, int, Repetition, Play, Any]] = []
        self._order = itertools.count()
        self._next_look = 0.0
        self._waiting: dict[int, tuple[Repetition, Play, Reply | Read, float]] = {}
        self._settling: list[tuple[Repetition, Play, Settled]] = []
        self._wires: dict[int, Wire] = {}
        self._epoll = engine.epoll
        self._starts = deque(everybody)
        self._next_start = time.monotonic() + 0.01
        for own in everybody:
            for wire in own.wires:
                self._watch(wire)
            own.opened = self._watch

    def _watch(self, wire: Wire) -> None:
        number = wire.sock.fileno()
        self._wires[number] = wire
        # An end shows in what is read.
        self._epoll.register(number, select.EPOLLIN)

    def _later(self, due: float, own: Repetition, play: Play, value: Any = None) -> None:
        heapq.heappush(self._queue, (due, next(self._order), own, play, value))

    def run(self) -> dict[int, str]:
        """Play to the end; return why repetitions could not be played, by number."""
        while self._starts or self._queue or self._waiting or self._settling:
            self._poll()
            now = time.monotonic()
            while self._starts and self._next_start <= now and len(self._waiting) < self.race.window:
                own = self._starts.popleft()
                self._next_start += self.race.pace
                self._step(own, self.race.play(own), None)
            while self._queue and self._queue[0][0] <= now:
                _, _, own, play, value = heapq.heappop(self._queue)
                self._step(own, play, value)
            self._give_up(now)
            if self._settling and not self._starts and not self._queue and not self._waiting:
                self._settle()
        return self.failures

    def _poll(self) -> None:
        due = min(self._queue[0][0] if self._queue else math.inf, self._next_start if self._starts else math.inf)
        ahead = due - time.monotonic()
        if not self._queue and len(self._waiting) >= self.race.window:
            ahead = 0.05
        # epoll knows whole milliseconds only, and select() no descriptor above 1,023.
        wait = max(0.0, min(ahead, 0.05))
        if wait < 0.002:
            time.sleep(min(wait, 0.0002))
        for number, _ in self._epoll.poll(wait - 0.001 if wait >= 0.002 else 0, 256):
            wire = self._wires[number]
            # Closed, but a process that is just being started still holds a copy of the socket.
            if wire.sock.fileno() != number:
                continue
            wire.receive()
            if wire.ended:
                self._epoll.unregister(number)
            self._check(number)

    def _check(self, number: int) -> None:
        if number in self._waiting and self._has_come(self._waiting[number][2]):
            own, play, step, _ = self._waiting.pop(number)
            self._step(own, play, self._take(step))

    def _has_come(self, step: Reply | Read) -> bool:
        return bool(step.wire.ended or (step.wire.answers if isinstance(step, Reply) else step.wire.read))

    def _take(self, step: Reply | Read) -> Answer | None:
        return step.wire.answers.popleft() if isinstance(step, Reply) and step.wire.answers else None

    def _give_up(self, now: float) -> None:
        if now < self._next_look:
            return
        self._next_look = now + 0.1
        for number in [number for number, (*_, until) in self._waiting.items() if until < now]:
            own, play, step, _ = self._waiting.pop(number)
            self.failures[own.number] = "no answer" if isinstance(step, Reply) else "not read"
            play.close()

    def _step(self, own: Repetition, play: Play, value: Any) -> None:
        try:
            step = play.send(value)
            while isinstance(step, Reply | Read) and self._has_come(step):
                step = play.send(self._take(step))
        except StopIteration:
            return
        except Taken:
            self.failures[own.number] = ""
            own.facts["note"] = "not played to the end, the port was taken"
            return
        except (Unanswered, OSError) as error:
            self.failures[own.number] = str(error)
            return
        if isinstance(step, Pause):
            self._later(time.monotonic() + step.seconds, own, play)
        elif isinstance(step, Settled):
            self._settling.append((own, play, step))
        else:
            self._waiting[step.wire.sock.fileno()] = (own, play, step, time.monotonic() + LATE)

    def _settle(self) -> None:
        settling, self._settling = self._settling, []
        done = {own.number: step.done for own, _, step in settling}
        self.engine._wait(lambda own: done[own.number], [own for own, *_ in settling])
        rows = self.engine.rows(self.race.profiles)
        now = time.monotonic()
        for place, (own, play, _) in enumerate(settling):
            own.marks.append(len(self.engine.stream.of(own.calls)))
            self._later(now + 0.01 + place * self.race.pace_after, own, play, rows)


@dataclass(frozen=True)
class Case:
    """A race over one transport, blind or with passwords, on a FreeSWITCH with (faked) CPUs."""

    race: Race
    transport: str
    blind: bool
    cpus: int

    def __str__(self) -> str:
        return f"{self.race.name}, {self.transport}, {'blind' if self.blind else 'digest'}, {self.cpus} CPUs"


CPUS = (2, 16)
CASES = [
    Case(race, transport, blind, cpus)
    for race in RACES
    for transport in race.transports
    for blind in ((True, False) if race.digest else (True,))
    for cpus in CPUS
]
# None of these is about the limit of requests per second, nor about a REGISTER that takes longer than a report waits:
# on a busy machine many would.
PARAMETERS = {"max-recv-requests-per-second": "0", "tp-error-wait": "60"}
# What stock offers for the purpose.
STOCK = {"tcp-unreg-on-socket-close": "true"}


class Runs:
    """Plays cases against an image: those with other CPUs side by side, in labs of their own.

    A context manager; on the way out it waits for what is being played and leaves out the rest.
    """

    def __init__(
        self, settings: Settings, cases: Sequence[Case], variant: str = "patched", repetitions: int = 0
    ) -> None:
        self.settings, self.variant, self.repetitions = settings, variant, repetitions
        self.futures: dict[Case, Future[Outcome]] = {case: Future() for case in cases}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._play_all, args=(cpus,)) for cpus in sorted({case.cpus for case in cases})
        ]

    def __enter__(self) -> Runs:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def outcome(self, case: Case) -> Outcome:
        """Wait for what came of `case`. Raises what kept it from being played."""
        return self.futures[case].result()

    def _play_all(self, cpus: int) -> None:
        for blind in (True, False):
            cases = [case for case in self.futures if case.cpus == cpus and case.blind == blind]
            try:
                if cases and not self._stop.is_set():
                    self._play(cases, cpus, blind)
            except BaseException as error:
                for case in cases:
                    if not self.futures[case].done():
                        self.futures[case].set_exception(error)
            for case in cases:
                if not self.futures[case].done():
                    self.futures[case].set_exception(CancelledError())

    def _play(self, cases: Sequence[Case], cpus: int, blind: bool) -> None:
        stock = self.variant == "stock"
        parameters = {**PARAMETERS, "accept-blind-reg": str(blind).lower(), **(STOCK if stock else {})}
        with (
            tempfile.TemporaryDirectory() as directory,
            lab_module.start(
                self.settings, DEATHS, Path(directory), self.variant, parameters=parameters, cpus=cpus
            ) as lab,
        ):
            # It would read all events a second time.
            lab.freeswitch.recorder.stop()
            engine = Engine(lab, blind, stock)
            try:
                for case in cases:
                    if self._stop.is_set():
                        return
                    race = case.race
                    wanted = self.repetitions or race.repetitions_over(case.transport)
                    try:
                        outcome = engine.run(race, case.transport, max(wanted, race.least), str(case))
                        if not outcome.proves and not outcome.wrong:
                            # A process was just being started, with copies of the sockets.
                            outcome = engine.run(race, case.transport, max(wanted, race.least), f"{case}, again")
                        self.futures[case].set_result(outcome)
                    except Exception as error:
                        # The others can be played all the same.
                        self.futures[case].set_exception(error)
            finally:
                engine.close()


def lines(outcomes: dict[Case, Outcome]) -> list[str]:
    """Return a line for each race: how many repetitions were played, and how many were wrong."""
    found = []
    for race in RACES:
        mine = [outcome for case, outcome in outcomes.items() if case.race is race]
        if mine:
            total = Outcome("", sum(one.repetitions for one in mine), sum(one.wrong for one in mine))
            for one in mine:
                total.unplayed += one.unplayed
                total.reasons.update(one.reasons)
            found.append(f"{race.name}: {total}")
    return found


def write(outcomes: dict[Case, Outcome], file: Path) -> None:
    """Write the outcomes as JSON, an object for each case."""
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        {
            "race": case.race.name,
            "title": case.race.title,
            "transport": case.transport,
            "auth": "blind" if case.blind else "digest",
            "cpus": case.cpus,
            "seed": outcome.seed,
            "repetitions": outcome.repetitions,
            "wrong": outcome.wrong,
            "unplayed": outcome.unplayed,
            "reasons": outcome.reasons,
            "notes": outcome.notes,
            "seconds": round(outcome.seconds, 1),
        }
        for case, outcome in outcomes.items()
    ]
    file.write_text(json.dumps(entries, indent=2) + "\n")
