"""What crosses within milliseconds (tests/races/), many times; the figures are in build/report/races.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from scripts.pins.settings import Settings
from tests import races
from tests.conftest import RACES
from tests.races import CASES, RaceCase, RaceSuite


@pytest.fixture(scope="module")
def runs(built: Settings, request: pytest.FixtureRequest) -> Iterator[RaceSuite]:
    """Return the runs of the cases that were chosen; they go on while the tests wait for them."""
    functions = (item for item in request.session.items if isinstance(item, pytest.Function))
    cases = [
        cast(RaceCase, function.callspec.params["case"])
        for function in functions
        if function.module.__name__ == __name__ and "case" in function.fixturenames
    ]
    with RaceSuite(built, cases, repetitions=request.config.getoption("repetitions")) as found:
        yield found
    races.write(request.config.stash[RACES], built.report_directory / "races.json")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_race(runs: RaceSuite, case: RaceCase, request: pytest.FixtureRequest) -> None:
    outcome = runs.outcome(case)
    request.config.stash[RACES][case] = outcome
    examples = "\n".join(f"{reason}: {example}" for reason, example in outcome.examples.items())
    assert outcome.proves, f"{outcome}\nseed: {outcome.seed}"
    assert outcome.wrong == 0, f"{outcome}\nseed: {outcome.seed}\n{examples}"
