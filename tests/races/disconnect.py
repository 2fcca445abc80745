"""Races of clients whose one connection ends: phones with several lines, proxies, many at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from scripts.freeswitch.events import UNREGISTER
from tests.races.events import Headers
from tests.races.race import Race
from tests.races.repetition import Repetition
from tests.races.steps import AwaitEvents, AwaitResponse, Play, Sleep


class MultipleLines(Race):
    """The lines of one phone share a connection, which ends."""

    name = "lines"
    title = "three lines of one phone: one Call-ID, one nonce; close"
    profiles = ("multi",)
    users = 3
    # All three within a second.
    window = 8

    def play(self, own: Repetition) -> Play:
        connection, call = own.connections[0], own.call()
        login = yield from own.log_in(connection, call)
        # With a nonce in common one has to be done before the next one.
        together = not login and own.dice.random() < 0.5
        for user in own.users:
            connection.send(own.request(connection, call, user=user, login=login))
            if not together:
                yield AwaitResponse(connection)
        for _ in own.users if together else ():
            yield AwaitResponse(connection)
        rows = yield AwaitEvents(lambda events: sum(map(own.is_register, events)) == len(own.users))
        own.facts["rows"] = sorted(row["user"].partition("@")[0] for row in rows.get(call, ()))
        connection.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return sum(map(own.is_report, events)) >= len(own.facts["rows"])

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        came = sorted(event.get("from-user", "") for event in events if own.is_report(event))
        wanted = own.facts["rows"]
        if not wanted:
            return ["no row"]
        if came == wanted:
            return []
        return [f"{len(wanted)} rows, {len(came)} reports" if len(wanted) != len(came) else "reports of other users"]


class SamePort(Race):
    """A client is reset and back over a connection with the same address and port."""

    name = "back"
    title = "RST, back at once from the same source port with the same Call-ID"
    profiles = ("remove", "both")

    def play(self, own: Repetition) -> Play:
        connection, call = own.connections[0], own.call()
        login = yield from own.log_in(connection, call)
        yield from own.register(connection, call, login=login)
        yield own.offset(0.02)
        connection.reset()
        yield own.offset()
        again = own.reopen(connection)
        answer = yield from own.register(again, call, login=login)
        own.facts["status"] = answer.status
        rows = yield AwaitEvents(lambda events: sum(map(own.is_register, events)) == 2 and own.online(events))
        own.facts["rows"] = len(rows.get(call, ()))
        again.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return any(map(own.is_report, events[own.marks[0] :]))

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        before, after = events[: own.marks[0]], events[own.marks[0] :]
        wrong = []
        if not own.facts["rows"]:
            wrong.append("the new row is deleted")
        if not own.online(before):
            wrong.append("ends offline, alive")
        if sum(map(own.is_report, before)) > 1:
            wrong.append("the first end is reported twice")
        if sum(map(own.is_report, after)) != 1:
            wrong.append(f"the second end is reported {sum(map(own.is_report, after))} times")
        if (
            any(event["Event-Subclass"] == UNREGISTER for event in before[2:])
            and before[-1]["Event-Subclass"] == UNREGISTER
        ):
            wrong.append("the last event is an unregister, alive")
        if sum(event["Event-Subclass"] == UNREGISTER for event in after) > 1:
            wrong.append("unregistered twice")
        if rows:
            wrong.append("row stays")
        return wrong


class RegisterStorm(Race):
    """A storm of clients that register and close their connections at once."""

    name = "storm"
    title = "many clients REGISTER and close at once"
    profiles = ("remove", "both")
    pace = 0

    def play(self, own: Repetition) -> Play:
        connection, call = own.connections[0], own.call()
        login = yield from own.log_in(connection, call)
        yield Sleep(own.dice.uniform(0, 0.05))
        connection.send(own.request(connection, call, login=login))
        yield own.offset()
        connection.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return any(map(own.is_report, events))

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        registered, reports = sum(map(own.is_register, events)), sum(map(own.is_report, events))
        removed = sum(event["Event-Subclass"] == UNREGISTER for event in events)
        wrong = []
        if reports != registered:
            wrong.append(f"registered {registered} times, {reports} reports")
        if removed > 1:
            wrong.append("unregistered twice")
        if own.online(events):
            wrong.append("ends online, nobody there")
        if rows:
            wrong.append("row stays")
        return wrong


class Trunk(Race):
    """Several users over one connection of a proxy, which ends."""

    name = "trunk"
    title = "a proxy in front (REGISTER with a Path header), which closes its connection or loses it"
    profiles: ClassVar[tuple[str, ...]] = ("main", "multi", "remove", "both")
    users = 3

    def play(self, own: Repetition) -> Play:
        connection = own.connections[0]
        host, port = connection.near
        calls = [own.call() for _ in own.users]
        logins = []
        for user, call in zip(own.users, calls, strict=True):
            logins.append((yield from own.log_in(connection, call, user)))
        waits = own.dice.random() < 0.5
        for user, call, login in zip(own.users, calls, logins, strict=True):
            more = f"Path: <sip:{host}:{port};transport={connection.transport};lr>\r\nSupported: path\r\n"
            contact = f"<sip:{user}@192.0.2.{own.dice.randrange(1, 255)}:5060>"
            connection.send(own.request(connection, call, user=user, login=login, more=more, contact=contact))
            if waits:
                yield AwaitResponse(connection)
        yield own.offset()
        connection.reset() if waits and own.dice.random() < 0.5 else connection.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return bool(own.facts["trunks"]())

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        wrong = []
        trunks = own.facts["trunks"]()
        if any(map(own.is_report, events)):
            wrong.append("users reported as lost")
        if any(event["Event-Subclass"] == UNREGISTER for event in events):
            wrong.append("users unregistered")
        # A password that another thread does not know yet is refused.
        registered = sum(map(own.is_register, events))
        if not registered:
            wrong.append("nobody registered")
        if len(rows) != registered:
            wrong.append("users removed")
        if own.stock:
            return wrong
        if len(trunks) != 1:
            wrong.append(f"{len(trunks)} events of the trunk")
        elif trunks[0].get("registrations") != str(registered):
            wrong.append("the event of the trunk counts wrongly")
        return wrong


class TrunkErrorPath(Trunk):
    """The same connection of a proxy, on a profile that reports its users."""

    name = "trunk-old-way"
    title = "the same with tp-error-path"
    profiles = ("path",)
    on_stock = False

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return sum(map(own.is_report, events)) == sum(map(own.is_register, events)) > 0

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        came = sorted(event["from-user"] for event in events if own.is_offline(event))
        registered = sorted(event["from-user"] for event in events if own.is_register(event))
        return [] if came == registered else [f"{len(came)} reports of {len(registered)} users"]


class ContactExpires(Race):
    """A Contact expires in the REGISTER that renews another one, or itself."""

    name = "contact-expires"
    title = "Contact with expires=0 together with Expires 3600, or old;expires=0 and new in one REGISTER"
    profiles = ("main", "multi", "contact")

    def play(self, own: Repetition) -> Play:
        connection, call = own.connections[0], own.call()
        login = yield from own.log_in(connection, call)
        old = f"<sip:{own.user}-old@192.0.2.1:5060;transport={connection.transport}>"
        own.facts["renew"] = renew = own.dice.random() < 0.5
        yield from own.register(connection, call, login=login, contact=old if renew else "")
        contact = f"{old};expires=0, {own.contact(connection)}" if renew else f"{own.contact(connection)};expires=0"
        connection.send(own.request(connection, call, login=login, contact=contact))
        if own.dice.random() < 0.5:
            yield AwaitResponse(connection)
        yield own.offset()
        rows: dict[str, list[Headers]] = {}
        if renew:
            rows = yield AwaitEvents(lambda events: len([event for event in events if own.is_register(event)]) == 2)
        own.facts["contacts"] = [row["contact"] for row in rows.get(call, ())]
        connection.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return any(map(own.is_report if own.facts["renew"] else own.is_leave, events))

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        reports = sum(map(own.is_report, events))
        wrong = []
        if own.facts["renew"]:
            mine = own.contact(own.connections[0]).partition(";")[0].lstrip("<")
            if len(own.facts["contacts"]) != 1 or mine not in own.facts["contacts"][0]:
                wrong.append("the old contact is stored")
            if reports != 1:
                wrong.append(f"its end is reported {reports} times")
            return wrong
        if not any(map(own.is_leave, events)):
            wrong.append("stays registered")
        if reports:
            wrong.append("reported as lost")
        if rows:
            wrong.append("row stays")
        return wrong


class MassDisconnect(Race):
    """Thousands of registered connections die at once, and one more client goes on."""

    name = "crowd"
    title = "thousands of registered connections die, another client wants to register"
    profiles = ("remove",)
    transports = ("tcp", "ws")
    pace = pace_after = 0
    # One by one, slower than what a burst would fill the queue of messages with.
    asks, ask_pace = 100, 0.01
    repetitions, least = 6000, 2000
    digest = False

    def repetitions_over(self, transport: str) -> int:
        return self.repetitions if transport == "tcp" else self.least

    def play(self, own: Repetition) -> Play:
        connection, call = own.connections[0], own.call()
        if own.number == 0:
            yield AwaitEvents(lambda events: True)
            # It finds them dead all at once.
            own.container.pause()
            yield Sleep(1)
            own.container.unpause()
            for _ in range(self.asks):
                connection.send(own.request(connection, call))
                yield Sleep(self.ask_pace)
            own.facts["refused"] = refused = Counter[str]()
            for _ in range(self.asks):
                answer = yield AwaitResponse(connection)
                if not answer or answer.status != 200:
                    refused[answer.head.partition("\r\n")[0] if answer else "no answer"] += 1
            connection.close()
            return
        yield from own.register(connection, call)
        yield AwaitEvents(lambda events: any(map(own.is_register, events)))
        connection.reset() if own.number % 2 else connection.close()

    def done(self, own: Repetition, events: Sequence[Headers]) -> bool:
        return any(map(own.is_report, events))

    def judge(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> list[str]:
        reports = sum(map(own.is_report, events))
        wrong = [f"reported {reports} times"] if reports != 1 else []
        if rows:
            wrong.append("row stays")
        for answer, count in own.facts.get("refused", {}).items():
            wrong.append(f"another client gets {answer} {count} of {self.asks} times")
        return wrong
