"""A conference that several join, and what is told of it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from scripts.freeswitch.events import Event
from scripts.scenario.lab import Lab

MAINTENANCE = "conference::maintenance"
# What must come at all may take so long on a busy machine, seconds.
PATIENCE = 60.0


@dataclass
class Room:
    """A conference of one profile, and what was told about it."""

    lab: Lab
    profile: str
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    # Its events, among so many that came.
    _found: list[Event] = field(default_factory=list)
    _seen: int = 0
    _looking: threading.Lock = field(default_factory=threading.Lock)

    def api(self, command: str) -> str:
        return self.lab.freeswitch.recorder.api(command)

    def do(self, command: str) -> str:
        """Return what the conference answers."""
        return self.api(f"conference {self.name} {command}")

    def join(self, who: str, flags: str = "", more: str = "", background: bool = False) -> str:
        """Let somebody join who is `who` (presence_id) and return the UUID of his call."""
        call = str(uuid.uuid4())
        variables = ",".join(filter(None, [f"origination_uuid={call}", who and f"presence_id={who}", more]))
        line = f"originate {{{variables}}}loopback/wait/default &conference({self.name}@{self.profile}{flags})"
        answer = self.api(f"{'bgapi ' if background else ''}{line}")
        assert "+OK" in answer, answer
        return call

    def call(self, number: str) -> str:
        """Let somebody call in who has only a number, and return the UUID of the call's other end."""
        call = str(uuid.uuid4())
        variables = f"origination_uuid={call},origination_caller_id_number={number}"
        answer = self.api(f"originate {{{variables}}}loopback/{self.profile}-{self.name}/default &park")
        assert "+OK" in answer, answer
        return call

    def events(self, *actions: str) -> list[Event]:
        """Return what was told of it so far, of these actions if any are given, in FreeSWITCH's order."""
        with self._looking:
            came = self.lab.freeswitch.recorder.events[self._seen :]
            self._seen += len(came)
            self._found += [event for event in came if event.subclass == MAINTENANCE and self._named(event)]
            self._found.sort(key=lambda event: int(event.get("Event-Sequence")))
            return [event for event in self._found if not actions or event.get("Action") in actions]

    def _named(self, event: Event) -> bool:
        # FreeSWITCH's own floor-change has it twice.
        return self.name in (event.get("Conference-Name"), *event.headers.get("Conference-Name", ""))

    def wait(self, done: Callable[[], object], what: str) -> None:
        """Wait until `done`."""
        assert self.lab.freeswitch.recorder.wait(lambda _: bool(done()), PATIENCE), f"{what}: {self.told()}"

    def reach(self, calls: list[str]) -> None:
        """Wait until these calls, and no others, are in it."""
        deadline = time.monotonic() + PATIENCE
        while list(self.members().values()) != calls and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(self.members().values()) == calls, self.told()

    def wait_events(self, action: str, count: int) -> list[Event]:
        self.wait(lambda: len(self.events(action)) >= count, f"{count} {action}")
        found = self.events(action)
        assert len(found) == count, self.told()
        return found

    def told(self) -> list[str]:
        return [
            f"{event.get('Event-Sequence')} {event.get('Action')} {event.get('Member-ID')} "
            f"{event.get('Channel-Presence-ID')}"
            for event in self.events()
        ]

    def members(self) -> dict[str, str]:
        """Return UUID by Member-ID of those who are listed."""
        lines = [line.split(";") for line in self.do("list").splitlines() if line.count(";") > 5]
        return {words[0]: words[2] for words in lines}

    def end(self) -> None:
        """End it, and wait until it is gone."""
        if self.members():
            self.do("hup all")
        self.wait(lambda: self.events("conference-destroy"), "the end")

    def replay(self, key: str = "Channel-Presence-ID") -> list[dict[str, str]]:
        """Return who is in it (identity by Member-ID) after each event; nobody may be in it twice."""
        steps: list[dict[str, str]] = [{}]
        for event in self.events("add-member", "del-member"):
            member, before = event.get("Member-ID"), steps[-1]
            after = dict(before)
            if event.get("Action") == "add-member":
                assert member not in before, self.told()
                after[member] = event.get(key)
            else:
                assert member in before, self.told()
                del after[member]
            known = [identity for identity in after.values() if identity]
            assert len(known) == len(set(known)), f"twice: {self.told()}"
            assert int(event.get("Conference-Size")) + int(event.get("Conference-Ghosts")) == len(after), self.told()
            steps.append(after)
        return steps
