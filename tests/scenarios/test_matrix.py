"""The scenario `deaths` against the patched FreeSWITCH; the report is in build/report/death-matrix.html.

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

from scripts.pins.settings import Settings
from scripts.scenario import ensemble, run, table
from scripts.scenario.lab import Lab
from scripts.scenario.record import Record
from scripts.scenario.table import Case
from tests.deaths import CPUS, DEATHS
from tests.record import Plugin

CASES = DEATHS.cases(table.PATCHED)


def outcome(lab: Lab, record: Record, case: Case) -> None:
    problems = run.play(lab, record, case)
    if problems is None:
        pytest.skip(record.results[case].problems[0])
    assert not problems


@pytest.fixture(scope="module")
def played(
    built: Settings, labs: Callable[[int], Lab], pytestconfig: pytest.Config
) -> Iterator[Callable[[int, Case], None]]:
    """Play the cases that were selected; return a function that waits for one and raises what it raised."""
    plugin = pytestconfig.pluginmanager.get_plugin("death-matrix")
    assert isinstance(plugin, Plugin)
    plugin.directory = built.report_directory
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
    time.sleep(lab.wait.nothing)
    came = Counter(event.get("from-user") for event in lab.freeswitch.recorder.events if lab.is_report(event))
    assert {user: came[user] for user, count in lab.settled.items() if came[user] != count} == {}
    assert lab.freeswitch.connections() == []
