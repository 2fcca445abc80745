"""Subscriptions of a lost connection end with it, and no others."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from functools import partial

import pytest

from scripts.freeswitch.events import REGISTER
from scripts.freeswitch.sip import CSEQ, Client, Dialog
from scripts.pins.settings import Settings
from scripts.scenario import lab as lab_module
from scripts.scenario import player
from scripts.scenario.lab import DOMAIN, Lab
from tests.deaths import CPUS, DEATHS

# Generous: a busy machine is not a fault.
soon = partial(player.soon, timeout=20.0)
# Repetitions of a race, and for how many of them the rows are looked at together.
ROUNDS, TOGETHER, FEATURES_ROUNDS = 500, 50, 150
OFFSET = 0.002


@pytest.fixture(scope="module", params=CPUS, ids="{} CPUs".format)
def switch(request: pytest.FixtureRequest, built: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Return a lab whose profiles take subscriptions."""
    directory, parameters = tmp_path_factory.mktemp("subscriptions"), {"manage-presence": "true"}
    with lab_module.start(built, DEATHS, directory, parameters=parameters, cpus=request.param) as found:
        yield found


def rows(switch: Lab, profile: str) -> set[str]:
    """Return the Call-IDs in sip_subscriptions of `profile`."""
    script = (
        f'local dbh = freeswitch.Dbh("sqlite://sofia_reg_{profile}") '
        'dbh:query("select call_id from sip_subscriptions", function(row) stream:write(row.call_id .. " ") end)'
    )
    return set(switch.freeswitch.recorder.api(f"lua ~{script}").split())


def subscribers(switch: Lab, call_id: str) -> list[str]:
    """Return the users that sip_subscriptions of the profile main has for `call_id`."""
    script = (
        'local dbh = freeswitch.Dbh("sqlite://sofia_reg_main") '
        f"dbh:query(\"select sip_user from sip_subscriptions where call_id='{call_id}'\", "
        'function(row) stream:write(row.sip_user .. " ") end)'
    )
    return sorted(switch.freeswitch.recorder.api(f"lua ~{script}").split())


def is_gone(switch: Lab, calls: set[str]) -> bool:
    return not calls & rows(switch, "remove")


def subscribe(
    switch: Lab, client: Client, dialog: tuple[str, str] = ("", ""), expires: int = 3600, wait: bool = True
) -> tuple[str, str]:
    """Subscribe, or again in a `dialog`; return its Call-ID and To."""
    return client.subscribe("u0000", switch.password, DOMAIN, "u0001", expires, *dialog, wait=wait)


@pytest.mark.parametrize(
    ("profile", "transport", "ends"),
    [
        ("main", "ws", True),
        ("main", "wss", True),
        ("main", "tcp", False),
        ("remove", "tls", False),
        ("unreg", "udp", False),
    ],
)
def test_subscription_ends_with_its_connection(switch: Lab, profile: str, transport: str, ends: bool) -> None:
    first, second = switch.open(profile, transport), switch.open("remove", "ws")
    call_id, _ = subscribe(switch, first)
    other, _ = subscribe(switch, second)
    assert call_id in rows(switch, profile) and other in rows(switch, "remove")
    first.close()
    if ends:
        assert soon(lambda: call_id not in rows(switch, profile))
    assert other in rows(switch, "remove")
    second.close()
    # What comes of the second is known when what came of the first is.
    assert soon(lambda: other not in rows(switch, "remove"))
    assert (call_id in rows(switch, profile)) is not ends


def test_subscription_moves(switch: Lab) -> None:
    first, second, third = (switch.open("main", transport) for transport in ("ws", "wss", "ws"))
    dialog = subscribe(switch, first)
    assert subscribe(switch, second, dialog)[0] == dialog[0]
    first.close()
    gone = subscribe(switch, third)[0]
    third.close()
    assert soon(lambda: gone not in rows(switch, "main"))
    assert dialog[0] in rows(switch, "main")
    second.close()
    assert soon(lambda: dialog[0] not in rows(switch, "main"))


@pytest.mark.parametrize("name", ["tag", "TAG"])
@pytest.mark.parametrize("display", ["", '"one;tag=none" '])
def test_subscription_comes_again_in_its_dialog(switch: Lab, name: str, display: str) -> None:
    """What a browser refreshes after it had lost its connection is what it was, with a version that is higher."""
    first, second = switch.open("main", "ws"), switch.open("main", "ws")
    call_id, to = subscribe(switch, first)
    to = display + to.replace(";tag=", f";{name}=")
    first.close()
    assert soon(lambda: call_id not in rows(switch, "main"))
    assert subscribe(switch, second, (call_id, to))[0] == call_id
    script = (
        'local dbh = freeswitch.Dbh("sqlite://sofia_reg_main") '
        f"dbh:query(\"select full_to, version from sip_subscriptions where call_id='{call_id}'\", "
        'function(row) stream:write(row.version .. " " .. row.full_to) end)'
    )
    version, _, full_to = switch.freeswitch.recorder.api(f"lua ~{script}").partition(" ")
    assert full_to.strip() == to
    assert int(version) > 1_000_000_000
    second.close()
    assert soon(lambda: call_id not in rows(switch, "main"))


def test_who_has_unsubscribed_leaves_nothing(switch: Lab) -> None:
    client = switch.open("main", "ws")
    dialog = subscribe(switch, client)
    subscribe(switch, client, dialog, expires=0)
    assert dialog[0] not in rows(switch, "main")
    kept = subscribe(switch, client)
    client.close()
    assert soon(lambda: kept[0] not in rows(switch, "main"))


@pytest.mark.parametrize(
    "header", ["Record-Route: <sip:192.0.2.1;lr>", "Via: SIP/2.0/WS 192.0.2.1;branch=z9hG4bKproxied"]
)
def test_connection_of_a_proxy_tells_nothing_about_subscribers(switch: Lab, header: str) -> None:
    proxy, client = switch.open("remove", "ws"), switch.open("remove", "ws")
    send = proxy.send
    proxy.send = lambda data: send(data.replace(b"Max-Forwards", f"{header}\r\nMax-Forwards".encode(), 1))  # type: ignore[method-assign]
    behind, gone = subscribe(switch, proxy)[0], subscribe(switch, client)[0]
    proxy.close()
    client.close()
    assert soon(lambda: gone not in rows(switch, "remove"))
    assert behind in rows(switch, "remove")


def test_another_user_does_not_take_a_subscription(switch: Lab) -> None:
    """Nor end it: who subscribes with the Call-ID of somebody else has a subscription of his own."""
    victim, other = switch.open("main", "ws"), switch.open("main", "ws")
    call_id, _ = subscribe(switch, victim)
    other.subscribe("u0002", switch.password, DOMAIN, "u0001", call_id=call_id)
    assert subscribers(switch, call_id) == ["u0000", "u0002"]
    other.subscribe("u0002", switch.password, DOMAIN, "u0001", expires=0, call_id=call_id)
    assert subscribers(switch, call_id) == ["u0000"]
    other.subscribe("u0002", switch.password, DOMAIN, "u0001", call_id=call_id)
    other.close()
    assert soon(lambda: "u0002" not in subscribers(switch, call_id))
    assert subscribers(switch, call_id) == ["u0000"]
    victim.close()
    assert soon(lambda: "u0000" not in subscribers(switch, call_id))


@pytest.mark.parametrize("transport", ["ws", "wss"])
def test_race_of_a_subscribe_and_the_end(switch: Lab, transport: str) -> None:
    """Whoever closes without waiting for the answer leaves nothing."""
    rng = random.Random(transport)
    left = set()
    for _ in range(ROUNDS):
        client = switch.open("main", transport)
        left.add(subscribe(switch, client, wait=False)[0])
        time.sleep(rng.uniform(0, OFFSET))
        client.reset() if rng.random() < 0.5 else client.close()
    # What these leave behind is known when what this one leaves is.
    client = switch.open("main", transport)
    last = subscribe(switch, client)[0]
    client.close()
    assert soon(lambda: not (left | {last}) & rows(switch, "main"))


@pytest.mark.parametrize("transport", ["ws", "wss"])
def test_race_of_a_move_and_the_end(switch: Lab, transport: str) -> None:
    """Whoever subscribes again over another connection before the end of the first keeps it."""
    rng = random.Random(transport)
    for _ in range(0, ROUNDS, TOGETHER):
        kept: dict[str, Client] = {}
        for _ in range(TOGETHER):
            first, second = switch.open("remove", transport), switch.open("remove", transport)
            dialog = subscribe(switch, first)
            subscribe(switch, second, dialog, wait=False)
            time.sleep(rng.uniform(0, OFFSET))
            first.close()
            kept[dialog[0]] = second
        for client in kept.values():
            client.ask("OPTIONS", "u0000", DOMAIN, "u0001")
        gone = subscribe(switch, last := switch.open("remove", transport))[0]
        last.close()
        assert soon(partial(is_gone, switch, {gone}))
        assert set(kept) - rows(switch, "remove") == set()
        for client in kept.values():
            client.close()
        assert soon(partial(is_gone, switch, set(kept)))


def dialog(switch: Lab, client: Client) -> Dialog:
    return Dialog(client, "u0000", switch.password, DOMAIN, "u0001")


@pytest.mark.parametrize("transport", ["ws", "wss"])
def test_race_of_a_refresh_and_an_unsubscribe(switch: Lab, transport: str) -> None:
    """Of two SUBSCRIBEs that come at once the last one counts, whether both are answered before the end or not."""
    rng = random.Random(transport)
    left = set()
    for _ in range(ROUNDS):
        client = switch.open("main", transport)
        subscription = dialog(switch, client)
        subscription.send(client)
        subscription.send(client, expires=0)
        if rng.random() < 0.5:
            client.receive()
            client.receive()
        else:
            time.sleep(rng.uniform(0, OFFSET))
        client.reset() if rng.random() < 0.5 else client.close()
        left.add(subscription.call_id)
    gone = subscribe(switch, last := switch.open("main", transport))[0]
    last.close()
    assert soon(lambda: gone not in rows(switch, "main"))
    assert soon(lambda: not left & rows(switch, "main"))


@pytest.mark.parametrize("transport", ["ws", "wss"])
@pytest.mark.parametrize("expires", [0, 3600])
def test_race_of_two_connections(switch: Lab, transport: str, expires: int) -> None:
    """Who unsubscribes over one connection, subscribes over another and closes the first has what came last."""
    rng = random.Random(f"{transport} {expires}")
    for _ in range(0, ROUNDS, TOGETHER):
        kept: dict[str, Client] = {}
        clients = []
        for _ in range(TOGETHER):
            first, second = switch.open("remove", transport), switch.open("remove", transport)
            clients.append(second)
            subscription = dialog(switch, first)
            subscription.send(first, expires)
            time.sleep(rng.choice((0, rng.uniform(0, OFFSET))))
            subscription.send(second)
            time.sleep(rng.choice((0, rng.uniform(0, OFFSET))))
            first.close()
            # What the stack answers itself, because the dialog is just ending, nobody has subscribed with.
            if second.receive().status in (200, 202):
                kept[subscription.call_id] = second
        gone = subscribe(switch, last := switch.open("remove", transport))[0]
        last.close()
        assert soon(partial(is_gone, switch, {gone}))
        assert len(kept) > TOGETHER / 2
        assert set(kept) - rows(switch, "remove") == set()
        for client in clients:
            client.close()
        assert soon(partial(is_gone, switch, set(kept)))


@pytest.fixture(scope="module")
def blind(built: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Return a lab in which nobody has to authenticate, and that takes subscriptions."""
    parameters = {"manage-presence": "true", "accept-blind-reg": "true"}
    with lab_module.start(built, DEATHS, tmp_path_factory.mktemp("blind"), parameters=parameters) as found:
        yield found


FEATURES = ("Event: as-feature-event",)


@pytest.mark.parametrize(("profile", "transport"), [("main", "ws"), ("unreg", "tcp")])
def test_who_registers_with_a_subscribe_kills_nobody(blind: Lab, profile: str, transport: str) -> None:
    user, client = blind.user(), blind.open(profile, transport)
    client.subscribe(user, blind.password, DOMAIN, user, more=FEATURES)
    assert client.ask("OPTIONS", user, DOMAIN, user).status == 200
    client.close()


def listed(switch: Lab, profile: str, user: str) -> int:
    return sum(row["user"] == f"{user}@{DOMAIN}" for row in switch.freeswitch.registrations(profile))


def last_event(switch: Lab, user: str) -> str:
    events = [event for event in switch.freeswitch.recorder.events if event.get("from-user") == user]
    return max(events, key=lambda event: int(event.get("Event-Sequence"))).subclass


def is_lost(switch: Lab, user: str) -> bool:
    return bool(switch.reports(user)) and last_event(switch, user) != REGISTER


def ask_for_features(client: Client, user: str) -> None:
    """Send a SUBSCRIBE for features, and do not wait for the answer."""
    uri, more = f"sip:{user}@{DOMAIN}", (*FEATURES, "Expires: 3600")
    client.send(client._call_request("SUBSCRIBE", user, DOMAIN, uri, f"features-{user}", next(CSEQ), "", more=more))


@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
@pytest.mark.parametrize("profile", ["main", "remove"])
def test_who_registers_with_a_subscribe_is_reported(blind: Lab, profile: str, transport: str) -> None:
    user, client = blind.user(), blind.open(profile, transport)
    ask_for_features(client, user)
    assert client.receive().status == 200
    assert listed(blind, profile, user) == 1
    client.close()
    assert soon(lambda: bool(blind.reports(user)))
    assert [report.get("registrations-left") for report in blind.reports(user)] == ["0"]
    if profile == "remove" or "ws" in transport:
        assert soon(lambda: listed(blind, profile, user) == 0)


@pytest.mark.parametrize("profile", ["main", "multi", "contact", "remove"])
def test_race_of_a_subscribe_that_registers_and_the_end(blind: Lab, profile: str) -> None:
    """Whoever closes without waiting for the answer is reported, and the report is the last event."""
    rng = random.Random(profile)
    users = []
    for _ in range(FEATURES_ROUNDS):
        user, client = blind.user(), blind.open(profile, "tcp")
        client.send(client.request(user, DOMAIN, 3600, f"register-{user}"))
        assert client.receive().status == 200
        ask_for_features(client, user)
        time.sleep(rng.uniform(0, OFFSET))
        client.close()
        users.append(user)
    for user in users:
        assert soon(partial(is_lost, blind, user))
        assert blind.reports(user)[-1].get("registrations-left") == "0"


@pytest.mark.parametrize("profile", ["main", "multi", "contact"])
def test_subscribe_does_not_take_a_registration_off_its_connection(blind: Lab, profile: str) -> None:
    user, client = blind.user(), blind.open(profile, "tcp")
    client.send(client.request(user, DOMAIN, 3600, "feature-" + user))
    assert client.receive().status == 200
    client.subscribe(user, blind.password, DOMAIN, user, more=FEATURES)
    client.close()
    assert soon(lambda: bool(blind.reports(user)))
    assert soon(lambda: blind.reports(user)[-1].get("registrations-left") == "0")
