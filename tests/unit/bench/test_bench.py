"""The benchmark's own arithmetic and parsing. No figure of it decides here."""

from __future__ import annotations

import json
import re
import resource
import socket
import threading
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from scripts.bench import load, measure, plot, stream, suite
from scripts.bench import page as pages
from scripts.bench.container import PATCHED, PLAIN, STOCK, configuration
from scripts.bench.figures import (
    BenchmarkReport,
    Curve,
    Figure,
    Rule,
    Threshold,
    machine,
    number,
    quantile,
    rows,
    show,
    spread,
)
from scripts.bench.figures import write as write_outcome
from scripts.bench.load import LoadResult
from scripts.bench.measure import StormResult, checked, is_report, storm_result
from scripts.bench.parts import PARTS
from scripts.bench.stream import TimestampedEvent, frame, marker_of, parse
from scripts.errors import ToolkitError


def event(headers: dict[str, str]) -> bytes:
    body = "".join(f"{name}: {value}\n" for name, value in headers.items()) + "\n"
    return f"Content-Length: {len(body)}\nContent-Type: text/event-plain\n\n{body}".encode()


REPORT = {
    "Event-Name": "CUSTOM",
    "Event-Subclass": "sofia%3A%3Atp_error_report",
    "from-user": "u1",
    "error-name": "NONE",
}


def test_an_event_is_stamped_when_its_last_byte_came() -> None:
    data = event(REPORT) + event({**REPORT, "from-user": "u%202"})
    chunks = [(10, data[:50]), (20, data[50:200]), (30, data[200:])]
    found = list(parse(chunks))
    assert [item.headers["from-user"] for item in found] == ["u1", "u 2"]
    first = len(event(REPORT))
    assert found[0].arrived_ns == (20 if first <= 200 else 30)
    assert found[1].arrived_ns == 30


def test_an_event_at_the_end_of_a_chunk_has_the_stamp_of_that_chunk() -> None:
    found = list(parse([(10, event(REPORT)), (20, event(REPORT))]))
    assert [item.arrived_ns for item in found] == [10, 20]


def test_answers_and_incomplete_events_are_passed_over() -> None:
    reply = b"Content-Type: command/reply\nReply-Text: +OK\n\n"
    assert len(list(parse([(1, reply + event(REPORT) + event(REPORT)[:-3])]))) == 1
    assert not list(parse([]))


def test_a_body_in_the_event_is_not_a_header() -> None:
    inner = "from-user: u1\nContent-Length: 7\n\na: b\nc\n"
    data = f"Content-Length: {len(inner)}\nContent-Type: text/event-plain\n\n{inner}".encode()
    (found,) = parse([(1, data)])
    assert "a" not in found.headers


@pytest.mark.parametrize("cut", [0, 5, 30])
def test_an_incomplete_message_is_no_message(cut: int) -> None:
    assert frame(event(REPORT)[:cut], 0) is None


def test_the_marker_is_in_an_event_once() -> None:
    assert event(REPORT).count(marker_of("sofia::tp_error_report")) == 1


def test_the_reader_stamps_what_comes() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"Content-Type: auth/request\n\n")
            for _ in range(2):
                connection.recv(1000)
                connection.sendall(b"Content-Type: command/reply\nReply-Text: +OK\n\n")
            data = event(REPORT)
            connection.sendall(data[:70])
            connection.sendall(data[70:] + data)
            connection.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    with stream.EventReader(server.getsockname(), "secret", "sofia::tp_error_report") as reader:
        reader.wait(2, silence=10, limit=10)
        assert reader.count == 2
        assert [item.headers["from-user"] for item in reader.take()] == ["u1", "u1"]
        assert reader.take() == []
    server.close()


def test_a_refused_login_is_one_clear_line() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"Content-Type: auth/request\n\n")
            connection.recv(1000)
            connection.sendall(b"Content-Type: command/reply\nReply-Text: -ERR invalid\n\n")

    threading.Thread(target=serve, daemon=True).start()
    with pytest.raises(ToolkitError, match="refuses 'auth': -ERR invalid"):
        stream.Esl("127.0.0.1", server.getsockname()[1], "wrong")
    server.close()


def test_sip_messages_are_split() -> None:
    one = b"SIP/2.0 200 OK\r\nContent-Length: 4\r\n\r\nbody"
    two = b"SIP/2.0 100 Trying\r\nl: 0\r\n\r\n"
    assert load.split(one + b"\r\n\r\n" + two + one[:-1]) == ([one, two], one[:-1])
    assert load.split(b"") == ([], b"")


def test_a_refresh_has_the_call_id_of_the_first_register_and_a_higher_cseq() -> None:
    first, second = (load.register("u1", ("192.0.2.1", 10000), sequence) for sequence in (1, 2))
    assert load.header(first, b"call-id") == load.header(second, b"call-id")
    assert load.header(second, b"cseq") == b"2 REGISTER"
    assert b";transport=tcp>" in load.header(first, b"contact")
    assert load.split(first) == ([first], b"")
    assert load.header(load.options(("192.0.2.1", 10000), 3), b"cseq") == b"3 OPTIONS"


class FakeRegistrar:
    """Answers every request but the first `deaf` ones with `status`; calls are answered, too."""

    def __init__(self, status: str = "200 OK", deaf: int = 0) -> None:
        self.status = status
        self.deaf = iter([True] * deaf)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.target = load.Endpoint(*self.server.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        buffer = b""
        while data := self._receive(connection):
            messages, buffer = load.split(buffer + data)
            for message in messages:
                if not next(self.deaf, False) and not message.startswith(b"ACK"):
                    cseq = load.header(message, b"cseq").decode()
                    call_id = load.header(message, b"call-id").decode()
                    head = f"Call-ID: {call_id}\r\nCSeq: {cseq}\r\nTo: <sip:x>;tag=1\r\nContent-Length: 0\r\n\r\n"
                    connection.sendall(f"SIP/2.0 100 Trying\r\n{head}SIP/2.0 {self.status}\r\n{head}".encode())

    @staticmethod
    def _receive(connection: socket.socket) -> bytes:
        try:
            return connection.recv(65536)
        except ConnectionResetError:
            return b""


def test_an_owner_registers_refreshes_and_closes() -> None:
    registrar = FakeRegistrar()
    with load.LoadGenerator(registrar.target, [load.user(number) for number in range(100)]) as owner:
        assert owner.do("register").answered == 100
        assert owner.do("refresh", 2).answered == 200
        closed = owner.do("finish", 0, [0.001] * 5)
        assert closed == sorted(closed) and len(closed) == 5
        owner.kill()
        with pytest.raises(ToolkitError, match="died"):
            owner.do("refresh", 1)


def test_refused_requests_are_counted_and_then_an_error() -> None:
    with load.LoadGenerator(FakeRegistrar("503 Busy").target, ["u1", "u2"]) as owner:
        pace = owner.do("register")
    assert (pace.answered, pace.refused) == (0, 2)
    with pytest.raises(ToolkitError, match="accepted 0 of 2 requests and refused 2"):
        checked(pace, 2)


def test_lost_requests_are_sent_once_more_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PATIENCE", 0.2)
    registrar = FakeRegistrar(deaf=3)
    clients = load.ClientPool(registrar.target, ["u1", "u2", "u3", "u4", "u5"])
    pace = clients.register()
    assert (pace.answered, pace.refused, pace.repeated) == (5, 0, 3)
    assert clients.refresh().repeated == 0
    clients.finish(0, [0.0] * 5)


def test_answers_that_never_come_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PATIENCE", 0.1)
    monkeypatch.setattr(load, "TIMEOUT", 0.3)
    with pytest.raises(TimeoutError, match=r"1 requests have no answer after 0.3 s, 0 had been answered"):
        load.ClientPool(FakeRegistrar(deaf=1000).target, ["u1"]).register()


def test_a_target_that_does_not_answer_is_an_error() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    address = server.getsockname()
    server.close()
    with (
        load.LoadGenerator(load.Endpoint(*address), ["u1"]) as owner,
        pytest.raises(ToolkitError, match="the load failed"),
    ):
        owner.do("register")


def test_calls_and_probes() -> None:
    registrar = FakeRegistrar()
    assert load.call(registrar.target, 10, 3).answered == 10
    assert load.call(FakeRegistrar("486 Busy").target, 4, 2).refused == 4
    stops = iter([False, False, False, True])
    answers = load.probe(registrar.target, lambda: next(stops), 0)
    assert [method for method, _ in answers] == ["OPTIONS", "REGISTER", "OPTIONS"]
    assert all(seconds is not None for _, seconds in answers)


def test_what_a_storm_lost_and_reported_twice() -> None:
    events = [
        TimestampedEvent({"from-user": name, "error-name": "NONE"}, ns) for name, ns in [("a", 2), ("b", 9), ("b", 5)]
    ]
    found = storm_result(events, ["a", "b", "c"], 1, 0.5, LoadResult(3, 0, 1.0))
    assert (found.lost, found.twice, found.seconds) == (1, 1, 8e-9)
    assert found.per_report == pytest.approx(8e-9 / 3)
    assert storm_result([], ["a"], 1, 0.0, LoadResult(1, 0, 1.0)).lost == 1


def test_what_counts_as_a_report() -> None:
    assert is_report(TimestampedEvent({"error-name": "NONE"}, 1))
    assert is_report(TimestampedEvent({"reason": "socket-disconnection"}, 1))
    assert not is_report(TimestampedEvent({"Event-Subclass": "sofia::unregister"}, 1))


def test_quantiles() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([0, 10], 0.99) == pytest.approx(9.9)
    assert quantile([7], 0.99) == 7
    with pytest.raises(ValueError):
        quantile([], 0.5)


def test_numbers_and_spreads() -> None:
    assert [number(value) for value in (0, 0.01234, 1.2345, 123.45, 12345.6)] == ["0", "0.0123", "1.23", "123", "12346"]
    assert spread([]) == ""
    assert spread([1.5]) == "1.50"
    assert spread([3, 1, 2]) == "2.00 [1.00–3.00]"


@pytest.mark.parametrize(
    ("rule", "limit", "stock", "patched", "met"),
    [
        (Rule.RATIO_AT_MOST, 0.4, [10, 10, 10], [3, 4, 9], True),
        (Rule.RATIO_AT_MOST, 0.4, [10, 10, 10], [3, 5, 9], False),
        (Rule.RATIO_AT_LEAST, 0.98, [100, 100], [99, 98], True),
        (Rule.RATIO_AT_LEAST, 0.98, [100, 100], [97, 98], False),
        (Rule.PATCHED_AT_MOST, 0, [], [0, 0], True),
        (Rule.PATCHED_AT_MOST, 0, [], [1], False),
        (Rule.NOT_HIGHER, 1, [1, 1, 1, 1], [0.9, 1.1, 1.2, 1.3], False),
        (Rule.NOT_HIGHER, 1, [1, 1, 1, 1], [0.9, 0.9, 1.2, 1.3], True),
        (Rule.NOT_LOWER, 1, [1, 1, 1, 1], [0.9, 0.9, 0.9, 1.2], False),
        (Rule.NOT_LOWER, 1, [1, 1, 1, 1], [0.9, 0.9, 1.2, 1.2], True),
        (Rule.RATIO_AT_MOST, 0.4, [], [1], None),
        (Rule.RATIO_AT_MOST, 0.4, [0], [1], None),
        (Rule.PATCHED_AT_MOST, 0, [], [], None),
    ],
)
def test_targets(rule: Rule, limit: float, stock: list[float], patched: list[float], met: bool | None) -> None:
    assert Figure("f", "s", stock, patched, Threshold(rule, limit)).met is met


def test_ratios_are_by_pair_and_no_target_is_neither_met_nor_missed() -> None:
    figure = Figure("f", "s", [1, 2, 0], [2, 1, 5])
    assert figure.ratios == [2, 0.5]
    assert figure.met is None


@pytest.fixture
def outcome() -> BenchmarkReport:
    return BenchmarkReport(
        started="2024-05-06T07:08:09+00:00",
        quick=True,
        machine=machine(),
        images={"stock": "sha256:1", "patched": "sha256:2"},
        figures=[
            Figure("time", "ms", [10, 12], [3, 3], Threshold(Rule.RATIO_AT_MOST, 0.4)),
            Figure("lost", "", [], [1], Threshold(Rule.PATCHED_AT_MOST, 0)),
            Figure("calls", "1/s", [1, 1], [1, 1], Threshold(Rule.NOT_LOWER), "no flag"),
        ],
        curves={
            "latency": [Curve("stock", [1, 2], [0.5, 1]), Curve("patched", [0.1, 0.2], [0.5, 1])],
            "storm": [Curve("stock", [0.1, 0.2], [1, 2]), Curve("stock", [0.1, 0.3], [1, 2])],
            "cost": [Curve("patched", [1000, 2000], [100, 110])],
            "cost-cpu": [Curve("patched", [1000, 2000], [90, 95])],
        },
        seconds=100,
    )


def test_the_table_says_what_is_met(outcome: BenchmarkReport) -> None:
    cells = rows(outcome.figures)
    assert [row[-1] for row in cells] == ["yes", "no", "yes"]
    assert cells[0][4:6] == ["0.275 [0.250–0.300]", "ratio <= 0.4"]
    assert cells[2][2] == "1.00 [1.00–1.00] (no flag)"
    console = Console(record=True, width=80)
    show(outcome, console)
    text = " ".join(console.export_text().split())
    assert "ratio <= 0.4: met" in text and "NOT met" in text


def test_json_has_ratios_and_verdicts(outcome: BenchmarkReport, tmp_path: Path) -> None:
    document = json.loads(write_outcome(outcome, tmp_path / "bench").read_text())
    assert [figure["met"] for figure in document["figures"]] == [True, False, True]
    assert document["figures"][0]["ratios"] == [0.3, 0.25]
    assert document["machine"]["cores"]


def test_a_report_that_cannot_be_written_is_one_clear_line(outcome: BenchmarkReport, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ToolkitError, match="can't write"):
        write_outcome(outcome, tmp_path / "file")


def test_plots_and_page_are_published(outcome: BenchmarkReport, tmp_path: Path) -> None:
    files = plot.draw(outcome, tmp_path / "plots")
    assert {file.name for file in files} == {f"{n}.{f}" for n in ("latency", "storm", "cost") for f in ("png", "svg")}
    text = pages.publish(outcome, files, tmp_path / "docs").read_text()
    for link in re.findall(r"\]\((.*?)\)", text):
        assert (tmp_path / "docs" / link).exists()
    assert "| time | ms | 11.0 [10.0–12.0] |" in text
    assert socket.gethostname() not in text


def test_the_same_curves_give_the_same_picture(outcome: BenchmarkReport, tmp_path: Path) -> None:
    first, second = (plot.draw(outcome, tmp_path / name) for name in ("one", "two"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_no_curves_no_plots(outcome: BenchmarkReport, tmp_path: Path) -> None:
    assert plot.draw(replace(outcome, curves={}), tmp_path / "plots") == []


def test_the_images_differ_in_the_flag_only() -> None:
    stock, plain, patched = (configuration(kind, 5060) for kind in (STOCK, PLAIN, PATCHED))
    assert plain == patched
    assert {name for name in stock if stock[name] != plain[name]} == {"autoload_configs/sofia.conf.xml"}
    assert "tcp-unreg-on-socket-close" in stock["autoload_configs/sofia.conf.xml"]
    for text in stock.values():
        ElementTree.fromstring(text)


def test_an_unknown_part_is_one_clear_line() -> None:
    with pytest.raises(ToolkitError, match="--only nonsense: there is no such part, use idle, latency, "):
        suite._parts("storm,nonsense")
    assert suite._parts("") == list(PARTS)


def test_too_many_connections_for_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(ToolkitError, match="16000 connections need 16256 open files, 4096 are allowed"):
        load.raise_limit(16000)
    load.raise_limit(100)


def test_per_report_of_nothing() -> None:
    assert StormResult(0, 0.0, 0.0, 0, 0, [], LoadResult(0, 0, 0.0)).per_report == 0
    assert measure.SETTLE > 0
