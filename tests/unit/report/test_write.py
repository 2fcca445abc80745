"""The report of a verification: table, JUnit XML and JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.freeswitch.events import Event
from scripts.report import write
from scripts.scenario.outcome import Image, Result, Run, Verdict

EVENT = Event({"Event-Subclass": "sofia::tp_error_report", "from-user": "jürgen"}, 1_700_000_000_000_000_001)
PASSED = Result(
    variant="patched",
    case="killed client",
    done="SIPp killed",
    expected="1 report",
    came="1 report",
    verdict=Verdict.PASSED,
    delay_ms=3.25,
    timings={"kill_to_event": 3.25},
    seconds=1.5,
    events=[EVENT],
)
FAILED = Result(
    "stock", "clean leave", "left", "no report", "1 report", Verdict.FAILED, ["1 report <&> 'x' [bold]\x1b[0m\x00"]
)
ERROR = Result("stock", "killed client", "", "no report", "", Verdict.ERROR, ["FreeSWITCH died"])
NOT_RUN = Result("stock", "third", "", "no report", "", Verdict.NOT_RUN, ["broken off"])
RUN = Run(
    datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    [Image("patched", "fs:patched", "sha256:aa", {"commit": "abc"}), Image("stock", "fs:stock", "sha256:bb")],
    {"docker": "20.10"},
    [PASSED, FAILED, ERROR, NOT_RUN],
)


def written(run: Run, directory: Path) -> tuple[ElementTree.Element, dict[str, Any]]:
    write.write(run, directory)
    return (
        ElementTree.parse(directory / "verify.xml").getroot(),
        json.loads((directory / "verify.json").read_text()),
    )


def test_junit_counts_and_explains(tmp_path: Path) -> None:
    root, _ = written(RUN, tmp_path / "new" / "directory")
    assert {key: root.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "errors": "2",
        "skipped": "0",
    }
    patched, stock = root.findall("testsuite")
    assert (patched.get("name"), patched.get("tests"), patched.get("failures")) == ("patched", "1", "0")
    assert (stock.get("name"), stock.get("tests"), stock.get("errors")) == ("stock", "3", "2")
    assert [list(case.iterfind("failure")) + list(case.iterfind("error")) for case in patched.iter("testcase")] == [[]]
    messages = {case.get("name"): case[0].get("message") for case in stock.iter("testcase")}
    assert messages == {
        "clean leave": "failed; 1 report <&> 'x' [bold]\ufffd[0m\ufffd",
        "killed client": "error; FreeSWITCH died",
        "third": "not run; broken off",
    }
    properties = {item.get("name"): item.get("value") for item in patched.iter("property")}
    assert properties == {"docker": "20.10", "image": "fs:patched", "image id": "sha256:aa", "commit": "abc"}


def test_json_has_events_timings_and_images(tmp_path: Path) -> None:
    _, document = written(RUN, tmp_path)
    assert document["passed"] is False
    assert document["started"] == "2026-01-02T03:04:05+00:00"
    assert document["versions"] == {"docker": "20.10"}
    assert document["images"][0] == {
        "variant": "patched",
        "tag": "fs:patched",
        "id": "sha256:aa",
        "labels": {"commit": "abc"},
    }
    first = document["results"][0]
    assert first["events"] == [{"arrived_ns": EVENT.arrived_ns, "headers": dict(EVENT.headers)}]
    assert (first["delay_ms"], first["timings_ms"], first["verdict"]) == (3.25, {"kill_to_event": 3.25}, "passed")
    assert document["results"][1]["problems"] == list(FAILED.problems)


def test_run_passes_only_if_every_case_does(tmp_path: Path) -> None:
    good = dataclasses.replace(RUN, results=[PASSED])
    _, document = written(good, tmp_path)
    assert document["passed"] is True and not good.failures
    for bad in (FAILED, ERROR, NOT_RUN):
        assert dataclasses.replace(RUN, results=[PASSED, bad]).failures == [bad]


def test_skipped_case_fails_nothing_and_is_said(tmp_path: Path) -> None:
    skipped = dataclasses.replace(PASSED, case="six", verdict=Verdict.SKIPPED, problems=["no IPv6 here"])
    run = dataclasses.replace(RUN, results=[PASSED, skipped])
    root, document = written(run, tmp_path)
    assert document["passed"] is True and not run.failures
    assert (root.get("tests"), root.get("errors"), root.get("skipped")) == ("2", "0", "1")
    assert [case.get("message") for case in root.iter("skipped")] == ["skipped; no IPv6 here"]


def test_compared_variant_is_not_in_junit(tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, compared={"stock"}, name="comparison")
    write.write(run, tmp_path)
    root = ElementTree.parse(tmp_path / "comparison.xml").getroot()
    assert [suite.get("name") for suite in root.iter("testsuite")] == ["patched"]
    assert not run.failures


def test_names_tell_transports_and_profiles_apart(tmp_path: Path) -> None:
    found = [dataclasses.replace(PASSED, profile="main", transport=transport) for transport in ("tcp", "tls")]
    write.write(dataclasses.replace(RUN, results=found, name="death-matrix"), tmp_path)
    root = ElementTree.parse(tmp_path / "death-matrix.xml").getroot()
    assert [case.get("name") for case in root.iter("testcase")] == [
        "killed client, main, tcp",
        "killed client, main, tls",
    ]
    assert root[0][1].get("classname") == "death-matrix.patched"
    document = json.loads((tmp_path / "death-matrix.json").read_text())
    assert [entry["transport"] for entry in document["results"]] == ["tcp", "tls"]


def test_table_shows_every_result_and_takes_no_markup() -> None:
    stream = io.StringIO()
    write.show(RUN, Console(file=stream, width=200))
    text = stream.getvalue()
    for word in ("killed client", "3.2", "passed", "failed", "error", "not run", "[bold]", "FreeSWITCH died"):
        assert word in text


def test_interrupted_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write.write(RUN, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ToolkitError, match=r"can't write the report to .*No space left"):
        write.write(dataclasses.replace(RUN, results=[PASSED]), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ToolkitError, match=r"can't write the report to .*file/report"):
        write.write(RUN, tmp_path / "file" / "report")


def test_report_is_readable_for_others(tmp_path: Path) -> None:
    page = write.write(RUN, tmp_path)
    assert [path.stat().st_mode & 0o777 for path in (page, page.with_suffix(".xml"))] == [0o644, 0o644]


def test_directory_that_cannot_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ToolkitError, match=r"setting 'verify\.report_directory': can't make .*file/report \(Not a dir"):
        write.prepare(tmp_path / "file/report")
    write.prepare(tmp_path / "new/report", ["verify"])
    assert list((tmp_path / "new/report").iterdir()) == []
    (tmp_path / "new/report/verify.html").mkdir()
    with pytest.raises(ToolkitError, match=r"can't write .*verify\.html: it is a directory: remove it"):
        write.prepare(tmp_path / "new/report", ["verify"])


def test_what_was_done_is_its_steps_where_nothing_else_is_said(tmp_path: Path) -> None:
    result = dataclasses.replace(RUN.results[0], done="", steps=("open a", "fin a"))
    root, document = written(dataclasses.replace(RUN, results=[result]), tmp_path)
    assert document["results"][0]["steps"] == ["open a", "fin a"]
    assert "done: open a; fin a\n" in "".join(root.itertext())
    console = Console(file=io.StringIO(), width=120)
    write.show(dataclasses.replace(RUN, results=[result]), console)
    assert "done" not in console.file.getvalue()  # type: ignore[attr-defined]
