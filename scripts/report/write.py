"""The outcome of a verification: on the terminal, as JUnit XML, as JSON and as a page."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite
from rich import get_console
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scripts.errors import ToolkitError
from scripts.freeswitch.events import as_json
from scripts.machine import files
from scripts.scenario.outcome import Result, Run, Verdict

# What XML 1.0 can't hold, not even escaped.
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Results that a terminal has room for.
PAGE = 40
SUFFIXES = (".xml", ".json", ".html")
STYLES = {
    Verdict.PASSED: "green",
    Verdict.FAILED: "bold red",
    Verdict.ERROR: "bold red",
    Verdict.NOT_RUN: "yellow",
    Verdict.SKIPPED: "yellow",
}


def write(run: Run, directory: Path) -> Path:
    """Write `run` as .xml, .json and .html into `directory`, each at one stroke; return the path of the page.

    Raises ToolkitError if that's not possible; a file of a former run is then
    left as it was.
    """
    # What draws takes seconds to import: a mistake in a table is told before that.
    from scripts.report.page import render

    # The page comes last: it takes the longest, and programs read the others.
    path = directory / f"{run.name}.html"
    for suffix, content in zip(SUFFIXES, (_junit, _json, render), strict=True):
        target = path.with_suffix(suffix)
        try:
            with files.replacing(target) as file:
                file.write(content(run).encode())
        except OSError as error:
            raise ToolkitError(
                f"can't write the report to {files.short(target)}: {error.strerror or error}", files.remedy(error)
            ) from None
    return path


def prepare(directory: Path, names: Iterable[str] = ()) -> None:
    """Make the directory of the reports `names`, to find out before the work that they can't be written.

    Raises ToolkitError then.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in (directory / f"{name}{suffix}" for name in names for suffix in SUFFIXES):
            if path.is_dir():
                raise ToolkitError(f"can't write {files.short(path)}: it is a directory: remove it")
        # As those of the reports will be.
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ToolkitError(
            f"setting 'verify.report_directory': can't make {directory} ({error.strerror or error}): give another one"
        ) from None


def show(run: Run, console: Console | None = None) -> None:
    """Print the results as a table; of more than a page, those that did not pass, and how many did."""
    shown = run.results if len(run.results) <= PAGE else run.failures
    table = Table(title=run.name, show_lines=True)
    told = any(result.done for result in shown)
    for name in ("image", "case", *(["done"] if told else []), "expected", "came"):
        table.add_column(name, overflow="fold")
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for result in shown:
        # Text, because brackets in a log line aren't markup.
        cells = [result.variant, result.name, *([result.done] if told else []), result.expected]
        cells.append("\n".join([result.came, *result.problems]).strip())
        cells.append("" if result.delay_ms is None else f"{result.delay_ms:.1f}")
        table.add_row(*map(Text, cells), Text(result.verdict, STYLES[result.verdict]))
    console = console or get_console()
    if shown:
        console.print(table)
    if len(run.results) > PAGE:
        counts = Counter(result.verdict for result in run.results)
        console.print(f"{run.name}: {', '.join(f'{count} {verdict}' for verdict, count in counts.items())}")


def _json(run: Run) -> str:
    document = {
        "started": run.started.isoformat(),
        "passed": not run.failures,
        "versions": dict(run.versions),
        "images": [
            {"variant": image.variant, "tag": image.tag, "id": image.id, "labels": dict(image.labels)}
            for image in run.images
        ],
        "results": [
            {
                "image": result.variant,
                "case": result.case,
                **({"profile": result.profile, "transport": result.transport} if result.transport else {}),
                "done": result.done,
                "steps": list(result.steps),
                "expected": result.expected,
                "came": result.came,
                "verdict": result.verdict,
                "problems": list(result.problems),
                "delay_ms": result.delay_ms,
                "timings_ms": dict(result.timings),
                "seconds": round(result.seconds, 3),
                "events": [as_json(event) for event in result.events],
            }
            for result in run.results
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _junit(run: Run) -> str:
    report = JUnitXml(run.name)
    for variant in dict.fromkeys(result.variant for result in run.judged):
        suite = TestSuite(_clean(variant))
        suite.timestamp = run.started.isoformat()
        pairs = list(run.versions.items())
        for image in run.images:
            if image.variant == variant:
                pairs += [("image", image.tag), ("image id", image.id), *image.labels.items()]
        for name, value in pairs:
            suite.add_property(_clean(name), _clean(value))
        suite.add_testcases([_testcase(run.name, result) for result in run.judged if result.variant == variant])
        report.append(suite)
    report.update_statistics()
    root = ElementTree.fromstring(report.tostring())
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _testcase(name: str, result: Result) -> TestCase:
    case = TestCase(_clean(result.name), f"{name}.{_clean(result.variant)}", round(result.seconds, 3))
    if result.verdict is not Verdict.PASSED:
        # JUnit's "skipped" passes for success; what should have run and didn't verifies nothing.
        kind = {Verdict.FAILED: Failure, Verdict.SKIPPED: Skipped}.get(result.verdict, Error)
        case.result = [kind(_clean("; ".join([result.verdict, *result.problems])))]
    delay = "" if result.delay_ms is None else f" after {result.delay_ms:.1f} ms"
    done = result.done or "; ".join(result.steps)
    case.system_out = _clean(f"done: {done}\nexpected: {result.expected}\ncame: {result.came}{delay}")
    return case


def _clean(text: str) -> str:
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
