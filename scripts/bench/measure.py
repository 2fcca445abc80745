"""The measurements, each of one server (or of several at the same time)."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scripts.bench.box import Box, Memory
from scripts.bench.crowd import Met, serve_crowd
from scripts.bench.figures import Sample
from scripts.bench.load import Owner, Pace, Target, Worker, user
from scripts.bench.stream import Reader, Stamped
from scripts.errors import ToolkitError

# Seconds in which a duplicate of a report would have to come.
SETTLE = 1.0
# Seconds without a report after which the rest counts as lost, and for a whole storm.
SILENCE, LIMIT = 10.0, 300.0
# The same beside offenders.
LOST = 3.0
# Seconds for a crowd to come and to go, and for which the others have been at it before it offends.
LEAD = 0.2
DISCONNECTED = "socket-disconnection"


class Server(Protocol):
    """What a measurement needs of a FreeSWITCH (`box.Box`) or a Kamailio (`kamailio.Kamailio`)."""

    name: str

    def target(self, connections: int) -> Target: ...
    def reader(self) -> Reader: ...
    def cpu(self) -> float: ...
    def cpu_of_threads(self) -> float: ...
    def memory(self) -> Memory: ...
    def forget(self) -> None: ...


@dataclass(frozen=True)
class Storm:
    """What came of killing the owner of `connections` connections.

    `seconds` is from the kill to the last report, `cpu` what the server used
    until a second after it, `times` when each report came (seconds after the kill).
    """

    connections: int
    seconds: float
    cpu: float
    lost: int
    twice: int
    times: Sequence[float]
    registered: Pace

    @property
    def per_report(self) -> float:
        """Seconds from the kill to the last report, for each."""
        return self.seconds / max(1, self.connections)


def storm(box: Server, connections: int) -> Storm:
    """Register over `connections` connections and kill their owner."""
    names = [user(number) for number in range(connections)]
    with box.reader() as reader, Owner(box.target(connections), names) as owner:
        pace = checked(owner.do("register"), connections)
        time.sleep(SETTLE)
        before = box.cpu()
        killed = owner.kill()
        reader.wait(connections, SILENCE, LIMIT)
        time.sleep(SETTLE)
        cpu = box.cpu() - before
        events = [event for event in reader.take() if is_report(event)]
    box.forget()
    return reckon(events, names, killed, cpu, pace)


def reckon(events: Sequence[Stamped], names: Sequence[str], killed_ns: int, cpu: float, pace: Pace) -> Storm:
    """Return what the reports `events` of a storm say about the users `names`."""
    counts = Counter(event.headers.get("from-user", "") for event in events)
    times = [(event.arrived_ns - killed_ns) / 1e9 for event in events]
    return Storm(
        connections=len(names),
        seconds=max(times, default=0.0),
        cpu=cpu,
        lost=sum(name not in counts for name in names),
        twice=sum(count - 1 for count in counts.values()),
        times=times,
        registered=pace,
    )


def is_report(event: Stamped) -> bool:
    """Return whether `event` is what tells of a lost connection: the report, or stock's unregister for that reason."""
    return "error-name" in event.headers or event.headers.get("reason") == DISCONNECTED


def checked(pace: Pace, count: int) -> Pace:
    """Return `pace`; ToolkitError if not all `count` requests were accepted."""
    if pace.answered != count:
        raise ToolkitError(f"the server accepted {pace.answered} of {count} requests and refused {pace.refused}")
    return pace


@dataclass(frozen=True)
class Work:
    """How many requests a second, and CPU seconds of the server for each."""

    rate: float
    cpu: float


def work(box: Server, owner: Owner, count: int, command: str, *arguments: object) -> Work:
    """Have `owner` carry out `command`, which makes `count` requests."""
    before = box.cpu()
    pace = checked(owner.do(command, *arguments), count)
    return Work(pace.answered / pace.seconds, (box.cpu() - before) / count)


@dataclass(frozen=True)
class Registrar:
    """How fast REGISTER requests were served: new ones, and those that refresh."""

    register: Work
    refresh: Work


def registrar(box: Server, connections: int, rounds: int) -> Registrar:
    """Register over `connections` connections and refresh all `rounds` times."""
    with Owner(box.target(connections), [user(number) for number in range(connections)]) as owner:
        first = work(box, owner, connections, "register")
        again = work(box, owner, connections * rounds, "refresh", rounds)
    # What the kill leads to must not go into the next run.
    time.sleep(SETTLE)
    box.forget()
    return Registrar(first, again)


def calls(box: Server, count: int, window: int = 4) -> Work:
    """Make `count` calls that are answered and hung up at once."""
    with Owner(box.target(1)) as owner:
        result = work(box, owner, count, "call", count, window)
    time.sleep(SETTLE)
    return result


def quiet(box: Server, limit: float = 5.0) -> None:
    """Wait until the server uses next to no CPU, `limit` seconds at most."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        before = box.cpu()
        time.sleep(0.5)
        if box.cpu() - before < 0.03:
            return


@dataclass(frozen=True)
class Footprint:
    """Bytes per registration; `proportional` is 0 if it may not be read."""

    resident: float
    proportional: float


def footprint(box: Server, connections: int) -> Footprint:
    """Return what each registration adds to the memory of a server that has none yet."""
    # What is allocated once, with the first registrations, is not counted.
    with Owner(box.target(200), [f"first{number}" for number in range(200)]) as first:
        checked(first.do("register"), 200)
        quiet(box)
        before = box.memory()
        with Owner(box.target(connections), [user(number) for number in range(connections)]) as owner:
            checked(owner.do("register"), connections)
            quiet(box)
            after = box.memory()
    proportional = after.proportional - before.proportional if before.proportional else 0
    return Footprint((after.resident - before.resident) / connections, proportional / connections)


def latency(box: Server, count: int, gap: float, seed: int) -> list[float]:
    """Close `count` connections one by one; return the seconds from each FIN to the arrival of its event.

    The pauses are random, `gap` seconds on average, so that they don't keep
    step with anything in the server.
    """
    dice = random.Random(seed)
    names = [user(number) for number in range(count)]
    with box.reader() as reader, Owner(box.target(count), names) as owner:
        checked(owner.do("register"), count)
        time.sleep(SETTLE)
        closed = owner.do("finish", 0, [dice.uniform(0.5, 1.5) * gap for _ in names])
        reader.wait(count, SILENCE, LIMIT)
        arrived = {event.headers.get("from-user"): event.arrived_ns for event in reader.take() if is_report(event)}
    box.forget()
    missing = [name for name in names if name not in arrived]
    if missing:
        raise ToolkitError(f"{len(missing)} of {count} closed connections were not reported ({box.name})")
    return [(arrived[name] - moment) / 1e9 for name, moment in zip(names, closed, strict=True)]


def idle(boxes: Sequence[Server], seconds: float) -> list[float]:
    """Return the share of a core that each of `boxes` uses at the same time with one subscriber and nothing to do."""
    with contextlib.ExitStack() as stack:
        for box in boxes:
            stack.enter_context(box.reader())
        time.sleep(1)
        before = [box.cpu_of_threads() for box in boxes]
        start = time.monotonic()
        time.sleep(seconds)
        after = [box.cpu_of_threads() for box in boxes]
        passed = time.monotonic() - start
    return [(late - early) / passed for early, late in zip(before, after, strict=True)]


@dataclass(frozen=True)
class Burden:
    """What became of FreeSWITCH while a subscriber did not read, or vanished.

    `answers` are the seconds that REGISTER and OPTIONS took meanwhile, None
    for those without an answer; `resident` the bytes it held before, and after
    each storm.
    """

    events: int
    answers: Sequence[float | None]
    resident: Sequence[int]


def burden(box: Box, connections: int, rounds: int, gone: bool) -> Burden:
    """Have `rounds` storms with a subscriber that never reads or, if `gone`, vanishes in the middle of each."""
    names = [user(number) for number in range(connections)]
    answers: list[float | None] = []
    with contextlib.ExitStack() as stack:
        slow = None
        resident: list[int] = []
        reader = stack.enter_context(box.reader())
        for turn in range(1, rounds + 1):
            if gone or slow is None:
                slow = box.login(receive_buffer=4096)
                slow.command(f"event plain CUSTOM {box.subclass}")
                stack.callback(slow.sock.close)
            with Owner(box.target(1)) as prober, Owner(box.target(connections), names) as owner:
                checked(owner.do("register"), connections)
                resident = resident or [box.memory().resident]
                prober.begin("probe", 0.005)
                time.sleep(0.2)
                owner.kill()
                if gone:
                    time.sleep(0.1)
                    slow.sock.close()
                reader.wait(connections * turn, SILENCE, LIMIT)
                time.sleep(SETTLE)
                prober.begin("stop")
                answers += [seconds for _, seconds in prober.result()]
                resident.append(box.memory().resident)
    box.forget()
    return Burden(connections * rounds, answers, resident)


def flood(box: Box, events: int, batch: int = 200) -> Burden:
    """Fire `events` copies of a report at a subscriber that never reads.

    That many registrations would take long; the queue, which is what can grow,
    is the same for an event that comes from `sendevent`.
    """
    headers = {
        "profile-name": "internal",
        "from-user": "u000001",
        "from-host": "bench.test",
        "contact": '"u000001" <sip:u000001@192.0.2.1:10000;transport=tcp>',
        "call-id": "u000001-10000@192.0.2.1",
        "user-agent": "bench",
        "network-ip": "192.0.2.1",
        "network-port": "10000",
        "transport": "tcp",
        "close-cause": "peer-closed",
        "error-code": "0",
        "error-name": "NONE",
        "error-phrase": "Connection closed",
        "registrations-left": "0",
        "connected-at": "1700000000",
        "registered-at": "1700000000",
        "detected-at-us": "1700000000000000",
    }
    lines = "".join(f"{name}: {value}\n" for name, value in headers.items())
    command = f"sendevent CUSTOM\nEvent-Subclass: {box.subclass}\n{lines}\n".encode()
    with contextlib.ExitStack() as stack:
        slow, sender = box.login(receive_buffer=4096), box.login()
        stack.callback(slow.sock.close)
        stack.callback(sender.sock.close)
        slow.command(f"event plain CUSTOM {box.subclass}")
        prober = stack.enter_context(Owner(box.target(1)))
        resident = [box.memory().resident]
        prober.begin("probe", 0.02)
        sent = 0
        while sent < events:
            sender.sock.sendall(command * batch)
            sender.skip(batch)
            sent += batch
            if sent % 10_000 == 0:
                resident.append(box.memory().resident)
        prober.begin("stop")
        answers = [seconds for _, seconds in prober.result()]
    quiet(box)
    resident.append(box.memory().resident)
    return Burden(sent, answers, resident)


def sample(met: Met, events: Sequence[Stamped], reported: bool = True) -> Sample:
    """Return what the others met; `events` has their reports if deaths are `reported` at all."""
    if not reported:
        return Sample(met.answers, met.unanswered)
    arrived = {event.headers.get("from-user", ""): event.arrived_ns for event in events if is_report(event)}
    times = [(arrived[name] - died) / 1e9 for name, died in met.deaths.items() if name in arrived]
    return Sample(met.answers, met.unanswered, times, len(met.deaths) - len(times))


def beside(
    box: Box, others: Worker, reader: Reader | None, seconds: float, offender: str = "", over: Sequence[str] = ()
) -> Sample:
    """Let the others live for `seconds` beside a crowd that does what `offender` does, a client for each of `over`.

    Without a name there is nobody else; without a `reader` no reports are
    waited for. Raises ToolkitError if the crowd can't come.
    """
    with contextlib.ExitStack() as stack:
        crowd = stack.enter_context(Worker(serve_crowd)) if offender else None
        if crowd:
            crowd.do("come", offender, over, box.targets())
            time.sleep(LEAD)
        before = reader.count if reader else 0
        others.begin("live", seconds)
        if crowd:
            time.sleep(LEAD)
            crowd.do("offend")
        met: Met = others.result()
        events: list[Stamped] = []
        if reader:
            # While the offenders are still there.
            reader.wait(before + len(met.deaths), LOST, LIMIT)
            events = reader.take()
    time.sleep(LEAD)
    box.forget()
    return sample(met, events, reader is not None)
