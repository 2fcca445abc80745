"""The summary of a pipeline's reports."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.patchset import trials
from scripts.patchset.trials import Trial
from scripts.pins.settings import Settings
from scripts.publish import summary
from scripts.report import write
from scripts.scenario.outcome import Verdict
from tests.unit.report.test_write import RUN

JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" tests="4">
<testcase classname="tests.test_matrix" name="test_case[killed &lt;x&gt;]" time="1.5">
<failure message="assert not ['no | report']&#10;more">long text</failure></testcase>
<testcase classname="tests.test_matrix" name="test_case[reset]" time="0.5"/>
<testcase classname="tests.test_base" name="test_a" time="0.0">
<skipped message="no Docker" type="pytest.skip"/></testcase>
<testcase classname="tests.test_base" name="test_b" time="0.0"><error message="ERROR at setup"/></testcase>
</testsuite></testsuites>
"""
GOOD = Trial("freeswitch", "v1.11.1", ("sofia-sip",), 37, True, 3)
BAD = Trial(
    "sofia-sip", "0123456789ab", (), 71, False, 0, 1, "0002-x.patch: hunk 3 of <b>tport.c</b> | does not match it"
)


@pytest.fixture
def directory(settings: Settings) -> Path:
    settings.report_directory.mkdir(parents=True)
    return settings.report_directory


def rows(page: str, first: str) -> list[list[str]]:
    """Return the cells of the rows that begin with the cell `first`."""
    found = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    return [cells for cells in found if cells[0] == first]


def test_nothing_to_tell(settings: Settings) -> None:
    assert summary.text(settings.report_directory).startswith("No reports")


def test_verification(settings: Settings, directory: Path) -> None:
    write.write(RUN, directory)
    page = summary.text(settings.report_directory)
    assert "## Verify: **not passed**" in page
    assert rows(page, "patched") == [
        ["patched", "killed client", "SIPp killed", "1 report", "1 report", "3.2", "passed"]
    ]
    stock = rows(page, "stock")
    assert [cells[1] for cells in stock] == ["clean leave", "killed client", "third"]
    assert [cells[-1] for cells in stock] == [
        f"**{verdict}**" for verdict in (Verdict.FAILED, Verdict.ERROR, Verdict.NOT_RUN)
    ]
    assert "1 report &lt;&amp;&gt;" in stock[0][4]
    assert "- patched: `sha256:aa`" in page
    # The JUnit file of the same run would tell the same again.
    assert "Tests (verify)" not in page


def test_long_run_is_folded(settings: Settings, directory: Path) -> None:
    write.write(dataclasses.replace(RUN, results=[*RUN.results] * 4), directory)
    (directory / "verify.json").rename(directory / "death-matrix.json")
    (directory / "verify.xml").unlink()
    page = summary.text(settings.report_directory)
    assert "## Death matrix: **not passed**" in page and "<details><summary>16 results</summary>" in page
    assert len(rows(page, "patched")) == 4


def test_junit_of_the_tests(settings: Settings, directory: Path) -> None:
    (directory / "tests.xml").write_text(JUNIT)
    page = summary.text(settings.report_directory)
    assert "## Tests (tests): 1 passed, **2 failed**, 1 skipped, 2 s" in page
    assert "| tests.test\\_matrix test\\_case\\[killed &lt;x&gt;\\] | assert not \\['no &#124; report'\\] |" in page
    assert "| tests.test\\_base test\\_a | no Docker |" in page
    assert rows(page, "tests.test\\_matrix") == [["tests.test\\_matrix", "2", "1", "0"]]
    assert rows(page, "tests.test\\_base") == [["tests.test\\_base", "2", "1", "1"]]


def test_series(settings: Settings, directory: Path) -> None:
    trials.write([GOOD], directory / trials.MATRIX_FILE)
    trials.write([GOOD, BAD], directory / trials.TIP_FILE)
    page = summary.text(settings.report_directory)
    tip, _, releases = page.partition("## Releases of the upstreams")
    assert "The series applies." in releases and "**does not" not in releases
    assert "**The series does not apply.**" in tip
    assert rows(tip, "sofia-sip") == [["sofia-sip", "0123456789ab", "**no**", "71", "0", "1"]]
    assert rows(releases, "freeswitch + sofia-sip") == [["freeswitch + sofia-sip", "v1.11.1", "yes", "37", "3", "0"]]
    assert "sofia-sip 0123456789ab: 0002-x.patch: hunk 3 of &lt;b&gt;tport.c&lt;/b&gt; &#124; does not" in tip
    only = summary.text(settings.report_directory, [trials.TIP_FILE])
    assert "Newest commits" in only and "Releases of" not in only


def test_pushed(settings: Settings, directory: Path) -> None:
    (directory / "push.json").write_text(
        json.dumps({"repository": "r.example.org/fs", "tags": ["1.2.3", "latest"], "digest": "sha256:1", "image": "x"})
    )
    page = summary.text(settings.report_directory)
    assert "`r.example.org/fs@sha256:1`" in page and "Tags: `1.2.3`, `latest`" in page


def test_tables_are_tables(settings: Settings, directory: Path) -> None:
    """A table needs an empty line before it and none inside."""
    write.write(RUN, directory)
    (directory / "tests.xml").write_text(JUNIT)
    trials.write([GOOD], directory / trials.MATRIX_FILE)
    trials.write([GOOD, BAD], directory / trials.TIP_FILE)
    lines = ["", *summary.text(settings.report_directory).splitlines()]
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith("|--"):
            assert before.startswith("| ") and after.startswith("| ")
            assert before.count("|") == line.count("|") == after.count("|")
        if line.startswith("#") or line.startswith("<details>") or line == "</details>":
            assert before == "", line


def test_output_is_appended(settings: Settings, directory: Path, tmp_path: Path) -> None:
    trials.write([GOOD], directory / trials.MATRIX_FILE)
    target = tmp_path / "summary.md"
    target.write_text("before\n")
    summary.write(settings.report_directory, str(target))
    assert target.read_text() == "before\n" + summary.text(settings.report_directory)
    stream = io.StringIO()
    summary.write(settings.report_directory, console=Console(file=stream, width=20))
    assert stream.getvalue() == summary.text(settings.report_directory)


def test_summary_of_a_step_is_bounded(settings: Settings, directory: Path) -> None:
    trials.write([BAD] * 9000, directory / trials.MATRIX_FILE)
    page = summary.text(settings.report_directory)
    assert len(page.encode()) < 1 << 20
    assert page.endswith("The rest is in the reports.\n")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("verify.json", "{"),
        ("tests.xml", "<testsuites>"),
        ("tests.xml", "<html/>"),
        ("tests.xml", '<testsuite><testcase name="x" time="long"/></testsuite>'),
    ],
)
def test_broken_report_is_named(settings: Settings, directory: Path, name: str, content: str) -> None:
    (directory / name).write_text(content)
    with pytest.raises(ToolkitError, match=rf"{name} cannot be read .*: remove it, then make it again"):
        summary.text(settings.report_directory)


def test_output_that_cannot_be_written(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"cannot write the summary to .*: Is a directory"):
        summary.write(settings.report_directory, str(tmp_path))
