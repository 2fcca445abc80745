"""The Contacts of a REGISTER: each gets what RFC 3261 10.3 gives it, in every mode of the registrar."""

from __future__ import annotations

import base64
import re
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest

from scripts.freeswitch.events import REGISTER, UNREGISTER, Event
from scripts.freeswitch.sip import Client, Response, digest
from scripts.pins.settings import Settings
from scripts.scenario import lab as lab_module
from scripts.scenario import player
from scripts.scenario.lab import DOMAIN, Lab
from tests.deaths import DEATHS

MODES = ("main", "multi", "contact")
# Where there can be several rows for a user.
SEVERAL = ("multi", "contact")
WAIT = 30.0
# Generous, but what is tried with all of another takes a minute.
PATIENCE = 8.0
# Open connections of the test that runs.
CLIENTS: list[Client] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close what the test has opened."""
    yield
    while CLIENTS:
        CLIENTS.pop().close()


@dataclass
class Phone:
    """A user, and what is sent for it and comes of it in one profile."""

    lab: Lab
    profile: str
    transport: str = "tcp"
    user: str = field(init=False)
    client: Client = field(init=False)

    def __post_init__(self) -> None:
        self.user = self.lab.user()
        self.client = self.lab.open(self.profile, self.transport)
        CLIENTS.append(self.client)

    def uri(self, number: int, parameters: str = "") -> str:
        return f"<sip:{self.user}@192.0.2.{number}:5070;transport={self.transport}{parameters}>"

    def register(
        self, contacts: Sequence[str], expires: int | None = 3600, call_id: str = "", agent: str = "tests"
    ) -> Response:
        """Send a REGISTER with these values of Contact, one header each, and return the final response."""
        call_id = call_id or uuid.uuid4().hex

        def request(authorization: str = "") -> bytes:
            lines = self.client.request(self.user, DOMAIN, 0, call_id, "x", authorization).decode().split("\r\n")
            lines = [line for line in lines if not re.match(r"(?:Contact|Expires|User-Agent):", line)]
            more = [f"Contact: {contact}" for contact in contacts] + [f"User-Agent: {agent}"]
            if expires is not None:
                more.append(f"Expires: {expires}")
            return "\r\n".join([*lines[:-2], *more, *lines[-2:]]).encode()

        self.client.send(request())
        reply = self.client.receive()
        if reply.status != 401:
            return reply
        challenge = reply.header("www-authenticate")
        self.client.send(request(digest(challenge, self.user, self.lab.password, "REGISTER", f"sip:{DOMAIN}")))
        return self.client.receive()

    def rows(self) -> list[str]:
        """Return the stored URIs of the user, without what FreeSWITCH adds."""
        found = self.lab.freeswitch.registrations(self.profile)
        contacts = [row["contact"] for row in found if row["user"] == f"{self.user}@{DOMAIN}"]
        return sorted("<" + re.split(r";fs_|>", contact.partition("<")[2])[0] + ">" for contact in contacts)

    def report(self) -> Event:
        """Return the one report of the user, once it and what would follow it has come."""

        def reports(events: Sequence[Event]) -> list[Event]:
            return [event for event in events if self.lab.is_report(event) and event.get("from-user") == self.user]

        recorder = self.lab.freeswitch.recorder
        assert recorder.wait(lambda events: bool(reports(events)), WAIT)
        self.events()
        (report,) = reports(recorder.events)
        self.lab.settled[self.user] += 1
        return report

    def events(self) -> list[tuple[str, str]]:
        """Return (subclass, URI) of the user's events so far, in the order of Event-Sequence."""
        marker = Phone(self.lab, self.profile)
        assert marker.register([marker.uri(1)], 60).status == 200
        assert marker.register(["*"], 0).status == 200
        recorder = self.lab.freeswitch.recorder

        def is_last(event: Event) -> bool:
            return event.subclass == UNREGISTER and event.get("from-user") == marker.user

        assert recorder.wait(lambda events: any(map(is_last, events)), WAIT)
        own = [
            event
            for event in recorder.events
            if event.get("from-user") == self.user and event.subclass in (REGISTER, UNREGISTER)
        ]
        own.sort(key=lambda event: int(event.get("Event-Sequence")))
        return [
            (event.subclass, "<" + re.split(r";fs_|>", event.get("contact").partition("<")[2])[0] + ">")
            for event in own
        ]


def answered(reply: Response) -> dict[str, int]:
    """Return the URIs in a 200 and for how long each is bound."""
    assert reply.status == 200, reply
    values = [value for line in reply.headers.get("contact", []) for value in re.split(r",\s*(?=<)", line)]
    found = {}
    for value in values:
        uri, expires = re.fullmatch(r"(<.*>);expires=(\d+)", value).groups()  # type: ignore[union-attr]
        found[uri] = int(expires)
    return found


@pytest.fixture(params=["tcp", "udp"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("profile", MODES)
def test_parameter_wins_over_the_header(lab: Lab, profile: str, transport: str) -> None:
    phone = Phone(lab, profile, transport)
    uri, call_id = phone.uri(1), uuid.uuid4().hex
    assert answered(phone.register([f"{uri};expires=90"], 3600, call_id)) == {uri: 90}
    assert answered(phone.register([f"{uri};expires=90"], 0, call_id)) == {uri: 90}
    assert answered(phone.register([f"{uri};expires=0"], 3600, call_id)) == {}
    assert phone.rows() == []
    assert phone.events() == [(REGISTER, uri), (REGISTER, uri), (UNREGISTER, uri)]


@pytest.mark.parametrize("profile", MODES)
@pytest.mark.parametrize("first", ["old", "new"])
@pytest.mark.parametrize("same", [True, False], ids=["same Call-ID", "new Call-ID"])
def test_client_that_moves(lab: Lab, profile: str, transport: str, first: str, same: bool) -> None:
    phone = Phone(lab, profile, transport)
    old, new, call_id = phone.uri(1), phone.uri(2), uuid.uuid4().hex
    assert phone.register([old], 3600, call_id).status == 200
    contacts = [f"{old};expires=0", new]
    reply = phone.register(contacts if first == "old" else contacts[::-1], 3600, call_id if same else "")
    assert answered(reply) == {new: 3600}
    assert phone.rows() == [new]
    assert phone.events() == [(REGISTER, old), (UNREGISTER, old), (REGISTER, new)]


@pytest.mark.parametrize("profile", MODES)
def test_contacts_in_one_header(lab: Lab, profile: str, transport: str) -> None:
    phone = Phone(lab, profile, transport)
    old, new = phone.uri(1), phone.uri(2)
    assert phone.register([old]).status == 200
    assert answered(phone.register([f"{old};q=0.5;expires=0, {new};q=0.1"])) == {new: 3600}
    assert phone.rows() == [new]


@pytest.mark.parametrize("profile", SEVERAL)
def test_only_what_is_named_is_removed(lab: Lab, profile: str, transport: str) -> None:
    phone = Phone(lab, profile, transport)
    for number in (1, 2, 3):
        assert phone.register([phone.uri(number)]).status == 200
    contacts = [f"{phone.uri(number)};expires=0" for number in (1, 3, 5)] + [phone.uri(4)]
    assert set(answered(phone.register(contacts))) == {phone.uri(2), phone.uri(4)}
    assert phone.rows() == [phone.uri(2), phone.uri(4)]
    removed = [uri for subclass, uri in phone.events() if subclass == UNREGISTER]
    assert sorted(removed) == [phone.uri(1), phone.uri(3)]


@pytest.mark.parametrize("profile", MODES)
def test_all_are_removed(lab: Lab, profile: str, transport: str) -> None:
    phone = Phone(lab, profile, transport)
    numbers = (1,) if profile == "main" else (1, 2)
    calls = [uuid.uuid4().hex for _ in numbers]
    for number, call_id in zip(numbers, calls, strict=True):
        assert phone.register([phone.uri(number)], 3600, call_id).status == 200
    gone = [phone.uri(number) for number in numbers]
    assert answered(phone.register([*gone, f"{phone.uri(3)};expires=0"], 0, calls[0])) == {}
    assert phone.rows() == []
    assert sorted(uri for subclass, uri in phone.events() if subclass == UNREGISTER) == gone


@pytest.mark.parametrize("profile", MODES)
def test_two_bindings_are_refused(lab: Lab, profile: str, transport: str) -> None:
    phone = Phone(lab, profile, transport)
    kept, call_id = phone.uri(9), uuid.uuid4().hex
    assert phone.register([kept], 3600, call_id).status == 200
    for contacts in (
        [phone.uri(1), phone.uri(2)],
        [f"{phone.uri(1)};q=1.0", f"{phone.uri(2)};q=0.1"],
        [f"{kept};expires=0", phone.uri(1), phone.uri(2)],
        [phone.uri(number) for number in range(1, 34)],
        [f"{phone.uri(number)};expires=0" for number in range(1, 34)],
    ):
        assert phone.register(contacts, 3600, call_id).status == 403
    assert phone.rows() == [kept]
    assert phone.events() == [(REGISTER, kept)]


@pytest.mark.parametrize("profile", MODES)
def test_the_last_of_equal_contacts_counts(lab: Lab, profile: str) -> None:
    phone = Phone(lab, profile)
    uri, call_id = phone.uri(1), uuid.uuid4().hex
    assert answered(phone.register([f"{uri};expires=60", f"{uri};expires=120"], 3600, call_id)) == {uri: 120}
    assert answered(phone.register([f"{uri};expires=0", f"{uri};expires=90"], 3600, call_id)) == {uri: 90}
    assert phone.rows() == [uri]
    assert answered(phone.register([f"{uri};expires=60", f"{uri};expires=0"], 3600, call_id)) == {}
    assert phone.rows() == []
    assert [subclass for subclass, _ in phone.events()] == [REGISTER, REGISTER, UNREGISTER]


@pytest.mark.parametrize("profile", MODES)
def test_star_removes_all(lab: Lab, profile: str, transport: str) -> None:
    phone, other = Phone(lab, profile, transport), Phone(lab, profile, transport)
    numbers = (1,) if profile == "main" else (1, 2, 3)
    uris = [phone.uri(number) for number in numbers]
    for uri in uris:
        assert phone.register([uri]).status == 200
    assert other.register([other.uri(1)]).status == 200
    assert answered(phone.register(["*"], 0)) == {}
    assert phone.rows() == []
    assert sorted(phone.events()) == sorted((subclass, uri) for uri in uris for subclass in (REGISTER, UNREGISTER))
    assert other.rows() == [other.uri(1)]
    # Nothing is left to remove.
    assert answered(phone.register(["*"], 0)) == {}
    assert len(phone.events()) == 2 * len(uris)


@pytest.mark.parametrize("profile", MODES)
def test_star_removes_what_others_have_registered(lab: Lab, profile: str, transport: str) -> None:
    """Also those that count further, and have registered a moment ago."""
    phone, other = Phone(lab, profile, transport), Phone(lab, profile, transport)
    other.user = phone.user
    call_id = uuid.uuid4().hex
    first, second = (phone.client.request(phone.user, DOMAIN, 0, call_id, "*") for _ in range(2))
    assert other.register([other.uri(1)]).status == 200
    phone.client.send(first)
    reply = phone.client.receive()
    assert reply.status == 401
    authorization = digest(reply.header("www-authenticate"), phone.user, lab.password, "REGISTER", f"sip:{DOMAIN}")
    phone.client.send(second.replace(b"Expires:", f"Authorization: {authorization}\r\nExpires:".encode()))
    assert answered(phone.client.receive()) == {}
    assert phone.rows() == []


@pytest.mark.parametrize("profile", MODES)
def test_star_with_anything_else_is_a_bad_request(lab: Lab, profile: str, transport: str) -> None:
    phone = Phone(lab, profile, transport)
    uri = phone.uri(1)
    assert phone.register([uri]).status == 200
    for contacts, expires in (
        (["*"], 3600),
        (["*"], None),
        (["*", f"{uri};expires=0"], 0),
        ([f"{uri};expires=0", "*"], 0),
        ([f"{uri};expires=0, *"], 0),
    ):
        assert phone.register(contacts, expires).status == 400
    assert phone.rows() == [uri]
    assert phone.events() == [(REGISTER, uri)]


@pytest.mark.parametrize("value", ["60x", "-1", '"60"', '"Thu, 01 Dec 1994 16:00:00 GMT"', "99999999999", "1.5"])
def test_malformed_expires_is_an_hour(lab: Lab, value: str) -> None:
    phone = Phone(lab, "multi")
    assert answered(phone.register([f"{phone.uri(1)};expires={value}"], 120)) == {phone.uri(1): 3600}


@pytest.mark.parametrize(
    "contact",
    [
        "<tel:+4930123456>",
        "<mailto:alice@example.org>",
        "<sip:alice@192.0.2.1;pad={}>".format("x" * 1000),
        "<sip:alice@192.0.2.1;pad={}>".format("x" * 1100),
    ],
    ids=["tel", "mailto", "too long", "longer"],
)
@pytest.mark.parametrize("profile", MODES)
def test_contact_that_cannot_be_stored_is_refused(lab: Lab, profile: str, contact: str) -> None:
    phone = Phone(lab, profile)
    kept, call_id = phone.uri(1), uuid.uuid4().hex
    assert phone.register([kept], 3600, call_id).status == 200
    assert phone.register([contact], 3600, call_id).status == 403
    assert phone.rows() == [kept]
    assert phone.events() == [(REGISTER, kept)]


def test_contact_without_a_user_is_stored_as_it_is(lab: Lab) -> None:
    phone = Phone(lab, "multi")
    host, port = phone.client.address
    uri = f"<sip:{host}:{port};transport=tcp>"
    assert answered(phone.register([uri])) == {uri: 3600}
    assert phone.rows() == [uri]
    lab.freeswitch.recorder.api(
        f"bgapi originate {{originate_timeout=5}}sofia/multi/sip:{host}:{port};transport=tcp &park"
    )
    phone.client.wait_request("INVITE")
    # And it is the same one when it is removed among others.
    assert answered(phone.register([f"{uri};expires=0", phone.uri(2)])) == {phone.uri(2): 3600}


@pytest.mark.parametrize(
    ("stored", "named", "equal"),
    [
        ("sip:{}@h.example.org;transport=tcp;ob", "SIP:{}@H.example.ORG;ob;transport=TCP", True),
        ("sip:{}@h.example.org;transport=tcp;x=1", "sip:{}@h.example.org;transport=tcp", True),
        ("sip:%61{}@h.example.org", "sip:a{}@h.example.org", True),
        ("sip:{}@h.example.org;b=2;a;transport=tcp;d", "sip:{}@h.example.org;c;Transport=TCP;A;B=2", True),
        ("sip:{}@h.example.org;b=2;a;transport=tcp;d", "sip:{}@h.example.org;d;transport=tcp;b=3;a", False),
        ("sip:{}@h.example.org;a;maddr=192.0.2.9;b", "sip:{}@h.example.org;b;a", False),
        ("sip:{}@h.example.org;transport=tcp", "sip:{}@h.example.org", False),
        ("sip:{}@h.example.org;line=1", "sip:{}@h.example.org;line=2", False),
        ("sip:{}@h.example.org", "sip:{}@h.example.org:5070", False),
        ("sip:a{}@h.example.org", "sip:A{}@h.example.org", False),
        ("sip:{}@h.example.org", "sips:{}@h.example.org", False),
    ],
)
def test_uris_are_compared_by_the_rules_of_sip(lab: Lab, stored: str, named: str, equal: bool) -> None:
    phone = Phone(lab, "multi")
    assert phone.register([f"<{stored.format(phone.user)}>"]).status == 200
    assert phone.register([f"<{named.format(phone.user)}>;expires=0", phone.uri(1)]).status == 200
    assert len(phone.rows()) == (1 if equal else 2)


@pytest.mark.parametrize(
    ("contacts", "parameters", "status"), [(2, 100_000, 403), (32, 480, 401)], ids=["too long", "many"]
)
def test_contacts_with_many_parameters_hold_up_nobody(lab: Lab, contacts: int, parameters: int, status: int) -> None:
    """Whoever sends them need not be a user."""
    phone, other = Phone(lab, "main"), Phone(lab, "multi")
    values = [f"<sip:a@192.0.2.1{f';{chr(65 + number)}' * parameters}>" for number in range(contacts)]
    started = time.monotonic()
    phone.client.send(phone.client.request(phone.user, DOMAIN, 0, uuid.uuid4().hex, ", ".join(values)))
    other.client.ask("OPTIONS", other.user, DOMAIN, other.user)
    assert phone.client.receive().status == status
    assert time.monotonic() - started < PATIENCE


@pytest.mark.parametrize("profile", MODES)
def test_request_without_a_contact_lists_the_bindings(lab: Lab, profile: str, transport: str) -> None:
    phone = Phone(lab, profile, transport)
    assert answered(phone.register([])) == {}
    assert phone.register([phone.uri(1)]).status == 200
    assert set(answered(phone.register([]))) == {phone.uri(1)}
    assert phone.events() == [(REGISTER, phone.uri(1))]


@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
@pytest.mark.parametrize("profile", MODES)
def test_client_that_moved_is_reported_once(lab: Lab, profile: str, transport: str) -> None:
    phone = Phone(lab, profile, transport)
    old, new, call_id = phone.uri(1), phone.uri(2), uuid.uuid4().hex
    assert phone.register([old], 3600, call_id).status == 200
    assert answered(phone.register([f"{old};expires=0", new], 3600, call_id)) == {new: 3600}
    assert phone.rows() == [new]
    phone.client.close()
    report = phone.report()
    assert "192.0.2.2" in report.get("contact")
    assert report.get("registrations-left") == "0"


@pytest.mark.parametrize("profile", MODES)
def test_what_is_removed_is_not_reported(lab: Lab, profile: str) -> None:
    phone = Phone(lab, profile)
    over = [Phone(lab, profile) for _ in range(2)]
    for number, item in enumerate(over, 1):
        item.user = phone.user
        assert item.register([phone.uri(number)]).status == 200
    assert phone.register([f"{phone.uri(1)};expires=0", f"{phone.uri(2)};expires=0", phone.uri(3)]).status == 200
    for item in over:
        item.client.close()
    phone.client.close()
    report = phone.report()
    assert "192.0.2.3" in report.get("contact")


@pytest.mark.parametrize("agent", ["a" * 300, "ä" * 150, "a" * 254 + "€"])
def test_user_agent_is_cut(lab: Lab, agent: str) -> None:
    phone = Phone(lab, "multi")
    assert phone.register([phone.uri(1)], agent=agent).status == 200
    (row,) = [row for row in lab.freeswitch.registrations("multi") if row["user"] == f"{phone.user}@{DOMAIN}"]
    assert row["agent"] == agent.encode()[:255].decode(errors="ignore")


def test_row_without_expires_does_no_harm(lab: Lab) -> None:
    phone = Phone(lab, "silent")
    assert phone.register([phone.uri(1)]).status == 200
    edit(lab, "sofia_reg_silent", "update sip_registrations set expires = null where sip_user = ?", phone.user)
    assert phone.register([]).status == 200
    assert answered(phone.register([phone.uri(2)])) == {phone.uri(2): 3600}


def edit(lab: Lab, database: str, sql: str, value: str) -> None:
    """Change one row in a database of a profile that does nothing meanwhile."""
    shell = lab.freeswitch.shell
    (path,) = shell(f"find / -name {database}.db -not -path '/proc/*' 2>/dev/null || true").split()
    copy = lab.directory / "edited.db"
    copy.write_bytes(base64.b64decode(shell(f"base64 {path}")))
    connection = sqlite3.connect(copy)
    assert connection.execute(sql, (value,)).rowcount == 1
    connection.commit()
    connection.close()
    text = base64.b64encode(copy.read_bytes()).decode()
    copy.unlink()
    # An argument has a limit. And FreeSWITCH has the file open: it must stay the same one.
    for start in range(0, len(text), 100_000):
        shell(f"echo {text[start : start + 100_000]} >> /tmp/edited")
    shell(f"base64 -d /tmp/edited > {path} && rm /tmp/edited")


@pytest.fixture(scope="module")
def blind(built: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Return a lab in which nobody has to authenticate."""
    with lab_module.start(
        built, DEATHS, tmp_path_factory.mktemp("blind"), parameters={"accept-blind-reg": "true"}
    ) as found:
        yield found


@pytest.mark.parametrize("profile", MODES)
def test_without_authentication(blind: Lab, profile: str, transport: str) -> None:
    phone = Phone(blind, profile, transport)
    old, new = phone.uri(1), phone.uri(2)
    assert answered(phone.register([])) == {}
    assert phone.rows() == []
    assert phone.register([old]).status == 200
    assert answered(phone.register([f"{old};expires=0", new])) == {new: 3600}
    assert phone.register([old, new]).status == 403
    assert answered(phone.register(["*"], 0)) == {}
    assert phone.rows() == []
    assert phone.events() == [(REGISTER, old), (UNREGISTER, old), (REGISTER, new), (UNREGISTER, new)]


@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
def test_all_that_was_sent_before_the_end_counts(blind: Lab, transport: str) -> None:
    """Also more than FreeSWITCH reads at once, of a client that is gone before the first answer."""
    for _ in range(5):
        client, users = blind.open("main", transport), [blind.user() for _ in range(100)]
        for user in users:
            client.send(client.request(user, DOMAIN, 3600, uuid.uuid4().hex))
        client.flush()
        client.close()
        assert player.soon(partial(each_reported, blind, users), WAIT)


def each_reported(lab: Lab, users: Sequence[str]) -> bool:
    return all(len(lab.reports(user)) == 1 for user in users)
