"""What came of connections, once they have ended."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.probe.drive import ADDRESS, PROTOCOLS, Connection, Probe, ProbeConnection, source
from tests.probe.endings import LIMIT, Step, register

numbers = iter(range(1, 1 << 20))


async def observe(probe: Probe, protocol: str, shake: bool, step: Step, wait: float = 3) -> dict[str, Any]:
    """Run one case and return what came of it."""
    port, address = probe.ports[protocol], source(next(numbers))
    connection = await (
        ProbeConnection.open_as(protocol, port, address) if shake else ProbeConnection.open(port, address)
    )
    error = ""
    try:
        await step(probe, protocol, connection)
    except (OSError, TimeoutError) as caught:
        error = f"{type(caught).__name__}: {caught}"
        connection.reset()
    closed = time.time()
    await probe.ended(connection, wait)
    return {"connection": connection, "closed": closed, "error": error, "port": port}


def account(probe: Probe, seen: dict[str, Any]) -> dict[str, Any]:
    """Return ends, reports and registrations of a connection, once the second report had its time."""
    connection: Connection = seen["connection"]
    ends, reports = probe.ends.get(connection.peer, []), probe.reports.get(connection.peer, [])
    registers = [
        event.data["id"] for event in probe.events
        if event.data["event"] == "nua_i_register" and event.data["call_id"] == f"m{connection.host}@probe.invalid"
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
    known = {item["connection"].peer for item in seen.values()}
    results["others"] = [
        event.data for found in (probe.ends, probe.reports) for peer in found.keys() - known for event in found[peer]
    ]
    # Connections that are open when the stack is shut down must not leak, either.
    opened = [
        await ProbeConnection.open_as(protocol, probe.ports[protocol], address, address) for protocol in PROTOCOLS
    ]
    await register(probe, "tcp", opened[0])
    stopping = asyncio.create_task(probe.stop())
    # Without the peer's close_notify, sofia-sip v1.13.10 to v1.13.16 waits until it is gone.
    await asyncio.wait([stopping], timeout=LIMIT)
    for connection in opened:
        connection.reset()
    results["status"] = await stopping
    results["stderr"] = probe.stderr[-20000:]
    results["complaints"] = probe.complaints()[:100]


def closed(probe: Probe, protocol: str, connection: Connection) -> dict[str, Any]:
    """Return a case that has just been ended, for `finish`."""
    return {"connection": connection, "closed": time.time(), "error": "", "port": probe.ports[protocol]}


async def close_all(probe: Probe, results: dict[str, Any], opened: dict[str, ProbeConnection]) -> None:
    """Close connections, one after the other, by name of their case, and `finish`."""
    seen = {}
    for name, connection in opened.items():
        connection.fin()
        await probe.ended(connection, 5)
        seen[name] = closed(probe, name.partition(" ")[0], connection)
    await finish(probe, results, seen)
