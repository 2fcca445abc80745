"""What is judged of a step, without a FreeSWITCH."""

from __future__ import annotations

import pytest

from scripts.errors import ToolkitError
from scripts.freeswitch.events import REGISTER, UNREGISTER, Event
from scripts.scenario import judge
from scripts.scenario.judge import Expected, Scene, Stage

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
STEP = "kill u"
ONE = Expected(reports=[("alice", 0, frozenset({"peer-closed", "reset"}))])


def report(**changes: str) -> Event:
    return Event(REPORT | {key.replace("_", "-"): value for key, value in changes.items()}, ARRIVED_NS)


def registered(subclass: str = REGISTER, **changes: str) -> Event:
    headers = {"Event-Subclass": subclass, **{name: REPORT[name] for name in SHARED}}
    return Event(headers | {key.replace("_", "-"): value for key, value in changes.items()}, ARRIVED_NS - 10**9)


def judged(
    expected: Expected,
    *events: Event,
    registration: Event | None = None,
    transport: str = "tcp",
    transports: dict[str, str] | None = None,
) -> Stage:
    first = registration or registered()
    users = {"alice": "u", "v": "v"}
    before = KILLED_US / 1e6
    ended = ("192.0.2.7", 41179)
    history, killed_ns = [first, *events], KILLED_US * 1000
    scene = Scene(
        history, users, transport, SUBCLASS, before, before + 1, ended, killed_ns, True, transports=transports or {}
    )
    return judge.judge(STEP, expected, events, scene)


def problems(*arguments: object, **options: object) -> list[str]:
    return judged(*arguments, **options).problems  # type: ignore[arg-type]


def test_right_report_passes_and_is_timed() -> None:
    stage = judged(ONE, report())
    assert stage.problems == [] and stage.reports == 1
    assert [round(value, 6) for value in (*stage.delays, *stage.arrivals)] == [0.002, 0.005]


def test_reset_is_a_way_to_be_killed_too() -> None:
    assert problems(ONE, report(close_cause="reset", error_code="104", error_name="ECONNRESET")) == []


def test_number_of_reports_is_exact() -> None:
    assert problems(ONE) == ["0 reports instead of 1 for u"]
    assert problems(ONE, report(), report()) == ["2 reports instead of 1 for u"]
    assert problems(Expected(), report()) == ["1 report instead of 0 for u"]
    assert problems(Expected()) == []


def test_optional_reports_may_be_fewer_but_not_more() -> None:
    optional = Expected(reports=ONE.reports, optional=True)
    assert problems(optional) == problems(optional, report()) == []
    assert problems(optional, report(), report()) == ["2 reports instead of 1 for u"]


@pytest.mark.parametrize(
    "change",
    [
        {"profile_name": "external"},
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
    (problem,) = problems(ONE, report(**change))
    name = next(iter(change)).replace("_", "-")
    # Whose registration it is hangs on these.
    assert name in problem or (name in ("call-id", "network-port") and "never registered" in problem), problem
    assert name != "from-user" or "bob" in problem


def test_report_of_somebody_else_is_a_problem() -> None:
    assert problems(ONE, report(), report(from_user="bob")) == ["report of 'bob', who is not in this case"]


def test_clocks_may_differ_by_the_end_of_a_second() -> None:
    assert problems(ONE, report(connected_at="1795406417")) == []


def test_error_must_go_with_the_cause() -> None:
    (problem,) = problems(ONE, report(close_cause="reset"))
    assert problem == "error-name for u is NONE with close-cause reset"


def test_report_with_a_missing_header_is_a_problem() -> None:
    headers = {key: value for key, value in REPORT.items() if key != "contact"}
    (problem,) = problems(ONE, Event(headers, ARRIVED_NS))
    assert "has no header contact" in problem


def test_registration_must_come_from_the_client() -> None:
    (problem,) = problems(ONE, report(), registration=registered(network_ip="192.0.2.1"))
    assert problem == "network-ip for u is '192.0.2.7', not '192.0.2.1'"


def test_report_of_someone_never_registered_is_a_problem() -> None:
    (problem,) = problems(ONE, report(), registration=registered(call_id="other"))
    assert "never registered" in problem


def test_unregister_is_counted_and_its_user_checked() -> None:
    leave = Expected(itself=["alice"])
    assert problems(leave, registered(UNREGISTER)) == []
    assert problems(leave) == ["0 unregisters instead of 1 for u"]
    assert problems(leave, registered(UNREGISTER), report()) == ["1 report instead of 0 for u"]
    missing, stranger = problems(leave, registered(UNREGISTER, from_user="carol"))
    assert missing.startswith("0 unregisters") and stranger == "unregister of 'carol', who is not in this case"
    assert problems(Expected(), registered(UNREGISTER)) == ["1 unregister instead of 0 for u"]


def test_unregister_by_the_server_is_another_one() -> None:
    removed = registered(UNREGISTER, reason="socket-disconnection")
    by_server = Expected(unregisters=["alice"])
    assert problems(by_server, removed) == []
    assert problems(by_server, registered(UNREGISTER)) == [
        "0 unregisters by the server instead of 1 for u",
        "1 unregister instead of 0 for u",
    ]
    assert problems(Expected(), removed) == ["1 unregister by the server instead of 0 for u"]
    # Over WebSocket stock code removes them whatever the profile says.
    stage = judged(Expected(), removed, transport="ws")
    assert (stage.problems, stage.unregisters, stage.unasked) == ([], 1, 1)


def test_registration_over_another_transport_is_judged_by_its_own() -> None:
    over = {REPORT["call-id"]: "ws"}
    assert problems(ONE, report(transport="ws"), transports=over) == []
    assert problems(ONE, report(), transports=over) == ["transport for u is 'tcp', not 'ws'"]
    removed = registered(UNREGISTER, reason="socket-disconnection")
    assert problems(Expected(), removed, transports=over) == []
    # Those of the case's own transport count as before.
    other = registered(UNREGISTER, reason="socket-disconnection", call_id="other")
    assert problems(Expected(), other, transports=over) == ["1 unregister by the server instead of 0 for u"]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("nothing", []),
        ("u 0 left peer-closed|reset", ["report"]),
        ("u*50 1 left reset; v unregistered; w unregistered itself", ["report", "unregistered", "itself"]),
        ("each registered u*9 send-error", ["registered"]),
        ("at most u 0 left reset", ["report"]),
    ],
)
def test_outcomes_are_read(text: str, kinds: list[str]) -> None:
    wanted, optional = judge.read(text)
    assert [one.kind for one in wanted] == kinds and optional == text.startswith("at most")


@pytest.mark.parametrize("text", ["", "u", "u left", "u -1 left reset", "u 0 left", "u 0 left closed", "u gone", ";"])
def test_what_is_no_outcome_is_refused(text: str) -> None:
    with pytest.raises(ToolkitError, match=r"is no outcome|is no close-cause"):
        judge.read(text)


def test_several_users_have_numbers() -> None:
    assert judge.aliases("u") == ["u"] and judge.aliases("u*3") == ["u1", "u2", "u3"]
