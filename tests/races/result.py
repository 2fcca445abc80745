"""What came of the repetitions of a race."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

# How many of them must have been played to the end, or else a run proves nothing.
PLAYED = 0.9


@dataclass
class RaceResult:
    """How many repetitions there were, how many were wrong and what was wrong with them; the seed plays them again."""

    seed: str
    repetitions: int
    wrong: int = 0
    # Those that could not be played to the end, for reasons of this machine.
    unplayed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    # One of each kind: its events and rows.
    examples: dict[str, str] = field(default_factory=dict)
    seconds: float = 0

    @property
    def proves(self) -> bool:
        """Return whether enough were played to the end."""
        return self.unplayed <= self.repetitions * (1 - PLAYED)

    def __str__(self) -> str:
        why = "; ".join(f"{reason}: {count}" for reason, count in self.reasons.most_common())
        unplayed = f", {self.unplayed} not played to the end" if self.unplayed else ""
        return f"{self.wrong} of {self.repetitions - self.unplayed} wrong{unplayed}" + (f" ({why})" if why else "")
