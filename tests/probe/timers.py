"""A stack that waits for what does not come, or comes to its timers late."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from typing import Any

from tests.probe.drive import PROTOCOLS, Probe, ProbeConnection, frame, sip, source, upgrade
from tests.probe.endings import LIMIT, last_words, register
from tests.probe.results import close_all, closed, finish, numbers, observe

FAR, NEAR = "10.255.255.1", "10.255.255.2"
# How many seconds a connection has for its first message in the case of that name.
DRIP = 4
ANSWERING = ("tls late answer", "ws late answer")


async def pong(tool: str) -> dict[str, Any]:
    """Leave the stack's PING without a PONG."""
    probe = await Probe.start(tool, "-p", "300", level=1)

    async def keep_quiet(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
        await register(probe, protocol, connection)
        await probe.ended(connection, 5)
        connection.fin()

    results: dict[str, Any] = {}
    await finish(probe, results, {"tcp pong": await observe(probe, "tcp", True, keep_quiet)})
    return results


async def be_late(probe: Probe) -> None:
    """Have the probe be busy for as long as its option -l says, and begin now."""
    probe.process.send_signal(signal.SIGUSR1)
    await asyncio.sleep(0.1)


async def late(tool: str) -> dict[str, Any]:
    """Send what a stack waits for, or last words, while it is busy, and comes to its timers first."""
    probe = await Probe.start(tool, "-p", "300", "-l", "800", level=1)

    async def pong_fin(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
        await register(probe, protocol, connection)
        await connection.receive_until(b"\r\n\r\n")
        await be_late(probe)
        await connection.raw(b"\r\n")
        # The next PING tells that the connection outlived it.
        await connection.receive_until(b"\r\n\r\n")
        connection.fin()

    async def words_reset(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
        await register(probe, protocol, connection)
        await be_late(probe)
        await connection.raw(last_words(connection, protocol))
        await asyncio.sleep(0.05)
        connection.reset()

    seen = {
        "tcp late pong": await observe(probe, "tcp", True, pong_fin),
        "tcp last words reset": await observe(probe, "tcp", True, words_reset),
    }
    results: dict[str, Any] = {}
    await finish(probe, results, seen)
    return results


async def later(tool: str) -> dict[str, Any]:
    """Send the rest of a frame or of a handshake, or a first message, to a stack that is busy for longer than it waits.

    The case "drip" never ends its message, and sends without a break. Who begins
    a handshake, "late answer", can go on only when the stack has answered.
    """
    probe = await Probe.start(tool, "-m", "9", "-l", "11000", level=1)
    others = [await ProbeConnection.open_as("tcp", probe.ports["tcp"], source(next(numbers))) for _ in range(8)]
    for connection in others:
        await register(probe, "tcp", connection)
    opened: dict[str, ProbeConnection] = {}
    rests: dict[str, bytes] = {}
    for name in ("ws late rest", "wss late rest", "tcp late first", "tls late first", "tls late hello", "tcp drip"):
        protocol, _, case = name.partition(" ")
        port, address = probe.ports[protocol], source(next(numbers))
        connection = await (
            ProbeConnection.open(port, address)
            if case == "late hello"
            else ProbeConnection.open_as(protocol, port, address)
        )
        if case == "late hello":
            await connection.handshake(last=False)
            rest = connection.outgoing.read()
            rests[name] = rest + last_words(connection, protocol, 1)
        elif case == "late first":
            rests[name] = last_words(connection, protocol, 1)
        elif case == "drip":
            message = sip("MESSAGE", f"d{connection.host}", protocol, connection.host)
            rests[name] = message.replace(b"Length: 0", b"Length: 9999") + b"x" * 9000
        else:
            await register(probe, protocol, connection)
            rest = last_words(connection, protocol)
            await connection.raw(rest[:100])
            rests[name] = rest[100:]
        opened[name] = connection

    async def answer(protocol: str, connection: ProbeConnection) -> None:
        # So that the answer comes within the time that the client waits for it.
        await asyncio.sleep(3)
        if protocol == "tls":
            await connection.handshake()
        else:
            await connection.send(upgrade())
            await connection.receive_until(b"\r\n\r\n")
        await register(probe, protocol, connection)

    answering = {
        name: await ProbeConnection.open(probe.ports[name[:3].strip()], source(next(numbers))) for name in ANSWERING
    }
    await asyncio.sleep(0.1)
    await be_late(probe)
    answers = [asyncio.create_task(answer(name[:3].strip(), connection)) for name, connection in answering.items()]
    # A few are read before the timers nevertheless: those that the kernel tells first.
    for connection in others:
        await connection.raw(b"\r\n\r\n")
    drip = opened["tcp drip"]
    for name, connection in opened.items():
        if connection is not drip:
            await connection.raw(rests[name])
    with contextlib.suppress(OSError):
        for byte in rests["tcp drip"]:
            await drip.raw(bytes([byte]))
            await asyncio.sleep(0.0005)
            if drip.peer in probe.ends:
                break
    await probe.ended(drip, 2 * LIMIT)
    await asyncio.gather(*answers, return_exceptions=True)
    opened |= answering
    ended = [name for name, connection in opened.items() if connection.peer in probe.ends]
    opened |= {f"tcp other {number}": connection for number, connection in enumerate(others)}
    results: dict[str, Any] = {"ended": ended}
    await close_all(probe, results, opened)
    return results


async def drip(tool: str) -> dict[str, Any]:
    """Send to a stack that is not late, without a break, what is no message; tell how long each is let."""
    probe = await Probe.start(tool, "-m", str(DRIP), level=1)
    seen, held = {}, {}

    async def send(number: int) -> None:
        await asyncio.sleep(number * 0.5)
        begun = time.monotonic()
        protocol, part, many = ("ws", frame(b"", 10), 2000) if number % 2 else ("tcp", b"x", 1)
        connection = await ProbeConnection.open_as(protocol, probe.ports[protocol], source(next(numbers)))
        with contextlib.suppress(OSError):
            if protocol == "tcp":
                message = sip("MESSAGE", f"d{connection.host}", protocol, connection.host)
                await connection.raw(message.replace(b"Length: 0", b"Length: 99999"))
            while connection.peer not in probe.ends:
                # When its time is over there must be something to read at every moment.
                now = -0.2 < time.monotonic() - begun - DRIP < 0.6
                await connection.raw(part * many if now else part)
                await asyncio.sleep(0 if now else 0.01)
        await probe.ended(connection, LIMIT)
        held[f"{protocol} drip {number}"] = time.monotonic() - begun
        seen[f"{protocol} drip {number}"] = closed(probe, protocol, connection)

    await asyncio.gather(*map(send, range(12)))
    results: dict[str, Any] = {"limit": DRIP, "held": held}
    await finish(probe, results, seen)
    return results


async def backlog(tool: str) -> dict[str, Any]:
    """Let a stack that is late need longer for what is there than it waits for one connection."""
    probe = await Probe.start(tool, "-p", "4000", "-l", "5000", "-b", "100", level=1)
    opened = {}
    for number in range(24):
        connection = await ProbeConnection.open_as("tcp", probe.ports["tcp"], source(next(numbers)))
        await register(probe, "tcp", connection)
        opened[f"tcp backlog {number}"] = connection
    for connection in opened.values():
        await connection.receive_until(b"\r\n\r\n")
    await be_late(probe)
    for connection in opened.values():
        await connection.raw(b"\r\n" + last_words(connection, "tcp"))
    for connection in opened.values():
        with contextlib.suppress(ConnectionError):
            await connection.receive_until(b"200 OK")
    ended = [name for name, connection in opened.items() if connection.peer in probe.ends]
    results: dict[str, Any] = {"ended": ended}
    await close_all(probe, results, opened)
    return results


async def silence(tool: str) -> dict[str, Any]:
    """Take the client's address off the machine: no packet reaches it, and none of its own leaves."""
    seconds = 4
    for address in (FAR, NEAR):
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    probe = await Probe.start(tool, "-a", NEAR, "-d", str(seconds), level=1)
    connections = {
        protocol: await ProbeConnection.open_as(protocol, probe.ports[protocol], FAR, NEAR) for protocol in PROTOCOLS
    }
    for protocol, connection in connections.items():
        await register(probe, protocol, connection)
    subprocess.run(["ip", "address", "del", f"{FAR}/32", "dev", "lo"], check=True)
    gone = time.time()
    seen = {}
    for protocol, connection in connections.items():
        await probe.ended(connection, seconds + 5)
        seen[f"{protocol} silence"] = {
            "connection": connection,
            "closed": gone,
            "error": "",
            "port": probe.ports[protocol],
        }
    results: dict[str, Any] = {"seconds": seconds}
    await finish(probe, results, seen, NEAR)
    for connection in connections.values():
        connection.sock.close()
    return results
