"""Ends connections in every way there is and prints, as JSON, what the probe reported.

    python3 -m tests.probe.matrix --tool asan

Runs inside the container of the probe. What is expected is in tests/probe/test_probe.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.probe.drive import ADDRESS, END, PROTOCOLS, REPORT, Connection, Probe, Wire, frame, sip, source, upgrade

FAR, NEAR = "10.255.255.1", "10.255.255.2"
LIMIT = 10.0
# How many seconds a connection has for its first message in the case of that name.
DRIP = 4
ANSWERING = ("tls late answer", "ws late answer")
REKEY = "/probe/rekey"
numbers = iter(range(1, 1 << 20))

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


async def observe(probe: Probe, protocol: str, shake: bool, step: Step, wait: float = 3) -> dict[str, Any]:
    """Run one case and return what came of it."""
    port, address = probe.ports[protocol], source(next(numbers))
    wire = await (Wire.open_as(protocol, port, address) if shake else Wire.open(port, address))
    error = ""
    try:
        await step(probe, protocol, wire)
    except (OSError, TimeoutError) as caught:
        error = f"{type(caught).__name__}: {caught}"
        wire.reset()
    closed = time.time()
    await probe.ended(wire, wait)
    return {"wire": wire, "closed": closed, "error": error, "port": port}


def account(probe: Probe, seen: dict[str, Any]) -> dict[str, Any]:
    """Return ends, reports and registrations of a connection, once the second report had its time."""
    wire: Connection = seen["wire"]
    ends, reports = probe.ends.get(wire.peer, []), probe.reports.get(wire.peer, [])
    registers = [
        event.data["id"] for event in probe.events
        if event.data["event"] == "nua_i_register" and event.data["call_id"] == f"m{wire.host}@probe.invalid"
    ]  # fmt: skip
    return {
        "ends": [event.data for event in ends],
        "reports": [event.data for event in reports],
        "own_port": str(seen["port"]),
        "late": round(ends[0].at - seen["closed"], 3) if ends else None,
        "registers": registers,
        "error": seen["error"],
    }


async def finish(
    probe: Probe, results: dict[str, Any], seen: dict[str, dict[str, Any]], address: str = ADDRESS
) -> None:
    """End the probe and put into `results` what it told about the cases `seen`, and what else."""
    await asyncio.sleep(1)
    results["cases"] = {name: account(probe, item) for name, item in seen.items()}
    known = {item["wire"].peer for item in seen.values()}
    results["others"] = [
        event.data for found in (probe.ends, probe.reports) for peer in found.keys() - known for event in found[peer]
    ]
    # Connections that are open when the stack is shut down must not leak, either.
    opened = [await Wire.open_as(protocol, probe.ports[protocol], address, address) for protocol in PROTOCOLS]
    await register(probe, "tcp", opened[0])
    stopping = asyncio.create_task(probe.stop())
    # Without the peer's close_notify, sofia-sip v1.13.10 to v1.13.16 waits until it is gone.
    await asyncio.wait([stopping], timeout=LIMIT)
    for wire in opened:
        wire.reset()
    results["status"] = await stopping
    results["stderr"] = probe.stderr[-20000:]
    results["complaints"] = probe.complaints()[:100]


def closed(probe: Probe, protocol: str, wire: Connection) -> dict[str, Any]:
    """Return a case that has just been ended, for `finish`."""
    return {"wire": wire, "closed": time.time(), "error": "", "port": probe.ports[protocol]}


async def close_all(probe: Probe, results: dict[str, Any], opened: dict[str, Wire]) -> None:
    """Close connections, one after the other, by name of their case, and `finish`."""
    seen = {}
    for name, wire in opened.items():
        wire.fin()
        await probe.ended(wire, 5)
        seen[name] = closed(probe, name.partition(" ")[0], wire)
    await finish(probe, results, seen)


async def every(tool: str, level: int, *arguments: str, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run all cases, one after the other: what comes late belongs to its own case."""
    probe = await Probe.start(tool, *arguments, level=level)
    seen = {}
    for name, protocols, shake, step in CASES:
        for protocol in protocols:
            if not only or name in only:
                seen[f"{protocol} {name}"] = await observe(probe, protocol, shake, step)
    results: dict[str, Any] = {}
    await finish(probe, results, seen)
    return results


async def starved(tool: str) -> dict[str, Any]:
    """Let accept() fail for want of file descriptors: an error of the listening socket."""
    probe = await Probe.start(tool, level=3)
    limit = resource.prlimit(probe.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(probe.process.pid, resource.RLIMIT_NOFILE, (24, limit[1]))
    wires = [await Wire.open(probe.ports["tcp"], source(next(numbers))) for _ in range(40)]
    await asyncio.sleep(0.5)
    early = sum(event.data["event"] in (END, REPORT) for event in probe.events)
    failed = "Too many open files" in probe.log.read_text(errors="replace")
    resource.prlimit(probe.process.pid, resource.RLIMIT_NOFILE, limit)
    await asyncio.sleep(0.5)
    for wire in wires:
        wire.fin()
    seen = {f"tcp starved {number}": closed(probe, "tcp", wire) for number, wire in enumerate(wires)}
    results: dict[str, Any] = {"early": early, "failed": failed}
    await finish(probe, results, seen)
    return results


async def udp(tool: str) -> dict[str, Any]:
    """Register over UDP and be gone when the answer comes, which is an error of the UDP socket."""
    probe = await Probe.start(tool, "-u", level=7)
    for number in range(5):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.bind((ADDRESS, 0))
        client.sendto(sip("REGISTER", f"u{number}", "udp", ADDRESS, client.getsockname()[1]),
                      (ADDRESS, int(probe.events[0].data["udp"])))  # fmt: skip
        client.close()
        await asyncio.sleep(0.1)
    registers = [event.data["id"] for event in probe.events if event.data["event"] == "nua_i_register"]
    failed = "Connection refused" in probe.log.read_text(errors="replace")
    results: dict[str, Any] = {"registers": registers, "failed": failed}
    await finish(probe, results, {})
    return results


async def pong(tool: str) -> dict[str, Any]:
    """Leave the stack's PING without a PONG."""
    probe = await Probe.start(tool, "-p", "300", level=1)

    async def keep_quiet(probe: Probe, protocol: str, wire: Wire) -> None:
        await register(probe, protocol, wire)
        await probe.ended(wire, 5)
        wire.fin()

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

    async def pong_fin(probe: Probe, protocol: str, wire: Wire) -> None:
        await register(probe, protocol, wire)
        await wire.receive_until(b"\r\n\r\n")
        await be_late(probe)
        await wire.raw(b"\r\n")
        # The next PING tells that the connection outlived it.
        await wire.receive_until(b"\r\n\r\n")
        wire.fin()

    async def words_reset(probe: Probe, protocol: str, wire: Wire) -> None:
        await register(probe, protocol, wire)
        await be_late(probe)
        await wire.raw(last_words(wire, protocol))
        await asyncio.sleep(0.05)
        wire.reset()

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
    others = [await Wire.open_as("tcp", probe.ports["tcp"], source(next(numbers))) for _ in range(8)]
    for wire in others:
        await register(probe, "tcp", wire)
    opened: dict[str, Wire] = {}
    rests: dict[str, bytes] = {}
    for name in ("ws late rest", "wss late rest", "tcp late first", "tls late first", "tls late hello", "tcp drip"):
        protocol, _, case = name.partition(" ")
        port, address = probe.ports[protocol], source(next(numbers))
        wire = await (Wire.open(port, address) if case == "late hello" else Wire.open_as(protocol, port, address))
        if case == "late hello":
            await wire.handshake(last=False)
            rest = wire.outgoing.read()
            rests[name] = rest + last_words(wire, protocol, 1)
        elif case == "late first":
            rests[name] = last_words(wire, protocol, 1)
        elif case == "drip":
            message = sip("MESSAGE", f"d{wire.host}", protocol, wire.host)
            rests[name] = message.replace(b"Length: 0", b"Length: 9999") + b"x" * 9000
        else:
            await register(probe, protocol, wire)
            rest = last_words(wire, protocol)
            await wire.raw(rest[:100])
            rests[name] = rest[100:]
        opened[name] = wire

    async def answer(protocol: str, wire: Wire) -> None:
        # So that the answer comes within the time that the client waits for it.
        await asyncio.sleep(3)
        if protocol == "tls":
            await wire.handshake()
        else:
            await wire.send(upgrade())
            await wire.receive_until(b"\r\n\r\n")
        await register(probe, protocol, wire)

    answering = {name: await Wire.open(probe.ports[name[:3].strip()], source(next(numbers))) for name in ANSWERING}
    await asyncio.sleep(0.1)
    await be_late(probe)
    answers = [asyncio.create_task(answer(name[:3].strip(), wire)) for name, wire in answering.items()]
    # A few are read before the timers nevertheless: those that the kernel tells first.
    for wire in others:
        await wire.raw(b"\r\n\r\n")
    drip = opened["tcp drip"]
    for name, wire in opened.items():
        if wire is not drip:
            await wire.raw(rests[name])
    with contextlib.suppress(OSError):
        for byte in rests["tcp drip"]:
            await drip.raw(bytes([byte]))
            await asyncio.sleep(0.0005)
            if drip.peer in probe.ends:
                break
    await probe.ended(drip, 2 * LIMIT)
    await asyncio.gather(*answers, return_exceptions=True)
    opened |= answering
    ended = [name for name, wire in opened.items() if wire.peer in probe.ends]
    opened |= {f"tcp other {number}": wire for number, wire in enumerate(others)}
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
        wire = await Wire.open_as(protocol, probe.ports[protocol], source(next(numbers)))
        with contextlib.suppress(OSError):
            if protocol == "tcp":
                message = sip("MESSAGE", f"d{wire.host}", protocol, wire.host)
                await wire.raw(message.replace(b"Length: 0", b"Length: 99999"))
            while wire.peer not in probe.ends:
                # When its time is over there must be something to read at every moment.
                now = -0.2 < time.monotonic() - begun - DRIP < 0.6
                await wire.raw(part * many if now else part)
                await asyncio.sleep(0 if now else 0.01)
        await probe.ended(wire, LIMIT)
        held[f"{protocol} drip {number}"] = time.monotonic() - begun
        seen[f"{protocol} drip {number}"] = closed(probe, protocol, wire)

    await asyncio.gather(*map(send, range(12)))
    results: dict[str, Any] = {"limit": DRIP, "held": held}
    await finish(probe, results, seen)
    return results


async def backlog(tool: str) -> dict[str, Any]:
    """Let a stack that is late need longer for what is there than it waits for one connection."""
    probe = await Probe.start(tool, "-p", "4000", "-l", "5000", "-b", "100", level=1)
    opened = {}
    for number in range(24):
        wire = await Wire.open_as("tcp", probe.ports["tcp"], source(next(numbers)))
        await register(probe, "tcp", wire)
        opened[f"tcp backlog {number}"] = wire
    for wire in opened.values():
        await wire.receive_until(b"\r\n\r\n")
    await be_late(probe)
    for wire in opened.values():
        await wire.raw(b"\r\n" + last_words(wire, "tcp"))
    for wire in opened.values():
        with contextlib.suppress(ConnectionError):
            await wire.receive_until(b"200 OK")
    ended = [name for name, wire in opened.items() if wire.peer in probe.ends]
    results: dict[str, Any] = {"ended": ended}
    await close_all(probe, results, opened)
    return results


async def records(tool: str) -> dict[str, Any]:
    """Send a long message in TLS records of one byte, and over another connection a request; tell whose came first."""
    probe = await Probe.start(tool)
    opened = {}
    for protocol in ("wss", "tcp"):
        opened[protocol] = await Wire.open_as(protocol, probe.ports[protocol], source(next(numbers)))
        await register(probe, protocol, opened[protocol])
    before = len(probe.events)
    wire = opened["wss"]
    message = sip("REGISTER", f"m{wire.host}", "wss", wire.host, cseq=2)
    message = message.replace(b"Content-Length:", b"X-Padding: " + b"x" * 3000 + b"\r\nContent-Length:")
    parts = [wire.seal(bytes([byte])) for byte in frame(message)]
    with busy(probe):
        await wire.raw(b"".join(parts))
        await opened["tcp"].raw(last_words(opened["tcp"], "tcp"))
    for wire in opened.values():
        await wire.receive_until(b"200 OK")
    results: dict[str, Any] = {
        "registers": [event.data["id"] for event in probe.events[before:] if event.data["event"] == "nua_i_register"]
    }
    await close_all(probe, results, {f"{protocol} records": wire for protocol, wire in opened.items()})
    return results


async def flood(tool: str) -> dict[str, Any]:
    """Have a client send requests without a break in small records; tell how many were read before one of another."""
    probe = await Probe.start(tool, "-t", "-k")
    wires = [await Wire.open_as(name, probe.ports[name], source(next(numbers))) for name in ("wss", "tcp")]
    flooding, other = wires
    await register(probe, "wss", flooding)
    requests = b"".join(
        frame(sip("REGISTER", f"f{number}", "wss", flooding.host, cseq=number)) for number in range(1, 3001)
    )
    data = b"".join(flooding.seal(requests[start : start + 1]) for start in range(len(requests)))

    async def receive() -> None:
        while await asyncio.get_running_loop().sock_recv(flooding.sock, 65536):
            pass

    receiving = asyncio.create_task(receive())
    sending = asyncio.create_task(flooding.raw(data))
    before = len(probe.events)
    while not sending.done():
        await register(probe, "tcp", other)
    receiving.cancel()
    ended = [wire.peer for wire in wires if wire.peer in probe.ends]
    flooding.reset()
    other.fin()
    for wire in wires:
        await probe.ended(wire, LIMIT)
    read = [event.data["id"] for event in probe.events[before:] if event.data["event"] == "nua_i_register"]
    runs = [len(list(run)) for _, run in itertools.groupby(read)]
    results: dict[str, Any] = {"read": len(read), "longest": max(runs), "ended": ended}
    await finish(probe, results, {})
    return results


async def unanswered(tool: str) -> dict[str, Any]:
    """Have clients go before they are answered; count the answers with which the stack is done."""
    probe = await Probe.start(tool, "-t", "-b", "100", level=5)

    async def hurry(probe: Probe, protocol: str, wire: Wire) -> None:
        await wire.raw(last_words(wire, protocol, 1))
        await asyncio.sleep(0.02)
        wire.reset()
        await probe.ended(wire, 5)

    seen = {f"ws unanswered {number}": await observe(probe, "ws", True, hurry) for number in range(5)}
    results: dict[str, Any] = {}
    await finish(probe, results, seen)
    results["done"] = probe.log.read_text(errors="replace").count("sending final response failed")
    return results


@dataclass
class Rekeyed:
    """The connection of a client that asks for new keys of TLS and reads no answer."""

    process: asyncio.subprocess.Process
    host: str
    peer: tuple[str, str]

    @classmethod
    async def open(cls, protocol: str, port: int) -> Rekeyed:
        """Connect, and go on until the probe takes nothing more."""
        process = await asyncio.create_subprocess_exec(
            REKEY, ADDRESS, str(port), protocol, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout
        own = (await process.stdout.readline()).decode().strip()
        if (line := await asyncio.wait_for(process.stdout.readline(), 60)) != b"blocked\n":
            raise ConnectionError(f"the probe closed before it was blocked ({own!r}, {line!r})")
        return cls(process, ADDRESS, (ADDRESS, own))


async def rekey(tool: str, *arguments: str, protocols: Sequence[str], wait: float) -> dict[str, Any]:
    """Ask for new keys of TLS until nothing more goes out; tell how busy the probe is until it gives up."""
    probe = await Probe.start(tool, *arguments)
    clients = {protocol: await Rekeyed.open(protocol, probe.ports[protocol]) for protocol in protocols}
    began, spent = time.monotonic(), cpu(probe)
    seen = {}
    for protocol, client in clients.items():
        await probe.ended(client, max(0.0, began + wait - time.monotonic()))
        seen[f"{protocol} rekey"] = closed(probe, protocol, client)
    results: dict[str, Any] = {"busy": (cpu(probe) - spent) / (time.monotonic() - began)}
    await finish(probe, results, seen)
    for client in clients.values():
        with contextlib.suppress(ProcessLookupError):
            client.process.kill()
        await client.process.wait()
    return results


def cpu(probe: Probe) -> float:
    """Return the seconds of CPU that the probe has used."""
    fields = Path(f"/proc/{probe.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def silence(tool: str) -> dict[str, Any]:
    """Take the client's address off the machine: no packet reaches it, and none of its own leaves."""
    seconds = 4
    for address in (FAR, NEAR):
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    probe = await Probe.start(tool, "-a", NEAR, "-d", str(seconds), level=1)
    wires = {protocol: await Wire.open_as(protocol, probe.ports[protocol], FAR, NEAR) for protocol in PROTOCOLS}
    for protocol, wire in wires.items():
        await register(probe, protocol, wire)
    subprocess.run(["ip", "address", "del", f"{FAR}/32", "dev", "lo"], check=True)
    gone = time.time()
    seen = {}
    for protocol, wire in wires.items():
        await probe.ended(wire, seconds + 5)
        seen[f"{protocol} silence"] = {"wire": wire, "closed": gone, "error": "", "port": probe.ports[protocol]}
    results: dict[str, Any] = {"seconds": seconds}
    await finish(probe, results, seen, NEAR)
    for wire in wires.values():
        wire.sock.close()
    return results


async def run(tool: str) -> dict[str, Any]:
    # These wait most of the time, and for no moment of their own.
    together = {
        "rekey": rekey(tool, protocols=("tls", "wss"), wait=90),
        "rekey late": rekey(tool, "-m", "20", protocols=("tls",), wait=60),
        "plain": every(tool, 1),
        "keep": every(tool, 1, "-k"),
        "thread": every(tool, 1, "-t"),
        "torn": every(tool, 1, "-e"),
    }
    results = dict(zip(together, await asyncio.gather(*together.values()), strict=True))
    results |= {
        "log": await every(tool, 1, only=ORDERLY),
        "starved": await starved(tool),
        "udp": await udp(tool),
        "pong": await pong(tool),
        "late": await late(tool),
        "later": await later(tool),
        "drip": await drip(tool),
        "backlog": await backlog(tool),
        "unanswered": await unanswered(tool),
        "records": await records(tool),
        "flood": await flood(tool),
    }
    try:
        results["silence"] = await silence(tool)
    except subprocess.CalledProcessError as error:
        results["silence"] = {"skipped": f"can't change addresses: {error}"}
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", choices=("asan", "valgrind", "plain"), default="asan")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(run(options.tool)), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
