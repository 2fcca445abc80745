"""The metrics of each part: what is taken of a result, its unit, and the target."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from scripts.bench.figures import Figure, Rule, Target, quantile
from scripts.bench.measure import Burden, Footprint, Registrar, Storm, Work

R = TypeVar("R")
MIB = 2**20
# Stock without the flag that makes it notice a lost connection.
NO_FLAG = "no flag"


@dataclass(frozen=True)
class Metric(Generic[R]):
    """What is taken of the results R of a measurement: `value` of each, in `unit`.

    `name` and `unit` may have fields in braces, which `figure` fills in;
    `baseline` says which stock it is compared with.
    """

    name: str
    unit: str
    value: Callable[[R], float]
    target: Target | None = None
    baseline: str = ""

    def figure(
        self, stock: Sequence[R], patched: Sequence[R], kamailio: Sequence[R] = (), **fields: str | int
    ) -> Figure:
        """Return the figure with a value for each result of each server."""
        return Figure(
            self.name.format(**fields),
            self.unit.format(**fields),
            [self.value(result) for result in stock],
            [self.value(result) for result in patched],
            self.target,
            self.baseline,
            kamailio=[self.value(result) for result in kamailio],
        )


def _itself(value: float) -> float:
    return value


def _unanswered(result: Burden) -> int:
    return sum(answer is None for answer in result.answers)


def _slowest(result: Burden) -> float:
    return max((answer for answer in result.answers if answer is not None), default=0.0) * 1e3


STORM: tuple[Metric[Storm], ...] = (
    Metric(
        "storm of {connections:,} connections: kill to last report",
        "ms",
        lambda result: result.seconds * 1e3,
        Target(Rule.RATIO_AT_MOST, 0.4),
    ),
    Metric(
        "storm of {connections:,} connections: CPU", "s", lambda result: result.cpu, Target(Rule.RATIO_AT_MOST, 0.5)
    ),
    Metric(
        "storm of {connections:,} connections: reports lost",
        "",
        lambda result: result.lost,
        Target(Rule.PATCHED_AT_MOST, 0),
    ),
    Metric(
        "storm of {connections:,} connections: reports twice",
        "",
        lambda result: result.twice,
        Target(Rule.PATCHED_AT_MOST, 0),
    ),
)
STORM_WITH_UNREGISTER: tuple[Metric[Storm], ...] = (
    Metric(
        "storm of {connections:,} connections, with tp-error-unregister: kill to last report",
        "ms",
        lambda result: result.seconds * 1e3,
    ),
    Metric("storm of {connections:,} connections, with tp-error-unregister: CPU", "s", lambda result: result.cpu),
)
# How many REGISTERs stayed without an answer while storms were prepared, and had to be sent once more.
REPEATED: Metric[Storm] = Metric(
    "{storms}: REGISTER without an answer before the storm",
    "",
    lambda result: result.registered.repeated,
    Target(Rule.PATCHED_AT_MOST, 0),
)
GROWTH: Metric[float] = Metric(
    "growth of the time per report from {low:,} to {high:,} connections",
    "x",
    _itself,
    Target(Rule.PATCHED_AT_MOST, 1.5),
)
SIZES_LOST: Metric[Storm] = Metric(
    "reports lost in these storms", "", lambda result: result.lost, Target(Rule.PATCHED_AT_MOST, 0)
)
SIZE: Metric[Storm] = Metric(
    "{connections:,} connections: time per report", "µs", lambda result: result.per_report * 1e6
)
REGISTRAR: tuple[Metric[Registrar], ...] = (
    Metric(
        "REGISTER over new connections",
        "1/s",
        lambda result: result.register.rate,
        Target(Rule.RATIO_AT_LEAST, 0.98),
        NO_FLAG,
    ),
    Metric(
        "REGISTER over new connections: CPU of FreeSWITCH",
        "ms each",
        lambda result: result.register.cpu * 1e3,
        baseline=NO_FLAG,
    ),
    Metric("REGISTER that refreshes", "1/s", lambda result: result.refresh.rate, Target(Rule.NOT_LOWER), NO_FLAG),
    Metric(
        "REGISTER that refreshes: CPU of FreeSWITCH",
        "ms each",
        lambda result: result.refresh.cpu * 1e3,
        baseline=NO_FLAG,
    ),
)
CALLS: Metric[Work] = Metric(
    "calls, answered and hung up", "1/s", lambda result: result.rate, Target(Rule.NOT_LOWER), NO_FLAG
)
# What the processes of Kamailio share would be counted more than once.
RESIDENT: Metric[Footprint] = Metric(
    "memory per registration (RSS)",
    "bytes",
    lambda result: result.resident,
    Target(Rule.RATIO_AT_MOST, 1.02),
    NO_FLAG,
)
PROPORTIONAL: Metric[Footprint] = Metric(
    "memory per registration (PSS)", "bytes", lambda result: result.proportional, baseline=NO_FLAG
)
# Of the milliseconds of each run.
LATENCY: tuple[Metric[Sequence[float]], ...] = (
    Metric(
        "one FIN to its event: p50", "ms", functools.partial(quantile, share=0.5), Target(Rule.PATCHED_AT_MOST, 1.0)
    ),
    Metric(
        "one FIN to its event: p99", "ms", functools.partial(quantile, share=0.99), Target(Rule.PATCHED_AT_MOST, 5.0)
    ),
)
IDLE: Metric[float] = Metric(
    "idle with one subscriber: CPU", "% of a core", lambda share: share * 100, Target(Rule.NOT_HIGHER), NO_FLAG
)
BURDEN: tuple[Metric[Burden], ...] = (
    Metric(
        "{title}: REGISTER and OPTIONS without an answer",
        "of {requests}",
        _unanswered,
        Target(Rule.PATCHED_AT_MOST, 0),
    ),
    Metric("{title}: slowest answer", "ms", _slowest),
    Metric(
        "{title}: most memory beyond that at the start",
        "MiB",
        lambda result: (max(result.resident) - result.resident[0]) / MIB,
    ),
    Metric(
        "{title}: memory beyond that at the start, at the end",
        "MiB",
        lambda result: (result.resident[-1] - result.resident[0]) / MIB,
    ),
)
