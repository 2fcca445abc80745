"""The packets of a capture: TCP segments, and the SIP, TLS and WebSocket messages in them."""

from __future__ import annotations

import io
import ipaddress
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from scapy.error import Scapy_Exception
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.utils import PcapReader
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from scripts.errors import ToolkitError
from scripts.freeswitch.capture import Capture

# It says on import what it does not find on this machine; no packet is sent here.
logging.getLogger("scapy").setLevel(logging.CRITICAL)

# Longer messages are not put together: no SIP message of a test is that long.
LONGEST = 1 << 20
START_LINE = re.compile(rb"(?:([A-Z]+) \S+ SIP/2\.0|SIP/2\.0 (\d{3}) ?([^\r\n]*))\r\n")
CSEQ = re.compile(rb"^CSeq[ \t]*:[ \t]*(\d+)[ \t]+([A-Z]+)", re.IGNORECASE | re.MULTILINE)
CONTENT_LENGTH = re.compile(rb"^(?:Content-Length|l)[ \t]*:[ \t]*(\d{1,9})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
TLS_RECORDS = {20: "TLS change cipher spec", 21: "TLS alert", 22: "TLS handshake", 23: "TLS application data"}
FLAGS = {"S": "SYN", "F": "FIN", "R": "RST", "P": "PSH", "A": "ACK"}


@dataclass(frozen=True)
class Message:
    """Something whole in the stream: its name for the diagram, and its text."""

    label: str
    text: str = ""


@dataclass(frozen=True)
class Packet:
    """One TCP segment. `source` and `target` are `address:port`, `length` counts bytes of payload.

    `messages` are those that it completes; `again` says that all of its
    payload had come before. `missing` counts the bytes that its sender had
    sent before it and that are not captured, or not yet.
    """

    when_ns: int
    from_client: bool
    source: str
    target: str
    flags: str
    length: int
    messages: Sequence[Message] = ()
    again: bool = False
    missing: int = 0

    @property
    def client(self) -> str:
        """The client's end of the connection."""
        return self.source if self.from_client else self.target

    @property
    def ends(self) -> bool:
        """Whether it is a FIN or an RST."""
        return "FIN" in self.flags or "RST" in self.flags


def has_end(capture: Capture) -> bool:
    """Whether a client's FIN or RST is captured, after the kill if there was one; False if nothing can be read."""
    try:
        return any(ends(dissect(capture), capture.killed_ns or 0))
    except ToolkitError:
        return False


def ends(packets: Iterable[Packet], since_ns: int) -> Iterator[int]:
    """Yield when the clients' FIN and RST arrived, from `since_ns` on."""
    return (p.when_ns for p in packets if p.from_client and p.ends and p.when_ns >= since_ns)


def dissect(capture: Capture) -> Iterator[Packet]:
    """Yield the TCP segments between clients and the server, as captured, with the messages in them.

    Nothing of what is in the packets makes it fail. Raises ToolkitError if
    the file is none of tcpdump's; a packet that was cut off at the end of it
    does not count.
    """
    streams: dict[tuple[str, str], _Stream] = {}
    for when_ns, source, target, segment in _segments(capture.pcap):
        if not capture.began_ns <= when_ns <= capture.ended_ns or capture.server not in (source, target):
            continue
        from_client = target == capture.server
        if capture.client and capture.client != (source if from_client else target):
            continue
        ends = _end(source, segment.sport), _end(target, segment.dport)
        if "S" in segment.flags or ends not in streams:
            streams[ends] = _Stream(capture.transport, segment.seq + ("S" in segment.flags))
        payload = _payload(segment)
        fresh, messages = streams[ends].feed(segment.seq, payload, "F" in segment.flags)
        missing = streams[ends].missing(segment.seq)
        again = bool(payload) and not fresh
        flags = " ".join(word for letter, word in FLAGS.items() if letter in segment.flags)
        yield Packet(when_ns, from_client, *ends, flags, len(payload), messages, again, missing)


def _segments(pcap: bytes) -> Iterator[tuple[int, str, str, Any]]:
    """Yield time, addresses and TCP segment of each packet of the file that has them."""
    try:
        with PcapReader(io.BytesIO(pcap)) as reader:  # type: ignore[arg-type]
            for packet in reader:
                layer, segment = packet.getlayer(IP) or packet.getlayer(IPv6), packet.getlayer(TCP)
                if layer is not None and segment is not None:
                    # Decimal: a float has no room for nanoseconds since the epoch.
                    yield int(packet.time * 1_000_000_000), _address(layer.src), _address(layer.dst), segment
    except (Scapy_Exception, EOFError, ValueError) as error:
        raise ToolkitError(f"the capture can't be read: {error}") from None


def _payload(segment: Any) -> bytes:
    """Return what the segment carries; what Ethernet pads short frames with is none of it."""
    layer = segment.underlayer
    length = layer.len - 4 * layer.ihl if isinstance(layer, IP) else layer.plen
    return bytes(segment)[4 * (segment.dataofs or 5) : length]


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text))


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class _Decoder(Protocol):
    """Cuts one direction of a connection into messages."""

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take what comes next and yield what is complete with it."""


class _Sip:
    """SIP over a stream (RFC 3261, 18.3): the Content-Length tells where a message ends."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        self.rest += data
        while self.rest:
            if self.rest.startswith(b"\r\n"):
                # RFC 5626, 4.4.1: a ping is two of them, a pong one.
                stripped = self.rest.lstrip(b"\r\n")
                yield Message("keep-alive")
                self.rest = stripped
                continue
            head, separator, _ = self.rest.partition(b"\r\n\r\n")
            if not separator:
                # The start of a method or of SIP/2.0 may go on in the next segment.
                if len(self.rest) > LONGEST or not self.rest[:1].isupper():
                    yield self._rubbish()
                return
            if not START_LINE.match(head + b"\r\n"):
                yield self._rubbish()
                return
            found = CONTENT_LENGTH.search(head)
            length = len(head) + 4 + (int(found[1]) if found else 0)
            if length > LONGEST:
                yield self._rubbish()
                return
            if len(self.rest) < length:
                return
            message, self.rest = self.rest[:length], self.rest[length:]
            yield sip(message)

    def _rubbish(self) -> Message:
        data, self.rest = self.rest, b""
        return Message(f"{len(data)} bytes, no SIP", _text(data[:2000]))


class _Tls:
    """TLS records: what is in them is nobody else's business."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        self.rest += data
        while len(self.rest) >= 5:
            kind, length = self.rest[0], int.from_bytes(self.rest[3:5], "big")
            if kind not in TLS_RECORDS:
                size, self.rest = len(self.rest), b""
                yield Message(f"{size} bytes, no TLS")
                return
            if len(self.rest) < 5 + length:
                return
            self.rest = self.rest[5 + length :]
            yield Message(f"{TLS_RECORDS[kind]}, {length}")


class _WebSocket:
    """SIP over WebSocket (RFC 7118): the handshake, then one message a frame."""

    def __init__(self) -> None:
        self.rest = b""
        self.frames: FrameProtocol | None = None
        self.text = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        if self.frames is None:
            self.rest += data
            head, separator, data = self.rest.partition(b"\r\n\r\n")
            if not separator:
                return
            line = _text(head.split(b"\r\n")[0])
            request = line.startswith("GET ")
            label = line.removesuffix(" HTTP/1.1") if request else line.removeprefix("HTTP/1.1 ").rstrip()
            yield Message(label, _text(head))
            # A client masks its frames (RFC 6455, 5.3), and this end reads them as a server does.
            self.frames = FrameProtocol(client=not request, extensions=[])
        self.frames.receive_bytes(data)
        try:
            for frame in self.frames.received_frames():
                yield from self._frame(frame.opcode, frame.payload, frame.message_finished)
        except (ParseFailed, UnicodeDecodeError) as error:
            yield Message("broken frame", str(error))
            self.frames = FrameProtocol(client=self.frames.client, extensions=[])

    def _frame(self, opcode: Opcode, payload: object, finished: bool) -> Iterator[Message]:
        if opcode is Opcode.CLOSE:
            code = payload[0] if isinstance(payload, tuple) else ""
            yield Message(f"WebSocket close {int(code) if code else ''}".strip())
        elif opcode in (Opcode.PING, Opcode.PONG):
            yield Message(f"WebSocket {opcode.name.lower()}")
        else:
            self.text += payload.encode() if isinstance(payload, str) else bytes(payload)  # type: ignore[call-overload]
            if finished:
                text, self.text = self.text, b""
                yield sip(text)


DECODERS: Mapping[str, type[_Decoder]] = {"tcp": _Sip, "tls": _Tls, "ws": _WebSocket, "wss": _Tls}


@dataclass
class _Stream:
    """One direction of a connection: segments in the order of the sequence numbers."""

    transport: str
    next: int
    early: dict[int, bytes] = field(default_factory=dict)
    fin: int | None = None

    def __post_init__(self) -> None:
        self.decoder = DECODERS[self.transport]()

    def feed(self, sequence: int, payload: bytes, fin: bool) -> tuple[bool, list[Message]]:
        """Take a segment; return whether it brings anything new, and the messages that are complete now."""
        if fin:
            self.fin = (sequence + len(payload)) % 2**32
        if self._ahead(sequence) + len(payload) <= 0:
            return False, []
        self.early[sequence] = payload
        messages: list[Message] = []
        # A segment that came too early waits here for those before it.
        for start in sorted(self.early, key=self._ahead):
            ahead = self._ahead(start)
            if ahead > 0:
                break
            data = self.early.pop(start)[-ahead:]
            self.next = (self.next + len(data)) % 2**32
            messages += self.decoder.feed(data)
        return True, messages

    def missing(self, sequence: int) -> int:
        """Return how many bytes before `sequence` have not come."""
        ahead = self._ahead(sequence)
        here = sum(len(payload) for start, payload in self.early.items() if self._ahead(start) < ahead)
        # A FIN counts as a byte.
        return max(0, ahead - here - (self.fin is not None and self._ahead(self.fin) < ahead))

    def _ahead(self, sequence: int) -> int:
        """Return how many bytes `sequence` is ahead of what comes next, in numbers that wrap."""
        return (sequence - self.next + 2**31) % 2**32 - 2**31


def sip(message: bytes) -> Message:
    """Return a SIP message with its method, or its status, and its CSeq as the name."""
    start = START_LINE.match(message)
    if not start:
        return Message(f"{len(message)} bytes, no SIP", _text(message))
    method, status, phrase = start.groups()
    cseq = CSEQ.search(message)
    if method:
        label = _text(method) + (f" ({_text(cseq[1])})" if cseq else "")
    else:
        label = f"{_text(status)} {_text(phrase)}" + (f" ({_text(cseq[1])})" if cseq else "")
    return Message(label, _text(message))


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
