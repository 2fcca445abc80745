"""The parts of the benchmark: what each measures of which servers, and the figures that come of it."""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

from rich.console import Console

from scripts.bench import kamailio, measure, metrics
from scripts.bench.box import (
    OFFENDED,
    PATCHED,
    PLAIN,
    REMOVING,
    STOCK,
    STOCK_OFFENDED,
    Box,
    Kind,
    Yard,
)
from scripts.bench.crowd import serve_others
from scripts.bench.figures import Curve, Figure, Offence, Offences, Outcome, Sample
from scripts.bench.kamailio import Kamailio
from scripts.bench.load import Worker
from scripts.bench.measure import Server
from scripts.bench.offenders import OFFENDERS
from scripts.bench.plan import Plan
from scripts.errors import ToolkitError
from scripts.machine import terminal

T = TypeVar("T")


@dataclass
class Bench:
    """What the parts share; `third` is the Kamailio, if one is measured."""

    yard: Yard
    plan: Plan
    outcome: Outcome
    console: Console
    stack: contextlib.ExitStack
    started: dict[str, Box] = field(default_factory=dict)
    third: list[Kamailio] = field(default_factory=list)
    shown: terminal.Task | None = None

    def boxes(self, *kinds: Kind) -> list[Box]:
        """Return the containers of `kinds`; they are started once and are up until the end."""
        missing = [kind for kind in kinds if kind.name not in self.started]
        with ThreadPoolExecutor() as pool:
            for box in pool.map(lambda kind: self.stack.enter_context(self.yard.box(kind)), missing):
                self.started[box.kind.name] = box
        return [self.started[kind.name] for kind in kinds]

    def servers(self, *kinds: Kind) -> list[Server]:
        """Return the containers of `kinds` and, if it is measured, Kamailio."""
        return [*self.boxes(*kinds), *self.third]

    def alternate(self, servers: Sequence[Server], runs: int, measured: Callable[[Server], T]) -> list[list[T]]:
        """Measure each of `servers` in turns, `runs` times after a warm-up; return the results of each."""
        results: list[list[T]] = [[] for _ in servers]
        for turn in range(runs + 1):
            for server, found in zip(servers, results, strict=True):
                self.say(f"{server.name}, {f'run {turn} of {runs}' if turn else 'warm-up'}")
                result = measured(server)
                if turn:
                    found.append(result)
        return results

    def say(self, what: str) -> None:
        """Show what is being measured."""
        if self.shown:
            self.shown.say(what)

    def add(self, *figures: Figure) -> None:
        self.outcome.figures += figures


def storm(bench: Bench) -> None:
    """N connections whose owner is killed."""
    plan = bench.plan
    boxes = bench.servers(STOCK, PATCHED, REMOVING)
    stock, patched, removing, *rest = bench.alternate(
        boxes, plan.storm_runs, lambda box: measure.storm(box, plan.storm)
    )
    third = rest[0] if rest else []
    bench.add(
        *(metric.figure(stock, patched, third, connections=plan.storm) for metric in metrics.STORM),
        *(metric.figure(stock, removing, third, connections=plan.storm) for metric in metrics.STORM_WITH_UNREGISTER),
        metrics.REPEATED.figure(stock, [*patched, *removing], third, storms=f"storms of {plan.storm:,}"),
    )
    bench.outcome.curves["storm"] = [
        Curve(box.name, result.times, list(range(1, len(result.times) + 1)))
        for box, results in zip(boxes, (stock, patched, removing, third), strict=False)
        for result in results
        if result.times
    ]


def sizes(bench: Bench) -> None:
    """How the cost of a report grows with the number of connections."""
    plan = bench.plan
    found: dict[str, dict[int, list[measure.Storm]]] = {}
    boxes = bench.servers(STOCK, PATCHED)
    for box in boxes:
        measure.storm(box, plan.sizes[0])
        found[box.name] = defaultdict(list)
    for run_number in range(1, plan.size_runs + 1):
        for size in plan.sizes:
            for box in boxes:
                bench.say(f"{box.name}, {size:,} connections, run {run_number} of {plan.size_runs}")
                found[box.name][size].append(measure.storm(box, size))
    low, high = plan.sizes[0], plan.sizes[-1]
    names = [STOCK.name, PATCHED.name, *[kamailio.NAME] * bool(bench.third)]
    growth = [
        [
            big.per_report / small.per_report
            for small, big in zip(found[name][low], found[name][high], strict=True)
            if small.per_report
        ]
        for name in names
    ]
    every = [[storm for runs in found[name].values() for storm in runs] for name in names]
    bench.add(
        metrics.GROWTH.figure(*growth, low=low, high=high),
        metrics.SIZES_LOST.figure(*every),
        *(metrics.SIZE.figure(*(found[name][size] for name in names), connections=size) for size in plan.sizes),
        metrics.REPEATED.figure(*every, storms="these storms"),
    )

    def curves(value: Callable[[measure.Storm], float]) -> list[Curve]:
        return [
            Curve(kind, list(results), [median(value(item) for item in runs) * 1e6 for runs in results.values()])
            for kind, results in found.items()
        ]

    bench.outcome.curves["cost"] = curves(lambda item: item.per_report)
    bench.outcome.curves["cost-cpu"] = curves(lambda item: item.cpu / item.connections)


def registrar(bench: Bench) -> None:
    """REGISTER requests: new ones and refreshes."""
    plan = bench.plan
    stock, patched = bench.alternate(
        bench.boxes(PLAIN, PATCHED),
        plan.registrar_runs,
        lambda box: measure.registrar(box, plan.registrations, plan.refreshes),
    )
    bench.add(*(metric.figure(stock, patched) for metric in metrics.REGISTRAR))


def calls(bench: Bench) -> None:
    """Calls that are answered and hung up at once."""
    plan = bench.plan
    boxes = bench.boxes(PLAIN, PATCHED)
    stock, patched = bench.alternate(boxes, plan.call_runs, lambda box: measure.calls(box, plan.calls))
    bench.add(metrics.CALLS.figure(stock, patched))


def footprint(bench: Bench) -> None:
    """Memory per registration, each time of a fresh FreeSWITCH."""
    plan = bench.plan
    found: dict[str, list[measure.Footprint]] = {PLAIN.name: [], PATCHED.name: [], kamailio.NAME: []}
    for run_number in range(1, plan.footprint_runs + 1):
        bench.say(f"run {run_number} of {plan.footprint_runs}")
        for kind in (PLAIN, PATCHED):
            with bench.yard.box(kind) as box:
                found[kind.name].append(measure.footprint(box, plan.footprint))
        if bench.third:
            with kamailio.run(bench.yard.settings.start_timeout) as third:
                found[third.name].append(measure.footprint(third, plan.footprint))
    stock, patched = found[PLAIN.name], found[PATCHED.name]
    bench.add(
        metrics.RESIDENT.figure(stock, patched),
        metrics.PROPORTIONAL.figure(stock, patched, found[kamailio.NAME]),
    )


def latency(bench: Bench) -> None:
    """From one FIN to its event."""
    plan = bench.plan
    boxes = bench.servers(STOCK, PATCHED)
    stock, patched, *rest = (
        [[value * 1e3 for value in values] for values in runs]
        for runs in bench.alternate(boxes, plan.fin_runs, lambda box: measure.latency(box, plan.fins, 0.02, 1))
    )
    third = rest[0] if rest else []
    bench.add(*(metric.figure(stock, patched, third) for metric in metrics.LATENCY))
    bench.outcome.curves["latency"] = [
        Curve(box.name, values, [(index + 1) / len(values) for index in range(len(values))])
        for box, runs in zip(boxes, (stock, patched, third), strict=False)
        for values in [sorted(value for run in runs for value in run)]
    ]


def idle(bench: Bench) -> None:
    """CPU with one subscriber and nothing to do, of all at the same time."""
    plan = bench.plan
    boxes = bench.servers(PLAIN, PATCHED)
    time.sleep(2)
    shares = [measure.idle(boxes, plan.idle) for _ in range(plan.idle_runs)]
    bench.add(metrics.IDLE.figure(*zip(*shares, strict=True)))


def burden(bench: Bench) -> None:
    """Subscribers that don't read, or vanish."""
    plan = bench.plan
    for gone, what in ((False, "never reads"), (True, "vanishes")):
        results = [measure.burden(box, plan.burden, 2, gone) for box in bench.boxes(STOCK, PATCHED)]
        _burden_figures(bench, f"storms of {plan.burden:,}, the subscriber {what}", *results)
    if plan.flood:
        results = [measure.flood(box, plan.flood) for box in bench.boxes(STOCK, PATCHED)]
        _burden_figures(bench, f"{plan.flood:,} copies of a report, the subscriber never reads", *results)


def _burden_figures(bench: Bench, title: str, stock: measure.Burden, patched: measure.Burden) -> None:
    bench.add(
        *(metric.figure([stock], [patched], title=title, requests=len(patched.answers)) for metric in metrics.BURDEN)
    )


def offenders(bench: Bench) -> None:
    """What becomes of others beside a crowd of offenders of each kind; stock has one of some."""
    plan, start = bench.plan, time.monotonic()
    (box,) = bench.boxes(OFFENDED)
    found: dict[str, Sample] = {}
    idle: list[Sample] = []
    # Beside nobody in between, so that what the machine does meanwhile is in both.
    every = math.ceil(len(OFFENDERS) / (plan.crowd_idles - 1))
    with box.reader() as reader, Worker(serve_others, box.targets()) as others:
        bench.say("warm-up")
        measure.beside(box, others, reader, plan.crowd_seconds)
        for number, offender in enumerate(OFFENDERS):
            if number % every == 0:
                idle.append(measure.beside(box, others, reader, plan.crowd_seconds))
            bench.say(f"{plan.crowd} clients, each: {offender.name}")
            found[offender.name] = measure.beside(
                box, others, reader, plan.crowd_seconds, offender.name, offender.crowd(plan.crowd)
            )
        idle.append(measure.beside(box, others, reader, plan.crowd_seconds))
    if not all(item.reports for item in idle):
        raise ToolkitError(f"no death was reported, though nobody offended ({box.name})")
    (box,) = bench.boxes(STOCK_OFFENDED)
    stock: dict[str, Sample] = {}
    with Worker(serve_others, box.targets()) as others:
        bench.say("stock, warm-up")
        measure.beside(box, others, None, plan.crowd_seconds)
        stock_idle = [measure.beside(box, others, None, plan.crowd_seconds)]
        for offender in OFFENDERS:
            if offender.on_stock:
                bench.say(f"stock, one client: {offender.name}")
                stock[offender.name] = measure.beside(
                    box, others, None, plan.crowd_seconds, offender.name, [offender.on_stock]
                )
    bench.outcome.offences = Offences(
        plan.crowd,
        plan.crowd_seconds,
        idle,
        stock_idle,
        [Offence(item.name, item.transports, found[item.name], stock.get(item.name)) for item in OFFENDERS],
        time.monotonic() - start,
    )
    for cells in bench.outcome.offences.rows():
        bench.console.print("  " + "; ".join(filter(None, cells)), markup=False)


PARTS: dict[str, Callable[[Bench], None]] = {
    "idle": idle,
    "latency": latency,
    "storm": storm,
    "sizes": sizes,
    "registrar": registrar,
    "calls": calls,
    "footprint": footprint,
    "burden": burden,
    "offenders": offenders,
}
