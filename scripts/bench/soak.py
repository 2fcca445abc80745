"""Connect, register, die: many thousand times, and nothing may be left of it.

`inv soak` ends with the figures, and with status 1 if a report was missing or
doubled, or if sockets, memory or registrations did not return to where they
began. With --stock the stock image is soaked, which reports nothing: what its
memory does is what the patched one's may do. With --pending clients die while
more is going on: the NOTIFY of mod_voicemail, subscriptions, calls.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich import get_console
from rich.console import Console
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from scripts.bench.load import ECHO
from scripts.errors import ToolkitError
from scripts.freeswitch.sip import Refused
from scripts.machine import terminal
from scripts.pins.settings import Settings
from scripts.scenario import lab as lab_module
from scripts.scenario import table
from scripts.scenario.lab import DOMAIN, Lab
from scripts.scenario.table import PATCHED, STOCK

TRANSPORTS = ("tcp", "tls", "ws", "wss")
WORKERS = 3
USERS = 400
# Of so many cycles one subscribes, and one calls, before it dies.
SUBSCRIBES, CALLS = 3, 5
# What a lab needs for these, and for the NOTIFY.
PENDING = {"manage-presence": "true", "send-message-query-on-register": "true"}
# Before this many cycles the allocator, the pools and the caches still grow to their working size.
WARM_UP = 2000
# Seconds until what a dead client leaves behind has ended: of a call the last is a BYE that nobody answers, 64 x T1.
SETTLED, SETTLED_PENDING = 3, 45
# Then mod_sofia may still have events of presence to handle, two a call and 5 kB each: until it uses less of a
# core than this over so many seconds, for so many seconds at most.
IDLE, IDLE_OVER, IDLE_AT_MOST = 0.2, 3.0, 300.0
# What is allocated may still grow by this much after the warm-up, however many cycles follow.
HEAP_MARGIN_KB = 1024


@dataclass
class Figures:
    """What was measured; sizes in KiB, times in seconds."""

    cycles: int = 0
    seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    reports: int = 0
    wrong: int = 0
    sockets: tuple[int, int] = (0, 0)
    # Without what SQLite has allocated: its caches follow the size of the database.
    heap_kb: list[int] = field(default_factory=list)
    sqlite_kb: list[int] = field(default_factory=list)
    resident_kb: list[int] = field(default_factory=list)
    left: int = 0
    delays_ms: list[float] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Return what did not return to where it began, one line each."""
        found = []
        found += [f"{count} of {self.cycles} clients failed: {reason}" for reason, count in self.failures.items()]
        if self.wrong:
            found.append(f"{self.wrong} Call-IDs with no report or more than one")
        if self.left:
            found.append(f"{self.left} connections or registrations left")
        if self.sockets[1] > self.sockets[0]:
            found.append(f"open sockets grew from {self.sockets[0]} to {self.sockets[1]}")
        if self.heap_kb[-1] - self.heap_kb[0] > HEAP_MARGIN_KB:
            found.append(f"allocated memory grew from {self.heap_kb[0]} to {self.heap_kb[-1]} KiB")
        return found

    def lines(self) -> list[str]:
        """Return the figures for people."""
        delays = sorted(self.delays_ms) or [0.0]

        def series(values: Sequence[int]) -> str:
            return " ".join(str(value) for value in values)

        return [
            f"cycles          {self.cycles} in {self.seconds:.0f} s, {self.cycles / self.seconds:.0f} per second",
            f"reports         {self.reports}, not exactly one: {self.wrong} Call-IDs, "
            f"failed clients: {self.failures.total()}",
            f"delay ms        median {delays[len(delays) // 2]:.1f}, 99 % {delays[len(delays) * 99 // 100]:.1f}, "
            f"largest {delays[-1]:.1f} (detection to arrival)",
            f"sockets         {self.sockets[0]} before, {self.sockets[1]} after",
            "KiB of memory after the warm-up, at each tenth, at the end:",
            f"  allocated     {series(self.heap_kb)} (without SQLite's)",
            f"  by SQLite     {series(self.sqlite_kb)}",
            f"  resident      {series(self.resident_kb)}",
            f"left            {self.left} connections and registrations",
        ]


def run(
    lab: Lab,
    cycles: int,
    console: Console,
    profile: str = "main",
    limit: float = 3600.0,
    pending: bool = False,
) -> Figures:
    """Run `cycles` after a warm-up, for `limit` seconds at most; return the figures.

    Needs a lab with `heap`, and with `pending`, where some clients subscribe or
    call before they die, with the parameters PENDING. The progress is shown on `console`.
    """
    users = [lab.user() for _ in range(USERS)]
    switch = lab.freeswitch
    calls: set[str] = set()
    figures = Figures()

    def cycle(number: int) -> str:
        transport = TRANSPORTS[number % len(TRANSPORTS)]
        step = "connect"
        try:
            client = lab.open(profile, transport)
            step = "register"
            user = users[number % USERS]
            call_id = client.register(user, lab.password, DOMAIN)
            if pending and number % SUBSCRIBES == 0:
                step = "subscribe"
                client.subscribe(user, lab.password, DOMAIN, users[0])
            if pending and number % CALLS == 0:
                step = "call"
                client.invite(user, lab.password, DOMAIN, ECHO)
        except (OSError, Refused, ValueError, LocalProtocolError, RemoteProtocolError) as error:
            figures.failures[f"{transport}: {step}: {type(error).__name__}: {error}"] += 1
            return ""
        client.reset() if number % 3 == 0 else client.close()
        return call_id

    def batch(start: int, count: int) -> None:
        for call_id in pool.map(cycle, range(start, start + count)):
            if call_id:
                calls.add(call_id)
        if pending:
            # Nobody else ends these: that is not what is soaked.
            switch.recorder.api("hupall")

    def weigh() -> None:
        everything, sqlite = switch.heap()
        figures.heap_kb.append((everything - sqlite) // 1024)
        figures.sqlite_kb.append(sqlite // 1024)
        figures.resident_kb.append(switch.memory_kb())

    def settle() -> None:
        time.sleep(SETTLED_PENDING if pending else SETTLED)
        end, idle = time.monotonic() + IDLE_AT_MOST, False
        while not idle and time.monotonic() < end:
            start, used = time.monotonic(), switch.cpu()
            time.sleep(IDLE_OVER)
            idle = switch.cpu() - used < IDLE * (time.monotonic() - start)

    deadline = time.monotonic() + limit
    # Nothing but a finished batch is shown: this process measures, too.
    with (
        ThreadPoolExecutor(WORKERS) as pool,
        terminal.task(console, "soak", cycles, still=True) as shown,
    ):
        shown.say("warm-up")
        batch(0, min(WARM_UP, cycles))
        settle()
        sockets = switch.sockets()
        weigh()
        began = time.monotonic()
        shown.say("cycles")
        for _ in range(10):
            step = cycles // 10
            while step > 0 and time.monotonic() < deadline:
                batch(figures.cycles, min(step, 1000))
                figures.cycles += min(step, 1000)
                shown.advance(min(step, 1000))
                step -= 1000
            weigh()
        figures.seconds = time.monotonic() - began
    settle()
    reports = [event for event in switch.recorder.events if lab.is_report(event) and event.get("call-id") in calls]
    count = Counter(event.get("call-id") for event in reports)
    lab.settled.update(event.get("from-user") for event in reports)
    figures.reports = len(reports)
    figures.wrong = sum(count[call_id] != 1 for call_id in calls) if lab.image.endswith(":patched") else 0
    figures.delays_ms = [event.arrived_ns / 1e6 - int(event.get("detected-at-us")) / 1e3 for event in reports]
    figures.sockets = (sockets, switch.sockets())
    weigh()
    switch.recorder.api(f"sofia profile {profile} flush_inbound_reg")
    time.sleep(2)
    figures.left = len(switch.connections()) + len(switch.registrations(profile))
    return figures


def soak(
    settings: Settings,
    cycles: int,
    profile: str = "main",
    cpus: int = 0,
    stock: bool = False,
    pending: bool = False,
    limit: float = 3600.0,
) -> bool:
    """Soak the patched image, or the stock one, and print the figures; return whether all is as it began.

    `cpus` are those that FreeSWITCH believes in, 0 for this machine's. It ends
    after `limit` seconds at the latest.

    Raises ToolkitError if an option makes no sense, or FreeSWITCH isn't ready in time.
    """
    scenario = table.load("deaths")
    if cycles < 10:
        raise ToolkitError(f"--cycles {cycles}: at least 10")
    if not 0 <= cpus <= 1024:
        raise ToolkitError(f"--cpus {cpus}: a number of CPUs up to 1024, or 0")
    if profile not in (known := [item.name for item in scenario.profiles]):
        raise ToolkitError(f"--profile {profile}: one of {', '.join(known)}")
    console = get_console()
    with (
        tempfile.TemporaryDirectory() as directory,
        lab_module.start(
            settings,
            scenario,
            Path(directory),
            STOCK if stock else PATCHED,
            heap=True,
            cpus=cpus,
            parameters=PENDING if pending else None,
        ) as lab,
    ):
        figures = run(lab, cycles, console, profile, limit, pending)
    for line in figures.lines():
        console.print(line, soft_wrap=True)
    for problem in figures.problems():
        terminal.loud(console).print(f"NOT OK: {problem}", soft_wrap=True)
    return not figures.problems()
