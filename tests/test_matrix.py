"""The table of cases (matrix.yaml) against the patched FreeSWITCH; the report is in build/report/death-matrix.html."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from tests import player
from tests.lab import Lab
from tests.player import Case
from tests.record import Record

CASES = player.load()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(lab: Lab, case: Case, record: Record) -> None:
    with record.case(lab, case) as entry:
        if case.profile == "six" and not lab.freeswitch.address6:
            pytest.skip("this Docker engine makes no IPv6 networks")
        entry.stages = entry.player.play()
        assert not player.problems(entry.stages)


def test_nothing_came_later(lab: Lab) -> None:
    """No report but those that came in the time of their case, and no connection that nobody has closed."""
    time.sleep(player.BOUND)
    came = Counter(event.get("from-user") for event in lab.freeswitch.recorder.events if lab.is_report(event))
    assert {user: count for user, count in came.items() if count != lab.settled[user]} == {}
    assert lab.freeswitch.connections() == []
