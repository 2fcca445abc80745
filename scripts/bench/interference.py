"""Interference: offenders, and bystanders beside them, each in a process of their own.

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
from scripts.bench.offenders import OFFENDERS, STREAMS, HandshakeStage, Offender, RawConnection, wrapped
from scripts.errors import ToolkitError

# Where each transport is listened for.
Targets = Mapping[str, tuple[str, int]]
# Seconds that a bystander waits for an answer: stock waits 10 for an offender.
LIMIT = 20.0
# Seconds between two things that a bystander does.
PAUSE = 0.01
# REGISTERs of each bystander, the first and refreshes, before it dies.
REQUESTS = 3
# The offenders' process lets the bystanders have the CPU: its hunger is not what is measured.
NICENESS = 10
RESET = struct.pack("ii", 1, 0)


@dataclass
class OffenderConnection:
    """The connection of one offender."""

    offender: Offender
    transport: str
    target: tuple[str, int]
    raw: RawConnection | None = None

    def prepare(self) -> None:
        """Get ready for SIP and send what comes before; nothing if getting there is the offence."""
        if self.offender.start is HandshakeStage.USABLE:
            self.raw = self.offender.open(self.transport, self.target)
            self._send(self.raw.sock, self.offender.before(self.transport))

    def run(self) -> None:
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
class OffenderPool:
    """The offenders of one process, a connection each."""

    connections: list[OffenderConnection] = field(default_factory=list)

    def connect(self, name: str, over: Sequence[str], targets: Targets) -> None:
        """Make clients ready that do what the offender `name` does: one over each of the transports in `over`."""
        offender = next(item for item in OFFENDERS if item.name == name)
        self.connections = [OffenderConnection(offender, transport, targets[transport]) for transport in over]
        with ThreadPoolExecutor(len(self.connections)) as pool:
            try:
                list(pool.map(OffenderConnection.prepare, self.connections))
            except AssertionError as error:
                raise ToolkitError(f"{name}: no upgrade: {error}") from None

    def start(self) -> None:
        """Let them all begin at once; it goes on until the process is killed."""
        for connection in self.connections:
            threading.Thread(target=connection.run, daemon=True).start()


def serve_offenders(pipe: Connection) -> None:
    """Be the process of the offenders: `connect`, then `start`."""
    os.nice(NICENESS)
    pool = OffenderPool()
    obey(pipe, {"connect": pool.connect, "start": pool.start})


@dataclass
class BystanderTimings:
    """The timings of bystanders: seconds of each answer, how many never came, and who died when (monotonic ns)."""

    answers: list[float] = field(default_factory=list)
    unanswered: int = 0
    deaths: dict[str, int] = field(default_factory=dict)


@dataclass
class Bystanders:
    """Clients that register, refresh and die: one at a time over each transport, each with a name of its own."""

    targets: Targets
    limit: float = LIMIT
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def run(self, seconds: float) -> BystanderTimings:
        """Register, refresh and die for so many seconds; who has begun by then comes to its end."""
        timings = BystanderTimings()
        deadline = time.monotonic() + seconds
        with ThreadPoolExecutor(len(STREAMS)) as pool:
            list(pool.map(lambda transport: self._go_on(transport, timings, deadline), STREAMS))
        return timings

    def _go_on(self, transport: str, timings: BystanderTimings, deadline: float) -> None:
        for turn in itertools.count():
            # At least once.
            if turn and time.monotonic() > deadline:
                return
            self._session(f"{transport}{next(self._numbers):06}", transport, timings, reset=turn % 2 == 1)
            time.sleep(PAUSE)

    def _session(self, name: str, transport: str, timings: BystanderTimings, reset: bool) -> None:
        began = time.monotonic()
        try:
            # Who can't connect is held up as well.
            raw = RawConnection(transport, self.targets[transport], limit=self.limit)
        except (OSError, AssertionError):
            timings.answers.append(time.monotonic() - began)
            timings.unanswered += 1
            return
        near = raw.sock.getsockname()
        for sequence in range(1, REQUESTS + 1):
            if sequence > 1:
                time.sleep(PAUSE)
                began = time.monotonic()
            raw.send(wrapped(transport, register(name, near, sequence, transport)))
            came = raw.wait(lambda wanted=sequence: raw.answers() >= wanted, self.limit)  # type: ignore[misc]
            timings.answers.append(time.monotonic() - began)
            if not came:
                # Nobody knows whether it is registered: its death proves nothing.
                timings.unanswered += 1
                raw.close()
                return
        time.sleep(PAUSE)
        if reset:
            raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        timings.deaths[name] = time.monotonic_ns()
        raw.close()


def serve_bystanders(pipe: Connection, targets: Targets) -> None:
    """Be the process of the bystanders: `run`, as often as asked."""
    # Who has got an answer must not wait for the parsing of another's.
    sys.setswitchinterval(0.0005)
    obey(pipe, {"run": Bystanders(targets).run})
