"""What goes over the wire: tcpdump next to a container, in the same network namespace."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import docker
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container
from requests.exceptions import RequestException

from scripts.machine import engine

FILE = "/tmp/capture.pcap"
# Seconds that tcpdump has to get ready.
START_TIMEOUT = 10.0
# The kernel keeps packets for tcpdump in slots of the longest one, and -i any takes that for 256 KiB: of its usual
# 2 MiB, 8 packets. So many kibibytes are 512 slots, each with room for what TCP hands over at once.
BUFFER = ("-s", "65400", "-B", "32768")
# Docker says so, or the init process that it starts tcpdump with.
MISSING = "its image has no tcpdump: `inv build` makes it anew"


@dataclass(frozen=True)
class Capture:
    """The packets of one case, seen at the server.

    `pcap` is a whole file as tcpdump writes it; `problem` says why there is
    none, and is empty if there is one. Of the file, the packets between
    `began_ns` and `ended_ns` (nanoseconds since the epoch) belong to the case
    and, if `client` is not empty, only those of that address. `transport` is
    tcp, tls, ws or wss, `killed_ns` when the client was killed, if it was.
    """

    transport: str
    server: str
    client: str = ""
    began_ns: int = 0
    ended_ns: int = 2**63 - 1
    killed_ns: int | None = None
    pcap: bytes = b""
    problem: str = ""


@dataclass
class Sniffer:
    """tcpdump in a container that shares the network namespace of `target`.

    It needs the capability NET_RAW, which Docker gives unless told otherwise.
    Nothing here fails: what went wrong is in `problem`, on one line, and a
    report without a picture is still a report.
    """

    client: docker.DockerClient
    image: str
    target: Container
    filter: str
    name: str
    labels: Mapping[str, str]
    problem: str = "nothing was captured: tcpdump was not started"
    container: Container | None = field(default=None, init=False)

    def start(self) -> None:
        """Start tcpdump and wait until it listens."""
        try:
            self.container = self.client.containers.create(
                self.image,
                entrypoint=["tcpdump"],
                # Each packet is written as it comes, by root: the file is read while tcpdump runs.
                command=["-i", "any", "-n", "-U", "--immediate-mode", *BUFFER, "-Z", "root", "-w", FILE, self.filter],
                init=True,
                name=self.name,
                labels=dict(self.labels),
                network_mode=f"container:{self.target.id}",
            )
            self.container.start()
            self.problem = self._wait()
        except APIError as error:
            missing = "executable file not found" in str(error.explanation) or error.status_code == 127
            self.problem = f"nothing was captured: {MISSING if missing else engine.brief(error)}"
        except (DockerException, RequestException) as error:
            self.problem = f"nothing was captured: {engine.brief(error)}"

    def read(self) -> tuple[bytes, str]:
        """Return the file so far, and why there is none."""
        if self.problem or self.container is None:
            return b"", self.problem
        try:
            self.container.reload()
            if self.container.status not in ("running", "paused"):
                return b"", "the capture is not whole: tcpdump ended in the middle"
            stream, _ = self.container.get_archive(FILE)
            with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
                file = archive.extractfile(archive.getmembers()[0])
                return (file.read() if file else b""), ""
        except (DockerException, RequestException, tarfile.TarError) as error:
            return b"", f"the capture could not be read: {engine.brief(error)}"

    def remove(self) -> None:
        """Remove the container, if there is one."""
        if self.container is not None:
            try:
                self.container.remove(force=True, v=True)
            except NotFound:
                pass
            except (DockerException, RequestException) as error:
                self.problem = f"tcpdump's container stays: {engine.brief(error)}"

    def _wait(self) -> str:
        """Return "" once tcpdump listens, or why it doesn't."""
        assert self.container
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            # In this order: what has ended says no more.
            self.container.reload()
            lines = self.container.logs().decode(errors="replace").split("\n")
            if any("listening on" in line for line in lines):
                return ""
            if self.container.status != "running":
                return f"nothing was captured: {self._last_words()}"
            time.sleep(0.05)
        return f"nothing was captured: tcpdump was not ready after {START_TIMEOUT:g} s"

    def _last_words(self) -> str:
        """Return what tcpdump that has ended said at the end: its own words, then the system's."""
        assert self.container
        lines = self.container.logs().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip() and "listening on" not in line]
        if any("exec tcpdump failed" in line for line in said):
            return MISSING
        return " ".join(said[-2:])[:200] or "tcpdump ended at once"
