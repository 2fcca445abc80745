from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from scripts.scenario import ensemble
from scripts.scenario.table import Case

ALONE = [Case("alone", "main", transport, (), alone=True) for transport in ("tcp", "tls")]
TOGETHER = [Case("together", "main", transport, ()) for transport in ("tcp", "tls", "ws")]


def test_cases_are_together_but_those_that_must_be_alone() -> None:
    """The others meet at a barrier, which they pass only all at once; nobody is there with one that is alone."""
    barrier = threading.Barrier(len(TOGETHER))
    on_stage: set[Case] = set()
    seen: dict[Case, set[Case]] = {}

    def act(case: Case) -> str:
        on_stage.add(case)
        if not case.alone:
            barrier.wait(30)
        seen[case] = set(on_stage)
        if not case.alone:
            barrier.wait(30)
        on_stage.remove(case)
        return case.transport

    cases = [TOGETHER[0], *ALONE, *TOGETHER[1:]]
    with ensemble.play(cases, act, len(TOGETHER)) as outcomes:
        assert [outcomes[case].result(60) for case in cases] == ["tcp", "tcp", "tls", "tls", "ws"]
    assert seen == {**{case: {case} for case in ALONE}, **{case: set(TOGETHER) for case in TOGETHER}}


def test_each_case_has_its_own_outcome() -> None:
    def act(case: Case) -> None:
        if case == ALONE[0]:
            pytest.skip("no IPv6")
        assert case != TOGETHER[1], "wrong"

    with ensemble.play([*ALONE, *TOGETHER], act) as outcomes:
        with pytest.raises(pytest.skip.Exception, match="no IPv6"):
            outcomes[ALONE[0]].result(60)
        with pytest.raises(AssertionError, match="wrong"):
            outcomes[TOGETHER[1]].result(60)
        for case in (ALONE[1], TOGETHER[0], TOGETHER[2]):
            outcomes[case].result(60)


@pytest.mark.parametrize("cases", [TOGETHER, [*ALONE, *TOGETHER]], ids=["together", "alone first"])
def test_nothing_begins_after_a_break(cases: list[Case]) -> None:
    began, let_go = threading.Event(), threading.Event()
    played = []

    def act(case: Case) -> None:
        played.append(case)
        began.set()
        assert let_go.wait(60)

    with pytest.raises(KeyboardInterrupt), ensemble.play(cases, act, 1) as outcomes:
        assert began.wait(60)
        threading.Timer(0.1, let_go.set).start()
        raise KeyboardInterrupt
    assert played == cases[:1]
    for case in cases[1:]:
        with pytest.raises(CancelledError):
            outcomes[case].result(60)
