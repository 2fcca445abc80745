"""Captures for tests: real packets, made by scapy, in a file as tcpdump writes it."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapWriter

CLIENT, SERVER = "192.0.2.10", "192.0.2.1"
# When the captures begin, nanoseconds since the epoch.
START_NS = 1_700_000_000_000_000_000


def ms(value: float) -> int:
    """Return the moment `value` milliseconds after the captures begin, nanoseconds since the epoch."""
    return START_NS + round(value * 1_000_000)


@dataclass
class TcpFlow:
    """One TCP connection. `packets` can be reordered, repeated and left out before they are written."""

    client: str = CLIENT
    server: str = SERVER
    port: int = 40000
    sequence: int = 1000
    packets: list[Packet] = field(default_factory=list)
    _next: dict[bool, int] = field(default_factory=dict)

    def send(self, at_ms: float, flags: str, payload: bytes = b"", back: bool = False) -> Packet:
        """Add a segment of the client or, `back`, of the server."""
        source, target = (self.server, self.client) if back else (self.client, self.server)
        near, far = (5060, self.port) if back else (self.port, 5060)
        sequence = self._next.get(back, self.sequence)
        layer = IPv6 if ":" in source else IP
        segment = TCP(flags=flags, seq=sequence, ack=0, sport=near, dport=far)
        # Without addresses scapy would ask the network for them.
        frame = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / layer(src=source, dst=target) / segment
        # Out of bytes again: lengths and checksums are computed.
        packet = Ether(bytes(frame / Raw(payload) if payload else frame))
        packet.time = ms(at_ms) / 1e9
        self._next[back] = (sequence + len(payload) + ("S" in flags) + ("F" in flags)) % 2**32
        self.packets.append(packet)
        return packet

    def open(self, at_ms: float = 0) -> TcpFlow:
        """Add the handshake."""
        self.send(at_ms, "S")
        self.send(at_ms + 0.1, "SA", back=True)
        self.send(at_ms + 0.2, "A")
        return self


def pcap(*packets: Packet) -> bytes:
    """Return the file with `packets`, in that order."""
    file = io.BytesIO()
    with PcapWriter(file, linktype=1, sync=True) as writer:
        writer.write(list(packets))
        return file.getvalue()


def request(method: str = "REGISTER", cseq: int = 1, agent: str = "SIPp", body: bytes = b"") -> bytes:
    """Return a SIP request."""
    return (
        f"{method} sip:example.test SIP/2.0\r\nVia: SIP/2.0/TCP {CLIENT}:40000;branch=z9hG4bK{cseq}\r\n"
        f"From: <sip:alice@example.test>;tag=1\r\nTo: <sip:alice@example.test>\r\nCall-ID: one\r\n"
        f"CSeq: {cseq} {method}\r\nUser-Agent: {agent}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def response(status: str = "200 OK", cseq: int = 1) -> bytes:
    """Return a SIP response."""
    return f"SIP/2.0 {status}\r\nCSeq: {cseq} REGISTER\r\nl: 0\r\n\r\n".encode()


def killed(agent: str = "SIPp") -> bytes:
    """Return the capture of a client that registers and is killed 100 ms after the start."""
    wire = TcpFlow().open()
    wire.send(10, "PA", request(agent=agent))
    wire.send(11, "PA", response("401 Unauthorized"), back=True)
    wire.send(12, "PA", request(cseq=2))
    wire.send(13, "PA", response(cseq=2), back=True)
    wire.send(13.1, "A")
    wire.send(101, "FA")
    wire.send(101.1, "FA", back=True)
    wire.send(101.2, "A")
    return pcap(*wire.packets)
