"""Ends connections in every way there is and prints, as JSON, what the probe reported.

    python3 -m tests.probe.matrix --tool asan

Runs inside the container of the probe. What is expected is in tests/probe/test_probe.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from typing import Any

from tests.probe.drive import Probe
from tests.probe.endings import CASES, ORDERLY
from tests.probe.load import flood, records, rekey, unanswered
from tests.probe.results import finish, observe
from tests.probe.sockets import starved, udp
from tests.probe.timers import backlog, drip, late, later, pong, silence


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


async def run(tool: str) -> dict[str, Any]:
    # These wait most of the time, and for no moment of their own.
    together = {
        "rekey": rekey(tool, protocols=("tls", "wss"), wait=120),
        "rekey late": rekey(tool, "-m", "20", protocols=("tls",), wait=120),
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
