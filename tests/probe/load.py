"""Clients that keep the stack busy, or read no answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.probe.drive import ADDRESS, Probe, ProbeConnection, frame, sip, source
from tests.probe.endings import LIMIT, busy, last_words, register
from tests.probe.results import close_all, closed, finish, numbers, observe

REKEY = "/probe/rekey"
# With so many probes, until the connection of one was not held up by TCP.
TRIES = 3


async def records(tool: str) -> dict[str, Any]:
    """Send a long message in TLS records of one byte, and over another connection a request; tell whose came first."""
    probe = await Probe.start(tool)
    opened = {}
    for protocol in ("wss", "tcp"):
        opened[protocol] = await ProbeConnection.open_as(protocol, probe.ports[protocol], source(next(numbers)))
        await register(probe, protocol, opened[protocol])
    before = len(probe.events)
    connection = opened["wss"]
    message = sip("REGISTER", f"m{connection.host}", "wss", connection.host, cseq=2)
    message = message.replace(b"Content-Length:", b"X-Padding: " + b"x" * 3000 + b"\r\nContent-Length:")
    parts = [connection.seal(bytes([byte])) for byte in frame(message)]
    with busy(probe):
        await connection.raw(b"".join(parts))
        await opened["tcp"].raw(last_words(opened["tcp"], "tcp"))
    for connection in opened.values():
        await connection.receive_until(b"200 OK")
    results: dict[str, Any] = {
        "registers": [event.data["id"] for event in probe.events[before:] if event.data["event"] == "nua_i_register"]
    }
    await close_all(probe, results, {f"{protocol} records": connection for protocol, connection in opened.items()})
    return results


async def flood(tool: str) -> dict[str, Any]:
    """Have a client send requests without a break in small records; tell how many were read before one of another."""
    probe = await Probe.start(tool, "-t", "-k")
    connections = [
        await ProbeConnection.open_as(name, probe.ports[name], source(next(numbers))) for name in ("wss", "tcp")
    ]
    flooding, other = connections
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
    ended = [connection.peer for connection in connections if connection.peer in probe.ends]
    flooding.reset()
    other.fin()
    for connection in connections:
        await probe.ended(connection, LIMIT)
    read = [event.data["id"] for event in probe.events[before:] if event.data["event"] == "nua_i_register"]
    runs = [len(list(run)) for _, run in itertools.groupby(read)]
    results: dict[str, Any] = {"read": len(read), "longest": max(runs), "ended": ended}
    await finish(probe, results, {})
    return results


async def unanswered(tool: str) -> dict[str, Any]:
    """Have clients go before they are answered; count the answers with which the stack is done."""
    probe = await Probe.start(tool, "-t", "-b", "100", level=5)

    async def hurry(probe: Probe, protocol: str, connection: ProbeConnection) -> None:
        await connection.raw(last_words(connection, protocol, 1))
        await asyncio.sleep(0.02)
        connection.reset()
        await probe.ended(connection, 5)

    seen = {f"ws unanswered {number}": await observe(probe, "ws", True, hurry) for number in range(5)}
    results: dict[str, Any] = {}
    await finish(probe, results, seen)
    results["done"] = probe.log.read_text(errors="replace").count("sending final response failed")
    return results


@dataclass
class RekeyingClient:
    """The connection of a client that asks for new keys of TLS and reads no answer."""

    process: asyncio.subprocess.Process
    host: str
    peer: tuple[str, str]

    @classmethod
    async def open(cls, protocol: str, port: int) -> RekeyingClient:
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
    """Ask for new keys of TLS until nothing more goes out; tell how busy the probe is until it gives up.

    On a very busy machine TCP loses packets, and what is lost several times is sent again after minutes. A probe that
    has read all there is until then isn't blocked, and nothing follows from it: it is tried again with another one.
    """
    for _ in range(TRIES):
        results, idle = await _rekey(tool, *arguments, protocols=protocols, wait=wait)
        if not idle:
            break
    return results


async def _rekey(tool: str, *arguments: str, protocols: Sequence[str], wait: float) -> tuple[dict[str, Any], bool]:
    """Return the results, and whether a connection did not end of which the probe has read all there is."""
    probe = await Probe.start(tool, *arguments)
    clients = {protocol: await RekeyingClient.open(protocol, probe.ports[protocol]) for protocol in protocols}
    began, spent = time.monotonic(), cpu(probe)
    seen, idle = {}, False
    for protocol, client in clients.items():
        await probe.ended(client, max(0.0, began + wait - time.monotonic()))
        idle |= client.peer not in probe.ends and unread(probe.ports[protocol], client.peer[1]) == 0
        seen[f"{protocol} rekey"] = closed(probe, protocol, client)
    results: dict[str, Any] = {"busy": (cpu(probe) - spent) / (time.monotonic() - began)}
    await finish(probe, results, seen)
    for client in clients.values():
        with contextlib.suppress(ProcessLookupError):
            client.process.kill()
        await client.process.wait()
    return results, idle


def unread(port: int, peer: str) -> int | None:
    """Return how many bytes wait to be read of the connection from the port `peer` to `port`; None if there is none.

    proc_pid_net(5): addresses and queues are hexadecimal, with a colon between.
    """
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, near, far, _, queues, *_ = line.split()
        if int(near.rpartition(":")[2], 16) == port and far.endswith(f":{int(peer):04X}"):
            return int(queues.partition(":")[2], 16)
    return None


def cpu(probe: Probe) -> float:
    """Return the seconds of CPU that the probe has used."""
    fields = Path(f"/proc/{probe.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
