"""Where a scenario is played: FreeSWITCH on a network of its own, what else it needs, and the recorder of its events.

The addresses of the containers are used as they are, without published ports:
that needs Docker on this very Linux.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import itertools
import secrets
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import docker
import trustme
from docker.errors import APIError, DockerException
from docker.models.containers import Container
from docker.models.networks import Network
from docker.types import IPAMConfig, IPAMPool
from pytest_docker.plugin import DockerComposeExecutor
from requests.exceptions import RequestException

from scripts.errors import ToolkitError
from scripts.freeswitch import dtls
from scripts.freeswitch.container import FreeSwitch
from scripts.freeswitch.events import Event
from scripts.freeswitch.recorder import ESL_PORT
from scripts.freeswitch.sip import Client
from scripts.machine import engine
from scripts.machine.engine import LABEL
from scripts.machine.files import open_to_all, short
from scripts.pins.settings import Settings
from scripts.scenario import relay
from scripts.scenario.table import PATCHED, Scenario, Wait

RUN_LABEL = f"{LABEL}.run"
HERE = Path(__file__).parent
CONFIGURATION = "/etc/freeswitch"
DOMAIN = "example.test"
# Variables that are set here, and by nobody else.
RESERVED = ("ESL_LISTEN_IP", "ESL_PORT", "ESL_PASSWORD", "ESL_ACL", "SIP_DOMAIN")
# How many a scenario has that does not name its users.
USERS = 7000
# How often networks are made anew whose addresses are not what containers see of each other.
NETWORKS = 3
# Seconds in which a duplicate of a report would have to come.
SETTLE = 2.0


class Rewritten(ToolkitError):
    """An address of the lab's network is not what others on it see."""


@dataclass
class Lab:
    """The containers, and what a case needs to use them.

    `name` begins the names of what is made, `labels` mark it. `users` are the
    names that a case may have, in order.
    """

    settings: Settings
    client: docker.DockerClient
    scenario: Scenario
    image: str
    name: str
    labels: Mapping[str, str]
    network: str
    password: str
    directory: Path
    freeswitch: FreeSwitch
    gateway: str
    users: Sequence[str]
    wait: Wait
    relay: tuple[str, int] | None = None
    spare: FreeSwitch | None = None
    # Versions of what was found in it.
    versions: dict[str, str] = field(default_factory=dict)
    # The reports that came in the time of the case they belong to, per user.
    # Cases side by side have users of their own, so that none counts twice.
    settled: Counter[str] = field(default_factory=Counter)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def is_report(self, event: Event) -> bool:
        return event.subclass == self.freeswitch.subclass

    def reports(self, user: str) -> list[Event]:
        """Return the reports of `user` so far, and take them for settled."""
        events = self.freeswitch.recorder.events
        found = [event for event in events if self.is_report(event) and event.get("from-user") == user]
        self.settled[user] = len(found)
        return found

    def user(self, alias: str = "") -> str:
        """Return the user for `alias` of a case: that name, if the scenario names its users, else one nobody has had.

        May be called in any thread. Raises ToolkitError if there is none.
        """
        if self.scenario.users:
            if alias not in self.users:
                raise ToolkitError(f"no user '{alias}': add it to users in scenario.yaml ({', '.join(self.users)})")
            return alias
        number = next(self._numbers)
        assert number < len(self.users), "more users needed than lab.USERS"
        return self.users[number]

    def target(self, profile: str, transport: str) -> tuple[str, int]:
        """Return where `profile` listens for `transport`."""
        found = self.scenario.profile(profile)
        host = self.freeswitch.address6 if found.ipv6 else self.freeswitch.address
        return host, found.listens(transport)

    def open(self, profile: str, transport: str, through_relay: bool = False) -> Client:
        """Return a client that is connected to `profile`."""
        host, port = self.target(profile, transport)
        return Client(transport, host, port, relay=self.relay if through_relay else None)

    def command_relay(self, command: str) -> None:
        """Give the relay a command: `CUT link`, `CUT route` or `HEAL`."""
        assert self.relay
        line = f"{command} {self.freeswitch.address}\n" if command != "HEAL" else f"{command}\n"
        with socket.create_connection(self.relay, 5) as connection:
            connection.sendall(line.encode())
            answer = connection.recv(1000).decode()
        assert answer == "ok\n", f"relay: {command}: {answer}"

    def pause(self, seconds: float) -> None:
        """Sleep; raise KeyboardInterrupt if the run is broken off meanwhile."""
        self.freeswitch.pause(seconds)


def gateway(network: Network) -> str:
    """Return the IPv4 address of this machine on `network`.

    An engine that has just started does not tell that of its default network:
    it is then the first address of the subnet.
    """
    for pool in network.attrs["IPAM"]["Config"]:
        subnet = ipaddress.ip_network(pool["Subnet"])
        if subnet.version == 4:
            return str(ipaddress.ip_interface(pool.get("Gateway") or next(subnet.hosts())).ip)
    raise ToolkitError(f"network {network.name} has no IPv4 subnet")


def ipv6_prefix(client: docker.DockerClient) -> str:
    """Return a prefix (/64) for a network, "" if the engine can't do IPv6."""
    token = secrets.token_hex(5)
    prefix = f"fd{token[:2]}:{token[2:6]}:{token[6:]}"
    pool = IPAMConfig(pool_configs=[IPAMPool(subnet=f"{prefix}::/64")])
    try:
        network = client.networks.create(f"tp-error-probe-{token}", enable_ipv6=True, ipam=pool, labels={LABEL: "true"})
    except APIError:
        return ""
    network.remove()
    return prefix if Path("/proc/net/if_inet6").exists() else ""


@contextlib.contextmanager
def start(
    settings: Settings,
    scenario: Scenario,
    directory: Path,
    variant: str = PATCHED,
    spare: bool = False,
    parameters: Mapping[str, str] | None = None,
    heap: bool = False,
    cpus: int = 0,
    run: str = "",
    logs: Path | None = None,
    halt: threading.Event | None = None,
    subclasses: Sequence[str] = (),
    image: str = "",
) -> Iterator[Lab]:
    """Start what `scenario` needs, with the image `variant`; remove all of it in the end.

    `image` is the id of that image: its name may become another's meanwhile.
    `directory` is for what is written for it. `spare` is whether there is a
    second FreeSWITCH, `parameters` are set in every profile before its own;
    with `heap` FreeSWITCH tells how much it has allocated, with `cpus` it
    believes in so many, and as many threads handle messages from the start as
    it ever has with these. What is made carries the label of the run `run`.
    `logs` is where logs are kept, and `halt` breaks off what waits.

    Raises ToolkitError if FreeSWITCH isn't ready in time.
    """
    site = _Site(
        settings,
        scenario,
        directory,
        variant,
        spare,
        parameters or {},
        heap,
        cpus,
        run or secrets.token_hex(4),
        logs or directory / "logs",
        halt or threading.Event(),
        tuple(subclasses),
        image or f"{settings.image}:{variant}",
    )
    client = docker.from_env()
    try:
        place = _composed if scenario.composed else _single
        with place(site, client) as lab:
            yield lab
    finally:
        client.close()


def values(
    scenario: Scenario, users: Sequence[str], password: str, parameters: Mapping[str, str], ipv6: str
) -> dict[str, object]:
    """Return what the files of `scenario` are filled in with; `ipv6` is a prefix, "" if there is no IPv6."""
    profiles = [
        dataclasses.replace(item, parameters={**parameters, **item.parameters})
        for item in scenario.profiles
        if ipv6 or not item.ipv6
    ]
    return {"profiles": profiles, "users": users, "password": password, "domain": DOMAIN, "ipv6": ipv6}


@dataclass(frozen=True)
class _Site:
    """What `start` was given."""

    settings: Settings
    scenario: Scenario
    directory: Path
    variant: str
    spare: bool
    parameters: Mapping[str, str]
    heap: bool
    cpus: int
    run: str
    logs: Path
    halt: threading.Event
    subclasses: Sequence[str]
    image: str
    password: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def name(self) -> str:
        return f"{self.settings.image.replace('/', '-')}-{self.run}-{self.variant}"

    @property
    def labels(self) -> dict[str, str]:
        return {LABEL: "true", RUN_LABEL: self.run}

    @property
    def users(self) -> Sequence[str]:
        return self.scenario.users or [f"u{number:04}" for number in range(USERS)]

    def values(self, ipv6: str = "") -> dict[str, object]:
        return values(self.scenario, self.users, self.password, self.parameters, ipv6)

    def environment(self, acl: str) -> dict[str, str]:
        """Return the variables of FreeSWITCH's container; only the networks `acl` get to its event socket."""
        values = ("0.0.0.0", str(ESL_PORT), self.password, acl, DOMAIN)
        return {**self.scenario.environment, **dict(zip(RESERVED, values, strict=True))}

    def freeswitch(self, container: Container, address: str, address6: str = "") -> FreeSwitch:
        """Return the FreeSWITCH in `container`, which isn't connected to."""
        return FreeSwitch(
            container,
            address,
            self.password,
            self.settings.esl_event,
            self.scenario.profiles,
            self.logs,
            self.variant,
            address6,
            self.cpus,
            self.halt,
        )

    def wait(self) -> Wait:
        """Return how long to wait: as the scenario says, else as the settings do."""
        timeout = self.settings.event_timeout
        return self.scenario.wait or Wait(report=timeout, nothing=timeout, end=min(SETTLE, timeout))


@contextlib.contextmanager
def _single(site: _Site, client: docker.DockerClient) -> Iterator[Lab]:
    """Run FreeSWITCH alone, the image as it is but for the scenario's files."""
    if site.spare or site.heap or site.cpus:
        raise ToolkitError(f"scenario '{site.scenario.name}': cpus need a compose.yml.j2: add one")
    network = client.networks.create(site.name, driver="bridge", labels=site.labels)
    network.reload()
    subnet = network.attrs["IPAM"]["Config"][0]["Subnet"]
    with _removed(network):
        container = client.containers.create(
            site.image,
            name=f"{site.name}-freeswitch",
            labels=site.labels,
            network=network.name,
            environment=site.environment(subnet),
        )
        with _removed(container, force=True, v=True):
            yield from _alone(site, client, network, container)


def _alone(site: _Site, client: docker.DockerClient, network: Network, container: Container) -> Iterator[Lab]:
    container.put_archive(CONFIGURATION, engine.tar(site.scenario.files(**site.values())))
    container.start()
    container.reload()
    address = str(container.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"])
    lab = _lab(site, client, str(network.name), site.freeswitch(container, address), gateway(network))
    with _recorded(lab, site):
        yield lab


@contextlib.contextmanager
def _removed(thing: Container | Network, **options: bool) -> Iterator[None]:
    """Remove `thing` in the end. What an engine that fails leaves, it has told of, and the run sweeps."""
    try:
        yield
    finally:
        with contextlib.suppress(DockerException, RequestException):
            thing.remove(**options)


def _lab(site: _Site, client: docker.DockerClient, network: str, freeswitch: FreeSwitch, near: str) -> Lab:
    return Lab(
        site.settings,
        client,
        site.scenario,
        site.image,
        site.name,
        site.labels,
        network,
        site.password,
        site.directory,
        freeswitch,
        near,
        site.users,
        site.wait(),
    )


@contextlib.contextmanager
def _recorded(lab: Lab, site: _Site) -> Iterator[None]:
    switches = [item for item in (lab.freeswitch, lab.spare) if item]
    try:
        for item in switches:
            item.start(lab.settings.start_timeout, site.subclasses)
        yield
    finally:
        for item in switches:
            if hasattr(item, "recorder"):
                item.recorder.stop()


@contextlib.contextmanager
def _composed(site: _Site, client: docker.DockerClient) -> Iterator[Lab]:
    """Run what the scenario's Compose file says."""
    ipv6 = ipv6_prefix(client)
    file = configure(site, ipv6)
    for last in (*[False] * (NETWORKS - 1), True):
        project = f"tp-error-{secrets.token_hex(4)}"
        try:
            with _services(engine.compose_command(), str(file), project):
                lab = _of_project(site, client, project, ipv6)
                with _recorded(lab, site):
                    if lab.relay:
                        _check_addresses(lab)
                    yield lab
            return
        except Rewritten:
            if last:
                raise


def configure(site: _Site, ipv6: str) -> Path:
    """Write the Compose file and all that it mounts to the site's directory; return the Compose file."""
    directory = site.directory
    libraries = [name for name, wanted in (("heap", site.heap), ("cpus", site.cpus)) if wanted]
    values = {
        **site.values(ipv6),
        "image": site.image,
        "relay_image": f"{site.settings.image}:build",
        "labels": site.labels,
        "environment": site.environment("0.0.0.0/0"),
        "directory": directory,
        "spare": site.spare,
        "libraries": libraries,
        "cpus": site.cpus,
    }
    files = site.scenario.files(**values)
    values["files"] = sorted(files)
    for name, content in {**{f"freeswitch/{path}": text for path, text in files.items()}}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    (directory / "compose.yml").write_text(site.scenario.render("compose.yml", **values))
    shutil.copy(HERE / "relay.py", directory)
    if libraries:
        _compile(site, libraries)
    _certificates(directory / "tls")
    open_to_all(directory)
    return directory / "compose.yml"


def _compile(site: _Site, libraries: Sequence[str]) -> None:
    """Make NAME.so in the site's directory of each of the C files preload/NAME.c."""
    command = " && ".join(f"gcc -O2 -shared -fPIC -pthread -o /out/{name}.so /src/{name}.c" for name in libraries)
    volumes = {HERE / "preload": {"bind": "/src", "mode": "ro"}, site.directory: {"bind": "/out"}}
    with engine.connect() as client:
        client.containers.run(
            f"{site.settings.image}:build",
            ["sh", "-c", command],
            volumes=volumes,
            labels=site.labels,
            network_disabled=True,
            remove=True,
        )


def _certificates(directory: Path) -> None:
    authority = trustme.CA()
    pem = authority.issue_cert(DOMAIN).private_key_and_cert_chain_pem.bytes()
    directory.mkdir()
    for name in ("agent.pem", "wss.pem"):
        (directory / name).write_bytes(pem)
    (directory / dtls.FILE).write_bytes(dtls.certificate())
    (directory / "cafile.pem").write_bytes(authority.cert_pem.bytes())


@contextlib.contextmanager
def _services(command: str, file: str, project: str) -> Iterator[None]:
    down = "down --volumes --timeout 0"
    try:
        _compose(command, file, project, "up -d")
    except ToolkitError:
        # It may have failed halfway; why is what counts.
        with contextlib.suppress(ToolkitError):
            _compose(command, file, project, down)
        raise
    try:
        yield
    finally:
        _compose(command, file, project, down)


def _compose(command: str, file: str, project: str, action: str) -> None:
    """Run Docker Compose; raise ToolkitError with what it said last."""
    try:
        DockerComposeExecutor(command, file, project).execute(action)
    except Exception as error:
        # pytest-docker has none of its own for it.
        said = [line.strip() for line in str(error).splitlines() if line.strip(" '\"`.")]
        last = said[-1].rstrip("'\"`.") if said else type(error).__name__
        raise ToolkitError(f"`{command} {action}` failed ({last[-300:]}): see what `docker ps` and `df` say") from None


def _check_addresses(lab: Lab) -> None:
    """Raise Rewritten if FreeSWITCH sees another address than that of the relay.

    Docker gives a subnet again, and a rule for NAT that a network before has
    left behind on this machine still holds for it.
    """
    with contextlib.closing(lab.open(lab.scenario.profiles[0].name, "tcp", through_relay=True)) as client:
        if not lab.freeswitch.sees(client.address):
            raise Rewritten(
                f"FreeSWITCH does not see {client.address[0]} as what it is: look for a MASQUERADE rule of a bridge "
                "that is gone (`iptables -t nat -S POSTROUTING`) and delete it"
            )


def _of_project(site: _Site, client: docker.DockerClient, project: str, ipv6: str) -> Lab:
    def container(service: str) -> Container | None:
        labels = [f"com.docker.compose.project={project}", f"com.docker.compose.service={service}"]
        found = client.containers.list(filters={"label": labels}, ignore_removed=True)
        return found[0] if found else None

    def switch(service: str, address6: str) -> FreeSwitch | None:
        found = container(service)
        if not found:
            return None
        network = found.attrs["NetworkSettings"]["Networks"].get(f"{project}_sip")
        if network is None:
            raise ToolkitError(
                f"{short(site.scenario.directory / 'compose.yml')}.j2: service {service} is on no network `sip`: "
                "give it one"
            )
        return site.freeswitch(found, network["IPAddress"], address6)

    freeswitch = switch("freeswitch", f"{ipv6}::5060" if ipv6 else "")
    if freeswitch is None:
        raise ToolkitError(f"scenario '{site.scenario.name}': no service freeswitch of its compose.yml.j2 runs")
    network = client.networks.get(f"{project}_sip")
    lab = _lab(site, client, str(network.name), freeswitch, gateway(network))
    lab.spare = switch("spare", "")
    if middle := container("relay"):
        lab.relay = (middle.attrs["NetworkSettings"]["Networks"][f"{project}_control"]["IPAddress"], relay.PORT)
    return lab
