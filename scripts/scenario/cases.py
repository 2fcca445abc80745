"""The cases of the verification: what is done to a client, and what must come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from scripts.scenario.outcome import counted

PATCHED = "patched"
STOCK = "stock"
DOMAIN = "example.test"
PROFILE = "internal"
# How a connection may end when the kernel closes it for a killed process:
# a FIN or, if there was something unread, an RST.
KILLED_CLOSES = frozenset({("peer-closed", "NONE"), ("reset", "ECONNRESET")})


class Action(Enum):
    """What happens to a registered client; the value says it in the report."""

    KILL = "SIPp killed (SIGKILL)"
    LEAVE = "unregistered, then closed"


@dataclass(frozen=True)
class Expectation:
    """What must come, no more and no less.

    `reports` and `unregisters` count events; `registrations_left` and `closes`,
    pairs of close-cause and error-name, hold for every report.
    """

    reports: int = 0
    unregisters: int = 0
    registrations_left: int = 0
    closes: frozenset[tuple[str, str]] = KILLED_CLOSES

    def __str__(self) -> str:
        return counted(self.reports, self.unregisters)


@dataclass(frozen=True)
class Case:
    """One client's story.

    `template` is a scenario in templates/sipp (without `.xml.j2`), `transport`
    SIPp's `-t` and the event's name for it, `expected` what must come on each
    variant of the image. Each case has a user of its own: stock FreeSWITCH
    keeps a killed client's registration.
    """

    name: str
    template: str
    user: str
    action: Action
    expected: Mapping[str, Expectation]
    transport: tuple[str, str] = ("t1", "tcp")


CASES = (
    Case("killed client", "register", "alice", Action.KILL, {PATCHED: Expectation(reports=1), STOCK: Expectation()}),
    Case(
        "clean leave",
        "leave",
        "bob",
        Action.LEAVE,
        {PATCHED: Expectation(unregisters=1), STOCK: Expectation(unregisters=1)},
    ),
)
VARIANTS = (PATCHED, STOCK)
