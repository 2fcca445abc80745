"""Plays the repetitions of a race side by side."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import re
import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from scripts.scenario.lab import Lab
from tests.races.connection import FinalResponse, RaceConnection
from tests.races.events import LEFT, PORT, SEQUENCE, EventLog, Headers
from tests.races.race import Race
from tests.races.repetition import Repetition
from tests.races.result import RaceResult
from tests.races.steps import AwaitEvents, AwaitRead, AwaitResponse, NoResponse, Play, PortInUse, Sleep

# How long what must come is waited for, on a machine that may stand still for a while, and how long what must not has
# to turn up. Nothing else depends on time.
LATE, SETTLE = 60.0, 0.25


class RaceRunner:
    """Plays races against a lab whose FreeSWITCH answers `password` or, blindly, everybody."""

    def __init__(self, lab: Lab, blind: bool, stock: bool = False) -> None:
        self.lab, self.blind, self.stock = lab, blind, stock
        self.epoll = select.epoll()
        self.stream = EventLog(lab)
        self._tokens = itertools.count()

    def close(self) -> None:
        self.stream.close()
        self.epoll.close()

    def run(self, race: Race, transport: str, repetitions: int, seed: str) -> RaceResult:
        """Play `race` so often; the dice of each repetition come from `seed` and its number."""
        began = time.monotonic()
        token = re.sub(r"\W+", "-", f"{seed} {next(self._tokens)}")
        users = (f"u{number:04}" for number in itertools.count())
        everybody = [
            Repetition(
                number,
                list(itertools.islice(users, race.users)),
                transport,
                profile := race.profiles[number % len(race.profiles)],
                self.lab.target(profile, transport),
                self.lab.freeswitch.container,
                "" if self.blind else self.lab.password,
                random.Random(f"{seed} {number}"),
                token,
                self.stock,
            )
            for number in range(repetitions)
        ]
        self.stream.trunks.clear()
        for own in everybody:
            own.facts["trunks"] = lambda own=own: self.stream.trunks.get(
                (own.profile, own.transport, str(own.connections[0].near[1])), []
            )
        outcome = RaceResult(seed, repetitions)
        try:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda own: own.open(race.connections), everybody))
            failures = _StepScheduler(self, everybody, race).run()
            self._wait(
                lambda own: lambda events: race.done(own, events),
                [own for own in everybody if own.number not in failures],
            )
            rows = self.rows(race.profiles)
            for own in everybody:
                events = self.stream.of(own.calls)
                left = [row for call in own.calls for row in rows.get(call, ())]
                failure = failures.get(own.number)
                # One that was not played to the end proves nothing.
                wrong = race.judge(own, events, left) if failure is None else [failure] if failure else []
                outcome.wrong += bool(wrong)
                outcome.unplayed += failure == ""
                outcome.reasons.update(wrong)
                if note := own.facts.get("note"):
                    outcome.notes[note] += 1
                for reason in wrong:
                    outcome.examples.setdefault(reason, self._example(own, events, left))
        finally:
            for own in everybody:
                for connection in own.connections:
                    connection.sock.close()
            for profile in race.profiles:
                self.stream.flush(profile)
        outcome.seconds = time.monotonic() - began
        return outcome

    def rows(self, profiles: Iterable[str]) -> dict[str, list[Headers]]:
        found: dict[str, list[Headers]] = {}
        for profile in profiles:
            found |= self.stream.rows(profile)
        return found

    def _wait(
        self,
        done: Callable[[Repetition], Callable[[Sequence[Headers]], bool]],
        waiting: Sequence[Repetition],
    ) -> None:
        deadline = time.monotonic() + LATE
        rest = [(own, done(own)) for own in waiting]
        while rest and time.monotonic() < deadline:
            self.stream.update()
            rest = [(own, is_done) for own, is_done in rest if not is_done(self.stream.of(own.calls))]
            time.sleep(0.05)
        # Until nothing comes any more.
        deadline = time.monotonic() + LATE
        time.sleep(SETTLE)
        while self.stream.update() and time.monotonic() < deadline:
            time.sleep(SETTLE)

    def _example(self, own: Repetition, events: Sequence[Headers], rows: Sequence[Headers]) -> str:
        ports = [connection.near[1] for connection in own.connections]
        lines = [f"repetition {own.number}, {own.profile}: near ends {ports}"]
        lines += [
            f"  {event[SEQUENCE]} {event['Event-Subclass']} {event.get('from-user')} port {event.get(PORT)} "
            f"left {event.get(LEFT)} {event.get('reason', '')}{' <' if place in own.marks else ''}"
            for place, event in enumerate(events[-20:], max(1, len(events) - 19))
        ]
        lines += [f"  trunk {event}" for event in own.facts["trunks"]()]
        lines += [f"  row {row['user']} {row['contact']}" for row in rows]
        return "\n".join(lines)


class _StepScheduler:
    """Takes the steps of all repetitions, each when its moment has come, in one thread."""

    def __init__(self, engine: RaceRunner, everybody: Sequence[Repetition], race: Race) -> None:
        self.engine, self.race = engine, race
        self.failures: dict[int, str] = {}
        self._queue: list[tuple[float, int, Repetition, Play, Any]] = []
        self._order = itertools.count()
        self._next_look = 0.0
        self._waiting: dict[int, tuple[Repetition, Play, AwaitResponse | AwaitRead, float]] = {}
        self._settling: list[tuple[Repetition, Play, AwaitEvents]] = []
        self._connections: dict[int, RaceConnection] = {}
        self._epoll = engine.epoll
        self._starts = deque(everybody)
        self._next_start = time.monotonic() + 0.01
        for own in everybody:
            for connection in own.connections:
                self._watch(connection)
            own.opened = self._watch

    def _watch(self, connection: RaceConnection) -> None:
        number = connection.sock.fileno()
        self._connections[number] = connection
        # An end shows in what is read.
        self._epoll.register(number, select.EPOLLIN)

    def _later(self, due: float, own: Repetition, play: Play, value: Any = None) -> None:
        heapq.heappush(self._queue, (due, next(self._order), own, play, value))

    def run(self) -> dict[int, str]:
        """Play to the end; return why repetitions could not be played, by number."""
        while self._starts or self._queue or self._waiting or self._settling:
            self._poll()
            now = time.monotonic()
            while self._starts and self._next_start <= now and len(self._waiting) < self.race.window:
                own = self._starts.popleft()
                self._next_start += self.race.pace
                self._step(own, self.race.play(own), None)
            while self._queue and self._queue[0][0] <= now:
                _, _, own, play, value = heapq.heappop(self._queue)
                self._step(own, play, value)
            self._give_up(now)
            if self._settling and not self._starts and not self._queue and not self._waiting:
                self._settle()
        return self.failures

    def _poll(self) -> None:
        due = min(self._queue[0][0] if self._queue else math.inf, self._next_start if self._starts else math.inf)
        ahead = due - time.monotonic()
        if not self._queue and len(self._waiting) >= self.race.window:
            ahead = 0.05
        # epoll knows whole milliseconds only, and select() no descriptor above 1,023.
        wait = max(0.0, min(ahead, 0.05))
        if wait < 0.002:
            time.sleep(min(wait, 0.0002))
        for number, _ in self._epoll.poll(wait - 0.001 if wait >= 0.002 else 0, 256):
            connection = self._connections[number]
            # Closed, but a process that is just being started still holds a copy of the socket.
            if connection.sock.fileno() != number:
                continue
            connection.receive()
            if connection.ended:
                self._epoll.unregister(number)
            self._check(number)

    def _check(self, number: int) -> None:
        if number in self._waiting and self._has_come(self._waiting[number][2]):
            own, play, step, _ = self._waiting.pop(number)
            self._step(own, play, self._take(step))

    def _has_come(self, step: AwaitResponse | AwaitRead) -> bool:
        return bool(
            step.connection.ended
            or (step.connection.answers if isinstance(step, AwaitResponse) else step.connection.read)
        )

    def _take(self, step: AwaitResponse | AwaitRead) -> FinalResponse | None:
        return (
            step.connection.answers.popleft() if isinstance(step, AwaitResponse) and step.connection.answers else None
        )

    def _give_up(self, now: float) -> None:
        if now < self._next_look:
            return
        self._next_look = now + 0.1
        for number in [number for number, (*_, until) in self._waiting.items() if until < now]:
            own, play, step, _ = self._waiting.pop(number)
            self.failures[own.number] = "no answer" if isinstance(step, AwaitResponse) else "not read"
            play.close()

    def _step(self, own: Repetition, play: Play, value: Any) -> None:
        try:
            step = play.send(value)
            while isinstance(step, AwaitResponse | AwaitRead) and self._has_come(step):
                step = play.send(self._take(step))
        except StopIteration:
            return
        except PortInUse:
            self.failures[own.number] = ""
            own.facts["note"] = "not played to the end, the port was taken"
            return
        except (NoResponse, OSError) as error:
            self.failures[own.number] = str(error)
            return
        if isinstance(step, Sleep):
            self._later(time.monotonic() + step.seconds, own, play)
        elif isinstance(step, AwaitEvents):
            self._settling.append((own, play, step))
        else:
            self._waiting[step.connection.sock.fileno()] = (own, play, step, time.monotonic() + LATE)

    def _settle(self) -> None:
        settling, self._settling = self._settling, []
        done = {own.number: step.done for own, _, step in settling}
        self.engine._wait(lambda own: done[own.number], [own for own, *_ in settling])
        rows = self.engine.rows(self.race.profiles)
        now = time.monotonic()
        for place, (own, play, _) in enumerate(settling):
            own.marks.append(len(self.engine.stream.of(own.calls)))
            self._later(now + 0.01 + place * self.race.pace_after, own, play, rows)
