"""A run of a scenario, and what is made for it, without a Docker engine."""

from __future__ import annotations

import io
import os
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import BytesIO
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from docker.errors import APIError, NotFound
from requests.exceptions import ConnectionError as RequestsConnectionError
from rich.console import Console

from scripts import verify
from scripts.cli import status
from scripts.errors import ToolkitError
from scripts.freeswitch import container
from scripts.freeswitch.events import REGISTER, Event
from scripts.freeswitch.recorder import Recorder
from scripts.image import build
from scripts.machine import engine
from scripts.pins.settings import Settings
from scripts.report import write
from scripts.scenario import record, run, table
from scripts.scenario.outcome import Result, Run, Verdict
from scripts.scenario.run import Break
from scripts.templates import render
from tests.conftest import PATIENCE
from tests.flows import CLIENT, SERVER, killed, ms

KILL = table.load("kill")


def test_user_is_escaped_in_the_directory() -> None:
    root = ElementTree.fromstring(render("freeswitch/user", user='a"<b', password="p&w"))
    assert root.find("user").get("id") == 'a"<b'  # type: ignore[union-attr]
    assert root.find("user/params/param").attrib == {"name": "password", "value": "p&w"}  # type: ignore[union-attr]


def test_archive_has_the_files_readable_for_everybody() -> None:
    with tarfile.open(fileobj=BytesIO(engine.tar({"a.xml": "<ä/>"}))) as archive:
        (member,) = archive.getmembers()
        file = archive.extractfile(member)
        assert file and file.read().decode() == "<ä/>"
        assert (member.name, member.mode) == ("a.xml", 0o644)


def test_cases_that_were_not_run_are_in_the_report() -> None:
    first, second = KILL.cases(table.PATCHED)
    kept = record.Record(KILL)
    done = Result(table.PATCHED, first.name, "", "", "", Verdict.PASSED)
    kept.results[first] = done
    kept.fill([first, second], "Docker died")
    results = list(kept.results.values())
    assert results[0] is done
    assert (results[1].case, results[1].verdict, *results[1].problems) == (second.name, Verdict.NOT_RUN, "Docker died")
    assert results[1].expected == "no report, 1 unregister"


class Thing:
    """A container or network that goes, is gone already, or can't be removed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.name = "thing"
        self.removed = False

    def remove(self, **options: bool) -> None:
        if self.error:
            raise self.error
        self.removed = True


class Engine:
    def __init__(self, things: Callable[[], list[Thing]]) -> None:
        self.containers = self.networks = self
        self.things = things
        self.filters: list[dict[str, str]] = []

    def list(self, filters: dict[str, str], **options: bool) -> list[Thing]:
        self.filters.append(filters)
        return self.things()


def test_sweep_takes_only_this_run_and_goes_on_if_one_is_gone() -> None:
    last = Thing()
    fake = Engine(lambda: [Thing(NotFound("gone")), last])
    assert run.sweep(fake, "0123") == []
    assert last.removed
    assert fake.filters == [{"label": "org.freeswitch-tp-error.run=0123"}] * 2


@pytest.mark.parametrize("error", [RequestsConnectionError("engine gone"), APIError("engine gone")])
def test_sweep_says_what_it_left(error: Exception) -> None:
    (line,) = run.sweep(Engine(lambda: [Thing(error)]), "0123")
    assert "engine gone" in line and "inv clean" in line


def test_strange_answer_is_not_a_traceback() -> None:
    with pytest.raises(ToolkitError, match="FreeSWITCH answers 'Invalid Profile!' instead of XML"):
        container.xml("Invalid Profile!\n")


def test_died_engine_is_one_line_and_a_report(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*arguments: object) -> None:
        raise RequestsConnectionError("('Connection aborted.', FileNotFoundError(2))")

    class Client:
        def __enter__(self) -> Engine:
            return Engine(list)

        def __exit__(self, *error: object) -> None:
            return

    monkeypatch.setattr(engine, "connect", Client)
    monkeypatch.setattr(run._Session, "find_images", die)
    start = time.monotonic()
    with pytest.raises(ToolkitError, match=r"Docker failed in the middle of the verification.*; report in ") as caught:
        verify.play(settings, KILL, console=Console(file=io.StringIO()))
    assert "\n" not in str(caught.value) and time.monotonic() - start < PATIENCE
    root = ElementTree.parse(settings.report_directory / "verify.xml").getroot()
    assert root.get("errors") == root.get("tests") == "4"


@pytest.mark.parametrize("problem", ["", "nothing was captured: no tcpdump"])
def test_capture_is_read_until_the_end_of_the_client_is_in_it(problem: str) -> None:
    whole = killed()
    reads = iter([(whole[:500], problem), (whole[:-3], problem), (whole, problem)])
    sniffer: Any = SimpleNamespace(read=lambda: next(reads))
    lab: Any = SimpleNamespace(freeswitch=SimpleNamespace(address=SERVER))
    registered = Event({"Event-Subclass": REGISTER, "network-ip": CLIENT}, ms(14))
    play: Any = SimpleNamespace(
        last_registration=lambda: registered,
        case=SimpleNamespace(transport="tcp"),
        killed_ns=ms(100),
        sipps={"alice": None},
    )
    found = record._capture(lab, play, sniffer, ms(0))
    assert found.problem == problem and found.client == CLIENT
    assert found.pcap == (whole[:500] if problem else whole[:-3])
    assert len(list(reads)) == (2 if problem else 1)


@pytest.mark.parametrize("failure", [None, ToolkitError("Docker is gone")])
def test_signal_while_the_report_is_written_is_not_lost(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, failure: ToolkitError | None
) -> None:
    outcome = Run(datetime.now(UTC), [], {}, [])
    monkeypatch.setattr(run, "run", lambda *arguments: (outcome, failure))
    monkeypatch.setattr(write, "show", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(run.Interrupted, match="verification broken off by SIGTERM; report in ") as caught:
        verify.play(settings, KILL, console=Console(file=io.StringIO()))
    assert status(caught.value) == 143 and (failure is None or str(caught.value).startswith(str(failure)))


@pytest.fixture
def hangup() -> Iterator[Callable[[Any], None]]:
    """Return a function that sets what SIGHUP does, for the test; who started it may ignore it."""
    before = signal.getsignal(signal.SIGHUP)

    def set_to(what: Any) -> None:
        signal.signal(signal.SIGHUP, what)

    yield set_to
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", run.SIGNALS)
def test_first_signal_breaks_off_and_more_do_nothing(hangup: Callable[[Any], None], number: signal.Signals) -> None:
    hangup(signal.SIG_DFL)
    before = signal.getsignal(number)
    with Break() as stopped:
        signal.raise_signal(number)
        for again in run.SIGNALS:
            signal.raise_signal(again)
        assert stopped.event.is_set() and stopped.name == run.SIGNALS[number]
    assert signal.getsignal(number) is before


def test_hangup_that_is_ignored_stays_so(hangup: Callable[[Any], None]) -> None:
    hangup(signal.SIG_IGN)
    with Break() as stopped:
        signal.raise_signal(signal.SIGHUP)
        assert not stopped.event.is_set()


def test_who_waits_for_an_event_hears_that_the_run_is_broken_off() -> None:
    halt = threading.Event()
    recorder = Recorder("127.0.0.1", "secret", [], halt)
    assert not recorder.wait(lambda events: False, 0)
    threading.Timer(0.1, halt.set).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        recorder.wait(lambda events: False, 10 * PATIENCE)
    assert time.monotonic() - start < PATIENCE


def test_run_in_a_thread_leaves_the_signals_alone() -> None:
    def act() -> None:
        with Break() as stopped:
            names.append(stopped.name)

    names: list[str] = []
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    assert names == [""]


def test_unknown_scenario_is_named_before_anything_is_built(settings: Settings) -> None:
    with pytest.raises(ToolkitError) as caught:
        verify.verify(settings, "dead")
    known = table.names()
    assert {"deaths", "kill"} <= set(known)
    assert str(caught.value) == f"there is no scenario 'dead': one of {', '.join(known)}, all"
    assert not settings.report_directory.exists()


def test_all_scenarios_are_played_and_their_failures_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    played = []

    def play(settings: Settings, scenario: table.Scenario) -> None:
        played.append(scenario.name)
        raise ToolkitError("wrong")

    monkeypatch.setattr(verify, "play", play)
    monkeypatch.setattr(build, "build", lambda settings: None)
    with pytest.raises(ToolkitError) as caught:
        verify.verify(settings, "all")
    assert played == table.names() and {"deaths", "kill"} <= set(played)
    assert str(caught.value) == "; ".join(f"scenario '{name}': wrong" for name in played)


@pytest.mark.parametrize("number", run.SIGNALS)
def test_what_has_not_begun_when_a_run_is_broken_off_never_does(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, hangup: Callable[[Any], None], number: signal.Signals
) -> None:
    """With numbers of CPUs the parts are one after the other: the first is ended, the second never begins."""
    began: list[str] = []

    def part(self: run._Session, part: run._Part) -> None:
        began.append(part.record.name)
        os.kill(os.getpid(), number)
        assert self.stopped.event.wait(60)

    monkeypatch.setattr(run._Session, "_part", part)
    nothing: Any = None
    hangup(signal.SIG_DFL)
    with Break() as stopped:
        session = run._Session(settings, table.load("deaths"), settings.report_directory, nothing, nothing, stopped)
        session.add(table.PATCHED)
        with pytest.raises(run.Interrupted, match=f"broken off by {run.SIGNALS[number]}") as caught:
            session.play()
    assert began == ["patched, 2 CPUs"]
    assert isinstance(caught.value.__cause__, KeyboardInterrupt) and status(caught.value) == 128 + number
    results = session.outcome("broken off").results
    assert len(results) == 568 and {result.verdict for result in results} == {Verdict.NOT_RUN}
