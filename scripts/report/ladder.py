"""The ladder diagram of a case: the captured packets, what was done and the events, in the order of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from scripts.errors import ToolkitError
from scripts.freeswitch.capture import Capture
from scripts.freeswitch.events import REGISTER, UNREGISTER, Event, parse
from scripts.freeswitch.packets import Packet, dissect, ends

# A pause that is worth a row of its own, nanoseconds.
GAP_NS = 250_000_000


class Lane(IntEnum):
    """The vertical lines of the diagram, from the left."""

    CLIENT = 0
    SERVER = 1
    SUBSCRIBER = 2


class StepKind(StrEnum):
    """The kind of a step; the names are those of its CSS classes."""

    TCP = "tcp"
    END = "end"
    SIP = "sip"
    KILL = "kill"
    DETECTED = "detected"
    EVENT = "event"
    REPORT = "report"


@dataclass(frozen=True)
class Step:
    """One row: an arrow from `source` to `target`, or a point if they are the same."""

    when_ns: int
    kind: StepKind
    source: Lane
    target: Lane
    label: str
    note: str = ""
    text: str = ""


@dataclass(frozen=True)
class Ladder:
    """A whole diagram. `killed_ns` is None if nobody was killed."""

    client: str
    server: str
    steps: Sequence[Step]
    packets: Sequence[Packet]
    killed_ns: int | None = None

    @property
    def start_ns(self) -> int:
        """The moment that all times are relative to."""
        return self.steps[0].when_ns

    @property
    def end_ns(self) -> int | None:
        """When the client's end of the connection arrived after the kill, None if it never did."""
        return None if self.killed_ns is None else min(ends(self.packets, self.killed_ns), default=None)

    @property
    def missing(self) -> int:
        """How many bytes were sent that are not captured: what is still missing before the last of each direction."""
        last = {(packet.source, packet.target): packet.missing for packet in self.packets}
        return sum(last.values())


def build(capture: Capture, events: Sequence[Event], subclass: str) -> Ladder:
    """Return the diagram of what `capture` and `events` tell; `subclass` is that of the reports.

    Raises ToolkitError, on one line, if there is nothing to draw.
    """
    if capture.problem:
        raise ToolkitError(capture.problem)
    packets = list(dissect(capture))
    if not packets:
        raise ToolkitError("tcpdump ran, and saw no packet of this case")
    first = packets[0]
    client, server = (first.source, first.target) if first.from_client else (first.target, first.source)
    known = {packet.client for packet in packets}
    steps = [step for packet in packets for step in _arrows(packet, several=len(known) > 1)]
    if capture.killed_ns is not None:
        steps.append(Step(capture.killed_ns, StepKind.KILL, Lane.CLIENT, Lane.CLIENT, "SIGKILL"))
    for event in events:
        steps += _event(event, subclass)
    return Ladder(client, server, sorted(steps, key=lambda step: step.when_ns), packets, capture.killed_ns)


def _arrows(packet: Packet, several: bool) -> Iterator[Step]:
    """Yield the arrows of a packet: one for its flags and one for each message; a bare ACK has none."""
    lanes = (Lane.CLIENT, Lane.SERVER) if packet.from_client else (Lane.SERVER, Lane.CLIENT)
    note = "sent again" if packet.again else ""
    flags = [word for word in packet.flags.split() if word != "PSH"]
    for message in packet.messages:
        yield Step(packet.when_ns, StepKind.SIP, *lanes, message.label, note, message.text)
    if packet.again:
        yield Step(packet.when_ns, StepKind.TCP, *lanes, f"{packet.length} bytes", note)
    if "SYN" in flags or packet.ends:
        where = f"port {packet.client.rpartition(':')[2]}" if several else ""
        yield Step(packet.when_ns, StepKind.END if packet.ends else StepKind.TCP, *lanes, ", ".join(flags), where)


def _event(event: Event, subclass: str) -> Iterator[Step]:
    """Yield the arrival of an event and, of a report, the moment when the end was noticed."""
    name = event.subclass
    text = "\n".join(f"{key}: {value}" for key, value in event.headers.items())
    if name == subclass:
        note = f"{event.get('close-cause')}, {event.get('registrations-left')} left"
        try:
            detected_ns = parse(event).detected_at_us * 1000
            yield Step(detected_ns, StepKind.DETECTED, Lane.SERVER, Lane.SERVER, "end noticed", "detected-at-us")
        except ToolkitError as error:
            note = str(error)
        yield Step(event.arrived_ns, StepKind.REPORT, Lane.SERVER, Lane.SUBSCRIBER, name, note, text)
    else:
        note = event.get("from-user") if name in (REGISTER, UNREGISTER) else ""
        yield Step(event.arrived_ns, StepKind.EVENT, Lane.SERVER, Lane.SUBSCRIBER, name, note, text)
