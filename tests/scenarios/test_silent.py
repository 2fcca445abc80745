"""Peers that vanish without a FIN or an RST: the profile parameter tcp-dead-peer-timeout."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from scripts.freeswitch.events import parse
from scripts.freeswitch.sip import Client
from scripts.scenario.lab import DOMAIN, Lab
from tests.deaths import ALIAS_PORT, DEAD_PEER_TIMEOUT

TRANSPORTS = ("tcp", "tls", "ws", "wss")
# Seconds after the cut at which FreeSWITCH sends a request to the client; None: never.
SENDS = (None, *(tenth / 10 for tenth in range(0, DEAD_PEER_TIMEOUT * 10, 5)))
BOUND = DEAD_PEER_TIMEOUT + 1
# For a busy machine; without the parameter it takes minutes.
SLACK = 4


@dataclass(frozen=True)
class SilentPhone:
    """A registered client behind the relay, and when FreeSWITCH will send to it."""

    client: Client
    user: str
    transport: str
    send_at: float | None


@pytest.fixture
def phones(lab: Lab) -> Iterator[list[SilentPhone]]:
    """Register one client per transport and moment, each known to be reachable, and one over the alias."""
    made = []
    for transport in TRANSPORTS:
        for send_at in SENDS:
            client, user = lab.open("silent", transport, through_relay=True), lab.user()
            client.register(user, lab.password, DOMAIN)
            made.append(SilentPhone(client, user, transport, send_at))
    # FreeSWITCH sends its requests from the profile's own port.
    client, user = Client("tcp", lab.freeswitch.address, ALIAS_PORT, relay=lab.relay), lab.user()
    client.register(user, lab.password, DOMAIN)
    made.append(SilentPhone(client, user, "tcp to the alias", None))
    for phone in made:
        if phone.send_at is not None:
            request(lab, phone.user)
    for phone in made:
        if phone.send_at is not None:
            phone.client.wait_request("NOTIFY")
    yield made
    lab.command_relay("HEAL")
    for phone in made:
        phone.client.close()


def request(lab: Lab, user: str) -> None:
    """Let FreeSWITCH send a NOTIFY to what `user` registered."""
    answer = lab.freeswitch.recorder.api(f"sofia profile silent check_sync {user}@{DOMAIN}")
    assert answer.startswith("+OK"), answer


@pytest.mark.parametrize("cut", ["link", "route"])
def test_vanished_peer_is_reported_in_time(lab: Lab, phones: list[SilentPhone], cut: str) -> None:
    recorder = lab.freeswitch.recorder
    seen = len(recorder.events)
    lab.command_relay(f"CUT {cut}")
    start = time.time()
    for phone in sorted((phone for phone in phones if phone.send_at is not None), key=lambda one: one.send_at or 0):
        time.sleep(max(0, start + (phone.send_at or 0) - time.time()))
        request(lab, phone.user)
    users = {phone.user: phone for phone in phones}

    def all_there(events: object) -> bool:
        return {event.get("from-user") for event in recorder.events[seen:] if lab.is_report(event)} >= set(users)

    recorder.wait(all_there, start + BOUND + 5 - time.time())
    time.sleep(1)
    reports = [event for event in recorder.events[seen:] if lab.is_report(event) and event.get("from-user") in users]
    lab.settled.update(event.get("from-user") for event in reports)
    problems, delays = [], {}
    for user, phone in users.items():
        name = f"{phone.transport}, data after {phone.send_at} s"
        mine = [event for event in reports if event.get("from-user") == user]
        if len(mine) != 1:
            problems.append(f"{name}: {len(mine)} reports instead of 1")
            continue
        found = parse(mine[0])
        delays[name] = mine[0].arrived_ns / 1e9 - start
        if delays[name] > BOUND + SLACK:
            problems.append(f"{name}: reported {delays[name]:.1f} s after the cut")
        if found.close_cause != "timeout" or found.error_name not in ("ETIMEDOUT", "EHOSTUNREACH"):
            problems.append(f"{name}: {found.close_cause}, {found.error_name}")
        if found.registrations_left != 0:
            problems.append(f"{name}: {found.registrations_left} registrations left")
    print(f"reported after {min(delays.values()):.1f} to {max(delays.values()):.1f} s")
    assert not problems


def test_short_interruption_is_not_reported(lab: Lab, phones: list[SilentPhone]) -> None:
    seen = len(lab.freeswitch.recorder.events)
    lab.command_relay("CUT route")
    time.sleep(DEAD_PEER_TIMEOUT / 6)
    lab.command_relay("HEAL")
    time.sleep(BOUND)
    assert [event.headers for event in lab.freeswitch.recorder.events[seen:] if lab.is_report(event)] == []
    for phone in phones:
        phone.client.register(phone.user, lab.password, DOMAIN, expires=0)


def test_without_the_parameter_a_vanished_peer_is_not_noticed(lab: Lab) -> None:
    client, user = lab.open("main", "tcp", through_relay=True), lab.user()
    client.register(user, lab.password, DOMAIN)
    seen = len(lab.freeswitch.recorder.events)
    lab.command_relay("CUT route")
    try:
        time.sleep(BOUND + 3)
        assert not [event for event in lab.freeswitch.recorder.events[seen:] if lab.is_report(event)]
    finally:
        lab.command_relay("HEAL")
    client.register(user, lab.password, DOMAIN, expires=0)
    client.close()
