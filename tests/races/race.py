"""What every race has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tests.races.events import Headers
from tests.races.repetition import Repetition
from tests.races.steps import Play

TRANSPORTS = ("tcp", "tls", "ws", "wss")
# Repetitions of a run; `--repetitions` of pytest asks for another number.
REPETITIONS = 200
# Seconds between the starts of two repetitions: so many that the server has some in hand at a time.
PACE = 0.001
# Repetitions that wait for an answer at a time: a slow machine is not a fault.
WINDOW = 200


class Race:
    """What crosses: how it is played and when it is wrong."""

    name: ClassVar[str]
    # The table's words for what the client does.
    title: ClassVar[str]
    # Profiles by the turn of the repetition.
    profiles: ClassVar[tuple[str, ...]] = ("main",)
    transports: ClassVar[tuple[str, ...]] = TRANSPORTS
    # Connections that are open before it begins, and users.
    connections: ClassVar[int] = 1
    users: ClassVar[int] = 1
    pace: ClassVar[float] = PACE
    # The same when they go on together, after AwaitEvents.
    pace_after: ClassVar[float] = PACE
    window: ClassVar[int] = WINDOW
    repetitions: ClassVar[int] = REPETITIONS
    # So many at least, however few are asked for.
    least: ClassVar[int] = 1
    # Whether it is played with passwords, too.
    digest: ClassVar[bool] = True
    # Whether stock has what it takes.
    on_stock: ClassVar[bool] = True

    def repetitions_over(self, transport: str) -> int:
        """Return how many repetitions a run has over `transport`."""
        return self.repetitions

    def play(self, own: Repetition) -> Play:
        raise NotImplementedError

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        """Return whether all that must come at the end has come."""
        raise NotImplementedError

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        """Return what is wrong, a few words each; `rows` are those that are left."""
        raise NotImplementedError
