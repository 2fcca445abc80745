"""The table of cases (matrix.yaml) against the patched FreeSWITCH; the report is in build/report/death-matrix.html.

The cases are played side by side, as soon as the first is asked for; each test
then tells what came of one.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests import ensemble, player
from tests.lab import CPUS, Lab
from tests.player import Case
from tests.record import Plugin, Record

CASES = player.load()


def outcome(lab: Lab, record: Record, case: Case) -> None:
    with record.case(lab, case) as entry:
        if case.profile == "six" and not lab.freeswitch.address6:
            pytest.skip("this Docker engine makes no IPv6 networks")
        entry.stages = entry.player.play()
        assert not player.problems(entry.stages)


@pytest.fixture(scope="module")
def played(labs: Callable[[int], Lab], pytestconfig: pytest.Config) -> Iterator[Callable[[int, Case], None]]:
    """Play the cases that were selected; return a function that waits for one and raises what it raised."""
    plugin = pytestconfig.pluginmanager.get_plugin("death-matrix")
    assert isinstance(plugin, Plugin)
    with contextlib.ExitStack() as stack:
        outcomes = {
            cpus: stack.enter_context(ensemble.play(cases, partial(outcome, labs(cpus), plugin.records[cpus])))
            for cpus, cases in plugin.cases.items()
        }
        yield lambda cpus, case: outcomes[cpus][case].result()


def several(count: int) -> str:
    return f"{count} CPUs"


# The case varies in the inner loop.
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("cpus", CPUS, ids=several)
def test_case(played: Callable[[int, Case], None], cpus: int, case: Case) -> None:
    played(cpus, case)


@pytest.mark.parametrize("cpus", CPUS, ids=several)
def test_nothing_came_later(labs: Callable[[int], Lab], cpus: int) -> None:
    """No report but those that came in the time of their case, and no connection that nobody has closed.

    Other tests look after their own users.
    """
    lab = labs(cpus)
    time.sleep(player.BOUND)
    came = Counter(event.get("from-user") for event in lab.freeswitch.recorder.events if lab.is_report(event))
    assert {user: came[user] for user, count in lab.settled.items() if came[user] != count} == {}
    assert lab.freeswitch.connections() == []
