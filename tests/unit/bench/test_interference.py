"""Offenders and the bystanders beside them, as the benchmark has them. No figure of it decides here."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts.bench import interference, load
from scripts.bench import page as pages
from scripts.bench.container import OFFENDED, PATCHED, configuration
from scripts.bench.figures import (
    OFFENDER_HEADINGS,
    BenchmarkReport,
    Figure,
    OffenderImpact,
    OffenderReport,
    Percentiles,
    Sample,
    machine,
)
from scripts.bench.interference import Bystanders, BystanderTimings, OffenderPool
from scripts.bench.measure import sample
from scripts.bench.offenders import CASES, OFFENDERS, STREAMS, Offender, frame
from scripts.bench.stream import TimestampedEvent


def report(user: str, arrived_ns: int, **headers: str) -> TimestampedEvent:
    return TimestampedEvent({"from-user": user, "error-name": "NONE", **headers}, arrived_ns)


def test_marks_are_the_worst_the_99th_percent_and_the_median() -> None:
    marks = Percentiles.of([*range(1, 101), 1000.0])
    assert marks == Percentiles(1000, 100, 51)
    assert marks.over(Percentiles(100, 50, 51)) == Percentiles(10, 2, 1)
    assert str(Percentiles(12.34, 2, 1)) == "12.3 / 2.00 / 1.00"
    with pytest.raises(ValueError):
        Percentiles.of([])


def test_one_hiccup_does_not_change_what_is_usual() -> None:
    assert Percentiles.median_of([Percentiles(1, 1, 1), Percentiles(500, 400, 1), Percentiles(3, 2, 2)]) == Percentiles(
        3, 2, 1
    )


def test_a_sample_has_the_seconds_from_each_death_to_its_report() -> None:
    timings = BystanderTimings([0.5, 0.25], 1, {"a": 1_000_000_000, "b": 2_000_000_000, "c": 3_000_000_000})
    events = [report("b", 2_500_000_000), report("a", 1_250_000_000), report("stranger", 1)]
    found = sample(timings, events)
    assert (found.answers, found.unanswered) == ([0.5, 0.25], 1)
    assert (found.reports, found.lost) == ([0.25, 0.5], 1)


def test_what_is_no_report_is_none() -> None:
    event = TimestampedEvent({"from-user": "a"}, 2_000_000_000)
    assert sample(BystanderTimings([1.0], 0, {"a": 1}), [event]).lost == 1


def test_nothing_is_lost_where_nothing_is_reported() -> None:
    found = sample(BystanderTimings([1.0], 0, {"a": 1}), [], reported=False)
    assert (found.reports, found.lost) == ((), 0)


@pytest.fixture
def offences() -> OffenderReport:
    return OffenderReport(
        count=100,
        window=2.5,
        idle=[Sample([0.002, 0.002], 0, [0.001]), Sample([0.004, 0.004], 0, [0.001]), Sample([0.004], 0, [0.003], 2)],
        stock_idle=[Sample([0.002, 0.001])],
        found=[
            OffenderImpact("half", ("ws", "wss"), Sample([0.008, 0.008], 1, [0.002], 2), Sample([10.0, 0.001], 1)),
            OffenderImpact("none", ("tcp",), Sample([0.004], 0, [], 3)),
        ],
        seconds=300,
    )


def test_rows_are_ratios_to_what_is_usual_beside_nobody(offences: OffenderReport) -> None:
    nobody, half, none = offences.rows()
    ones = "0.500–1.00 / 0.500–1.00 / 0.500–1.00"
    threes = "1.00–3.00 / 1.00–3.00 / 1.00–3.00"
    assert nobody[1:] == ["", "4.00", ones, "1.00", threes, "2", "2.00"]
    twice = "2.00 / 2.00 / 2.00"
    assert half == ["half", "ws, wss", "8.00", twice, "2.00", twice, "3", "10000 (5000 ×, 1 never)"]
    assert none == ["none", "tcp", "4.00", "1.00 / 1.00 / 1.00", "", "", "3", ""]


def test_all_rows_have_a_heading_for_each_cell(offences: OffenderReport) -> None:
    assert {len(row) for row in offences.rows()} == {len(OFFENDER_HEADINGS)}


PAGE = "# Benchmark\n\n## Figures\n\nfigures\n\n## Machine\n\n2 cores\n"
SECTION = "## Offenders\n\nnew \\1\n\n"


def test_a_section_is_put_before_the_machine_and_then_replaced() -> None:
    once = pages.with_section(PAGE, SECTION)
    assert once == PAGE.replace("## Machine", f"{SECTION}## Machine")
    assert pages.with_section(once.replace("new", "old\n\n| old |"), SECTION) == once
    assert pages.with_section("# Other\n", SECTION) == f"# Other\n{SECTION}"


@pytest.fixture
def outcome(offences: OffenderReport) -> BenchmarkReport:
    return BenchmarkReport("2024-05-06T07:08:09+00:00", False, machine(), notes=["Load: 1."], offences=offences)


def test_offenders_alone_leave_the_rest_of_the_page_as_it_is(outcome: BenchmarkReport, tmp_path: Path) -> None:
    (tmp_path / "benchmark.md").write_text(PAGE)
    text = pages.publish(outcome, [], tmp_path).read_text()
    assert text.startswith("# Benchmark\n\n## Figures\n\nfigures\n\n## Offenders\n")
    assert text.endswith("\n\n## Machine\n\n2 cores\n")
    assert "`inv bench --only offenders --docs`" in text and "Load: 1." in text
    assert "| half | ws, wss | 8.00 |" in text
    assert pages.publish(outcome, [], tmp_path).read_text() == text


def test_the_whole_page_has_them_too(outcome: BenchmarkReport, tmp_path: Path) -> None:
    everything = replace(outcome, figures=[Figure("time", "ms", [10], [3])])
    text = pages.publish(everything, [], tmp_path).read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Figures",
        "## Offenders",
        "## Machine",
        "## Method",
    ]
    assert "| time | ms |" in text and "| half | ws, wss |" in text
    assert text.count("Load: 1.") == 1
    assert "Offenders" not in pages.page(replace(everything, offences=None))


def test_every_case_of_the_tests_is_an_offender() -> None:
    names = [offender.name for offender in OFFENDERS]
    assert len(set(names)) == len(names)
    assert {case.name for case in CASES} < set(names)


@pytest.mark.parametrize("offender", OFFENDERS, ids=lambda offender: offender.name)
def test_an_offender_can_be_made_over_each_of_its_transports(offender: Offender) -> None:
    assert set(offender.transports) <= set(STREAMS)
    assert offender.on_stock in ("", *offender.transports)
    assert offender.distribute(5) == [*itertools.islice(itertools.cycle(offender.transports), 5)]
    for transport in offender.transports:
        steps = [*offender.before(transport), *offender.steps(transport)]
        assert all(isinstance(step, bytes | float) for step in steps)
        # Without a pause or a byte it would be an endless loop.
        assert steps or not offender.endless


def test_no_two_connections_send_the_same_request() -> None:
    (offender,) = (item for item in OFFENDERS if item.name == "a request byte by byte")
    first, second = (b"".join(s for s in offender.steps("tcp") if isinstance(s, bytes)) for _ in range(2))
    assert load.header(first, b"call-id") != load.header(second, b"call-id")


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 65536])
def test_a_frame_is_masked(size: int) -> None:
    payload = bytes(number % 251 for number in range(size))
    data = frame(1, payload)
    start = len(data) - size
    key = data[start - 4 : start]
    assert bytes(byte ^ key[place % 4] for place, byte in enumerate(data[start:])) == payload


class FakeSipServer:
    """Keeps what comes over each connection; answers each request, but the first `deaf` ones, with 200."""

    def __init__(self, deaf: int = 0) -> None:
        self.deaf, self.came = deaf, list[bytes]()
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.targets = {"tcp": self._listener.getsockname()}
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        for number in itertools.count():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self.came.append(b"")
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        buffer = b""
        with connection:
            while data := self._receive(connection):
                self.came[number] += data
                messages, buffer = load.split(buffer + data)
                for _ in messages:
                    self.deaf -= 1
                    if self.deaf < 0:
                        connection.sendall(b"SIP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n")

    @staticmethod
    def _receive(connection: socket.socket) -> bytes:
        try:
            return connection.recv(65536)
        except OSError:
            return b""

    def close(self) -> None:
        """End what is endless, too."""
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeSipServer]]:
    servers: list[FakeSipServer] = []

    def start(deaf: int = 0) -> FakeSipServer:
        servers.append(FakeSipServer(deaf))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def soon(done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)
    return done()


def test_others_register_refresh_and_die(serve: Callable[..., FakeSipServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interference, "STREAMS", ("tcp",))
    server = serve()
    bystanders = Bystanders(server.targets)
    before = time.monotonic_ns()
    timings = bystanders.run(0.3)
    lives = len(timings.deaths)
    assert lives == len(server.came) > 1
    assert (len(timings.answers), timings.unanswered) == (interference.REQUESTS * lives, 0)
    assert all(before < moment < time.monotonic_ns() for moment in timings.deaths.values())
    sequences = [load.header(message, b"cseq") for message in load.split(server.came[0])[0]]
    assert sequences == [b"1 REGISTER", b"2 REGISTER", b"3 REGISTER"]
    # Nobody comes twice: a report belongs to one death.
    assert not set(timings.deaths) & set(bystanders.run(0.0).deaths)


def test_others_that_are_not_answered_have_waited(
    serve: Callable[..., FakeSipServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interference, "STREAMS", ("tcp",))
    timings = Bystanders(serve(deaf=1).targets, limit=0.2).run(0.0)
    assert (len(timings.answers), timings.unanswered, timings.deaths) == (1, 1, {})
    assert timings.answers[0] >= 0.2


def test_others_that_cannot_connect_are_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interference, "STREAMS", ("tcp",))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = listener.getsockname()
    timings = Bystanders({"tcp": target}).run(0.0)
    assert (len(timings.answers), timings.unanswered, timings.deaths) == (1, 1, {})


def test_a_crowd_comes_first_and_offends_then(serve: Callable[..., FakeSipServer]) -> None:
    server, offenders = serve(), OffenderPool()
    offenders.connect("half a request, silence", ["tcp"] * 3, server.targets)
    assert soon(lambda: len(server.came) == 3) and server.came == [b""] * 3
    offenders.start()
    assert soon(lambda: server.came == [b"REGISTER sip:"] * 3)


def test_a_crowd_whose_offence_is_to_connect_does_not_come_before(serve: Callable[..., FakeSipServer]) -> None:
    server, offenders = serve(), OffenderPool()
    offenders.connect("connects, silence", ["tcp"] * 2, server.targets)
    assert server.came == []
    offenders.start()
    assert soon(lambda: server.came == [b""] * 2)


def test_an_endless_offender_does_it_again(serve: Callable[..., FakeSipServer]) -> None:
    server, offenders = serve(), OffenderPool()
    offenders.connect("pings of RFC 5626 without end", ["tcp"], server.targets)
    offenders.start()
    once = len(b"\r\n\r\n" * 50)
    assert soon(lambda: sum(map(len, server.came)) > 3 * once)


def test_what_comes_before_is_sent_before(serve: Callable[..., FakeSipServer]) -> None:
    server, offenders = serve(), OffenderPool()
    offenders.connect("never reads its answers", ["tcp"], server.targets)
    assert soon(lambda: [len(load.split(data)[0]) for data in server.came] == [30])


def test_more_than_tcp_is_listened_for_only_where_it_is_wanted() -> None:
    ports = {"tls": 5061, "ws": 5062, "wss": 5063}
    text = configuration(OFFENDED, 5060, ports)["autoload_configs/sofia.conf.xml"]
    values = {node.get("name"): node.get("value") for node in ElementTree.fromstring(text).iter("param")}
    assert (values["tls-sip-port"], values["ws-binding"], values["wss-binding"]) == (
        "5061",
        "127.0.0.1:5062",
        "127.0.0.1:5063",
    )
    assert "wss-binding" not in configuration(PATCHED, 5060)["autoload_configs/sofia.conf.xml"]
