"""A running FreeSWITCH: its container, and what it answers."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import os
import re
import socket
import tarfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

from docker.errors import APIError, NotFound
from docker.models.containers import Container
from requests.exceptions import RequestException

from scripts.errors import ToolkitError
from scripts.freeswitch.events import EXPIRE, REGISTER, UNREGISTER, ConnectionLost, Unreachable
from scripts.freeswitch.recorder import Recorder
from scripts.freeswitch.sip import Client
from scripts.machine import engine, files

DEBUG_LOG = "/var/log/freeswitch/freeswitch.log"
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# What FreeSWITCH logs when a thread begins or ends to handle SIP messages.
THREAD_STARTED, THREAD_ENDED = re.compile(r"MSG Thread \d+ Started"), re.compile(r"MSG Thread Ended")
OFFSETS = {"udp": 0, "tcp": 0, "tls": 1, "ws": 2, "wss": 3}
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Profile:
    """A SIP profile: udp and tcp on `port`, tls, ws and wss on the three after it, if `ports` says nothing else."""

    name: str
    port: int
    parameters: Mapping[str, str] = field(default_factory=dict)
    ipv6: bool = False
    ports: Mapping[str, int] = field(default_factory=dict)

    def listens(self, transport: str) -> int:
        """Return the port for `transport` (udp, tcp, tls, ws, wss)."""
        return self.ports.get(transport, self.port + OFFSETS[transport])


def threads(cpus: int) -> int:
    """Return how many threads mod_sofia starts at most to handle messages: after the first one two at a time."""
    most = max(2, cpus // 2 + 1)
    return most if most % 2 else most - 1


def cpu_seconds(stat: str) -> float:
    """Return the CPU seconds, user's and system's, that `stat`, a process's of proc(5), tells."""
    # Counted from behind the name, which can have anything in it.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@dataclass
class FreeSwitch:
    """A container with FreeSWITCH and the recorder of its events.

    `variant` is its image's, `logs` where its logs go when they are wanted,
    `cpus` how many it believes in, 0 for those of this machine. `halt` ends
    what waits.
    """

    container: Container
    address: str
    password: str
    subclass: str
    profiles: Sequence[Profile]
    logs: Path
    variant: str = "patched"
    address6: str = ""
    cpus: int = 0
    halt: threading.Event = field(default_factory=threading.Event)
    recorder: Recorder = field(init=False)

    def start(self, timeout: float, subclasses: Sequence[str] = ()) -> None:
        """Wait until all profiles run; record the events of `subclasses` (default: all about registrations).

        With `cpus` also until all threads run that handle messages. Raises
        ToolkitError, with what it logged, if it isn't ready in `timeout` seconds.
        """
        wanted = subclasses or (self.subclass, REGISTER, UNREGISTER, EXPIRE)
        self.recorder = Recorder(self.address, self.password, wanted, self.halt)
        deadline = time.monotonic() + timeout
        reason, connected = "nothing tried yet", False
        while True:
            self.container.reload()
            if self.container.status != "running":
                raise ToolkitError(self.death() or f"FreeSWITCH ({self.variant}) is {self.container.status}")
            if time.monotonic() > deadline:
                path, _ = self.keep_log()
                raise ToolkitError(
                    f"FreeSWITCH ({self.variant}) isn't ready after {timeout:g} s: {reason}; its log is in {path} "
                    "(the event socket is reached at the container's address: this needs Docker on this very Linux)"
                )
            try:
                if not connected:
                    self.recorder.start()
                    connected = True
                reason = self._unready()
                if not reason:
                    break
            except (Unreachable, ConnectionLost) as error:
                reason = str(error)
                if connected:
                    self.recorder.stop()
                    self.recorder = Recorder(self.address, self.password, wanted, self.halt)
                connected = False
            self.pause(0.2)
        if self.cpus:
            self.warm_up(timeout)

    def pause(self, seconds: float) -> None:
        """Sleep; raise KeyboardInterrupt if the run is broken off meanwhile."""
        if self.halt.wait(seconds):
            raise KeyboardInterrupt

    def warm_up(self, timeout: float) -> None:
        """Let FreeSWITCH start all threads that handle messages; needs `cpus`.

        Raises ToolkitError if they don't run within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        with contextlib.closing(Client("udp", self.address, self.profiles[0].port)) as client:
            while (count := self.message_threads()) != threads(self.cpus):
                if time.monotonic() > deadline:
                    raise ToolkitError(f"{count} threads handle messages, not {threads(self.cpus)}")
                for _ in range(threads(self.cpus)):
                    client.ask("OPTIONS", "warm-up", "example.test", "warm-up")

    def message_threads(self) -> int:
        """Return how many threads handle messages, according to the log since the container's start."""
        self.container.reload()
        started = datetime.fromisoformat(self.container.attrs["State"]["StartedAt"][:19] + "+00:00")
        log = self.container.logs(since=int(started.timestamp())).decode(errors="replace")
        return len(THREAD_STARTED.findall(log)) - len(THREAD_ENDED.findall(log))

    def running(self) -> bool:
        """Return whether all profiles run."""
        return not self._unready()

    def _unready(self) -> str:
        """Return why FreeSWITCH isn't ready, "" if it is."""
        if "is ready" not in self.recorder.api("status"):
            return "it says it isn't ready"
        answer = self.recorder.api("sofia xmlstatus").strip()
        found = {
            node.findtext("name")
            for node in (xml(answer).iterfind("profile") if answer.startswith("<") else ())
            if node.findtext("state", "").startswith("RUNNING")
        }
        for profile in self.profiles:
            if profile.name not in found and (self.address6 or not profile.ipv6):
                return f"its SIP profile {profile.name} doesn't run"
        return ""

    def version(self) -> str:
        """Return what it says of its version, on one line."""
        return " ".join(self.recorder.api("version").split())

    def shell(self, script: str) -> str:
        """Return what `script` prints in the container."""
        done = engine.execute(self.container, ["sh", "-c", script])
        assert done.status == 0, f"{script}: {done}"
        return done.everything.decode(errors="replace")

    def connections(self) -> list[str]:
        """Return the TCP connections to SIP ports as `near far state` in /proc/net/tcp's hexadecimal notation."""
        ports = {profile.listens(transport) for profile in self.profiles for transport in OFFSETS}
        found = []
        for line in self.shell("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null || true").splitlines():
            _, near, far, state, *_ = line.split()
            # Established and close-wait: what FreeSWITCH still holds.
            if state in ("01", "08") and int(near.rpartition(":")[2], 16) in ports:
                found.append(f"{near} {far} {state}")
        return found

    def sees(self, address: tuple[str, int]) -> bool:
        """Return whether FreeSWITCH has a TCP connection with the IPv4 `address` and port."""
        host, port = address
        far = f"{socket.inet_aton(host)[::-1].hex()}:{port:04x}".upper()
        return any(line.split()[1] == far for line in self.connections())

    def peer(self, port: int) -> str:
        """Return the IPv4 address that FreeSWITCH's kernel has for the client at `port`; "" if none is connected.

        A rule for NAT that some other network has left behind may have changed
        the one that the client has.
        """
        for line in self.connections():
            address, _, number = line.split()[1].partition(":")
            if int(number, 16) == port and len(address) == 8:
                return str(ipaddress.IPv4Address(bytes.fromhex(address)[::-1]))
        return ""

    def sockets(self) -> int:
        """Return the number of open sockets of FreeSWITCH; its handles of databases come and go."""
        return int(self.shell("ls -l /proc/$(pidof freeswitch)/fd | grep -c socket:"))

    def memory_kb(self) -> int:
        """Return the resident memory of FreeSWITCH."""
        return int(self.shell("awk '/^VmRSS/ {print $2}' /proc/$(pidof freeswitch)/status"))

    def cpu(self) -> float:
        """Return the CPU time that FreeSWITCH has used, in seconds."""
        return cpu_seconds(self.shell("cat /proc/$(pidof freeswitch)/stat"))

    def heap(self) -> tuple[int, int]:
        """Return the allocated bytes of FreeSWITCH, and of these SQLite's, where heap.c is preloaded."""
        everything, sqlite = self.shell("cat /var/run/freeswitch/heap").split()
        return int(everything), int(sqlite)

    def registrations(self, profile: str, user: str = "") -> list[dict[str, str]]:
        """Return what `sofia xmlstatus` lists as registered in `profile`, of `user` (USER@DOMAIN) only if given."""
        text = self.recorder.api(f"sofia xmlstatus profile {profile} {f'user {user}' if user else 'reg'}")
        return [
            {child.tag: child.text or "" for child in node} for node in xml(text).iterfind("registrations/registration")
        ]

    def death(self) -> str | None:
        """Return how the container died, None if it's alive."""
        name = f"FreeSWITCH container {self.container.name} ({self.variant})"
        try:
            # The event socket ends before the container does.
            status = self.container.wait(timeout=2)
        except NotFound:
            return f"{name} was removed in the middle"
        except (APIError, RequestException):
            return None
        path, tail = self.keep_log()
        return f"{name} died with exit code {status['StatusCode']}: {tail}; its log is in {path}"

    def keep_log(self) -> tuple[str, str]:
        """Keep the logs; return the path of what it printed, and the last lines of that on one line."""
        log = self.container.logs()
        with contextlib.suppress(APIError):
            stream, _ = self.container.get_archive(DEBUG_LOG)
            with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
                file = archive.extractfile(archive.getmembers()[0])
                files.write(self.logs / f"{self.variant}-freeswitch-debug.log", file.read() if file else b"")
        path = files.write(self.logs / f"{self.variant}-freeswitch.log", log)
        lines = ANSI.sub("", log.decode(errors="replace")).split("\n")
        tail = [" ".join(line.split()) for line in lines if line.strip()][-3:]
        return path, " | ".join(tail)[-400:] or "it logged nothing"


def xml(text: str) -> ElementTree.Element:
    """Return the XML that FreeSWITCH answered; raise ToolkitError if it is something else."""
    try:
        return ElementTree.fromstring(text.strip())
    except ElementTree.ParseError:
        raise ToolkitError(f"FreeSWITCH answers '{files.first_line(text.encode())}' instead of XML") from None
