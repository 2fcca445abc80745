"""What the fuzzer of frames throws."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from tests.probe import frames
from tests.probe.drive import generator
from tests.probe.frames import LEGAL, TOO_BIG, VIOLATIONS, FrameExchange

EXCHANGES = 3000


@dataclass
class ServerView:
    """What wsproto as the server has found in the frames of a client."""

    registers: int = 0
    pings: list[bytes] = field(default_factory=list)
    # Of the client's close frame, or of what wsproto would send.
    code: int = 0
    illegal: bool = False


def take(parts: list[bytes]) -> ServerView:
    taken, protocol, body = ServerView(), FrameProtocol(client=False, extensions=[]), b""
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
def exchanges() -> list[FrameExchange]:
    """Return what the fuzzer throws."""
    return [frames.exchange(generator(1, number), f"1-{number}", "ws", "127.0.0.1") for number in range(EXCHANGES)]


def test_what_the_fuzzer_throws_is_as_legal_as_it_says(exchanges: list[FrameExchange]) -> None:
    for number, exchange in enumerate(exchanges):
        # Its limit is the server's own.
        if exchange.code == TOO_BIG:
            continue
        # A head alone is not enough for wsproto.
        taken = take([*exchange.parts, b"\0" if exchange.kind in VIOLATIONS else exchange.farewell])
        if exchange.kind == "is cut off":
            assert taken.registers <= exchange.registers and not taken.illegal, number
        else:
            expected = ServerView(exchange.registers, exchange.pings, exchange.code, exchange.kind in VIOLATIONS)
            assert taken == expected, (number, exchange.kind)


def test_the_fuzzer_throws_all_there_is_and_mostly_legal_frames(exchanges: list[FrameExchange]) -> None:
    kinds = Counter(exchange.kind for exchange in exchanges)
    assert kinds.keys() == {*LEGAL, *VIOLATIONS}
    assert sum(kinds[kind] for kind in set(LEGAL) - {"is cut off"}) > EXCHANGES / 3
