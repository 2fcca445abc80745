"""A container of the image, as the tests of the deployment start it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import secrets
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import trustme
from docker.errors import NotFound
from docker.models.containers import Container

from scripts.freeswitch import dtls
from scripts.freeswitch.sip import Client
from scripts.machine import engine
from scripts.machine.engine import LABEL
from scripts.pins.settings import Settings
from scripts.scenario.lab import DOMAIN
from scripts.templates import render

ECHO = "9196"
DIRECTORY = "/etc/freeswitch/directory"
ESL_PORT = 8021
STATUS_OF_CONFIGURATION_ERROR = 78
# What FreeSWITCH may take to start when several do and the machine is busy, and to answer then, seconds.
START, ANSWER = 300.0, 60.0


@dataclass
class DeployedContainer:
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

    def ready(self) -> DeployedContainer:
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


Run = Callable[..., DeployedContainer]


def remove(container: Container) -> None:
    with contextlib.suppress(NotFound):
        container.remove(force=True, v=True)


@functools.cache
def key_for_dtls() -> bytes:
    """Return a tar archive for /run/freeswitch with what FreeSWITCH would make itself."""
    pem = dtls.certificate()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        # Whoever FreeSWITCH runs as.
        directory = tarfile.TarInfo("tls")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o777
        archive.addfile(directory)
        file = tarfile.TarInfo(f"tls/{dtls.FILE}")
        file.size, file.mode = len(pem), 0o644
        archive.addfile(file, io.BytesIO(pem))
    return buffer.getvalue()


@contextlib.contextmanager
def running(built: Settings) -> Iterator[Run]:
    """Hand over a function that starts a container of the patched image, and remove what it started.

    It takes environment variables, `files` (contents by path in /etc/freeswitch)
    and, as `options`, what Docker's create takes; `stage` is that of the image.
    With `alone` FreeSWITCH has to make its own key for DTLS.
    """
    with engine.connect() as client, contextlib.ExitStack() as stack:

        def start(
            files: dict[str, str] | None = None,
            options: dict[str, Any] | None = None,
            users: bool = True,
            stage: str = "patched",
            alone: bool = False,
            **environment: str,
        ) -> DeployedContainer:
            password = secrets.token_hex(8)
            container = client.containers.create(
                f"{built.image}:{stage}",
                labels={LABEL: "true"},
                environment={"SIP_DOMAIN": DOMAIN, **environment},
                **(options or {}),
            )
            stack.callback(remove, container)
            if users:
                user = render("freeswitch/user", user="alice", password=password)
                container.put_archive(DIRECTORY, engine.tar({"alice.xml": user}))
            if not alone and not (options or {}).get("read_only"):
                container.put_archive("/run/freeswitch", key_for_dtls())
            if files:
                container.put_archive("/etc/freeswitch", engine.tar(files))
            container.start()
            return DeployedContainer(container, dataclasses.replace(built, start_timeout=START), password=password)

        yield start


def certificates() -> dict[str, str]:
    certificate = trustme.CA().issue_cert(DOMAIN)
    return {
        "tls/tls.crt": "".join(pem.bytes().decode() for pem in certificate.cert_chain_pems),
        "tls/tls.key": certificate.private_key_pem.bytes().decode(),
    }
