"""How it stops: cleanly, at any moment, once calls have ended."""

from __future__ import annotations

import functools
import re
import signal
import time

import pytest

from scripts.freeswitch.sip import Client, Refused
from scripts.scenario.lab import DOMAIN
from tests.image.deployment.node import (
    ECHO,
    DeployedContainer,
    Run,
)


def is_caught(node: DeployedContainer, number: signal.Signals) -> bool:
    """Return whether the first process of the container has a handler for the signal."""
    caught = re.search(r"^SigCgt:\s*(\w+)", node.shell("cat /proc/1/status")[1], re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("drain", ["0", "5"])
def test_stop_in_the_middle_of_the_start(run: Run, drain: str) -> None:
    for delay in (0.0, 0.5, 1.0, 1.6):
        node = run(DRAIN_SECONDS=drain)
        # Before it has its trap, the kernel drops the signal, in any container.
        node.wait(functools.partial(is_caught, node, signal.SIGTERM), "SIGTERM is not caught")
        time.sleep(delay)
        node.container.stop(timeout=90)
        # 143: it was told while it looked at its settings.
        assert node.state["ExitCode"] in (0, 143), f"{delay} s after the start: {node.state}, {node.log()}"


def test_stop_is_clean(run: Run) -> None:
    node = run().ready()
    node.register()
    node.container.stop(timeout=90)
    assert node.state["ExitCode"] == 0
    assert not node.state["OOMKilled"]


def test_stop_waits_for_calls_if_asked(run: Run) -> None:
    node = run(DRAIN_SECONDS="120").ready()
    caller = node.client()
    caller.invite("alice", node.password, DOMAIN, ECHO)
    uuid = node.call()
    node.container.kill("SIGTERM")
    node.wait(lambda: "taking no more calls, waiting up to 120 s" in node.log(), "does not drain")
    second = node.client()
    node.wait(lambda: _refused(second, node), "takes a call while it drains")
    assert uuid in node.cli("show channels")
    # Nobody is there to answer a BYE, for which FreeSWITCH would wait.
    caller.close()
    node.cli(f"uuid_kill {uuid}")
    assert node.container.wait(timeout=180)["StatusCode"] == 0


def _refused(client: Client, node: DeployedContainer) -> bool:
    try:
        client.invite("alice", node.password, DOMAIN, ECHO)
    except Refused as error:
        return error.response.status == 503
    return False


def test_drain_ends(run: Run) -> None:
    node = run(DRAIN_SECONDS="2").ready()
    caller = node.client()
    caller.invite("alice", node.password, DOMAIN, ECHO)
    caller.close()
    node.container.kill("SIGTERM")
    assert node.container.wait(timeout=180)["StatusCode"] == 0


def test_second_signal_ends_the_drain(run: Run) -> None:
    node = run(DRAIN_SECONDS="3600").ready()
    caller = node.client()
    caller.invite("alice", node.password, DOMAIN, ECHO)
    node.container.kill("SIGTERM")
    node.wait(lambda: "taking no more calls" in node.log(), "does not drain")
    caller.close()
    node.container.kill("SIGTERM")
    assert node.container.wait(timeout=180)["StatusCode"] == 0
