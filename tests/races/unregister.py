"""Races of a client that unregisters and is gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tests.races.connection import RaceConnection
from tests.races.events import Headers
from tests.races.race import Race
from tests.races.repetition import Repetition
from tests.races.steps import AwaitEvents, Play


class Unregister(Race):
    """A client unregisters and closes its connection."""

    name = "leave"
    title = "REGISTER Expires 0 and close, without waiting for the answer"
    profiles: ClassVar[tuple[str, ...]] = ("main", "multi", "contact")

    def play(self, own: Repetition) -> Play:
        connection, call = own.connections[0], own.call()
        login = yield from own.log_in(connection, call)
        yield from own.register(connection, call, login=login)
        yield own.offset(0.02)
        connection.send(own.request(connection, call, expires=0, login=login))
        yield own.offset()
        self.end(connection)

    def end(self, connection: RaceConnection) -> None:
        connection.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return any(map(own.is_leave, events))

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        leaves, removals = sum(map(own.is_leave, events)), sum(map(own.is_removal, events))
        wrong = []
        if any(map(own.is_report, events)):
            wrong.append("reported as lost")
        if not leaves:
            wrong.append("no unregister")
        if leaves > 1 or (leaves and removals):
            wrong.append("unregistered twice")
        if own.online(events):
            wrong.append("ends online")
        if rows:
            wrong.append("row stays")
        return wrong


class UnregisterAndReset(Unregister):
    """What a kernel makes of a close with an answer unread."""

    name = "leave-with-reset"
    title = "REGISTER Expires 0 and reset"

    def end(self, connection: RaceConnection) -> None:
        connection.reset()


class UnregisterOverAnother(Unregister):
    """The connection that the client is registered over is alive when it leaves."""

    name = "leave-over-another"
    title = "registered over A: REGISTER Expires 0 over B, which ends at once; later A closes"
    # Not "contact": there the Contact of a WebSocket is another one over each connection.
    profiles = ("main", "multi")
    connections = 2

    def play(self, own: Repetition) -> Play:
        first, second = own.connections
        call, contact = own.call(), own.contact(first)
        login = yield from own.log_in(first, call)
        yield from own.register(first, call, login=login, contact=contact)
        login = yield from own.log_in(second, call)
        yield own.offset(0.02)
        second.send(own.request(second, call, expires=0, login=login, contact=contact))
        yield own.offset()
        second.close() if own.dice.random() < 0.5 else second.reset()
        yield AwaitEvents(lambda events: any(map(own.is_leave, events)))
        first.close()
