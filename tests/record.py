"""The report of the death matrix, as pytest has played it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.errors import ToolkitError
from scripts.pins.settings import load
from scripts.report import write
from scripts.scenario import table
from scripts.scenario.record import Record, together
from scripts.scenario.table import Case


class Plugin:
    """Writes the report at the end of a pytest session in which cases were played, or should have been."""

    def __init__(self) -> None:
        # What is played, and what comes of it, by the number of CPUs.
        self.cases: dict[int, list[Case]] = {}
        self.records: dict[int, Record] = {}
        self.why = ""
        self.line = ""
        # Where the report goes, if not where invoke.yaml says.
        self.directory: Path | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if isinstance(item, pytest.Function) and item.module.__name__ == "tests.scenarios.test_matrix":
                given = getattr(item, "callspec", None)
                if given and "case" in given.params:
                    self.cases.setdefault(given.params["cpus"], []).append(given.params["case"])
        self.records = {cpus: Record(table.load("deaths"), f"patched, {cpus} CPUs") for cpus in self.cases}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "setup" and report.failed and "test_matrix.py::test_case" in report.nodeid:
            self.why = report.longreprtext.strip().splitlines()[-1]

    def pytest_sessionfinish(self) -> None:
        played = any(record.results for record in self.records.values())
        # Who only starts workers hears of failures, too, but has no cases.
        if not self.cases or not (played or self.why):
            return
        for cpus, record in self.records.items():
            record.fill(self.cases[cpus], self.why or "the run was broken off before it")
        run = together(*self.records.values())
        try:
            path = write.write(run, self.directory or load().report_directory)
            self.line = f"death matrix: {len(run.results)} cases, {len(run.failures)} not passed; report in {path}"
        except ToolkitError as error:
            self.line = f"death matrix: {error}"
