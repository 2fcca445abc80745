"""Random histories: what a model knows of who is online, and the stream of reports, must agree."""

from __future__ import annotations

import ast
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from scripts.freeswitch.events import Event, parse
from scripts.freeswitch.sip import Client
from scripts.scenario.lab import DOMAIN, Lab
from tests import aside
from tests.deaths import CPUS

# Generous: a busy machine is not a fault.
BOUND = 10.0
# How long a report that must not come is waited for after each end of a connection.
SETTLE = 0.05
TRANSPORTS = ("tcp", "tls", "ws", "wss")
NAMES = ("alice", "bob", "carol")


@dataclass
class Registration:
    """A live registration as the registrar sees it."""

    user: str
    call_id: str
    contact: str
    connection: int
    # The contact with what the registrar adds to it.
    identity: str


@dataclass
class RegistrarModel:
    """Connections by number, and the registrations that a registrar of this kind would hold."""

    multiple: bool
    connections: dict[int, Client] = field(default_factory=dict)
    registrations: list[Registration] = field(default_factory=list)

    def replace(self, new: Registration) -> None:
        self.registrations = [
            old
            for old in self.registrations
            if old.user != new.user or (self.multiple and old.call_id != new.call_id and old.identity != new.identity)
        ]
        self.registrations.append(new)


class RegistrarMachine(RuleBasedStateMachine):
    """Clients that come, register, move, leave and die."""

    lab: Lab
    multiple: bool

    def __init__(self) -> None:
        super().__init__()
        self.world = RegistrarModel(self.multiple)
        self.profile = "short" if self.multiple else "main"
        self.users = {name: self.lab.user() for name in NAMES}
        self.recorder = self.lab.freeswitch.recorder
        self.start = len(self.recorder.events)
        self.expected = 0
        self.number = 0

    def reports(self) -> list[Event]:
        mine = set(self.users.values())
        return [
            event
            for event in self.recorder.events[self.start :]
            if self.lab.is_report(event) and event.get("from-user") in mine
        ]

    def pick(self, index: int) -> int:
        return sorted(self.world.connections)[index % len(self.world.connections)]

    @precondition(lambda self: len(self.world.connections) < 4)
    @rule(transport=st.sampled_from(TRANSPORTS))
    def connect(self, transport: str) -> None:
        self.number += 1
        self.world.connections[self.number] = self.lab.open(self.profile, transport)

    @precondition(lambda self: self.world.connections)
    @rule(name=st.sampled_from(NAMES), index=st.integers(0, 3))
    def register(self, name: str, index: int) -> None:
        self._register(self.users[name], self.pick(index))

    @precondition(lambda self: self.world.registrations)
    @rule(which=st.integers(0, 9))
    def refresh(self, which: int) -> None:
        old = self.world.registrations[which % len(self.world.registrations)]
        self._register(old.user, old.connection, old)

    @precondition(lambda self: self.world.registrations and len(self.world.connections) > 1)
    @rule(which=st.integers(0, 9), index=st.integers(0, 3))
    def move(self, which: int, index: int) -> None:
        old = self.world.registrations[which % len(self.world.registrations)]
        self._register(old.user, self.pick(index), old)

    @precondition(lambda self: self.world.registrations)
    @rule(which=st.integers(0, 9))
    def unregister(self, which: int) -> None:
        self._unregister(self.world.registrations[which % len(self.world.registrations)])

    @precondition(lambda self: self.world.registrations)
    @rule(which=st.integers(0, 9))
    def leave_and_die(self, which: int) -> None:
        """Close without waiting for the answer: what was read before the end counts before it."""
        old = self.world.registrations[which % len(self.world.registrations)]
        self._unregister(old, wait=False)
        # The answer to a closed connection is a reset.
        self._end(old.connection, False, {"peer-closed", "reset"})

    @precondition(lambda self: self.world.registrations and len(self.world.connections) > 1)
    @rule(which=st.integers(0, 9), index=st.integers(0, 2), reset=st.booleans())
    def die_while_moving(self, which: int, index: int, reset: bool) -> None:
        """Close a connection with the REGISTER over another one on its way: it may have been read before or after."""
        old = self.world.registrations[which % len(self.world.registrations)]
        others = [number for number in sorted(self.world.connections) if number != old.connection]
        number = others[index % len(others)]
        before = list(self.world.registrations)
        self._register(old.user, number, old, wait=False)
        moved = [item for item in before if item not in self.world.registrations and item.connection == old.connection]
        self._end(old.connection, reset, {"reset" if reset else "peer-closed"}, moved)
        reply = self.world.connections[number].receive()
        assert reply.status == 200, reply

    @precondition(lambda self: self.multiple and self.world.registrations)
    @rule(which=st.integers(0, 9))
    def expire(self, which: int) -> None:
        old = self.world.registrations[which % len(self.world.registrations)]
        client = self.world.connections[old.connection]
        client.register(old.user, self.lab.password, DOMAIN, expires=1, call_id=old.call_id, contact=old.contact)
        time.sleep(2.1)
        self.world.registrations.remove(old)

    @precondition(lambda self: self.world.connections)
    @rule(index=st.integers(0, 3), reset=st.booleans())
    def die(self, index: int, reset: bool) -> None:
        self._end(self.pick(index), reset, {"reset" if reset else "peer-closed"})

    @invariant()
    def nothing_else_came(self) -> None:
        assert len(self.reports()) == self.expected

    def teardown(self) -> None:
        for index in range(len(self.world.connections)):
            self.die(index, False)
        time.sleep(SETTLE)
        self.lab.settled.update(event.get("from-user") for event in self.reports())
        assert len(self.reports()) == self.expected

    def _end(self, number: int, reset: bool, causes: set[str], moved: Sequence[Registration] = ()) -> None:
        """End a connection and check what is reported; those that are `moved` away by a REGISTER on its way may be."""
        client = self.world.connections.pop(number)
        lost = [item for item in self.world.registrations if item.connection == number]
        self.world.registrations = [item for item in self.world.registrations if item.connection != number]
        seen = len(self.reports())
        client.reset() if reset else client.close()
        self.expected += len(lost)
        assert self.recorder.wait(lambda _: len(self.reports()) >= self.expected, BOUND), "not all reports came"
        time.sleep(BOUND / 20 if moved else SETTLE)
        came = self.reports()[seen:]
        told = {(event.get("from-user"), event.get("call-id")): parse(event) for event in came}
        assert len(told) == len(came)
        must = {(item.user, item.call_id) for item in lost}
        assert must <= set(told) <= must | {(item.user, item.call_id) for item in moved}
        self.expected = len(self.reports())
        for report in told.values():
            left = sum(item.user == report.from_user for item in self.world.registrations)
            # Not the one that is on its way, if it was read later.
            late = any(item.user == report.from_user for item in moved)
            assert report.registrations_left in ({left, left - 1} if late else {left})
            assert report.close_cause in causes

    def _unregister(self, old: Registration, wait: bool = True) -> None:
        client = self.world.connections[old.connection]
        client.register(
            old.user, self.lab.password, DOMAIN, expires=0, call_id=old.call_id, contact=old.contact, wait=wait
        )
        if self.multiple:
            self.world.registrations.remove(old)
        else:
            self.world.registrations = [item for item in self.world.registrations if item.user != old.user]

    def _register(self, user: str, number: int, old: Registration | None = None, wait: bool = True) -> None:
        client = self.world.connections[number]
        host, port = client.address
        contact = old.contact if old else f"<sip:{user}@{host}:{port};transport={client.transport}>"
        call_id = client.register(
            user, self.lab.password, DOMAIN, call_id=old.call_id if old else "", contact=contact, wait=wait
        )
        # FreeSWITCH adds the address of the connection to a contact over WebSocket.
        identity = f"{contact} {port}" if client.transport in ("ws", "wss") else contact
        self.world.replace(Registration(user, call_id, contact, number, identity))


@pytest.fixture(scope="module", autouse=True)
def side_by_side(request: pytest.FixtureRequest, labs: Callable[[int], Lab]) -> Iterator[None]:
    """Run all at once: they wait, and their users are different."""

    @contextlib.contextmanager
    def arguments(item: pytest.Function) -> Iterator[dict[str, Any]]:
        given = aside.parameters(item)

        class Bound(RegistrarMachine):
            lab, multiple = labs(given["cpus"]), given["multiple"]

        yield {**given, "machine": Bound}

    for cpus in CPUS:
        labs(cpus)
    items = aside.below(request)
    # Hypothesis reads sources, and Python 3.11's parser does not take two threads at once.
    parse, lock = ast.parse, threading.Lock()

    def locked(*given: Any, **options: Any) -> Any:
        with lock:
            return parse(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ast, "parse", locked)
        with aside.ahead(items, arguments, lanes=len(items)):
            yield


@pytest.fixture
def machine() -> None:
    """Stand for the state machine, bound to the lab: `arguments` has it."""


@pytest.mark.parametrize("multiple", [False, True], ids=["one registration", "multiple registrations"])
@pytest.mark.parametrize("cpus", CPUS, ids=lambda cpus: f"{cpus} CPUs")
def test_random_histories(machine: type[RegistrarMachine], cpus: int, multiple: bool) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            # To shrink a failure takes minutes, its history is short enough.
            phases=(Phase.explicit, Phase.generate),
            print_blob=False,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
