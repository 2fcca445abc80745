"""Kamailio, measured beside FreeSWITCH: found, configured, run on this host, stopped."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scripts.bench.container import DESCRIPTORS, HOST, TEMPLATES, Memory, cpu_of_threads, free_ports, proportional
from scripts.bench.load import DOMAIN, Endpoint, LoadGenerator, PortAllocator
from scripts.bench.stream import Esl, EventReader
from scripts.errors import ToolkitError
from scripts.templates import environment

NAME = "kamailio"
SUBCLASS = "kamailio::closed"
INSTALL = "install it (`apt-get install kamailio kamailio-extra-modules`) or leave out --with-kamailio"
# Where Debian has it; an ordinary user's PATH may lack it.
SBIN = "/usr/local/sbin:/usr/sbin"
# MiB; taken only when it is used.
SHARED_MEMORY = 512
# Seconds that it has to end.
GRACE = 5.0
# What processes that were killed may take to be gone on a busy machine, seconds.
DEATH = 10.0


@dataclass
class Kamailio:
    """A running Kamailio; offers the measurements what a FreeSwitchContainer does."""

    process: subprocess.Popen[bytes]
    sip_port: int
    event_port: int
    log: Path
    name: str = NAME
    _ports: PortAllocator = field(default_factory=PortAllocator)

    def target(self, connections: int) -> Endpoint:
        """Return where to connect to; each call gets ports of the near end that were not used lately."""
        return Endpoint(HOST, self.sip_port, self._ports.take(connections))

    def reader(self) -> EventReader:
        """Return a reader of the reports."""
        return EventReader((HOST, self.event_port), "unused", SUBCLASS)

    def cpu(self) -> float:
        """Return the CPU seconds that its processes have used, to the nanosecond."""
        return sum(cpu_of_threads(pid) for pid in self.pids())

    cpu_of_threads = cpu

    def memory(self) -> Memory:
        """Return the bytes that its processes hold together; what they share is counted once."""
        total = sum(proportional(pid) for pid in self.pids())
        return Memory(total, total)

    def forget(self) -> None:
        """Do nothing: the configuration removes the registrations of a lost connection."""

    def pids(self) -> list[int]:
        """Return its processes. Raises ToolkitError if it died."""
        if self.process.poll() is not None:
            raise ToolkitError(f"Kamailio died: {complaint(self.log)}")
        return members(self.process.pid)


def members(session: int) -> list[int]:
    """Return the living processes of `session`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, of, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if of == str(session) and state != "Z":
                found.append(int(entry.name))
    return found


def complaint(log: Path) -> str:
    """Return the first error in `log`, without where in Kamailio's sources it comes from."""
    errors = re.findall(r"(?m)(?:ERROR|CRITICAL): (?:.*\(\): )?(.+)$", log.read_text(errors="replace"))
    return str(errors[0]).strip() if errors else "it doesn't say why"


def configuration(sip_port: int, event_port: int) -> str:
    """Return kamailio.cfg."""
    return (
        environment(TEMPLATES)
        .get_template("kamailio.cfg.j2")
        .render(
            host=HOST,
            domain=DOMAIN,
            sip_port=sip_port,
            event_port=event_port,
            connections=DESCRIPTORS,
            subclass=SUBCLASS,
        )
    )


def program() -> str:
    """Return the path of Kamailio. Raises ToolkitError if it isn't installed."""
    path = shutil.which("kamailio", path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")
    if not path:
        raise ToolkitError(f"--with-kamailio: there is no Kamailio here: {INSTALL}")
    return path


def check() -> str:
    """Return the version of Kamailio. Raises ToolkitError if it isn't installed, or lacks a module."""
    path = program()
    with tempfile.TemporaryDirectory(prefix="kamailio-") as name:
        file, log = Path(name, "kamailio.cfg"), Path(name, "log")
        file.write_text(configuration(*free_ports(2)))
        with log.open("wb") as output:
            result = subprocess.run([path, "-c", "-E", "-f", file], stdout=output, stderr=output, check=False)
        if result.returncode:
            raise ToolkitError(f"--with-kamailio: {path} refuses its configuration: {complaint(log)}: {INSTALL}")
    version = subprocess.run([path, "-v"], capture_output=True, text=True, check=False).stdout
    return version.split()[2]


@contextlib.contextmanager
def run(timeout: float) -> Iterator[Kamailio]:
    """Run Kamailio until the context is left.

    Raises ToolkitError if it isn't installed or, after `timeout` seconds, not ready.
    """
    path = program()
    with tempfile.TemporaryDirectory(prefix="kamailio-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        sip_port, event_port = free_ports(2)
        (directory / "kamailio.cfg").write_text(configuration(sip_port, event_port))
        # -DD: it stays this process's child. In a session of its own its processes are known, and Ctrl-C is kept off.
        command = [path, "-DD", "-E", "-m", str(SHARED_MEMORY), "-f", f"{name}/kamailio.cfg", "-Y", name]
        log = directory / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        stack.callback(stop, process)
        kamailio = Kamailio(process, sip_port, event_port, log)
        wait(kamailio, timeout)
        yield kamailio


def wait(kamailio: Kamailio, timeout: float) -> None:
    """Wait until `kamailio` serves subscribers and SIP; ToolkitError if it doesn't in `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        kamailio.pids()
        with contextlib.suppress(OSError, ToolkitError):
            Esl(HOST, kamailio.event_port, "unused", timeout=1).sock.close()
            with LoadGenerator(kamailio.target(1), ["ready"]) as owner:
                owner.do("register")
            return
        if time.monotonic() > deadline:
            raise ToolkitError(f"Kamailio isn't ready after {timeout:g} s: {complaint(kamailio.log)}")
        time.sleep(0.05)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End all processes of Kamailio, with SIGKILL if they don't heed SIGTERM."""
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Its children are nobody's now: they are dead a moment later.
        deadline = time.monotonic() + DEATH
        while members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
