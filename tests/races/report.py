"""What came of the races, as lines and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from tests.races.cases import RACES, RaceCase
from tests.races.result import RaceResult


def lines(outcomes: dict[RaceCase, RaceResult]) -> list[str]:
    """Return a line for each race: how many repetitions were played, and how many were wrong."""
    found = []
    for race in RACES:
        mine = [outcome for case, outcome in outcomes.items() if case.race is race]
        if mine:
            total = RaceResult("", sum(one.repetitions for one in mine), sum(one.wrong for one in mine))
            for one in mine:
                total.unplayed += one.unplayed
                total.reasons.update(one.reasons)
            found.append(f"{race.name}: {total}")
    return found


def write(outcomes: dict[RaceCase, RaceResult], file: Path) -> None:
    """Write the outcomes as JSON, an object for each case."""
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        {
            "race": case.race.name,
            "title": case.race.title,
            "transport": case.transport,
            "auth": "blind" if case.blind else "digest",
            "cpus": case.cpus,
            "seed": outcome.seed,
            "repetitions": outcome.repetitions,
            "wrong": outcome.wrong,
            "unplayed": outcome.unplayed,
            "reasons": outcome.reasons,
            "notes": outcome.notes,
            "seconds": round(outcome.seconds, 1),
        }
        for case, outcome in outcomes.items()
    ]
    file.write_text(json.dumps(entries, indent=2) + "\n")
