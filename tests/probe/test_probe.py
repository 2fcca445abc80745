"""The patched sofia-sip alone, with sanitizers and valgrind: how connections end, and what rubbish does.

TOOLKIT_FUZZ_INPUTS and TOOLKIT_FUZZ_SEED make the fuzzer throw more, or other input.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.machine.engine import LABEL
from scripts.machine.files import ROOT
from scripts.patchset import series
from scripts.pins.settings import Settings

pytestmark = pytest.mark.docker

TESTS = ROOT / "tests"
INPUTS = int(os.environ.get("TOOLKIT_FUZZ_INPUTS", "2000"))
SEED = int(os.environ.get("TOOLKIT_FUZZ_SEED", "20261123"))
# Generous: a busy machine is not a fault. The fuzzer's own default is 1 s.
LIMIT = 10.0
# What a connection may have to send, in bytes: so many answers to requests for new keys a stack still writes once its
# client is blocked. With the usual megabytes that takes one with AddressSanitizer 9 s.
SEND_BUFFER = "net.ipv4.tcp_wmem=4096 16384 262144"
PEER, RESET = ("peer-closed", 0), ("reset", 104)
TLS, PROTOCOL = ("tls-error", 5), ("protocol-error", 71)
# What the end of a connection that ended in such a way must be called, on each protocol or on one.
EXPECTED = {
    "close": PEER,
    "fin": PEER,
    "reset": RESET,
    "half close": PEER,
    "several": PEER,
    "pipelined": PEER,
    "garbage": PROTOCOL,
    "partial": PEER,
    "partial reset": RESET,
    "oversize": PROTOCOL,
    "nothing": PEER,
    "nothing reset": RESET,
    "hello fin": PEER,
    "hello reset": RESET,
    "plain": PROTOCOL,
    "tls plain": TLS,
    "wss plain": TLS,
    "record": TLS,
    "upgrade fin": PEER,
    "upgrade reset": RESET,
    "opcode": PROTOCOL,
    "frame fin": PEER,
    "ping reset": RESET,
    "burst reset": RESET,
    "pings reset": RESET,
    "crlfs reset": RESET,
    "late pong": PEER,
    "late rest": PEER,
    "late first": PEER,
    "late hello": PEER,
    "records": PEER,
    "late answer": PEER,
    "drip": ("timeout", 110),
    "last words reset": RESET,
    "rekey": ("timeout", 110),
}
# Bad content of a frame that is right does not keep the next frame from being found.
EXPECTED |= {f"{protocol} {ending}": PEER for protocol in ("ws", "wss") for ending in ("garbage", "oversize")}
REGISTERED = {"several": 5, "nothing": 0, "nothing reset": 0, "hello fin": 0, "hello reset": 0, "plain": 0}
REGISTERED |= {"upgrade fin": 0, "upgrade reset": 0, "ping reset": 2, "burst reset": 2}
EXPECTED |= {f"backlog {number}": PEER for number in range(24)}
EXPECTED |= {f"drip {number}": ("timeout", 110) for number in range(12)}
EXPECTED |= {f"unanswered {number}": RESET for number in range(5)}
REGISTERED |= {f"backlog {number}": 2 for number in range(24)}
REGISTERED |= {"drip": 0, "rekey": 0} | {f"drip {number}": 0 for number in range(12)}
REGISTERED |= {
    "records": 2,
    "pings reset": 2,
    "crlfs reset": 2,
    "last words reset": 2,
    "late rest": 2,
    "drip": 0,
    "rekey": 0,
}


def docker(*arguments: str, timeout: int = 900) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="session")
def stage(built: Settings) -> tuple[Settings, str]:
    """Return the settings and the tag of the stage with toolchain and unpatched sources."""
    if "sofia-sip" in dict(built.source("freeswitch").carried):
        pytest.skip("a sofia-sip in the tree of FreeSWITCH is not tested alone")
    return built, f"{built.image}:build"


def write_series(settings: Settings, directory: Path) -> Path:
    """Write the rendered series of sofia-sip, and what applies it, to `directory`."""
    (source,) = (source for source in settings.sources if source.name == "sofia-sip")
    (directory / "patches").mkdir(parents=True)
    for patch in series.render(settings, source):
        (directory / "patches" / patch.name).write_text(patch.text, errors="surrogateescape")
    shutil.copy2(ROOT / "scripts/image/stages/build-patch.sh", directory)
    return directory


@pytest.fixture(scope="session")
def probe(stage: tuple[Settings, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the image of the probe and return its tag."""
    settings, build = stage
    context = write_series(settings, tmp_path_factory.mktemp("probe") / "context")
    for name in ("probe.c", "rekey.c"):
        shutil.copy2(TESTS / "probe" / name, context)
    (context / "tests" / "probe").mkdir(parents=True)
    modules = [path for path in (TESTS / "probe").glob("*.py") if not path.name.startswith("test_")]
    for path in (TESTS / "__init__.py", TESTS / "fuzz.py", *modules):
        shutil.copy2(path, context / "tests" / path.relative_to(TESTS))
    tag = f"{settings.image}:probe"
    result = docker(
        "build", "--force-rm", "--file", str(TESTS / "probe" / "Dockerfile"), "--tag", tag, "--label", f"{LABEL}=true",
        "--build-arg", f"BUILD_IMAGE={build}", "--build-arg", f"JOBS={settings.jobs}", str(context),
    )  # fmt: skip
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return tag


def run(tag: str, *command: str, timeout: int = 900, save: Path | None = None) -> Any:
    """Run a module of the tests in a container of the probe and return what it printed."""
    options = ["--rm", "--label", f"{LABEL}=true", "--cap-add", "NET_ADMIN", "--sysctl", SEND_BUFFER]
    if save:
        options += ["--volume", f"{save}:/tmp/failed"]
    result = docker("run", *options, tag, "python3", "-m", *command, timeout=timeout)
    assert result.stdout.startswith("{"), (result.stdout + result.stderr)[-3000:]
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def matrix(probe: str) -> dict[str, dict[str, Any]]:
    return run(probe, "tests.probe.matrix")  # type: ignore[no-any-return]


def faults(results: dict[str, Any]) -> list[str]:
    """Return what is not as it should be in the cases of one probe, a line each."""
    found = []
    for name, case in results["cases"].items():
        protocol, _, ending = name.partition(" ")
        cause = EXPECTED.get(name, EXPECTED.get(ending))
        if case["error"]:
            found.append(f"{name}: {case['error']}")
        if len(case["ends"]) != 1:
            causes = [(end["cause"], end["errno"]) for end in case["ends"]]
            found.append(f"{name}: ended {len(causes)} times {causes}")
            continue
        (end,) = case["ends"]
        if cause and (end["cause"], end["errno"]) != cause:
            found.append(f"{name}: {end['cause']} {end['errno']}, not {cause[0]} {cause[1]}")
        if case["late"] > LIMIT and "silence" not in results:
            found.append(f"{name}: {case['late']:.1f} s late")
        registers = 0 if "early" in results else REGISTERED.get(ending, 1)
        if case["registers"] != [end["id"]] * registers:
            found.append(f"{name}: registered as {case['registers']}, ended as {end['id']}")
        # Nobody depends on a connection without a REGISTER.
        if [report["id"] for report in case["reports"]] != [end["id"]] * min(registers, 1):
            found.append(f"{name}: {registers} REGISTERs and {len(case['reports'])} reports")
        for report in case["reports"]:
            if (report["event"], report["status"]) != ("nua_i_tp_error_report", 503):
                found.append(f"{name}: {report['event']} {report['status']}")
            if (report["cause"], report["errno"]) != (end["cause"], end["errno"]):
                found.append(f"{name}: {end['cause']} {end['errno']} reported as {report['cause']} {report['errno']}")
            if (report["proto"], report["own_port"]) != (protocol, case["own_port"]):
                found.append(f"{name}: {report['proto']} on port {report['own_port']}, not {case['own_port']}")
            if not report["opened"] <= report["noticed"] <= report["opened"] + 60:
                found.append(f"{name}: opened {report['opened']}, noticed {report['noticed']}")
    identifiers = [end["id"] for case in results["cases"].values() for end in case["ends"]]
    if len(set(identifiers)) != len(identifiers):
        found.append("identifiers are not unique")
    found += [f"unexpected: {other['peer_host']}:{other['peer_port']} {other['cause']}" for other in results["others"]]
    found += results["complaints"]
    if results["status"]:
        found.append(f"the probe ended with status {results['status']}")
    return found


@pytest.mark.parametrize("mode", ["plain", "keep", "thread", "torn"])
def test_each_end_is_noticed_once_and_reported_after_a_register(matrix: dict[str, dict[str, Any]], mode: str) -> None:
    assert len(matrix[mode]["cases"]) > 50
    assert faults(matrix[mode]) == []


def test_a_good_end_is_no_error_in_the_log(matrix: dict[str, dict[str, Any]]) -> None:
    assert faults(matrix["log"]) == []
    # Upstream logs this one for each WebSocket.
    lines = [line for line in matrix["log"]["stderr"].splitlines() if "tport_ws_deinit_secondary" not in line]
    assert lines == []


def test_errors_of_the_listening_socket_are_not_reported(matrix: dict[str, dict[str, Any]]) -> None:
    results = matrix["starved"]
    assert results["failed"]
    assert results["early"] == 0
    assert len(results["cases"]) == 40
    assert faults(results) == []


def test_udp_is_not_reported(matrix: dict[str, dict[str, Any]]) -> None:
    results = matrix["udp"]
    assert results["failed"]
    assert results["registers"] == [0] * 5
    assert results["cases"] == {}
    assert faults(results) == []


def test_a_missing_pong_is_a_timeout(matrix: dict[str, dict[str, Any]]) -> None:
    results = matrix["pong"]
    (report,) = results["cases"]["tcp pong"]["reports"]
    assert (report["cause"], report["errno"]) == ("timeout", 32)
    assert faults(results) == []


def test_what_came_before_a_timer_counts_before_it(matrix: dict[str, dict[str, Any]]) -> None:
    assert len(matrix["late"]["cases"]) == 2
    assert faults(matrix["late"]) == []
    assert len(matrix["later"]["cases"]) == 6 + 2 + 8
    assert faults(matrix["later"]) == []
    # Who sends without a break has as much time again, once, since the stack was late.
    assert matrix["later"]["ended"] == ["tcp drip"]
    assert len(matrix["backlog"]["cases"]) == 24
    assert faults(matrix["backlog"]) == []
    assert matrix["backlog"]["ended"] == []


def test_who_sends_without_a_break_has_no_more_time(matrix: dict[str, dict[str, Any]]) -> None:
    assert len(matrix["drip"]["cases"]) == 12
    assert faults(matrix["drip"]) == []
    # On a busy machine the stack may be late for some of them.
    limit, held = matrix["drip"]["limit"], matrix["drip"]["held"]
    assert sum(seconds < 1.75 * limit for seconds in held.values()) >= 9, held


def test_an_answer_that_could_not_be_sent_is_done_with(matrix: dict[str, dict[str, Any]]) -> None:
    """Else request and transport stay, if nothing else sets the timer."""
    assert matrix["unanswered"]["done"] == len(matrix["unanswered"]["cases"]) == 5
    assert faults(matrix["unanswered"]) == []


def test_records_of_one_byte_hold_up_nobody(matrix: dict[str, dict[str, Any]]) -> None:
    results = matrix["records"]
    assert faults(results) == []
    identifiers = [results["cases"][f"{protocol} records"]["ends"][0]["id"] for protocol in ("tcp", "wss")]
    assert results["registers"] == identifiers


@pytest.mark.parametrize("name", ["rekey", "rekey late"])
def test_who_reads_no_answer_of_tls_is_closed(matrix: dict[str, dict[str, Any]], name: str) -> None:
    """Until then nothing can be read from it, and the thread must not try all the time."""
    results = matrix[name]
    assert faults(results) == []
    assert results["busy"] < 0.5


def test_requests_without_end_hold_up_nobody(matrix: dict[str, dict[str, Any]]) -> None:
    """Even if each of them leaves something that a timer looks at."""
    results = matrix["flood"]
    assert (results["status"], results["complaints"], results["ended"]) == (0, [], [])
    assert results["read"] > 2000
    assert results["longest"] < 500


def test_silence_is_a_timeout(matrix: dict[str, dict[str, Any]]) -> None:
    results = matrix["silence"]
    if "skipped" in results:
        pytest.skip(results["skipped"])
    assert (results["status"], results["complaints"]) == (0, [])
    for case in results["cases"].values():
        assert [report["cause"] for report in case["reports"]] == ["timeout"]
        assert results["seconds"] / 2 - 1 < case["late"] < results["seconds"] + 4


def test_rubbish_is_survived_and_reported(probe: str, tmp_path: Path) -> None:
    result = run(
        probe, "tests.fuzz", "--inputs", str(INPUTS), "--seed", str(SEED), "--limit", "5",
        timeout=300 + INPUTS // 10, save=tmp_path,
    )  # fmt: skip
    assert result["inputs"] == INPUTS, f"seed {SEED}"
    assert result["faults"] + result["complaints"] == [], f"seed {SEED}, inputs that failed are in {tmp_path}"


def test_rubbish_leaks_nothing(probe: str, tmp_path: Path) -> None:
    inputs = max(200, INPUTS // 10)
    result = run(
        probe, "tests.fuzz", "--tool", "valgrind", "--inputs", str(inputs), "--seed", str(SEED), "--abreast", "4",
        "--limit", "5", timeout=600 + inputs, save=tmp_path,
    )  # fmt: skip
    assert result["inputs"] == inputs, f"seed {SEED}"
    assert result["faults"] + result["complaints"] == [], f"seed {SEED}, inputs that failed are in {tmp_path}"


def own_tests(stage: str, directory: Path) -> dict[str, str]:
    """Run sofia-sip's own tests, with the series in `directory` if there is one, and return program and result."""
    result = docker(
        "run", "--rm", "--label", f"{LABEL}=true", "--env", f"JOBS={os.cpu_count() or 1}",
        "--volume", f"{directory}:/series:ro", "--volume", f"{ROOT / 'scripts/image/stages'}:/scripts:ro", stage,
        "/scripts/build-check.sh", "/series/patches",
        timeout=3600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return dict(line.split() for line in result.stdout.splitlines())


@pytest.mark.slow
def test_the_own_tests_of_sofia_pass_as_without_the_series(stage: tuple[Settings, str], tmp_path: Path) -> None:
    settings, build = stage
    stock = own_tests(build, tmp_path)
    patched = own_tests(build, write_series(settings, tmp_path / "context"))
    assert sum(result == "PASS" for result in stock.values()) >= 30
    assert {name: result for name, result in stock.items() if result == "PASS" and patched.get(name) != "PASS"} == {}
