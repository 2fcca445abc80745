"""What came of a step of a case, compared with what had to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from scripts.errors import ToolkitError
from scripts.freeswitch.events import CLOSE_CAUSES, REGISTER, UNREGISTER, Event, parse
from scripts.scenario.outcome import plural

# How long a right report may take, seconds. On an idle machine it takes milliseconds,
# on a busy one more than a second; what stock gets wrong takes half a minute.
LATE = 10.0
# FreeSWITCH's own clock, which registered-at is from, trails the system's by
# some milliseconds, which may be the end of a second.
CLOCK_SKEW = 1
# The clock of who ended the connection is read a little later than the kernel ends it, seconds.
TOLERANCE = 0.001
# The TLS code has no errno of its own to tell.
ERRNOS = {"peer-closed": {"NONE"}, "reset": {"ECONNRESET", "EPIPE", "EIO"}, "timeout": {"ETIMEDOUT", "EHOSTUNREACH"}}
# Stock code removes their registrations, whatever the profile says.
WEBSOCKET = frozenset({"ws", "wss"})
# A user, or so many with a number behind the name.
USERS = r"[A-Za-z0-9._-]+(\*[1-9][0-9]{0,3})?"
LEFT = re.compile(r"[0-9]{1,6}")
# What a report has in common with the registration that it is about.
SHARED = ("profile-name", "from-host", "contact", "call-id", "user-agent", "network-ip", "network-port")


@dataclass(frozen=True)
class Wanted:
    """One part of an outcome: `alias` (u*50 for the users u1 to u50) and what must come for each of them.

    `kind` is "report", with `left` and `causes`, "registered" (a report for
    each that registered), "unregistered" (by the server) or "itself" (by the client).
    """

    kind: str
    alias: str
    left: int = 0
    causes: frozenset[str] = frozenset()


def aliases(alias: str) -> list[str]:
    """Return the users that `alias` stands for: u1 to u50 for u*50."""
    name, star, count = alias.partition("*")
    return [f"{name}{number}" for number in range(1, int(count) + 1)] if star else [name]


def read(text: str) -> tuple[list[Wanted], bool]:
    """Return the parts of the outcome `text`, as in a table behind `->`, and whether they need not come.

    Raises ToolkitError, with the part, if it is none.
    """
    optional = text.startswith("at most ")
    found: list[Wanted] = []
    parts = text.removeprefix("at most ").split(";")
    for part in parts:
        named = next((word for word in part.split() if "*" in word and not re.fullmatch(USERS, word)), "")
        if named:
            raise ToolkitError(f"'{named}' are no users: write u*50 for u1 to u50, 9999 at most")
        match part.split():
            case ["nothing"] if len(parts) == 1:
                pass
            case ["each", "registered", alias, causes]:
                found.append(Wanted("registered", alias, 0, _causes(causes)))
            case [alias, "unregistered"]:
                found.append(Wanted("unregistered", alias))
            case [alias, "unregistered", "itself"]:
                found.append(Wanted("itself", alias))
            case [alias, left, "left", causes] if LEFT.fullmatch(left):
                found.append(Wanted("report", alias, int(left), _causes(causes)))
            case _:
                raise ToolkitError(
                    f"'{part.strip()}' is no outcome: write 'u 0 left peer-closed', 'u unregistered', "
                    "'u unregistered itself' or 'nothing', with semicolons between"
                )
    if optional and any(one.kind != "report" for one in found):
        raise ToolkitError("only reports can be 'at most': unregisters come or don't")
    if len({(one.alias, one.kind) for one in found}) < len(found):
        raise ToolkitError(f"'{text}' says two things of one user: write one, with the causes in it (reset|timeout)")
    return found, optional


def _causes(text: str) -> frozenset[str]:
    found = frozenset(text.split("|"))
    if unknown := found - CLOSE_CAUSES:
        raise ToolkitError(f"'{min(unknown)}' is no close-cause: one of {', '.join(sorted(CLOSE_CAUSES))}")
    return found


@dataclass
class Expected:
    """What must come of one step: reports (user, left, causes), unregisters by the server and by the user itself.

    With `optional` the reports need not come.
    """

    reports: list[tuple[str, int, frozenset[str]]] = field(default_factory=list)
    unregisters: list[str] = field(default_factory=list)
    itself: list[str] = field(default_factory=list)
    optional: bool = False


@dataclass
class Stage:
    """The outcome of one step with `->`; delays are from the step to detection and arrival, in seconds.

    `unasked` are those of the `unregisters` that stock code does whatever is expected.
    """

    step: str
    expected: Expected
    reports: int = 0
    unregisters: int = 0
    unasked: int = 0
    itself: int = 0
    delays: list[float] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class Scene:
    """What the judge knows of a case.

    `history` are all events since its start, `users` the aliases of its users,
    `transport` the case's and `transports` those of its Call-IDs over others,
    `ended` the near end of the connection that the step has ended, if it ended
    one, `before` when that was, in seconds since the epoch. `killed_ns` is when
    a process was killed, nanoseconds, read on the clock that stamps the reports.
    """

    history: Sequence[Event]
    users: Mapping[str, str]
    transport: str
    subclass: str
    before: float
    now: float
    ended: tuple[str, int] | None = None
    killed_ns: int | None = None
    # Nobody else is there: what comes about others is wrong, too.
    alone: bool = False
    transports: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def registered(self) -> Mapping[tuple[str, str, str], Event]:
        """The last event of each registration, by user, Call-ID and port of the far end."""
        return {
            (event.get("from-user"), event.get("call-id"), event.get("network-port")): event
            for event in self.history
            if event.subclass == REGISTER
        }

    def reports(self, events: Sequence[Event]) -> list[Event]:
        return [event for event in events if event.subclass == self.subclass and event.get("from-user") in self.users]

    def over(self, call_id: str) -> str:
        """Return the transport of the registration with this Call-ID."""
        return self.transports.get(call_id, self.transport)

    def unregisters(self, events: Sequence[Event]) -> list[Event]:
        return [event for event in events if disconnected(event) and event.get("from-user") in self.users]

    def left(self, events: Sequence[Event]) -> list[Event]:
        """Return the unregisters that the users have asked for."""
        return [
            event
            for event in events
            if event.subclass == UNREGISTER and not disconnected(event) and event.get("from-user") in self.users
        ]


def disconnected(event: Event) -> bool:
    """Return whether `event` is an unregister by the server, for a connection that ended."""
    return event.subclass == UNREGISTER and event.get("reason") == "socket-disconnection"


def judge(step: str, expected: Expected, came: Sequence[Event], scene: Scene) -> Stage:
    """Return the stage of `step`: what `came` in its time, and what of it is not as `expected`."""
    stage = Stage(step, expected)
    reports, unregisters, left = scene.reports(came), scene.unregisters(came), scene.left(came)
    stage.reports, stage.unregisters, stage.itself = len(reports), len(unregisters), len(left)
    if not expected.unregisters:
        unregisters = [event for event in unregisters if scene.over(event.get("call-id")) not in WEBSOCKET]
    stage.unasked = stage.unregisters - len(unregisters)
    stage.problems += _counted(
        "report", [user for user, _, _ in expected.reports], reports, scene.users, expected.optional
    )
    stage.problems += _counted("unregister by the server", expected.unregisters, unregisters, scene.users)
    stage.problems += _counted("unregister", expected.itself, left, scene.users)
    if scene.alone:
        stage.problems += _strangers(came, scene)
    details = {user: (number, causes) for user, number, causes in expected.reports}
    for event in reports:
        if event.get("from-user") in details:
            stage.problems += _report(event, *details[event.get("from-user")], scene, stage)
    return stage


def _counted(
    noun: str, must: Sequence[str], events: Sequence[Event], users: Mapping[str, str], optional: bool = False
) -> list[str]:
    wanted, came = Counter(must), Counter(event.get("from-user") for event in events)
    head, _, tail = noun.partition(" ")
    return [
        f"{plural(came[user], head)}{tail and ' ' + tail} instead of {wanted[user]} for {users[user]}"
        for user in sorted(wanted | came)
        if came[user] != wanted[user] and not (optional and came[user] < wanted[user])
    ]


def _strangers(came: Sequence[Event], scene: Scene) -> list[str]:
    return [
        f"{'report' if event.subclass == scene.subclass else 'unregister'} of '{event.get('from-user')}', "
        "who is not in this case"
        for event in came
        if event.subclass in (scene.subclass, UNREGISTER) and event.get("from-user") not in scene.users
    ]


def _report(event: Event, left: int, causes: frozenset[str], scene: Scene, stage: Stage) -> list[str]:
    try:
        found = parse(event)
    except ToolkitError as error:
        return [str(error)]
    alias = scene.users[found.from_user]
    registered = scene.registered.get((found.from_user, found.call_id, str(found.network_port)))
    if registered is None:
        return [f"report for {alias} with Call-ID {found.call_id}, port {found.network_port}: never registered"]
    wanted: dict[str, tuple[object, object]] = {name: (event.get(name), registered.get(name)) for name in SHARED}
    wanted["transport"] = (found.transport, scene.over(found.call_id))
    wanted["registrations-left"] = (found.registrations_left, left)
    wrong = {name: pair for name, pair in wanted.items() if pair[0] != pair[1]}
    problems = [f"{name} for {alias} is {came!r}, not {must!r}" for name, (came, must) in wrong.items()]
    here = (found.network_ip, found.network_port)
    if scene.ended and here != scene.ended and not {"network-ip", "network-port"} & wrong.keys():
        problems.append(f"network-ip and network-port for {alias} are {here}, not {scene.ended}")
    if found.close_cause not in causes:
        problems.append(f"close-cause for {alias} is {found.close_cause}, not {' or '.join(sorted(causes))}")
    elif found.error_name not in ERRNOS.get(found.close_cause, {found.error_name}):
        problems.append(f"error-name for {alias} is {found.error_name} with close-cause {found.close_cause}")
    # A REGISTER of a storm may be answered when its connection has ended.
    latest = found.detected_at_us // 10**6 if scene.ended else int(scene.now)
    if not found.connected_at - CLOCK_SKEW <= found.registered_at <= latest:
        problems.append(
            f"connected-at {found.connected_at}, registered-at {found.registered_at} and "
            f"detected-at-us {found.detected_at_us} are not in that order"
        )
    return problems + _times(event, found.detected_at_us, scene, stage)


def _times(event: Event, detected_at_us: int, scene: Scene, stage: Stage) -> list[str]:
    detected, arrived = detected_at_us / 1e6 - scene.before, event.arrived_ns / 1e9 - scene.before
    stage.delays.append(detected)
    stage.arrivals.append(arrived)
    problems = []
    if detected_at_us * 1000 > event.arrived_ns:
        problems.append(f"detected-at-us {detected_at_us} is after the arrival ({event.arrived_ns} ns)")
    if scene.killed_ns is not None:
        if detected_at_us * 1000 < scene.killed_ns:
            problems.append(f"detected-at-us {detected_at_us} is before the kill ({scene.killed_ns} ns)")
    elif not stage.expected.optional and "storm" not in stage.step and detected < -TOLERANCE:
        problems.append(f"detected-at-us {detected_at_us} is {-detected:.3f} s before the end of the connection")
    if arrived > LATE:
        problems.append(f"came {arrived:.3f} s after the end")
    return problems


def expect(wanted: Sequence[Wanted], optional: bool, users_of: Callable[[str], Sequence[str]]) -> Expected:
    """Return what is expected of the users that `users_of` returns for each alias; not of those that registered."""
    expected = Expected(optional=optional)
    for one in wanted:
        for user in users_of(one.alias):
            if one.kind == "report":
                expected.reports.append((user, one.left, one.causes))
            elif one.kind == "unregistered":
                expected.unregisters.append(user)
            elif one.kind == "itself":
                expected.itself.append(user)
    return expected
