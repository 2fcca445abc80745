"""Every race, over every transport, with and without passwords."""

from __future__ import annotations

from dataclasses import dataclass

from tests.races.disconnect import (
    ContactExpires,
    MassDisconnect,
    MultipleLines,
    RegisterStorm,
    SamePort,
    Trunk,
    TrunkErrorPath,
)
from tests.races.race import Race
from tests.races.two_connections import ChangeConnection, ContactList, NewCallId, TwoRegisters, UnregisterAndReturn
from tests.races.unregister import Unregister, UnregisterAndReset, UnregisterOverAnother

RACES: tuple[Race, ...] = (
    Unregister(), UnregisterAndReset(), UnregisterOverAnother(), TwoRegisters(), ChangeConnection(), NewCallId(),
    UnregisterAndReturn(), ContactList(), MultipleLines(), SamePort(), RegisterStorm(), Trunk(), TrunkErrorPath(),
    ContactExpires(), MassDisconnect(),
)  # fmt: skip


@dataclass(frozen=True)
class RaceCase:
    """A race over one transport, blind or with passwords, on a FreeSWITCH with (faked) CPUs."""

    race: Race
    transport: str
    blind: bool
    cpus: int

    def __str__(self) -> str:
        return f"{self.race.name}, {self.transport}, {'blind' if self.blind else 'digest'}, {self.cpus} CPUs"


CPUS = (2, 16)
CASES = [
    RaceCase(race, transport, blind, cpus)
    for race in RACES
    for transport in race.transports
    for blind in ((True, False) if race.digest else (True,))
    for cpus in CPUS
]
