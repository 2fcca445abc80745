"""The latency plots of a report: SVG that takes its colours from the page it is in."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

matplotlib.use("agg")  # No display is needed.

# matplotlib knows no CSS variables. It draws with these colours, and what it
# wrote gets the variables of the page in their place.
INK = "#010101"
GRID = "#010102"
SERIES = ("#010201", "#010202", "#010203", "#010204", "#010205")
VARIABLES = {INK: "var(--ink)", GRID: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
STYLES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)))
STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": GRID,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "latency",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class DelaySeries:
    """The delays of some cases, in milliseconds; at least one."""

    label: str
    delays_ms: Sequence[float]

    def percentile(self, share: float) -> float:
        """Return the delay that `share` per cent of the cases did not exceed: one that was measured."""
        return float(numpy.percentile(self.delays_ms, share, method="higher"))


@dataclass(frozen=True)
class Stages:
    """How the time from the kill to the event was spent: names and milliseconds, in order."""

    label: str
    stages: Sequence[tuple[str, float]]

    @property
    def total_ms(self) -> float:
        return sum(width for _, width in self.stages)


def distribution(series: Sequence[DelaySeries]) -> str:
    """Return the plot of the share of cases whose reports had come after so many milliseconds."""

    def draw(axes: Axes) -> None:
        for number, item in enumerate(series):
            colour, style = SERIES[number % len(SERIES)], STYLES[number % len(STYLES)]
            axes.ecdf(item.delays_ms, label=item.label, color=colour, linestyle=style, linewidth=1.6)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("milliseconds from the end of the connection to the last event")
        axes.set_ylabel("share of the cases")
        axes.grid()
        axes.legend(loc="lower right")

    return _svg(draw, 3.4)


def timeline(rows: Sequence[Stages]) -> str:
    """Return the plot of the stages between the kill and the event, a bar for each of `rows`."""
    names = list(dict.fromkeys(name for row in rows for name, _ in row.stages))

    def draw(axes: Axes) -> None:
        for name, colour in zip(names, SERIES, strict=False):
            lefts, widths = [], []
            for row in rows:
                known = [stage for stage, _ in row.stages]
                place = known.index(name) if name in known else len(known)
                lefts.append(sum(width for _, width in row.stages[:place]))
                widths.append(dict(row.stages).get(name, 0.0))
            axes.barh(range(len(rows)), widths, 0.5, lefts, color=colour, label=name)
        axes.set_yticks(range(len(rows)), [textwrap.shorten(row.label, 30, placeholder="…") for row in rows])
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.set_xlim(left=0)
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds after SIGKILL")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.figure.legend(loc="outside lower left")

    return _svg(draw, 1.5 + 0.3 * len(rows))


def _svg(draw: Callable[[Axes], None], height: float) -> str:
    """Return what `draw` makes of the axes as an SVG element, `height` inches high."""
    output = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure: Figure
        figure, axes = pyplot.subplots(figsize=(6, height), layout="constrained")
        try:
            draw(axes)
            figure.savefig(
                output,
                format="svg",
                metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
            )
        finally:
            pyplot.close(figure)
    svg = output.getvalue()
    # An element of the page: no prologue, no rule for every element, no fixed size.
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
