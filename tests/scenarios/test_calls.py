"""Calls that end while something about them is on its way."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from scripts.freeswitch.sip import Client
from scripts.pins.settings import Settings
from scripts.scenario import lab as lab_module
from scripts.scenario.lab import DOMAIN, Lab
from tests.deaths import CPUS, DEATHS

CALLS = 150


@pytest.fixture(scope="module", params=CPUS, ids=lambda cpus: f"{cpus} CPUs")
def lab(request: pytest.FixtureRequest, built: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Yield a lab that keeps the dialogs of its calls in the database."""
    directory = tmp_path_factory.mktemp("calls")
    with lab_module.start(
        built, DEATHS, directory, parameters={"manage-presence": "true"}, cpus=request.param
    ) as found:
        yield found


def response(request: str, status: str, tag: str) -> bytes:
    """Return a response to `request`."""
    lines = [line for line in request.split("\r\n") if re.match(r"(Via|From|Call-ID|CSeq):", line, re.IGNORECASE)]
    to = re.search(r"^To:.*$", request, re.MULTILINE | re.IGNORECASE)
    assert to, request
    lines.append(f"{to[0].strip()};tag={tag}")
    return "\r\n".join([f"SIP/2.0 {status}", *lines, "Content-Length: 0", "", ""]).encode()


def cancelled(lab: Lab, client: Client, contact: str) -> str:
    """Call a client, end that while it says that it rings, and return the CANCEL."""
    call, tag = str(uuid.uuid4()), uuid.uuid4().hex
    api: Callable[[str], str] = lab.freeswitch.recorder.api
    api(f"bgapi originate {{origination_uuid={call}}}{contact} &park")
    invite = client.wait_request("INVITE")
    ringing = response(invite, "180 Ringing", tag)
    client.send(ringing)
    time.sleep(0.03)
    api(f"bgapi uuid_kill {call} ORIGINATOR_CANCEL")
    for _ in range(12):
        client.send(ringing)
        time.sleep(0.0003)
    cancel = client.wait_request("CANCEL")
    client.send(response(cancel, "200 OK", tag))
    client.send(response(invite, "487 Request Terminated", tag))
    return cancel


def test_who_rings_as_the_call_ends_is_told_why(lab: Lab) -> None:
    """Without a Reason a phone shows a missed call that somebody else has taken."""
    user = lab.user()
    client = lab.open("main", "tcp")
    client.register(user, lab.password, DOMAIN)
    contact = lab.freeswitch.recorder.api(f"sofia_contact main/{user}@{DOMAIN}").strip()
    cancels = [cancelled(lab, client, contact) for _ in range(CALLS)]
    without = [cancel for cancel in cancels if "\r\nReason: " not in cancel]
    assert not without, f"{len(without)} of {CALLS}: {without[0]}"
    client.close()
    lab.settled.update([user])
