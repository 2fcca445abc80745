"""The ladder diagram out of captured packets."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import WSConnection
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, CloseConnection, Ping, Request, TextMessage

from scripts.errors import ToolkitError
from scripts.freeswitch.capture import Capture
from scripts.freeswitch.events import Event
from scripts.freeswitch.packets import DECODERS, dissect, has_end
from scripts.report import ladder
from scripts.report.ladder import Lane, StepKind
from tests.flows import CLIENT, SERVER, TcpFlow, killed, ms, pcap, request, response

SUBCLASS = "sofia::tp_error_report"


def capture(data: bytes, transport: str = "tcp", **options: Any) -> Capture:
    return Capture(transport, SERVER, pcap=data, **options)


def labels(found: Capture) -> list[list[str]]:
    """The messages of each packet that completes some."""
    return [[message.label for message in packet.messages] for packet in dissect(found) if packet.messages]


def report(at_ms: float, detected_ms: float) -> Event:
    headers = {
        "Event-Subclass": SUBCLASS, "profile-name": "internal", "from-user": "alice", "from-host": "example.test",
        "contact": "<sip:alice@192.0.2.10:40000>", "call-id": "one", "user-agent": "SIPp", "network-ip": CLIENT,
        "network-port": "40000", "transport": "tcp", "error-code": "0", "error-name": "NONE", "error-phrase": "",
        "registrations-left": "0", "close-cause": "peer-closed", "connected-at": "1700000000",
        "registered-at": "1700000000", "detected-at-us": str(ms(detected_ms) // 1000),
    }  # fmt: skip
    return Event(headers, ms(at_ms))


def test_kill_scenario_is_told_in_order() -> None:
    registered = Event({"Event-Subclass": "sofia::register", "from-user": "alice"}, ms(14))
    found = ladder.build(
        capture(killed(), killed_ns=ms(100)), [registered, report(at_ms=103, detected_ms=101.05)], SUBCLASS
    )
    there, back, on = (Lane.CLIENT, Lane.SERVER), (Lane.SERVER, Lane.CLIENT), (Lane.SERVER, Lane.SUBSCRIBER)
    assert [(step.kind, (step.source, step.target), step.label, step.note) for step in found.steps] == [
        (StepKind.TCP, there, "SYN", ""),
        (StepKind.TCP, back, "SYN, ACK", ""),
        (StepKind.SIP, there, "REGISTER (1)", ""),
        (StepKind.SIP, back, "401 Unauthorized (1)", ""),
        (StepKind.SIP, there, "REGISTER (2)", ""),
        (StepKind.SIP, back, "200 OK (2)", ""),
        (StepKind.EVENT, on, "sofia::register", "alice"),
        (StepKind.KILL, (Lane.CLIENT, Lane.CLIENT), "SIGKILL", ""),
        (StepKind.END, there, "FIN, ACK", ""),
        (StepKind.DETECTED, (Lane.SERVER, Lane.SERVER), "end noticed", "detected-at-us"),
        (StepKind.END, back, "FIN, ACK", ""),
        (StepKind.REPORT, on, SUBCLASS, "peer-closed, 0 left"),
    ]
    assert (found.client, found.server) == (f"{CLIENT}:40000", f"{SERVER}:5060")
    assert found.start_ns == ms(0) and found.end_ns == ms(101)
    assert len(found.packets) == 11
    assert found.steps[2].text == request().decode()


def test_end_is_the_clients_and_after_the_kill() -> None:
    wire = TcpFlow().open()
    wire.send(50, "FA", back=True)
    wire.send(60, "R")
    data = pcap(*wire.packets)
    assert ladder.build(capture(data, killed_ns=ms(55)), [], SUBCLASS).end_ns == ms(60)
    assert ladder.build(capture(data, killed_ns=ms(70)), [], SUBCLASS).end_ns is None
    assert ladder.build(capture(data), [], SUBCLASS).end_ns is None


def test_capture_has_the_end_of_a_client_after_the_kill() -> None:
    wire = TcpFlow().open()
    wire.send(50, "FA", back=True)
    assert not has_end(capture(pcap(*wire.packets)))
    wire.send(60, "R")
    assert has_end(capture(pcap(*wire.packets)))
    assert has_end(capture(pcap(*wire.packets), killed_ns=ms(55)))
    assert not has_end(capture(pcap(*wire.packets), killed_ns=ms(70)))
    assert not has_end(capture(b"this is not a capture at all"))


def test_message_in_two_segments_counts_when_it_is_complete() -> None:
    wire, data = TcpFlow().open(), request(body=b"v=0\r\n")
    wire.send(1, "A", data[:100])
    wire.send(2, "PA", data[100:])
    found = list(dissect(capture(pcap(*wire.packets))))
    assert [len(packet.messages) for packet in found] == [0, 0, 0, 0, 1]
    assert found[-1].messages[0].text == data.decode()


def test_two_messages_and_a_keep_alive_in_one_segment() -> None:
    wire = TcpFlow().open()
    wire.send(1, "PA", request() + b"\r\n\r\n" + request(cseq=2))
    assert labels(capture(pcap(*wire.packets))) == [["REGISTER (1)", "keep-alive", "REGISTER (2)"]]


@pytest.mark.parametrize("sequence", [1000, 2**32 - 100])
def test_segments_out_of_order_and_again(sequence: int) -> None:
    wire, data = TcpFlow(sequence=sequence).open(), request()
    first = wire.send(1, "A", data[:50])
    second = wire.send(2, "A", data[50:150])
    third = wire.send(3, "PA", data[150:])
    again = copy.deepcopy(first)
    again.time = ms(4) / 1e9
    sent = [*wire.packets[:3], second, first, third, again]
    found = list(dissect(capture(pcap(*sent))))
    assert [[message.text for message in packet.messages] for packet in found[3:]] == [[], [], [data.decode()], []]
    assert [packet.again for packet in found] == [False] * 6 + [True]
    steps = ladder.build(capture(pcap(*sent)), [], SUBCLASS).steps
    assert [(step.label, step.note) for step in steps if step.note] == [("50 bytes", "sent again")]


def test_bytes_that_are_no_sip_are_counted() -> None:
    wire = TcpFlow().open()
    wire.send(1, "PA", b"\x00\x01\x02")
    wire.send(2, "PA", b"GET / HTTP/1.1\r\n\r\n")
    wire.send(3, "PA", request())
    assert labels(capture(pcap(*wire.packets))) == [["3 bytes, no SIP"], ["18 bytes, no SIP"], ["REGISTER (1)"]]


def test_length_that_nobody_sends_is_not_waited_for() -> None:
    wire = TcpFlow().open()
    wire.send(1, "PA", request().replace(b"Content-Length: 0", b"Content-Length: 999999999"))
    wire.send(2, "PA", request(cseq=2))
    assert [found[0].endswith("no SIP") for found in labels(capture(pcap(*wire.packets)))] == [True, False]


def test_padding_is_no_payload() -> None:
    wire = TcpFlow().open()
    padded = wire.packets[2] / (b"\0" * 6)
    padded.time = wire.packets[2].time
    assert [packet.length for packet in dissect(capture(pcap(*wire.packets[:2], padded)))] == [0, 0, 0]


def test_only_the_packets_of_the_case() -> None:
    wire, other = TcpFlow().open(100), TcpFlow(client="192.0.2.11", port=40001).open(101)
    data = pcap(*wire.packets, *other.packets, *TcpFlow().open(200).packets)
    window: dict[str, Any] = {"began_ns": ms(99), "ended_ns": ms(150)}
    assert len(list(dissect(capture(data)))) == 9
    assert len(list(dissect(capture(data, **window)))) == 6
    assert len(list(dissect(capture(data, client=CLIENT, **window)))) == 3
    several = ladder.build(capture(data, **window), [], SUBCLASS).steps
    assert [step.note for step in several] == ["port 40000"] * 2 + ["port 40001"] * 2


def test_ipv6() -> None:
    wire = TcpFlow(client="2001:db8::10", server="2001:db8::1").open()
    wire.send(1, "PA", request())
    found = ladder.build(Capture("tcp", "2001:db8::1", pcap=pcap(*wire.packets)), [], SUBCLASS)
    assert (found.client, found.server) == ("[2001:db8::10]:40000", "[2001:db8::1]:5060")
    assert [step.label for step in found.steps] == ["SYN", "SYN, ACK", "REGISTER (1)"]


def test_tls_records() -> None:
    wire = TcpFlow().open()
    hello = b"\x16\x03\x01\x00\x10" + bytes(16)
    wire.send(1, "PA", hello + b"\x17\x03\x03\x00\x08" + bytes(4))
    wire.send(2, "PA", bytes(4) + b"\x15\x03\x03\x00\x02\x01\x00")
    wire.send(3, "PA", b"plain text")
    assert labels(capture(pcap(*wire.packets), "tls")) == [
        ["TLS handshake, 16"],
        ["TLS application data, 8", "TLS alert, 2"],
        ["10 bytes, no TLS"],
    ]


@pytest.mark.parametrize("pieces", [1, 7])
def test_sip_in_websocket_frames(pieces: int) -> None:
    client, server = WSConnection(ConnectionType.CLIENT), WSConnection(ConnectionType.SERVER)
    wire = TcpFlow().open()

    def send(at_ms: float, data: bytes, back: bool = False) -> None:
        (client if back else server).receive_data(data)
        list((client if back else server).events())
        for start in range(0, len(data), -(-len(data) // pieces)):
            wire.send(at_ms, "PA", data[start : start + -(-len(data) // pieces)], back=back)

    send(1, client.send(Request(host=SERVER, target="/", subprotocols=["sip"])))
    send(2, server.send(AcceptConnection(subprotocol="sip")), back=True)
    send(3, client.send(TextMessage(request().decode())))
    send(4, server.send(TextMessage(response().decode())), back=True)
    send(5, client.send(Ping()))
    send(6, client.send(CloseConnection(1000)))
    assert labels(capture(pcap(*wire.packets), "ws")) == [
        ["GET /"],
        ["101 Switching Protocols"],
        ["REGISTER (1)"],
        ["200 OK (1)"],
        ["WebSocket ping"],
        ["WebSocket close 1000"],
    ]


def test_broken_websocket_frame() -> None:
    wire = TcpFlow().open()
    wire.send(1, "PA", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    wire.send(2, "PA", b"\xff" * 20)
    assert labels(capture(pcap(*wire.packets), "ws")) == [["GET /"], ["broken frame"]]


def test_file_that_was_cut_off_counts_up_to_there() -> None:
    whole = killed()
    assert len(list(dissect(capture(whole[:-3])))) == len(list(dissect(capture(whole)))) - 1


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Capture("tcp", SERVER, problem="nothing was captured: no tcpdump"), "nothing was captured: no tcpdump"),
        (Capture("tcp", SERVER, pcap=pcap(*TcpFlow().open().packets)[:24]), "tcpdump ran, and saw no packet"),
        (Capture("tcp", "192.0.2.99", pcap=killed()), "tcpdump ran, and saw no packet"),
        (Capture("tcp", SERVER, pcap=b"this is not a capture at all"), "the capture can't be read: "),
        (Capture("tcp", SERVER, pcap=b""), "the capture can't be read: "),
    ],
)
def test_nothing_to_draw_is_one_line(found: Capture, message: str) -> None:
    with pytest.raises(ToolkitError) as caught:
        ladder.build(found, [], SUBCLASS)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_report_with_missing_headers_says_so() -> None:
    event = Event({"Event-Subclass": SUBCLASS}, ms(103))
    found = ladder.build(capture(killed()), [event], SUBCLASS)
    assert found.steps[-1].kind is StepKind.REPORT and "has no header profile-name" in found.steps[-1].note


@settings(max_examples=60, deadline=None)
@given(
    transport=st.sampled_from(sorted(DECODERS)),
    payloads=st.lists(st.one_of(st.binary(min_size=1, max_size=300), st.just(request()), st.just(response()))),
    cut=st.integers(0, 60),
)
def test_nothing_that_is_sent_breaks_it(transport: str, payloads: list[bytes], cut: int) -> None:
    wire = TcpFlow().open()
    for number, payload in enumerate(payloads):
        wire.send(number + 1, "PA", payload, back=number % 3 == 2)
    data = pcap(*wire.packets)
    assert ladder.build(capture(data[: len(data) - cut], transport), [], SUBCLASS).steps


def test_scapy_is_silent() -> None:
    assert not logging.getLogger("scapy").isEnabledFor(logging.ERROR)
