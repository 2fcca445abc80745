"""Frames of WebSocket between FreeSWITCH and another implementation of RFC 6455, wsproto."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass

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

from scripts.bench.offenders import options
from scripts.freeswitch.sip import CONTEXT
from scripts.scenario.lab import Lab
from tests.probe import frames

# Generous: a busy machine is not a fault.
WAIT = 20.0


Control = Ping | Pong
CONTROLS = st.lists(
    st.builds(Ping, payload=st.binary(max_size=125)) | st.builds(Pong, payload=st.binary(max_size=125)), max_size=3
)


@dataclass
class ClientMessage:
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
    ClientMessage,
    st.booleans(),
    st.sampled_from([True, True, False]),
    st.lists(st.integers(0, 400), max_size=6),
    st.lists(CONTROLS, max_size=7),
)
# Of the segments, or of the records of TLS, in turn.
SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=5) | st.just([1 << 20])
CODES = st.sampled_from(frames.CODES) | st.none()


class WsprotoClient:
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
    def converse(
        first: list[Control], said: list[ClientMessage], sizes: list[int], code: int | None, reason: str
    ) -> None:
        peer = WsprotoClient(transport, lab.target("main", transport))
        with contextlib.closing(peer.sock):
            assert peer.accepted is not None
            assert (peer.accepted.subprotocol, list(peer.accepted.extensions)) == ("sip", [])
            events = [*first, *itertools.chain.from_iterable(message.events(transport) for message in said)]
            # The last one: the connection is still of use.
            events += ClientMessage(True, True, [], []).events(transport)
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
