"""A crowd of offenders and the others beside it, each in a process of their own.

As for `load`, nothing here imports more than the standard library.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from scripts.bench.load import obey, register
from scripts.bench.offenders import OFFENDERS, STREAMS, Offender, Raw, Start, wrapped
from scripts.errors import ToolkitError

# Where each transport is listened for.
Targets = Mapping[str, tuple[str, int]]
# Seconds the others wait for an answer: stock waits 10 for an offender.
LIMIT = 20.0
# Seconds between two things that one of the others does.
PAUSE = 0.01
# REGISTERs of each of the others, the first and refreshes, before it dies.
REQUESTS = 3
# The offenders' process lets the others have the CPU: its hunger is not what is measured.
NICENESS = 10
RESET = struct.pack("ii", 1, 0)


@dataclass
class Member:
    """One offender of a crowd."""

    offender: Offender
    transport: str
    target: tuple[str, int]
    raw: Raw | None = None

    def prepare(self) -> None:
        """Get ready for SIP and send what comes before; nothing if getting there is the offence."""
        if self.offender.start is Start.USABLE:
            self.raw = self.offender.open(self.transport, self.target)
            self._send(self.raw.sock, self.offender.before(self.transport))

    def offend(self) -> None:
        """Do it for as long as the server lets it, or the process lives."""
        with contextlib.suppress(OSError, AssertionError):
            self.raw = self.raw or self.offender.open(self.transport, self.target)
            sock, steps = self.raw.sock, self.offender.steps(self.transport)
            self._send(sock, steps)
            while self.offender.endless:
                self._send(sock, steps)
            sock.settimeout(None)
            while self.offender.reads and sock.recv(65536):
                pass

    def _send(self, sock: socket.socket, steps: Sequence[bytes | float]) -> None:
        for step in steps:
            if isinstance(step, bytes):
                sock.settimeout(None)
                sock.sendall(step)
            else:
                time.sleep(step)
            if self.offender.reads:
                drain(sock)


def drain(sock: socket.socket) -> None:
    """Read what has come over `sock`, and drop it."""
    sock.settimeout(0)
    # One of TLS that has nothing raises an OSError, too.
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass


@dataclass
class Crowd:
    """The offenders of one process."""

    members: list[Member] = field(default_factory=list)

    def come(self, name: str, over: Sequence[str], targets: Targets) -> None:
        """Make clients ready that do what the offender `name` does: one over each of the transports in `over`."""
        offender = next(item for item in OFFENDERS if item.name == name)
        self.members = [Member(offender, transport, targets[transport]) for transport in over]
        with ThreadPoolExecutor(len(self.members)) as pool:
            try:
                list(pool.map(Member.prepare, self.members))
            except AssertionError as error:
                raise ToolkitError(f"{name}: no upgrade: {error}") from None

    def offend(self) -> None:
        """Let them all offend at once; it goes on until the process is killed."""
        for member in self.members:
            threading.Thread(target=member.offend, daemon=True).start()


def serve_crowd(pipe: Connection) -> None:
    """Be the process of a crowd: `come`, then `offend`."""
    os.nice(NICENESS)
    crowd = Crowd()
    obey(pipe, {"come": crowd.come, "offend": crowd.offend})


@dataclass
class Met:
    """What the others met: seconds of each answer, how many never came, and who died when (monotonic ns)."""

    answers: list[float] = field(default_factory=list)
    unanswered: int = 0
    deaths: dict[str, int] = field(default_factory=dict)


@dataclass
class Others:
    """Clients that register, refresh and die: one at a time over each transport, each with a name of its own."""

    targets: Targets
    limit: float = LIMIT
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def live(self, seconds: float) -> Met:
        """Live and die for so many seconds; who has begun by then comes to its end."""
        met = Met()
        deadline = time.monotonic() + seconds
        with ThreadPoolExecutor(len(STREAMS)) as pool:
            list(pool.map(lambda transport: self._go_on(transport, met, deadline), STREAMS))
        return met

    def _go_on(self, transport: str, met: Met, deadline: float) -> None:
        for turn in itertools.count():
            # At least once.
            if turn and time.monotonic() > deadline:
                return
            self._life(f"{transport}{next(self._numbers):06}", transport, met, reset=turn % 2 == 1)
            time.sleep(PAUSE)

    def _life(self, name: str, transport: str, met: Met, reset: bool) -> None:
        began = time.monotonic()
        try:
            # Who can't connect is held up as well.
            raw = Raw(transport, self.targets[transport], limit=self.limit)
        except (OSError, AssertionError):
            met.answers.append(time.monotonic() - began)
            met.unanswered += 1
            return
        near = raw.sock.getsockname()
        for sequence in range(1, REQUESTS + 1):
            if sequence > 1:
                time.sleep(PAUSE)
                began = time.monotonic()
            raw.send(wrapped(transport, register(name, near, sequence, transport)))
            came = raw.wait(lambda wanted=sequence: raw.answers() >= wanted, self.limit)  # type: ignore[misc]
            met.answers.append(time.monotonic() - began)
            if not came:
                # Nobody knows whether it is registered: its death proves nothing.
                met.unanswered += 1
                raw.close()
                return
        time.sleep(PAUSE)
        if reset:
            raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        met.deaths[name] = time.monotonic_ns()
        raw.close()


def serve_others(pipe: Connection, targets: Targets) -> None:
    """Be the process of the others: `live`, as often as asked."""
    # Who has got an answer must not wait for the others' parsing.
    sys.setswitchinterval(0.0005)
    obey(pipe, {"live": Others(targets).live})
