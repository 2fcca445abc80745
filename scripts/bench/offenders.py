"""Clients that hold up others if they can: bytes of WebSocket and TLS that are sent as they are.

A `Case` is what a client does once it is connected, as steps, and what must
come of it; the tests play them one by one. An `Offender` is what each client of
many does; the benchmark measures what becomes of bystanders meanwhile.
Nothing in here waits for a server that owes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import socket
import ssl
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

# OPTIONS is answered whatever the domain.
DOMAIN = "example.test"
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CONTEXT.check_hostname = False
CONTEXT.verify_mode = ssl.CERT_NONE

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
# Seconds a client may take for what it has begun (tport_ws_server.c, tport_tls.c), and for this machine on top.
PATIENCE, SLACK = 10.0, 15.0


def frame(
    opcode: int, payload: bytes = b"", fin: bool = True, mask: bool = True, bits: int = 0, length: int | None = None
) -> bytes:
    """Return a frame; `bits` are those for extensions, `length` bytes hold the size (0, 2 or 8; default: the least)."""
    size = len(payload)
    if length is None:
        length = 0 if size < 126 else 2 if size < 65536 else 8
    marker = size if length == 0 else 126 if length == 2 else 127
    head = bytes([(0x80 if fin else 0) | bits << 4 | opcode, (0x80 if mask else 0) | marker])
    head += size.to_bytes(length, "big") if length else b""
    if not mask:
        return head + payload
    key = os.urandom(4)
    keys = (key * (size // 4 + 1))[:size]
    return head + key + (int.from_bytes(payload) ^ int.from_bytes(keys)).to_bytes(size)


def upgrade(protocol: str = "sip") -> bytes:
    """Return a request for upgrade to WebSocket."""
    return (
        f"GET / HTTP/1.1\r\nHost: {DOMAIN}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    ).encode()


# Requests for upgrade, and whether they are one.
UPGRADES: dict[str, tuple[bytes, bool]] = {
    "as it should be": (upgrade(), True),
    "of several protocols": (upgrade("foo, sip"), True),
    "names in lower case": (upgrade().replace(b"Upgrade:", b"upgrade:").replace(b"Sec-", b"sec-"), True),
    "after an empty line": (b"\r\n" + upgrade(), True),
    "lines that end in LF": (upgrade().replace(b"\r\n", b"\n"), True),
    "a large header": (upgrade().replace(b"\r\n\r\n", b"\r\nX: " + b"x" * 10000 + b"\r\n\r\n"), True),
    "a header without end": (upgrade().replace(b"\r\n\r\n", b"\r\nX: " + b"x" * 20000), False),
    "version 8": (upgrade().replace(b"Version: 13", b"Version: 8"), False),
    "no Upgrade": (upgrade().replace(b"Upgrade: websocket\r\n", b""), False),
    "no key": (upgrade().replace(b"Sec-WebSocket-Key", b"X-Key"), False),
    "a short key": (upgrade().replace(KEY.encode(), b"x"), False),
    "another method": (upgrade().replace(b"GET ", b"POST "), False),
    "HTTP/0.9": (upgrade().replace(b" HTTP/1.1", b""), False),
    "a NUL": (upgrade().replace(b"Host", b"Ho\0st"), False),
    "SIP": (b"OPTIONS sip:x SIP/2.0\r\n", False),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", False),
}


def options(transport: str) -> bytes:
    """Return a request that anybody may send."""
    name = uuid.uuid4().hex
    return (
        f"OPTIONS sip:{DOMAIN} SIP/2.0\r\nVia: SIP/2.0/{transport.upper()} x.invalid;branch=z9hG4bK{name};rport\r\n"
        f"Max-Forwards: 70\r\nFrom: <sip:x@{DOMAIN}>;tag={name[:8]}\r\nTo: <sip:{DOMAIN}>\r\n"
        f"Call-ID: {name}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
    ).encode()


@dataclass
class RawConnection:
    """A connection that sends any bytes, and keeps what comes in frames."""

    transport: str
    target: tuple[str, int]
    upgraded: bool = True
    limit: float = 10.0
    # Of the kernel for what comes; 0 for its own choice.
    buffer: int = 0
    sock: socket.socket = field(init=False)
    # Opcode and payload of what came, and whether the server has closed.
    frames: list[tuple[int, bytes]] = field(default_factory=list)
    head: bytes = b""
    ended: bool = False
    _data: bytes = b""

    def __post_init__(self) -> None:
        self.sock = socket.socket()
        if self.buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer)
            # Of small segments the server's kernel keeps few.
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self.sock.settimeout(self.limit)
        self.sock.connect(self.target)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.transport in ("tls", "wss"):
            self.sock = CONTEXT.wrap_socket(self.sock)
        self._is_ws = self.transport in ("ws", "wss")
        if self._is_ws and self.upgraded:
            self.send(upgrade())
            self.wait(lambda: bool(self.head))
            assert self.head.startswith(b"HTTP/1.1 101 "), self.head

    def send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.sock.sendall(data)

    def wait(self, done: Callable[[], bool], limit: float = 10.0) -> bool:
        """Read until `done()` says so, the server closes, or `limit` seconds have passed."""
        deadline = time.monotonic() + limit
        while not done() and not self.ended and (left := deadline - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                break
            except OSError:
                data = b""
            self.ended = not data
            self._take(data)
        return done()

    def _take(self, data: bytes) -> None:
        self._data += data
        if not self._is_ws:
            return
        if not self.head:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            self.head, self._data = head, rest
        while len(self._data) >= 2:
            size, start = self._data[1] & 127, 2
            if size > 125:
                start = 4 if size == 126 else 10
                if len(self._data) < start:
                    return
                size = int.from_bytes(self._data[2:start], "big")
            if len(self._data) < start + size:
                return
            self.frames.append((self._data[0] & 15, self._data[start : start + size]))
            self._data = self._data[start + size :]

    def payloads(self, opcode: int) -> list[bytes]:
        return [payload for kind, payload in self.frames if kind == opcode]

    def received(self) -> bytes:
        """Return what has come of SIP."""
        return b"".join((*self.payloads(TEXT), *self.payloads(BINARY))) if self._is_ws else self._data

    def answers(self, status: int = 200) -> int:
        """Return how many SIP responses with `status` have come."""
        return self.received().count(f"SIP/2.0 {status} ".encode())

    def code(self) -> int:
        """Return the code of the server's close frame, 0 if there was none."""
        closes = self.payloads(CLOSE)
        return struct.unpack("!H", closes[0][:2])[0] if closes and len(closes[0]) >= 2 else 0

    def close(self) -> None:
        self.sock.close()


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class Closure(Enum):
    """How a connection is closed, if it is."""

    LIVES = "lives"
    ILLEGAL = "closed at once, protocol-error"
    CLOSED = "closed at once, as its client asks"
    LATE = "closed after a while, timeout"


@dataclass(frozen=True)
class FrameCase:
    """A case: what a client sends, bytes in one piece, a number a pause of so many seconds; and what comes of it."""

    name: str
    steps: tuple[bytes | float, ...]
    end: Closure = Closure.LIVES
    # Answers that come, frames of the server, and the code of its close frame.
    answers: int = 0
    pongs: tuple[bytes, ...] = ()
    texts: tuple[bytes, ...] = ()
    code: int = 0
    transport: str = "ws"

    def __str__(self) -> str:
        return f"{self.name}, {self.transport}"

    def play(self, raw: RawConnection, patience: float) -> list[str]:
        """Do it over `raw`; return what was wrong, waiting `patience` seconds for what must come."""
        for step in self.steps:
            if isinstance(step, bytes):
                raw.send(step)
            else:
                time.sleep(step)
        raw.wait(lambda: self._has_come(raw), PATIENCE + SLACK if self.end is Closure.LATE else patience)
        wrong = []
        if raw.answers() != self.answers:
            wrong.append(f"{raw.answers()} of {self.answers} answers")
        if self.pongs and tuple(raw.payloads(PONG)) != self.pongs:
            wrong.append(f"{len(raw.payloads(PONG))} of {len(self.pongs)} PONGs")
        if self.texts and tuple(raw.payloads(TEXT)) != self.texts:
            wrong.append("no pong")
        if not all(map(is_utf8, raw.payloads(TEXT))):
            wrong.append("text that is not UTF-8")
        if raw.ended != (self.end is not Closure.LIVES):
            wrong.append("closed" if raw.ended else "not closed")
        if raw.ended and self.end is not Closure.LIVES and raw.code() != (self.code or 1001):
            wrong.append(f"close code {raw.code()}, not {self.code or 1001}" if raw.code() else "no close frame")
        if self.end is Closure.LIVES and not raw.ended:
            raw.send(frame(TEXT, options(self.transport)))
            if not raw.wait(lambda: raw.answers() > self.answers, patience):
                wrong.append("of no use any more")
        return wrong

    def _has_come(self, raw: RawConnection) -> bool:
        return (
            self.end is Closure.LIVES
            and raw.answers() >= self.answers
            and len(raw.payloads(PONG)) >= len(self.pongs)
            and len(raw.payloads(TEXT)) >= len(self.texts)
        )


def pieces(data: bytes, size: int, pause: float = 0.0) -> tuple[bytes | float, ...]:
    """Return steps that send `data` in pieces of `size` bytes."""
    steps: list[bytes | float] = []
    for start in range(0, len(data), size):
        steps.append(data[start : start + size])
        if pause:
            steps.append(pause)
    return tuple(steps)


def cases(transport: str) -> Sequence[FrameCase]:
    """Return the rows of the table for `transport`, ws or wss."""
    ask = options(transport)
    half = len(ask) // 2
    register = frame(TEXT, ask)
    latin = ask.replace(b"From: <", b'From: "Jos\xe9" <')
    fragments = (
        frame(TEXT, ask[:10], fin=False),
        frame(PING, b"between"),
        frame(CONTINUATION, ask[10:half], fin=False),
        frame(PONG),
        frame(CONTINUATION, b"", fin=False),
        frame(CONTINUATION, ask[half:]),
    )
    return (
        FrameCase("a frame byte by byte", pieces(register, 1, 0.001), answers=1),
        FrameCase("three frames at once",
             (register + frame(TEXT, options(transport)) + frame(TEXT, options(transport)),), answers=3),
        FrameCase("a frame and the head of another", (register + register[:3],), answers=1, end=Closure.LATE),
        FrameCase("fragments with control frames between them", fragments, answers=1, pongs=(b"between",)),
        FrameCase("the same at once", (b"".join(fragments),), answers=1, pongs=(b"between",)),
        FrameCase("a binary message", (frame(BINARY, ask),), answers=1),
        FrameCase("a binary message that is not UTF-8", (frame(BINARY, latin),), answers=1),
        FrameCase("a text of several bytes a character, in fragments",
             (frame(TEXT, ask.partition(b"<")[0] + b'"\xc3', fin=False),
              frame(CONTINUATION, b'\xa9" <' + ask.partition(b"<")[2])), answers=1),
        FrameCase("an unsolicited PONG, empty", (frame(PONG), register), answers=1),
        FrameCase("an unsolicited PONG", (frame(PONG, b"hello"), register), answers=1),
        FrameCase("an empty PING", (frame(PING),), pongs=(b"",)),
        FrameCase("a PING of 125 bytes", (frame(PING, b"x" * 125),), pongs=(b"x" * 125,)),
        FrameCase("60 PINGs of 125 bytes at once",
             (b"".join(frame(PING, bytes([number]) * 125) for number in range(60)),),
             pongs=tuple(bytes([number]) * 125 for number in range(60))),
        FrameCase("an empty text frame", (frame(TEXT), register), answers=1),
        FrameCase("an empty message in fragments", (frame(TEXT, fin=False), frame(CONTINUATION), register), answers=1),
        FrameCase("a ping of RFC 5626", (frame(TEXT, b"\r\n\r\n"),), texts=(b"\r\n",)),
        FrameCase("a pong of RFC 5626", (frame(TEXT, b"\r\n"), register), answers=1),
        FrameCase("10,000 PINGs at once", (frame(PING) * 10000, register), answers=1),
        FrameCase("a message in 1,000 fragments",
             (frame(TEXT, ask[:1], fin=False) + frame(CONTINUATION, fin=False) * 1000
              + frame(CONTINUATION, ask[1:]),), answers=1),
        FrameCase("one byte of a frame, silence", (b"\x81",), end=Closure.LATE),
        FrameCase("half a frame, silence", (register[: len(register) // 2],), end=Closure.LATE),
        FrameCase("half a message, silence", (frame(TEXT, ask, fin=False),), end=Closure.LATE),
        FrameCase("not masked", (frame(TEXT, ask, mask=False),), end=Closure.ILLEGAL, code=1002),
        FrameCase("an extension's bit", (frame(TEXT, ask, bits=4),), end=Closure.ILLEGAL, code=1002),
        FrameCase("an unknown opcode", (frame(3, ask),), end=Closure.ILLEGAL, code=1002),
        FrameCase("an unknown control opcode", (frame(11),), end=Closure.ILLEGAL, code=1002),
        FrameCase("a PING of 126 bytes", (frame(PING, b"x" * 126),), end=Closure.ILLEGAL, code=1002),
        FrameCase("a PING in fragments", (frame(PING, b"x", fin=False),), end=Closure.ILLEGAL, code=1002),
        FrameCase("a continuation of nothing", (frame(CONTINUATION, ask),), end=Closure.ILLEGAL, code=1002),
        FrameCase("a message within another", (frame(TEXT, b"x", fin=False), register), end=Closure.ILLEGAL, code=1002),
        FrameCase("a text that is not UTF-8", (frame(TEXT, latin),), end=Closure.ILLEGAL, code=1007),
        FrameCase("a text that ends within a character", (frame(TEXT, ask + b"\xc3"),), end=Closure.ILLEGAL, code=1007),
        FrameCase("a length in too many bytes", (frame(TEXT, b"x", length=2),), end=Closure.ILLEGAL, code=1002),
        FrameCase("a length of 2^63", (bytes([0x81, 0xFF, 0x80, *[0] * 7, *[0] * 4]),), end=Closure.ILLEGAL, code=1009),
        FrameCase("a length of 1 GiB", (b"\x81\xff" + (1 << 30).to_bytes(8, "big") + bytes(4),), end=Closure.ILLEGAL,
             code=1009),
        FrameCase("a continuation flood",
             (frame(TEXT, b"x" * 65000, fin=False),
              *[frame(CONTINUATION, b"x" * 65000, fin=False)] * 40), end=Closure.ILLEGAL, code=1009),
        FrameCase("a close frame", (frame(CLOSE, struct.pack("!H", 1000)),), end=Closure.CLOSED, code=1000),
        FrameCase("an empty close frame", (frame(CLOSE),), end=Closure.CLOSED, code=1000),
        FrameCase("a close frame that calls this end's frames illegal", (frame(CLOSE, struct.pack("!H", 1002)),),
             end=Closure.CLOSED, code=1002),
        FrameCase("a close frame with a reason", (frame(CLOSE, struct.pack("!H", 4000) + b"bye"),), end=Closure.CLOSED,
             code=4000),
        FrameCase("a close frame of one byte", (frame(CLOSE, b"\x03"),), end=Closure.ILLEGAL, code=1002),
        FrameCase("a close frame with a code that is reserved", (frame(CLOSE, struct.pack("!H", 1005)),),
             end=Closure.ILLEGAL, code=1002),
        FrameCase("a message after a close frame", (frame(CLOSE, struct.pack("!H", 1000)) + register,),
             end=Closure.CLOSED, code=1000),
    )  # fmt: skip


CASES = tuple(
    dataclasses.replace(case, transport=transport) for transport in ("ws", "wss") for case in cases(transport)
)


class HandshakeStage(Enum):
    """The stage of the handshakes at which the steps begin."""

    CONNECTED = "connected"
    SECURED = "connected, with TLS where the transport has it"
    USABLE = "ready for SIP"


Steps = tuple[bytes | float, ...]


@dataclass(frozen=True)
class Offender:
    """An offender: what each of many such clients does, over one of `transports`.

    `steps` are made anew for each connection, as those of a `Case`; with
    `endless` they come again and again. What is in `before` has been sent when
    the bystanders begin to be measured. `on_stock` is the transport of the one client
    that is measured on stock FreeSWITCH, if any.
    """

    name: str
    transports: tuple[str, ...]
    steps: Callable[[str], Steps]
    start: HandshakeStage = HandshakeStage.USABLE
    before: Callable[[str], Steps] = lambda transport: ()
    endless: bool = False
    reads: bool = True
    on_stock: str = ""

    def distribute(self, count: int) -> list[str]:
        """Return the transport of each of `count` clients, all transports as often."""
        return [*itertools.islice(itertools.cycle(self.transports), count)]

    def open(self, transport: str, target: tuple[str, int]) -> RawConnection:
        """Return a connection that is as far as `start` says. Raises OSError or AssertionError if it can't be."""
        if self.start is HandshakeStage.CONNECTED:
            return RawConnection("tcp", target)
        return RawConnection(
            transport, target, upgraded=self.start is HandshakeStage.USABLE, buffer=0 if self.reads else 4096
        )


def wrapped(transport: str, message: bytes) -> bytes:
    """Return a SIP message as it is sent over `transport`."""
    return frame(TEXT, message) if transport in ("ws", "wss") else message


def _of_case(name: str) -> Offender:
    def steps(transport: str) -> Steps:
        return next(case.steps for case in cases(transport) if case.name == name)

    return Offender(name, WEB, steps, on_stock=ON_STOCK.get(name, ""))


WEB, STREAMS = ("ws", "wss"), ("tcp", "tls", "ws", "wss")
HELLO = b"\x16\x03\x01\x02\x00\x01\x00"
# Those of the tests' cases that stock FreeSWITCH is measured with, and over what: what it waits for, 10 s at most.
ON_STOCK = {"one byte of a frame, silence": "ws", "half a frame, silence": "wss", "a close frame": "wss"}
OFFENDERS = (
    Offender("asks once, as it should", STREAMS, lambda transport: (wrapped(transport, options(transport)),)),
    Offender("connects, silence", STREAMS, lambda _: (), HandshakeStage.CONNECTED),
    Offender("half a ClientHello, silence", ("tls", "wss"), lambda _: (HELLO,), HandshakeStage.CONNECTED,
             on_stock="wss"),
    Offender("TLS, silence", ("tls", "wss"), lambda _: (), HandshakeStage.SECURED),
    Offender("half a request for upgrade, silence", WEB, lambda _: (upgrade()[:8],), HandshakeStage.SECURED,
             on_stock="wss"),
    Offender("a request for upgrade byte by byte", WEB, lambda _: pieces(upgrade(), 1, 0.01), HandshakeStage.SECURED),
    Offender("a request for upgrade without end", WEB, lambda _: (UPGRADES["a header without end"][0],),
             HandshakeStage.SECURED),
    Offender("half a request, silence", ("tcp", "tls"), lambda _: (b"REGISTER sip:",)),
    Offender("a request byte by byte", ("tcp", "tls"), lambda transport: pieces(options(transport), 1, 0.01)),
    Offender("a body of 1 GiB is announced, silence", ("tcp", "tls"),
             lambda transport: (options(transport).replace(b"Length: 0", b"Length: %d" % (1 << 30)),)),
    Offender("never reads its answers", STREAMS,
             lambda transport: (wrapped(transport, options(transport)), 0.5),
             before=lambda transport: tuple(
                 wrapped(transport, options(transport).replace(b";rport", b";rport;x=" + b"x" * 3000))
                 for _ in range(30)
             ), endless=True, reads=False),
    Offender("PINGs without end", WEB, lambda _: (frame(PING) * 100,), endless=True, on_stock="wss"),
    Offender("PINGs without end, never reads", WEB, lambda _: (frame(PING, b"x" * 125) * 20,), endless=True,
             reads=False),
    Offender("pings of RFC 5626 without end", STREAMS,
             lambda transport: (wrapped(transport, b"\r\n\r\n") * 50,), endless=True),
    Offender("empty fragments without end", WEB, lambda _: (frame(CONTINUATION, fin=False) * 100,),
             before=lambda _: (frame(TEXT, b"x", fin=False),), endless=True),
    *(_of_case(case.name) for case in cases("ws")),
)  # fmt: skip
