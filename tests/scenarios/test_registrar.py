"""What an attack from outside found in the registrar: rows, events and the index must tell the same."""

from __future__ import annotations

import json
import re
import time
import uuid
from functools import partial

import pytest

from scripts.bench.stream import Esl, frame
from scripts.freeswitch.events import REGISTER, Event, parse
from scripts.freeswitch.recorder import ESL_PORT
from scripts.freeswitch.sip import Refused, digest
from scripts.scenario import player
from scripts.scenario.lab import DOMAIN, Lab

# Generous: a busy machine is not a fault.
WAIT = 20.0
soon = partial(player.soon, timeout=WAIT)


def listed(lab: Lab, profile: str, user: str) -> int:
    return sum(row["user"] == f"{user}@{DOMAIN}" for row in lab.freeswitch.registrations(profile))


def test_register_within_a_call_is_refused_and_locks_nobody_out(lab: Lab) -> None:
    user, caller = lab.user(), lab.open("main", "tcp")
    call_id, to = caller.invite(user, lab.password, DOMAIN, "9196")
    tag = re.search(r";tag=([^;]+)", to)
    assert tag
    text = caller.request(user, DOMAIN, 3600, call_id).decode()
    text = re.sub(r"(?m)^From: (.*);tag=.*\r$", rf"From: \1;tag={call_id[:8]}\r", text)
    text = re.sub(r"(?m)^To: (.*)\r$", rf"To: \1;tag={tag.group(1)}\r", text)
    text = re.sub(r"(?m)^CSeq: \d+", "CSeq: 3", text)
    caller.send(text.encode())
    assert caller.receive().status == 403
    phone = lab.open("main", "tcp")
    phone.register(user, lab.password, DOMAIN)
    phone.close()
    caller.close()
    assert soon(lambda: len(lab.reports(user)) == 1)


@pytest.mark.parametrize("profile", ["multi", "threads"])
def test_lines_with_one_call_id_keep_their_rows(lab: Lab, profile: str) -> None:
    client, call_id, users = lab.open(profile, "tcp"), uuid.uuid4().hex, [lab.user(), lab.user()]
    for user in users:
        client.register(user, lab.password, DOMAIN, call_id=call_id)
        # So that they don't expire in the same second.
        time.sleep(1.1)
    assert [listed(lab, profile, user) for user in users] == [1, 1]
    client.close()
    assert soon(lambda: [len(lab.reports(user)) for user in users] == [1, 1])


@pytest.mark.parametrize("profile", ["main", "multi", "contact"])
def test_star_and_close_removes_what_was_lost_before(lab: Lab, profile: str) -> None:
    user, first, second = lab.user(), lab.open(profile, "tcp"), lab.open(profile, "tcp")
    first.register(user, lab.password, DOMAIN)
    first.close()
    assert soon(lambda: len(lab.reports(user)) == 1)
    assert listed(lab, profile, user) == 1
    second.register(user, lab.password, DOMAIN, expires=0, contact="*", wait=False)
    second.close()
    assert soon(lambda: listed(lab, profile, user) == 0)
    assert len(lab.reports(user)) == 1


@pytest.mark.parametrize("profile", ["multi", "contact"])
def test_star_does_not_remove_what_a_later_register_has_bound(lab: Lab, profile: str) -> None:
    user, call_id, later = lab.user(), uuid.uuid4().hex, uuid.uuid4().hex
    first, second = lab.open(profile, "tcp"), lab.open(profile, "tcp")
    first.register(user, lab.password, DOMAIN, call_id=call_id)
    first.register(user, lab.password, DOMAIN, expires=0, call_id=call_id, contact="*", wait=False)
    second.register(user, lab.password, DOMAIN, call_id=later)
    assert soon(lambda: listed(lab, profile, user) == 1)
    first.close()
    second.close()
    assert soon(lambda: [event.get("call-id") for event in lab.reports(user)] == [later])


@pytest.mark.parametrize("profile", ["main", "multi", "contact"])
def test_who_registers_as_somebody_else_leaves_as_that_one(lab: Lab, profile: str) -> None:
    client, call_id = lab.open(profile, "tcp"), uuid.uuid4().hex
    client.register("alias", lab.password, DOMAIN, call_id=call_id)
    assert listed(lab, profile, "forced") == 1
    client.register("alias", lab.password, DOMAIN, expires=0, call_id=call_id)
    assert listed(lab, profile, "forced") == 0
    client.register("alias", lab.password, DOMAIN, call_id=call_id)
    already = len(lab.reports("forced"))
    client.register("alias", lab.password, DOMAIN, expires=0, call_id=call_id, contact="*")
    assert listed(lab, profile, "forced") == 0
    # A report of this one would come before that of the next.
    client.close()
    client = lab.open(profile, "tcp")
    last = client.register("alias", lab.password, DOMAIN)
    client.close()
    assert soon(lambda: [event.get("call-id") for event in lab.reports("forced")][already:] == [last])


@pytest.mark.parametrize(("agent", "told"), [("", "unknown"), ("x\tcaf\xe9 \u260e", "x\tcaf\xe9 \u260e")])
def test_any_user_agent_makes_a_report(lab: Lab, agent: str, told: str) -> None:
    user, client = lab.user(), lab.open("main", "tcp")
    send = client.send
    client.send = lambda data: send(data.replace(b"tp-error-tests", agent.encode()))  # type: ignore[method-assign]
    client.register(user, lab.password, DOMAIN)
    client.close()
    assert soon(lambda: len(lab.reports(user)) == 1)
    assert parse(lab.reports(user)[0]).user_agent == told


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        (b"caf\xe9", "caf\ufffd"),
        (b"\xc3\xa9 \xf0\x9f\x98\x80", "\xe9 \U0001f600"),
        (b"x\xed\xa0\x80y\xc0\xaf\xf5z\xe2\x82", "x\ufffd\ufffd\ufffdy\ufffd\ufffd\ufffdz\ufffd\ufffd"),
    ],
)
def test_json_of_an_event_is_json(lab: Lab, agent: bytes, told: str) -> None:
    """Whatever a client calls itself."""
    user, client = lab.user(), lab.open("main", "tcp")
    events = Esl(lab.freeswitch.address, ESL_PORT, lab.password)
    events.command(f"event json CUSTOM {lab.settings.esl_event}")
    send = client.send
    client.send = lambda data: send(data.replace(b"tp-error-tests", agent))  # type: ignore[method-assign]
    client.register(user, lab.password, DOMAIN)
    client.close()
    events.sock.settimeout(WAIT)
    data = b""
    while not (found := frame(data, 0)):
        data += events.sock.recv(65536)
    _, start, end = found
    assert json.loads(data[start:end].decode("utf-8"))["user-agent"] == told
    events.sock.close()
    assert soon(lambda: len(lab.reports(user)) == 1)


def test_users_with_one_contact_have_a_row_each(lab: Lab) -> None:
    """As the accounts of a PBX that registers all with the same URI."""
    client, users = lab.open("contact", "tcp"), [lab.user(), lab.user()]
    for user in users:
        client.register(user, lab.password, DOMAIN, contact="<sip:pbx@192.0.2.1;transport=tcp>")
        # So that they don't expire in the same second.
        time.sleep(1.1)
    assert [listed(lab, "contact", user) for user in users] == [1, 1]
    client.close()
    assert soon(lambda: [len(lab.reports(user)) for user in users] == [1, 1])


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_profile_with_the_database_of_another_flushes_its_own(lab: Lab, transport: str) -> None:
    user, api = lab.user(), lab.freeswitch.recorder.api
    kept, lost = lab.open("hurried", transport), lab.open("hurried", "tcp")
    call_id = kept.register(user, lab.password, DOMAIN)
    for what in (f"{user}@{DOMAIN}", call_id, ""):
        api(f"sofia profile image-limit flush_inbound_reg {what}".strip())
    time.sleep(0.2)
    assert listed(lab, "hurried", user) == 1
    api(f"sofia profile hurried flush_inbound_reg {user}@{DOMAIN}")
    assert soon(lambda: listed(lab, "hurried", user) == 0)

    def back() -> bool:
        try:
            lost.register(user, lab.password, DOMAIN)
        except Refused:
            return False
        return True

    # Flushing all drops the challenges of every profile on this database, when its queue gets there; stock does, too.
    assert soon(back)
    lost.close()
    assert soon(lambda: len(lab.reports(user)) == 1)
    assert parse(lab.reports(user)[0]).registrations_left == 0
    kept.close()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize(("profile", "other"), [("hurried", "image-limit"), ("image-limit", "hurried")])
@pytest.mark.parametrize("contact", ["*", None], ids=["all", "one"])
def test_what_another_profile_removes_from_the_database_is_gone(
    lab: Lab, contact: str | None, profile: str, other: str, transport: str
) -> None:
    user, call_id = lab.user(), uuid.uuid4().hex
    gone = lab.open(profile, transport)
    gone.register(user, lab.password, DOMAIN, call_id=call_id)
    assert listed(lab, profile, user) == 1
    remover = lab.open(other, "tcp")
    remover.register(user, lab.password, DOMAIN, expires=0, call_id=call_id, contact=contact)
    assert listed(lab, profile, user) == 0
    # A report of this one would come before that of the last.
    gone.close()
    last = lab.open(profile, "tcp")
    newest = last.register(user, lab.password, DOMAIN)
    last.close()
    assert soon(lambda: [event.get("call-id") for event in lab.reports(user)] == [newest])
    assert parse(lab.reports(user)[0]).registrations_left == 0
    remover.close()


@pytest.mark.parametrize(("profile", "other"), [("hurried", "image-limit"), ("image-limit", "hurried")])
def test_what_is_registered_in_another_profile_replaces_the_row(lab: Lab, profile: str, other: str) -> None:
    user, call_id = lab.user(), uuid.uuid4().hex
    gone = lab.open(profile, "tcp")
    gone.register(user, lab.password, DOMAIN, call_id=call_id)
    mover = lab.open(other, "tcp")
    mover.register(user, lab.password, DOMAIN, call_id=call_id)
    assert [listed(lab, name, user) for name in (profile, other)] == [0, 1]
    gone.close()
    mover.close()
    assert soon(lambda: [event.get("profile-name") for event in lab.reports(user)] == [other])
    last = lab.open(profile, "tcp")
    last.register(user, lab.password, DOMAIN)
    last.close()
    assert soon(lambda: [event.get("profile-name") for event in lab.reports(user)] == [other, profile])
    assert [parse(event).registrations_left for event in lab.reports(user)] == [0, 0]


def test_row_that_is_refreshed_in_another_profile_is_of_that_one(lab: Lab) -> None:
    """With the nonce of the other one it is not replaced."""
    user, contact = lab.user(), "<sip:pbx@192.0.2.1;transport=tcp>"

    def updated(event: Event) -> bool:
        return event.subclass == REGISTER and event.get("from-user") == user and event.get("update-reg") == "true"

    first, second = lab.open("image-limit", "tcp"), lab.open("hurried", "tcp")
    first.send(first.request(user, DOMAIN, 3600, uuid.uuid4().hex, contact))
    challenge = first.receive().header("www-authenticate")
    for number, client in enumerate((first, second), 1):
        authorization = digest(challenge, user, lab.password, "REGISTER", f"sip:{DOMAIN}", number)
        client.send(client.request(user, DOMAIN, 3600, uuid.uuid4().hex, contact, authorization))
        assert client.receive().status == 200
    assert soon(lambda: any(map(updated, lab.freeswitch.recorder.events)))
    assert [listed(lab, profile, user) for profile in ("image-limit", "hurried")] == [0, 1]
    first.close()
    second.close()
    assert soon(lambda: [event.get("profile-name") for event in lab.reports(user)] == ["hurried"])
    last = lab.open("image-limit", "tcp")
    newest = last.register(user, lab.password, DOMAIN)
    last.close()
    assert soon(lambda: [event.get("call-id") for event in lab.reports(user)][1:] == [newest])
    assert [parse(event).registrations_left for event in lab.reports(user)] == [0, 0]


def test_star_removes_a_thousand(lab: Lab) -> None:
    """SQLite takes no condition with so many terms."""
    count = 1100
    user, client = lab.user(), lab.open("contact", "tcp")
    authorization = ""
    for number in range(count):
        call_id, contact = uuid.uuid4().hex, f"<sip:{user}@192.0.2.1:{1024 + number};transport=tcp>"
        if not authorization:
            client.send(client.request(user, DOMAIN, 3600, call_id, contact))
            challenge = client.receive()
            assert challenge.status == 401
        authorization = digest(
            challenge.header("www-authenticate"), user, lab.password, "REGISTER", f"sip:{DOMAIN}", number + 1
        )
        client.send(client.request(user, DOMAIN, 3600, call_id, contact, authorization))
        assert client.receive().status == 200
    assert listed(lab, "contact", user) == count
    client.register(user, lab.password, DOMAIN, expires=0, contact="*")
    assert listed(lab, "contact", user) == 0
    client.close()


def test_who_registers_takes_no_session(lab: Lab) -> None:
    user, caller, phone = lab.user(), lab.open("main", "tcp"), lab.open("main", "tcp")
    caller.invite(user, lab.password, DOMAIN, "9196")
    lab.freeswitch.recorder.api("fsctl max_sessions 1")
    try:
        assert phone.ask("INVITE", "x", DOMAIN, "9196").status == 503
        phone.register(user, lab.password, DOMAIN)
    finally:
        lab.freeswitch.recorder.api("fsctl max_sessions 10000")
    phone.close()
    caller.close()
    assert soon(lambda: len(lab.reports(user)) == 1)
