"""Who is in a conference when the same user joins it twice."""

from __future__ import annotations

import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from scripts.freeswitch import sip
from scripts.freeswitch.events import Event
from scripts.freeswitch.sip import Client, Refused
from scripts.freeswitch.sip import digest as sip_digest
from scripts.machine import engine
from scripts.pins.settings import Settings
from scripts.scenario import lab as lab_module
from scripts.scenario.lab import DOMAIN, Lab
from tests.deaths import CPUS, DEATHS
from tests.room import MAINTENANCE, Room

CROWD, RACES, TOGETHER = 60, 120, 6
# What races is so many seconds apart at most.
OFFSET = 0.05
PROFILES = {
    "replace": {"duplicate-member": "replace"},
    "refuse": {"duplicate-member": "refuse"},
    "allow": {},
    "number": {"duplicate-member": "replace", "duplicate-member-identity": "caller-id"},
    "full": {"duplicate-member": "replace", "max-members": "2"},
    "announced": {"duplicate-member": "replace", "member-enter-sound": "tone_stream://%(3000,0,440)"},
    "wrong": {"duplicate-member": "both", "duplicate-member-identity": "auth,shoe-size"},
}
CONFERENCES = """<configuration name="conference.conf"><profiles>
{profiles}
</profiles></configuration>"""
PROFILE = """<profile name="{name}">
<param name="domain" value="example.test"/><param name="rate" value="8000"/><param name="interval" value="20"/>
{parameters}
</profile>"""
# Dial PROFILE-ROOM.
DIALPLAN = """<context name="default">
<extension name="conference"><condition field="destination_number" expression="^([a-z]+)-(.+)$">
<action application="conference" data="$2@$1"/></condition></extension>
<extension name="wait"><condition field="destination_number" expression="^wait$">
<action application="answer"/><action application="park"/></condition></extension>
</context>"""


@pytest.fixture(scope="module", params=CPUS, ids=lambda cpus: f"{cpus} CPUs")
def lab(request: pytest.FixtureRequest, built: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Yield a lab with a conference profile for each way to treat duplicates."""
    directory = tmp_path_factory.mktemp("conference")
    with lab_module.start(built, DEATHS, directory, cpus=request.param, subclasses=(MAINTENANCE,)) as found:
        profiles = "\n".join(
            PROFILE.format(
                name=name,
                parameters="\n".join(f'<param name="{key}" value="{value}"/>' for key, value in parameters.items()),
            )
            for name, parameters in PROFILES.items()
        )
        files = {
            "autoload_configs/conference.conf.xml": CONFERENCES.format(profiles=profiles),
            "dialplan/default.xml": DIALPLAN,
        }
        found.freeswitch.container.put_archive("/etc/freeswitch", engine.tar(files))
        assert "+OK" in found.freeswitch.recorder.api("reloadxml")
        assert "+OK" in found.freeswitch.recorder.api("fsctl max_sessions 10000")
        found.freeswitch.recorder.api("fsctl sps 10000")
        yield found


@pytest.fixture
def room(lab: Lab) -> Iterator[Callable[[str], Room]]:
    """Return a function that makes a conference of a profile; they end with the test."""
    rooms: list[Room] = []

    def make(profile: str) -> Room:
        rooms.append(Room(lab, profile))
        return rooms[-1]

    yield make
    for one in rooms:
        one.do("hup all")


def replaced(room: Room, number: int = 1) -> tuple[Event, Event]:
    """Wait until so many have been replaced; return del-member and add-member of the last, which fit together."""

    def replacing() -> list[Event]:
        return [event for event in room.events("add-member") if event.get("Replaces-Member-ID")]

    room.wait(lambda: len(replacing()) >= number, f"{number} replaced")
    assert len(replacing()) == number, room.told()
    add = replacing()[-1]
    gone = [event for event in room.events("del-member") if event.get("Replaced-By-Member-ID")]
    assert len(gone) == number, room.told()
    delete = gone[-1]
    assert delete.get("Member-ID") == add.get("Replaces-Member-ID")
    assert delete.get("Replaced-By-Member-ID") == add.get("Member-ID")
    assert int(delete.get("Event-Sequence")) < int(add.get("Event-Sequence"))
    return delete, add


def cause(client: Client) -> str:
    """Return the Reason of the BYE that ends the call."""
    found = re.search(r"^Reason: *(.*)$", client.wait_request("BYE"), re.MULTILINE)
    assert found
    return found[1].strip()


def test_old_call_leaves_first(lab: Lab, room: Callable[[str], Room]) -> None:
    """Two calls of one user, who has a password: his client died and is back, for the server at least."""
    here, user = room("replace"), lab.user()
    with closing(lab.open("main", "tcp")) as old, closing(lab.open("main", "tcp")) as new:
        old.invite(user, lab.password, DOMAIN, f"replace-{here.name}")
        first = here.wait_events("add-member", 1)[0]
        new.invite(user, lab.password, DOMAIN, f"replace-{here.name}")
        delete, add = replaced(here)
        assert delete.get("Member-ID") == first.get("Member-ID")
        assert {delete.get("Duplicate-Identity"), add.get("Duplicate-Identity")} == {f"{user}@{DOMAIN}"}
        assert "cause=45" in cause(old) and "PRE_EMPTED" in lab.freeswitch.shell(
            f"grep -h {first.get('Unique-ID')} /var/log/freeswitch/freeswitch.log | grep Hangup"
        )
        assert list(here.members()) == [add.get("Member-ID")]
        # The one that was alone in the conference has left; the conference has not ended.
        time.sleep(0.2)
        assert list(here.members()) == [add.get("Member-ID")] and not here.events("conference-destroy")
        here.replay("Unique-ID")
        here.end()


def test_floor_and_what_a_moderator_did_pass_on(room: Callable[[str], Room]) -> None:
    here = room("replace")
    here.join("ann@x", "+flags{moderator}")
    here.wait(lambda: here.events("floor-change"), "the floor")
    here.join("bob@x")
    ann, bob = (event.get("Member-ID") for event in here.wait_events("add-member", 2))
    assert "OK" in here.do(f"mute {ann} quiet") and "OK" in here.do(f"deaf {bob} quiet")
    here.join("ann@x")
    delete, add = replaced(here)
    assert delete.get("Member-ID") == ann
    seen = [add.get(name) for name in ("Floor", "Speak", "Hear", "Member-Type")]
    assert seen == ["true", "false", "true", "moderator"]
    change = [event for event in here.events("floor-change") if event.get("Old-ID") == ann]
    assert [event.get("New-ID") for event in change] == [add.get("Member-ID")]
    assert int(change[0].get("Event-Sequence")) > int(add.get("Event-Sequence"))
    here.join("bob@x", "+flags{mute}")
    _, add = replaced(here, 2)
    # He could speak, and not hear.
    assert [add.get(name) for name in ("Floor", "Speak", "Hear")] == ["false", "true", "false"]
    here.replay()
    here.end()


@pytest.mark.parametrize("flag", ["endconf", "mandatory_member_endconf"])
def test_nothing_ends_with_the_old_one(room: Callable[[str], Room], flag: str) -> None:
    """Until the one who has replaced him leaves."""
    here = room("replace")
    here.join("ann@x", f"+flags{{{flag}}}")
    other = here.join("bob@x")
    call = here.join("ann@x")
    replaced(here)
    # The loop of a conference looks each 20 ms, and at whole seconds for mandatory members.
    time.sleep(2.5)
    assert sorted(here.members().values()) == sorted([other, call])
    here.api(f"uuid_kill {call}")
    here.wait(lambda: here.events("conference-destroy"), "the end")


def test_recording_goes_on(room: Callable[[str], Room]) -> None:
    """It ends with the last member, and is nobody's duplicate."""
    here = room("replace")
    here.join("ann@x")
    for number in (1, 2):
        assert "OK" in here.do(f"record /tmp/{here.name}-{number}.wav")
    here.wait_events("start-recording", 2)
    for _ in range(20):
        here.join("ann@x")
    replaced(here, 20)
    time.sleep(0.2)
    assert not here.events("stop-recording")
    assert len(here.members()) == 1
    here.end()


def test_ghosts_and_relationships(room: Callable[[str], Room]) -> None:
    here = room("replace")
    here.join("ann@x", "+flags{ghost}")
    here.join("bob@x")
    ann, bob = (event.get("Member-ID") for event in here.wait_events("add-member", 2))
    here.do(f"relate {ann} {bob} nohear")
    here.do(f"relate {bob} {ann} nospeak")
    here.join("ann@x", "+flags{ghost}")
    _, add = replaced(here)
    new = add.get("Member-ID")
    assert [add.get("Conference-Size"), add.get("Conference-Ghosts")] == ["1", "1"]
    lines = {number: here.do(f"relate {number}") for number in (new, bob)}
    assert "NOHEAR" in lines[new] and bob in lines[new], lines
    assert "NOSPEAK" in lines[bob] and new in lines[bob], lines
    # As one of the others he counts again.
    here.join("ann@x")
    replaced(here, 2)
    assert [here.events("add-member")[-1].get(f"Conference-{name}") for name in ("Size", "Ghosts")] == ["2", "0"]
    here.replay()
    here.end()


def test_who_is_refused_is_told(lab: Lab, room: Callable[[str], Room]) -> None:
    here, user = room("refuse"), lab.user()
    with closing(lab.open("main", "tcp")) as old, closing(lab.open("main", "tcp")) as new:
        old.invite(user, lab.password, DOMAIN, f"refuse-{here.name}")
        (first,) = here.wait_events("add-member", 1)
        with pytest.raises(Refused) as refused:
            new.invite(user, lab.password, DOMAIN, f"refuse-{here.name}")
        assert refused.value.response.status == 486
        (event,) = here.wait_events("rejected-duplicate-member", 1)
        assert event.get("Duplicate-Of-Member-ID") == first.get("Member-ID")
        assert event.get("Duplicate-Identity") == f"{user}@{DOMAIN}"
        assert list(here.members()) == [first.get("Member-ID")]
        # Once the old one has left, the new one may come.
        here.do("hup all")
        here.wait(lambda: here.events("conference-destroy"), "the end")
        new.invite(user, lab.password, DOMAIN, f"refuse-{here.name}")
        here.wait_events("add-member", 2)
        here.end()


def test_allowed_as_before(room: Callable[[str], Room]) -> None:
    for profile in ("allow", "wrong"):
        here = room(profile)
        here.join("ann@x")
        here.join("ann@x")
        here.wait_events("add-member", 2)
        assert len(here.members()) == 2
        here.end()


def test_wrong_values_are_told(lab: Lab, room: Callable[[str], Room]) -> None:
    here = room("wrong")
    here.join("ann@x")
    log = lab.freeswitch.shell("cat /var/log/freeswitch/freeswitch.log")
    lines = [line for line in log.splitlines() if f"Conference {here.name}: duplicate-member" in line]
    assert len(lines) == 2 and all("WARNING" in line for line in lines), lines
    assert "'both' is none of allow, replace, refuse" in lines[0]
    assert "'auth,shoe-size' is not made of auth, presence-id and caller-id" in lines[1]
    here.end()


def test_transferred_call_replaces(room: Callable[[str], Room]) -> None:
    here = room("replace")
    here.join("ann@x")
    call = str(uuid.uuid4())
    here.api(f"originate {{origination_uuid={call},presence_id=ann@x}}loopback/wait/default &park()")
    assert "+OK" in here.api(f"uuid_transfer {call} conference:{here.name}@replace inline")
    replaced(here)
    assert list(here.members().values()) == [call]
    # Who is moved on to another conference and back is himself.
    other = room("replace")
    other.join("ann@x")
    (member,) = here.members()
    here.do(f"transfer {other.name}@replace {member}")
    replaced(other)
    assert list(other.members().values()) == [call]
    other.end()


def answered(client: Client, status: str = "200 OK", invite: str = "") -> None:
    """Answer the next call, or `invite`."""
    invite = invite or client.wait_request("INVITE")
    host, port = client.address
    lines = [line for line in invite.split("\r\n") if re.match(r"(Via|From|Call-ID|CSeq|Record-Route):", line, re.I)]
    to = re.search(r"^To:.*$", invite, re.MULTILINE | re.IGNORECASE)
    assert to
    body = f"v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\nc=IN IP4 {host}\r\nt=0 0\r\nm=audio 40002 RTP/AVP 8\r\n"
    lines += [f"{to[0].strip()};tag={uuid.uuid4().hex}", f"Contact: <sip:x@{host}:{port};transport=tcp>"]
    lines += ["Content-Type: application/sdp", f"Content-Length: {len(body)}", "", body]
    client.send("\r\n".join([f"SIP/2.0 {status}", *lines]).encode())


@pytest.mark.parametrize("dial", ["user/{user}@{domain}", "sofia/main/{user}%{domain}"])
def test_dialled_user_replaces_the_one_who_called(lab: Lab, room: Callable[[str], Room], dial: str) -> None:
    here, user = room("replace"), lab.user()
    with closing(lab.open("main", "tcp")) as old, closing(lab.open("main", "tcp")) as new:
        old.invite(user, lab.password, DOMAIN, f"replace-{here.name}")
        here.wait_events("add-member", 1)
        new.register(user, lab.password, DOMAIN)
        here.do(f"bgdial {dial.format(user=user, domain=DOMAIN)}")
        answered(new)
        delete, add = replaced(here)
        assert delete.get("Duplicate-Identity") == add.get("Duplicate-Identity") == f"{user}@{DOMAIN}"
        assert "cause=45" in cause(old)
        assert list(here.members()) == [add.get("Member-ID")]
        here.end()
    lab.settled.update([user])


def test_two_conferences_are_two(room: Callable[[str], Room]) -> None:
    here, there = room("replace"), room("replace")
    calls = [one.join("ann@x") for one in (here, there)]
    again = here.join("ann@x")
    replaced(here)
    assert list(here.members().values()) == [again]
    assert list(there.members().values()) == calls[1:]
    assert not there.events("del-member")
    here.end()
    there.end()


def test_nobody_is_nobodys_duplicate(room: Callable[[str], Room]) -> None:
    """Nor is a second screen the duplicate of its user, nor is one whom the dialplan calls nobody."""
    here = room("replace")
    for who in ("", "", "anonymous@anonymous.invalid", "anonymous@anonymous.invalid"):
        here.join(who)
    here.join("ann@x")
    here.join("ann@x", more="video_second_screen=true")
    here.join("ann@x", more="conference_duplicate_identity=none")
    here.wait_events("add-member", 7)
    assert len(here.members()) == 7 and not here.events("del-member")
    here.join("bob@x", more="conference_duplicate_identity=ann@X")
    delete, _ = replaced(here)
    assert delete.get("Duplicate-Identity") == "ann@X"
    here.end()


def test_number_tells_who_it_is(room: Callable[[str], Room]) -> None:
    """If the profile says so, and if there is nothing better."""
    for profile in ("number", "replace"):
        here = room(profile)
        for number in ("5551", "5552", "5551"):
            here.call(number)
        delete, _ = replaced(here)
        assert delete.get("Duplicate-Identity") == "5551"
        assert len(here.members()) == 2
        here.end()


@pytest.mark.parametrize("number", ["asterisk", "withheld", "+anonymous", "FreeSWITCH", "0", "+0"])
def test_what_is_no_number_is_nobody(room: Callable[[str], Room], number: str) -> None:
    here = room("number")
    for _ in range(2):
        here.call(number)
    here.wait_events("add-member", 2)
    assert len(here.members()) == 2 and not here.events("del-member")
    here.end()


def test_calls_of_the_conference_itself_are_several(room: Callable[[str], Room]) -> None:
    """The near end of a loopback has the number that the conference calls from."""
    here = room("number")
    for _ in range(3):
        here.do("dial loopback/wait/default 030777 conf")
    here.wait_events("add-member", 3)
    assert len(here.members()) == 3 and not here.events("del-member")
    here.end()


@pytest.mark.parametrize("profile", ["replace", "refuse"])
def test_realm_is_not_who_somebody_is(
    lab: Lab, room: Callable[[str], Room], monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    """It is what the client writes: with another one it is the same user still."""
    here, user = room(profile), lab.user()
    with closing(lab.open("main", "tcp")) as old, closing(lab.open("main", "tcp")) as new:
        old.invite(user, lab.password, DOMAIN, f"{profile}-{here.name}")
        here.wait_events("add-member", 1)

        def elsewhere(challenge: str, *rest: Any) -> str:
            return sip_digest(re.sub('realm="[^"]*"', 'realm="elsewhere.test"', challenge), *rest)

        monkeypatch.setattr(sip, "digest", elsewhere)
        if profile == "refuse":
            with pytest.raises(Refused):
                new.invite(user, lab.password, DOMAIN, f"{profile}-{here.name}")
        else:
            new.invite(user, lab.password, DOMAIN, f"{profile}-{here.name}")
            delete, _ = replaced(here)
            assert delete.get("Duplicate-Identity") == f"{user}@{DOMAIN}"
        assert len(here.members()) == 1
        here.end()


def test_who_gave_up_while_he_was_announced_replaces_nobody(room: Callable[[str], Room]) -> None:
    here = room("announced")
    call = here.join("ann@x")
    here.wait_events("add-member", 1)
    new = here.join("ann@x", background=True)
    time.sleep(1)
    assert "+OK" in here.api(f"uuid_kill {new}")
    time.sleep(1)
    assert list(here.members().values()) == [call] and not here.events("del-member")
    here.end()


@pytest.mark.parametrize("dial", ["user/{user}@{domain}", "sofia/main/{user}%{domain}"])
def test_phone_that_rings_with_media_replaces_nobody(lab: Lab, room: Callable[[str], Room], dial: str) -> None:
    here, user = room("replace"), lab.user()
    with closing(lab.open("main", "tcp")) as old, closing(lab.open("main", "tcp")) as new:
        old.invite(user, lab.password, DOMAIN, f"replace-{here.name}")
        here.wait_events("add-member", 1)
        new.register(user, lab.password, DOMAIN)
        here.do(f"bgdial {dial.format(user=user, domain=DOMAIN)}")
        invite = new.wait_request("INVITE")
        answered(new, "183 Session Progress", invite)
        time.sleep(1)
        answered(new, "603 Decline", invite)
        time.sleep(0.5)
        assert len(here.members()) == 1 and not here.events("del-member")
        here.end()
    lab.settled.update([user])


def test_silent_entry_of_who_replaces_is_told(room: Callable[[str], Room]) -> None:
    here = room("replace")
    here.join("ann@x")
    here.join("ann@x", more="conference_silent_entry=true")
    replaced(here)
    here.end()


def test_who_is_alone_comes_back_as_his_call_ends(room: Callable[[str], Room]) -> None:
    """The conference may end at that moment, too: then there is a new one, and he is in it."""
    draw = random.Random(3)

    def race(here: Room) -> str:
        old = here.join("ann@x")
        with ThreadPoolExecutor(2) as pool:
            pool.submit(here.api, f"bgapi uuid_kill {old}")
            time.sleep(draw.random() * 0.016)
            return pool.submit(here.join, "ann@x", background=True).result()

    for _ in range(0, 2 * RACES, TOGETHER):
        rooms = [room("replace") for _ in range(TOGETHER)]
        with ThreadPoolExecutor(TOGETHER) as pool:
            calls = list(pool.map(race, rooms))
        for here, call in zip(rooms, calls, strict=True):
            here.reach([call])
            assert here.api(f"uuid_exists {call}").strip() == "true"
            here.end()


def test_seat_in_a_full_conference(room: Callable[[str], Room]) -> None:
    here = room("full")
    for who in ("ann@x", "bob@x", "cid@x", "ann@x"):
        here.join(who)
    replaced(here)
    assert sorted(here.replay()[-1].values()) == ["ann@x", "bob@x"]
    here.end()


def test_crowd_that_joins_twice_at_once(room: Callable[[str], Room]) -> None:
    """Each of them is in it once, at every step of a replay, and those are the last who are listed."""
    here = room("replace")
    who = [f"u{number}@x" for number in range(CROWD)] * 2
    random.shuffle(who)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: here.join(one, background=True), who))
    here.wait_events("add-member", 2 * CROWD)
    here.wait_events("del-member", CROWD)
    last = here.replay()[-1]
    assert sorted(last.values()) == sorted(set(who))
    assert sorted(here.members()) == sorted(last)
    here.end()


@pytest.mark.parametrize("profile", ["replace", "refuse"])
def test_races(room: Callable[[str], Room], profile: str) -> None:
    """Three join at the same moment: one of them is left, and the others were replaced or refused."""
    draw = random.Random(1)

    def race(here: Room) -> None:
        with ThreadPoolExecutor(3) as pool:
            for _ in range(3):
                pool.submit(here.join, "ann@x", background=True)
                time.sleep(draw.random() * OFFSET)

    def done(here: Room) -> bool:
        leaving = "rejected-duplicate-member" if profile == "refuse" else "del-member"
        return len(here.events("add-member", "rejected-duplicate-member")) == 3 and len(here.events(leaving)) == 2

    for _ in range(0, RACES, TOGETHER):
        rooms = [room(profile) for _ in range(TOGETHER)]
        with ThreadPoolExecutor(TOGETHER) as pool:
            list(pool.map(race, rooms))
        for here in rooms:
            here.wait(partial(done, here), "three that have joined or were refused")
            last = here.replay()[-1]
            assert len(last) == 1 and list(here.members()) == list(last), here.told()
            assert all(event.get("Replaced-By-Member-ID") for event in here.events("del-member")), here.told()
            here.end()


def test_races_with_the_hangup_of_the_old_call(room: Callable[[str], Room]) -> None:
    """It ends by itself at the moment that the new one joins: it leaves once, and before."""
    draw, replacing = random.Random(2), 0

    def hang_up(here: Room, call: str) -> None:
        time.sleep(draw.random() * OFFSET)
        here.api(f"uuid_kill {call}")

    def race(here: Room) -> None:
        old = here.join("ann@x")
        with ThreadPoolExecutor(2) as pool:
            pool.submit(hang_up, here, old)
            time.sleep(draw.random() * OFFSET)
            pool.submit(here.join, "ann@x", background=True)

    for _ in range(0, RACES, TOGETHER):
        rooms = [room("replace") for _ in range(TOGETHER)]
        for here in rooms:
            here.join("bob@x")
        with ThreadPoolExecutor(TOGETHER) as pool:
            list(pool.map(race, rooms))
        for here in rooms:
            here.wait_events("add-member", 3)
            (gone,) = here.wait_events("del-member", 1)
            assert sorted(here.replay()[-1].values()) == ["ann@x", "bob@x"]
            replacing += bool(gone.get("Replaced-By-Member-ID"))
            here.end()
    assert 0 < replacing < RACES, f"{replacing} of {RACES} were replaced: the race was none"
