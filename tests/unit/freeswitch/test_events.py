"""The event socket client, against a small server that speaks the wire format."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from urllib.parse import quote

import pytest

from scripts.errors import ToolkitError
from scripts.freeswitch import events
from scripts.freeswitch.events import ConnectionLost, Event, Subscriber, Unreachable, parse
from scripts.machine.files import ROOT
from tests.conftest import PATIENCE

PASSWORD = "s3cret"
REPORT = {
    "Event-Subclass": "sofia::tp_error_report",
    "Event-Name": "CUSTOM",
    "Core-UUID": "2b3c",
    "profile-name": "internal",
    "from-user": "alice",
    "from-host": "example.test",
    "contact": '"Alice B." <sip:alice@192.0.2.7:5060;transport=TCP>',
    "call-id": "1-15@192.0.2.7",
    "user-agent": "SIPp",
    "network-ip": "192.0.2.7",
    "network-port": "41179",
    "transport": "tcp",
    "error-code": "104",
    "error-name": "ECONNRESET",
    "error-phrase": "Connection reset by peer",
    "registrations-left": "0",
    "close-cause": "reset",
    "connected-at": "1795406415",
    "registered-at": "1795406416",
    "detected-at-us": "1795406420123456",
}


def wire(headers: dict[str, str], body: str = "") -> bytes:
    """Return an event as mod_event_socket sends it: URL-encoded values."""
    lines = [f"{key}: {quote(value, safe='/@.;=-<> ') or '_undef_'}" for key, value in headers.items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    text = "\n".join(lines) + "\n\n" + body
    return f"Content-Length: {len(text)}\nContent-Type: text/event-plain\n\n{text}".encode()


def message(content: bytes, kind: bytes = b"text/event-plain") -> bytes:
    """Return a message of the type `kind`."""
    return b"Content-Type: %b\nContent-Length: %d\n\n%b" % (kind, len(content), content)


class FakeEventSocket:
    """A FreeSWITCH of a few lines. `script` is run after the subscription."""

    def __init__(self, script: Callable[[FakeEventSocket], Awaitable[None]] | None = None, mode: str = "") -> None:
        self.script = script
        self.mode = mode
        self.commands: list[str] = []
        self.writer: asyncio.StreamWriter

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._talk(reader)
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader) -> None:
        if self.mode == "acl":
            await self.send(b"Content-Type: text/rude-rejection\nContent-Length: 24\n\nAccess Denied, go away.\n")
            return
        if self.mode == "close":
            return
        if self.mode == "silent":
            await reader.read()
            return
        if self.mode == "blank":
            await self.flood(b"\n")
        await self.send(b"Content-Type: auth/request\n\n")
        while command := (await reader.readuntil(b"\n\n")).decode().strip():
            self.commands.append(command)
            if command.startswith("auth "):
                if command != f"auth {PASSWORD}":
                    await self.send(b"Content-Type: command/reply\nReply-Text: -ERR invalid\n\n")
                    await self.notice()
                    return
                await self.send(b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
            elif command.startswith("event "):
                await self.send(b"Content-Type: command/reply\nReply-Text: +OK event listener enabled plain\n\n")
                if self.script:
                    await self.script(self)
            elif command == "api hang":
                pass
            elif command == "api die":
                return
            elif command == "api bytes":
                await self.send(b"Content-Type: api/response\nContent-Length: 7\n\ncaf\xe9 \xe2\x82")
            else:
                body = f"you said {command}\n\nand more\n"
                await self.send(f"Content-Type: api/response\nContent-Length: {len(body)}\n\n{body}".encode())

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def flood(self, data: bytes) -> None:
        """Send `data` without end."""
        while True:
            await self.send(data * 10_000)

    async def notice(self) -> None:
        await self.send(b"Content-Type: text/disconnect-notice\nContent-Length: 14\n\nDisconnected.\n")


@contextlib.asynccontextmanager
async def serving(server: FakeEventSocket) -> AsyncIterator[int]:
    async with await asyncio.start_server(server.handle, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]


@contextlib.contextmanager
def serving_thread(server: FakeEventSocket) -> Iterator[int]:
    """Serve from a thread, for a client that is a process of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    listener = asyncio.run_coroutine_threadsafe(asyncio.start_server(server.handle, "127.0.0.1", 0), loop).result()
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(listener.close)
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def subscriber(port: int, password: str = PASSWORD, timeout: float = 2.0) -> Subscriber:
    return Subscriber("127.0.0.1", port, password, ["sofia::tp_error_report", "sofia::register"], timeout)


def use(server: FakeEventSocket, action: Callable[[Subscriber], Awaitable[None]], **options: object) -> None:
    async def main() -> None:
        async with serving(server) as port, subscriber(port, **options) as client:  # type: ignore[arg-type]
            await action(client)

    asyncio.run(main())


def event(**changes: str | list[str] | None) -> Event:
    headers: dict[str, str | list[str]] = dict(REPORT)
    for key, value in changes.items():
        name = key.replace("_", "-")
        if value is None:
            del headers[name]
        else:
            headers[name] = value
    return Event(headers, 1795406420125456000)


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
    ],
)
def test_parse_refuses_what_cannot_be(change: dict[str, str]) -> None:
    name = next(iter(change)).replace("_", "-")
    with pytest.raises(ToolkitError, match=name if name != "error-code" else "error-code 0"):
        parse(event(**change))


def test_far_end_cannot_rule_the_terminal() -> None:
    with pytest.raises(ToolkitError, match=r"network-port '\\x1b\[2J' is not") as caught:
        parse(event(network_port="\x1b[2J"))
    assert str(caught.value).isprintable()
    cells = events._cells(parse(event(from_user="al\x1b[2Jice\x9b\u202e", from_host="h\n")), 0)
    assert cells[1] == "al\\x1b[2Jice\\x9b\\u202e@h\\n"


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1", "9" * 5000])
def test_port_that_is_none(port: str) -> None:
    with pytest.raises(ToolkitError, match="is not a port"):
        events.parse_port(port, "--port")


def test_password_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ToolkitError, match="the password is not UTF-8"):
        Subscriber("127.0.0.1", 1, os.fsdecode(b"\xff"), [])


def test_delay_is_in_milliseconds() -> None:
    assert events.delay_ms(parse(event()), 1795406420125456000) == pytest.approx(2.0, abs=0.01)


def test_watch_wants_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESL_PASSWORD", raising=False)
    with pytest.raises(ToolkitError, match="--password or set ESL_PASSWORD"):
        events.watch("127.0.0.1", 8021, "sofia::tp_error_report")


WATCH = """
import sys
from scripts import errors
from scripts.freeswitch import events
try:
    events.watch("127.0.0.1", int(sys.argv[1]), "sofia::tp_error_report", "", sys.argv[2] == "json")
except errors.ToolkitError as error:
    sys.exit(f"error: {error}")
"""


def said(errors: str) -> list[str]:
    """Return the lines of `errors` that are not asyncio's, which in debug mode tells what took long."""
    return [line for line in errors.splitlines() if not line.startswith("Executing <")]


def start_watch(port: int, mode: str) -> subprocess.Popen[str]:
    # No COVERAGE, OTEL_ or GENESIS_ variable of the caller may colour the output.
    environment = {"PATH": os.environ["PATH"], "ESL_PASSWORD": PASSWORD, "COLUMNS": "140"}
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", WATCH, str(port), mode],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_watch_prints_json_lines_at_once_and_ends_with_ctrl_c() -> None:
    async def script(server: FakeEventSocket) -> None:
        await server.send(wire(REPORT) + wire(REPORT | {"from-user": "bob"}))

    with serving_thread(FakeEventSocket(script)) as port:
        process = start_watch(port, "json")
        assert process.stdout
        assert [json.loads(process.stdout.readline()) for _ in range(2)] == [REPORT, REPORT | {"from-user": "bob"}]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "")
    assert said(err) == [f"watching 127.0.0.1:{port} for sofia::tp_error_report, Ctrl-C ends"]


def start_task(port: int) -> subprocess.Popen[str]:
    """Start `inv watch`."""
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-m", "invoke", "watch", f"--port={port}", "--json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "ESL_PASSWORD": PASSWORD},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("sent", ["nothing", "others", "reports"])
def test_watch_that_is_terminated(sent: str) -> None:
    """Also in the middle of a flood of events, and if nobody takes what it prints."""

    async def script(server: FakeEventSocket) -> None:
        await server.send(wire(REPORT))
        if sent != "nothing":
            await server.flood(wire(REPORT | ({"Event-Subclass": "sofia::register"} if sent == "others" else {})))

    with serving_thread(FakeEventSocket(script)) as port:
        process = start_task(port)
        assert process.stdout and process.stdout.readline() and process.stderr
        time.sleep(1)
        process.terminate()
        assert process.wait(timeout=PATIENCE) == 143
        err = process.stderr.read()
        process.communicate()
    assert said(err) == [f"watching 127.0.0.1:{port} for sofia::tp_error_report, Ctrl-C ends", "terminated"]


def test_watch_prints_rows_and_says_that_the_connection_is_lost() -> None:
    # Its age must fit into the column.
    report = REPORT | {"detected-at-us": str(time.time_ns() // 1000)}
    broken = {key: value for key, value in report.items() if key != "call-id"}

    async def script(server: FakeEventSocket) -> None:
        two_left = report | {"registrations-left": "2", "error-code": "0", "error-name": "NONE"}
        await server.send(wire(report) + wire(broken) + wire(two_left | {"close-cause": "peer-closed"}))
        server.writer.close()

    with serving_thread(FakeEventSocket(script)) as port:
        process = start_watch(port, "table")
        out, err = process.communicate(timeout=10)
    header, first, second = out.splitlines()
    assert header.split()[:2] == ["time", "user"]
    assert first.split()[1:7] == ["alice@example.test", "192.0.2.7:41179", "tcp", "reset", "ECONNRESET", "offline"]
    assert second.split()[3:8] == ["tcp", "peer-closed", "-", "2", "left"]
    assert process.returncode == 1
    _, missing, lost = said(err)
    assert "has no header call-id" in missing
    assert lost.startswith(f"error: lost the event socket at 127.0.0.1:{port}")


def test_watch_calls_nobody_offline_who_has_registered_again_by_then() -> None:
    report = REPORT | {"detected-at-us": str(time.time_ns() // 1000)}
    register = {key: report[key] for key in ("Event-Name", "Core-UUID", "profile-name", "from-user", "from-host")}
    register |= {"Event-Subclass": "sofia::register"}

    async def script(server: FakeEventSocket) -> None:
        # Made after the first report and before the second one, and delivered before both.
        await server.send(wire(register | {"Event-Sequence": "21"}))
        await server.send(wire(report | {"Event-Sequence": "20"}) + wire(report | {"Event-Sequence": "22"}))
        server.writer.close()

    with serving_thread(FakeEventSocket(script)) as port:
        out, _ = start_watch(port, "table").communicate(timeout=10)
    assert [line.split()[6] for line in out.splitlines()[1:]] == ["back", "offline"]


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


def test_watch_ends_when_its_reader_does() -> None:
    async def script(server: FakeEventSocket) -> None:
        for _ in range(100):
            await server.send(wire(REPORT))
            await asyncio.sleep(0.01)

    with serving_thread(FakeEventSocket(script)) as port:
        process = start_watch(port, "json")
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=10) == 0
        assert len(said(process.stderr.read())) == 1
        process.stderr.close()
