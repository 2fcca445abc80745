"""What came of a case, compared with what had to."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field

from scripts.errors import ToolkitError
from scripts.freeswitch.events import (
    REGISTER,
    UNREGISTER,
    Event,
    delay_ms,
    parse,
)
from scripts.scenario.cases import DOMAIN, PROFILE, Expectation
from scripts.scenario.outcome import counted, plural


@dataclass
class Observation:
    """What was seen in one case.

    `address` is the client's as FreeSWITCH must see it, `registered` the
    sofia::register event, `killed_ns` nanoseconds since the epoch, `events`
    all that came.
    """

    user: str
    transport: str
    subclass: str
    address: str = ""
    registered: Event | None = None
    killed_ns: int | None = None
    events: list[Event] = field(default_factory=list)

    def is_registration(self, event: Event) -> bool:
        return event.subclass == REGISTER and event.get("from-user") == self.user

    def is_report(self, event: Event) -> bool:
        return event.subclass == self.subclass

    @property
    def reports(self) -> list[Event]:
        return [event for event in self.events if self.is_report(event)]

    @property
    def unregisters(self) -> list[Event]:
        return [event for event in self.events if event.subclass == UNREGISTER]

    def came(self) -> str:
        """Return what came in the words of `Expectation`."""
        return counted(len(self.reports), len(self.unregisters))

    def timings(self) -> dict[str, float]:
        """Return the milliseconds between kill, detection and arrival."""
        if not self.reports:
            return {}
        event = self.reports[0]
        timings = {}
        if self.killed_ns is not None:
            timings["kill_to_event"] = (event.arrived_ns - self.killed_ns) / 1e6
        with contextlib.suppress(ToolkitError):
            timings["detected_to_event"] = delay_ms(parse(event), event.arrived_ns)
        return {key: round(value, 3) for key, value in timings.items()}


def judge(expected: Expectation, observation: Observation) -> list[str]:
    """Return what is not as `expected`, one line each; empty if all is."""
    problems = []
    if len(observation.reports) != expected.reports:
        problems.append(f"{plural(len(observation.reports), 'report')} instead of {expected.reports}")
    if len(observation.unregisters) != expected.unregisters:
        problems.append(f"{plural(len(observation.unregisters), 'unregister')} instead of {expected.unregisters}")
    for event in observation.unregisters:
        if event.get("from-user") != observation.user:
            problems.append(f"unregister of '{event.get('from-user')}' instead of '{observation.user}'")
    for event in observation.reports:
        try:
            problems += _judge_report(expected, observation, event)
        except ToolkitError as error:
            problems.append(str(error))
    return problems


def _judge_report(expected: Expectation, observation: Observation, event: Event) -> list[str]:
    found = parse(event)
    if observation.registered is None:
        return [f"a report of '{found.from_user}', which never registered"]
    registered = observation.registered
    wanted = {
        "profile-name": (found.profile_name, PROFILE),
        "from-user": (found.from_user, observation.user),
        "from-host": (found.from_host, DOMAIN),
        "contact": (found.contact, registered.get("contact")),
        "call-id": (found.call_id, registered.get("call-id")),
        "user-agent": (found.user_agent, registered.get("user-agent")),
        "network-ip": (found.network_ip, observation.address),
        "network-ip of sofia::register": (registered.get("network-ip"), observation.address),
        "network-port": (str(found.network_port), registered.get("network-port")),
        "transport": (found.transport, observation.transport),
        "registrations-left": (found.registrations_left, expected.registrations_left),
    }
    problems = [f"{name} is '{is_}', not '{must}'" for name, (is_, must) in wanted.items() if is_ != must]
    if (found.close_cause, found.error_name) not in expected.closes:
        problems.append(f"close-cause '{found.close_cause}' with error-name '{found.error_name}'")
    # FreeSWITCH's own clock, which registered-at is from, trails by some
    # milliseconds, which may be the end of a second.
    order = (found.connected_at, found.registered_at, found.detected_at_us // 1_000_000)
    if any(later < earlier - 1 for earlier, later in itertools.pairwise(order)):
        problems.append(
            f"connected-at {found.connected_at}, registered-at {found.registered_at} and "
            f"detected-at-us {found.detected_at_us} are not in that order"
        )
    if observation.killed_ns is not None and found.detected_at_us * 1000 < observation.killed_ns:
        problems.append(f"detected-at-us {found.detected_at_us} is before the kill ({observation.killed_ns} ns)")
    if found.detected_at_us * 1000 > event.arrived_ns:
        problems.append(f"detected-at-us {found.detected_at_us} is after the arrival ({event.arrived_ns} ns)")
    return problems
