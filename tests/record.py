"""The report of the death matrix: what each case of matrix.yaml came to, as a scripts.scenario.outcome.Run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from scripts.errors import ToolkitError
from scripts.freeswitch.capture import Capture, Sniffer
from scripts.machine import engine
from scripts.machine.engine import LABEL
from scripts.pins.settings import load
from scripts.report import write
from scripts.scenario import outcome, verify
from scripts.scenario.outcome import Image, Result, Run, Verdict
from tests import player
from tests.lab import ESL_PORT, Lab
from tests.player import Case, Player, Stage

NAME = "death-matrix"
# Lines of FreeSWITCH's log that go into the report of a case that failed.
EXCERPT = 60


@dataclass
class Entry:
    """One case while it is played; the test sets `stages`."""

    player: Player
    stages: list[Stage] = field(default_factory=list)


@dataclass
class Record:
    """The results of the cases on one image; its `directory` is where the report goes.

    Cases may be noted in several threads.
    """

    variant: str = "patched"
    started: datetime = field(default_factory=lambda: datetime.now().astimezone())
    results: dict[Case, Result] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    subclass: str = ""
    directory: Path | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def case(self, lab: Lab, case: Case) -> Iterator[Entry]:
        """Note what comes of `case`, whatever it is; a case with a kill is captured."""
        with self._lock:
            self._note_lab(lab)
        entry = Entry(Player(lab, case, stock=self.variant == "stock"))
        began_ns = time.time_ns()
        verdict, problems = Verdict.PASSED, []
        with _captured(lab, case) as sniffer:
            try:
                yield entry
            except pytest.skip.Exception as skipped:
                verdict, problems = Verdict.SKIPPED, [str(skipped)]
                raise
            except Exception as error:
                problems = player.problems(entry.stages)
                verdict = Verdict.FAILED if problems else Verdict.ERROR
                problems = problems or [" ".join(str(error).split())[:300] or type(error).__name__]
                raise
            finally:
                self.results[case] = self._result(lab, case, entry, verdict, problems, began_ns, sniffer)

    def note(self, case: Case, verdict: Verdict, **changes: Any) -> None:
        """Change the verdict on `case` and other fields of its result."""
        self.results[case] = replace(self.results[case], verdict=verdict, **changes)

    def fill(self, cases: Iterable[Case], why: str) -> None:
        """Add those of `cases` that have not been run because of `why`, and put all into the order of `cases`."""
        self.results = {
            case: self.results.get(case)
            or Result(
                self.variant, case.name, "", "", "", Verdict.NOT_RUN, [why],
                profile=case.profile, transport=case.transport, steps=case.steps,
            )
            for case in cases
        }  # fmt: skip

    def run(self) -> Run:
        """Return what the report is made of."""
        return Run(
            self.started, self.images, self.versions, list(self.results.values()), name=NAME, subclass=self.subclass
        )

    def _note_lab(self, lab: Lab) -> None:
        if not self.images:
            container = lab.freeswitch.container
            image = container.image
            self.images.append(Image(self.variant, lab.image, image.id, image.labels))
            self.versions |= verify.upstreams(lab.settings, image.labels) | engine.versions(container.client)
            self.versions["genesis"] = importlib.metadata.version("genesis")
            self.versions[f"freeswitch ({self.variant})"] = " ".join(lab.freeswitch.recorder.api("version").split())
            self.subclass = lab.settings.esl_event
            self.directory = lab.settings.report_directory

    def _result(
        self,
        lab: Lab,
        case: Case,
        entry: Entry,
        verdict: Verdict,
        problems: list[str],
        began_ns: int,
        sniffer: Sniffer | None,
    ) -> Result:
        ended_ns = time.time_ns()
        capture = None
        if sniffer:
            pcap, problem = sniffer.read()
            capture = Capture(
                case.transport, lab.freeswitch.address, "", began_ns, ended_ns, entry.player.killed_ns, pcap, problem
            )
        # Several connections have no one end that a delay could begin at.
        measured = [stage for stage in entry.stages if stage.step.split()[0] not in ("storm", "fin_all")]
        delays = [arrival * 1e3 for stage in measured for arrival in stage.arrivals]
        logs = {}
        if verdict in (Verdict.FAILED, Verdict.ERROR):
            with self._lock:
                log = lab.freeswitch.container.logs(since=began_ns // 10**9, tail=EXCERPT)
            logs["FreeSWITCH"] = log.decode(errors="replace")
        # Stock code removes WebSocket registrations anyway: that counts where it was asked for.
        judged = [stage for stage in entry.stages if case.transport in ("tcp", "tls") or stage.expected.unregisters]
        expected = outcome.counted(
            sum(len(stage.expected.reports) for stage in entry.stages),
            sum(len(stage.expected.unregisters) for stage in entry.stages),
        )
        came = outcome.counted(sum(stage.reports for stage in entry.stages), sum(stage.unregisters for stage in judged))
        return Result(
            self.variant,
            case.name,
            "",
            expected if entry.stages else "",
            came if entry.stages else "",
            verdict,
            problems,
            delay_ms=max(delays, default=None),
            seconds=(ended_ns - began_ns) / 1e9,
            events=entry.player.events() if capture or logs else (),
            profile=case.profile,
            transport=case.transport,
            steps=case.steps,
            logs=logs,
            capture=capture,
        )


def together(first: Record, *others: Record) -> Run:
    """Return what the report on several records is made of, side by side."""
    run = first.run()
    for other in others:
        run = replace(
            run,
            images=[*run.images, *other.images],
            versions={**other.versions, **run.versions},
            results=[*run.results, *other.results.values()],
            subclass=run.subclass or other.subclass,
        )
    return run


class Plugin:
    """Writes the report at the end of a pytest session in which cases were played, or should have been."""

    def __init__(self) -> None:
        # What is played, and what comes of it, by the number of CPUs.
        self.cases: dict[int, list[Case]] = {}
        self.records: dict[int, Record] = {}
        self.why = ""
        self.line = ""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if isinstance(item, pytest.Function) and item.module.__name__ == "tests.scenarios.test_matrix":
                given = getattr(item, "callspec", None)
                if given and "case" in given.params:
                    self.cases.setdefault(given.params["cpus"], []).append(given.params["case"])
        self.records = {cpus: Record(f"patched, {cpus} CPUs") for cpus in self.cases}

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
        directory = next((record.directory for record in self.records.values() if record.directory), None)
        try:
            path = write.write(run, directory or load().report_directory)
            self.line = f"death matrix: {len(run.results)} cases, {len(run.failures)} not passed; report in {path}"
        except ToolkitError as error:
            self.line = f"death matrix: {error}"


@contextlib.contextmanager
def _captured(lab: Lab, case: Case) -> Iterator[Sniffer | None]:
    """Capture what goes over the wire if `case` kills a client."""
    if not any(step.startswith("kill ") for step in case.steps):
        yield None
        return
    container = lab.freeswitch.container
    sniffer = Sniffer(
        container.client,
        f"{lab.settings.image}:sipp",
        container,
        f"tcp and host {lab.freeswitch.address} and not port {ESL_PORT}",
        f"{container.name}-capture",
        {LABEL: "true"},
    )
    try:
        sniffer.start()
        yield sniffer
    finally:
        sniffer.remove()
