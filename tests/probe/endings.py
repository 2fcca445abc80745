"""The ways in which a client ends its connection."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterator

from tests.probe.drive import PROTOCOLS, Probe, ProbeConnection, frame, sip, upgrade

# How long an end is waited for, seconds.
LIMIT = 10.0

Step = Callable[[Probe, str, ProbeConnection], Awaitable[None]]


async def register(probe: Probe, protocol: str, connection: ProbeConnection, count: int = 1) -> None:
    """Register and wait for the answer."""
    for cseq in range(1, count + 1):
        message = sip("REGISTER", f"m{connection.host}", protocol, connection.host, cseq=cseq)
        await connection.send(frame(message) if protocol in ("ws", "wss") else message)
        await connection.receive_until(b"200 OK")


def orderly(connection: ProbeConnection, protocol: str) -> bytes:
    """Return what a client sends before it closes in good order."""
    data = b""
    if protocol in ("ws", "wss"):
        data = frame(b"\x03\xe8", 8)
        if connection.tls:
            connection.tls.write(data)
            data = connection.outgoing.read()
    return data + (connection.notify() if connection.tls else b"")


async def close(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await register(probe, protocol, connection)
    await connection.raw(orderly(connection, protocol))
    connection.fin()


async def fin(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await register(probe, protocol, connection)
    connection.fin()


async def reset(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await register(probe, protocol, connection)
    connection.reset()


async def half_close(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await register(probe, protocol, connection)
    connection.half_close()
    # Only the end makes this side close, too.
    await probe.ended(connection, LIMIT)
    connection.fin()


async def several(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await register(probe, protocol, connection, 5)
    connection.fin()


async def pipelined(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    """Send a request and the close at once, without waiting for the answer."""
    message = sip("REGISTER", f"m{connection.host}", protocol, connection.host)
    await connection.send(frame(message) if protocol in ("ws", "wss") else message)
    connection.half_close()
    # An answer to a closed socket would be answered with a reset.
    await probe.ended(connection, LIMIT)
    connection.fin()


async def garbage(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await register(probe, protocol, connection)
    data = b"garbage\r\n\r\n"
    await connection.send(frame(data) if protocol in ("ws", "wss") else data)
    await probe.ended(connection, LIMIT)
    connection.fin()


async def partial(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await register(probe, protocol, connection)
    await connection.send(sip("OPTIONS", f"p{connection.host}", protocol)[:100])
    connection.fin()


async def partial_reset(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await register(probe, protocol, connection)
    await connection.send(sip("OPTIONS", f"p{connection.host}", protocol)[:100])
    connection.reset()


async def oversize(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    """Announce more than the stack takes; it may close before all is sent."""
    await register(probe, protocol, connection)
    message = sip("MESSAGE", f"o{connection.host}", protocol).replace(b"Length: 0", b"Length: 99999999")
    try:
        for _ in range(100):
            await connection.send(frame(message) if protocol in ("ws", "wss") else message)
            message = b"x" * 60000
    except OSError:
        pass
    await probe.ended(connection, LIMIT)
    connection.fin()


async def nothing(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await asyncio.sleep(0.05)
    connection.fin()


async def nothing_reset(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await asyncio.sleep(0.05)
    connection.reset()


async def hello_fin(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await connection.raw(connection.hello()[:60])
    await asyncio.sleep(0.05)
    connection.fin()


async def hello_reset(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await connection.raw(connection.hello()[:60])
    await asyncio.sleep(0.05)
    connection.reset()


async def plain(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    """Speak SIP where TLS or HTTP is expected, but not before tport_accept(), which would refuse the connection."""
    await asyncio.sleep(0.05)
    await connection.raw(sip("REGISTER", f"m{connection.host}", "tcp", connection.host))
    await probe.ended(connection, LIMIT)
    connection.fin()


async def record(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    """Send a TLS record that can't be decrypted."""
    await register(probe, protocol, connection)
    await connection.raw(b"\x17\x03\x03\x00\x40" + b"x" * 64)
    await probe.ended(connection, LIMIT)
    connection.fin()


async def upgrade_fin(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    if protocol == "wss":
        await connection.handshake()
    await connection.send(upgrade()[:30])
    await asyncio.sleep(0.05)
    connection.fin()


async def upgrade_reset(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    if protocol == "wss":
        await connection.handshake()
    await connection.send(upgrade()[:30])
    await asyncio.sleep(0.05)
    connection.reset()


async def opcode(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await register(probe, protocol, connection)
    await connection.send(frame(b"what?", 3))
    await probe.ended(connection, LIMIT)
    connection.fin()


async def frame_fin(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    await register(probe, protocol, connection)
    await connection.send(frame(sip("OPTIONS", f"p{connection.host}", protocol))[:100])
    connection.fin()


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


def last_words(connection: ProbeConnection, protocol: str, cseq: int = 2) -> bytes:
    message = sip("REGISTER", f"m{connection.host}", protocol, connection.host, cseq=cseq)
    return connection.seal(frame(message) if protocol in WEB else message)


async def last_reset(probe: Probe, protocol: str, connection: ProbeConnection, before: bytes) -> None:
    """Send `before` and, in a frame or record of its own, a request, and reset."""
    await register(probe, protocol, connection)
    with busy(probe):
        await connection.send(before)
        await connection.raw(last_words(connection, protocol))
        time.sleep(0.05)
        connection.reset()


async def ping_reset(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    """Send a ping, whose answer fails."""
    await last_reset(probe, protocol, connection, frame(b"\r\n\r\n") if protocol in WEB else b"\r\n\r\n")


async def burst_reset(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    """Send more than is read at once."""
    ask = sip("OPTIONS", f"p{connection.host}", protocol, connection.host)
    await last_reset(probe, protocol, connection, (frame(ask) if protocol in WEB else ask) * 250)


async def crlfs_reset(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    """Send more pings of RFC 5626 than are read at once."""
    await last_reset(probe, protocol, connection, frame(b"\r\n\r\n") * 1200)


async def pings_reset(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    """Send more PINGs than are answered at once."""
    await last_reset(probe, protocol, connection, frame(b"x" * 100, 9) * 400)


async def hello_words_reset(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
    """Send the end of the handshake and a request at once."""
    await connection.handshake(last=False)
    with busy(probe):
        end = connection.outgoing.read()
        if protocol in WEB:
            end += connection.seal(upgrade())
        await connection.raw(end + last_words(connection, protocol, 1))
        time.sleep(0.05)
        connection.reset()


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
