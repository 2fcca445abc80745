"""`inv watch`, against a small event socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from scripts.errors import ToolkitError
from scripts.freeswitch import watch
from scripts.freeswitch.events import parse
from scripts.machine.files import ROOT
from tests.conftest import PATIENCE
from tests.event_socket import PASSWORD, REPORT, FakeEventSocket, event, serving_thread, wire


def test_far_end_cannot_rule_the_terminal() -> None:
    with pytest.raises(ToolkitError, match=r"network-port '\\x1b\[2J' is not") as caught:
        parse(event(network_port="\x1b[2J"))
    assert str(caught.value).isprintable()
    cells = watch._cells(parse(event(from_user="al\x1b[2Jice\x9b\u202e", from_host="h\n")), 0)
    assert cells[1] == "al\\x1b[2Jice\\x9b\\u202e@h\\n"


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1", "9" * 5000])
def test_port_that_is_none(port: str) -> None:
    with pytest.raises(ToolkitError, match="is not a port"):
        watch.parse_port(port, "--port")


def test_watch_wants_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESL_PASSWORD", raising=False)
    with pytest.raises(ToolkitError, match="--password or set ESL_PASSWORD"):
        watch.watch("127.0.0.1", 8021, "sofia::tp_error_report")


WATCH = """
import sys
from scripts import errors
from scripts.freeswitch import watch
try:
    watch.watch("127.0.0.1", int(sys.argv[1]), "sofia::tp_error_report", "", sys.argv[2] == "json")
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
