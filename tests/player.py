"""Plays the cases of matrix.yaml against a lab and compares what comes with what must come."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from scripts.freeswitch.events import REGISTER, UNREGISTER, Event, parse
from tests.lab import DOMAIN, Lab
from tests.sip import Client

FILE = Path(__file__).parent / "matrix.yaml"
# How long a wrong report has to turn up, seconds.
BOUND = 1.0
# How long a right one may take. On an idle machine it takes milliseconds, on a
# busy one more than a second; what stock gets wrong takes half a minute.
LATE = 10.0
SETTLE = 0.3
# FreeSWITCH's own clock, which registered-at is from, trails the system's by
# some milliseconds, which may be the end of a second.
CLOCK_SKEW = 1
# The TLS code has no errno of its own to tell.
ERRNOS = {"peer-closed": {"NONE"}, "reset": {"ECONNRESET", "EPIPE", "EIO"}, "timeout": {"ETIMEDOUT", "EHOSTUNREACH"}}


@dataclass(frozen=True)
class Case:
    """One case of the table on one profile; `steps` are its lines.

    One that is `alone` disturbs others at its side, or is disturbed by them.
    """

    name: str
    profile: str
    transport: str
    steps: tuple[str, ...]
    alone: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name}, {self.profile}, {self.transport}"


@dataclass
class Expected:
    """What must come of one step: reports (user, left, causes), unregisters; `optional`: or not."""

    reports: list[tuple[str, int, set[str]]] = field(default_factory=list)
    unregisters: list[str] = field(default_factory=list)
    optional: bool = False


@dataclass
class Stage:
    """The outcome of one step with `->`; delays are from the step to detection and arrival, in seconds."""

    step: str
    expected: Expected
    reports: int = 0
    unregisters: int = 0
    delays: list[float] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def load() -> list[Case]:
    """Return all cases of the table, one per profile and transport."""
    return [
        Case(row["case"], profile, transport, tuple(row["do"]), row.get("alone", False))
        for row in yaml.safe_load(FILE.read_text())
        for profile in row["profiles"]
        for transport in row["over"]
    ]


class Player:
    """Plays one case. The verbs of the table are its methods.

    With `stock` it waits for unregisters in place of the reports.
    """

    def __init__(self, lab: Lab, case: Case, stock: bool = False) -> None:
        self.lab = lab
        self.stock = stock
        self.case = case
        self.switch = lab.freeswitch
        self.random = random.Random(str(case))
        self.clients: dict[str, Client] = {}
        self.users: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        # Call-ID and Contact of what an alias registered over a connection.
        self.identities: dict[tuple[str, str], tuple[str, str]] = {}
        # The near end of the connection that the step has ended.
        self.ended: tuple[str, int] | None = None
        self.processes: dict[str, subprocess.Popen[str]] = {}
        # When a client was killed, nanoseconds since the epoch.
        self.killed_ns: int | None = None
        self.start = len(self.switch.recorder.events)

    def play(self) -> list[Stage]:
        """Play all steps; return the outcome of those that say what must come."""
        stages = []
        try:
            for step in self.case.steps:
                action, arrow, outcome = (part.strip() for part in step.partition("->"))
                verb, *arguments = action.split()
                method: Callable[..., Any] = getattr(self, verb)
                seen = len(self.switch.recorder.events)
                self.ended = None
                before = time.time()
                # What takes long before the connection ends must not count.
                before = method(*arguments) or before
                if arrow:
                    stages.append(self._judge(step, self._expected(outcome), seen, before))
            time.sleep(SETTLE)
            self._check_rest(stages)
        finally:
            reports, _ = self._mine(self.start)
            self.lab.settled.update(event.get("from-user") for event in reports)
            self.lab.settled.update(dict.fromkeys(self.aliases, 0))
            self._tidy()
        return stages

    # What the table calls

    def open(self, name: str, transport: str = "") -> None:
        self.clients[name] = self.lab.open(self.case.profile, transport or self.case.transport)

    def register(self, alias: str, name: str, *options: str) -> None:
        for one in self._aliases(alias):
            client = self.clients[name]
            user = self._user(one)
            host, port = client.address
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            suffix = "" if "plain" in options or client.transport == "udp" else f";transport={client.transport}"
            expires = next((int(option.split("=")[1]) for option in options if option.startswith("expires=")), 3600)
            contact = f"<sip:{user}@{where}{suffix}>"
            call_id = client.register(user, self.lab.password, DOMAIN, expires, contact=contact)
            self._registered(one, name, call_id, contact)

    def refresh(self, alias: str, name: str) -> None:
        self.move(alias, name, name)

    def move(self, alias: str, old: str, new: str) -> None:
        call_id, contact = self.identities[alias, old]
        self.clients[new].register(self._user(alias), self.lab.password, DOMAIN, call_id=call_id, contact=contact)
        self._registered(alias, new, call_id, contact)

    def unregister(self, alias: str, name: str) -> None:
        call_id, contact = self.identities[alias, name]
        self.clients[name].register(
            self._user(alias), self.lab.password, DOMAIN, expires=0, call_id=call_id, contact=contact
        )

    def ask(self, alias: str, name: str) -> None:
        client = self.clients[name]
        client.send(client.request(self._user(alias), DOMAIN, 3600, "asked"))
        assert client.receive().status == 401

    def fin(self, name: str) -> None:
        self._end(name).close()

    def rst(self, name: str) -> None:
        self._end(name).reset()

    def half_close(self, name: str) -> None:
        self.ended = self.clients[name].address
        self.clients[name].half_close()

    def close_notify(self, name: str) -> None:
        self._end(name).close_notify()

    def ws_close(self, name: str) -> None:
        self._end(name).ws_close()

    def spawn(self, alias: str) -> None:
        host, port = self.lab.target(self.case.profile, self.case.transport)
        user = self._user(alias)
        command = [sys.executable, "-m", "tests.phone", self.case.transport, host, str(port), user, self.lab.password]
        process = subprocess.Popen([*command, DOMAIN], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline().strip(), "the client did not register"
        self.processes[alias] = process

    def kill(self, alias: str) -> float:
        process = self.processes.pop(alias)
        self.killed_ns = time.time_ns()
        process.kill()
        assert process.wait(5) == -9
        assert process.stdout
        process.stdout.close()
        return self.killed_ns / 1e9

    def wait(self, seconds: str) -> None:
        time.sleep(float(seconds))

    def send(self, name: str, what: str) -> None:
        self.ended = self.clients[name].address
        self.clients[name].send(self._message(what, self.clients[name]))

    def rubbish_and_fin(self, name: str, what: str) -> None:
        client = self._end(name)
        with contextlib.suppress(OSError):  # The server may be faster with the end.
            client.send(self._message(what, client))
        client.close()

    def broken_frame_and_fin(self, name: str) -> None:
        client = self._end(name)
        client.sock.sendall(self.random.randbytes(500))
        client.close()

    def clear_text_and_fin(self, name: str) -> None:
        client = self._end(name)
        raw = socket.socket(fileno=client.sock.detach())
        raw.sendall(b"OPTIONS sip:example.test SIP/2.0\r\n\r\n" * 10)
        raw.close()

    def noise(self, count: str) -> None:
        target = self.lab.target(self.case.profile, self.case.transport)
        for _ in range(int(count)):
            with contextlib.suppress(OSError), socket.create_connection(target, 5) as connection:
                connection.sendall(self.random.randbytes(self.random.randint(1, 4000)))

    def abort_handshake(self, count: str) -> None:
        target = self.lab.target(self.case.profile, self.case.transport)
        hello = b"GET / HTTP/1.1\r\nHost: example.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        if self.case.transport != "ws":
            outgoing = ssl.MemoryBIO()
            context = ssl.create_default_context()
            with contextlib.suppress(ssl.SSLWantReadError):
                context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=DOMAIN).do_handshake()
            hello = outgoing.read()
        for number in range(int(count)):
            with socket.create_connection(target, 5) as connection:
                connection.sendall(hello[: self.random.randint(0, len(hello))])
                if number % 2:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def storm(self, alias: str, end: str) -> float:
        """Send the authorized REGISTER and end the connection after 0 to 20 ms."""
        for one in self._aliases(alias):
            client = self.lab.open(self.case.profile, self.case.transport)
            client.register(self._user(one), self.lab.password, DOMAIN, wait=False)
            time.sleep(self.random.choice((0, 0, 0.001, 0.002, 0.005, 0.01, 0.02)))
            client.close() if end == "fin" else client.reset()
        return time.time()

    def crowd(self, alias: str) -> None:
        for one in self._aliases(alias):
            self.open(one)
            self.register(one, one)

    def fin_all(self) -> None:
        for name in list(self.clients):
            self.fin(name)
        self.ended = None

    def call(self, alias: str, name: str) -> None:
        self.clients[name].invite(self._user(alias), self.lab.password, DOMAIN, "9196")
        assert soon(lambda: len(self._calls()) == 1), "no call is up"

    def hang_up(self) -> None:
        for call in self._calls():
            self.switch.recorder.api(f"uuid_kill {call}")
        assert soon(lambda: not self._calls()), "the call stays up"

    def outgoing(self, end: str) -> float:
        """Let FreeSWITCH call out, then end the connection that it opened for that."""
        with socket.create_server((self.lab.gateway, 0)) as server:
            server.settimeout(10)
            host, port = server.getsockname()
            target = f"sofia/{self.case.profile}/peer@{host}:{port};transport=tcp"
            self.switch.recorder.api(f"bgapi originate {{originate_timeout=5}}{target} &park()")
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                assert connection.recv(65536).startswith(b"INVITE "), "FreeSWITCH did not call"
                if end == "rst":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return time.time()

    def listed(self, alias: str, count: str = "1") -> None:
        """Check how many registrations FreeSWITCH lists; it writes them a little later."""
        found = -1
        if self.stock:
            return  # It removes registrations in place of reporting them.

        def as_expected() -> bool:
            nonlocal found
            found = self._listed(alias)
            return found == int(count)

        assert soon(as_expected), f"{found} registrations of {alias} are listed instead of {count}"

    def unlisted(self, alias: str) -> None:
        self.listed(alias, "0")

    # What the verbs share

    def _end(self, name: str) -> Client:
        client = self.clients.pop(name)
        self.ended = client.address
        return client

    def _calls(self) -> list[str]:
        """Return the identifiers of the calls of the users of this case that are up."""
        rows = json.loads(self.switch.recorder.api("show channels as json")).get("rows", [])
        return [row["uuid"] for row in rows if row["cid_num"] in self.aliases]

    def _listed(self, alias: str) -> int:
        return len(self.switch.registrations(self.case.profile, f"{self._user(alias)}@{DOMAIN}"))

    def _aliases(self, alias: str) -> list[str]:
        name, star, count = alias.partition("*")
        return [f"{name}{number}" for number in range(1, int(count) + 1)] if star else [name]

    def _user(self, alias: str) -> str:
        if alias not in self.users:
            self.users[alias] = self.lab.user()
            self.aliases[self.users[alias]] = alias
        return self.users[alias]

    def _registered(self, alias: str, name: str, call_id: str, contact: str) -> None:
        self.identities[alias, name] = call_id, contact

    def _message(self, what: str, client: Client) -> bytes:
        whole = client.request("nobody", DOMAIN, 3600, "rubbish")
        match what:
            case "partial":
                return whole[: len(whole) // 2]
            case "unfinished":
                return whole.replace(b"Content-Length: 0", b"Content-Length: 5000") + b"x" * 100
            case "oversize":
                return whole.replace(b"Content-Length: 0", b"Content-Length: 4294967290") + b"x" * 100
            case "binary":
                return self.random.randbytes(self.random.randint(1, 4000))
            case "text":
                return b"this is no SIP\r\n\r\n" * 20
            case "headers":
                return b"OPTIONS sip:example.test SIP/2.0\r\nVia: rubbish\r\nCSeq: x\r\nContent-Length: 0\r\n\r\n"
            case "bad-cseq":
                return whole.replace(b"CSeq: ", b"CSeq: x")
            case "no-call-id" | "no-via":
                name = what.removeprefix("no-").encode()
                return re.sub(rb"(?i)\r\n" + name + rb": [^\r]*", b"", whole)
            case "version":
                return whole.replace(b"SIP/2.0\r\n", b"SIP/3.0\r\n", 1)
        raise ValueError(f"unknown message '{what}'")

    # What came

    def _expected(self, text: str) -> Expected:
        expected = Expected(optional=text.startswith("at most "))
        for part in text.removeprefix("at most ").split(";"):
            words = part.split()
            match words:
                case ["nothing"]:
                    pass
                case ["each", "registered", alias, causes]:
                    wanted = {self._user(one) for one in self._aliases(alias)}
                    # A REGISTER may still be under way.
                    came = -1
                    while came < (came := len(self.events())):
                        time.sleep(BOUND)
                    for event in self.switch.recorder.events[self.start :]:
                        if event.subclass == REGISTER and event.get("from-user") in wanted:
                            expected.reports.append((event.get("from-user"), 0, set(causes.split("|"))))
                case [alias, "unregistered"]:
                    expected.unregisters += [self._user(one) for one in self._aliases(alias)]
                case [alias, left, "left", causes]:
                    for one in self._aliases(alias):
                        expected.reports.append((self._user(one), int(left), set(causes.split("|"))))
                case _:
                    raise ValueError(f"{FILE.name}: can't read '{part}'")
        return expected

    def events(self) -> list[Event]:
        """Return all events about the users of this case so far."""
        return [event for event in self.switch.recorder.events[self.start :] if self.is_mine(event)]

    def _mine(self, start: int) -> tuple[list[Event], list[Event]]:
        """Return the reports and the unregisters by the server for the users of this case since `start`."""
        mine = [event for event in self.switch.recorder.events[start:] if self.is_mine(event)]
        return (
            [event for event in mine if event.subclass == self.switch.subclass],
            [event for event in mine if _is_disconnection(event)],
        )

    def is_mine(self, event: Event) -> bool:
        return event.get("from-user") in self.aliases

    def _judge(self, step: str, expected: Expected, seen: int, before: float) -> Stage:
        stage = Stage(step, expected)

        counted, reports, unregisters = seen, 0, 0

        def complete(events: Sequence[Event]) -> bool:
            nonlocal counted, reports, unregisters
            # Each event once: many cases wait at the same time.
            for event in events[counted:]:
                if self.is_mine(event):
                    reports += event.subclass == self.switch.subclass
                    unregisters += _is_disconnection(event)
            counted = len(events)
            if self.stock:
                return unregisters >= len(expected.reports)
            return reports >= len(expected.reports) and unregisters >= len(expected.unregisters)

        if expected.reports or expected.unregisters:
            self.switch.recorder.wait(complete, LATE + 1)
        else:
            time.sleep(BOUND)
        came_reports, came_unregisters = self._mine(seen)
        stage.reports, stage.unregisters = len(came_reports), len(came_unregisters)
        wanted = Counter(user for user, _, _ in expected.reports)
        came = Counter(event.get("from-user") for event in came_reports)
        for user in sorted(wanted | came):
            if came[user] != wanted[user] and not (expected.optional and came[user] < wanted[user]):
                stage.problems.append(f"{came[user]} reports for {self.aliases[user]} instead of {wanted[user]}")
        wanted = Counter(expected.unregisters)
        came = Counter(event.get("from-user") for event in came_unregisters)
        # WebSocket registrations are removed by stock code, whatever the profile says.
        if self.case.transport in ("tcp", "tls") or wanted:
            for user in sorted(wanted | came):
                if came[user] != wanted[user]:
                    stage.problems.append(f"{came[user]} unregisters of {self.aliases[user]} instead of {wanted[user]}")
        details = {user: (left, causes) for user, left, causes in expected.reports}
        for event in came_reports:
            if event.get("from-user") in details:
                stage.problems += self._check(event, *details[event.get("from-user")], before, stage)
        return stage

    def _check(self, event: Event, left: int, causes: set[str], before: float, stage: Stage) -> list[str]:
        found = parse(event)
        alias = self.aliases[found.from_user]
        registered = next(
            (
                item
                for item in reversed(self.switch.recorder.events[self.start :])
                if item.subclass == REGISTER
                and item.get("from-user") == found.from_user
                and item.get("call-id") == found.call_id
                and item.get("network-port") == str(found.network_port)
            ),
            None,
        )
        if registered is None:
            return [f"report for {alias} with Call-ID {found.call_id}, port {found.network_port}: never registered"]
        transport = self.case.transport
        wanted: dict[str, tuple[object, object]] = {
            name: (event.get(name), registered.get(name))
            for name in ("profile-name", "from-host", "contact", "call-id", "user-agent", "network-ip", "network-port")
        }
        wanted["transport"] = (found.transport, transport)
        wanted["registrations-left"] = (found.registrations_left, left)
        if self.ended:
            wanted["address of the client"] = ((found.network_ip, found.network_port), self.ended)
        problems = [
            f"{name} for {alias} is {came!r}, not {must!r}" for name, (came, must) in wanted.items() if came != must
        ]
        if found.close_cause not in causes:
            problems.append(f"close-cause for {alias} is {found.close_cause}, not {' or '.join(sorted(causes))}")
        if found.error_name not in ERRNOS.get(found.close_cause, {found.error_name}):
            problems.append(f"error-name for {alias} is {found.error_name} with close-cause {found.close_cause}")
        # A REGISTER of a storm may be answered when its connection has ended.
        latest = found.detected_at_us // 10**6 if self.ended else int(time.time())
        if not found.connected_at - CLOCK_SKEW <= found.registered_at <= latest:
            problems.append(
                f"connected-at {found.connected_at}, registered-at {found.registered_at} and "
                f"detected-at-us {found.detected_at_us} are not in that order"
            )
        detected, arrived = found.detected_at_us / 1e6 - before, event.arrived_ns / 1e9 - before
        stage.delays.append(detected)
        stage.arrivals.append(arrived)
        if not found.detected_at_us * 1000 <= event.arrived_ns:
            problems.append(f"detected {detected - arrived:.6f} s after its arrival")
        if not stage.expected.optional and "storm" not in stage.step and detected < -0.001:
            problems.append(f"detected {-detected:.3f} s before the end")
        if arrived > LATE:
            problems.append(f"came {arrived:.3f} s after the end")
        return problems

    def _check_rest(self, stages: Sequence[Stage]) -> None:
        """Nothing may come but what a step was followed by."""
        reports, unregisters = self._mine(self.start)
        known = sum(stage.reports for stage in stages)
        if len(reports) != known:
            late = Stage("the end", Expected())
            late.problems.append(f"{len(reports)} reports in all, {known} where they were expected")
            stages[-1].problems += late.problems
        known = sum(stage.unregisters for stage in stages)
        if len(unregisters) != known and self.case.transport in ("tcp", "tls"):
            stages[-1].problems.append(f"{len(unregisters)} unregisters in all, {known} where they were expected")

    def _tidy(self) -> None:
        for client in self.clients.values():
            client.close()
        for process in self.processes.values():
            process.kill()
            process.wait(5)


def soon(done: Callable[[], bool], timeout: float = 5.0) -> bool:
    """Return whether `done` says so within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _is_disconnection(event: Event) -> bool:
    return event.subclass == UNREGISTER and event.get("reason") == "socket-disconnection"


def problems(stages: Sequence[Stage]) -> list[str]:
    """Return what was wrong, one line each."""
    return [f"{re.sub(' +', ' ', stage.step)}: {problem}" for stage in stages for problem in stage.problems]
