"""The verification with real containers: what passes, what fails, what dies in the middle."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import docker
import pytest
from docker.models.containers import Container
from rich.console import Console

from scripts import verify
from scripts.errors import ToolkitError
from scripts.freeswitch.capture import Sniffer
from scripts.machine import engine
from scripts.machine.files import ROOT
from scripts.pins.settings import Settings
from scripts.report import ladder
from scripts.report.ladder import Lane, StepKind
from scripts.scenario import lab as lab_module
from scripts.scenario import table
from scripts.scenario.lab import RUN_LABEL
from scripts.scenario.outcome import Run, Verdict
from scripts.scenario.table import PATCHED, STOCK, Scenario

KILL = table.load("kill")
KILLED, LEFT = KILL.cases(PATCHED)


def scenario(*names: str, outcome: str = "") -> Scenario:
    """Return the scenario `kill` with the cases `names` only; with `outcome`, a kill has to come to that."""
    rows = [row for name in names for row in KILL.rows if row.case == name]
    if outcome:
        kill = {"kill alice": dict.fromkeys(KILL.images, outcome)}
        rows = [row.model_copy(update={"do": [*row.do[:-1], kill]}) for row in rows]
    return dataclasses.replace(KILL, rows=tuple(rows))


@pytest.fixture
def lab(built: Settings, tmp_path: Path) -> Settings:
    return dataclasses.replace(built, report_directory=tmp_path / "report", event_timeout=3)


def quiet() -> Console:
    return Console(file=io.StringIO())


def document(settings: Settings) -> dict[str, list[dict[str, object]]]:
    return json.loads((settings.report_directory / "verify.json").read_text())  # type: ignore[no-any-return]


def junit(settings: Settings) -> ElementTree.Element:
    return ElementTree.parse(settings.report_directory / "verify.xml").getroot()


class Intruder:
    """Does something to the first container of a run whose name ends with `suffix`."""

    def __init__(self, client: docker.DockerClient, suffix: str, act: Callable[[Container], None]) -> None:
        self.client = client
        self.suffix = suffix
        self.act = act
        self.run_id = ""
        self.known = {container.id for container in self.containers()}

    def containers(self) -> list[Container]:
        return engine.containers(self.client, RUN_LABEL)

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for container in self.containers():
                new = container.id not in self.known and container.status == "running"
                if new and container.name.endswith(self.suffix):
                    self.run_id = container.labels[RUN_LABEL]
                    self.act(container)
                    return
            time.sleep(0.05)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self.wait)
        thread.start()
        yield
        thread.join()

    def check_nothing_left(self) -> None:
        assert self.run_id, f"no container *{self.suffix} came"
        label = f"{RUN_LABEL}={self.run_id}"
        assert engine.containers(self.client, label) == []
        assert self.client.networks.list(filters={"label": label}) == []


def failing_run(settings: Settings, played: Scenario = KILL, variants: Sequence[str] = ()) -> str:
    with pytest.raises(ToolkitError) as caught:
        verify.play(settings, played, variants, console=quiet())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_killed_client_is_reported_by_the_patched_freeswitch_only(lab: Settings, client: docker.DockerClient) -> None:
    spy = Intruder(client, "-freeswitch", lambda container: None)
    with spy.at_work():
        outcome: Run = verify.play(lab, KILL, console=quiet())
    verdicts = {(result.variant, result.case): (result.verdict, result.came) for result in outcome.results}
    assert verdicts == {
        (PATCHED, KILLED.name): (Verdict.PASSED, "1 report"),
        (PATCHED, LEFT.name): (Verdict.PASSED, "no report, 1 unregister"),
        (STOCK, KILLED.name): (Verdict.PASSED, "no report"),
        (STOCK, LEFT.name): (Verdict.PASSED, "no report, 1 unregister"),
    }
    delay_ms = outcome.results[0].delay_ms
    assert delay_ms is not None and 0 < delay_ms < lab.event_timeout * 1000
    made_of = {"sofia-sip", "spandsp", "freeswitch", "patch series"}
    names = {"docker", "kernel", "host", "python", "genesis", "sipp", "freeswitch (patched)", "freeswitch (stock)"}
    assert set(outcome.versions) == made_of | names
    assert outcome.versions["freeswitch"].endswith(f"({lab.source('freeswitch').commit})")
    assert junit(lab).attrib["tests"] == "4" and junit(lab).attrib["failures"] == junit(lab).attrib["errors"] == "0"
    assert not (lab.report_directory / "logs").exists()
    spy.check_nothing_left()
    check_ladders(outcome, lab)


def check_ladders(outcome: Run, lab: Settings) -> None:
    """The capture has the whole story of each case, in the order in which it happened."""
    ladders = {}
    for result in outcome.results:
        assert result.capture
        ladders[result.variant, result.case] = ladder.build(result.capture, result.events, lab.esl_event)
        assert not ladders[result.variant, result.case].missing
    registration = ["SYN", "SYN, ACK", "REGISTER (1)", "401 Unauthorized (1)", "REGISTER (2)", "200 OK (2)"]
    for (variant, case), found in ladders.items():
        wire = [step for step in found.steps if step.kind in (StepKind.TCP, StepKind.SIP, StepKind.END)]
        assert [step.label for step in wire][:6] == registration
        assert (found.killed_ns is not None) == (case == KILLED.name)
        kinds = [step.kind for step in found.steps]
        if case == LEFT.name:
            # FreeSWITCH tells a client of its messages once it is registered, and nobody waits for that.
            said = [step.label for step in wire if step.kind is StepKind.SIP and "NOTIFY" not in step.label]
            assert said[-1].startswith("200 OK")
            assert StepKind.END in kinds and StepKind.REPORT not in kinds
            continue
        killed, ended = kinds.index(StepKind.KILL), kinds.index(StepKind.END)
        assert killed < ended and found.steps[ended].label == "FIN, ACK" and found.steps[ended].source is Lane.CLIENT
        assert found.end_ns == found.steps[ended].when_ns
        if variant == PATCHED:
            assert ended < kinds.index(StepKind.REPORT)
        else:
            assert StepKind.REPORT not in kinds
    text = (lab.report_directory / "verify.html").read_text()
    assert text.count('<svg class="ladder"') == 4 and "No ladder diagram" not in text


def test_verification_without_a_capture_is_a_verification(lab: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(sniffer: Sniffer) -> None:
        sniffer.image = f"{lab.image}:stock"
        started(sniffer)

    started = Sniffer.start
    monkeypatch.setattr(Sniffer, "start", start)
    outcome = verify.play(lab, scenario(KILLED.name), [PATCHED], console=quiet())
    assert [result.verdict for result in outcome.results] == [Verdict.PASSED]
    text = (lab.report_directory / "verify.html").read_text()
    assert "No ladder diagram: nothing was captured: its image has no tcpdump" in text
    assert "passed: all 1 cases" in text


def test_report_that_does_not_come_fails_the_run(lab: Settings, client: docker.DockerClient) -> None:
    played = scenario(KILLED.name, outcome="alice 0 left peer-closed")
    spy = Intruder(client, "-freeswitch", lambda container: None)
    with spy.at_work():
        message = failing_run(lab, played, [STOCK])
    assert "1 of 1 cases did not pass, first 'killed client' on stock: 0 reports instead of 1" in message
    assert junit(lab).attrib["failures"] == "1"
    logs = {path.name: path.stat().st_size for path in (lab.report_directory / "logs").iterdir()}
    names = {"stock-freeswitch.log", "stock-freeswitch-debug.log", "stock-killed-client-sipp.log"}
    assert set(logs) == names and all(logs.values())
    text = (lab.report_directory / "verify.html").read_text()
    assert text.index("0 reports instead of 1") < text.index("stock-killed-client-sipp.log") < text.index('id="matrix"')
    assert "REGISTER sip:" in text
    spy.check_nothing_left()


def test_report_that_must_not_come_fails_the_run(lab: Settings) -> None:
    played = scenario(KILLED.name, outcome="nothing")
    assert "1 report instead of 0" in failing_run(lab, played, [PATCHED])


def test_freeswitch_killed_in_the_middle(lab: Settings, client: docker.DockerClient) -> None:
    def kill(sipp: Container) -> None:
        client.containers.get(sipp.name.replace("killed-client-sipp", "freeswitch")).kill()

    intruder = Intruder(client, "stock-killed-client-sipp", kill)
    with intruder.at_work():
        message = failing_run(lab, variants=[STOCK])
    assert "(stock) died with exit code 137" in message and "stock-freeswitch.log" in message
    assert [result["verdict"] for result in document(lab)["results"]] == ["error", "not run"]
    assert junit(lab).attrib["errors"] == "2"
    assert (lab.report_directory / "logs" / "stock-freeswitch.log").exists()
    intruder.check_nothing_left()


def test_client_removed_in_the_middle_spoils_its_case_only(lab: Settings, client: docker.DockerClient) -> None:
    intruder = Intruder(client, "stock-clean-leave-sipp", lambda container: container.remove(force=True))
    with intruder.at_work():
        message = failing_run(lab, scenario(LEFT.name, KILLED.name), [STOCK])
    assert "'clean leave' on stock: Docker refused" in message
    assert [result["verdict"] for result in document(lab)["results"]] == ["error", "passed"]
    intruder.check_nothing_left()


def test_freeswitch_that_does_not_start_says_why(lab: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_module, "DOMAIN", "no domain!")
    message = failing_run(lab, variants=[STOCK])
    assert "died with exit code 78: freeswitch-entrypoint: SIP_DOMAIN='no domain!'" in message
    assert [result["verdict"] for result in document(lab)["results"]] == ["not run", "not run"]


def test_client_with_a_wrong_password_is_an_error_with_its_log(lab: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Scenario, template: str, **values: object) -> str:
        answer = {"answer": "[authentication username=bob password=wrong]"}
        return rendered(self, template, **(values | answer if template.startswith("sipp/") else values))

    rendered = Scenario.render
    monkeypatch.setattr(Scenario, "render", wrong)
    message = failing_run(lab, scenario(LEFT.name), [STOCK])
    assert "bob did not register" in message and "stock-clean-leave-sipp.log" in message
    assert "REGISTER sip:" in (lab.report_directory / "logs" / "stock-clean-leave-sipp.log").read_text()


def test_missing_image_is_named(lab: Settings) -> None:
    message = failing_run(dataclasses.replace(lab, image="no-such-image"))
    assert message.startswith("there is no image no-such-image:patched: `inv build` makes it")


RUN = """
import dataclasses, pathlib, sys
from scripts import cli, errors, verify
from scripts.pins import settings
from scripts.scenario import table
values = dataclasses.replace(settings.load(), image=sys.argv[1], report_directory=pathlib.Path(sys.argv[2]))
try:
    verify.play(values, table.load("kill"))
except errors.ToolkitError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(cli.status(error))
"""


@pytest.mark.parametrize(
    ("number", "name", "suffix"),
    [
        (signal.SIGINT, "Ctrl-C", "patched-freeswitch"),
        (signal.SIGTERM, "SIGTERM", "patched-freeswitch"),
        (signal.SIGTERM, "SIGTERM", "patched-killed-client-sipp"),
    ],
)
def test_signal_leaves_a_report_and_nothing_else(
    lab: Settings, client: docker.DockerClient, number: signal.Signals, name: str, suffix: str
) -> None:
    command = [sys.executable, "-c", RUN, lab.image, str(lab.report_directory)]
    intruder = Intruder(client, suffix, lambda container: process.send_signal(number))
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with intruder.at_work():
        _, errors = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    (line,) = errors.splitlines()
    assert line.startswith(f"error: verification broken off by {name}; report in ")
    assert {result["verdict"] for result in document(lab)["results"]} == {"not run"}
    intruder.check_nothing_left()
