"""What a repetition can wait for, and why it can't be played to the end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.races.connection import Wire
from tests.races.events import Headers


@dataclass(frozen=True)
class Pause:
    """So many seconds, to a fraction of a millisecond."""

    seconds: float


@dataclass(frozen=True)
class Reply:
    """The next answer to a REGISTER over `wire`; None if the connection ends instead."""

    wire: Wire


@dataclass(frozen=True)
class Read:
    """That the stack has read what was sent over `wire` (with a probe at the end)."""

    wire: Wire


@dataclass(frozen=True)
class Settled:
    """That `done` says of the events so far that all has come, for every repetition; and then some time for the rest.

    Gives the rows of the registrar by Call-ID.
    """

    done: Callable[[Sequence[Headers]], bool]


Step = Pause | Reply | Read | Settled
Play = Generator[Step, Any, None]


class Taken(Exception):
    """The port of a connection that has ended is in use again."""


class Unanswered(Exception):
    """An answer did not come."""
