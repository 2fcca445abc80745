"""The summary of a pipeline: what the report directory has, on one page of Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from junitparser import Error, Failure, JUnitXml, JUnitXmlError, Skipped, TestCase
from junitparser.junitparser import Result
from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.machine import terminal
from scripts.machine.files import short
from scripts.patchset import trials
from scripts.publish import push
from scripts.templates import environment

# GitHub takes no more than 1 MiB of a step.
LIMIT = 1_000_000


@dataclass(frozen=True)
class Suite:
    """The tests of one JUnit file: how many there were, who failed and who was skipped, each with the reason.

    `modules` has the numbers of tests, failed and skipped ones by module.
    """

    name: str
    tests: int
    seconds: float
    failed: Sequence[tuple[str, str]]
    skipped: Sequence[tuple[str, str]]
    modules: Mapping[str, tuple[int, int, int]]

    @property
    def passed(self) -> int:
        return self.tests - len(self.failed) - len(self.skipped)


def write(reports: Path, output: str = "", console: Console | None = None) -> None:
    """Append the summary of the directory `reports` to the file `output`, or print it if that is empty.

    Raises ToolkitError if a report cannot be read or the file cannot be written.
    """
    page = text(reports)
    if not output:
        terminal.loud(console or get_console()).out(page, end="", highlight=False)
        return
    try:
        with Path(output).open("a", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        raise ToolkitError(f"cannot write the summary to {output}: {error.strerror or error}") from error


def text(reports: Path, only: Sequence[str] = ()) -> str:
    """Return the summary of the reports in the directory, of the files `only` if some are named."""
    names = sorted(path.name for path in reports.glob("*") if path.is_file()) if reports.is_dir() else []
    chosen = [name for name in names if not only or name in only]
    documents = {Path(name).stem: _read(reports / name) for name in chosen if name.endswith(".json")}
    runs = {name: found for name, found in documents.items() if isinstance(found, dict) and "results" in found}
    # The JUnit file of a run says the same as its JSON.
    suites = [_suite(reports / name) for name in chosen if name.endswith(".xml") and Path(name).stem not in runs]
    parts = {
        key: documents.get(Path(name).stem)
        for key, name in {"matrix": trials.MATRIX_FILE, "tip": trials.TIP_FILE, "pushed": push.PUSH_FILE}.items()
    }
    templates = environment()
    templates.filters["cell"] = cell
    page = templates.get_template("summary.md.j2").render(**parts, runs=runs, suites=suites, empty=not chosen)
    if len(page.encode()) > LIMIT:
        page = page.encode()[:LIMIT].decode(errors="ignore").rpartition("\n")[0] + "\n\nThe rest is in the reports.\n"
    return page


def cell(value: object) -> str:
    """Return `value` as text for a cell of a Markdown table: one line, and nothing in it is markup."""
    line = " ".join(str(value).split())
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "&#96;"), ("@", "&#64;")):
        line = line.replace(sign, entity)
    for sign in "\\*_[]~":
        line = line.replace(sign, f"\\{sign}")
    return line


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ToolkitError(f"{short(file)} cannot be read ({error}): remove it, then make it again") from error


def _suite(file: Path) -> Suite:
    try:
        cases = [case for suite in JUnitXml.fromfile(str(file)) for case in suite]
        seconds = sum(case.time or 0 for case in cases)
    # A file that is no XML is a SyntaxError, a time that is no number a ValueError.
    except (OSError, SyntaxError, ValueError, JUnitXmlError) as error:
        raise ToolkitError(f"{short(file)} cannot be read ({error}): remove it, then make it again") from error
    failed, skipped = _outcomes(cases, Failure, Error), _outcomes(cases, Skipped)
    modules = {}
    for module in sorted({case.classname or "" for case in cases}):
        every = [case for case in cases if (case.classname or "") == module]
        modules[module] = (len(every), len(_outcomes(every, Failure, Error)), len(_outcomes(every, Skipped)))
    return Suite(file.stem, len(cases), seconds, failed, skipped, modules)


def _outcomes(cases: Sequence[TestCase], *kinds: type[Result]) -> list[tuple[str, str]]:
    """Return the name of each test with an outcome of `kinds`, and why."""
    return [
        (f"{case.classname or ''} {case.name or ''}".strip(), _first_line(outcome))
        for case in cases
        for outcome in [found for found in case.result if isinstance(found, kinds)][:1]
    ]


def _first_line(outcome: Result) -> str:
    lines = (outcome.message or outcome.text or "").strip().splitlines()
    return lines[0] if lines else ""
