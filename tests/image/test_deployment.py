"""The image as it is deployed: what it lets in, how it stops, what it can do without."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import inspect
import re
import secrets
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.etree import ElementTree

import pytest
import trustme
from docker.errors import NotFound
from docker.models.containers import Container
from docker.types import IPAMConfig, IPAMPool, Ulimit

from scripts.bench.offenders import Raw
from scripts.errors import ToolkitError
from scripts.freeswitch.events import Subscriber
from scripts.machine import engine
from scripts.machine.engine import LABEL
from scripts.pins.settings import Settings
from scripts.scenario.cases import DOMAIN
from scripts.scenario.verify import DIRECTORY
from scripts.templates import render
from tests import aside
from tests import lab as lab_module
from tests.sip import Client, digest

ECHO = "9196"
ESL_PORT = 8021
STATUS_OF_CONFIGURATION_ERROR = 78
# How many tests run at once.
LANES = 3
# What FreeSWITCH may take to start when several do and the machine is busy, and to answer then, seconds.
START, ANSWER = 300.0, 60.0


@dataclass
class Node:
    """A container of the image, and a user that can register there."""

    container: Container
    settings: Settings
    user: str = "alice"
    password: str = ""

    @property
    def address(self) -> str:
        self.container.reload()
        (network,) = self.container.attrs["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    @property
    def state(self) -> dict[str, Any]:
        self.container.reload()
        return dict(self.container.attrs["State"])

    def log(self) -> str:
        return str(self.container.logs().decode(errors="replace"))

    def shell(self, script: str) -> tuple[int, str]:
        """Return the exit status of `script` in the container and what it printed."""
        done = engine.execute(self.container, ["sh", "-c", script])
        return done.status, done.everything.decode(errors="replace").strip()

    def cli(self, command: str) -> str:
        """Return what FreeSWITCH answers to `command`."""
        done = engine.execute(self.container, ["fs_cli", "-x", command])
        assert done.status == 0, done
        return done.everything.decode(errors="replace").strip()

    def configured(self, name: str) -> dict[str, str]:
        """Return the parameters in the configuration file `name`, as FreeSWITCH has read it."""
        xml = ElementTree.fromstring(self.cli(f"xml_locate configuration configuration name {name}"))
        return {param.attrib["name"]: param.attrib["value"] for param in xml.iter("param")}

    def wait(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.settings.start_timeout
        while not done():
            assert time.monotonic() < deadline, f"{what}: {self.log()}"
            time.sleep(0.2)

    def ready(self) -> Node:
        """Wait until FreeSWITCH says that all is well."""

        def healthy() -> bool:
            assert self.state["Running"], self.log()
            return self.shell("freeswitch-health.sh")[0] == 0

        self.wait(healthy, "not ready")
        return self

    def call(self) -> str:
        """Return the identifier of the one call there is."""
        self.wait(lambda: ECHO in self.cli("show channels"), "no call")
        (uuid,) = (line.split(",")[0] for line in self.cli("show channels").splitlines() if ECHO in line)
        return uuid

    def client(self, transport: str = "tcp", port: int = 5060) -> Client:
        return Client(transport, self.address, port, limit=ANSWER)

    def register(self, transport: str = "tcp", port: int = 5060) -> Client:
        """Return a client that has registered the user."""
        client = self.client(transport, port)
        client.register(self.user, self.password, DOMAIN)
        return client


Run = Callable[..., Node]


def _remove(container: Container) -> None:
    with contextlib.suppress(NotFound):
        container.remove(force=True, v=True)


@contextlib.contextmanager
def running(built: Settings) -> Iterator[Run]:
    """Hand over a function that starts a container of the patched image, and remove what it started.

    It takes environment variables, `files` (contents by path in /etc/freeswitch)
    and, as `options`, what Docker's create takes; `stage` is that of the image.
    """
    with engine.connect() as client, contextlib.ExitStack() as stack:

        def start(
            files: dict[str, str] | None = None,
            options: dict[str, Any] | None = None,
            users: bool = True,
            stage: str = "patched",
            **environment: str,
        ) -> Node:
            password = secrets.token_hex(8)
            container = client.containers.create(
                f"{built.image}:{stage}",
                labels={LABEL: "true"},
                environment={"SIP_DOMAIN": DOMAIN, **environment},
                **(options or {}),
            )
            stack.callback(_remove, container)
            if users:
                user = render("freeswitch/user", user="alice", password=password)
                container.put_archive(DIRECTORY, engine.tar({"alice.xml": user}))
            if files:
                container.put_archive("/etc/freeswitch", engine.tar(files))
            container.start()
            return Node(container, dataclasses.replace(built, start_timeout=START), password=password)

        yield start


@pytest.fixture
def run(built: Settings) -> Iterator[Run]:
    """Return the function that `running` hands over."""
    with running(built) as start:
        yield start


@pytest.fixture(scope="module", autouse=True)
def side_by_side(request: pytest.FixtureRequest, built: Settings) -> Iterator[None]:
    """Run those tests at once that need a container of their own, and nothing else."""

    @contextlib.contextmanager
    def arguments(item: pytest.Function) -> Iterator[dict[str, Any]]:
        with running(built) as start:
            yield {"run": start, **aside.parameters(item)}

    def is_one(item: pytest.Function) -> bool:
        return set(inspect.signature(item.function).parameters) == {"run", *aside.parameters(item)}

    with aside.ahead(filter(is_one, aside.of_module(request)), arguments, LANES):
        yield


def certificates() -> dict[str, str]:
    certificate = trustme.CA().issue_cert(DOMAIN)
    return {
        "tls/tls.crt": "".join(pem.bytes().decode() for pem in certificate.cert_chain_pems),
        "tls/tls.key": certificate.private_key_pem.bytes().decode(),
    }


def test_defaults(run: Run) -> None:
    node = run().ready()
    assert node.shell("id -un")[1] == "freeswitch"
    # The event socket listens inside only; SIP over UDP and TCP, and nothing else.
    for port in (ESL_PORT, 5061, 5066, 7443):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((node.address, port), 5).close()
    node.register("tcp").close()
    node.register("udp").close()
    password = node.shell("cat /run/freeswitch/esl-password")[1]
    assert len(password) == 32
    assert node.shell("stat -c %a /run/freeswitch/esl-password /run/freeswitch/fs_cli.conf")[1].split() == [
        "600",
        "600",
    ]
    # Every module that is loaded has what it needs.
    assert not [line for line in node.log().splitlines() if "[ERR]" in line or "[CRIT]" in line]
    # Before it has a log, FreeSWITCH prints what goes wrong: that it may not have the priority of real time.
    assert "ERROR: " not in node.log()


def test_stranger_gets_no_further_than_the_challenge(run: Run) -> None:
    node = run().ready()
    client = node.client()
    for number in (ECHO, "alice", "0123456789"):
        assert client.ask("INVITE", "mallory", DOMAIN, number).status == 407
        assert client.ask("INVITE", "alice", DOMAIN, number).status == 407
    for method in ("MESSAGE", "SUBSCRIBE"):
        assert client.ask(method, "alice", DOMAIN, "alice").status in (401, 403, 405, 407, 489)
    with pytest.raises(AssertionError):
        client.invite("alice", "guessed", DOMAIN, ECHO)
    with pytest.raises(AssertionError):
        client.register("alice", "guessed", DOMAIN)
    node.wait(lambda: "0 total" in node.cli("show channels"), "a call is up")
    # The dialplan has seen none of it, but sees who has the password.
    log = "cat /var/log/freeswitch/freeswitch.log"
    routed = "in context default"
    assert "SIP auth challenge (INVITE)" in node.shell(log)[1] and routed not in node.shell(log)[1]
    client.invite("alice", node.password, DOMAIN, ECHO)
    assert routed in node.shell(log)[1]
    client.close()


def test_every_transport_with_ports_and_certificates(run: Run) -> None:
    node = run(
        files=certificates(),
        SIP_TRANSPORTS="udp,tcp,tls,ws,wss",
        SIP_PORT="6060",
        SIP_TLS_PORT="6061",
        SIP_WS_PORT="6062",
        SIP_WSS_PORT="6063",
    ).ready()
    for transport, port in {"udp": 6060, "tcp": 6060, "tls": 6061, "ws": 6062, "wss": 6063}.items():
        node.register(transport, port).close()


@pytest.mark.parametrize(("transports", "closed"), [("udp", 5060), ("tls", 5060), ("tcp,ws", 5061)])
def test_transport_that_is_not_named_is_not_listened_for(run: Run, transports: str, closed: int) -> None:
    node = run(files=certificates(), SIP_TRANSPORTS=transports).ready()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((node.address, closed), 5).close()
    name = transports.rpartition(",")[2]
    node.register(name, {"udp": 5060, "tls": 5061, "ws": 5066}[name]).close()


def test_clients_need_a_certificate_if_an_authority_is_given(run: Run) -> None:
    files = {**certificates(), "tls/clients.pem": trustme.CA().cert_pem.bytes().decode()}
    node = run(files=files, SIP_TRANSPORTS="tcp,tls", TLS_CLIENT_CA_FILE="/etc/freeswitch/tls/clients.pem").ready()
    with pytest.raises((OSError, ConnectionError)):
        node.register("tls", 5061)
    node.register("tcp").close()


def test_values_arrive_in_the_configuration(run: Run) -> None:
    node = run(
        SIP_CODECS="PCMA,G722",
        SIP_EXTERNAL_IP="198.51.100.7",
        RTP_START_PORT="20000",
        RTP_END_PORT="20100",
        MAX_SESSIONS="50",
        SESSIONS_PER_SECOND="5",
        REQUESTS_PER_SECOND="300",
        TP_ERROR_REPORT="false",
        TP_ERROR_UNREGISTER="true",
        TCP_DEAD_PEER_TIMEOUT="30",
        LOG_LEVEL="err",
    ).ready()
    profile = node.configured("sofia.conf")
    assert profile["inbound-codec-prefs"] == profile["outbound-codec-prefs"] == "PCMA,G722"
    assert profile["ext-sip-ip"] == profile["ext-rtp-ip"] == "198.51.100.7"
    assert (profile["tp-error-report"], profile["tp-error-unregister"]) == ("false", "true")
    assert profile["tcp-dead-peer-timeout"] == "30"
    assert profile["max-recv-requests-per-second"] == "300"
    core = node.configured("switch.conf")
    assert (core["rtp-start-port"], core["rtp-end-port"]) == ("20000", "20100")
    assert (core["max-sessions"], core["sessions-per-second"]) == ("50", "5")
    status = node.cli("sofia status profile internal")
    assert "198.51.100.7" in status and "PCMA,G722" in status
    assert "[WARNING]" not in node.log()


def test_event_socket_wants_password_and_network(run: Run, gateway: str) -> None:
    password = secrets.token_hex(16)
    node = run(ESL_LISTEN_IP="0.0.0.0", ESL_PORT="9021", ESL_ACL="127.0.0.0/8", ESL_PASSWORD=password).ready()

    async def version(address: str, secret: str) -> str:
        async with Subscriber(address, 9021, secret, ["sofia::register"]) as subscriber:
            return await subscriber.api("version")

    with pytest.raises(ToolkitError, match="denies this host"):
        asyncio.run(version(node.address, password))
    node = run(ESL_LISTEN_IP="0.0.0.0", ESL_PORT="9021", ESL_ACL=gateway, ESL_PASSWORD=password).ready()
    assert "FreeSWITCH Version" in asyncio.run(version(node.address, password))
    with pytest.raises(ToolkitError, match="refuses the password"):
        asyncio.run(version(node.address, "ClueCon"))


def test_who_the_acl_refuses_takes_no_memory(run: Run) -> None:
    """In stock FreeSWITCH a thousand take more than a gigabyte."""
    node = run(ESL_LISTEN_IP="0.0.0.0", ESL_ACL="192.0.2.0/24", ESL_PASSWORD=secrets.token_hex(16)).ready()
    peak = "awk '/^VmHWM/ {print $2}' /proc/$(pidof freeswitch)/status"
    before = int(node.shell(peak)[1])
    for _ in range(1000):
        with socket.create_connection((node.address, 8021), 20) as client:
            assert b"text/rude-rejection" in client.recv(1000)
    assert int(node.shell(peak)[1]) - before < 300_000


def test_event_socket_on_one_address(run: Run) -> None:
    """fs_cli, and with it the health check, finds the event socket wherever it listens."""
    prefix = f"10.{secrets.randbelow(256)}.{secrets.randbelow(256)}"
    address = f"{prefix}.77"
    with engine.connect() as client, contextlib.ExitStack() as stack:
        network = client.networks.create(
            f"tp-error-{secrets.token_hex(4)}",
            labels={LABEL: "true"},
            ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=f"{prefix}.0/24")]),
        )
        stack.callback(network.remove)
        options = {
            "network": network.name,
            "networking_config": {network.name: client.api.create_endpoint_config(ipv4_address=address)},
        }
        node = run(options=options, ESL_LISTEN_IP=address, ESL_ACL="192.0.2.0/24", ESL_PASSWORD="s3cret")
        stack.callback(network.disconnect, node.container, force=True)
        assert node.ready().address == address


def test_password_from_a_file(run: Run) -> None:
    secret = secrets.token_hex(16)
    node = run(files={"secret": f"{secret}\n"}, ESL_PASSWORD_FILE="/etc/freeswitch/secret").ready()
    assert node.shell("cat /run/freeswitch/esl-password")[1] == secret
    assert secret not in node.log()


def test_wrong_setting_ends_the_container(run: Run) -> None:
    node = run(SIP_PORT="sip")
    assert node.container.wait()["StatusCode"] == STATUS_OF_CONFIGURATION_ERROR
    assert node.log() == "freeswitch-entrypoint: SIP_PORT='sip' is not a port: give a number from 1 to 65535\n"


def test_address_of_another_machine(run: Run) -> None:
    node = run(SIP_LISTEN_IP="192.0.2.1")
    assert node.container.wait()["StatusCode"] == STATUS_OF_CONFIGURATION_ERROR
    assert re.search(
        r": SIP_LISTEN_IP='192\.0\.2\.1' is not an address that can be listened on here: "
        r"give one of auto(, [1-9][0-9a-f.:]+)+\n",
        node.log(),
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"ESL_LISTEN_IP": "::", "ESL_PASSWORD": "s3cret", "ESL_ACL": "2001:db8::/32"},
        {"ESL_LISTEN_IP": "::1"},
        {"SIP_EXTERNAL_IP": "2001:db8::1"},
    ],
)
def test_address_of_a_kind_that_is_not_there(run: Run, environment: dict[str, str]) -> None:
    node = run(**environment)
    assert node.container.wait(timeout=180)["StatusCode"] == STATUS_OF_CONFIGURATION_ERROR
    name, value = next(iter(environment.items()))
    assert f"freeswitch-entrypoint: {name}='{value}' is " in node.log()


def test_command_in_place_of_freeswitch(run: Run) -> None:
    node = run(options={"command": ["fs_cli", "--help"]})
    node.container.wait()
    assert "Usage: fs_cli" in node.log()


def test_read_only_root(run: Run, tmp_path: Path) -> None:
    (tmp_path / "alice.xml").write_text(render("freeswitch/user", user="alice", password="s3cret"))
    tmp_path.chmod(0o755)
    options = {
        "read_only": True,
        "tmpfs": {"/tmp": "", "/run/freeswitch": ""},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        # Docker can't copy files into it.
        "volumes": [f"{tmp_path}:{DIRECTORY}:ro"],
    }
    node = run(users=False, options=options).ready()
    node.password = "s3cret"
    assert node.shell("touch /etc/x")[0] != 0
    node.register().close()
    caller = node.client()
    caller.invite("alice", "s3cret", DOMAIN, ECHO)
    node.cli(f"uuid_record {node.call()} start /var/lib/freeswitch/recordings/call.wav")
    node.wait(lambda: node.shell("test -s /var/lib/freeswitch/recordings/call.wav")[0] == 0, "no recording")
    caller.close()
    # It wrote to nothing but the volumes and the tmpfs.
    assert not node.container.diff()
    node.container.stop(timeout=90)
    assert node.state["ExitCode"] == 0


def test_directory_that_is_not_writable(run: Run) -> None:
    node = run(users=False, options={"read_only": True})
    assert node.container.wait()["StatusCode"] == STATUS_OF_CONFIGURATION_ERROR
    assert "is not writable for user 5060: mount a volume that it owns, or a tmpfs" in node.log()


def test_health_is_what_freeswitch_says(run: Run) -> None:
    node = run(options={"healthcheck": {"test": ["CMD", "freeswitch-health.sh"], "interval": 10**9}})
    node.wait(lambda: node.state["Health"]["Status"] == "healthy", "never healthy")
    # A profile stops after it was up for ten seconds.
    node.wait(lambda: "Please wait" not in node.cli("sofia profile internal stop"), "the profile doesn't stop")
    node.wait(lambda: "no SIP profile runs" in node.shell("freeswitch-health.sh")[1], "the profile still runs")
    node.wait(lambda: node.state["Health"]["Status"] == "unhealthy", "still healthy")


@pytest.mark.parametrize(
    "environment",
    [
        {"SIP_NAT": "198.51.100.7"},
        {"SIP_TRANSPORTS": "tcp"},
        {"SIP_TRANSPORTS": "tls,wss"},
        # It has no certificate that the profile would take.
        {"SIP_TRANSPORTS": "tls", "TLS_CLIENT_CA_FILE": "/etc/freeswitch/tls/tls.crt"},
        {"SIP_BIND": "127.0.0.1"},
    ],
    ids=str,
)
def test_health_check_finds_the_port(run: Run, environment: dict[str, str]) -> None:
    node = run(files=certificates(), **environment).ready()
    assert node.shell("freeswitch-health.sh") == (0, "ready")
    assert node.shell("cat /proc/[0-9]*/comm | grep -c openssl") == (1, "0")


@pytest.mark.parametrize("transports", ["udp,ws", "tls,ws"])
def test_profile_that_stands_still_is_unhealthy(run: Run, transports: str) -> None:
    # Stock waits for the rest of a frame, for ten seconds each, and answers nobody.
    node = run(files=certificates(), stage="stock", SIP_TRANSPORTS=transports).ready()
    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(contextlib.closing(Raw("ws", (node.address, 5066)))) for _ in range(5)]
        for raw in raws:
            raw.send(b"\x81")
        node.wait(
            lambda: node.shell("freeswitch-health.sh") == (1, "SIP profile internal doesn't answer"), "still healthy"
        )


def test_image_has_a_health_check_and_volumes(built: Settings) -> None:
    with engine.connect() as client:
        config = client.images.get(f"{built.image}:patched").attrs["Config"]
    assert config["Healthcheck"]["Test"] == ["CMD", "freeswitch-health.sh"]
    assert set(config["Volumes"]) == {"/var/lib/freeswitch", "/var/log/freeswitch"}
    # A number: Kubernetes' runAsNonRoot can't tell whether a name is root's.
    assert config["User"] == "5060:5060"
    assert f"{ESL_PORT}/tcp" not in config["ExposedPorts"]


@pytest.mark.parametrize(("allowed", "warned"), [(8192, False), (2048, True)])
def test_as_many_open_files_as_the_engine_allows(run: Run, allowed: int, warned: bool) -> None:
    """What the engines of today start a container with, 1024, would be the limit of connections, too."""
    node = run(options={"ulimits": [Ulimit(name="nofile", soft=1024, hard=allowed)]}).ready()
    limits = node.shell("grep '^Max open files' /proc/1/limits")[1].split()
    assert limits[3:5] == [str(allowed)] * 2
    assert (f"warning: no more than {allowed} files may be open" in node.log()) is warned


def test_first_report_need_not_wait(run: Run, root: Path) -> None:
    """Started by the first REGISTER, as in stock FreeSWITCH, this thread would hold up all events for half a second."""
    file = "autoload_configs/logfile.conf.xml"
    template = (root / "templates/freeswitch/conf" / f"{file}.j2").read_text()
    node = run(files={file: template.replace('"debug,', '"console,debug,')}).ready()
    assert "Event Thread Started" in node.shell("cat /var/log/freeswitch/freeswitch.log")[1]


def test_nobody_registers_for_somebody_else(run: Run) -> None:
    bob = render("freeswitch/user", user="bob", password="other")
    node = run(files={"directory/bob.xml": bob}).ready()
    uri, call_id = f"sip:{DOMAIN}", "hijack"
    client = node.client()
    client.send(client.request("bob", DOMAIN, 3600, call_id))
    challenge = client.receive().header("www-authenticate")
    authorization = digest(challenge, "alice", node.password, "REGISTER", uri)
    client.send(client.request("bob", DOMAIN, 3600, call_id, authorization=authorization))
    assert client.receive().status == 403
    node.client().register("bob", "other", DOMAIN)


def test_certificate_is_sent_with_its_chain(run: Run, tmp_path: Path) -> None:
    root = trustme.CA()
    certificate = root.create_child_ca().issue_cert(DOMAIN)
    chain = [*(pem.bytes().decode() for pem in certificate.cert_chain_pems), root.cert_pem.bytes().decode()]
    key = certificate.private_key_pem.bytes().decode()
    node = run(files={"tls/tls.crt": "".join(chain), "tls/tls.key": key}, SIP_TRANSPORTS="tcp,tls,wss").ready()
    context = ssl.create_default_context(cadata=chain[-1])
    for port in (5061, 7443):
        with socket.create_connection((node.address, port), 10) as plain:
            # It fails if the server leaves out what is between its certificate and the root.
            context.wrap_socket(plain, server_hostname=DOMAIN).close()
    held = node.shell("grep -c BEGIN /run/freeswitch/tls/cafile.pem; grep -c BEGIN /etc/ssl/certs/ca-certificates.crt")
    assert int(held[1].split()[0]) == int(held[1].split()[1]) + 1, "the root must not become an authority for clients"


def is_caught(node: Node, number: signal.Signals) -> bool:
    """Return whether the first process of the container has a handler for the signal."""
    caught = re.search(r"^SigCgt:\s*(\w+)", node.shell("cat /proc/1/status")[1], re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("drain", ["0", "5"])
def test_stop_in_the_middle_of_the_start(run: Run, drain: str) -> None:
    for delay in (0.0, 0.5, 1.0, 1.6):
        node = run(DRAIN_SECONDS=drain)
        # Before it has its trap, the kernel drops the signal, in any container.
        node.wait(functools.partial(is_caught, node, signal.SIGTERM), "SIGTERM is not caught")
        time.sleep(delay)
        node.container.stop(timeout=90)
        # 143: it was told while it looked at its settings.
        assert node.state["ExitCode"] in (0, 143), f"{delay} s after the start: {node.state}, {node.log()}"


def test_hangup_signal_rotates_the_log(run: Run) -> None:
    node = run().ready()
    node.container.kill("SIGHUP")
    rotated = "ls /var/log/freeswitch/freeswitch.log.*"
    node.wait(lambda: node.shell(rotated)[0] == 0, "the log is not rotated")
    node.register().close()


def test_recordings_have_a_volume_of_their_own(run: Run) -> None:
    name = f"tp-error-recordings-{secrets.token_hex(4)}"
    with engine.connect() as client:
        client.volumes.create(name, labels={LABEL: "true"})
        try:
            options = {"volumes": [f"{name}:/var/lib/freeswitch/recordings"]}
            node = run(options=options).ready()
            assert node.shell("touch /var/lib/freeswitch/recordings/x")[0] == 0
            _remove(node.container)
        finally:
            client.volumes.get(name).remove(force=True)


def test_full_disk_is_unhealthy(run: Run) -> None:
    node = run(options={"tmpfs": {"/var/lib/freeswitch/db": "size=4m,uid=5060,gid=5060,mode=750"}}).ready()
    node.shell("cat /dev/zero > /var/lib/freeswitch/db/full")
    assert node.shell("freeswitch-health.sh") == (1, "no room in /var/lib/freeswitch/db")
    node.shell("rm /var/lib/freeswitch/db/full")
    assert node.shell("freeswitch-health.sh")[0] == 0


def test_port_of_another_program(run: Run) -> None:
    node = run(SIP_TRANSPORTS="udp,tcp,ws").ready()
    for variables, line in {
        "SIP_TRANSPORTS=udp": "SIP_PORT='5060'",
        "SIP_TRANSPORTS=tcp,ws SIP_PORT=5070": "SIP_WS_PORT='5066'",
        "SIP_TRANSPORTS=udp SIP_PORT=5070": "ESL_PORT='8021'",
    }.items():
        code, told = node.shell(f"{variables} freeswitch-entrypoint.sh")
        assert code == STATUS_OF_CONFIGURATION_ERROR
        assert told.splitlines()[-1].startswith(f"freeswitch-entrypoint: {line}: another program listens on that port")


def test_several_registrations_of_a_user(run: Run) -> None:
    node = run(SIP_MULTIPLE_REGISTRATIONS="contact").ready()
    clients = [node.register() for _ in range(2)]
    assert node.cli("sofia status profile internal reg").count("Call-ID:") == 2
    for client in clients:
        client.close()


def test_debugging_log(run: Run) -> None:
    node = run(LOG_LEVEL="debug").ready()
    assert "[DEBUG]" in node.log()
    assert "[DEBUG]" not in run().ready().log()


def test_message_is_no_error(run: Run) -> None:
    node = run().ready()
    client = node.client()
    assert client.message("alice", node.password, DOMAIN, "alice") == 202
    assert "[ERR]" not in node.log()


def test_stop_is_clean(run: Run) -> None:
    node = run().ready()
    node.register()
    node.container.stop(timeout=90)
    assert node.state["ExitCode"] == 0
    assert not node.state["OOMKilled"]


def test_stop_waits_for_calls_if_asked(run: Run) -> None:
    node = run(DRAIN_SECONDS="120").ready()
    caller = node.client()
    caller.invite("alice", node.password, DOMAIN, ECHO)
    uuid = node.call()
    node.container.kill("SIGTERM")
    node.wait(lambda: "taking no more calls, waiting up to 120 s" in node.log(), "does not drain")
    second = node.client()
    node.wait(lambda: _refused(second, node), "takes a call while it drains")
    assert uuid in node.cli("show channels")
    # Nobody is there to answer a BYE, for which FreeSWITCH would wait.
    caller.close()
    node.cli(f"uuid_kill {uuid}")
    assert node.container.wait(timeout=180)["StatusCode"] == 0


def _refused(client: Client, node: Node) -> bool:
    try:
        client.invite("alice", node.password, DOMAIN, ECHO)
    except AssertionError as error:
        return "status=503" in str(error)
    return False


def test_drain_ends(run: Run) -> None:
    node = run(DRAIN_SECONDS="2").ready()
    caller = node.client()
    caller.invite("alice", node.password, DOMAIN, ECHO)
    caller.close()
    node.container.kill("SIGTERM")
    assert node.container.wait(timeout=180)["StatusCode"] == 0


def test_second_signal_ends_the_drain(run: Run) -> None:
    node = run(DRAIN_SECONDS="3600").ready()
    caller = node.client()
    caller.invite("alice", node.password, DOMAIN, ECHO)
    node.container.kill("SIGTERM")
    node.wait(lambda: "taking no more calls" in node.log(), "does not drain")
    caller.close()
    node.container.kill("SIGTERM")
    assert node.container.wait(timeout=180)["StatusCode"] == 0


class Users(ThreadingHTTPServer):
    """An HTTP directory that knows bob, and wants a user and a password itself."""

    def __init__(self, host: str, credentials: str, password: str) -> None:
        super().__init__((host, 0), _Handler)
        self.credentials = credentials
        self.password = password
        self.asked: list[dict[str, str]] = []


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Users)
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        expected = "Basic " + base64.b64encode(server.credentials.encode()).decode()
        if self.headers.get("Authorization") != expected:
            self.send_error(401)
            return
        asked = {name: values[0] for name, values in form.items()}
        server.asked.append(asked)
        user = render("freeswitch/user", user="bob", password=server.password)
        user = user.replace("<include>", "").replace("</include>", "")
        known = asked.get("user") == "bob"
        found = f'<domain name="{DOMAIN}"><groups><group name="all"><users>{user}</users></group></groups></domain>'
        section = (
            f'<section name="directory">{found}</section>'
            if known
            else ('<section name="result"><result status="not found"/></section>')
        )
        body = f'<document type="freeswitch/xml">{section}</document>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway(built: Settings) -> str:
    """Return this machine's address on the network of the containers."""
    with engine.connect() as client:
        return lab_module.gateway(client.networks.get("bridge"))


@pytest.fixture
def users(gateway: str) -> Iterator[Users]:
    server = Users(gateway, "switch:s3cret", secrets.token_hex(8))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_users_from_an_http_directory(run: Run, users: Users) -> None:
    host, port = users.server_address[:2]
    node = run(
        DIRECTORY_URL=f"http://{host!s}:{port}/directory", DIRECTORY_USER="switch", DIRECTORY_PASSWORD="s3cret"
    ).ready()
    client = node.client()
    client.register("bob", users.password, DOMAIN)
    assert any(asked.get("user") == "bob" and asked.get("domain") == DOMAIN for asked in users.asked)
    with pytest.raises(AssertionError):
        node.client().register("bob", "wrong", DOMAIN)
    # Whom it does not know is looked for in the files.
    node.register().close()


def test_users_from_an_https_directory(run: Run, users: Users, gateway: str) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(gateway).configure_cert(context)
    users.socket = context.wrap_socket(users.socket, server_side=True)
    environment = {
        "DIRECTORY_URL": f"https://{gateway}:{users.server_port}/",
        "DIRECTORY_USER": "switch",
        "DIRECTORY_PASSWORD": "s3cret",
    }
    # The authorities of the distribution don't know this one.
    stranger = run(**environment).ready()
    with pytest.raises(AssertionError):
        stranger.client().register("bob", users.password, DOMAIN)
    assert not users.asked
    node = run(
        files={"tls/directory.pem": authority.cert_pem.bytes().decode()},
        DIRECTORY_CA_FILE="/etc/freeswitch/tls/directory.pem",
        **environment,
    ).ready()
    node.client().register("bob", users.password, DOMAIN)
    assert any(asked.get("user") == "bob" for asked in users.asked)


def test_http_directory_that_refuses(run: Run, users: Users) -> None:
    host, port = users.server_address[:2]
    node = run(DIRECTORY_URL=f"http://{host!s}:{port}/", DIRECTORY_USER="switch", DIRECTORY_PASSWORD="wrong").ready()
    with pytest.raises(AssertionError):
        node.client().register("bob", users.password, DOMAIN)
    assert not users.asked


def test_module_on_request(run: Run) -> None:
    node = run(LOAD_MODULES="mod_cdr_csv,mod_syslog").ready()
    assert node.cli("module_exists mod_cdr_csv") == node.cli("module_exists mod_syslog") == "true"
    assert node.cli("module_exists mod_amqp") == "false"


def test_codecs_that_settings_may_name_are_there(run: Run, gateway: str) -> None:
    node = run().ready()
    named = node.shell("cat /usr/local/share/freeswitch/codecs")[1].split()
    assert {"PCMU", "PCMA"} < set(named)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.bind((gateway, 0))
        phone.settimeout(node.settings.start_timeout)
        for codec in named:
            target = f"{codec}@{gateway}:{phone.getsockname()[1]}"
            node.cli(f"bgapi originate {{absolute_codec_string={codec}}}sofia/internal/{target} &park")
            offer = ""
            # Requests for the codecs before come again until they are answered.
            while f"sip:{target}" not in offer.partition("\n")[0]:
                offer = phone.recv(65536).decode()
            assert re.search(rf"(?im)^a=rtpmap:\d+ {re.escape(codec)}/", offer), offer
