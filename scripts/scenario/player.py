"""Plays the cases of a scenario's table against a lab."""

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
from collections.abc import Callable, Sequence

from scripts.errors import ToolkitError
from scripts.freeswitch.events import REGISTER, UNREGISTER, Event
from scripts.freeswitch.sip import Client, accepted
from scripts.machine.files import ROOT
from scripts.scenario import judge, sipp
from scripts.scenario.judge import Expected, Scene, Stage
from scripts.scenario.lab import DOMAIN, Lab
from scripts.scenario.sipp import Sipp
from scripts.scenario.table import ARROW, Case, Transport
from scripts.scenario.verb import (
    Broken,
    Count,
    Crowd,
    End,
    Ends,
    Halves,
    Held,
    Joins,
    Kills,
    Left,
    Open,
    Opens,
    Option,
    Pause,
    Runs,
    Script,
    Starts,
    User,
    Users,
    Verbs,
    only,
)

VERBS = Verbs()
verb = VERBS.add


class Player:
    """Plays one case. The verbs of the table are its methods that are marked so.

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
        # Of what was registered over another transport than the case's, by Call-ID.
        self.transports: dict[str, str] = {}
        # The near end of the connection that the step has ended.
        self.ended: tuple[str, int] | None = None
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.sipps: dict[str, Sipp] = {}
        # When a client was killed, nanoseconds since the epoch.
        self.killed_ns: int | None = None
        self.start = len(self.switch.recorder.events)
        self.stages: list[Stage] = []
        # What is played just now; "" before and after.
        self.step = ""

    def play(self) -> list[Stage]:
        """Play all steps; return the outcome of those that say what must come."""
        stages = self.stages
        try:
            for step in self.case.steps:
                self.step = step
                action, arrow, outcome = (part.strip() for part in step.partition(ARROW))
                name, *words = action.split()
                called = VERBS[name]
                arguments = called.read(words)
                seen = len(self.switch.recorder.events)
                self.ended = None
                before = time.time()
                # What takes long before the connection ends must not count.
                before = called.method(self, *arguments) or before
                if arrow:
                    stages.append(self._judge(step, self._expected(outcome), seen, before))
            self.step = ""
            self.lab.pause(self.lab.wait.end)
            self.switch.recorder.check()
            self._check_rest(stages)
        finally:
            reports, _ = self._mine(self.start)
            self.lab.settled.update(event.get("from-user") for event in reports)
            self.lab.settled.update(dict.fromkeys(self.aliases, 0))
            self._tidy()
        return stages

    # What the table calls

    @verb
    def open(self, name: Opens, transport: Transport | None = None) -> None:
        """Connect `name` to the profile, over another transport if one is given."""
        self.clients[name] = self.lab.open(self.case.profile, transport or self.case.transport)

    @verb
    def register(self, alias: Users, name: Joins, *options: Option) -> None:
        """Register the user over a connection. Options: plain (no transport= in the Contact), expires=SECONDS."""
        for one in judge.aliases(alias):
            client = self.clients[name]
            user = self._user(one)
            host, port = client.address
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            suffix = "" if "plain" in options or client.transport == "udp" else f";transport={client.transport}"
            expires = next((int(option.split("=")[1]) for option in options if option.startswith("expires=")), 3600)
            contact = f"<sip:{user}@{where}{suffix}>"
            call_id = client.register(user, self.lab.password, DOMAIN, expires, contact=contact)
            self._registered(one, name, call_id, contact)

    @verb
    def refresh(self, alias: User, name: Held) -> None:
        """Register the user again with the same Call-ID and Contact over the same connection."""
        self.move(alias, name, name)

    @verb
    def move(self, alias: User, old: Left, new: Joins) -> None:
        """Register the user with the Call-ID and Contact that it has over `old` over another connection."""
        call_id, contact = self.identities[alias, old]
        self.clients[new].register(self._user(alias), self.lab.password, DOMAIN, call_id=call_id, contact=contact)
        self._registered(alias, new, call_id, contact)

    @verb
    def unregister(self, alias: User, name: Held) -> None:
        """Take the registration back, and keep the connection."""
        call_id, contact = self.identities[alias, name]
        self.clients[name].register(
            self._user(alias), self.lab.password, DOMAIN, expires=0, call_id=call_id, contact=contact
        )

    @verb
    def ask(self, alias: User, name: Open) -> None:
        """Send a REGISTER without a password, and wait for the challenge."""
        client = self.clients[name]
        client.send(client.request(self._user(alias), DOMAIN, 3600, "asked"))
        accepted("REGISTER", client.receive(), 401)

    @verb
    def fin(self, name: Ends) -> None:
        """Close the connection."""
        self._end(name).close()

    @verb
    def rst(self, name: Ends) -> None:
        """Reset the connection."""
        self._end(name).reset()

    @verb
    @only("tcp", "tls", "ws", "wss")
    def half_close(self, name: Halves) -> None:
        """Close the own half of the connection, and go on reading."""
        self.ended = self.clients[name].address
        self.clients[name].half_close()

    @verb
    @only("tls", "wss")
    def close_notify(self, name: Ends) -> None:
        """Send TLS's close_notify, then close."""
        self._end(name).close_notify()

    @verb
    @only("ws", "wss")
    def ws_close(self, name: Ends) -> None:
        """Send a close frame of WebSocket, then close."""
        self._end(name).ws_close()

    @verb
    def spawn(self, alias: Starts) -> None:
        """Register the user in a process of its own."""
        host, port = self.lab.target(self.case.profile, self.case.transport)
        user = self._user(alias)
        command = [
            sys.executable,
            "-m",
            "scripts.scenario.phone",
            self.case.transport,
            host,
            str(port),
            user,
            self.lab.password,
        ]
        process = subprocess.Popen([*command, DOMAIN], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline().strip(), "the client did not register"
        self.processes[alias] = process

    @verb
    @only(*sipp.TRANSPORTS)
    def sipp(self, alias: Starts, scenario: Script) -> None:
        """Let SIPp play sipp/`scenario`.xml.j2 as the user, and wait until it has registered."""
        user, seen = self._user(alias), len(self.switch.recorder.events)
        if before := self.sipps.pop(alias, None):
            before.remove()
        case = str(self.case) if self.lab.scenario.several else self.case.name
        name = f"{case} {alias}" if self.sipps else case
        client = sipp.start(self.lab, scenario, name, user, self.case.profile, self.case.transport)
        self.sipps[alias] = client
        self.lab.versions.setdefault("sipp", sipp.version(client.container))

        def registered(events: Sequence[Event]) -> bool:
            return any(event.subclass == REGISTER and event.get("from-user") == user for event in events[seen:])

        if not self.switch.recorder.wait(registered, self.lab.wait.report):
            self.switch.recorder.check()
            raise ToolkitError(f"{user} did not register in {self.lab.wait.report:g} s: {client.errors()}")

    @verb
    def end(self, alias: Runs) -> None:
        """Wait until the user's SIPp has played its scenario."""
        self.sipps[alias].end(self.lab.wait.report)

    @verb
    def kill(self, alias: Kills) -> float:
        """Kill the user's process (`spawn`) or its SIPp (`sipp`) with SIGKILL."""
        if alias not in self.processes:
            client = self.sipps[alias]
            port = int(self._registration(alias).get("network-port"))
            self.ended = self.switch.peer(port) or client.address, port
            self.killed_ns = client.kill()
            return self.killed_ns / 1e9
        process = self.processes.pop(alias)
        self.killed_ns = time.time_ns()
        process.kill()
        assert process.wait(5) == -9
        assert process.stdout
        process.stdout.close()
        return self.killed_ns / 1e9

    @verb
    def wait(self, seconds: Pause) -> None:
        """Do nothing for so many seconds."""
        self.lab.pause(seconds)

    @verb
    def send(self, name: Open, what: Broken) -> None:
        """Send a message that is broken in the way of `what`.

        partial, unfinished, oversize, binary, text, headers, bad-cseq, no-call-id, no-via, version.
        """
        self.ended = self.clients[name].address
        self.clients[name].send(self._message(what, self.clients[name]))

    @verb
    def rubbish_and_fin(self, name: Ends, what: Broken) -> None:
        """Send a broken message, as `send` does, and close at once."""
        client = self._end(name)
        with contextlib.suppress(OSError):  # The server may be faster with the end.
            client.send(self._message(what, client))
        client.close()

    @verb
    @only("ws", "wss")
    def broken_frame_and_fin(self, name: Ends) -> None:
        """Send bytes that are no frame of WebSocket, and close."""
        client = self._end(name)
        client.sock.sendall(self.random.randbytes(500))
        client.close()

    @verb
    @only("tls", "wss")
    def clear_text_and_fin(self, name: Ends) -> None:
        """Send clear text in the middle of TLS, and close."""
        client = self._end(name)
        raw = socket.socket(fileno=client.sock.detach())
        raw.sendall(b"OPTIONS sip:example.test SIP/2.0\r\n\r\n" * 10)
        raw.close()

    @verb
    def noise(self, count: Count) -> None:
        """Let so many clients connect, send random bytes and close."""
        target = self.lab.target(self.case.profile, self.case.transport)
        for _ in range(count):
            self.lab.pause(0)
            with contextlib.suppress(OSError), socket.create_connection(target, 5) as connection:
                connection.sendall(self.random.randbytes(self.random.randint(1, 4000)))

    @verb
    @only("tls", "ws", "wss")
    def abort_handshake(self, count: Count) -> None:
        """Let so many clients end in the middle of the TLS handshake or the WebSocket upgrade."""
        target = self.lab.target(self.case.profile, self.case.transport)
        hello = b"GET / HTTP/1.1\r\nHost: example.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        if self.case.transport != "ws":
            outgoing = ssl.MemoryBIO()
            context = ssl.create_default_context()
            with contextlib.suppress(ssl.SSLWantReadError):
                context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=DOMAIN).do_handshake()
            hello = outgoing.read()
        for number in range(count):
            self.lab.pause(0)
            with socket.create_connection(target, 5) as connection:
                connection.sendall(hello[: self.random.randint(0, len(hello))])
                if number % 2:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    @verb
    def storm(self, alias: Users, end: End) -> float:
        """Send the authorized REGISTER and end the connection after 0 to 20 ms."""
        for one in judge.aliases(alias):
            client = self.lab.open(self.case.profile, self.case.transport)
            client.register(self._user(one), self.lab.password, DOMAIN, wait=False)
            time.sleep(self.random.choice((0, 0, 0.001, 0.002, 0.005, 0.01, 0.02)))
            client.close() if end == "fin" else client.reset()
        return time.time()

    @verb
    def crowd(self, alias: Crowd) -> None:
        """Connect and register the users (u*100), each over a connection of its own."""
        for one in judge.aliases(alias):
            self.open(one)
            self.register(one, one)

    @verb
    def fin_all(self) -> None:
        """Close all connections."""
        for name in list(self.clients):
            self.fin(name)
        self.ended = None

    @verb
    def call(self, alias: User, name: Open) -> None:
        """Call the echo extension, and wait until the call is up."""
        self.clients[name].invite(self._user(alias), self.lab.password, DOMAIN, "9196")
        assert soon(lambda: len(self._calls()) == 1), "no call is up"

    @verb
    def hang_up(self) -> None:
        """End the calls of the case."""
        for call in self._calls():
            self.switch.recorder.api(f"uuid_kill {call}")
        assert soon(lambda: not self._calls()), "the call stays up"

    @verb
    def outgoing(self, end: End) -> float:
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

    @verb
    def listed(self, alias: User, count: Count = 1) -> None:
        """Check how many registrations FreeSWITCH lists; it writes them a little later."""
        found = -1
        if self.stock:
            return  # It removes registrations in place of reporting them.

        def as_expected() -> bool:
            nonlocal found
            found = self._listed(alias)
            return found == count

        assert soon(as_expected), f"{found} registrations of {alias} are listed instead of {count}"

    @verb
    def unlisted(self, alias: User) -> None:
        """Check that FreeSWITCH lists no registration of the user."""
        self.listed(alias, 0)

    # What the verbs share

    def _registration(self, alias: str) -> Event:
        """Return the last sofia::register of the user; ToolkitError if there is none."""
        user = self._user(alias)
        for event in reversed(self.events()):
            if event.subclass == REGISTER and event.get("from-user") == user:
                return event
        raise ToolkitError(f"{alias} has not registered")

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

    def _user(self, alias: str) -> str:
        # Those of many may take long, one after the other.
        self.lab.pause(0)
        if alias not in self.users:
            self.users[alias] = self.lab.user(alias)
            self.aliases[self.users[alias]] = alias
        return self.users[alias]

    def _registered(self, alias: str, name: str, call_id: str, contact: str) -> None:
        self.identities[alias, name] = call_id, contact
        if (transport := self.clients[name].transport) != self.case.transport:
            self.transports[call_id] = transport

    def _message(self, what: Broken, client: Client) -> bytes:
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

    # What came

    def _expected(self, text: str) -> Expected:
        wanted, optional = judge.read(text)
        expected = judge.expect(wanted, optional, lambda alias: [self._user(one) for one in judge.aliases(alias)])
        for one in wanted:
            if one.kind == "registered":
                users = {self._user(alias) for alias in judge.aliases(one.alias)}
                # A REGISTER may still be under way.
                came = -1
                while came < (came := len(self.events())):
                    self.lab.pause(self.lab.wait.nothing)
                for event in self.switch.recorder.events[self.start :]:
                    if event.subclass == REGISTER and event.get("from-user") in users:
                        expected.reports.append((event.get("from-user"), one.left, one.causes))
        return expected

    def events(self) -> list[Event]:
        """Return all events about the users of this case so far."""
        return [event for event in self.switch.recorder.events[self.start :] if self.is_mine(event)]

    def last_registration(self) -> Event | None:
        """Return the last sofia::register of the case's users, None if there is none."""
        return next((event for event in reversed(self.events()) if event.subclass == REGISTER), None)

    def is_mine(self, event: Event) -> bool:
        return event.get("from-user") in self.aliases

    def _judge(self, step: str, expected: Expected, seen: int, before: float) -> Stage:
        counted, reports, unregisters, itself = seen, 0, 0, 0
        wait = self.lab.wait

        def complete(events: Sequence[Event]) -> bool:
            nonlocal counted, reports, unregisters, itself
            # Each event once: many cases wait at the same time.
            for event in events[counted:]:
                if self.is_mine(event):
                    reports += event.subclass == self.switch.subclass
                    unregisters += judge.disconnected(event)
                    itself += event.subclass == UNREGISTER and not judge.disconnected(event)
            counted = len(events)
            if itself < len(expected.itself):
                return False
            if self.stock:
                return unregisters >= len(expected.reports)
            return reports >= len(expected.reports) and unregisters >= len(expected.unregisters)

        if expected.reports or expected.unregisters or expected.itself:
            if not self.switch.recorder.wait(complete, wait.report):
                self.switch.recorder.check()
        else:
            self.lab.pause(wait.nothing)
        self.switch.recorder.check()
        return judge.judge(step, expected, self.switch.recorder.events[seen:], self._scene(before))

    def _scene(self, before: float) -> Scene:
        return Scene(
            self.switch.recorder.events[self.start :],
            self.aliases,
            self.case.transport,
            self.switch.subclass,
            before,
            time.time(),
            self.ended,
            self.killed_ns,
            bool(self.lab.scenario.users),
            self.transports,
        )

    def _mine(self, start: int) -> tuple[list[Event], list[Event]]:
        """Return the reports and the unregisters by the server for the users of this case since `start`."""
        scene, events = self._scene(0), self.switch.recorder.events[start:]
        return scene.reports(events), scene.unregisters(events)

    def _check_rest(self, stages: list[Stage]) -> None:
        """Nothing may come but what a step was followed by."""
        reports, unregisters = self._mine(self.start)
        if not stages:
            stages.append(Stage("the end", Expected()))
        known = sum(stage.reports for stage in stages)
        if len(reports) != known:
            stages[-1].problems.append(f"{len(reports)} reports in all, {known} where they were expected")
        known = sum(stage.unregisters for stage in stages)
        # Of those over WebSocket some come at no step's time.
        if len(unregisters) != known and not {self.case.transport, *self.transports.values()} & judge.WEBSOCKET:
            stages[-1].problems.append(f"{len(unregisters)} unregisters in all, {known} where they were expected")
        if any(stage.problems for stage in stages):
            for client in self.sipps.values():
                client.keep_logs()

    def _tidy(self) -> None:
        for client in self.clients.values():
            client.close()
        for process in self.processes.values():
            process.kill()
            process.wait(5)
        for running in self.sipps.values():
            running.remove()


def soon(done: Callable[[], bool], timeout: float = 5.0) -> bool:
    """Return whether `done` says so within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def problems(case: Case, stages: Sequence[Stage]) -> list[str]:
    """Return what was wrong in `case`, one line each, with the step if its steps are what the report shows."""
    return [located(case, stage.step, problem) for stage in stages for problem in stage.problems]


def located(case: Case, step: str, problem: str) -> str:
    """Return `problem` with its step if the report shows the steps of `case`."""
    return problem if case.done or not step else f"{re.sub(' +', ' ', step)}: {problem}"
