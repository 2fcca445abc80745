"""The ways in which a client ends its connection."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterator

from tests.probe.drive import PROTOCOLS, Probe, Wire, frame, sip, upgrade

# How long an end is waited for, seconds.
LIMIT = 10.0

Step = Callable[[Probe, str, Wire], Awaitable[None]]


async def register(probe: Probe, protocol: str, wire: Wire, count: int = 1) -> None:
    """Register and wait for the answer."""
    for cseq in range(1, count + 1):
        message = sip("REGISTER", f"m{wire.host}", protocol, wire.host, cseq=cseq)
        await wire.send(frame(message) if protocol in ("ws", "wss") else message)
        await wire.receive_until(b"200 OK")


def orderly(wire: Wire, protocol: str) -> bytes:
    """Return what a client sends before it closes in good order."""
    data = b""
    if protocol in ("ws", "wss"):
        data = frame(b"\x03\xe8", 8)
        if wire.tls:
            wire.tls.write(data)
            data = wire.outgoing.read()
    return data + (wire.notify() if wire.tls else b"")


async def close(probe: Probe, protocol: str, wire: Wire) -> None:
    await register(probe, protocol, wire)
    await wire.raw(orderly(wire, protocol))
    wire.fin()


async def fin(probe: Probe, protocol: str, wire: Wire) -> None:
    await register(probe, protocol, wire)
    wire.fin()


async def reset(probe: Probe, protocol: str, wire: Wire) -> None:
    await register(probe, protocol, wire)
    wire.reset()


async def half_close(probe: Probe, protocol: str, wire: Wire) -> None:
    await register(probe, protocol, wire)
    wire.half_close()
    # Only the end makes this side close, too.
    await probe.ended(wire, LIMIT)
    wire.fin()


async def several(probe: Probe, protocol: str, wire: Wire) -> None:
    await register(probe, protocol, wire, 5)
    wire.fin()


async def pipelined(probe: Probe, protocol: str, wire: Wire) -> None:
    """Send a request and the close at once, without waiting for the answer."""
    message = sip("REGISTER", f"m{wire.host}", protocol, wire.host)
    await wire.send(frame(message) if protocol in ("ws", "wss") else message)
    wire.half_close()
    # An answer to a closed socket would be answered with a reset.
    await probe.ended(wire, LIMIT)
    wire.fin()


async def garbage(probe: Probe, protocol: str, wire: Wire) -> None:
    await register(probe, protocol, wire)
    data = b"garbage\r\n\r\n"
    await wire.send(frame(data) if protocol in ("ws", "wss") else data)
    await probe.ended(wire, LIMIT)
    wire.fin()


async def partial(probe: Probe, protocol: str, wire: Wire) -> None:
    await register(probe, protocol, wire)
    await wire.send(sip("OPTIONS", f"p{wire.host}", protocol)[:100])
    wire.fin()


async def partial_reset(probe: Probe, protocol: str, wire: Wire) -> None:
    await register(probe, protocol, wire)
    await wire.send(sip("OPTIONS", f"p{wire.host}", protocol)[:100])
    wire.reset()


async def oversize(probe: Probe, protocol: str, wire: Wire) -> None:
    """Announce more than the stack takes; it may close before all is sent."""
    await register(probe, protocol, wire)
    message = sip("MESSAGE", f"o{wire.host}", protocol).replace(b"Length: 0", b"Length: 99999999")
    try:
        for _ in range(100):
            await wire.send(frame(message) if protocol in ("ws", "wss") else message)
            message = b"x" * 60000
    except OSError:
        pass
    await probe.ended(wire, LIMIT)
    wire.fin()


async def nothing(probe: Probe, protocol: str, wire: Wire) -> None:
    await asyncio.sleep(0.05)
    wire.fin()


async def nothing_reset(probe: Probe, protocol: str, wire: Wire) -> None:
    await asyncio.sleep(0.05)
    wire.reset()


async def hello_fin(probe: Probe, protocol: str, wire: Wire) -> None:
    await wire.raw(wire.hello()[:60])
    await asyncio.sleep(0.05)
    wire.fin()


async def hello_reset(probe: Probe, protocol: str, wire: Wire) -> None:
    await wire.raw(wire.hello()[:60])
    await asyncio.sleep(0.05)
    wire.reset()


async def plain(probe: Probe, protocol: str, wire: Wire) -> None:
    """Speak SIP where TLS or HTTP is expected, but not before tport_accept(), which would refuse the connection."""
    await asyncio.sleep(0.05)
    await wire.raw(sip("REGISTER", f"m{wire.host}", "tcp", wire.host))
    await probe.ended(wire, LIMIT)
    wire.fin()


async def record(probe: Probe, protocol: str, wire: Wire) -> None:
    """Send a TLS record that can't be decrypted."""
    await register(probe, protocol, wire)
    await wire.raw(b"\x17\x03\x03\x00\x40" + b"x" * 64)
    await probe.ended(wire, LIMIT)
    wire.fin()


async def upgrade_fin(probe: Probe, protocol: str, wire: Wire) -> None:
    if protocol == "wss":
        await wire.handshake()
    await wire.send(upgrade()[:30])
    await asyncio.sleep(0.05)
    wire.fin()


async def upgrade_reset(probe: Probe, protocol: str, wire: Wire) -> None:
    if protocol == "wss":
        await wire.handshake()
    await wire.send(upgrade()[:30])
    await asyncio.sleep(0.05)
    wire.reset()


async def opcode(probe: Probe, protocol: str, wire: Wire) -> None:
    await register(probe, protocol, wire)
    await wire.send(frame(b"what?", 3))
    await probe.ended(wire, LIMIT)
    wire.fin()


async def frame_fin(probe: Probe, protocol: str, wire: Wire) -> None:
    await register(probe, protocol, wire)
    await wire.send(frame(sip("OPTIONS", f"p{wire.host}", protocol))[:100])
    wire.fin()


@contextlib.contextmanager
def busy(probe: Probe) -> Iterator[None]:
    """Have the probe find all at once what comes meanwhile."""
    probe.process.send_signal(signal.SIGSTOP)
    try:
        yield
        # The loopback interface delivers in the background, too.
        time.sleep(0.1)
    finally:
        probe.process.send_signal(signal.SIGCONT)


def last_words(wire: Wire, protocol: str, cseq: int = 2) -> bytes:
    message = sip("REGISTER", f"m{wire.host}", protocol, wire.host, cseq=cseq)
    return wire.seal(frame(message) if protocol in WEB else message)


async def last_reset(probe: Probe, protocol: str, wire: Wire, before: bytes) -> None:
    """Send `before` and, in a frame or record of its own, a request, and reset."""
    await register(probe, protocol, wire)
    with busy(probe):
        await wire.send(before)
        await wire.raw(last_words(wire, protocol))
        time.sleep(0.05)
        wire.reset()


async def ping_reset(probe: Probe, protocol: str, wire: Wire) -> None:
    """Send a ping, whose answer fails."""
    await last_reset(probe, protocol, wire, frame(b"\r\n\r\n") if protocol in WEB else b"\r\n\r\n")


async def burst_reset(probe: Probe, protocol: str, wire: Wire) -> None:
    """Send more than is read at once."""
    ask = sip("OPTIONS", f"p{wire.host}", protocol, wire.host)
    await last_reset(probe, protocol, wire, (frame(ask) if protocol in WEB else ask) * 250)


async def crlfs_reset(probe: Probe, protocol: str, wire: Wire) -> None:
    """Send more pings of RFC 5626 than are read at once."""
    await last_reset(probe, protocol, wire, frame(b"\r\n\r\n") * 1200)


async def pings_reset(probe: Probe, protocol: str, wire: Wire) -> None:
    """Send more PINGs than are answered at once."""
    await last_reset(probe, protocol, wire, frame(b"x" * 100, 9) * 400)


async def hello_words_reset(probe: Probe, protocol: str, wire: Wire) -> None:
    """Send the end of the handshake and a request at once."""
    await wire.handshake(last=False)
    with busy(probe):
        end = wire.outgoing.read()
        if protocol in WEB:
            end += wire.seal(upgrade())
        await wire.raw(end + last_words(wire, protocol, 1))
        time.sleep(0.05)
        wire.reset()


SECURE, WEB = ("tls", "wss"), ("ws", "wss")
# Name, protocols, does the client shake hands before, what it does then.
CASES: tuple[tuple[str, tuple[str, ...], bool, Step], ...] = (
    ("close", PROTOCOLS, True, close),
    ("fin", PROTOCOLS, True, fin),
    ("reset", PROTOCOLS, True, reset),
    ("half close", PROTOCOLS, True, half_close),
    ("several", PROTOCOLS, True, several),
    ("pipelined", PROTOCOLS, True, pipelined),
    ("garbage", PROTOCOLS, True, garbage),
    ("partial", ("tcp", "tls"), True, partial),
    ("partial reset", ("tcp", "tls"), True, partial_reset),
    ("oversize", PROTOCOLS, True, oversize),
    ("nothing", PROTOCOLS, False, nothing),
    ("nothing reset", PROTOCOLS, False, nothing_reset),
    ("hello fin", SECURE, False, hello_fin),
    ("hello reset", SECURE, False, hello_reset),
    ("plain", ("tls", "ws", "wss"), False, plain),
    ("record", SECURE, True, record),
    ("upgrade fin", WEB, False, upgrade_fin),
    ("upgrade reset", WEB, False, upgrade_reset),
    ("opcode", WEB, True, opcode),
    ("frame fin", WEB, True, frame_fin),
    ("ping reset", PROTOCOLS, True, ping_reset),
    ("burst reset", PROTOCOLS, True, burst_reset),
    ("pings reset", WEB, True, pings_reset),
    ("crlfs reset", WEB, True, crlfs_reset),
    ("hello words reset", SECURE, False, hello_words_reset),
)
# Cases in which nobody did anything wrong.
ORDERLY = ("close",)
