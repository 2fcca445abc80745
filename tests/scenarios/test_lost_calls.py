"""Calls whose connection is lost: they are told of, and ended if the profile says so."""

from __future__ import annotations

import random
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import pytest

from scripts.freeswitch.sip import Client
from scripts.scenario.lab import DOMAIN, Lab
from tests.conftest import PATIENCE
from tests.deaths import CPUS, DEATHS
from tests.esl import EventStream, Headers

CALL, REPORT = "sofia::tp_error_call", "sofia::tp_error_report"
GRACE = int(DEATHS.profile("grace").parameters["tp-error-calls-grace"])
ECHO = "9196"
TRANSPORTS = ("tcp", "tls", "ws", "wss")
RACES = 200


class Events(EventStream):
    """The events of a FreeSWITCH about calls and lost connections."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab, f"CHANNEL_HANGUP CHANNEL_DESTROY CUSTOM {CALL} {REPORT}")

    def of(self, call: str) -> list[str]:
        """Return what came about the call with this UUID: actions of its events, causes of its hangup."""
        found = [event for event in self.came if event.get("Unique-ID") == call]
        found.sort(key=lambda event: int(event["Event-Sequence"]))
        return [
            event["action"] if event.get("Event-Subclass") == CALL else event.get("Hangup-Cause", "")
            for event in found
            if event["Event-Name"] != "CHANNEL_DESTROY"
        ]

    def call(self, sip_call_id: str) -> str:
        """Return the UUID of the call with a lost connection that has this Call-ID, "" if none is known."""
        return next((event["Unique-ID"] for event in self.came if event.get("call-id") == sip_call_id), "")

    def reports(self, user: str) -> list[Headers]:
        return [
            event for event in self.came if event.get("Event-Subclass") == REPORT and event.get("from-user") == user
        ]

    def ended(self, call: str) -> bool:
        return any(event["Event-Name"] == "CHANNEL_DESTROY" and event["Unique-ID"] == call for event in self.came)


@pytest.fixture(params=CPUS, ids=lambda cpus: f"{cpus} CPUs")
def lab(request: pytest.FixtureRequest, labs: Callable[[int], Lab]) -> Lab:
    return labs(request.param)


@pytest.fixture
def events(lab: Lab) -> Iterator[Events]:
    found = Events(lab)
    yield found
    found.close()


def api(lab: Lab, command: str) -> str:
    return str(lab.freeswitch.recorder.api(command)).strip()


def client(lab: Lab, profile: str, transport: str) -> tuple[Client, str]:
    """Return a client and the user that it has registered."""
    found, user = lab.open(profile, transport), lab.user()
    found.register(user, lab.password, DOMAIN)
    return found, user


def caller(lab: Lab, profile: str, transport: str) -> tuple[Client, str, tuple[str, str], str]:
    """Return a client in a call with the echo: it, its user, its call's Call-ID and To, and the UUID."""
    found, user = client(lab, profile, transport)
    call = found.invite(user, lab.password, DOMAIN, ECHO)
    return found, user, call, call_uuid(lab, call[0])


def call_uuid(lab: Lab, sip_call_id: str) -> str:
    """Return the UUID of a call."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for line in api(lab, "show channels as delim |").splitlines():
            call = line.partition("|")[0]
            if re.fullmatch(r"[0-9a-f-]{36}", call) and api(lab, f"uuid_getvar {call} sip_call_id") == sip_call_id:
                return call
    raise AssertionError(f"no call {sip_call_id}")


def answer(invite: str, client: Client, user: str, status: str = "200 OK") -> bytes:
    """Return the answer to an INVITE of the server."""
    host, port = client.address
    lines = [line for line in invite.split("\r\n") if re.match(r"(Via|From|To|Call-ID|CSeq):", line, re.IGNORECASE)]
    lines = [f"{line};tag=callee" if line.lower().startswith("to:") else line for line in lines]
    body = "\r\n".join(
        ["v=0", f"o=- 1 1 IN IP4 {host}", "s=-", f"c=IN IP4 {host}", "t=0 0", "m=audio 40000 RTP/AVP 8", ""]
    )
    lines += [
        f"Contact: <sip:{user}@{host}:{port};transport={client.transport}>",
        "Content-Type: application/sdp",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([f"SIP/2.0 {status}", *lines, "", body]).encode()


def callee(
    lab: Lab, profile: str, transport: str, status: str = "200 OK", nat: bool = False
) -> tuple[Client, str, str]:
    """Return a client that has taken a call, or lets it ring: it, its user and the call's UUID."""
    return called(lab, profile, transport, status, nat)[:3]


def called(
    lab: Lab, profile: str, transport: str, status: str = "200 OK", nat: bool = False
) -> tuple[Client, str, str, str]:
    """The same, and the INVITE."""
    found, user = client(lab, profile, transport)
    call, contact = str(uuid.uuid4()), api(lab, f"sofia_contact {profile}/{user}@{DOMAIN}")
    api(lab, f"bgapi originate {{origination_uuid={call}}}{contact}{';fs_nat=yes' if nat else ''} &park")
    invite = found.wait_request("INVITE")
    found.send(answer(invite, found, user, status))
    if status.startswith("200"):
        found.wait_request("ACK")
    return found, user, call, invite


def from_callee(invite: str, client: Client, method: str) -> bytes:
    """Return a request in the dialog that the callee of `invite` has accepted."""

    def value(name: str) -> str:
        found = re.search(rf"(?im)^{name}:[ \t]*(.*)$", invite)
        assert found, name
        return found[1].strip()

    host, port = client.address
    via = f"Via: SIP/2.0/{client.transport.upper()} {host}:{port};branch=z9hG4bK{uuid.uuid4().hex};rport"
    lines = [via, "Max-Forwards: 70", f"From: {value('To')};tag=callee", f"To: {value('From')}"]
    lines += [f"Call-ID: {value('Call-ID')}", f"CSeq: 7 {method}", "Content-Length: 0", "", ""]
    target = value("Contact").strip("<>")
    return "\r\n".join([f"{method} {target} SIP/2.0", *lines]).encode()


def kill(client: Client, reset: bool) -> None:
    client.reset() if reset else client.close()


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_call_of_a_killed_caller_is_hung_up(lab: Lab, events: Events, transport: str, reset: bool) -> None:
    found, user, call, number = caller(lab, "hangup", transport)
    near = found.address
    kill(found, reset)
    assert events.wait(lambda: events.ended(number) and events.reports(user))
    assert events.of(number) == ["DESTINATION_OUT_OF_ORDER", "hungup"]
    report = events.reports(user)[0]
    assert (report["calls"], report["call-uuids"]) == ("1", number)
    event = next(event for event in events.came if event.get("action"))
    assert {name: event[name] for name in ("call-id", "direction", "from", "to", "transport", "profile-name")} == {
        "call-id": call[0], "direction": "inbound", "from": f"{user}@{DOMAIN}", "to": f"{ECHO}@{DOMAIN}",
        "transport": transport, "profile-name": "hangup",
    }  # fmt: skip
    assert (event["network-ip"], event["network-port"]) == (near[0], str(near[1]))
    assert event["detected-at-us"] == report["detected-at-us"] and event["close-cause"] == report["close-cause"]
    lab.settled.update([user])


@pytest.mark.parametrize("status", ["200 OK", "180 Ringing"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_call_of_a_killed_callee_is_hung_up(lab: Lab, events: Events, transport: str, status: str) -> None:
    found, user, call = callee(lab, "hangup", transport, status)
    found.flush()
    # What it has said has been read once it is known.
    events.wait(lambda: api(lab, f"uuid_getvar {call} sip_to_tag") == "callee" or "Ringing" in status)
    found.close()
    assert events.wait(lambda: events.ended(call) and events.reports(user))
    came = events.of(call)
    # A call that rings fails by itself, too: its INVITE is still on its way.
    assert came == ["DESTINATION_OUT_OF_ORDER", "hungup"] or "Ringing" in status
    lab.settled.update([user])


def test_call_is_hung_up_after_the_grace(lab: Lab, events: Events) -> None:
    found, user, _, number = caller(lab, "grace", "tcp")
    found.close()
    assert events.wait(lambda: events.of(number))
    began = time.monotonic()
    assert events.wait(lambda: events.ended(number))
    assert events.of(number) == ["waiting", "DESTINATION_OUT_OF_ORDER", "hungup"]
    assert time.monotonic() - began > GRACE / 2
    lab.settled.update([user])


@pytest.mark.parametrize("method", ["INVITE", "INFO", "OPTIONS"])
def test_peer_that_is_heard_again_keeps_its_call(lab: Lab, events: Events, method: str) -> None:
    found, user, call, number = caller(lab, "grace", "tcp")
    found.close()
    assert events.wait(lambda: events.of(number) == ["waiting"])
    again = lab.open("grace", "tls")
    again.within(method, user, DOMAIN, ECHO, call)
    assert events.wait(lambda: "kept" in events.of(number))
    time.sleep(GRACE + 1)
    assert events.of(number) == ["waiting", "kept"] and api(lab, f"uuid_exists {number}") == "true"
    # Now it depends on the other one.
    again.close()
    assert events.wait(lambda: events.ended(number))
    assert events.of(number)[2:] == ["waiting", "DESTINATION_OUT_OF_ORDER", "hungup"]
    lab.settled.update([user])


def test_what_follows_goes_to_the_new_connection(lab: Lab, events: Events) -> None:
    found, user, call, number = caller(lab, "grace", "tcp")
    found.close()
    assert events.wait(lambda: events.of(number) == ["waiting"])
    again = lab.open("grace", "tcp")
    again.within("INVITE", user, DOMAIN, ECHO, call)
    assert events.wait(lambda: "kept" in events.of(number))
    api(lab, f"uuid_kill {number}")
    assert call[0] in again.wait_request("BYE")
    again.close()
    lab.settled.update([user])


@pytest.mark.parametrize("profile", ["main", "ignore", "grace"])
def test_request_over_another_connection_leaves_the_route(lab: Lab, events: Events, profile: str) -> None:
    """As in stock: while the first connection lives, a client behind a NAT is reached over it."""
    found, user, call, invite = called(lab, profile, "tcp", nat=True)
    again = lab.open(profile, "tcp")
    again.send(from_callee(invite, again, "INFO"))
    assert again.receive().status == 200
    api(lab, f"uuid_kill {call}")
    assert "BYE" in found.wait_request("BYE")
    found.close()
    again.close()
    lab.settled.update([user])


def test_client_behind_a_nat_is_reached_where_it_has_come_back(lab: Lab, events: Events) -> None:
    found, user, call, invite = called(lab, "grace", "tcp", nat=True)
    found.close()
    assert events.wait(lambda: events.of(call) == ["waiting"])
    again = lab.open("grace", "tcp")
    again.send(from_callee(invite, again, "INFO"))
    assert again.receive().status == 200
    assert events.wait(lambda: events.of(call) == ["waiting", "kept"])
    api(lab, f"uuid_kill {call}")
    assert "BYE" in again.wait_request("BYE")
    again.close()
    lab.settled.update([user])


def test_reinvite_that_is_cancelled_ends_nothing(lab: Lab, events: Events) -> None:
    found, user, call, number = caller(lab, "hangup", "tcp")
    for method in ("INVITE", "CANCEL"):
        found.within(method, user, DOMAIN, ECHO, call, cseq=10_000)
    time.sleep(0.2)
    assert api(lab, f"uuid_exists {number}") == "true"
    found.close()
    assert events.wait(lambda: events.ended(number))
    assert events.of(number) == ["DESTINATION_OUT_OF_ORDER", "hungup"]
    lab.settled.update([user])


@pytest.mark.parametrize(("profile", "came"), [("main", ["reported"]), ("ignore", [])])
def test_call_stays_where_nobody_wants_its_end(lab: Lab, events: Events, profile: str, came: Sequence[str]) -> None:
    found, user, _, number = caller(lab, profile, "tcp")
    found.close()
    assert events.wait(lambda: events.reports(user))
    assert events.reports(user)[0].get("calls") == ("1" if came else None)
    time.sleep(1)
    assert events.of(number) == came and api(lab, f"uuid_exists {number}") == "true"
    api(lab, f"uuid_kill {number}")
    assert events.wait(lambda: events.ended(number))
    lab.settled.update([user])


@pytest.mark.parametrize("variable", ["sip_tp_error_calls report", "sip_tp_error_calls_grace 3600"])
def test_channel_variable_overrides_the_profile(lab: Lab, events: Events, variable: str) -> None:
    found, user, _, number = caller(lab, "hangup", "tcp")
    api(lab, f"uuid_setvar {number} {variable}")
    found.close()
    assert events.wait(lambda: events.of(number))
    time.sleep(1)
    assert events.of(number) == ["waiting" if "grace" in variable else "reported"]
    api(lab, f"uuid_kill {number}")
    assert events.wait(lambda: events.ended(number))
    lab.settled.update([user])


def test_no_connection_is_opened_to_a_peer_that_is_gone(lab: Lab, events: Events) -> None:
    found, user, _, number = caller(lab, "hangup", "tcp")
    host, port = found.address
    found.reset()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
        listener.settimeout(2)
        assert events.wait(lambda: events.ended(number))
        with pytest.raises(TimeoutError):
            listener.accept()
    lab.settled.update([user])


def test_leave_that_crosses_the_end_of_its_connection_is_no_loss(lab: Lab, events: Events) -> None:
    """A BYE right before the connection ends is what ends the call."""
    users = []
    for number in range(RACES):
        found, user = client(lab, "hangup", TRANSPORTS[number % 2])
        call = found.invite(user, lab.password, DOMAIN, ECHO)
        users.append(user)
        found.within("BYE", user, DOMAIN, ECHO, call)
        found.flush()
        time.sleep(random.choice((0, 0, random.uniform(0, 0.003))))
        found.close()
    assert events.wait(lambda: all(events.reports(user) for user in users))
    assert events.wait(lambda: api(lab, "show channels count").startswith("0 "))
    # With an answer unread, close() is a reset, which may discard the BYE.
    lost = [event for event in events.came if event.get("Event-Subclass") == CALL]
    assert all(event["close-cause"] == "reset" for event in lost), lost
    assert {event["calls"] for user in users for event in events.reports(user)} <= {"0", "1"}
    lab.settled.update(users)


def test_hangup_that_crosses_the_loss_happens_once(lab: Lab, events: Events) -> None:
    users, calls = [], []
    for number in range(RACES):
        found, user, call = callee(lab, "hangup", TRANSPORTS[number % 2])
        users.append(user)
        calls.append(call)
        api(lab, f"bgapi uuid_kill {call}")
        time.sleep(random.choice((0, random.uniform(0, 0.004))))
        kill(found, bool(number % 3))
    assert events.wait(lambda: all(events.ended(call) for call in calls))
    for call in calls:
        assert events.of(call) in (["NORMAL_CLEARING"], ["DESTINATION_OUT_OF_ORDER", "hungup"])
    lab.settled.update(users)


def test_all_calls_of_a_trunk_end_with_its_connection(lab: Lab, events: Events) -> None:
    found, user = client(lab, "hangup", "tcp")
    calls = [found.invite(user, lab.password, DOMAIN, ECHO)[0] for _ in range(50)]
    found.close()
    assert events.wait(lambda: all(events.call(call) for call in calls))
    numbers = [events.call(call) for call in calls]
    assert events.wait(lambda: all(map(events.ended, numbers)))
    assert all(events.of(number) == ["DESTINATION_OUT_OF_ORDER", "hungup"] for number in numbers)
    report = events.reports(user)[0]
    assert report["calls"] == "50"
    lab.settled.update([user])
