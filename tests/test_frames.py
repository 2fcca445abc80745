"""Frames of WebSocket between FreeSWITCH and another implementation of RFC 6455, wsproto."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    Request,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from scripts.bench.offenders import options
from tests.lab import Lab
from tests.probe import frames
from tests.probe.drive import generator
from tests.probe.frames import LEGAL, OFFENCES, TOO_BIG, Talk
from tests.sip import CONTEXT

# Generous: a busy machine is not a fault.
WAIT = 20.0
TALKS = 3000


@dataclass
class Taken:
    """What wsproto as the server has found in the frames of a client."""

    registers: int = 0
    pings: list[bytes] = field(default_factory=list)
    # Of the client's close frame, or of what wsproto would send.
    code: int = 0
    illegal: bool = False


def take(parts: list[bytes]) -> Taken:
    taken, protocol, body = Taken(), FrameProtocol(client=False, extensions=[]), b""
    for part in parts:
        protocol.receive_bytes(part)
        try:
            for frame in protocol.received_frames():
                if frame.opcode is Opcode.PING:
                    assert isinstance(frame.payload, bytes)
                    taken.pings.append(frame.payload)
                elif frame.opcode is Opcode.CLOSE:
                    assert isinstance(frame.payload, tuple)
                    taken.code = {1005: frames.NORMAL}.get(frame.payload[0], frame.payload[0])
                    return taken
                elif frame.opcode is not Opcode.PONG:
                    assert isinstance(frame.payload, (bytes, str))
                    body += frame.payload.encode() if isinstance(frame.payload, str) else frame.payload
                    if frame.message_finished:
                        taken.registers += body.startswith(b"REGISTER ")
                        body = b""
        except ParseFailed as error:
            taken.code, taken.illegal = error.code, True
            return taken
    return taken


@pytest.fixture(scope="module")
def talks() -> list[Talk]:
    """Return what the fuzzer throws."""
    return [frames.talk(generator(1, number), f"1-{number}", "ws", "127.0.0.1") for number in range(TALKS)]


def test_what_the_fuzzer_throws_is_as_legal_as_it_says(talks: list[Talk]) -> None:
    for number, talk in enumerate(talks):
        # Its limit is the server's own.
        if talk.code == TOO_BIG:
            continue
        # A head alone is not enough for wsproto.
        taken = take([*talk.parts, b"\0" if talk.kind in OFFENCES else talk.farewell])
        if talk.kind == "is cut off":
            assert taken.registers <= talk.registers and not taken.illegal, number
        else:
            expected = Taken(talk.registers, talk.pings, talk.code, talk.kind in OFFENCES)
            assert taken == expected, (number, talk.kind)


def test_the_fuzzer_throws_all_there_is_and_mostly_legal_frames(talks: list[Talk]) -> None:
    kinds = Counter(talk.kind for talk in talks)
    assert kinds.keys() == {*LEGAL, *OFFENCES}
    assert sum(kinds[kind] for kind in set(LEGAL) - {"is cut off"}) > TALKS / 3


Control = Ping | Pong
CONTROLS = st.lists(
    st.builds(Ping, payload=st.binary(max_size=125)) | st.builds(Pong, payload=st.binary(max_size=125)), max_size=3
)


@dataclass
class Said:
    """A message of a client: where it is cut into fragments, and what comes before, between and after them."""

    text: bool
    # An empty one if not.
    asks: bool
    cuts: list[int]
    controls: list[list[Control]]

    def events(self, transport: str) -> list[Event]:
        data = options(transport) if self.asks else b""
        places = [0, *sorted(min(cut, len(data)) for cut in self.cuts), len(data)]
        events: list[Event] = []
        for number, (start, end) in enumerate(itertools.pairwise(places)):
            part, last = data[start:end], number == len(self.cuts)
            if self.text:
                events.append(TextMessage(part.decode(), message_finished=last))
            else:
                events.append(BytesMessage(part, message_finished=last))
            events += self.controls[number] if number < len(self.controls) else []
        return events


SAID = st.builds(
    Said,
    st.booleans(),
    st.sampled_from([True, True, False]),
    st.lists(st.integers(0, 400), max_size=6),
    st.lists(CONTROLS, max_size=7),
)
# Of the segments, or of the records of TLS, in turn.
SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=5) | st.just([1 << 20])
CODES = st.sampled_from(frames.CODES) | st.none()


class Peer:
    """A client that is wsproto: it offers compression, and accepts what RFC 6455 allows and nothing else."""

    def __init__(self, transport: str, target: tuple[str, int]) -> None:
        self.sock = socket.create_connection(target, WAIT)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if transport == "wss":
            self.sock = CONTEXT.wrap_socket(self.sock)
        self.ws = WSConnection(ConnectionType.CLIENT)
        self.pongs: list[bytes] = []
        self.texts: list[str] = [""]
        self.accepted: AcceptConnection | None = None
        self.closed: CloseConnection | None = None
        offer = Request(host="x.invalid", target="/", subprotocols=["sip"], extensions=[PerMessageDeflate()])
        self.sock.sendall(self.ws.send(offer))
        self.wait(lambda: self.accepted is not None)

    def wait(self, done: Callable[[], bool]) -> None:
        """Read until `done()` says so. Raises what keeps that from coming."""
        while not done():
            data = self.sock.recv(65536)
            assert data, "closed by the server"
            self.ws.receive_data(data)
            for event in self.ws.events():
                self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case AcceptConnection():
                self.accepted = event
            case Pong():
                self.pongs.append(bytes(event.payload))
            case TextMessage():
                self.texts[-1] += event.data
                if event.message_finished:
                    self.texts.append("")
            case CloseConnection():
                # What wsproto refuses to parse is such an event, too, but doesn't change the state.
                assert self.ws.state is not ConnectionState.OPEN, event.reason
                self.closed = event
            case _:
                raise AssertionError(f"the server sent {event}")

    def answers(self) -> int:
        return sum(text.startswith("SIP/2.0 200 ") for text in self.texts[:-1])

    def say(self, data: bytes, sizes: list[int]) -> None:
        for size in itertools.cycle(sizes):
            if not data:
                return
            self.sock.sendall(data[:size])
            data = data[size:]


@pytest.mark.parametrize("transport", ["ws", "wss"])
def test_a_strict_client_is_understood_and_understands(lab: Lab, transport: str) -> None:
    @settings(
        max_examples=100,
        # To shrink a failure can take minutes, it is short enough.
        phases=(Phase.explicit, Phase.generate),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(CONTROLS, st.lists(SAID, max_size=4), SIZES, CODES, st.sampled_from(["", "bye", "ß€𝄞"]))
    def converse(first: list[Control], said: list[Said], sizes: list[int], code: int | None, reason: str) -> None:
        peer = Peer(transport, lab.target("main", transport))
        with contextlib.closing(peer.sock):
            assert peer.accepted is not None
            assert (peer.accepted.subprotocol, list(peer.accepted.extensions)) == ("sip", [])
            events = [*first, *itertools.chain.from_iterable(message.events(transport) for message in said)]
            # The last one: the connection is still of use.
            events += Said(True, True, [], []).events(transport)
            events.append(Ping(b"last"))
            pings = [bytes(event.payload) for event in events if isinstance(event, Ping)]
            asked = 1 + sum(message.asks for message in said)
            peer.say(b"".join(peer.ws.send(event) for event in events), sizes)
            peer.wait(lambda: peer.answers() == asked and len(peer.pongs) == len(pings))
            assert peer.pongs == pings
            assert len(peer.texts) == asked + 1
            peer.say(peer.ws.send(CloseConnection(code or 1005, reason if code else None)), sizes)
            peer.wait(lambda: peer.closed is not None)
            assert peer.closed is not None
            assert (peer.closed.code, peer.ws.state) == (code or frames.NORMAL, ConnectionState.CLOSED)
            # And then nothing.
            assert peer.sock.recv(65536) == b""

    converse()
