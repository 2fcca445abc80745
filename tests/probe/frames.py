"""What a client of WebSocket can send in frames, and what RFC 6455 wants to come of it. Needs nothing but Python."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

from tests.probe.drive import frame, sip

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
# The largest message that the server takes (tport_ws_server.c).
MOST = 2 * 1024 * 1024
NORMAL, PROTOCOL, NOT_UTF8, TOO_BIG = 1000, 1002, 1007, 1009
# What a client may say when it closes, and what it may not.
CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 3000, 3999, 4000, 4999)
RESERVED = (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2999, 5000, 65535)
MALFORMED = (b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"bye \xe2\x82", b"\xc0\x80")
# With which code the server ends a connection over which such a thing has come.
VIOLATIONS = {
    "extension bits": PROTOCOL,
    "reserved opcode": PROTOCOL,
    "no mask": PROTOCOL,
    "fragmented control frame": PROTOCOL,
    "long control frame": PROTOCOL,
    "continuation of nothing": PROTOCOL,
    "message within a message": PROTOCOL,
    "length in too many bytes": PROTOCOL,
    "length of 2^63": TOO_BIG,
    "too big": TOO_BIG,
    "close of one byte": PROTOCOL,
    "close with a reserved code": PROTOCOL,
    "close with a reason that is not UTF-8": NOT_UTF8,
    "text that is not UTF-8": NOT_UTF8,
}
# The client's end once all is answered, with or without a close frame; a close frame that waits for nothing, or is
# not the last one; anything that is broken off.
LEGAL = ("lives", "lives", "closes", "closes at once", "goes on after its close", "is cut off")


@dataclass
class ClientFrame:
    """A frame of a client that keeps the rules, and what the server has once it has it."""

    data: bytes
    ping: bytes | None = None
    register: bool = False
    # Is a message unfinished, and how many bytes of it have come?
    inside: bool = False
    used: int = 0


@dataclass
class ServerFrames:
    """The frames that the server has sent, read as strictly as RFC 6455 allows; `faults` says what it forbids."""

    frames: list[tuple[int, bytes]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    ended: bool = False
    _data: bytes = b""

    def take(self, data: bytes) -> None:
        """Take what came next, b"" at the end of the stream."""
        self._data += data
        while len(self._data) >= 2:
            bits, marker = self._data[0] & 0xF0, self._data[1]
            start = {126: 4, 127: 10}.get(marker & 127, 2)
            size = int.from_bytes(self._data[2:start], "big") if start > 2 else marker & 127
            if len(self._data) < start + size:
                break
            opcode = self._data[0] & 15
            if bits != 0x80 or marker & 128 or opcode not in (TEXT, CLOSE, PONG):
                self.faults.append(f"frame {self._data[:start].hex()}")
            if size < {4: 126, 10: 65536}.get(start, 0) or (opcode >= CLOSE and size > 125):
                self.faults.append(f"length {self._data[:start].hex()}")
            if self.payloads(CLOSE):
                self.faults.append("frame after the close frame")
            self.frames.append((opcode, self._data[start : start + size]))
            self._data = self._data[start + size :]
        if not data:
            self.ended = True
            if self._data:
                self.faults.append(f"{len(self._data)} bytes of a frame at the end")

    def payloads(self, opcode: int) -> list[bytes]:
        return [payload for kind, payload in self.frames if kind == opcode]

    def answers(self) -> int:
        return sum(payload.startswith(b"SIP/2.0 200 ") for payload in self.payloads(TEXT))


@dataclass
class FrameExchange:
    """The exchange of frames over one connection: what a client sends, in segments, and what must come of it."""

    kind: str
    parts: list[bytes]
    # The REGISTERs that get through, and the PINGs.
    registers: int
    pings: list[bytes]
    # Of the server's close frame; 0 if there is none.
    code: int = 0
    # Sent once all is answered.
    farewell: bytes = b""

    @property
    def patient(self) -> bool:
        """Whether the client does not end before all is answered."""
        return self.kind in ("lives", "closes")

    def answered(self, received: ServerFrames) -> bool:
        return received.answers() >= self.registers and len(received.payloads(PONG)) >= len(self.pings)

    def faults(self, received: ServerFrames) -> list[str]:
        """Return what is wrong with what the server has sent."""
        faults = list(received.faults)
        pongs, closes = received.payloads(PONG), received.payloads(CLOSE)
        if received.answers() > self.registers or (self.patient and received.answers() < self.registers):
            faults.append(f"{received.answers()} answers to {self.registers} REGISTERs")
        if self.kind == "is cut off":
            # Nobody has read to the end.
            return faults
        if pongs != self.pings:
            faults.append(f"{len(pongs)} PONGs to {len(self.pings)} PINGs, or other ones")
        if received.ended != bool(self.code):
            faults.append("closed by the server" if received.ended else "not closed by the server")
        if closes != ([self.code.to_bytes(2, "big")] if self.code else []):
            faults.append(f"close frames {[payload.hex() for payload in closes]}, not of {self.code}")
        return faults

    def causes(self, end: str, causes: set[str]) -> set[str]:
        """Return those of `causes` that the end of the connection may have, if the client's is `end`."""
        if self.kind in VIOLATIONS:
            return {"protocol-error"}
        if self.kind == "is cut off":
            return causes - {"protocol-error"}
        return {"reset"} if self.kind == "lives" and end == "reset" else {"peer-closed"}


def masked(rng: random.Random, payload: bytes, opcode: int, final: bool = True) -> bytes:
    return frame(payload, opcode, final, rng.choice((rng.randbytes(4), rng.randbytes(4), bytes(4))))


def controls(rng: random.Random) -> list[ClientFrame]:
    """Return control frames as they may come anywhere, often none."""
    pieces = []
    while rng.random() < 0.25:
        payload = rng.randbytes(rng.choice((0, 0, 1, 4, 124, 125, rng.randrange(126))))
        if rng.random() < 0.7:
            pieces.append(ClientFrame(masked(rng, payload, PING), ping=payload))
        else:
            pieces.append(ClientFrame(masked(rng, payload, PONG)))
    return pieces


def message(rng: random.Random, data: bytes, fragments: int, register: bool = False) -> list[ClientFrame]:
    """Return `data` in so many fragments, empty ones among them, with control frames before and between."""
    places = [0, *sorted(rng.randrange(len(data) + 1) for _ in range(fragments - 1)), len(data)]
    opcode, pieces = rng.choice((TEXT, TEXT, TEXT, BINARY)), controls(rng)
    for number, (start, end) in enumerate(itertools.pairwise(places), 1):
        last = number == fragments
        used = 0 if last else end
        piece = ClientFrame(masked(rng, data[start:end], opcode, last), None, register and last, not last, used)
        pieces.append(piece)
        for control in controls(rng):
            control.inside, control.used = piece.inside, piece.used
            pieces.append(control)
        opcode = CONTINUATION
    return pieces


def request(rng: random.Random, name: str, protocol: str, host: str) -> bytes:
    """Return a REGISTER, sometimes with characters of several bytes, or so large that 64 bits hold its length."""
    data = sip("REGISTER", name, protocol, host)
    if rng.random() < 0.3:
        data = data.replace(b"Max-Forwards", "Subject: ß€𝄞\r\nMax-Forwards".encode())
    if rng.random() < 0.05:
        size = rng.choice((65000, 65535, 65536, 70000))
        length = f"Content-Type: text/plain\r\nContent-Length: {size}".encode()
        data = data.replace(b"Content-Length: 0", length) + b"x" * size
    return data


def lawful(rng: random.Random, name: str, protocol: str, host: str) -> list[ClientFrame]:
    """Return frames of a client that keeps the rules, with one to three REGISTERs."""
    pieces: list[ClientFrame] = []
    for number in range(rng.choice((1, 1, 2, 3))):
        while rng.random() < 0.2:
            # Nothing, and the keepalives of RFC 5626.
            pieces += message(rng, rng.choice((b"", b"", b"\r\n", b"\r\n\r\n")), rng.choice((1, 1, 2, 5)))
        data = request(rng, f"{name}-{number}", protocol, host)
        pieces += message(rng, data, rng.choice((1, 1, 2, 2, 3, 7, 40)), True)
    return pieces


def violation(rng: random.Random, kind: str, inside: bool, used: int) -> bytes:
    """Return a frame that is illegal in a way of VIOLATIONS; `inside` a message of which `used` bytes have come."""
    opcode, control = CONTINUATION if inside else rng.choice((TEXT, BINARY)), rng.choice((CLOSE, PING, PONG))
    payload, mask = rng.randbytes(rng.choice((0, 1, 60, 125))), rng.randbytes(4)
    final, any_opcode = True, rng.choice((opcode, opcode, PING, PONG))
    if any_opcode == opcode:
        final = rng.random() < 0.5
    # As much as its head is enough for some.
    whole = rng.random() < 0.7
    if kind == "extension bits":
        data = frame(payload, any_opcode, final, mask, bits=rng.randrange(1, 8))
    elif kind == "reserved opcode":
        data = frame(payload, rng.choice((3, 4, 5, 6, 7, 11, 12, 13, 14, 15)), rng.random() < 0.5, mask)
    elif kind == "no mask":
        data, mask = frame(payload, any_opcode, final, b""), b""
    elif kind == "fragmented control frame":
        data = frame(payload, control, False, mask)
    elif kind == "long control frame":
        payload = rng.randbytes(rng.choice((126, 127, 1000, 65536)))
        data = frame(payload, control, True, mask)
    elif kind == "text that is not UTF-8":
        text, whole = rng.choice((b"", "ß€𝄞".encode(), b"REGISTER ")) + rng.choice(MALFORMED), True
        cut = rng.randrange(len(text) + 1)
        data = frame(text[:cut], TEXT, False, mask) + frame(text[cut:], CONTINUATION, True, mask)
        if rng.random() < 0.5:
            data = frame(text, TEXT, True, mask)
    elif kind == "continuation of nothing":
        data = frame(payload, CONTINUATION, final, mask)
    elif kind == "message within a message":
        data = frame(payload, rng.choice((TEXT, BINARY)), rng.random() < 0.5, mask)
    elif kind == "length in too many bytes":
        length = rng.choice((2, 8))
        payload = rng.choice((payload, rng.randbytes(65535) if length == 8 else payload))
        data = frame(payload, opcode, final, mask, length=length)
    elif kind == "length of 2^63":
        data = frame(payload, opcode, final, mask, length=8, size=1 << 63 | rng.getrandbits(rng.choice((1, 21, 63))))
    elif kind == "too big":
        size = rng.choice((MOST - used + 1, MOST + 1, 1 << 31, 1 << 32, (1 << 63) - 1))
        data = frame(payload, opcode, final, mask, length=8, size=size)
    else:
        whole = True
        code = rng.choice(RESERVED) if kind == "close with a reserved code" else rng.choice(CODES)
        reason = rng.choice(MALFORMED) if kind == "close with a reason that is not UTF-8" else b""
        payload = code.to_bytes(2, "big") + reason
        data = frame(payload[:1] if kind == "close of one byte" else payload, CLOSE, True, mask)
    return data if whole else data[: len(data) - len(payload)]


def segments(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    """Return `frames` joined and cut anew: all at once, one each, byte by byte, or anywhere."""
    data = b"".join(frames)
    way = rng.choice(("at once", "each", "bytes", "anywhere", "anywhere"))
    if way == "each":
        return frames
    if way == "bytes" and len(data) <= 1000:
        return [data[place : place + 1] for place in range(len(data))]
    places = sorted(rng.randrange(len(data)) for _ in range(rng.choice((1, 2, 8)) if way != "at once" else 0))
    return [data[start:end] for start, end in itertools.pairwise([0, *places, len(data)]) if start < end]


def close(rng: random.Random) -> tuple[bytes, int]:
    """Return a close frame, and the code with which it must be answered."""
    code = rng.choice((0, *CODES))
    reason = rng.choice((b"", b"bye", "ß€𝄞".encode() * 13))
    return masked(rng, code.to_bytes(2, "big") + reason if code else b"", CLOSE), code or NORMAL


def exchange(rng: random.Random, name: str, protocol: str, host: str) -> FrameExchange:
    """Return what a client sends that keeps the rules, or breaks one of them."""
    kind = rng.choice(LEGAL if rng.random() < 0.6 else tuple(VIOLATIONS))
    pieces = lawful(rng, name, protocol, host)
    frames = [piece.data for piece in pieces]
    # How many of the pieces get through.
    count = len(pieces)
    code, farewell = VIOLATIONS.get(kind, 0), b""
    if kind in VIOLATIONS:
        if kind == "message within a message":
            pieces += message(rng, request(rng, f"{name}-x", protocol, host), 2, True)
            frames = [piece.data for piece in pieces]
        # Before the first one there is no message.
        states = [ClientFrame(b""), *pieces]
        outside = kind in ("continuation of nothing", "text that is not UTF-8")
        wanted = (True,) if kind == "message within a message" else (False,) if outside else (True, False)
        count = rng.choice([place for place, state in enumerate(states) if state.inside in wanted])
        state = states[count]
        # What follows must not get through.
        tail = rng.choice(([], frames[count:]))
        frames = [*frames[:count], violation(rng, kind, state.inside, state.used), *tail]
    elif kind == "closes":
        farewell, code = close(rng)
    elif kind in ("closes at once", "goes on after its close"):
        # Also within a message.
        count = rng.randrange(len(pieces) + 1)
        end, code = close(rng)
        tail = [*frames[count:], masked(rng, b"", PING)] if kind == "goes on after its close" else []
        frames = [*frames[:count], end, *tail]
    parts = segments(rng, frames)
    if kind == "is cut off":
        number = rng.randrange(len(parts))
        parts = [*parts[:number], parts[number][: rng.randrange(len(parts[number]))]]
    through = pieces[:count]
    pings = [piece.ping for piece in through if piece.ping is not None]
    return FrameExchange(kind, parts, sum(piece.register for piece in through), pings, code, farewell)
