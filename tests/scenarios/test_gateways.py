"""Gateways whose connection is lost: they are told of at once, and registered anew if that is wanted."""

from __future__ import annotations

import contextlib
import functools
import random
import re
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
import trustme

from scripts.machine import engine
from scripts.scenario.lab import Lab
from tests.deaths import CPUS, DEAD_PEER_TIMEOUT
from tests.esl import EventStream, Headers
from tests.provider import Provider

STATE = "sofia::gateway_state"
TRANSPORTS = ("tcp", "tls")
RACES = 120
# No attempt of FreeSWITCH's own falls into a test.
LONG = "3600"


class Gateways(EventStream):
    """The gateways that a test adds to the profile `trunk`, and the events of their states."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab, f"CUSTOM {STATE}")
        self.lab = lab
        self.added: list[tuple[str, str, str]] = []

    def api(self, command: str) -> str:
        return str(self.lab.freeswitch.recorder.api(command)).strip()

    def add(self, provider: Provider, transport: str = "tcp", profile: str = "trunk", **parameters: str) -> str:
        """Add a gateway that registers with `provider`, or doesn't (register="false"); return its name."""
        name = f"gw{uuid.uuid4().hex[:8]}"
        values = {
            "username": "u", "password": "p", "realm": "example.test", "proxy": f"{provider.host}:{provider.port}",
            "register-transport": transport, "expire-seconds": LONG, "retry-seconds": LONG, **parameters,
        }  # fmt: skip
        lines = "".join(f'<param name="{key.replace("_", "-")}" value="{value}"/>' for key, value in values.items())
        file = f"gateways/{profile}/{name}.xml"
        container = self.lab.freeswitch.container
        assert container.put_archive("/etc/freeswitch", engine.tar({file: f'<gateway name="{name}">{lines}</gateway>'}))
        self.added.append((profile, name, f"/etc/freeswitch/{file}"))
        assert "+OK" in self.api("reloadxml")
        assert "+OK" in self.api(f"sofia profile {profile} rescan")
        return name

    def of(self, name: str) -> list[Headers]:
        found = [event for event in self.came if event["Gateway"] == name]
        return sorted(found, key=lambda event: int(event["Event-Sequence"]))

    def losses(self, name: str) -> list[Headers]:
        """Return the events of its lost connections."""
        return [event for event in self.of(name) if "close-cause" in event]

    def status(self, name: str) -> tuple[str, str]:
        """Return its state and its status: ("REGED", "UP"), say."""
        text = self.api(f"sofia status gateway {name}")
        found = [re.search(rf"^{field}\s+(\w+)", text, re.MULTILINE) for field in ("State", "Status")]
        return found[0][1] if found[0] else text, found[1][1] if found[1] else ""

    def wait_registered(self, name: str, times: int = 1) -> None:
        """Wait until it has been registered so often, and is."""

        def reached() -> bool:
            states = [event["State"] for event in self.of(name)]
            return states.count("REGED") >= times and self.status(name) == ("REGED", "UP")

        assert self.wait(reached), self.of(name)[-3:]

    def call(self, name: str) -> str:
        """Return what becomes of a call by way of the gateway that nobody takes."""
        return self.api(f"originate {{originate_timeout=1}}sofia/gateway/{name}/1000 &park")

    def close(self) -> None:
        for profile, name, file in self.added:
            assert self.lab.freeswitch.container.exec_run(["rm", file], user="root").exit_code == 0
            self.api(f"sofia profile {profile} killgw {name}")
        super().close()


def registers(provider: Provider, count: int) -> bool:
    """Return whether there have been more REGISTERs than so many."""
    return provider.count("REGISTER") > count


@pytest.fixture(params=CPUS, ids=lambda cpus: f"{cpus} CPUs")
def lab(request: pytest.FixtureRequest, labs: Callable[[int], Lab]) -> Lab:
    return labs(request.param)


@pytest.fixture
def gateways(lab: Lab) -> Iterator[Gateways]:
    with contextlib.closing(Gateways(lab)) as found:
        yield found


@pytest.fixture(scope="module")
def context() -> ssl.SSLContext:
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("example.test").configure_cert(found)
    return found


@pytest.fixture
def provider(lab: Lab) -> Iterator[Provider]:
    with Provider(lab.gateway) as found:
        yield found


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_lost_gateway_is_told_of_and_registered_anew(
    lab: Lab, gateways: Gateways, context: ssl.SSLContext, transport: str, reset: bool
) -> None:
    with Provider(lab.gateway, context if transport == "tls" else None) as provider:
        name = gateways.add(provider, transport)
        gateways.wait_registered(name)
        provider.lose(reset)
        gateways.wait_registered(name, 2)
        # Another one comes when the provider is gone.
        (loss,) = gateways.losses(name)
    wanted = {
        "State": "UNREGED", "Ping-Status": "DOWN", "action": "reregistering", "profile-name": "trunk",
        "transport": transport, "network-ip": provider.host, "network-port": str(provider.port),
    }  # fmt: skip
    assert {key: loss[key] for key in wanted} == wanted
    # Who had something to say over TLS is told by that.
    causes = {"reset", *(["tls-error"] if transport == "tls" else [])} if reset else {"peer-closed"}
    assert loss["close-cause"] in causes
    states = [event["State"] for event in gateways.of(name)]
    assert states[states.index("UNREGED", 2) :][:4] == ["UNREGED", "TRYING", "REGISTER", "REGED"], states
    assert [taken.connection for taken in provider.requests if taken.method == "REGISTER"] == [0, 1]


def test_calls_are_routed_past_a_lost_gateway(gateways: Gateways, provider: Provider) -> None:
    provider.statuses["INVITE"] = 404
    name = gateways.add(provider)
    gateways.wait_registered(name)
    assert "UNALLOCATED_NUMBER" in gateways.call(name)
    # It takes the connection, and says nothing.
    provider.statuses["REGISTER"] = 0
    invites = provider.count("INVITE")
    provider.lose()
    assert gateways.wait(lambda: provider.count("REGISTER") == 2)
    assert "GATEWAY_DOWN" in gateways.call(name)
    assert provider.count("INVITE") == invites


def test_gateway_is_tried_again_soon(gateways: Gateways, provider: Provider) -> None:
    """Not after its retry-seconds, which is an hour here."""
    name = gateways.add(provider)
    gateways.wait_registered(name)
    provider.refuse()
    provider.lose()
    assert gateways.wait(lambda: [event["State"] for event in gateways.of(name)].count("FAIL_WAIT") >= 2)
    assert gateways.status(name)[1] == "DOWN" and "GATEWAY_DOWN" in gateways.call(name)
    provider.listen()
    gateways.wait_registered(name, 2)
    assert len(gateways.losses(name)) == 1
    # From now on it is what it was.
    provider.statuses["REGISTER"] = 503
    gateways.api(f"sofia profile trunk register {name}")
    assert gateways.wait(lambda: gateways.status(name) == ("FAIL_WAIT", "DOWN"))
    count = provider.count("REGISTER")
    time.sleep(4)
    assert provider.count("REGISTER") == count


def test_provider_that_refuses_is_not_pressed(gateways: Gateways, provider: Provider) -> None:
    name = gateways.add(provider)
    gateways.wait_registered(name)
    provider.statuses["REGISTER"] = 403
    provider.lose()
    assert gateways.wait(lambda: gateways.status(name) == ("FAIL_WAIT", "DOWN"))
    time.sleep(4)
    assert provider.count("REGISTER") == 2


@pytest.mark.parametrize(("mode", "action"), [("report", ["reported"]), ("ignore", [])])
def test_gateway_s_own_parameter_counts(gateways: Gateways, provider: Provider, mode: str, action: list[str]) -> None:
    """SIP's own stack registers anew by itself, up to a second later."""
    name = gateways.add(provider, tp_error_gateway=mode)
    gateways.wait_registered(name)
    provider.lose()
    assert gateways.wait(lambda: provider.count("REGISTER") == 2)
    assert gateways.wait(lambda: gateways.status(name) == ("REGED", "UP"))
    losses = gateways.losses(name)
    assert [loss["action"] for loss in losses] == action
    assert [(loss["State"], loss["Ping-Status"]) for loss in losses] == [("REGED", "UP")] * len(action)


def test_gateway_without_registration_is_asked_at_once(gateways: Gateways, provider: Provider) -> None:
    name = gateways.add(provider, register="false", ping="5")
    assert gateways.wait(lambda: provider.count("OPTIONS") == 1)
    assert gateways.wait(lambda: gateways.status(name) == ("NOREG", "UP"))
    provider.statuses["OPTIONS"] = 0
    provider.lose()
    assert gateways.wait(lambda: gateways.losses(name))
    (loss,) = gateways.losses(name)
    assert (loss["State"], loss["Ping-Status"], loss["action"]) == ("NOREG", "DOWN", "pinging")
    assert gateways.wait(lambda: provider.count("OPTIONS") == 2)
    assert "GATEWAY_DOWN" in gateways.call(name)


def test_gateway_is_up_when_it_answers_the_ping(gateways: Gateways, provider: Provider) -> None:
    name = gateways.add(provider, register="false", ping="5", ping_min="2", ping_max="3")
    assert gateways.wait(lambda: provider.count("OPTIONS") == 1)
    assert gateways.status(name) == ("NOREG", "UP")
    provider.lose()
    assert gateways.wait(lambda: gateways.losses(name))
    assert gateways.wait(lambda: [event["Ping-Status"] for event in gateways.of(name)][-1] == "UP")


def test_all_gateways_of_a_connection_are_told_of(gateways: Gateways, provider: Provider) -> None:
    names = [gateways.add(provider) for _ in range(3)]
    for name in names:
        gateways.wait_registered(name)
    assert {taken.connection for taken in provider.requests} == {0}
    provider.lose()
    for name in names:
        gateways.wait_registered(name, 2)
        assert len(gateways.losses(name)) == 1


def test_nothing_is_told_of_a_gateway_that_was_removed(gateways: Gateways, provider: Provider) -> None:
    name, other = gateways.add(provider), gateways.add(provider)
    for gateway in (name, other):
        gateways.wait_registered(gateway)
    gateways.api(f"sofia profile trunk killgw {name}")
    provider.lose()
    gateways.wait_registered(other, 2)
    assert gateways.losses(name) == []


def test_wrong_values_are_told(gateways: Gateways, provider: Provider) -> None:
    name = gateways.add(provider, tp_error_gateway="always")
    gateways.wait_registered(name)
    log = gateways.lab.freeswitch.container.logs(tail=200).decode(errors="replace")
    assert f"tp-error-gateway of gateway {name} must be ignore, report or reregister" in log


def test_gateway_comes_back_whenever_it_is_lost(gateways: Gateways, provider: Provider) -> None:
    """Each loss is told of once at most, and what is there at the end works."""
    name = gateways.add(provider)
    gateways.wait_registered(name)
    dice = random.Random(name)
    for _ in range(RACES):
        # Also while it connects, and while its answer is on its way.
        count = provider.count("REGISTER")
        provider.lose(reset=dice.random() < 0.5)
        assert gateways.wait(functools.partial(registers, provider, count))
        time.sleep(dice.choice([0, 0.001, 0.01]) * dice.random())
    assert gateways.wait(lambda: gateways.status(name) == ("REGED", "UP"))
    assert 0 < len(gateways.losses(name)) <= RACES
    count = provider.count("REGISTER")
    time.sleep(3)
    assert gateways.status(name) == ("REGED", "UP") and provider.count("REGISTER") <= count + 1


def test_slow_connect_is_no_dead_peer(lab: Lab, gateways: Gateways) -> None:
    """The SYN is lost for as long as a peer may be silent."""
    with Provider(lab.gateway, backlog=0) as provider:
        # Linux drops what comes while the queue is full.
        with contextlib.ExitStack() as stack:
            provider.hold()
            for _ in range(2):
                stack.enter_context(socket.create_connection((provider.host, provider.port), 5))
            name = gateways.add(provider, profile="silent", timeout_seconds=LONG)
            assert gateways.wait(lambda: gateways.status(name)[0] == "TRYING")
            time.sleep(DEAD_PEER_TIMEOUT)
            assert provider.count("REGISTER") == 0
        provider.go_on()
        gateways.wait_registered(name)
    assert "FAILED" not in [event["State"] for event in gateways.of(name)]
