"""What a verification came to: a run, its images, and one result a case and image."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from scripts.freeswitch.capture import Capture
from scripts.freeswitch.events import Event


class Verdict(StrEnum):
    """How a case ended.

    ERROR: it couldn't be carried out; NOT_RUN: the run ended before it;
    SKIPPED: this machine lacks what it needs, which fails nothing.
    """

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    NOT_RUN = "not run"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Image:
    """An image that was tested: its variant ("patched"), tag, id and labels."""

    variant: str
    tag: str
    id: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One case on one image.

    `problems` says, one line each, what is not as it must be; it is empty if
    the case passed. `delay_ms` is the time from the action to the report's
    arrival (the last one's, if several came), None if no report came. `timings` are milliseconds, too, `seconds`
    is how long the case took. `events` are all that came, in that order.

    Where a case is carried out over several transports or against several
    profiles, these tell the results apart. `steps` are its lines, `logs`
    excerpts by the names of their files, `capture` is what went over the wire.
    """

    variant: str
    case: str
    done: str
    expected: str
    came: str
    verdict: Verdict
    problems: Sequence[str] = ()
    delay_ms: float | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    events: Sequence[Event] = ()
    profile: str = ""
    transport: str = ""
    steps: Sequence[str] = ()
    logs: Mapping[str, str] = field(default_factory=dict)
    capture: Capture | None = None

    @property
    def name(self) -> str:
        """The case with what tells it apart from others."""
        return ", ".join(part for part in (self.case, self.profile, self.transport) if part)


@dataclass(frozen=True)
class Run:
    """A whole verification. `started` is aware of its time zone.

    `name` is that of its files, `subclass` that of the reports. On the
    variants in `compared` nothing has to pass: they are there to be compared
    with.
    """

    started: datetime
    images: Sequence[Image]
    versions: Mapping[str, str]
    results: Sequence[Result]
    name: str = "verify"
    subclass: str = ""
    compared: Collection[str] = ()

    @property
    def judged(self) -> list[Result]:
        return [result for result in self.results if result.variant not in self.compared]

    @property
    def failures(self) -> list[Result]:
        return [result for result in self.judged if result.verdict not in (Verdict.PASSED, Verdict.SKIPPED)]


def plural(count: int, noun: str) -> str:
    """Return `count` with the noun in the right number."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def counted(reports: int, unregisters: int) -> str:
    """Return how many events came, or must come, in words."""
    parts = [plural(reports, "report") if reports else "no report"]
    if unregisters:
        parts.append(plural(unregisters, "unregister"))
    return ", ".join(parts)
