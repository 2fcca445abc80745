"""The event socket client, against a small server that speaks the wire format."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable

import pytest

from scripts.errors import ToolkitError
from scripts.freeswitch import events
from scripts.freeswitch.events import ConnectionLost, Event, Subscriber, Unreachable, parse
from tests.conftest import PATIENCE
from tests.event_socket import PASSWORD, REPORT, FakeEventSocket, event, message, serving, wire


def subscriber(port: int, password: str = PASSWORD, timeout: float = 2.0) -> Subscriber:
    return Subscriber("127.0.0.1", port, password, ["sofia::tp_error_report", "sofia::register"], timeout)


def use(server: FakeEventSocket, action: Callable[[Subscriber], Awaitable[None]], **options: object) -> None:
    async def main() -> None:
        async with serving(server) as port, subscriber(port, **options) as client:  # type: ignore[arg-type]
            await action(client)

    asyncio.run(main())


def test_event_is_decoded_and_stamped_on_arrival() -> None:
    async def script(server: FakeEventSocket) -> None:
        await server.send(wire(REPORT))

    async def action(client: Subscriber) -> None:
        before = time.time_ns()
        got = await client.get(2)
        assert got.headers == REPORT
        assert before - 1e9 < got.arrived_ns <= time.time_ns()
        assert got.subclass == "sofia::tp_error_report"

    server = FakeEventSocket(script)
    use(server, action)
    assert server.commands[1] == "event plain CUSTOM sofia::tp_error_report sofia::register"


def test_stamp_is_taken_before_the_event_is_fetched() -> None:
    async def script(server: FakeEventSocket) -> None:
        await server.send(wire(REPORT))

    async def action(client: Subscriber) -> None:
        await asyncio.sleep(0.2)
        fetched_ns = time.time_ns()
        assert (await client.get(2)).arrived_ns < fetched_ns - 50_000_000

    use(FakeEventSocket(script), action)


def test_events_keep_their_order_also_in_pieces() -> None:
    async def script(server: FakeEventSocket) -> None:
        data = b"".join(wire(REPORT | {"call-id": str(number)}) for number in range(50))
        for start in range(0, len(data), 777):
            await server.send(data[start : start + 777])
            await asyncio.sleep(0)

    async def action(client: Subscriber) -> None:
        assert [(await client.get(2)).get("call-id") for _ in range(50)] == [str(number) for number in range(50)]

    use(FakeEventSocket(script), action)


def test_api_returns_the_whole_answer() -> None:
    async def action(client: Subscriber) -> None:
        assert await client.api("sofia status") == "you said api sofia status\n\nand more\n"

    use(FakeEventSocket(), action)


def test_answer_that_is_not_utf8_ends_nothing() -> None:
    async def action(client: Subscriber) -> None:
        assert await client.api("bytes") == "caf\ufffd \ufffd"
        assert await client.api("version") == "you said api version\n\nand more\n"

    use(FakeEventSocket(), action)


def test_get_times_out() -> None:
    async def action(client: Subscriber) -> None:
        with pytest.raises(TimeoutError):
            await client.get(0.05)

    use(FakeEventSocket(), action)


@pytest.mark.parametrize(
    ("mode", "password", "kind", "words"),
    [
        ("", "wrong", ToolkitError, "refuses the password"),
        ("acl", PASSWORD, ToolkitError, "ACL"),
        ("close", PASSWORD, Unreachable, "closed the connection before the login"),
        ("silent", PASSWORD, Unreachable, "no answer"),
        ("blank", PASSWORD, Unreachable, "sent more than 100 blank lines in a row: is it an event socket"),
    ],
)
def test_refused_login_is_one_clear_line(mode: str, password: str, kind: type[ToolkitError], words: str) -> None:
    async def action(client: Subscriber) -> None:
        raise AssertionError("must not get here")

    start = time.monotonic()
    with pytest.raises(ToolkitError, match=words) as caught:
        use(FakeEventSocket(mode=mode), action, password=password, timeout=0.5)
    assert type(caught.value) is kind
    assert "127.0.0.1:" in str(caught.value) and "\n" not in str(caught.value)
    assert time.monotonic() - start < PATIENCE


def test_messages_without_end_let_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "TURN", -1)

    async def main() -> None:
        reader, ran = asyncio.StreamReader(), asyncio.Event()
        reader.feed_data(b"x: 1\n\n" * 10)
        bounded = events._BoundedReader(reader)
        asyncio.get_running_loop().call_soon(ran.set)
        for _ in range(10):
            await bounded.readline()
        assert ran.is_set()

    asyncio.run(main())


def test_nobody_listening_names_address_and_reason() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        async def main() -> None:
            async with subscriber(port):
                pass

        with pytest.raises(Unreachable, match=rf"127\.0\.0\.1:{port}: Connection refused"):
            asyncio.run(main())


@pytest.mark.parametrize("host", ["[192.0.2", "nosuch..invalid"])
def test_a_name_that_is_none_is_said_to_be(host: str) -> None:
    async def main() -> None:
        async with Subscriber(host, 8021, PASSWORD, ["sofia::register"], 20):
            pass

    with pytest.raises(Unreachable, match="check the name of the host"):
        asyncio.run(main())


@pytest.mark.parametrize("password", ["", "a\nexit", "a\r"])
def test_password_that_would_break_the_protocol_is_refused(password: str) -> None:
    with pytest.raises(ToolkitError, match="password"):
        subscriber(1, password)


@pytest.mark.parametrize("last", [b"", wire(REPORT)[:-40], b"Content-Length: x\n\n"])
def test_lost_connection_comes_after_the_events_before_it(last: bytes) -> None:
    async def script(server: FakeEventSocket) -> None:
        await server.send(wire(REPORT) + last)
        server.writer.close()

    async def action(client: Subscriber) -> None:
        assert (await client.get(2)).get("from-user") == "alice"
        for _ in range(2):
            with pytest.raises(ConnectionLost, match="lost the event socket at 127"):
                await client.get(2)

    use(FakeEventSocket(script), action)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        pytest.param(wire({f"x-{number}": "1" for number in range(5000)}), "more than 4000 headers", id="headers"),
        pytest.param(message(b"x: 1\nand more\n\n"), "more than one line", id="continued"),
        pytest.param(message(b"x: " + b"%" * 60_000 + b"\n" + b"a\n" * 3900), "more than one line", id="unquoted"),
        pytest.param(message(b"x: " + b"a\r" * 500_000), "more than one line", id="other ends of lines"),
        pytest.param(message(b"x: 1\x0b" * 5000 + b"\n\n"), "more than 4000 headers", id="many ends of lines"),
        pytest.param(message(b"x: 1\n" * 5000 + b"\n", b"command/reply"), "more than 4000 headers", id="reply"),
        pytest.param(message(b"x: 1\n" * 5000 + b"\n", b" text%2Fevent-plain"), "more than 4000", id="quoted type"),
        pytest.param((b"x: 1\n" * 3000 + b" \n") * 2, "more than one line", id="no end"),
        pytest.param((b"x: 1\n" * 3000 + b"\r\n") * 2, "more than one line", id="other end"),
        pytest.param(b"x: 1\n" * 5000 + b"\n", "more than 4000 headers", id="own headers"),
        pytest.param(b"\r\n" * 101, "more than 100 blank lines", id="blank lines"),
        pytest.param(wire({"x": "1" * (1 << 20)}), "1048576 bytes", id="long"),
        pytest.param(
            b"Content-Type: text/event-plain\nContent-Length: 99999999999\n\n", "message of 99999999999", id="length"
        ),
    ],
)
def test_event_that_no_freeswitch_sends_ends_the_connection(last: bytes, words: str) -> None:
    """What takes such headers apart needs a time that grows with their square."""

    async def script(server: FakeEventSocket) -> None:
        await server.send(wire(REPORT) + last)

    async def action(client: Subscriber) -> None:
        assert (await client.get(10)).get("from-user") == "alice"
        with pytest.raises(ConnectionLost, match=words):
            await client.get(10)

    use(FakeEventSocket(script), action)


def test_answer_is_not_looked_at() -> None:
    """It may have as many lines as it likes, whatever came before."""
    answer = b"Content-Type: text/event-plain\n\n" + b"no header\r" * 10_000

    async def script(server: FakeEventSocket) -> None:
        await server.send(b"Content-Type: text/event-plain\n\n" + message(answer, b"api/response") + wire(REPORT))

    async def action(client: Subscriber) -> None:
        assert (await client.get(10)).get("from-user") == "alice"

    use(FakeEventSocket(script), action)


def test_event_of_a_call_with_many_variables_is_taken() -> None:
    many = {"Event-Name": "CHANNEL_ANSWER"} | {f"variable_x{number}": "y" * 100 for number in range(1000)}

    async def script(server: FakeEventSocket) -> None:
        await server.send(wire(many))

    async def action(client: Subscriber) -> None:
        assert dict((await client.get(10)).headers) == many

    use(FakeEventSocket(script), action)


def test_disconnect_notice_is_a_lost_connection() -> None:
    async def script(server: FakeEventSocket) -> None:
        await server.notice()

    async def action(client: Subscriber) -> None:
        with pytest.raises(ConnectionLost):
            await client.get(2)

    use(FakeEventSocket(script), action)


@pytest.mark.parametrize(("command", "words"), [("die", "lost"), ("hang", "didn't answer 'api hang'")])
def test_command_without_an_answer_does_not_hang(command: str, words: str) -> None:
    async def action(client: Subscriber) -> None:
        with pytest.raises(ConnectionLost, match=words):
            await client.api(command)
        with pytest.raises(ConnectionLost):
            await client.api("status")

    use(FakeEventSocket(), action, timeout=0.3)


def test_parse_takes_every_header() -> None:
    report = parse(event())
    assert (report.from_user, report.from_host, report.call_id) == ("alice", "example.test", "1-15@192.0.2.7")
    assert (report.network_ip, report.network_port, report.transport) == ("192.0.2.7", 41179, "tcp")
    assert (report.error_code, report.error_name, report.close_cause) == (104, "ECONNRESET", "reset")
    assert (report.connected_at, report.registered_at) == (1795406415, 1795406416)
    assert report.offline
    assert not parse(event(registrations_left="2")).offline
    assert parse(event(user_agent="_undef_")).user_agent == ""


@pytest.mark.parametrize("name", [name for name in REPORT if name.islower()])
def test_parse_names_the_missing_header(name: str) -> None:
    with pytest.raises(ToolkitError, match=f"has no header {name}:"):
        parse(event(**{name: None}))


@pytest.mark.parametrize(
    ("value", "calls"), [(None, ()), ("one", ("one",)), ("ARRAY::one|:two|:three", ("one", "two", "three"))]
)
def test_calls_of_a_report(value: str | None, calls: tuple[str, ...]) -> None:
    changes = {"calls": str(len(calls)), "call_uuids": value} if value else {}
    report = parse(event(**changes))
    assert (report.calls, report.call_uuids) == (len(calls), calls)


@pytest.mark.parametrize(
    "change",
    [
        {"network_port": "0"},
        {"network_port": "65536"},
        {"network_port": "x"},
        {"transport": "udp"},
        {"close_cause": "whatever"},
        {"registrations_left": "-1"},
        {"detected_at_us": "1.5"},
        {"detected_at_us": "9" * 30},
        {"detected_at_us": "9" * 5000},
        {"detected_at_us": "999999999999999999"},
        {"error_code": "0"},
        {"error_name": "NONE"},
        {"from_user": "_undef_"},
        {"from_user": ["alice", "bob"]},
        {"calls": "2", "call_uuids": "one"},
        {"calls": "x"},
    ],
)
def test_parse_refuses_what_cannot_be(change: dict[str, str]) -> None:
    name = next(iter(change)).replace("_", "-")
    with pytest.raises(ToolkitError, match=name if name != "error-code" else "error-code 0"):
        parse(event(**change))


def test_password_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ToolkitError, match="the password is not UTF-8"):
        Subscriber("127.0.0.1", 1, os.fsdecode(b"\xff"), [])


def test_delay_is_in_milliseconds() -> None:
    assert events.delay_ms(parse(event()), 1795406420125456000) == pytest.approx(2.0, abs=0.01)


def test_order_is_that_of_each_user_and_begins_anew_with_a_restart() -> None:
    def event(sequence: str, user: str = "alice", core: str = "one", subclass: str = "sofia::register") -> Event:
        return Event(
            REPORT | {"Event-Sequence": sequence, "from-user": user, "Core-UUID": core, "Event-Subclass": subclass}, 0
        )

    order = events.Order(limit=2)
    assert order.later(event("9")) == ""
    assert order.later(event("8", subclass="sofia::tp_error_report")) == "sofia::register"
    assert order.later(event("8", user="bob")) == order.later(event("10")) == ""
    assert order.later(event("1", core="two")) == ""
    # What is no number says nothing, and who has been quiet for long is forgotten.
    assert (
        order.later(event("x", core="two"))
        == order.later(event("2", "bob", "two"))
        == order.later(event("3", "carol", "two"))
        == ""
    )
    assert order.later(event("0", core="two")) == ""
    expired = {"Event-Subclass": "sofia::expire", "Event-Sequence": "1", "Core-UUID": "two", "profile-name": "internal"}
    assert order.later(Event(expired | {"user": "carol", "host": "example.test"}, 0)) == "sofia::register"
