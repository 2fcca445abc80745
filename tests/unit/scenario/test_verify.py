"""The parts of the verification that need no Docker."""

from __future__ import annotations

import asyncio
import tarfile
import time
from collections.abc import Callable
from io import BytesIO
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from docker.errors import APIError, NotFound
from requests.exceptions import ConnectionError as RequestsConnectionError

from scripts.errors import ToolkitError
from scripts.freeswitch.events import REGISTER, UNREGISTER, Event
from scripts.machine import engine
from scripts.pins.settings import Settings
from scripts.scenario import verify
from scripts.scenario.cases import CASES, PATCHED, STOCK, VARIANTS, Action, Case, Expectation
from scripts.scenario.judge import Observation, judge
from scripts.scenario.outcome import Result, Verdict
from scripts.templates import render
from tests.flows import CLIENT, SERVER, killed, ms

SUBCLASS = "sofia::tp_error_report"
KILLED_US = 1_795_406_420_000_000
REPORT = {
    "Event-Subclass": SUBCLASS,
    "profile-name": "internal",
    "from-user": "alice",
    "from-host": "example.test",
    "contact": "<sip:alice@192.0.2.7:5060>",
    "call-id": "1-15@192.0.2.7",
    "user-agent": "SIPp",
    "network-ip": "192.0.2.7",
    "network-port": "41179",
    "transport": "tcp",
    "error-code": "0",
    "error-name": "NONE",
    "error-phrase": "closed",
    "registrations-left": "0",
    "close-cause": "peer-closed",
    "connected-at": "1795406415",
    "registered-at": "1795406416",
    "detected-at-us": str(KILLED_US + 2000),
}
SHARED = ("profile-name", "from-user", "from-host", "contact", "call-id", "user-agent", "network-ip", "network-port")
ARRIVED_NS = KILLED_US * 1000 + 5_000_000
ONE = Expectation(reports=1)


def report(**changes: str) -> Event:
    return Event(REPORT | {key.replace("_", "-"): value for key, value in changes.items()}, ARRIVED_NS)


def registered(subclass: str = REGISTER, **changes: str) -> Event:
    headers = {"Event-Subclass": subclass, **{name: REPORT[name] for name in SHARED}}
    return Event(headers | {key.replace("_", "-"): value for key, value in changes.items()}, ARRIVED_NS - 10**9)


def observed(*events: Event, registration: Event | None = None) -> Observation:
    first = registration or registered()
    return Observation("alice", "tcp", SUBCLASS, "192.0.2.7", first, KILLED_US * 1000, [first, *events])


def test_right_report_passes_and_is_timed() -> None:
    observation = observed(report())
    assert judge(ONE, observation) == []
    assert observation.timings() == {"kill_to_event": 5.0, "detected_to_event": 3.0}
    assert observation.came() == str(ONE) == "1 report"


def test_reset_is_a_way_to_be_killed_too() -> None:
    assert judge(ONE, observed(report(close_cause="reset", error_code="104", error_name="ECONNRESET"))) == []


def test_number_of_reports_is_exact() -> None:
    assert judge(ONE, observed()) == ["0 reports instead of 1"]
    assert judge(ONE, observed(report(), report())) == ["2 reports instead of 1"]
    assert judge(Expectation(), observed(report())) == ["1 report instead of 0"]
    assert judge(Expectation(), observed()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"profile_name": "external"},
        {"from_user": "bob"},
        {"from_host": "192.0.2.1"},
        {"contact": "<sip:alice@192.0.2.7:5061>"},
        {"call_id": "2-15@192.0.2.7"},
        {"user_agent": "other"},
        {"network_ip": "192.0.2.8"},
        {"network_port": "5060"},
        {"transport": "tls"},
        {"registrations_left": "1"},
        {"close_cause": "timeout"},
        {"connected_at": "1795406418"},
        {"registered_at": "1795406422"},
        {"detected_at_us": str(KILLED_US - 1)},
        {"detected_at_us": str(ARRIVED_NS // 1000 + 1)},
    ],
)
def test_wrong_report_is_one_problem_with_its_header(change: dict[str, str]) -> None:
    (problem,) = judge(ONE, observed(report(**change)))
    assert next(iter(change)).replace("_", "-") in problem


def test_clocks_may_differ_by_the_end_of_a_second() -> None:
    assert judge(ONE, observed(report(connected_at="1795406417"))) == []


def test_error_must_go_with_the_cause() -> None:
    (problem,) = judge(ONE, observed(report(close_cause="reset")))
    assert problem == "close-cause 'reset' with error-name 'NONE'"


def test_report_with_a_missing_header_is_a_problem() -> None:
    headers = {key: value for key, value in REPORT.items() if key != "contact"}
    (problem,) = judge(ONE, observed(Event(headers, ARRIVED_NS)))
    assert "has no header contact" in problem


def test_registration_must_come_from_the_client() -> None:
    (problem,) = judge(ONE, observed(report(), registration=registered(network_ip="192.0.2.1")))
    assert problem == "network-ip of sofia::register is '192.0.2.1', not '192.0.2.7'"


def test_report_of_someone_never_registered_is_a_problem() -> None:
    observation = observed(report())
    observation.registered = None
    assert judge(ONE, observation) == ["a report of 'alice', which never registered"]


def test_unregister_is_counted_and_its_user_checked() -> None:
    leave = Expectation(unregisters=1)
    assert judge(leave, observed(registered(UNREGISTER))) == []
    assert judge(leave, observed()) == ["0 unregisters instead of 1"]
    assert judge(leave, observed(registered(UNREGISTER), report())) == ["1 report instead of 0"]
    (problem,) = judge(leave, observed(registered(UNREGISTER, from_user="carol")))
    assert "carol" in problem
    assert judge(Expectation(), observed(registered(UNREGISTER))) == ["1 unregister instead of 0"]


def test_cases_say_what_must_come_on_every_image() -> None:
    assert len({case.user for case in CASES}) == len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert set(case.expected) == set(VARIANTS)
        assert case.expected[STOCK].reports == 0
    assert [case.expected[PATCHED].reports for case in CASES] == [1, 0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sipp_scenarios_are_well_formed(case: Case) -> None:
    text = render(
        f"sipp/{case.template}",
        user=case.user,
        answer=f"[authentication username={case.user} password=pw]",
        domain="example.test",
        timeout_ms=1500,
        hold_ms=7,
    )
    root = ElementTree.fromstring(text)
    sends = [element.text or "" for element in root.iter("send")]
    assert root.tag == "scenario"
    assert all(f"<sip:{case.user}@example.test>" in send for send in sends)
    # Every other REGISTER answers the challenge that is received before it.
    assert [f"[authentication username={case.user} password=pw]" in send for send in sends] == [False, True] * (
        len(sends) // 2
    )
    responses = [(element.get("response"), element.get("auth")) for element in root.iter("recv")]
    assert responses == [("401", "true"), ("200", None)] * (len(sends) // 2)
    assert {element.get("timeout") for element in root.iter("recv")} == {"1500"}
    leaves = case.action is Action.LEAVE
    assert ["Expires: 0\n" in send for send in sends] == [False, False] + [True, True] * leaves
    assert [element.get("milliseconds") for element in root.iter("pause")] == ([] if leaves else ["7"])


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
    done = Result(PATCHED, CASES[0].name, "", "", "", Verdict.PASSED)
    results = verify._complete([done], CASES, VARIANTS, "Docker died")
    assert results[0] is done
    assert [(result.variant, result.case) for result in results] == [
        (variant, case.name) for variant in VARIANTS for case in CASES
    ]
    assert {(result.verdict, *result.problems) for result in results[1:]} == {(Verdict.NOT_RUN, "Docker died")}


class Thing:
    """A container or network that goes, is gone already, or can't be removed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
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
    assert verify._sweep(fake, "0123") == []
    assert last.removed
    assert fake.filters == [{"label": "org.freeswitch-tp-error.run=0123"}] * 2


@pytest.mark.parametrize("error", [RequestsConnectionError("engine gone"), APIError("engine gone")])
def test_sweep_says_what_it_left(error: Exception) -> None:
    (line,) = verify._sweep(Engine(lambda: [Thing(error)]), "0123")
    assert "engine gone" in line and "inv clean" in line


def test_strange_answer_is_not_a_traceback() -> None:
    with pytest.raises(ToolkitError, match="FreeSWITCH answers 'Invalid Profile!' instead of XML"):
        verify._xml("Invalid Profile!\n")


def test_died_engine_is_one_line_and_a_report(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*arguments: object) -> None:
        raise RequestsConnectionError("('Connection aborted.', FileNotFoundError(2))")

    class Client:
        def __enter__(self) -> Engine:
            return Engine(list)

        def __exit__(self, *error: object) -> None:
            return

    monkeypatch.setattr(engine, "connect", Client)
    monkeypatch.setattr(verify._Lab, "find_images", die)
    start = time.monotonic()
    with pytest.raises(ToolkitError, match=r"Docker failed in the middle of the verification.*; report in ") as caught:
        verify.run(settings)
    assert "\n" not in str(caught.value) and time.monotonic() - start < 2
    root = ElementTree.parse(settings.report_directory / "verify.xml").getroot()
    assert root.get("errors") == root.get("tests") == "4"


@pytest.mark.parametrize("problem", ["", "nothing was captured: no tcpdump"])
def test_capture_is_read_until_the_end_of_the_client_is_in_it(monkeypatch: pytest.MonkeyPatch, problem: str) -> None:
    whole = killed()
    reads = iter([(whole[:500], problem), (whole[:-3], problem), (whole, problem)])
    bench = object.__new__(verify._Bench)
    bench.sniffer, bench.address = SimpleNamespace(read=lambda: next(reads)), SERVER  # type: ignore[assignment]
    observation = Observation("alice", "tcp", "sofia::tp_error_report")
    observation.registered = Event({"Event-Subclass": REGISTER, "network-ip": CLIENT}, ms(14))
    observation.killed_ns = ms(100)
    found = asyncio.run(bench._capture(observation, ms(0)))
    assert found.problem == problem
    assert found.pcap == (whole[:500] if problem else whole[:-3])
    assert len(list(reads)) == (2 if problem else 1)
