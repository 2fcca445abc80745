"""Races of a client with two connections, of which one ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tests.races.connection import RaceConnection
from tests.races.events import PORT, Headers
from tests.races.race import Race
from tests.races.repetition import Repetition
from tests.races.steps import AwaitEvents, AwaitRead, AwaitResponse, NoResponse, Play


class TwoConnections(Race):
    """Two connections of one device, A and B: the later REGISTER is that over B."""

    profiles: ClassVar[tuple[str, ...]] = ("main", "multi")
    connections = 2

    def reports_of(self, own: Repetition, events: Sequence[Headers], connection: RaceConnection) -> list[Headers]:
        """Return the reports of the end of `connection`; stock's do not tell of which."""
        return [
            event for event in events if own.is_report(event) and event.get(PORT) in (None, str(connection.near[1]))
        ]

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return bool(self.reports_of(own, events[own.marks[0] :], own.connections[1]))

    def end(self, own: Repetition) -> Play:
        """See that the user is online with A gone, then close B."""
        yield AwaitEvents(own.online)
        own.connections[1].close()

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        before, after = events[: own.marks[0]], events[own.marks[0] :]
        wrong = []
        if not own.online(before):
            wrong.append("ends offline, alive over B")
        elif own.facts["read"] and any(map(own.is_offline, before)):
            wrong.append("offline for a moment, alive over B")
        if any(map(own.is_removal, before)) and not own.stock:
            own.facts["note"] = "stock's unregister, alive over B"
        wrong += self.judge_end(own, after)
        return wrong

    def judge_end(self, own: Repetition, after: Sequence[Headers]) -> list[str]:
        mine = self.reports_of(own, after, own.connections[1])
        if not mine:
            return ["the end of B is not reported"]
        if len(mine) > 1:
            return ["the end of B is reported twice"]
        if own.online(after):
            return ["ends online, nobody there"]
        return []


class TwoRegisters(TwoConnections):
    """The REGISTERs of one Call-ID overtake each other."""

    name = "two-registers"
    title = "one Call-ID: CSeq 1 over A, CSeq 2 over B, back to back; A closes; later B closes"

    def play(self, own: Repetition) -> Play:
        first, second = own.connections
        call = own.call()
        contact = own.contact(first) if own.dice.random() < 0.5 and own.transport in ("tcp", "tls") else ""
        one = yield from own.log_in(first, call)
        other = yield from own.log_in(second, call)
        early = own.request(first, call, login=one, contact=contact)
        late = own.request(second, call, login=other, contact=contact)
        first.send(early)
        second.send(late, own.probe(second))
        if own.dice.random() < 0.5:
            yield AwaitResponse(first)
            answer = yield AwaitResponse(second)
            own.facts["read"] = True
            yield own.offset()
            first.close()
        else:
            yield own.offset()
            second.receive()
            own.facts["read"] = second.read
            first.close()
            answer = yield AwaitResponse(second)
        if not answer or answer.status != 200:
            raise NoResponse(f"CSeq 2: {answer and answer.status}")
        yield from self.end(own)


class ChangeConnection(TwoConnections):
    """A client changes its connection: the old one ends as it registers over the new one."""

    name = "move"
    title = "REGISTER over B, A closes 0 to 1.5 ms later"

    def play(self, own: Repetition) -> Play:
        first, second = own.connections
        call = own.call()
        login = yield from own.log_in(first, call)
        yield from own.register(first, call, login=login)
        # The same device with the same or a new contact or, where that is possible, a second one.
        device = own.dice.randrange(3 if own.profile == "multi" else 2)
        own.facts["second"] = device == 2
        contact = own.contact(first) if device == 0 else ""
        if device == 2:
            call = own.call()
        if own.dice.random() < 0.5:
            login = yield from own.log_in(second, call)
        yield own.offset(0.02)
        second.send(own.request(second, call, login=login, contact=contact), own.probe(second))
        if own.dice.random() < 0.5:
            yield own.offset(0.0015)
            second.receive()
        else:
            # The sharpest: the stack has it, a worker may not have begun.
            yield AwaitRead(second)
        own.facts["read"] = second.read
        first.reset() if own.dice.random() < 0.5 else first.close()
        answer = yield AwaitResponse(second)
        if not answer or answer.status != 200:
            raise NoResponse(f"over B: {answer and answer.status}")
        yield from self.end(own)

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        wrong = super().judge(own, events, rows)
        if own.facts["second"] and len(self.reports_of(own, events, own.connections[0])) != 1 and not own.stock:
            wrong.append("the end of A is not reported once")
        return wrong


class NewCallId(TwoConnections):
    """One Contact is registered anew, with another Call-ID."""

    name = "new-call"
    title = "one Contact: refreshed over A, then registered over B with another Call-ID; A closes; later B closes"
    profiles = ("multi",)

    def play(self, own: Repetition) -> Play:
        first, second = own.connections
        call, other = own.call(), own.call()
        contact = own.contact(first)
        login = yield from own.log_in(first, call)
        yield from own.register(first, call, login=login, contact=contact)
        login_over_second = yield from own.log_in(second, other)
        yield own.offset(0.02)
        # Two connections are read in any order: which REGISTER is the later one must be beyond doubt.
        first.send(own.request(first, call, login=login, contact=contact), own.probe(first))
        yield AwaitRead(first)
        second.send(own.request(second, other, login=login_over_second, contact=contact), own.probe(second))
        yield AwaitResponse(first)
        answer = yield AwaitResponse(second)
        if not answer or answer.status != 200:
            raise NoResponse(f"over B: {answer and answer.status}")
        own.facts["read"] = True
        yield own.offset()
        first.close()
        yield from self.end(own)


class UnregisterAndReturn(TwoConnections):
    """A client unregisters and returns over a new connection."""

    name = "leave-and-return"
    title = "REGISTER Expires 0 and close, then REGISTER over B with another Call-ID; later B closes"
    profiles = ("main", "multi", "contact")

    def play(self, own: Repetition) -> Play:
        first, second = own.connections
        call, other = own.call(), own.call()
        login = yield from own.log_in(first, call)
        yield from own.register(first, call, login=login)
        login_over_second = yield from own.log_in(second, other)
        yield own.offset(0.02)
        # Two connections are read in any order: that the client has left before it returns must be beyond doubt.
        first.send(own.request(first, call, expires=0, login=login), own.probe(first))
        yield AwaitRead(first)
        first.reset() if own.dice.random() < 0.5 else first.close()
        yield own.offset()
        second.send(own.request(second, other, login=login_over_second))
        answer = yield AwaitResponse(second)
        if not answer or answer.status != 200:
            raise NoResponse(f"over B: {answer and answer.status}")
        yield from self.end(own)

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        own.facts["read"] = False
        wrong = super().judge(own, events, rows)
        if any(map(own.is_report, events[: own.marks[0]])):
            wrong.append("reported as lost")
        return wrong


class ContactList(TwoConnections):
    """A REGISTER lists several Contacts, of which one expires."""

    name = "move-in-list"
    title = "over C a new Contact, and the one of A with expires=0; A closes; that of A again over B; later B closes"
    profiles = ("multi", "contact")
    # The Contact of a WebSocket is another one over each connection.
    transports = ("tcp", "tls")
    connections = 3

    def play(self, own: Repetition) -> Play:
        first, second, third = own.connections
        call, other = own.call(), own.call()
        again = call if own.profile == "multi" else own.call()
        contact = own.contact(first)
        login = yield from own.log_in(first, call)
        yield from own.register(first, call, login=login, contact=contact)
        login_over_third = yield from own.log_in(third, other)
        login_over_second = yield from own.log_in(second, again)
        yield own.offset(0.02)
        contacts = f"{own.contact(third)}, {contact};expires=0"
        third.send(own.request(third, other, login=login_over_third, contact=contacts), own.probe(third))
        yield AwaitRead(third)
        first.reset() if own.dice.random() < 0.5 else first.close()
        yield own.offset()
        second.send(own.request(second, again, login=login_over_second, contact=contact))
        yield AwaitResponse(third)
        answer = yield AwaitResponse(second)
        if not answer or answer.status != 200:
            raise NoResponse(f"over B: {answer and answer.status}")
        third.close()
        yield from self.end(own)

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        own.facts["read"] = False
        wrong = super().judge(own, events, rows)
        if self.reports_of(own, events, own.connections[0]) and not own.stock:
            wrong.append("reported as lost")
        return wrong
