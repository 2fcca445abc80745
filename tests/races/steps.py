"""What a repetition can wait for, and why it can't be played to the end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.races.connection import RaceConnection
from tests.races.events import Headers


@dataclass(frozen=True)
class Sleep:
    """A pause of so many seconds, to a fraction of a millisecond."""

    seconds: float


@dataclass(frozen=True)
class AwaitResponse:
    """The wait for the next answer to a REGISTER over `connection`; None if the connection ends instead."""

    connection: RaceConnection


@dataclass(frozen=True)
class AwaitRead:
    """The wait until the stack has read what was sent over `connection` (with a probe at the end)."""

    connection: RaceConnection


@dataclass(frozen=True)
class AwaitEvents:
    """The wait until `done` says of the events so far, of every repetition, that all has come; then for the rest.

    Gives the rows of the registrar by Call-ID.
    """

    done: Callable[[Sequence[Headers]], bool]


Step = Sleep | AwaitResponse | AwaitRead | AwaitEvents
Play = Generator[Step, Any, None]


class PortInUse(Exception):
    """The port of a connection that has ended is in use again."""


class NoResponse(Exception):
    """An answer did not come."""
