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
from scripts.bench.container import (
    OFFENDED,
    PATCHED,
    PLAIN,
    REMOVING,
    STOCK,
    STOCK_OFFENDED,
    DockerHost,
    FreeSwitchContainer,
    Variant,
)
from scripts.bench.figures import BenchmarkReport, Curve, Figure, OffenderImpact, OffenderReport, Sample
from scripts.bench.interference import serve_bystanders
from scripts.bench.kamailio import Kamailio
from scripts.bench.load import Worker
from scripts.bench.measure import Server
from scripts.bench.offenders import OFFENDERS
from scripts.bench.plan import Plan
from scripts.errors import ToolkitError
from scripts.machine import terminal

T = TypeVar("T")


@dataclass
class BenchmarkRun:
    """What the parts of one benchmark share: servers, loads, report; `third` is the Kamailio, if one is measured."""

    host: DockerHost
    plan: Plan
    outcome: BenchmarkReport
    console: Console
    stack: contextlib.ExitStack
    started: dict[str, FreeSwitchContainer] = field(default_factory=dict)
    third: list[Kamailio] = field(default_factory=list)
    shown: terminal.TaskProgress | None = None

    def containers(self, *variants: Variant) -> list[FreeSwitchContainer]:
        """Return the containers of `variants`; they are started once and are up until the end."""
        missing = [variant for variant in variants if variant.name not in self.started]
        with ThreadPoolExecutor() as pool:
            for server in pool.map(lambda variant: self.stack.enter_context(self.host.run(variant)), missing):
                self.started[server.variant.name] = server
        return [self.started[variant.name] for variant in variants]

    def servers(self, *variants: Variant) -> list[Server]:
        """Return the containers of `variants` and, if it is measured, Kamailio."""
        return [*self.containers(*variants), *self.third]

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


def storm(bench: BenchmarkRun) -> None:
    """N connections whose owner is killed."""
    plan = bench.plan
    servers = bench.servers(STOCK, PATCHED, REMOVING)
    stock, patched, removing, *rest = bench.alternate(
        servers, plan.storm_runs, lambda server: measure.storm(server, plan.storm)
    )
    third = rest[0] if rest else []
    bench.add(
        *(metric.figure(stock, patched, third, connections=plan.storm) for metric in metrics.STORM),
        *(metric.figure(stock, removing, third, connections=plan.storm) for metric in metrics.STORM_WITH_UNREGISTER),
        metrics.REPEATED.figure(stock, [*patched, *removing], third, storms=f"storms of {plan.storm:,}"),
    )
    bench.outcome.curves["storm"] = [
        Curve(server.name, result.times, list(range(1, len(result.times) + 1)))
        for server, results in zip(servers, (stock, patched, removing, third), strict=False)
        for result in results
        if result.times
    ]


def sizes(bench: BenchmarkRun) -> None:
    """How the cost of a report grows with the number of connections."""
    plan = bench.plan
    found: dict[str, dict[int, list[measure.StormResult]]] = {}
    servers = bench.servers(STOCK, PATCHED)
    for server in servers:
        measure.storm(server, plan.sizes[0])
        found[server.name] = defaultdict(list)
    for run_number in range(1, plan.size_runs + 1):
        for size in plan.sizes:
            for server in servers:
                bench.say(f"{server.name}, {size:,} connections, run {run_number} of {plan.size_runs}")
                found[server.name][size].append(measure.storm(server, size))
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

    def curves(value: Callable[[measure.StormResult], float]) -> list[Curve]:
        return [
            Curve(name, list(results), [median(value(item) for item in runs) * 1e6 for runs in results.values()])
            for name, results in found.items()
        ]

    bench.outcome.curves["cost"] = curves(lambda item: item.per_report)
    bench.outcome.curves["cost-cpu"] = curves(lambda item: item.cpu / item.connections)


def registrar(bench: BenchmarkRun) -> None:
    """REGISTER requests: new ones and refreshes."""
    plan = bench.plan
    stock, patched = bench.alternate(
        bench.containers(PLAIN, PATCHED),
        plan.registrar_runs,
        lambda server: measure.registrar(server, plan.registrations, plan.refreshes),
    )
    bench.add(*(metric.figure(stock, patched) for metric in metrics.REGISTRAR))


def calls(bench: BenchmarkRun) -> None:
    """Calls that are answered and hung up at once."""
    plan = bench.plan
    servers = bench.containers(PLAIN, PATCHED)
    stock, patched = bench.alternate(servers, plan.call_runs, lambda server: measure.calls(server, plan.calls))
    bench.add(metrics.CALLS.figure(stock, patched))


def footprint(bench: BenchmarkRun) -> None:
    """Memory per registration, each time of a fresh FreeSWITCH."""
    plan = bench.plan
    found: dict[str, list[measure.Footprint]] = {PLAIN.name: [], PATCHED.name: [], kamailio.NAME: []}
    for run_number in range(1, plan.footprint_runs + 1):
        bench.say(f"run {run_number} of {plan.footprint_runs}")
        for variant in (PLAIN, PATCHED):
            with bench.host.run(variant) as server:
                found[variant.name].append(measure.footprint(server, plan.footprint))
        if bench.third:
            with kamailio.run(bench.host.settings.start_timeout) as third:
                found[third.name].append(measure.footprint(third, plan.footprint))
    stock, patched = found[PLAIN.name], found[PATCHED.name]
    bench.add(
        metrics.RESIDENT.figure(stock, patched),
        metrics.PROPORTIONAL.figure(stock, patched, found[kamailio.NAME]),
    )


def latency(bench: BenchmarkRun) -> None:
    """From one FIN to its event."""
    plan = bench.plan
    servers = bench.servers(STOCK, PATCHED)
    stock, patched, *rest = (
        [[value * 1e3 for value in values] for values in runs]
        for runs in bench.alternate(servers, plan.fin_runs, lambda server: measure.latency(server, plan.fins, 0.02, 1))
    )
    third = rest[0] if rest else []
    bench.add(*(metric.figure(stock, patched, third) for metric in metrics.LATENCY))
    bench.outcome.curves["latency"] = [
        Curve(server.name, values, [(index + 1) / len(values) for index in range(len(values))])
        for server, runs in zip(servers, (stock, patched, third), strict=False)
        for values in [sorted(value for run in runs for value in run)]
    ]


def idle(bench: BenchmarkRun) -> None:
    """CPU with one subscriber and nothing to do, of all at the same time."""
    plan = bench.plan
    servers = bench.servers(PLAIN, PATCHED)
    time.sleep(2)
    shares = [measure.idle(servers, plan.idle) for _ in range(plan.idle_runs)]
    bench.add(metrics.IDLE.figure(*zip(*shares, strict=True)))


def slow_consumer(bench: BenchmarkRun) -> None:
    """Subscribers that don't read, or vanish."""
    plan = bench.plan
    for gone, what in ((False, "never reads"), (True, "vanishes")):
        results = [
            measure.slow_consumer(server, plan.slow_consumer, 2, gone) for server in bench.containers(STOCK, PATCHED)
        ]
        _slow_consumer_figures(bench, f"storms of {plan.slow_consumer:,}, the subscriber {what}", *results)
    if plan.flood:
        results = [measure.flood(server, plan.flood) for server in bench.containers(STOCK, PATCHED)]
        _slow_consumer_figures(bench, f"{plan.flood:,} copies of a report, the subscriber never reads", *results)


def _slow_consumer_figures(
    bench: BenchmarkRun, title: str, stock: measure.SlowConsumerResult, patched: measure.SlowConsumerResult
) -> None:
    bench.add(
        *(
            metric.figure([stock], [patched], title=title, requests=len(patched.answers))
            for metric in metrics.SLOW_CONSUMER
        )
    )


def offenders(bench: BenchmarkRun) -> None:
    """What becomes of bystanders beside the offenders of each kind; stock has one of some."""
    plan, start = bench.plan, time.monotonic()
    (server,) = bench.containers(OFFENDED)
    found: dict[str, Sample] = {}
    idle: list[Sample] = []
    # Beside nobody in between, so that what the machine does meanwhile is in both.
    every = math.ceil(len(OFFENDERS) / (plan.offender_idles - 1))
    with server.reader() as reader, Worker(serve_bystanders, server.targets()) as bystanders:
        bench.say("warm-up")
        measure.with_offenders(server, bystanders, reader, plan.offender_seconds)
        for number, offender in enumerate(OFFENDERS):
            if number % every == 0:
                idle.append(measure.with_offenders(server, bystanders, reader, plan.offender_seconds))
            bench.say(f"{plan.offenders} clients, each: {offender.name}")
            found[offender.name] = measure.with_offenders(
                server, bystanders, reader, plan.offender_seconds, offender.name, offender.distribute(plan.offenders)
            )
        idle.append(measure.with_offenders(server, bystanders, reader, plan.offender_seconds))
    if not all(item.reports for item in idle):
        raise ToolkitError(f"no death was reported, though nobody offended ({server.name})")
    (server,) = bench.containers(STOCK_OFFENDED)
    stock: dict[str, Sample] = {}
    with Worker(serve_bystanders, server.targets()) as bystanders:
        bench.say("stock, warm-up")
        measure.with_offenders(server, bystanders, None, plan.offender_seconds)
        stock_idle = [measure.with_offenders(server, bystanders, None, plan.offender_seconds)]
        for offender in OFFENDERS:
            if offender.on_stock:
                bench.say(f"stock, one client: {offender.name}")
                stock[offender.name] = measure.with_offenders(
                    server, bystanders, None, plan.offender_seconds, offender.name, [offender.on_stock]
                )
    bench.outcome.offences = OffenderReport(
        plan.offenders,
        plan.offender_seconds,
        idle,
        stock_idle,
        [OffenderImpact(item.name, item.transports, found[item.name], stock.get(item.name)) for item in OFFENDERS],
        time.monotonic() - start,
    )
    for cells in bench.outcome.offences.rows():
        bench.console.print("  " + "; ".join(filter(None, cells)), markup=False)


PARTS: dict[str, Callable[[BenchmarkRun], None]] = {
    "idle": idle,
    "latency": latency,
    "storm": storm,
    "sizes": sizes,
    "registrar": registrar,
    "calls": calls,
    "footprint": footprint,
    "burden": slow_consumer,
    "offenders": offenders,
}
