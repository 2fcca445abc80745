"""The limit of requests per second: only the excess is refused, and a flood silences nobody else."""

from __future__ import annotations

import functools
import itertools
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest

from scripts.freeswitch.sip import Client, Response, digest
from scripts.scenario.lab import DOMAIN, USERS, Lab
from scripts.scenario.player import soon
from tests.deaths import LIMIT

NUMBER = 3000
# Over one connection. The stack keeps no more than 64 answers for a peer that is slow to read.
SHARE = 50
# Seconds: a bound for what a loaded machine may take, and the time in which an empty bucket fills.
LONG, FULL = 60.0, 1.3
# What a source that floods can get at once: a second's worth, and the reserve.
BURST = LIMIT * 1.25
# The largest Retry-After of nta, in seconds.
RETRY_MOST = 16
# Of a user's requests, mod_sofia takes some at a time only: each is another one's.
NUMBERS = itertools.count()
LOGGED = re.compile(r"nta: refused (\d+) of (\d+) requests, over (\d+) in a second")


def request(client: Client, method: str, number: int) -> bytes:
    """Return a request without credentials, outside of any dialog."""
    host, port = client.address
    where, call_id, user = f"{host}:{port}", uuid.uuid4().hex, f"u{next(NUMBERS) % USERS:04}"
    lines = [
        f"{method} sip:{DOMAIN} SIP/2.0",
        f"Via: SIP/2.0/{client.transport.upper()} {where};branch=z9hG4bK{call_id};rport",
        "Max-Forwards: 70",
        f"From: <sip:{user}@{DOMAIN}>;tag={call_id[:8]}",
        f"To: <sip:{user}@{DOMAIN}>",
        f"Call-ID: {call_id}",
        f"CSeq: {number} {method}",
        f"Contact: <sip:{user}@{where};transport={client.transport}>",
        "Content-Length: 0",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def is_refused(reply: Response) -> bool:
    """Return whether nta refused the request, and not mod_sofia, which is too busy in its own words."""
    if (reply.status, reply.phrase) != (503, "Service Unavailable"):
        return False
    assert 1 <= int(reply.header("retry-after")) <= RETRY_MOST
    return True


def send_all(client: Client, method: str, count: int) -> None:
    """Send `count` requests as fast as the connection takes them."""
    messages = [request(client, method, number) for number in range(1, count + 1)]
    if client.transport in ("ws", "wss"):
        for message in messages:
            client.send(message)
    else:
        client.sock.sendall(b"".join(messages))


def flood(clients: Sequence[Client], method: str) -> list[Response]:
    """Send SHARE requests over each of `clients` as fast as that goes; return the answers, one for each.

    Raises TimeoutError if there is none.
    """
    for client in clients:
        send_all(client, method, SHARE)
    return [client.receive() for client in clients for _ in range(SHARE)]


def logged(lab: Lab, since: float) -> list[tuple[int, ...]]:
    """Return the lines of nta of after the time `since`: refused, received, limit."""
    log = lab.freeswitch.container.logs(since=since).decode(errors="replace")
    return [tuple(map(int, groups)) for groups in LOGGED.findall(log)]


def are_logged(lab: Lab, since: float, refused: int) -> bool:
    return sum(line[0] for line in logged(lab, since)) >= refused


@pytest.fixture
def full(lab: Lab) -> None:
    """Wait until the bucket is full again, and have what was refused before logged."""
    time.sleep(FULL)
    assert lab.open("limited", "tcp").ask("OPTIONS", "u0000", DOMAIN, "u0000").status == 200
    time.sleep(FULL)


def test_only_the_excess_is_refused_and_all_is_answered(lab: Lab, full: None) -> None:
    for method in ("REGISTER", "OPTIONS", "BYE"):
        begun = time.time()
        with ExitStack() as stack:
            clients = [lab.open("limited", "tcp") for _ in range(NUMBER // SHARE)]
            for client in clients:
                stack.callback(client.close)
            start = time.monotonic()
            replies = flood(clients, method)
            seconds = time.monotonic() - start
        assert len(replies) == NUMBER
        refused = sum(map(is_refused, replies))
        assert LIMIT <= NUMBER - refused <= BURST + LIMIT * seconds, method
        statuses = {reply.status for reply in replies if not is_refused(reply)}
        # mod_sofia says 503 when it is too busy.
        assert statuses <= {"REGISTER": {401, 503}, "OPTIONS": {200, 503}, "BYE": {481}}[method]
        # The bucket fills, and with the next request the last line comes.
        time.sleep(FULL)
        assert lab.open("limited", "tcp").ask("OPTIONS", "u0000", DOMAIN, "u0000").status == 200
        # The log is a thread of its own.
        soon(functools.partial(are_logged, lab, begun, refused), LONG)
        lines = logged(lab, begun)
        assert sum(line[0] for line in lines) == refused
        assert all(0 < line[0] <= line[1] and line[2] == LIMIT for line in lines)
        assert len(lines) <= seconds + FULL + 1


@pytest.mark.parametrize("transport", ["tls", "ws", "wss"])
def test_every_kind_of_connection_gets_answers(lab: Lab, full: None, transport: str) -> None:
    clients = [lab.open("limited", transport) for _ in range(NUMBER // SHARE)]
    start = time.monotonic()
    replies = flood(clients, "OPTIONS")
    seconds = time.monotonic() - start
    assert LIMIT <= NUMBER - sum(map(is_refused, replies)) <= BURST + LIMIT * seconds
    for client in clients:
        client.close()


def test_datagrams_in_excess_are_dropped(lab: Lab, full: None) -> None:
    client = lab.open("limited", "udp")
    answers: list[Response] = []
    start = time.monotonic()
    # In small portions: what the kernel drops, the stack can't.
    for _ in range(NUMBER // SHARE):
        for number in range(SHARE):
            client.send(request(client, "OPTIONS", number + 1))
        client.sock.settimeout(0.01)
        try:
            while True:
                answers.append(client.receive())
        except TimeoutError:
            pass
    seconds = time.monotonic() - start
    assert {answer.status for answer in answers} == {200}
    assert len(answers) <= BURST + LIMIT * seconds
    time.sleep(FULL)
    client.close()
    assert lab.open("limited", "udp").ask("OPTIONS", "u0000", DOMAIN, "u0000").status == 200


def test_ack_is_never_answered(lab: Lab, full: None) -> None:
    clients = [lab.open("limited", "tcp") for _ in range(NUMBER // SHARE)]
    for client in clients:
        send_all(client, "ACK", SHARE)
    time.sleep(FULL)
    for client in clients:
        client.send(request(client, "OPTIONS", 1))
        reply = client.receive()
        assert (reply.status, reply.header("cseq")) == (200, "1 OPTIONS")
        client.close()


@dataclass
class Flooder:
    """Sends OPTIONS from the address of the relay, or of this machine, until it is told to stop."""

    lab: Lab
    through_relay: bool
    refused: int = 0
    errors: list[BaseException] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            clients = [self.lab.open("limited", "tcp", self.through_relay) for _ in range(10)]
            while not self.stopped.is_set():
                self.refused += sum(map(is_refused, flood(clients, "OPTIONS")))
            for client in clients:
                client.close()
        except BaseException as error:
            self.errors.append(error)

    def wait(self, more: int) -> None:
        """Wait until `more` requests were refused."""
        end, deadline = self.refused + more, time.monotonic() + LONG
        while self.refused < end:
            assert not self.errors, self.errors
            assert time.monotonic() < deadline, "the machine is too slow for a flood"
            time.sleep(0.01)


@contextmanager
def flooding(lab: Lab, through_relay: bool) -> Iterator[Flooder]:
    """Have a flood while the block runs; at its beginning the bucket is empty."""
    flooder = Flooder(lab, through_relay)
    thread = threading.Thread(target=flooder.run, daemon=True)
    thread.start()
    try:
        flooder.wait(LIMIT)
        yield flooder
    finally:
        flooder.stopped.set()
        thread.join(LONG)
    assert not flooder.errors, flooder.errors


def test_flood_does_not_silence_another_client(lab: Lab, full: None) -> None:
    user = lab.user()
    with flooding(lab, through_relay=True) as flooder:
        while flooder.refused < 5 * LIMIT:
            client = lab.open("limited", "tcp")
            client.register(user, lab.password, DOMAIN)
            client.register(user, lab.password, DOMAIN, expires=0)
            client.close()
            flooder.wait(100)
            # Sixty requests a second are sure.
            time.sleep(0.1)


class Caller(Client):
    """A client that can call and hang up."""

    def call(self, user: str, password: str) -> bytes:
        """Call the echo and return the request that ends the call."""
        call_id, uri = uuid.uuid4().hex, f"sip:9196@{DOMAIN}"
        self.send(self._call_request("INVITE", user, DOMAIN, uri, call_id, 1, ""))
        reply = self._final()
        self.send(self._call_request("ACK", user, DOMAIN, uri, call_id, 1, reply.header("to")))
        authorization = digest(reply.header("proxy-authenticate"), user, password, "INVITE", uri)
        self.send(self._call_request("INVITE", user, DOMAIN, uri, call_id, 2, "", authorization))
        reply = self._final()
        assert reply.status == 200, reply
        far = reply.header("contact").partition("<")[2].partition(">")[0]
        to = reply.header("to")
        self.send(self._call_request("ACK", user, DOMAIN, far, call_id, 2, to))
        return self._call_request("BYE", user, DOMAIN, far, call_id, 3, to)

    def hang_up(self, bye: bytes) -> int:
        """End the call and return the status of the answer."""
        self.send(bye)
        return self._final().status


def test_calls_can_be_ended_in_a_flood(lab: Lab, full: None) -> None:
    host, port = lab.target("limited", "tcp")
    callers = [Caller("tcp", host, port) for _ in range(20)]
    ends = [caller.call("u0000", lab.password) for caller in callers]
    # From the same address, which has no tokens left.
    with flooding(lab, through_relay=False):
        statuses = [caller.hang_up(bye) for caller, bye in zip(callers, ends, strict=True)]
    assert statuses == [200] * len(callers)


def test_the_limit_of_the_image_refuses_none_of_these(lab: Lab) -> None:
    for method in ("OPTIONS", "REGISTER"):
        clients = [lab.open("image-limit", "tcp") for _ in range(NUMBER // SHARE)]
        replies = flood(clients, method)
        assert len(replies) == NUMBER and not any(map(is_refused, replies))
        for client in clients:
            client.close()
