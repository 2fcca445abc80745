"""The plots of the benchmark, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")  # No display is needed.

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.bench.figures import BenchmarkReport, Curve

FORMATS = ("png", "svg")
COLOURS = {"stock": "tab:orange", "patched": "tab:blue", "patched-removing": "tab:green", "kamailio": "tab:purple"}
LABELS = {
    "stock": "stock, tcp-unreg-on-socket-close",
    "patched": "patched",
    "patched-removing": "patched, tp-error-unregister",
    "kamailio": "Kamailio",
}


def draw(outcome: BenchmarkReport, directory: Path) -> list[Path]:
    """Draw what `outcome` has curves for; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    drawers = {"latency": _latency, "storm": _storm, "cost": _cost}
    files: list[Path] = []
    # The same figures give the same files.
    with matplotlib.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none"}):
        for name, drawer in drawers.items():
            curves = outcome.curves
            if not curves.get(name):
                continue
            files += drawer(name, curves, directory)
    return files


def _latency(name: str, curves: Mapping[str, Sequence[Curve]], directory: Path) -> list[Path]:
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for curve in curves[name]:
        _line(axes, curve)
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.axvline(5, color="grey", linewidth=0.8, linestyle=":")
    axes.axhline(0.5, color="grey", linewidth=0.5, linestyle=":")
    axes.axhline(0.99, color="grey", linewidth=0.5, linestyle=":")
    return _finish(
        figure, axes, name, directory, "From a FIN to its event", "milliseconds", "share of events that have come"
    )


def _storm(name: str, curves: Mapping[str, Sequence[Curve]], directory: Path) -> list[Path]:
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for curve in curves[name]:
        _line(axes, curve)
    count = max(max(curve.y) for curve in curves[name])
    return _finish(
        figure,
        axes,
        name,
        directory,
        f"The owner of {count:,.0f} connections is killed",
        "seconds after the kill",
        "reports that have come",
    )


def _cost(name: str, curves: Mapping[str, Sequence[Curve]], directory: Path) -> list[Path]:
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for curve in curves[name]:
        _line(axes, curve, "o-")
    for curve in curves.get("cost-cpu", ()):
        _line(axes, curve, "x--", ": CPU")
    axes.set_xscale("log", base=2)
    points = sorted({x for curve in curves[name] for x in curve.x})
    axes.set_xticks(points, [f"{x:,.0f}" for x in points])
    axes.set_ylim(bottom=0)
    return _finish(figure, axes, name, directory, "Cost of a report", "connections lost at once", "microseconds each")


def _line(axes: Axes, curve: Curve, style: str = "-", suffix: str = "") -> None:
    label = LABELS.get(curve.kind, curve.kind) + suffix
    known = axes.get_legend_handles_labels()[1]
    axes.plot(
        curve.x,
        curve.y,
        style,
        color=COLOURS.get(curve.kind),
        label="_again" if label in known else label,
        linewidth=1.2,
        markersize=5,
    )


def _finish(
    figure: Figure, axes: Axes, name: str, directory: Path, title: str, x_label: str, y_label: str
) -> list[Path]:
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    # Beside the curves: over them it hides what it is about.
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    files = []
    for form in FORMATS:
        path = directory / f"{name}.{form}"
        figure.savefig(path, dpi=120, metadata={"Date": None} if form == "svg" else None)
        files.append(path)
    pyplot.close(figure)
    return files
