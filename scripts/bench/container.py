"""A FreeSWITCH under measurement: its container, what it costs."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import docker
from docker.errors import NotFound
from docker.models.containers import Container
from docker.types import Ulimit

from scripts.bench.load import DOMAIN, ECHO, Endpoint, PortAllocator
from scripts.bench.stream import Esl, EventReader
from scripts.errors import ToolkitError
from scripts.freeswitch.container import cpu_seconds
from scripts.machine import engine
from scripts.machine.engine import LABEL
from scripts.machine.files import ROOT
from scripts.pins.settings import Settings
from scripts.templates import environment

TEMPLATES = ROOT / "templates" / "bench"
CONFIGURATION = "/etc/freeswitch"
DATABASES = "/var/lib/freeswitch/db"
# Everything is on loopback: a bridge and its packet filter would cost more than what is measured.
HOST = "127.0.0.1"
# Enough for 16,000 connections, and no more than engines usually allow.
DESCRIPTORS = 20000
UNREGISTER = "sofia::unregister"


@dataclass(frozen=True)
class Variant:
    """What a container runs: the stage of the image and the parameters of its SIP profile.

    With `all_transports` it listens for TLS, WS and WSS as well, with certificates of its own making.
    """

    name: str
    stage: str
    parameters: Mapping[str, str]
    all_transports: bool = False


# The flag is what makes stock FreeSWITCH notice a lost connection at all.
STOCK = Variant("stock", "stock", {"tcp-unreg-on-socket-close": "true"})
PLAIN = Variant("stock-plain", "stock", {})
PATCHED = Variant("patched", "patched", {})
REMOVING = Variant("patched-removing", "patched", {"tp-error-unregister": "true"})
OFFENDED = Variant("patched-offended", "patched", {}, all_transports=True)
STOCK_OFFENDED = Variant("stock-offended", "stock", {}, all_transports=True)


@dataclass(frozen=True)
class Memory:
    """Bytes that a process holds; the proportional share (PSS) is 0 where it may not be read."""

    resident: int
    proportional: int


@dataclass
class FreeSwitchContainer:
    """The container of a running FreeSWITCH."""

    variant: Variant
    pid: int
    sip_port: int
    esl_port: int
    password: str
    subclass: str
    esl: Esl
    # By transport, those that are not TCP.
    more_ports: Mapping[str, int] = field(default_factory=dict)
    _ports: PortAllocator = field(default_factory=PortAllocator)

    def __post_init__(self) -> None:
        self.name = self.variant.name

    def target(self, connections: int) -> Endpoint:
        """Return where to connect to; each call gets ports of the near end that were not used lately."""
        return Endpoint(HOST, self.sip_port, self._ports.take(connections))

    def targets(self) -> dict[str, tuple[str, int]]:
        """Return where to connect to over each transport."""
        return {transport: (HOST, port) for transport, port in {"tcp": self.sip_port, **self.more_ports}.items()}

    def reader(self) -> EventReader:
        """Return a reader of what this variant fires for a lost connection."""
        return EventReader((HOST, self.esl_port), self.password, self.subclass)

    def login(self, receive_buffer: int = 0) -> Esl:
        """Return one more event socket."""
        return Esl(HOST, self.esl_port, self.password, receive_buffer=receive_buffer)

    def cpu(self) -> float:
        """Return the CPU seconds that the process has used, to one tick of the kernel."""
        return cpu_seconds(self._proc("stat"))

    def cpu_of_threads(self) -> float:
        """Return the CPU seconds that its living threads have used, to the nanosecond."""
        return cpu_of_threads(self.pid)

    def memory(self) -> Memory:
        resident = int(self._proc("statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return Memory(resident, proportional(self.pid))

    def forget(self) -> None:
        """Remove all registrations, so that each run finds the same tables."""
        self.esl.command("api sofia profile internal flush_inbound_reg")

    def _proc(self, name: str) -> str:
        try:
            return Path(f"/proc/{self.pid}/{name}").read_text()
        except OSError as error:
            raise ToolkitError(
                f"FreeSWITCH ({self.variant.name}), process {self.pid}: {error.strerror}: "
                "did it die? (its figures are read in /proc: this needs Docker on this very Linux)"
            ) from None


def cpu_of_threads(pid: int) -> float:
    """Return the CPU seconds that the living threads of process `pid` have used, to the nanosecond."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def proportional(pid: int) -> int:
    """Return the proportional share (PSS) of process `pid` in bytes, 0 if it may not be read."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024
    return 0


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [int(item.getsockname()[1]) for item in sockets]


def configuration(variant: Variant, sip_port: int, more_ports: Mapping[str, int] | None = None) -> dict[str, str]:
    """Return the files of the configuration, by their path below /etc/freeswitch; `more_ports` are by transport."""
    templates = environment(TEMPLATES, markup=True)
    values = {
        "host": HOST,
        "sip_port": sip_port,
        "more_ports": more_ports or {},
        "directory": DATABASES,
        "parameters": variant.parameters,
        "number": ECHO,
    }
    files = {
        "autoload_configs/sofia.conf.xml": "sofia.conf.xml",
        "autoload_configs/switch.conf.xml": "switch.conf.xml",
        "dialplan/default.xml": "dialplan.xml",
    }
    return {path: templates.get_template(f"{name}.j2").render(values) for path, name in files.items()}


@dataclass
class DockerHost:
    """The Docker host on which the containers of one run are. A context manager; leaving it removes them all."""

    settings: Settings
    client: docker.DockerClient

    def __post_init__(self) -> None:
        self.id = secrets.token_hex(4)
        self.labels = {LABEL: "true", f"{LABEL}.run": self.id}

    def __enter__(self) -> DockerHost:
        for stage in ("stock", "patched"):
            try:
                self.client.images.get(f"{self.settings.image}:{stage}")
            except NotFound:
                raise ToolkitError(f"there is no image {self.settings.image}:{stage}: `inv build` makes it") from None
        return self

    def __exit__(self, *_: object) -> None:
        engine.remove(self.client, f"{LABEL}.run={self.id}")

    @contextlib.contextmanager
    def run(self, variant: Variant) -> Iterator[FreeSwitchContainer]:
        """Run a FreeSWITCH of `variant`."""
        password = secrets.token_hex(16)
        sip_port, esl_port, *others = free_ports(5 if variant.all_transports else 2)
        more_ports = dict(zip(("tls", "ws", "wss"), others, strict=False))
        container = self.client.containers.create(
            f"{self.settings.image}:{variant.stage}",
            name=f"{self.settings.image.replace('/', '-')}-{self.id}-{variant.name}-{secrets.token_hex(2)}",
            labels=self.labels,
            network_mode="host",
            # The tables are in memory: the disk is not what is measured.
            tmpfs={DATABASES: "mode=1777"},
            ulimits=[Ulimit(name="nofile", soft=DESCRIPTORS, hard=DESCRIPTORS)],
            environment={
                # The entrypoint refuses its own choice if this machine has a FreeSWITCH already.
                "SIP_PORT": str(sip_port),
                "ESL_PORT": str(esl_port),
                "ESL_PASSWORD": password,
                "SIP_DOMAIN": DOMAIN,
                "LOG_LEVEL": "crit",
            },
            # Neither logs nor health checks are what is measured.
            healthcheck={"test": ["NONE"]},
        )
        try:
            container.put_archive(CONFIGURATION, engine.tar(configuration(variant, sip_port, more_ports)))
            container.start()
            container.reload()
            esl = self._wait(variant, esl_port, password)
            subclass = UNREGISTER if variant.stage == "stock" else self.settings.esl_event
            try:
                yield FreeSwitchContainer(
                    variant, _process(container), sip_port, esl_port, password, subclass, esl, more_ports
                )
            finally:
                esl.sock.close()
        finally:
            with contextlib.suppress(NotFound):
                container.remove(force=True, v=True)

    def _wait(self, variant: Variant, port: int, password: str) -> Esl:
        deadline = time.monotonic() + self.settings.start_timeout
        while True:
            with contextlib.suppress(OSError, ToolkitError):
                esl = Esl(HOST, port, password)
                if "RUNNING" in esl.command("api sofia status profile internal") or "RUNNING" in esl.command(
                    "api sofia status"
                ):
                    return esl
                esl.sock.close()
            if time.monotonic() > deadline:
                raise ToolkitError(
                    f"FreeSWITCH ({variant.name}) isn't ready after {self.settings.start_timeout:g} s "
                    "(it is reached over loopback: this needs Docker on this very Linux)"
                )
            time.sleep(0.2)


def _process(container: Container) -> int:
    """Return the process of FreeSWITCH as this machine numbers it; the container's first one is the entrypoint."""
    for number, name in container.top(ps_args="-eo pid,comm")["Processes"]:
        if name == "freeswitch":
            return int(number)
    raise ToolkitError(f"there is no process of FreeSWITCH in container {container.name}: see its log")


@contextlib.contextmanager
def docker_host(settings: Settings) -> Iterator[DockerHost]:
    """Hand over the Docker host for the containers of a run; its engine can be reached."""
    with engine.connect(timeout=120) as client, DockerHost(settings, client) as host:
        yield host
