"""A running FreeSWITCH with many profiles, for tests: configuration, containers, events.

The containers are made with Docker Compose. Their addresses are used as they
are, without published ports: that needs Docker on this very Linux.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import itertools
import re
import secrets
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

import docker
import trustme
from docker.errors import APIError
from docker.models.containers import Container
from docker.models.networks import Network
from docker.types import IPAMConfig, IPAMPool
from pytest_docker.plugin import get_docker_services

from scripts.bench.container import cpu_seconds
from scripts.errors import ToolkitError
from scripts.freeswitch.events import EXPIRE, REGISTER, UNREGISTER, ConnectionLost, Event, Subscriber, Unreachable
from scripts.machine import engine
from scripts.machine.engine import LABEL
from scripts.pins.settings import Settings
from scripts.templates import environment
from tests import relay
from tests.sip import Client

HERE = Path(__file__).parent
DOMAIN = "example.test"
ESL_PORT = 8021
USERS = 7000
# With few CPUs one thread handles all SIP messages, with many several do.
CPUS = (2, 16)
# What FreeSWITCH logs when a thread begins or ends to handle SIP messages.
THREAD_STARTED, THREAD_ENDED = re.compile(r"MSG Thread \d+ Started"), re.compile(r"MSG Thread Ended")
# The bound that profile `silent` sets on the silent death of a peer, seconds.
DEAD_PEER_TIMEOUT = 6
# An alias of profile `silent`: tcp only, with a stack of its own.
ALIAS_PORT = 5104
# How often networks are made anew whose addresses are not what containers see of each other.
NETWORKS = 3
# Requests per second that profile `limited` takes, FreeSWITCH's own default.
LIMIT = 1000
OFFSETS = {"udp": 0, "tcp": 0, "tls": 1, "ws": 2, "wss": 3}


@dataclass(frozen=True)
class Profile:
    """A SIP profile: udp and tcp on `port`, tls, ws and wss on the three after it."""

    name: str
    port: int
    parameters: Mapping[str, str] = field(default_factory=dict)
    ipv6: bool = False


PROFILES = (
    Profile("main", 5060),
    Profile("multi", 5070, {"multiple-registrations": "call-id"}),
    Profile("contact", 5080, {"multiple-registrations": "contact"}),
    Profile("short", 5090, {"sip-expires-late-margin": "0", "multiple-registrations": "call-id"}),
    Profile(
        "silent",
        5100,
        {
            "tcp-dead-peer-timeout": str(DEAD_PEER_TIMEOUT),
            "alias": f"sip:$${{local_ip_v4}}:{ALIAS_PORT};transport=tcp",
        },
    ),
    Profile("unreg", 5110, {"tcp-unreg-on-socket-close": "true"}),
    Profile("remove", 5120, {"tp-error-unregister": "true"}),
    Profile(
        "both",
        5130,
        {"tp-error-unregister": "true", "tcp-unreg-on-socket-close": "true"},
    ),
    Profile("path", 5170, {"tp-error-path": "true"}),
    Profile("quiet", 5140, {"tp-error-report": "false"}),
    Profile("threads", 5150, {"inbound-reg-in-new-thread": "true", "multiple-registrations": "call-id"}),
    Profile("six", 5160, ipv6=True),
    Profile("limited", 5180, {"max-recv-requests-per-second": str(LIMIT)}),
    # These two have one database.
    Profile(
        "hurried", 5200, {"tcp-first-message-timeout": "2", "dbname": "shared", "multiple-registrations": "call-id"}
    ),
    Profile("image-limit", 5190, {"max-recv-requests-per-second": "$${requests_per_second}", "dbname": "shared"}),
)


class Rewritten(ToolkitError):
    """An address of the lab's network is not what others on it see."""


def threads(cpus: int) -> int:
    """Return how many threads mod_sofia starts at most to handle messages: after the first one two at a time."""
    most = max(2, cpus // 2 + 1)
    return most if most % 2 else most - 1


class Recorder:
    """An event socket in a thread of its own that keeps all events that come."""

    def __init__(self, host: str, password: str, subclasses: Sequence[str]) -> None:
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self._came = threading.Condition()
        self._api = threading.Lock()
        self._subscribe = functools.partial(Subscriber, host, ESL_PORT, password, subclasses, timeout=120)
        self._loop = asyncio.new_event_loop()
        self._subscriber = self._subscribe()
        self._recording: asyncio.Task[None]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, timeout: float) -> None:
        """Connect within `timeout` seconds and start to record."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._loop.run_until_complete(self._subscriber.__aenter__())
                break
            except (Unreachable, ConnectionLost):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
                self._subscriber = self._subscribe()
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._recording = self._loop.create_task(self._record())
        try:
            self._loop.run_until_complete(self._recording)
        except BaseException as error:
            with self._came:
                self.error = error
                self._came.notify_all()

    async def _record(self) -> None:
        try:
            async for event in self._subscriber:
                with self._came:
                    self.events.append(event)
                    self._came.notify_all()
        finally:
            await self._subscriber.__aexit__(None, None, None)

    def stop(self) -> None:
        """End the recording."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._recording.cancel)
            self._thread.join(5)

    def api(self, command: str) -> str:
        """Return the output of an API command; one at a time, whatever thread it comes from."""
        with self._api:
            future = asyncio.run_coroutine_threadsafe(self._subscriber.api(command), self._loop)
            try:
                return future.result(130)
            except FutureTimeoutError:
                raise ToolkitError(f"the event socket is gone: no answer to '{command}'") from self.error

    def wait(self, done: Callable[[Sequence[Event]], bool], timeout: float) -> bool:
        """Wait until `done` says so of all events so far; False if it didn't in `timeout` seconds."""
        with self._came:
            return self._came.wait_for(lambda: self.error is not None or done(self.events), timeout) and not self.error


@dataclass
class FreeSwitch:
    """A container with FreeSWITCH and the recorder of its events."""

    container: Container
    address: str
    address6: str
    password: str
    subclass: str
    # CPUs that it believes in, 0: those of this machine.
    cpus: int = 0
    recorder: Recorder = field(init=False)

    def start(self, timeout: float, subclasses: Sequence[str] = ()) -> None:
        """Wait until all profiles run; record the events of `subclasses` (default: all about registrations).

        With `cpus` also until all threads run that handle messages.
        """
        self.recorder = Recorder(
            self.address, self.password, subclasses or (self.subclass, REGISTER, UNREGISTER, EXPIRE)
        )
        self.recorder.start(timeout)
        deadline = time.monotonic() + timeout
        while not self.running():
            if time.monotonic() > deadline:
                raise ToolkitError(f"not all profiles run: {self.recorder.api('sofia status')}")
            time.sleep(0.2)
        if self.cpus:
            self.warm_up(timeout)

    def warm_up(self, timeout: float) -> None:
        """Let FreeSWITCH start all threads that handle messages; needs a lab with `cpus`.

        Raises ToolkitError if they don't run within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        with contextlib.closing(Client("udp", self.address, PROFILES[0].port)) as client:
            while (count := self.message_threads()) != threads(self.cpus):
                if time.monotonic() > deadline:
                    raise ToolkitError(f"{count} threads handle messages, not {threads(self.cpus)}")
                for _ in range(threads(self.cpus)):
                    client.ask("OPTIONS", "warm-up", DOMAIN, "warm-up")

    def message_threads(self) -> int:
        """Return how many threads handle messages, according to the log since the container's start."""
        self.container.reload()
        started = datetime.fromisoformat(self.container.attrs["State"]["StartedAt"][:19] + "+00:00")
        log = self.container.logs(since=int(started.timestamp())).decode(errors="replace")
        return len(THREAD_STARTED.findall(log)) - len(THREAD_ENDED.findall(log))

    def running(self) -> bool:
        """Return whether all profiles run."""
        answer = self.recorder.api("sofia xmlstatus").strip()
        if not answer.startswith("<"):
            return False
        names = {
            node.findtext("name")
            for node in ElementTree.fromstring(answer).iterfind("profile")
            if node.findtext("state", "").startswith("RUNNING")
        }
        return {profile.name for profile in PROFILES if self.address6 or not profile.ipv6} <= names

    def shell(self, script: str) -> str:
        """Return what `script` prints in the container."""
        done = engine.execute(self.container, ["sh", "-c", script])
        assert done.status == 0, f"{script}: {done}"
        return done.everything.decode(errors="replace")

    def connections(self) -> list[str]:
        """Return the TCP connections to SIP ports as `near far state` in /proc/net/tcp's hexadecimal notation."""
        ports = {profile.port + offset for profile in PROFILES for offset in OFFSETS.values()}
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
        """Return the allocated bytes of FreeSWITCH, and of these SQLite's, in a lab with `heap`."""
        everything, sqlite = self.shell("cat /var/run/freeswitch/heap").split()
        return int(everything), int(sqlite)

    def registrations(self, profile: str, user: str = "") -> list[dict[str, str]]:
        """Return what `sofia xmlstatus` lists as registered in `profile`, of `user` (USER@DOMAIN) only if given."""
        text = self.recorder.api(f"sofia xmlstatus profile {profile} {f'user {user}' if user else 'reg'}").strip()
        return [
            {child.tag: child.text or "" for child in node}
            for node in ElementTree.fromstring(text).iterfind("registrations/registration")
        ]


@dataclass
class Lab:
    """The containers, and what tests need to use them."""

    settings: Settings
    image: str
    password: str
    directory: Path
    freeswitch: FreeSwitch
    spare: FreeSwitch | None
    relay: tuple[str, int]
    gateway: str
    # The reports that came in the time of the test they belong to, per user.
    # Tests side by side have users of their own, so that none counts twice.
    settled: Counter[str] = field(default_factory=Counter)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def is_report(self, event: Event) -> bool:
        return event.subclass == self.settings.esl_event

    def reports(self, user: str) -> list[Event]:
        """Return the reports of `user` so far, and take them for settled."""
        events = self.freeswitch.recorder.events
        found = [event for event in events if self.is_report(event) and event.get("from-user") == user]
        self.settled[user] = len(found)
        return found

    def user(self) -> str:
        """Return a user that nobody has had before, in whatever thread."""
        number = next(self._numbers)
        assert number < USERS, "more users needed than lab.USERS"
        return f"u{number:04}"

    def target(self, profile: str, transport: str) -> tuple[str, int]:
        """Return where `profile` listens for `transport`."""
        found = next(item for item in PROFILES if item.name == profile)
        host = self.freeswitch.address6 if found.ipv6 else self.freeswitch.address
        return host, found.port + OFFSETS[transport]

    def open(self, profile: str, transport: str, through_relay: bool = False) -> Client:
        """Return a client that is connected to `profile`."""
        host, port = self.target(profile, transport)
        return Client(transport, host, port, relay=self.relay if through_relay else None)

    def command_relay(self, command: str) -> None:
        """Give the relay a command: `CUT link`, `CUT route` or `HEAL`."""
        line = f"{command} {self.freeswitch.address}\n" if command != "HEAL" else f"{command}\n"
        with socket.create_connection(self.relay, 5) as connection:
            connection.sendall(line.encode())
            answer = connection.recv(1000).decode()
        assert answer == "ok\n", f"relay: {command}: {answer}"


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


def configure(
    directory: Path,
    settings: Settings,
    image: str,
    password: str,
    ipv6: str,
    spare: bool,
    parameters: Mapping[str, str] | None = None,
    heap: bool = False,
    cpus: int = 0,
) -> Path:
    """Write the Compose file and all that it mounts to `directory`; return the Compose file.

    `parameters` are set in every profile, before its own. With `heap`
    FreeSWITCH tells how much it has allocated, with `cpus` it believes in so many.
    """
    templates = environment(HERE / "templates")
    profiles = [
        Profile(item.name, item.port, {**(parameters or {}), **item.parameters}, item.ipv6)
        for item in PROFILES
        if ipv6 or not item.ipv6
    ]
    libraries = [name for name, wanted in (("heap", heap), ("cpus", cpus)) if wanted]
    values = {
        "image": image,
        "relay_image": f"{settings.image}:build",
        "label": LABEL,
        "password": password,
        "domain": DOMAIN,
        "directory": directory,
        "ipv6": ipv6,
        "spare": spare,
        "libraries": libraries,
        "cpus": cpus,
        "profiles": profiles,
        "users": [f"u{number:04}" for number in range(USERS)],
    }
    for name in (
        "compose.yml",
        "sofia.conf.xml",
        "directory/users.xml",
    ):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(templates.get_template(f"{Path(name).name}.j2").render(values))
    shutil.copy(HERE / "relay.py", directory)
    if libraries:
        _compile(settings, directory, libraries)
    _certificates(directory / "tls")
    # FreeSWITCH runs as a user of its own, and the umask may be strict.
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return directory / "compose.yml"


def _compile(settings: Settings, directory: Path, libraries: Sequence[str]) -> None:
    """Make NAME.so in `directory` of each of the C files NAME.c of the tests."""
    command = " && ".join(f"gcc -O2 -shared -fPIC -pthread -o /out/{name}.so /tests/{name}.c" for name in libraries)
    volumes = {HERE: {"bind": "/tests", "mode": "ro"}, directory: {"bind": "/out"}}
    with engine.connect() as client:
        client.containers.run(
            f"{settings.image}:build",
            ["sh", "-c", command],
            volumes=volumes,
            labels={LABEL: "true"},
            network_disabled=True,
            remove=True,
        )


def _certificates(directory: Path) -> None:
    authority = trustme.CA()
    pem = authority.issue_cert(DOMAIN).private_key_and_cert_chain_pem.bytes()
    directory.mkdir()
    for name in ("agent.pem", "wss.pem", "dtls-srtp.pem"):
        (directory / name).write_bytes(pem)
    (directory / "cafile.pem").write_bytes(authority.cert_pem.bytes())


@contextlib.contextmanager
def start(
    settings: Settings,
    directory: Path,
    variant: str = "patched",
    spare: bool = False,
    parameters: Mapping[str, str] | None = None,
    heap: bool = False,
    cpus: int = 0,
) -> Iterator[Lab]:
    """Run the lab with the image `variant`; remove all of it in the end.

    `parameters`, `heap` and `cpus` as for `configure`. With `cpus` as many
    threads handle messages from the start as FreeSWITCH ever has with so many.
    """
    client = docker.from_env()
    try:
        password = secrets.token_hex(16)
        image = f"{settings.image}:{variant}"
        ipv6 = ipv6_prefix(client)
        file = configure(directory, settings, image, password, ipv6, spare, parameters, heap, cpus)
        for last in (*[False] * (NETWORKS - 1), True):
            project = f"tp-error-{secrets.token_hex(4)}"
            try:
                with _services(engine.compose_command(), str(file), project):
                    yield from _lab(client, settings, directory, image, project, password, ipv6, cpus)
                return
            except Rewritten:
                if last:
                    raise
    finally:
        client.close()


@contextlib.contextmanager
def _services(command: str, file: str, project: str) -> Iterator[None]:
    try:
        with get_docker_services(command, file, project, "up -d", ""):
            yield
    finally:
        # Also after an `up` that failed halfway.
        with get_docker_services(command, file, project, "down --volumes --timeout 5", ""):
            pass


def _check_addresses(lab: Lab) -> None:
    """Raise Rewritten if FreeSWITCH sees another address than that of the relay.

    Docker gives a subnet again, and a rule for NAT that a network before has
    left behind on this machine still holds for it.
    """
    with contextlib.closing(lab.open("main", "tcp", through_relay=True)) as client:
        if not lab.freeswitch.sees(client.address):
            raise Rewritten(
                f"FreeSWITCH does not see {client.address[0]} as what it is: look for a MASQUERADE rule of a bridge "
                "that is gone (`iptables -t nat -S POSTROUTING`) and delete it"
            )


def _lab(
    client: docker.DockerClient,
    settings: Settings,
    directory: Path,
    image: str,
    project: str,
    password: str,
    ipv6: str,
    cpus: int,
) -> Iterator[Lab]:
    def container(service: str) -> Container | None:
        labels = [f"com.docker.compose.project={project}", f"com.docker.compose.service={service}"]
        found = client.containers.list(filters={"label": labels})
        return found[0] if found else None

    def switch(service: str) -> FreeSwitch | None:
        found = container(service)
        if not found:
            return None
        network = found.attrs["NetworkSettings"]["Networks"][f"{project}_sip"]
        six = f"{ipv6}::5060" if ipv6 and service == "freeswitch" else ""
        return FreeSwitch(found, network["IPAddress"], six, password, settings.esl_event, cpus)

    freeswitch, spare, middle = switch("freeswitch"), switch("spare"), container("relay")
    assert freeswitch and middle, f"not all containers of {project} run"
    networks = middle.attrs["NetworkSettings"]["Networks"]
    address = networks[f"{project}_control"]["IPAddress"]
    near = gateway(client.networks.get(f"{project}_sip"))
    lab = Lab(settings, image, password, directory, freeswitch, spare, (address, relay.PORT), near)
    try:
        freeswitch.start(settings.start_timeout)
        if spare:
            spare.start(settings.start_timeout)
        _check_addresses(lab)
        yield lab
    finally:
        for item in (freeswitch, spare):
            if item and hasattr(item, "recorder"):
                item.recorder.stop()
