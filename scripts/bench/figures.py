"""What was measured, and how it compares: statistics, ratios, targets, table, JSON."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scripts.machine import files

JSON_FILE = "bench.json"


class Rule(StrEnum):
    """What a target compares with its limit."""

    RATIO_AT_MOST = "ratio <="
    RATIO_AT_LEAST = "ratio >="
    PATCHED_AT_MOST = "patched <="
    # The middle half of the ratios reaches 1: the difference is not more than the spread.
    NOT_HIGHER = "not measurably higher"
    NOT_LOWER = "not measurably lower"


@dataclass(frozen=True)
class Threshold:
    """What a figure has to meet: a rule and its limit, which the last two rules don't have."""

    rule: Rule
    limit: float = 1.0

    def __str__(self) -> str:
        return f"{self.rule} {self.limit:g}" if self.rule.endswith("=") else str(self.rule)


@dataclass(frozen=True)
class Figure:
    """One measure: a value per run and image, in the order of the runs.

    Run i of `stock` is compared with run i of `patched`. `baseline` says which
    stock it is. A measure that stock doesn't have leaves `stock` empty, as
    `kamailio` is where it wasn't measured; no target is about it.
    """

    name: str
    unit: str
    stock: Sequence[float]
    patched: Sequence[float]
    target: Threshold | None = None
    baseline: str = ""
    kamailio: Sequence[float] = ()

    @property
    def ratios(self) -> list[float]:
        """The ratio patched / stock of each pair of runs."""
        return [patched / stock for stock, patched in zip(self.stock, self.patched, strict=False) if stock]

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none, or nothing to tell it by."""
        if not self.target or not self.patched or (self.target.rule is not Rule.PATCHED_AT_MOST and not self.ratios):
            return None
        match self.target.rule:
            case Rule.PATCHED_AT_MOST:
                return median(self.patched) <= self.target.limit
            case Rule.RATIO_AT_MOST:
                return median(self.ratios) <= self.target.limit
            case Rule.RATIO_AT_LEAST:
                return median(self.ratios) >= self.target.limit
            case Rule.NOT_HIGHER:
                return quantile(self.ratios, 0.25) <= 1
            case Rule.NOT_LOWER:
                return quantile(self.ratios, 0.75) >= 1


@dataclass(frozen=True)
class Curve:
    """Points of one image for a plot; `kind` is the name of what ran."""

    kind: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of many values: the worst, the value that 1 % are above, and the median; seconds, or ratios."""

    maximum: float
    p99: float
    median: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        """Return the percentiles of `values`. Raises ValueError if there are none."""
        return cls(quantile(values, 1), quantile(values, 0.99), quantile(values, 0.5))

    @classmethod
    def median_of(cls, several: Sequence[Percentiles]) -> Percentiles:
        """Return what is usual among `several`: the median of each."""
        return cls(*(median(values) for values in zip(*map(cls.each, several), strict=True)))

    def each(self) -> tuple[float, float, float]:
        return self.maximum, self.p99, self.median

    def over(self, base: Percentiles) -> Percentiles:
        """Return how many times those of `base` they are."""
        return Percentiles(*(mine / others for mine, others in zip(self.each(), base.each(), strict=True)))

    def __str__(self) -> str:
        return " / ".join(map(number, self.each()))


@dataclass(frozen=True)
class Sample:
    """A sample of what bystanders met beside offenders, or beside nobody.

    `answers` are the seconds that each REGISTER took to be answered, the time
    waited in vain included, which `unanswered` counts; `reports` those from
    each death to its report, and `lost` how many never came.
    """

    answers: Sequence[float]
    unanswered: int = 0
    reports: Sequence[float] = ()
    lost: int = 0


@dataclass(frozen=True)
class OffenderImpact:
    """The impact of offenders that do `name`, over `over`, on bystanders; `stock` is that of one on those of stock."""

    name: str
    over: Sequence[str]
    sample: Sample
    stock: Sample | None = None


@dataclass(frozen=True)
class OffenderReport:
    """The report of what `count` offenders of each kind did to bystanders, one kind after the other.

    `idle` are samples of the same load beside nobody, in between; they took
    `seconds` in all, and each sample about `window` seconds.
    """

    count: int
    window: float
    idle: Sequence[Sample]
    stock_idle: Sequence[Sample]
    found: Sequence[OffenderImpact]
    seconds: float = 0.0

    def rows(self) -> list[list[str]]:
        """Return the cells of the table; that of nobody comes first, as the range of its ratios."""
        answers = Percentiles.median_of([Percentiles.of(item.answers) for item in self.idle])
        reports = Percentiles.median_of([Percentiles.of(item.reports) for item in self.idle])
        cells = [["nothing: they are not there", "", *self._idle_cells(answers, reports), self._stock_idle()]]
        for offence in self.found:
            cells.append(
                [
                    offence.name,
                    ", ".join(offence.over),
                    *_percentile_cells(offence.sample.answers, answers),
                    *_percentile_cells(offence.sample.reports, reports),
                    str(offence.sample.unanswered + offence.sample.lost),
                    self._stock(offence.stock),
                ]
            )
        return cells

    def _idle_cells(self, answers: Percentiles, reports: Percentiles) -> list[str]:
        found: list[str] = []
        for base, each in (
            (answers, [Percentiles.of(item.answers) for item in self.idle]),
            (reports, [Percentiles.of(item.reports) for item in self.idle]),
        ):
            ranges = zip(*(percentiles.over(base).each() for percentiles in each), strict=True)
            found += [
                number(base.maximum * 1e3),
                " / ".join(f"{number(min(values))}–{number(max(values))}" for values in ranges),
            ]
        return [*found, str(sum(item.unanswered + item.lost for item in self.idle))]

    def _stock_idle(self) -> str:
        return number(self._stock_base() * 1e3) if self.stock_idle else ""

    def _stock_base(self) -> float:
        return median(max(item.answers) for item in self.stock_idle)

    def _stock(self, sample: Sample | None) -> str:
        if not sample:
            return ""
        worst = max(sample.answers)
        never = f", {sample.unanswered} never" if sample.unanswered else ""
        return f"{number(worst * 1e3)} ({number(worst / self._stock_base())} ×{never})"


OFFENDER_HEADINGS = (
    "each of the crowd",
    "over",
    "worst answer, ms",
    "answers ÷ idle",
    "worst report, ms",
    "reports ÷ idle",
    "never came",
    "stock, one such client: worst answer, ms",
)


def _percentile_cells(values: Sequence[float], base: Percentiles) -> list[str]:
    if not values:
        return ["", ""]
    percentiles = Percentiles.of(values)
    return [number(percentiles.maximum * 1e3), str(percentiles.over(base))]


@dataclass
class BenchmarkReport:
    """The report of a whole benchmark.

    `notes` says in words what no figure does; `curves` are by plot; `kamailio`
    is its version if it was measured, too; `offences` is None if there was no
    offenders.
    """

    started: str
    quick: bool
    machine: Mapping[str, str]
    images: dict[str, str] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    seconds: float = 0.0
    kamailio: str = ""
    offences: OffenderReport | None = None


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the sorted `values` are, interpolated."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = (len(ordered) - 1) * share
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def spread(values: Sequence[float]) -> str:
    """Return the median and, of more than one value, the lowest and the highest."""
    if not values:
        return ""
    if len(values) == 1:
        return number(values[0])
    return f"{number(median(values))} [{number(min(values))}–{number(max(values))}]"


def number(value: float) -> str:
    """Return `value` with three significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def machine() -> dict[str, str]:
    """Describe this machine, without its name."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "architecture": platform.machine(),
    }


def headings(kamailio: bool = False) -> list[str]:
    """Return the headings of the table, with one more column for Kamailio if asked for."""
    return ["measure", "unit", "stock", "patched", *["Kamailio"] * kamailio, "ratio", "target", "met?"]


def rows(figures: Sequence[Figure], kamailio: bool = False) -> list[list[str]]:
    """Return the cells of the table, in the order of `headings`."""
    words = {True: "yes", False: "no", None: ""}
    return [
        [
            figure.name,
            figure.unit,
            spread(figure.stock) + (f" ({figure.baseline})" if figure.baseline and figure.stock else ""),
            spread(figure.patched),
            *[spread(figure.kamailio)] * kamailio,
            spread(figure.ratios),
            str(figure.target or ""),
            words[figure.met],
        ]
        for figure in figures
    ]


def summary(figure: Figure) -> str:
    """Return `figure` as one line."""
    name, unit, stock, patched, kamailio, ratio, target, met = rows([figure], kamailio=True)[0]
    cells = {"stock": stock, "patched": patched, "Kamailio": kamailio, "ratio": ratio}
    parts = [f"{heading} {cell}" for heading, cell in cells.items() if cell]
    verdict = f"; {target}: {'not met' if met == 'no' else 'met'}" if met else ""
    return f"{name} ({unit}): " + ", ".join(parts) + verdict


def show(outcome: BenchmarkReport, console: Console) -> None:
    """Print the medians as a table that fits an ordinary terminal, and the notes; the spread is in the report."""
    table = Table(title="bench: medians", show_lines=False)
    table.add_column("measure", min_width=28)
    for heading in ("stock", "patched", *["Kamailio"] * bool(outcome.kamailio), "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("target")
    for figure in outcome.figures:
        unit = f" ({figure.unit})" if figure.unit else ""
        series = (figure.stock, figure.patched, *[figure.kamailio] * bool(outcome.kamailio), figure.ratios)
        cells = [number(median(values)) if values else "" for values in series]
        verdict = {True: f"{figure.target}: met", False: f"{figure.target}: NOT met", None: ""}[figure.met]
        style = {True: "green", False: "bold red", None: ""}[figure.met]
        table.add_row(Text(f"{figure.name}{unit}"), *map(Text, cells), Text(verdict, style))
    if outcome.figures:
        console.print(table)
    for note in outcome.notes:
        console.print(f"- {note}", markup=False)


def write(outcome: BenchmarkReport, directory: Path) -> Path:
    """Write bench.json into `directory` and return its path."""
    path = directory / JSON_FILE
    document = asdict(outcome)
    for figure, entry in zip(outcome.figures, document["figures"], strict=True):
        entry["ratios"], entry["met"] = figure.ratios, figure.met
        entry["target"] = str(figure.target) if figure.target else None
    if not outcome.kamailio:
        for entry in (document, *document["figures"]):
            del entry["kamailio"]
    files.write(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path
