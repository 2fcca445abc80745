"""Errors of sockets that are no connection: that which is listened on, that of UDP."""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import Any

from tests.probe.drive import ADDRESS, END, REPORT, Probe, ProbeConnection, sip, source
from tests.probe.results import closed, finish, numbers


async def starved(tool: str) -> dict[str, Any]:
    """Let accept() fail for want of file descriptors: an error of the listening socket."""
    probe = await Probe.start(tool, level=3)
    limit = resource.prlimit(probe.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(probe.process.pid, resource.RLIMIT_NOFILE, (24, limit[1]))
    connections = [await ProbeConnection.open(probe.ports["tcp"], source(next(numbers))) for _ in range(40)]
    await asyncio.sleep(0.5)
    early = sum(event.data["event"] in (END, REPORT) for event in probe.events)
    failed = "Too many open files" in probe.log.read_text(errors="replace")
    resource.prlimit(probe.process.pid, resource.RLIMIT_NOFILE, limit)
    await asyncio.sleep(0.5)
    for connection in connections:
        connection.fin()
    seen = {f"tcp starved {number}": closed(probe, "tcp", connection) for number, connection in enumerate(connections)}
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
