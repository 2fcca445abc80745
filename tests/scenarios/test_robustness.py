"""FreeSWITCH is restarted, reloaded and ended under load, and soaked for a while."""

from __future__ import annotations

import itertools
import random
import re
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
from docker.models.containers import Container
from rich.console import Console

from scripts.bench import soak
from scripts.freeswitch.container import FreeSwitch
from scripts.freeswitch.events import EXPIRE, Event
from scripts.freeswitch.sip import Client, Refused
from scripts.patchset import series
from scripts.pins.releases import Version
from scripts.pins.settings import Settings
from scripts.scenario.lab import DOMAIN, Lab
from tests import aside
from tests.deaths import CPUS

OFFSETS: tuple[tuple[str, int], ...] = (("tcp", 0), ("tls", 1), ("ws", 2), ("wss", 3))
WORKERS = 3


def sofia_version(settings: Settings) -> Version:
    """Return the version of the sofia-sip that is tested."""
    version = series.variables(settings)["sofia_sip"]
    assert isinstance(version, Version)
    return version


class Load:
    """Clients that register and die without a pause, and clients that only hold a registration."""

    def __init__(self, lab: Lab, switch: FreeSwitch) -> None:
        self.lab, self.switch = lab, switch
        self.stop = threading.Event()
        # Call-IDs whose connection was ended by its client.
        self.ended: list[str] = []
        self.kept: list[Client] = []
        self.kept_calls: set[str] = set()
        self.threads = [threading.Thread(target=self._work, args=(number,)) for number in range(WORKERS)]

    def _work(self, number: int) -> None:
        users = [self.lab.user() for _ in range(5)]
        cycle = 0
        while not self.stop.is_set():
            transport, offset = OFFSETS[(number + cycle) % 4]
            call_id = uuid.uuid4().hex
            # Also one that gives up may have been registered.
            self.ended.append(call_id)
            try:
                client = Client(transport, self.switch.address, 5060 + offset, limit=3)
                client.register(users[cycle % 5], self.lab.password, DOMAIN, call_id=call_id)
            except (OSError, Refused, ValueError):
                time.sleep(0.05)  # The profile is down.
            else:
                client.reset() if cycle % 2 else client.close()
            cycle += 1

    def hold(self, count: int) -> None:
        """Register `count` clients that stay."""
        offsets = OFFSETS
        # When it stops, sofia-sip v1.13.10 to v1.13.16 waits for the close_notify of each, which these don't send.
        if Version("1.13.10") <= sofia_version(self.lab.settings) < Version("1.13.17"):
            offsets = tuple(item for item in OFFSETS if item[0] != "wss")
        for number in range(count):
            transport, offset = offsets[number % len(offsets)]
            client, user = Client(transport, self.switch.address, 5060 + offset), self.lab.user()
            self.kept_calls.add(client.register(user, self.lab.password, DOMAIN))
            self.kept.append(client)

    def __enter__(self) -> Load:
        self.hold(40)
        for thread in self.threads:
            thread.start()
        time.sleep(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        for client in self.kept:
            client.close()


@pytest.fixture(params=CPUS, ids=lambda cpus: f"{cpus} CPUs")
def lab(request: pytest.FixtureRequest, labs: Callable[[int], Lab]) -> Lab:
    """Return each of the labs."""
    return labs(request.param)


@pytest.fixture(scope="module", autouse=True)
def side_by_side(request: pytest.FixtureRequest, labs: Callable[[int], Lab]) -> Iterator[None]:
    """Run the tests of the labs at the same time, one after the other in each lab."""
    with ExitStack() as stack:
        for cpus in CPUS:
            mine = [item for item in aside.below(request) if aside.parameters(item).get("lab") == cpus]
            if mine:
                stack.enter_context(aside.ahead(mine, partial(arguments, labs(cpus)), lanes=1))
        yield


@contextmanager
def arguments(lab: Lab, item: pytest.Function) -> Iterator[dict[str, Any]]:
    """Return what the test `item` is called with."""
    given = {**aside.parameters(item), "lab": lab}
    with ExitStack() as stack:
        if "spare" in item.fixturenames:
            given["spare"] = stack.enter_context(expendable(lab))
        yield given


@pytest.fixture
def spare() -> None:
    """Stand for a second FreeSWITCH, which need not survive: `arguments` has it."""


@contextmanager
def expendable(lab: Lab) -> Iterator[FreeSwitch]:
    """Hand over the spare FreeSWITCH, and start it again if it ends."""
    assert lab.spare
    yield lab.spare
    lab.spare.container.reload()
    if lab.spare.container.status != "running":
        revive(lab, lab.spare)


def revive(lab: Lab, switch: FreeSwitch) -> None:
    switch.recorder.stop()
    switch.container.start()
    switch.container.reload()
    networks = switch.container.attrs["NetworkSettings"]["Networks"]
    switch.address = next(iter(networks.values()))["IPAddress"]
    switch.start(lab.settings.start_timeout)


def restarts(container: Container) -> str:
    container.reload()
    return str(container.attrs["State"]["StartedAt"])


@contextmanager
def no_crash(switch: FreeSwitch) -> Iterator[None]:
    """The process must be the same one afterwards, and answer."""
    before = restarts(switch.container)
    yield
    assert switch.container.status == "running", f"FreeSWITCH ended: {switch.container.attrs['State']}"
    assert restarts(switch.container) == before
    assert "is ready" in switch.recorder.api("status")


def wait_running(switch: FreeSwitch) -> None:
    # A profile that stops waits for its worker thread, which sleeps for up to 40 seconds.
    deadline = time.monotonic() + 90
    while not switch.running():
        assert time.monotonic() < deadline, switch.recorder.api("sofia status")
        time.sleep(0.2)


def carry_out(switch: FreeSwitch, command: str) -> None:
    """Give a command that FreeSWITCH refuses within ten seconds of the last one of its kind."""
    deadline = time.monotonic() + 30
    while "Please wait" in (answer := switch.recorder.api(command)):
        assert time.monotonic() < deadline, answer
        time.sleep(1)
    assert "-ERR" not in answer, answer


def check_reports(lab: Lab, switch: FreeSwitch, load: Load, seen: int) -> None:
    """No report for who did not die before the profile went, and none twice."""
    reports = [event for event in switch.recorder.events[seen:] if lab.is_report(event)]
    count = Counter(event.get("call-id") for event in reports)
    assert {call_id: number for call_id, number in count.items() if number > 1} == {}
    assert set(count) <= set(load.ended), "a report for a client that didn't end its connection"
    assert reports, "the load did nothing"


def is_reported(lab: Lab, call_id: str, events: Sequence[Event]) -> bool:
    return any(lab.is_report(event) and event.get("call-id") == call_id for event in events)


def check_works(lab: Lab, switch: FreeSwitch) -> None:
    for transport, offset in OFFSETS:
        client, user = Client(transport, switch.address, 5060 + offset), lab.user()
        call_id = client.register(user, lab.password, DOMAIN)
        client.close()
        assert switch.recorder.wait(partial(is_reported, lab, call_id), 2), f"no report over {transport}"


@pytest.mark.parametrize(("command", "rounds"), [("sofia profile main restart", 1), ("reload mod_sofia", 3)])
def test_restart_under_load(lab: Lab, spare: FreeSwitch, command: str, rounds: int) -> None:
    seen = len(spare.recorder.events)
    with no_crash(spare):
        with Load(lab, spare) as load:
            for _ in range(rounds):
                carry_out(spare, command)
                time.sleep(2)
                wait_running(spare)
                time.sleep(1)
            # The held clients' connections went with the profile: no report of them.
            came = {event.get("call-id") for event in spare.recorder.events[seen:] if lab.is_report(event)}
            assert came & load.kept_calls == set()
        time.sleep(2)
        check_reports(lab, spare, load, seen)
        check_works(lab, spare)
        assert spare.connections() == []


def test_sigterm_under_load(lab: Lab, spare: FreeSwitch) -> None:
    seen = len(spare.recorder.events)
    with Load(lab, spare) as load:
        spare.container.kill("SIGTERM")
        status = spare.container.wait(timeout=60)
    assert status["StatusCode"] == 0, spare.container.logs(tail=20).decode(errors="replace")
    check_reports(lab, spare, load, seen)
    came = {event.get("call-id") for event in spare.recorder.events[seen:] if lab.is_report(event)}
    assert came & load.kept_calls == set()


def test_soak(lab: Lab) -> None:
    figures = soak.run(lab, 2000, Console(quiet=True))
    print("\n".join(figures.lines()))
    assert figures.problems() == []


# More expired rows than half of what the queue takes that events are put into: of each row come two.
EXPIRED = (
    'lua ~local dbh = freeswitch.Dbh("sqlite://sofia_reg_short") '
    "dbh:query(\"create temp table other as select * from sip_registrations where call_id='{call_id}'\") "
    "dbh:query(\"update other set expires=1, sip_user='expired'\") "
    'dbh:query("insert into sip_registrations select o.* from other o, (with recursive n(i) as '
    '(select 1 union all select i + 1 from n limit 26000) select i from n)") dbh:query("drop table other")'
)


def test_expired_and_flushed_registrations_are_forgotten(lab: Lab) -> None:
    """What is swept or flushed has no report when its connection ends."""
    client, user = lab.open("short", "tcp"), lab.user()
    call_id = client.register(user, lab.password, DOMAIN, expires=1)
    lab.freeswitch.recorder.api(EXPIRED.format(call_id=call_id))
    other, flushed = lab.open("short", "tcp"), lab.user()
    other.register(flushed, lab.password, DOMAIN)
    recorder = lab.freeswitch.recorder
    recorder.api(f"sofia profile short flush_inbound_reg {flushed}@{DOMAIN}")
    # The registrar sweeps every 30 seconds.
    assert recorder.wait(
        lambda events: any(event.subclass == EXPIRE and event.get("user") == user for event in events), 40
    )
    # Whoever sweeps so many holds up nobody.
    other.register(lab.user(), lab.password, DOMAIN)
    client.close()
    other.close()
    time.sleep(1)
    came = [event.get("from-user") for event in recorder.events if lab.is_report(event)]
    assert not {user, flushed} & set(came)


# Makes another node of a cluster that shares the database out of a registration of this one.
OTHER_NODE = (
    'lua ~local dbh = freeswitch.Dbh("sqlite://sofia_reg_multi") '
    "dbh:query(\"create temp table other as select * from sip_registrations where call_id='{call_id}'\") "
    "dbh:query(\"update other set hostname='other-node', call_id='{call_id}-other'\") "
    'dbh:query("insert into sip_registrations select * from other") dbh:query("drop table other")'
)


def test_registrations_of_before_count_without_a_connection_and_on_this_node_only(lab: Lab) -> None:
    switch, user = lab.freeswitch, lab.user()
    datagrams, connection, plain = (lab.open("multi", transport) for transport in ("udp", "tcp", "tcp"))
    call_id = datagrams.register(user, lab.password, DOMAIN)
    # These two end with the profile, also if the Contact doesn't say that it is TCP.
    lost_id = connection.register(user, lab.password, DOMAIN)
    plain.register(user, lab.password, DOMAIN, contact=f"<sip:{user}@192.0.2.1>")
    switch.recorder.api(OTHER_NODE.format(call_id=call_id))
    known = {registration["call-id"] for registration in switch.registrations("multi")}
    assert {call_id, lost_id, f"{call_id}-other"} <= known
    carry_out(switch, "sofia profile multi restart")
    time.sleep(2)
    wait_running(switch)
    second = lab.open("multi", "tcp")
    second_id = second.register(user, lab.password, DOMAIN)
    second.close()
    assert switch.recorder.wait(partial(is_reported, lab, second_id), 5)
    time.sleep(1)
    reports = [event for event in switch.recorder.events if lab.is_report(event) and event.get("from-user") == user]
    assert [(event.get("call-id"), event.get("registrations-left")) for event in reports] == [(second_id, "1")]
    switch.recorder.api("sofia profile multi flush_inbound_reg")
    datagrams.close()
    connection.close()
    plain.close()


def test_profile_can_be_restarted_after_an_mwi_event(lab: Lab, spare: FreeSwitch) -> None:
    client, user = Client("tcp", spare.address, 5060), lab.user()
    client.register(user, lab.password, DOMAIN)
    spare.recorder.api(
        "lua ~local event = freeswitch.Event('message_waiting') "
        f"event:addHeader('MWI-Message-Account', '{user}@{DOMAIN}') event:addHeader('MWI-Messages-Waiting', 'no') "
        "event:fire()"
    )
    time.sleep(1)
    client.close()
    carry_out(spare, "sofia profile main restart")
    time.sleep(2)
    wait_running(spare)
    check_works(lab, spare)


def test_requests_sent_at_once_take_no_memory(lab: Lab) -> None:
    """Of 1.4 MB of requests upstream makes more than two gigabytes of copies."""
    client, user = lab.open("main", "tcp"), lab.user()
    peak = "awk '/^VmHWM/ {print $2}' /proc/$(pidof freeswitch)/status"
    before = int(lab.freeswitch.shell(peak))
    data = b"".join(client.request(user, DOMAIN, 3600, uuid.uuid4().hex) for _ in range(4000))
    sender = threading.Thread(target=client.send, args=(data,))
    sender.start()
    # As fast as they come: who has a thousand of them to read is closed.
    answers, ended = bytearray(), 0
    while ended < 4000:
        part = client.sock.recv(1 << 20)
        assert part, "the connection is closed"
        # An end may come in two parts.
        ended += (answers[-3:] + part).count(b"\r\n\r\n")
        answers += part
    # mod_sofia's own queue of messages has a limit.
    assert set(re.findall(rb"(?m)^SIP/2.0 (\d+)", answers)) <= {b"401", b"503"}
    sender.join()
    client.close()
    assert int(lab.freeswitch.shell(peak)) - before < 500_000


def test_half_closed_connection_is_closed_when_all_is_sent(lab: Lab) -> None:
    """Whoever has no more to say still gets the answers that were queued, and then the end."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect((lab.freeswitch.address, 5060))
        host, port = client.getsockname()

        def ask(count: int) -> None:
            for _ in range(count):
                lines = [
                    f"OPTIONS sip:x@{DOMAIN} SIP/2.0",
                    f"Via: SIP/2.0/TCP {host}:{port};branch=z9hG4bK{uuid.uuid4().hex}",
                    f"From: <sip:x@{DOMAIN}>;tag=x",
                    f"To: <sip:x@{DOMAIN}>",
                    f"Call-ID: {uuid.uuid4().hex}",
                    "CSeq: 1 OPTIONS",
                    "Content-Length: 0",
                ]
                client.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())

        def unsent() -> int:
            """Return how many bytes the kernel has that it could not send."""
            for line in lab.freeswitch.shell("cat /proc/net/tcp").splitlines()[1:]:
                _, _, far, _, queues, *_ = line.split()
                if int(far.rpartition(":")[2], 16) == port:
                    return int(queues.partition(":")[0], 16)
            raise AssertionError("FreeSWITCH has no such connection")

        # Until the kernel takes no more; up to 64 messages wait in the stack then.
        before, now = -1, 0
        while now != before:
            ask(20)
            time.sleep(0.3)
            before, now = now, unsent()
        ask(20)
        time.sleep(0.3)
        client.shutdown(socket.SHUT_WR)
        answers = b""
        while data := client.recv(65536):
            answers += data
        assert answers.count(b"SIP/2.0 200 OK") >= 40


def test_dead_websocket_does_not_reach_into_other_connections(lab: Lab) -> None:
    """A secure WebSocket reset while its REGISTER is handled: its descriptor soon belongs to another connection."""
    users = [lab.user() for _ in range(20)]
    deadline = time.monotonic() + 40
    failures: list[str] = []

    def attack(number: int) -> None:
        dice = random.Random(number)
        while time.monotonic() < deadline:
            client = lab.open("main", "wss")
            client.register(users[number], lab.password, DOMAIN, wait=False)
            time.sleep(dice.uniform(0, 0.004))
            client.reset()

    def register(number: int) -> None:
        for transport in itertools.cycle(("tls", "ws", "tcp")):
            if time.monotonic() > deadline:
                return
            client = lab.open("main", transport)
            client.register(users[number], lab.password, DOMAIN)
            client.close()

    with ThreadPoolExecutor() as pool:
        work = [pool.submit(attack if number < 3 else register, number) for number in range(8)]
        for future in work:
            if error := future.exception():
                failures.append(f"{type(error).__name__}: {error}")
    assert failures == []
