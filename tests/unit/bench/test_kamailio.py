"""Kamailio beside FreeSWITCH in the benchmark. No figure of it decides here."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.bench import kamailio, measure, plot, suite
from scripts.bench import page as pages
from scripts.bench.figures import BenchmarkReport, Curve, Figure, headings, machine, rows, summary, write
from scripts.bench.load import register
from scripts.bench.stream import marker_of, parse
from scripts.errors import ToolkitError
from scripts.pins.settings import Settings

# What Kamailio prints if kamailio-extra-modules is missing.
NO_EVAPI = """\
 0(7) ERROR: <core> [core/sr_module.c:510]: ksr_locate_module(): could not find module <evapi> in </usr/lib/modules>
 0(7) CRITICAL: <core> [core/cfg.y:3787]: yyerror_at(): parse error in config file k.cfg, line 24: failed to load module
ERROR: bad config file (7 errors) (parsing code: 0)
"""
EVENT = b"Event-Subclass: kamailio%3A%3Aclosed\nfrom-user: u000001\nerror-name: NONE\n\n"


@pytest.fixture
def installed() -> None:
    try:
        kamailio.check()
    except ToolkitError as error:
        pytest.skip(f"a real Kamailio is not tested: {error}")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a new directory, which temporary files go to."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes a shell script the only Kamailio there is."""

    def make(script: str) -> None:
        path = tmp_path / "bin/kamailio"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(kamailio, "program", lambda: str(path))

    return make


def test_without_kamailio_nothing_is_started(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr(kamailio, "SBIN", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(suite, "docker_host", started)
    monkeypatch.setattr(suite, "raise_limit", lambda _: None)
    with pytest.raises(ToolkitError) as caught:
        suite.run(settings, with_kamailio=True)
    assert str(caught.value) == (
        "--with-kamailio: there is no Kamailio here: "
        "install it (`apt-get install kamailio kamailio-extra-modules`) or leave out --with-kamailio"
    )


def test_a_missing_module_is_one_clear_line(fake: Callable[[str], None], temporary: Path) -> None:
    fake(f"cat >&2 <<'END'\n{NO_EVAPI}END\nexit 255")
    with pytest.raises(ToolkitError) as caught:
        kamailio.check()
    message = str(caught.value)
    assert "refuses its configuration: could not find module <evapi> in </usr/lib/modules>: install it" in message
    assert "\n" not in message
    assert not list(temporary.iterdir())


def test_a_kamailio_that_ends_at_once_is_one_clear_line(fake: Callable[[str], None], temporary: Path) -> None:
    fake("echo ' 0(7) CRITICAL: <core> [core/main.c:1]: main(): no more memory' >&2; exit 1")
    with pytest.raises(ToolkitError, match=r"^Kamailio died: no more memory$"), kamailio.run(30):
        pass
    assert not list(temporary.iterdir())


def test_a_kamailio_that_is_never_ready_is_killed_with_its_children(
    fake: Callable[[str], None], tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kamailio, "GRACE", 0.1)
    fake(f"echo $$ >'{tmp_path}/pid'; trap '' TERM; sleep 1000 & wait; wait")
    with pytest.raises(ToolkitError, match=r"^Kamailio isn't ready after 1 s: it doesn't say why$"), kamailio.run(1):
        pass
    assert kamailio.members(int((tmp_path / "pid").read_text())) == []
    assert not list(temporary.iterdir())


def test_its_configuration_listens_on_loopback_only() -> None:
    text = kamailio.configuration(15060, 18448)
    assert re.findall(r"(?m)^listen=(.*)$", text) == ["tcp:127.0.0.1:15060"]
    assert re.findall(r'"bind_addr", "(.*)"', text) == ["127.0.0.1:18448"]
    loaded = set(re.findall(r'loadmodule "(.*)\.so"', text))
    assert set(re.findall(r'modparam\("(\w+)"', text)) <= loaded


def test_its_reports_are_read_like_those_of_freeswitch() -> None:
    login = b"Content-Type: auth/request\n\n" + b"Content-Type: command/reply\nReply-Text: +OK\n\n" * 2
    event = b"Content-Length: %d\nContent-Type: text/event-plain\n\n%s" % (len(EVENT), EVENT)
    (found,) = parse([(1, login + event)])
    assert found.headers["from-user"] == "u000001"
    assert measure.is_report(found)
    assert event.count(marker_of(kamailio.SUBCLASS)) == 1
    assert "Event-Subclass: kamailio%3A%3Aclosed\\n" in kamailio.configuration(1, 2)


@pytest.fixture
def outcome() -> BenchmarkReport:
    return BenchmarkReport(
        started="2024-05-06T07:08:09+00:00",
        quick=True,
        machine=machine(),
        figures=[Figure("time", "ms", [10], [3], kamailio=[2, 4]), Figure("calls", "1/s", [1], [1])],
        curves={"storm": [Curve("stock", [0.1], [1]), Curve("kamailio", [0.2], [1])]},
        kamailio="5.6.3",
    )


def test_there_is_a_third_column_if_it_was_asked_for(outcome: BenchmarkReport, tmp_path: Path) -> None:
    assert headings(True)[2:6] == ["stock", "patched", "Kamailio", "ratio"]
    assert [row[2:6] for row in rows(outcome.figures, True)] == [
        ["10.0", "3.00", "3.00 [2.00–4.00]", "0.300"],
        ["1.00", "1.00", "", "1.00"],
    ]
    assert summary(outcome.figures[0]) == "time (ms): stock 10.0, patched 3.00, Kamailio 3.00 [2.00–4.00], ratio 0.300"
    document = json.loads(write(outcome, tmp_path).read_text())
    assert document["kamailio"] == "5.6.3"
    assert document["figures"][0]["kamailio"] == [2, 4]
    page = pages.page(outcome)
    assert "`inv bench --quick --with-kamailio --docs`" in page
    assert "| time | ms | 10.0 | 3.00 | 3.00 [2.00–4.00] | 0.300 |" in page
    assert "version 5.6.3" in page


def test_there_is_no_third_column_otherwise(outcome: BenchmarkReport, tmp_path: Path) -> None:
    outcome = replace(outcome, kamailio="", figures=[Figure("time", "ms", [10], [3])])
    assert "Kamailio" not in headings()
    assert len(rows(outcome.figures)[0]) == len(headings())
    assert "amailio" not in summary(outcome.figures[0])
    assert "amailio" not in write(outcome, tmp_path).read_text().replace('"kind": "kamailio"', "")
    assert "amailio" not in pages.page(outcome)


def test_its_curves_are_in_the_plots(outcome: BenchmarkReport, tmp_path: Path) -> None:
    (picture,) = (file for file in plot.draw(outcome, tmp_path) if file.suffix == ".svg")
    assert "Kamailio" in picture.read_text()


@pytest.mark.usefixtures("installed")
def test_a_real_kamailio_reports_every_user_once(temporary: Path) -> None:
    with kamailio.run(30) as server:
        pids = server.pids()
        for _ in range(2):
            storm = measure.storm(server, 50)
            assert (storm.lost, storm.twice, len(storm.times)) == (0, 0, 50)
        assert len(measure.latency(server, 10, 0.01, 1)) == 10
        assert server.cpu() > 0
        assert server.memory().proportional > 0
        assert measure.idle([server], 0.1)[0] >= 0
    assert len(pids) > 1
    assert kamailio.members(server.process.pid) == []
    assert not list(temporary.iterdir())


@pytest.mark.usefixtures("installed")
def test_a_real_kamailio_reports_a_connection_that_was_reset() -> None:
    with kamailio.run(30) as server, server.reader() as reader:
        with socket.create_connection(("127.0.0.1", server.sip_port), 10) as client:
            client.sendall(register("u1", client.getsockname(), 1))
            assert client.recv(65536).startswith(b"SIP/2.0 200 ")
            # Closed at once and with nothing lingering, the kernel sends RST.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reader.wait(1, silence=10, limit=10)
        (event,) = reader.take()
    assert (event.headers["from-user"], event.headers["error-name"]) == ("u1", "ECONNRESET")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_real_kamailio_does_not_outlive_a_signal(number: signal.Signals, tmp_path: Path, root: Path) -> None:
    program = (
        "from scripts.bench import kamailio, suite\n"
        "import signal, time\n"
        # It may be ignored: then this process's parent ignores it, too.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "if __name__ == '__main__':\n"
        "    with suite._termination(), kamailio.run(30) as server:\n"
        "        print(server.process.pid, flush=True)\n"
        "        time.sleep(1000)\n"
    )
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen(
        [sys.executable, tmp_path / "program.py"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout
        session = int(process.stdout.readline())
        assert len(kamailio.members(session)) > 1
        process.send_signal(number)
        process.wait()
    assert kamailio.members(session) == []
    assert not list((tmp_path / "temporary").iterdir())
