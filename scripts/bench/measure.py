"""The measurements, each of one server (or of several at the same time)."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scripts.bench.container import FreeSwitchContainer, Memory
from scripts.bench.figures import Sample
from scripts.bench.interference import BystanderTimings, serve_offenders
from scripts.bench.load import Endpoint, LoadGenerator, LoadResult, Worker, user
from scripts.bench.stream import EventReader, TimestampedEvent
from scripts.errors import ToolkitError

# Seconds in which a duplicate of a report would have to come.
SETTLE = 1.0
# Seconds without a report after which the rest counts as lost, and for a whole storm.
SILENCE, LIMIT = 10.0, 300.0
# The same of bystanders.
LOST = 3.0
# Seconds for offenders to connect and to be gone, and for which the bystanders have been at it before they begin.
LEAD = 0.2
DISCONNECTED = "socket-disconnection"


class Server(Protocol):
    """What a measurement needs of a server: of FreeSWITCH (`container`) or Kamailio (`kamailio`)."""

    name: str

    def target(self, connections: int) -> Endpoint: ...
    def reader(self) -> EventReader: ...
    def cpu(self) -> float: ...
    def cpu_of_threads(self) -> float: ...
    def memory(self) -> Memory: ...
    def forget(self) -> None: ...


@dataclass(frozen=True)
class StormResult:
    """The result of a storm: of killing the owner of `connections` connections.

    `seconds` is from the kill to the last report, `cpu` what the server used
    until a second after it, `times` when each report came (seconds after the kill).
    """

    connections: int
    seconds: float
    cpu: float
    lost: int
    twice: int
    times: Sequence[float]
    registered: LoadResult

    @property
    def per_report(self) -> float:
        """Seconds from the kill to the last report, for each."""
        return self.seconds / max(1, self.connections)


def storm(server: Server, connections: int) -> StormResult:
    """Register over `connections` connections and kill their owner."""
    names = [user(number) for number in range(connections)]
    with server.reader() as reader, LoadGenerator(server.target(connections), names) as generator:
        result = checked(generator.do("register"), connections)
        time.sleep(SETTLE)
        before = server.cpu()
        killed = generator.kill()
        reader.wait(connections, SILENCE, LIMIT)
        time.sleep(SETTLE)
        cpu = server.cpu() - before
        events = [event for event in reader.take() if is_report(event)]
    server.forget()
    return storm_result(events, names, killed, cpu, result)


def storm_result(
    events: Sequence[TimestampedEvent], names: Sequence[str], killed_ns: int, cpu: float, result: LoadResult
) -> StormResult:
    """Return what the reports `events` of a storm say about the users `names`."""
    counts = Counter(event.headers.get("from-user", "") for event in events)
    times = [(event.arrived_ns - killed_ns) / 1e9 for event in events]
    return StormResult(
        connections=len(names),
        seconds=max(times, default=0.0),
        cpu=cpu,
        lost=sum(name not in counts for name in names),
        twice=sum(count - 1 for count in counts.values()),
        times=times,
        registered=result,
    )


def is_report(event: TimestampedEvent) -> bool:
    """Return whether `event` is what tells of a lost connection: the report, or stock's unregister for that reason."""
    return "error-name" in event.headers or event.headers.get("reason") == DISCONNECTED


def checked(result: LoadResult, count: int) -> LoadResult:
    """Return `result`; ToolkitError if not all `count` requests were accepted."""
    if result.answered != count:
        raise ToolkitError(f"the server accepted {result.answered} of {count} requests and refused {result.refused}")
    return result


@dataclass(frozen=True)
class RequestRate:
    """The rate of requests per second, and the CPU seconds of the server for each."""

    rate: float
    cpu: float


def request_rate(server: Server, generator: LoadGenerator, count: int, command: str, *arguments: object) -> RequestRate:
    """Have `generator` carry out `command`, which makes `count` requests."""
    before = server.cpu()
    result = checked(generator.do(command, *arguments), count)
    return RequestRate(result.answered / result.seconds, (server.cpu() - before) / count)


@dataclass(frozen=True)
class RegisterRates:
    """The rates at which REGISTER requests were served: new ones, and those that refresh."""

    register: RequestRate
    refresh: RequestRate


def registrar(server: Server, connections: int, rounds: int) -> RegisterRates:
    """Register over `connections` connections and refresh all `rounds` times."""
    with LoadGenerator(server.target(connections), [user(number) for number in range(connections)]) as generator:
        first = request_rate(server, generator, connections, "register")
        again = request_rate(server, generator, connections * rounds, "refresh", rounds)
    # What the kill leads to must not go into the next run.
    time.sleep(SETTLE)
    server.forget()
    return RegisterRates(first, again)


def calls(server: Server, count: int, window: int = 4) -> RequestRate:
    """Make `count` calls that are answered and hung up at once."""
    with LoadGenerator(server.target(1)) as generator:
        result = request_rate(server, generator, count, "call", count, window)
    time.sleep(SETTLE)
    return result


def quiet(server: Server, limit: float = 5.0) -> None:
    """Wait until the server uses next to no CPU, `limit` seconds at most."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        before = server.cpu()
        time.sleep(0.5)
        if server.cpu() - before < 0.03:
            return


@dataclass(frozen=True)
class Footprint:
    """Bytes per registration; `proportional` is 0 if it may not be read."""

    resident: float
    proportional: float


def footprint(server: Server, connections: int) -> Footprint:
    """Return what each registration adds to the memory of a server that has none yet."""
    # What is allocated once, with the first registrations, is not counted.
    with LoadGenerator(server.target(200), [f"first{number}" for number in range(200)]) as first:
        checked(first.do("register"), 200)
        quiet(server)
        before = server.memory()
        with LoadGenerator(server.target(connections), [user(number) for number in range(connections)]) as generator:
            checked(generator.do("register"), connections)
            quiet(server)
            after = server.memory()
    proportional = after.proportional - before.proportional if before.proportional else 0
    return Footprint((after.resident - before.resident) / connections, proportional / connections)


def latency(server: Server, count: int, gap: float, seed: int) -> list[float]:
    """Close `count` connections one by one; return the seconds from each FIN to the arrival of its event.

    The pauses are random, `gap` seconds on average, so that they don't keep
    step with anything in the server.
    """
    dice = random.Random(seed)
    names = [user(number) for number in range(count)]
    with server.reader() as reader, LoadGenerator(server.target(count), names) as generator:
        checked(generator.do("register"), count)
        time.sleep(SETTLE)
        closed = generator.do("finish", 0, [dice.uniform(0.5, 1.5) * gap for _ in names])
        reader.wait(count, SILENCE, LIMIT)
        arrived = {event.headers.get("from-user"): event.arrived_ns for event in reader.take() if is_report(event)}
    server.forget()
    missing = [name for name in names if name not in arrived]
    if missing:
        raise ToolkitError(f"{len(missing)} of {count} closed connections were not reported ({server.name})")
    return [(arrived[name] - moment) / 1e9 for name, moment in zip(names, closed, strict=True)]


def idle(servers: Sequence[Server], seconds: float) -> list[float]:
    """Return the share of a core that each of `servers` uses at the same time with one subscriber and nothing to do."""
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(server.reader())
        time.sleep(1)
        before = [server.cpu_of_threads() for server in servers]
        start = time.monotonic()
        time.sleep(seconds)
        after = [server.cpu_of_threads() for server in servers]
        passed = time.monotonic() - start
    return [(late - early) / passed for early, late in zip(before, after, strict=True)]


@dataclass(frozen=True)
class SlowConsumerResult:
    """The result of a slow consumer: what became of FreeSWITCH while a subscriber did not read, or vanished.

    `answers` are the seconds that REGISTER and OPTIONS took meanwhile, None
    for those without an answer; `resident` the bytes it held before, and after
    each storm.
    """

    events: int
    answers: Sequence[float | None]
    resident: Sequence[int]


def slow_consumer(server: FreeSwitchContainer, connections: int, rounds: int, gone: bool) -> SlowConsumerResult:
    """Have `rounds` storms with a subscriber that never reads or, if `gone`, vanishes in the middle of each."""
    names = [user(number) for number in range(connections)]
    answers: list[float | None] = []
    with contextlib.ExitStack() as stack:
        slow = None
        resident: list[int] = []
        reader = stack.enter_context(server.reader())
        for turn in range(1, rounds + 1):
            if gone or slow is None:
                slow = server.login(receive_buffer=4096)
                slow.command(f"event plain CUSTOM {server.subclass}")
                stack.callback(slow.sock.close)
            with (
                LoadGenerator(server.target(1)) as prober,
                LoadGenerator(server.target(connections), names) as generator,
            ):
                checked(generator.do("register"), connections)
                resident = resident or [server.memory().resident]
                prober.begin("probe", 0.005)
                time.sleep(0.2)
                generator.kill()
                if gone:
                    time.sleep(0.1)
                    slow.sock.close()
                reader.wait(connections * turn, SILENCE, LIMIT)
                time.sleep(SETTLE)
                prober.begin("stop")
                answers += [seconds for _, seconds in prober.result()]
                resident.append(server.memory().resident)
    server.forget()
    return SlowConsumerResult(connections * rounds, answers, resident)


def flood(server: FreeSwitchContainer, events: int, batch: int = 200) -> SlowConsumerResult:
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
    command = f"sendevent CUSTOM\nEvent-Subclass: {server.subclass}\n{lines}\n".encode()
    with contextlib.ExitStack() as stack:
        slow, sender = server.login(receive_buffer=4096), server.login()
        stack.callback(slow.sock.close)
        stack.callback(sender.sock.close)
        slow.command(f"event plain CUSTOM {server.subclass}")
        prober = stack.enter_context(LoadGenerator(server.target(1)))
        resident = [server.memory().resident]
        prober.begin("probe", 0.02)
        sent = 0
        while sent < events:
            sender.sock.sendall(command * batch)
            sender.skip(batch)
            sent += batch
            if sent % 10_000 == 0:
                resident.append(server.memory().resident)
        prober.begin("stop")
        answers = [seconds for _, seconds in prober.result()]
    quiet(server)
    resident.append(server.memory().resident)
    return SlowConsumerResult(sent, answers, resident)


def sample(timings: BystanderTimings, events: Sequence[TimestampedEvent], reported: bool = True) -> Sample:
    """Return what the bystanders met; `events` has their reports if deaths are `reported` at all."""
    if not reported:
        return Sample(timings.answers, timings.unanswered)
    arrived = {event.headers.get("from-user", ""): event.arrived_ns for event in events if is_report(event)}
    times = [(arrived[name] - died) / 1e9 for name, died in timings.deaths.items() if name in arrived]
    return Sample(timings.answers, timings.unanswered, times, len(timings.deaths) - len(times))


def with_offenders(
    server: FreeSwitchContainer,
    bystanders: Worker,
    reader: EventReader | None,
    seconds: float,
    offender: str = "",
    over: Sequence[str] = (),
) -> Sample:
    """Run the bystanders for `seconds` beside clients that do what `offender` does, one over each of `over`.

    Without a name there is nobody else; without a `reader` no reports are
    waited for. Raises ToolkitError if the offenders can't connect.
    """
    with contextlib.ExitStack() as stack:
        offenders = stack.enter_context(Worker(serve_offenders)) if offender else None
        if offenders:
            offenders.do("connect", offender, over, server.targets())
            time.sleep(LEAD)
        before = reader.count if reader else 0
        bystanders.begin("run", seconds)
        if offenders:
            time.sleep(LEAD)
            offenders.do("start")
        timings: BystanderTimings = bystanders.result()
        events: list[TimestampedEvent] = []
        if reader:
            # While the offenders are still there.
            reader.wait(before + len(timings.deaths), LOST, LIMIT)
            events = reader.take()
    time.sleep(LEAD)
    server.forget()
    return sample(timings, events, reader is not None)
