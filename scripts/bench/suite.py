"""The whole benchmark: its parts one after the other, and the report."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from types import FrameType

from rich import get_console

from scripts.bench import kamailio, plot
from scripts.bench.container import docker_host
from scripts.bench.figures import BenchmarkReport, machine, show, summary, write
from scripts.bench.load import raise_limit
from scripts.bench.page import publish
from scripts.bench.parts import PARTS, BenchmarkRun
from scripts.bench.plan import FULL, QUICK
from scripts.errors import ToolkitError
from scripts.machine import terminal
from scripts.machine.files import ROOT
from scripts.pins.settings import Settings

DOCS = ROOT / "docs"


def run(
    settings: Settings, quick: bool = False, docs: bool = False, only: str = "", with_kamailio: bool = False
) -> BenchmarkReport:
    """Measure stock and patched side by side, with Kamailio if asked for, and report.

    `quick` takes smaller loads and fewer runs; `docs` also copies the plots
    and the report to docs/; `only` names the parts to run, with commas
    between; `with_kamailio` adds Kamailio. Raises ToolkitError if something
    can't be measured, and before anything is started if Kamailio is asked for
    and isn't installed; targets that are missed are reported, no more.
    """
    console = get_console()
    plan = QUICK if quick else FULL
    parts = _parts(only)
    raise_limit(max(plan.sizes))
    start, before = time.monotonic(), os.getloadavg()[0]
    directory = settings.report_directory / "bench"
    outcome = BenchmarkReport(datetime.now(UTC).isoformat(timespec="seconds"), quick, machine())
    with _termination(), contextlib.ExitStack() as stack:
        if with_kamailio:
            outcome.kamailio = kamailio.check()
        host = stack.enter_context(docker_host(settings))
        for stage in ("stock", "patched"):
            outcome.images[stage] = str(host.client.images.get(f"{settings.image}:{stage}").id)
        bench = BenchmarkRun(host, plan, outcome, console, stack)
        if with_kamailio:
            bench.third.append(stack.enter_context(kamailio.run(settings.start_timeout)))
        for number, name in enumerate(parts, 1):
            begin = time.monotonic()
            known = len(outcome.figures)
            # What is measured must not wait for a picture that moves.
            with terminal.task(console, f"{name} (part {number} of {len(parts)})", still=True) as bench.shown:
                bench.shown.say("preparing")
                PARTS[name](bench)
            console.print(f"{name}: {time.monotonic() - begin:.0f} s", style="bold")
            for figure in outcome.figures[known:]:
                console.print("  " + summary(figure), markup=False)
            # A run that is broken off leaves what it has measured.
            outcome.seconds = time.monotonic() - start
            write(outcome, directory)
    after = os.getloadavg()[0]
    outcome.notes.append(
        f"Load average of the machine: {before:.1f} when the run began, {after:.1f} at its end; "
        f"an idle one with {outcome.machine['cores']} cores gives steadier figures."
    )
    write(outcome, directory)
    files = plot.draw(outcome, directory)
    show(outcome, console)
    if docs:
        publish(outcome, files, DOCS)
    where = directory.relative_to(ROOT) if directory.is_relative_to(ROOT) else directory
    console.print(f"took {outcome.seconds:.0f} s; report in {where}")
    return outcome


def _parts(only: str) -> list[str]:
    names = [name.strip() for name in only.split(",") if name.strip()] or list(PARTS)
    for name in names:
        if name not in PARTS:
            raise ToolkitError(f"--only {name}: there is no such part, use {', '.join(PARTS)}")
    return names


@contextlib.contextmanager
def _termination() -> Iterator[None]:
    """Let SIGTERM end the run like Ctrl-C does: with everything removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
