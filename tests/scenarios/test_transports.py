"""No client holds up the others, and legal input never ends a connection: the table of scripts/bench/offenders.py."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from tlslite.api import TLSConnection
from tlslite.constants import KeyUpdateMessageType

from scripts.bench import offenders
from scripts.bench.offenders import CASES, PATIENCE, TEXT, Closure, FrameCase, RawConnection, frame, options
from scripts.freeswitch.sip import Client
from scripts.scenario import player
from scripts.scenario.lab import DOMAIN, Lab

WAIT = 20.0
soon = partial(player.soon, timeout=WAIT)
# Stock makes everybody wait 10 s for one offender, and each further one adds to that.
HELD_UP = 8.0
CROWD = 100
# Over each transport; each registers anew long after its connection has ended.
DEVICES = 40


@pytest.mark.parametrize("case", [case for case in CASES if case.end is not Closure.LATE], ids=str)
def test_frames(lab: Lab, case: FrameCase) -> None:
    raw = RawConnection(case.transport, lab.target("main", case.transport))
    with contextlib.closing(raw):
        assert case.play(raw, WAIT) == []


@pytest.mark.parametrize("name", offenders.UPGRADES)
@pytest.mark.parametrize("transport", ["ws", "wss"])
@pytest.mark.parametrize("size", [0, 1, 7], ids=["at once", "byte by byte", "in sevens"])
def test_upgrade(lab: Lab, transport: str, name: str, size: int) -> None:
    request, accepted = offenders.UPGRADES[name]
    raw = RawConnection(transport, lab.target("main", transport), upgraded=False)
    with contextlib.closing(raw):
        for data in offenders.pieces(request, size or len(request)):
            assert isinstance(data, bytes)
            raw.send(data)
        raw.wait(lambda: bool(raw.head), WAIT)
        status, *headers = raw.head.split(b"\r\n")
        if accepted:
            assert status.startswith(b"HTTP/1.1 101 ")
            assert b"Sec-WebSocket-Protocol: sip" in headers
            raw.send(frame(TEXT, options(transport)))
            assert raw.wait(lambda: raw.answers() == 1, WAIT)
        else:
            # What was still on its way can make the end of it a reset, which takes the answer with it.
            assert not raw.head or status.startswith(b"HTTP/1.1 400 ")
            assert raw.wait(lambda: raw.ended, WAIT)


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("transport", ["tls", "wss"])
def test_new_keys_of_tls_just_before_a_request(lab: Lab, transport: str, count: int) -> None:
    """The ssl of Python can't ask for new keys, and gets by with the old ones for ever."""
    with socket.create_connection(lab.target("main", transport), WAIT) as sock:
        connection = TLSConnection(sock)
        connection.handshakeClientCert()
        if transport == "wss":
            connection.write(offenders.upgrade())
            assert connection.read(min=1, max=4096).startswith(b"HTTP/1.1 101 ")
        # All of it at once.
        connection.sock.buffer_writes = True
        for _ in range(count):
            for _ in connection.send_keyupdate_request(KeyUpdateMessageType.update_requested):
                pass
        connection.write(offenders.wrapped(transport, options(transport)))
        connection.sock.flush()
        assert b"SIP/2.0 200 OK" in connection.read(min=1, max=4096)


@pytest.mark.parametrize(
    "head", [b"\r\nO", b"\r\nOPTION", b"\r\n\r\nO", b"\r\n\r\nOPTI", b"\n O", b" \r\n\t OPT"], ids=repr
)
@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_keepalive_and_a_little_of_a_request_in_one_segment(lab: Lab, transport: str, head: bytes) -> None:
    raw = RawConnection(transport, lab.target("main", transport))
    with contextlib.closing(raw):
        for number in range(1, 3):
            request = options(transport)
            white = len(head) - len(head.lstrip())
            raw.send(head)
            time.sleep(0.05)
            raw.send(request[len(head) - white :])
            assert raw.wait(lambda number=number: raw.answers() == number, WAIT)  # type: ignore[misc]
        assert not raw.ended


def test_nothing_is_read_after_what_cannot_be_parsed(lab: Lab) -> None:
    """Also if it is there already, and the connection lives on for answers that its peer has not taken yet."""
    raw, count = RawConnection("tcp", lab.target("main", "tcp"), buffer=4096), 300

    def cancel() -> bytes:
        """Return what the stack answers at once, with as much."""
        return options("tcp").replace(b"OPTIONS", b"CANCEL").replace(b"From: <", b'From: "' + b"x" * 3000 + b'" <')

    with contextlib.closing(raw):
        raw.send(b"".join(cancel() for _ in range(count)))
        time.sleep(1)
        # What is read at once ends where the request begins.
        broken, hidden = b"BROKEN\r\n\r\n", cancel()
        raw.send(broken + b" " * (16384 - len(broken)) + b"\r\n" + hidden)
        assert raw.wait(lambda: raw.ended, WAIT)
        assert raw.answers(481) == count
        assert hidden.partition(b"Call-ID: ")[2].partition(b"\r")[0] not in raw.received()


@pytest.mark.parametrize("end", [b"", frame(offenders.CLOSE, b"\x03\xe8")], ids=["FIN", "close frame"])
def test_who_leaves_with_answers_unread_keeps_no_descriptor(lab: Lab, end: bytes) -> None:
    before = lab.freeswitch.sockets()
    raw = RawConnection("ws", lab.target("main", "ws"), buffer=4096)
    with contextlib.closing(raw):
        raw.sock.settimeout(WAIT)
        with contextlib.suppress(TimeoutError):
            for _ in range(500):
                raw.send(frame(TEXT, options("ws") * 20))
        raw.send(end)
        # Of the kernel's buffers, nothing is read.
        raw.sock.shutdown(socket.SHUT_WR)
        assert soon(lambda: lab.freeswitch.sockets() <= before)


def test_who_does_not_go_on_is_closed(lab: Lab) -> None:
    def run(case: FrameCase) -> list[str]:
        raw = RawConnection(case.transport, lab.target("main", case.transport))
        with contextlib.closing(raw):
            return case.play(raw, WAIT)

    late = [case for case in CASES if case.end is Closure.LATE]
    with ThreadPoolExecutor(len(late)) as pool:
        assert {str(case): wrong for case, wrong in zip(late, pool.map(run, late), strict=True) if wrong} == {}


@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
def test_ping_of_rfc_5626_is_answered(lab: Lab, transport: str) -> None:
    client = lab.open("main", transport)
    client.send(b"\r\n\r\n")
    assert client._chunk() == b"\r\n"
    assert client.ask("OPTIONS", "x", DOMAIN, "x").status == 200
    client.close()


@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.parametrize("data", [b"\0", b"OPTIONS sip:x SIP/2.0\r\nVia: x\0x\r\n"], ids=["alone", "in a header"])
def test_nul_ends_a_connection(lab: Lab, transport: str, data: bytes) -> None:
    """It can't be in the head of a message, and the parser would wait for more for ever."""
    user, client = lab.user(), lab.open("main", transport)
    client.register(user, lab.password, DOMAIN)
    client.send(data)
    assert soon(lambda: [event.get("close-cause") for event in lab.reports(user)] == ["protocol-error"])
    client.close()


@pytest.mark.parametrize("transport", ["ws", "wss"])
@pytest.mark.parametrize(
    ("data", "cause"),
    [(frame(TEXT, b"x", mask=False), "protocol-error"), (frame(TEXT, b"x" * 50)[:20], "timeout")],
    ids=["illegal", "half a frame"],
)
def test_cause_of_a_registered_offender(lab: Lab, transport: str, data: bytes, cause: str) -> None:
    user, client = lab.user(), lab.open("main", transport)
    client.register(user, lab.password, DOMAIN)
    client.sock.sendall(data)
    assert soon(lambda: [event.get("close-cause") for event in lab.reports(user)] == [cause])
    client.close()


class StallingClients:
    """Many connections of every kind that stall."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.socks: list[socket.socket] = []

    def _plain(self, transport: str, *pieces: bytes) -> None:
        sock = socket.create_connection(self.lab.target("main", transport), 10)
        self.socks.append(sock)
        for data in pieces:
            sock.sendall(data)

    def _open(self, transport: str, data: bytes) -> None:
        raw = RawConnection(transport, self.lab.target("main", transport))
        self.socks.append(raw.sock)
        raw.send(data)

    def come(self, count: int) -> None:
        """Open `count` connections of each kind."""
        hello = b"\x16\x03\x01\x02\x00\x01\x00"
        for _ in range(count):
            self._plain("ws")
            self._plain("ws", b"GET / HT")
            self._plain("wss")
            self._plain("wss", hello)
            self._plain("tls")
            self._plain("tls", hello)
            self._plain("tcp", b"REGISTER sip:")
            self._open("ws", b"\x81")
            self._open("wss", b"\x81")
            self._open("ws", frame(TEXT, b"x" * 1000)[:500])
            self._open("wss", frame(TEXT, options("wss"), fin=False))
            self._open("wss", frame(offenders.CLOSE, b"\x03\xe8"))

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


class RegisteringClients:
    """Clients of every transport that ask, register and die all the while; `worst` is the longest wait in seconds."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.worst, self.asked = lab, 0.0, 0
        # How often each has registered.
        self.users: Counter[str] = Counter()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(4)
        self._runs = [self._pool.submit(self._run, transport) for transport in ("tcp", "tls", "ws", "wss")]

    def _run(self, transport: str) -> None:
        users = itertools.cycle([self.lab.user() for _ in range(DEVICES)])
        while not self._stop.is_set():
            began, user = time.monotonic(), next(users)
            host, port = self.lab.target("main", transport)
            client = Client(transport, host, port, limit=60)
            assert client.ask("OPTIONS", "x", DOMAIN, "x").status == 200
            client.register(user, self.lab.password, DOMAIN)
            client.reset() if self.asked % 2 else client.close()
            self.users[user] += 1
            self.worst, self.asked = max(self.worst, time.monotonic() - began), self.asked + 1
            time.sleep(0.05)

    def stop(self) -> None:
        """Raises what has kept one of them from going on."""
        self._stop.set()
        for run in self._runs:
            run.result()
        self._pool.shutdown()


@pytest.fixture
def offending(lab: Lab) -> Iterator[StallingClients]:
    found = StallingClients(lab)
    yield found
    found.close()


def test_a_crowd_of_offenders_holds_nobody_up(lab: Lab, offending: StallingClients) -> None:
    before = lab.freeswitch.sockets()
    others = RegisteringClients(lab)
    offending.come(CROWD)
    # Until those that stall have been closed.
    time.sleep(PATIENCE + 2)
    others.stop()
    assert others.asked > 20
    assert others.worst < HELD_UP
    assert soon(lambda: all(len(lab.reports(user)) >= count for user, count in others.users.items()))
    assert {user: len(lab.reports(user)) for user in others.users} == others.users
    offending.close()
    assert soon(lambda: lab.freeswitch.sockets() <= before)


@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
def test_who_never_sends_anything_is_closed(lab: Lab, transport: str) -> None:
    idle = lab.open("hurried", transport)
    busy = lab.open("hurried", transport)
    assert busy.ask("OPTIONS", "x", DOMAIN, "x").status == 200
    idle.sock.settimeout(WAIT)
    # Not a time-out, which is an OSError as well.
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while idle.sock.recv(1000):
            pass
    assert busy.ask("OPTIONS", "x", DOMAIN, "x").status == 200
    idle.close()
    busy.close()


@pytest.mark.parametrize("transport", ["ws", "wss"])
def test_nobody_is_connected_to_over_a_websocket(lab: Lab, transport: str) -> None:
    """A call to a browser that is gone fails at once, and leaves no descriptor."""
    with socket.create_server((lab.gateway, 0)) as listener:
        user, client = lab.user(), lab.open("main", transport)
        host, port = listener.getsockname()
        client.register(user, lab.password, DOMAIN, contact=f"<sip:{user}@{host}:{port};transport={transport}>")
        client.close()
        assert soon(lambda: len(lab.reports(user)) == 1)
        before = lab.freeswitch.sockets()
        for _ in range(20):
            lab.freeswitch.recorder.api(f"originate sofia/main/sip:{user}@{host}:{port};transport={transport} &park")
        assert soon(lambda: lab.freeswitch.sockets() <= before)
        listener.settimeout(0.5)
        with pytest.raises(TimeoutError):
            listener.accept()
