"""Every race, over every transport, with and without passwords."""

from __future__ import annotations

from dataclasses import dataclass

from tests.races.disconnect import Back, ContactExpires, Crowd, Lines, OldTrunk, Storm, Trunk
from tests.races.race import Race
from tests.races.two_connections import LeaveAndReturn, Move, MoveInList, NewCall, TwoRegisters
from tests.races.unregister import Leave, LeaveOverAnother, LeaveWithReset

RACES: tuple[Race, ...] = (
    Leave(), LeaveWithReset(), LeaveOverAnother(), TwoRegisters(), Move(), NewCall(), LeaveAndReturn(), MoveInList(),
    Lines(), Back(), Storm(), Trunk(), OldTrunk(), ContactExpires(), Crowd(),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A race over one transport, blind or with passwords, on a FreeSWITCH with (faked) CPUs."""

    race: Race
    transport: str
    blind: bool
    cpus: int

    def __str__(self) -> str:
        return f"{self.race.name}, {self.transport}, {'blind' if self.blind else 'digest'}, {self.cpus} CPUs"


CPUS = (2, 16)
CASES = [
    Case(race, transport, blind, cpus)
    for race in RACES
    for transport in race.transports
    for blind in ((True, False) if race.digest else (True,))
    for cpus in CPUS
]
