"""The page docs/benchmark.md and its plots."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from scripts.bench.container import TEMPLATES
from scripts.bench.figures import OFFENDER_HEADINGS, BenchmarkReport, headings, rows
from scripts.bench.load import WINDOW
from scripts.bench.plan import FULL, QUICK
from scripts.machine import files
from scripts.templates import environment


def publish(outcome: BenchmarkReport, drawn: Sequence[Path], directory: Path) -> Path:
    """Copy the plots to `directory`/benchmark and write `directory`/benchmark.md; return that.

    An outcome with offenders only replaces their section of the page that is there.
    """
    path = directory / "benchmark.md"
    if outcome.offences and not outcome.figures and path.exists():
        files.write(path, with_section(path.read_text(), render("offenders.md.j2", outcome)))
        return path
    plots = directory / "benchmark"
    plots.mkdir(parents=True, exist_ok=True)
    for file in drawn:
        shutil.copyfile(file, plots / file.name)
    files.write(path, page(outcome))
    return path


def page(outcome: BenchmarkReport) -> str:
    """Return docs/benchmark.md."""
    return render("benchmark.md.j2", outcome)


def with_section(text: str, section: str) -> str:
    """Return the page `text` with `section` in the place of the one that has its heading, or else before Machine."""
    heading, *_ = section.partition("\n")
    old = re.compile(rf"(?ms)^{re.escape(heading)}\n.*?(?=^## |\Z)")
    if not old.search(text):
        old = re.compile(r"(?m)^(?=## Machine$)|\Z")
    return old.sub(lambda _: section, text, count=1)


def render(name: str, outcome: BenchmarkReport) -> str:
    """Return what the template `name` makes of `outcome`."""
    return (
        environment(TEMPLATES)
        .get_template(name)
        .render(
            outcome=outcome,
            plan=QUICK if outcome.quick else FULL,
            headings=headings(bool(outcome.kamailio)),
            rows=rows(outcome.figures, bool(outcome.kamailio)),
            offender_headings=OFFENDER_HEADINGS,
            window=WINDOW,
        )
    )
