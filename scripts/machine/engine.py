"""The connection to the Docker engine."""

from __future__ import annotations

import io
import os
import platform
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import docker
from docker.errors import APIError, DockerException, NotFound, create_api_error_from_http_exception
from docker.models.containers import Container
from docker.models.images import Image
from requests.exceptions import ChunkedEncodingError, ConnectionError, HTTPError, ReadTimeout, RequestException
from urllib3.exceptions import ReadTimeoutError

from scripts.errors import ToolkitError

# Every container, network and image that the toolkit makes carries this label,
# with the value "true". That of the images is another one: a container that
# somebody runs from them inherits it, and is not the toolkit's.
LABEL = "org.freeswitch-tp-error"
IMAGE_LABEL = {LABEL: "image"}
# How long an engine may take for each of the two answers that say that it is there, seconds: a busy one needs a few.
ANSWER = 20
# What to do about one that gives none.
HANGS = "see what it waits for (`journalctl -u docker` on its host), and restart it there if it hangs"
# In what the engine multiplexes.
STDOUT, FRAME_HEADER = 1, 8


@contextmanager
def connect(timeout: int = 60) -> Iterator[docker.DockerClient]:
    """Hand over a client of the Docker engine; its calls time out after `timeout` seconds.

    Raises ToolkitError if the engine cannot be reached, and turns a failure of
    a later call into one.
    """
    # What the caller is just dealing with is no cause of what fails here.
    outside = sys.exc_info()[1]
    try:
        client = docker.from_env(timeout=min(timeout, ANSWER))
        client.ping()
        client.api.timeout = timeout
    except (DockerException, RequestException, ValueError) as error:
        if _timed_out(error, outside):
            raise ToolkitError(f"Docker engine at {_where()} takes connections and does not answer", HANGS) from error
        raise ToolkitError(
            f"Docker engine not reachable at {_where()} ({_cause(error, outside)})",
            "start it (`systemctl start docker`), join the group docker, or set DOCKER_HOST",
        ) from error
    try:
        yield client
    except (DockerException, RequestException) as error:
        raise failure(error, outside) from error
    finally:
        client.close()


def failure(error: BaseException, outside: BaseException | None = None) -> ToolkitError:
    """Return what a call failed of, `error`, after the engine had answered: that it is mute, gone, or refuses.

    `outside` is what the caller was dealing with before the call, and no cause of it.
    """
    if _timed_out(error, outside):
        return ToolkitError(f"Docker engine at {_where()} has stopped answering", HANGS)
    if isinstance(error, ConnectionError | ChunkedEncodingError):
        return ToolkitError(
            f"Docker engine at {_where()} is gone ({_cause(error, outside)})",
            "see why (`journalctl -u docker` on its host), and start it (`systemctl start docker`)",
        )
    return ToolkitError(f"Docker refused: {brief(error)}")


def _where() -> str:
    """Return where the engine is looked for."""
    return os.environ.get("DOCKER_HOST", "its socket")


def versions(client: docker.DockerClient) -> dict[str, str]:
    """Return the versions of the engine and of what it runs on."""
    found = client.version()
    return {
        "docker": found["Version"],
        "kernel": f"{found.get('KernelVersion', 'unknown')} ({found.get('Os', '?')}/{found.get('Arch', '?')})",
        "host": client.info().get("OperatingSystem", "unknown"),
        "python": platform.python_version(),
    }


def containers(client: docker.DockerClient, label: str = "") -> list[Container]:
    """Return the containers with `label` ("name" or "name=value"), running or not; all of them without one.

    The engine is asked for a list and then for each: what is removed meanwhile is left out.
    """
    filters = {"label": label} if label else {}
    return list(client.containers.list(all=True, filters=filters, ignore_removed=True))


def images(client: docker.DockerClient, name: str = "", label: str = "") -> list[Image]:
    """Return the images called `name` (a repository or a reference) and with `label`, without what goes meanwhile."""
    found = []
    for known in client.api.images(name=name or None, filters={"label": label} if label else {}):
        with suppress(NotFound):
            found.append(client.images.get(known["Id"]))
    return found


def remove(client: docker.DockerClient, label: str) -> list[str]:
    """Remove the containers and networks with `label`; return them, as "container NAME" or "network NAME".

    What somebody else removes at the same time is not among them. Raises
    DockerException if the engine refuses.
    """
    removed = []
    for container in containers(client, label):
        with _unless_gone():
            container.remove(force=True, v=True)
            removed.append(f"container {container.name}")
    for network in client.networks.list(filters={"label": label}):
        with _unless_gone():
            network.remove()
            removed.append(f"network {network.name}")
    return removed


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Ignore that the engine no longer has what it is to remove, or is removing it just now."""
    try:
        yield
    except NotFound:
        pass
    except APIError as error:
        if "already in progress" not in brief(error):
            raise


def run(image: str, command: Sequence[str], user: str = "") -> tuple[int, str]:
    """Run `command` in a container of `image` without a network; return its exit status and what it wrote to stdout.

    `user` is another one than the image's. Nothing of the container stays.
    """
    with connect() as client:
        container = client.containers.create(
            image, entrypoint=list(command), command=[], user=user, network_disabled=True, labels={LABEL: "true"}
        )
        try:
            container.start()
            status = int(container.wait()["StatusCode"])
            return status, container.logs(stdout=True, stderr=False).decode(errors="replace")
        finally:
            container.remove(force=True, v=True)


@dataclass(frozen=True)
class Executed:
    """What a command in a running container came to: its exit status, and what it wrote, as pairs (1 or 2, bytes)."""

    status: int
    written: tuple[tuple[int, bytes], ...]

    @property
    def output(self) -> bytes:
        """What it wrote to its standard output."""
        return b"".join(data for number, data in self.written if number == STDOUT)

    @property
    def errors(self) -> bytes:
        """What it wrote to its standard error."""
        return b"".join(data for number, data in self.written if number != STDOUT)

    @property
    def everything(self) -> bytes:
        """What it wrote to both; the engine may have changed their order."""
        return b"".join(data for _, data in self.written)


def execute(
    container: Container, command: Sequence[str], user: str = "", environment: Mapping[str, str] | None = None
) -> Executed:
    """Run `command` in the running `container` and wait for its end.

    `user` is another one than the container's, `environment` comes on top of
    its. Raises DockerException or RequestException if the engine refuses.

    Docker's API, "Start an exec instance". `Container.exec_run()` takes the
    bare connection after the answer's header, and loses the output that came
    together with it, which is all of it if this machine is busy.
    """
    api = container.client.api
    identifier = api.exec_create(container.id, list(command), user=user, environment=dict(environment or {}))["Id"]
    answer = api.post(
        f"{api.base_url}/v{api.api_version}/exec/{identifier}/start",
        json={"Detach": False, "Tty": False},
        timeout=api.timeout,
    )
    try:
        answer.raise_for_status()
    except HTTPError as error:
        create_api_error_from_http_exception(error)
    return Executed(int(api.exec_inspect(identifier)["ExitCode"]), tuple(_frames(answer.content)))


def _frames(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Take apart what the engine has multiplexed: the stream's number, three zeros, the length, so many bytes."""
    start = 0
    while start < len(stream):
        number, length = struct.unpack_from(">BxxxL", stream, start)
        start += FRAME_HEADER + length
        yield number, stream[start - length : start]


def compose_command() -> str:
    """Return what calls Docker Compose here; ToolkitError if nothing does."""
    for command in ("docker compose", "docker-compose"):
        if shutil.which(command.split()[0]):
            outcome = subprocess.run([*command.split(), "version"], capture_output=True, check=False)
            if outcome.returncode == 0:
                return command
    raise ToolkitError(
        "neither `docker compose` nor `docker-compose` works",
        "install Docker Compose (`apt-get install docker-compose`)",
    )


def check_command() -> None:
    """Raise ToolkitError if there is no docker command; builds and logins are its work."""
    if shutil.which("docker") is None:
        raise ToolkitError("there is no docker command", "install Docker (`apt-get install docker.io`)")


def _cause(error: BaseException, outside: BaseException | None) -> str:
    """Return the system's message at the bottom of the exceptions that led to `error`."""
    found = brief(error)
    for link in _chain(error, outside):
        if isinstance(link, OSError) and link.strerror:
            found = link.strerror
    return found


def _timed_out(error: BaseException, outside: BaseException | None) -> bool:
    """Return whether the engine took a connection and then said nothing, or nothing more in the middle of an answer."""
    return any(isinstance(link, ReadTimeout | ReadTimeoutError) for link in _chain(error, outside))


def _chain(error: BaseException, outside: BaseException | None) -> Iterator[BaseException]:
    """Yield `error` and the exceptions that led to it, up to `outside`."""
    link: BaseException | None = error
    while link is not None and link is not outside:
        yield link
        link = link.__cause__ or link.__context__


def brief(error: BaseException) -> str:
    """Return what `error` says on one line, the engine's own explanation if there is one."""
    text = getattr(error, "explanation", None) or error
    return " ".join(str(text).split())[:300]


def tar(files: Mapping[str, str]) -> bytes:
    """Return a tar archive of `files`, contents by name, as `Container.put_archive` takes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            data = content.encode()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
