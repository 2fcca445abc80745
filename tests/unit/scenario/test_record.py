"""The record of the death matrix, without a FreeSWITCH."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import APIError

from scripts.errors import ToolkitError
from scripts.freeswitch.capture import Sniffer
from scripts.freeswitch.container import FreeSwitch
from scripts.pins.settings import load
from scripts.scenario import record, table
from scripts.scenario.judge import Expected, Stage
from scripts.scenario.outcome import Result, Verdict
from scripts.scenario.record import Lost, Record
from scripts.scenario.table import Case
from tests import compare
from tests.record import Plugin

FIN = Case("FIN", "main", "tcp", ("open a", "register u a", "fin a -> u 0 left peer-closed"))
KILL = Case("SIGKILL", "main", "ws", ("spawn u", "kill u -> u 0 left peer-closed"), capture=True)
DEATHS = table.load("deaths")
STORM = Case("storm", "main", "tcp", ("storm u*9 fin -> each registered u*9 reset",))


class FakeContainer:
    """A container with an image and a log."""

    image = SimpleNamespace(id="sha256:aa", labels={"org.freeswitch-tp-error.series": "abc"})
    client = SimpleNamespace(
        version=lambda: {"Version": "20.10", "KernelVersion": "6.1", "Os": "linux", "Arch": "amd64"},
        info=lambda: {"OperatingSystem": "Debian"},
    )
    name = "lab"

    def logs(self, **options: int) -> bytes:
        return b"2026 [ERR] sofia.c boom \xff"

    def get_archive(self, path: str) -> None:
        raise APIError("no such file")

    def wait(self, timeout: int) -> None:
        raise APIError("timed out")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A lab in which nothing runs."""

    class Played:
        def __init__(self, lab: Any, case: Case, stock: bool = False) -> None:
            self.case, self.killed_ns = case, 5
            self.stages: list[Stage] = []
            self.step = "register u  a"
            self.sipps: dict[str, object] = {}
            self.switch = lab.freeswitch
            self.events, self.last_registration = list, lambda: None

    monkeypatch.setattr(record, "Player", Played)
    monkeypatch.setattr(Sniffer, "start", lambda self: None)
    settings: Any = SimpleNamespace(
        image="fs", esl_event="sofia::tp_error_report", report_directory=tmp_path / "report", sources=load().sources
    )
    container: Any = FakeContainer()
    freeswitch = FreeSwitch(container, "192.0.2.1", "pw", settings.esl_event, DEATHS.profiles, tmp_path / "logs")
    recorder: Any = SimpleNamespace(api=lambda command: "FreeSWITCH 1.10\n")
    freeswitch.recorder = recorder
    return SimpleNamespace(
        freeswitch=freeswitch,
        settings=settings,
        client=FakeContainer.client,
        image="fs:patched",
        versions={},
        labels={},
    )


def stage(step: str, arrivals: list[float], **options: Any) -> Stage:
    reports = [("u", 0, frozenset({"peer-closed"})) for _ in arrivals]
    return Stage(step, Expected(reports=reports), reports=len(arrivals), arrivals=arrivals, **options)


def test_case_that_passes(lab: Any) -> None:
    found = Record(DEATHS)
    with found.case(lab, FIN) as entry:
        entry.stages = [stage(FIN.steps[2], [0.002, 0.004])]
    result = found.results[FIN]
    assert (result.verdict, result.expected, result.came) == (Verdict.PASSED, "2 reports", "2 reports")
    assert (result.delay_ms, result.capture, result.logs) == (4.0, None, {})
    assert (result.name, result.steps) == ("FIN, main, tcp", FIN.steps)


def test_case_that_fails_has_its_problems_and_the_log(lab: Any) -> None:
    found = Record(DEATHS)
    with found.case(lab, FIN) as entry:
        entry.stages = [stage(FIN.steps[2], [], problems=["0 reports for u instead of 1"])]
    result = found.results[FIN]
    assert result.verdict is Verdict.FAILED
    assert result.problems == [f"{FIN.steps[2]}: 0 reports for u instead of 1"]
    assert result.logs == {"patched-freeswitch.log": "2026 [ERR] sofia.c boom \N{REPLACEMENT CHARACTER}"}


def test_case_that_cannot_be_played_is_an_error(lab: Any) -> None:
    found = Record(DEATHS)
    with pytest.raises(ConnectionRefusedError), found.case(lab, FIN):
        raise ConnectionRefusedError("refused")
    assert (found.results[FIN].verdict, found.results[FIN].problems) == (Verdict.ERROR, ["register u a: refused"])
    assert (found.results[FIN].expected, found.results[FIN].came) == ("1 report", "no report")


def test_freeswitch_that_is_gone_is_more_than_an_error_of_a_case(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeContainer, "wait", lambda self, timeout: {"StatusCode": 139}, raising=False)
    found = Record(DEATHS)
    with (
        pytest.raises(Lost, match=r"died with exit code 139: 2026 \[ERR\] sofia.c boom .* \(case 'FIN'\)"),
        found.case(lab, FIN),
    ):
        raise ToolkitError("the event socket is gone")
    assert found.results[FIN].verdict is Verdict.ERROR


def test_case_that_is_broken_off_has_no_result(lab: Any) -> None:
    found = Record(DEATHS)
    lab.freeswitch.halt.set()
    with pytest.raises(KeyboardInterrupt), found.case(lab, FIN):
        raise KeyboardInterrupt
    assert found.results == {}


def test_case_that_is_skipped_says_why() -> None:
    found = Record(DEATHS)
    found.skip(FIN, "no IPv6")
    assert (found.results[FIN].verdict, found.results[FIN].problems) == (Verdict.SKIPPED, ["no IPv6"])


def test_only_a_kill_is_captured(lab: Any) -> None:
    found = Record(DEATHS)
    with found.case(lab, KILL) as entry:
        entry.stages = [stage(KILL.steps[1], [0.001])]
    capture = found.results[KILL].capture
    assert capture and (capture.transport, capture.killed_ns, capture.server) == ("ws", 5, "192.0.2.1")
    assert capture.problem == "nothing was captured: tcpdump was not started"


def test_storm_has_no_delay_and_what_stock_does_anyway_does_not_count(lab: Any) -> None:
    found = Record(DEATHS)
    with found.case(lab, STORM) as entry:
        entry.stages = [stage(STORM.steps[0], [0.5])]
    assert found.results[STORM].delay_ms is None
    with found.case(lab, KILL) as entry:
        entry.stages = [stage(KILL.steps[1], [0.001], unregisters=1, unasked=1)]
    assert found.results[KILL].came == "1 report"


def test_session_writes_what_was_played_and_what_was_not(lab: Any) -> None:
    plugin = Plugin()
    plugin.cases = {2: [KILL, FIN], 16: [FIN]}
    plugin.records = {cpus: Record(DEATHS, f"patched, {cpus} CPUs") for cpus in plugin.cases}
    for each in plugin.records.values():
        with each.case(lab, FIN) as entry:
            entry.stages = [stage(FIN.steps[2], [0.002])]
    plugin.directory = lab.settings.report_directory
    plugin.pytest_sessionfinish()
    document = json.loads((lab.settings.report_directory / "death-matrix.json").read_text())
    assert [(item["image"], item["case"], item["verdict"]) for item in document["results"]] == [
        ("patched, 2 CPUs", "SIGKILL", "not run"),
        ("patched, 2 CPUs", "FIN", "passed"),
        ("patched, 16 CPUs", "FIN", "passed"),
    ]
    assert document["versions"]["patch series"] == "abc" and document["versions"]["docker"] == "20.10"
    assert "freeswitch (patched, 16 CPUs)" in document["versions"]
    assert "3 cases, 1 not passed; report in" in plugin.line
    assert "the run was broken off before it" in (lab.settings.report_directory / "death-matrix.html").read_text()


def test_session_without_a_case_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = Plugin()
    plugin.pytest_sessionfinish()
    assert plugin.line == ""


def test_lab_that_does_not_start_is_told(tmp_path: Path) -> None:
    plugin = Plugin()
    plugin.records, plugin.directory = {2: Record(DEATHS)}, tmp_path
    plugin.cases = {2: [FIN]}
    failed: Any = SimpleNamespace(
        when="setup",
        failed=True,
        nodeid="tests/scenarios/test_matrix.py::test_case[x]",
        longreprtext="trace\nE   no engine\n",
    )
    plugin.pytest_runtest_logreport(failed)
    plugin.pytest_sessionfinish()
    text = (tmp_path / "death-matrix.html").read_text()
    assert "incomplete: 1 of 1 cases were not run" in text and "no engine" in text


def test_disk_that_is_full_costs_no_exception(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plugin = Plugin()
    plugin.records, plugin.directory = {2: Record(DEATHS)}, tmp_path / "file" / "report"
    plugin.why, plugin.cases = "broken", {2: [FIN]}
    plugin.pytest_sessionfinish()
    assert plugin.line.startswith("death matrix: can't write the report to")


def test_comparison_has_both_images_and_judges_one(lab: Any) -> None:
    stock, patched = Record(DEATHS, "stock", compared=True), Record(DEATHS)
    for each in (stock, patched):
        with each.case(lab, FIN) as entry:
            entry.stages = [stage(FIN.steps[2], [0.002])]
    stock.note(FIN, Verdict.FAILED, came="0 of 1")
    run = compare.compared(stock, patched)
    found: list[Result] = list(run.results)
    assert [(item.variant, item.came) for item in found] == [("patched", "1 report"), ("stock", "0 of 1")]
    assert run.failures == [] and run.name == "comparison"
    assert [image.variant for image in run.images] == ["patched", "stock"]


def test_stock_plays_alone_what_breaks_the_connections_of_others() -> None:
    cases = [Case("storm", "main", transport, STORM.steps) for transport in ("tls", "wss")]
    assert [compare._for_stock(case).alone for case in cases] == [False, True]
    # The outcomes are looked up by the case as it is in the table.
    assert compare._for_stock(cases[1]) == cases[1] and hash(compare._for_stock(cases[1])) == hash(cases[1])
