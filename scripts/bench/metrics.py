"""The metrics of each part: what is taken of a result, its unit, and the target."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from scripts.bench.figures import Figure, Rule, Threshold, quantile
from scripts.bench.measure import Footprint, RegisterRates, RequestRate, SlowConsumerResult, StormResult

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
    target: Threshold | None = None
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


def _unanswered(result: SlowConsumerResult) -> int:
    return sum(answer is None for answer in result.answers)


def _slowest(result: SlowConsumerResult) -> float:
    return max((answer for answer in result.answers if answer is not None), default=0.0) * 1e3


STORM: tuple[Metric[StormResult], ...] = (
    Metric(
        "storm of {connections:,} connections: kill to last report",
        "ms",
        lambda result: result.seconds * 1e3,
        Threshold(Rule.RATIO_AT_MOST, 0.4),
    ),
    Metric(
        "storm of {connections:,} connections: CPU", "s", lambda result: result.cpu, Threshold(Rule.RATIO_AT_MOST, 0.5)
    ),
    Metric(
        "storm of {connections:,} connections: reports lost",
        "",
        lambda result: result.lost,
        Threshold(Rule.PATCHED_AT_MOST, 0),
    ),
    Metric(
        "storm of {connections:,} connections: reports twice",
        "",
        lambda result: result.twice,
        Threshold(Rule.PATCHED_AT_MOST, 0),
    ),
)
STORM_WITH_UNREGISTER: tuple[Metric[StormResult], ...] = (
    Metric(
        "storm of {connections:,} connections, with tp-error-unregister: kill to last report",
        "ms",
        lambda result: result.seconds * 1e3,
    ),
    Metric("storm of {connections:,} connections, with tp-error-unregister: CPU", "s", lambda result: result.cpu),
)
# How many REGISTERs stayed without an answer while storms were prepared, and had to be sent once more.
REPEATED: Metric[StormResult] = Metric(
    "{storms}: REGISTER without an answer before the storm",
    "",
    lambda result: result.registered.repeated,
    Threshold(Rule.PATCHED_AT_MOST, 0),
)
GROWTH: Metric[float] = Metric(
    "growth of the time per report from {low:,} to {high:,} connections",
    "x",
    _itself,
    Threshold(Rule.PATCHED_AT_MOST, 1.5),
)
SIZES_LOST: Metric[StormResult] = Metric(
    "reports lost in these storms", "", lambda result: result.lost, Threshold(Rule.PATCHED_AT_MOST, 0)
)
SIZE: Metric[StormResult] = Metric(
    "{connections:,} connections: time per report", "µs", lambda result: result.per_report * 1e6
)
REGISTRAR: tuple[Metric[RegisterRates], ...] = (
    Metric(
        "REGISTER over new connections",
        "1/s",
        lambda result: result.register.rate,
        Threshold(Rule.RATIO_AT_LEAST, 0.98),
        NO_FLAG,
    ),
    Metric(
        "REGISTER over new connections: CPU of FreeSWITCH",
        "ms each",
        lambda result: result.register.cpu * 1e3,
        baseline=NO_FLAG,
    ),
    Metric("REGISTER that refreshes", "1/s", lambda result: result.refresh.rate, Threshold(Rule.NOT_LOWER), NO_FLAG),
    Metric(
        "REGISTER that refreshes: CPU of FreeSWITCH",
        "ms each",
        lambda result: result.refresh.cpu * 1e3,
        baseline=NO_FLAG,
    ),
)
CALLS: Metric[RequestRate] = Metric(
    "calls, answered and hung up", "1/s", lambda result: result.rate, Threshold(Rule.NOT_LOWER), NO_FLAG
)
# What the processes of Kamailio share would be counted more than once.
RESIDENT: Metric[Footprint] = Metric(
    "memory per registration (RSS)",
    "bytes",
    lambda result: result.resident,
    Threshold(Rule.RATIO_AT_MOST, 1.02),
    NO_FLAG,
)
PROPORTIONAL: Metric[Footprint] = Metric(
    "memory per registration (PSS)", "bytes", lambda result: result.proportional, baseline=NO_FLAG
)
# Of the milliseconds of each run.
LATENCY: tuple[Metric[Sequence[float]], ...] = (
    Metric(
        "one FIN to its event: p50", "ms", functools.partial(quantile, share=0.5), Threshold(Rule.PATCHED_AT_MOST, 1.0)
    ),
    Metric(
        "one FIN to its event: p99", "ms", functools.partial(quantile, share=0.99), Threshold(Rule.PATCHED_AT_MOST, 5.0)
    ),
)
IDLE: Metric[float] = Metric(
    "idle with one subscriber: CPU", "% of a core", lambda share: share * 100, Threshold(Rule.NOT_HIGHER), NO_FLAG
)
SLOW_CONSUMER: tuple[Metric[SlowConsumerResult], ...] = (
    Metric(
        "{title}: REGISTER and OPTIONS without an answer",
        "of {requests}",
        _unanswered,
        Threshold(Rule.PATCHED_AT_MOST, 0),
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
