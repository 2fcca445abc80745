"""The connection to the Docker engine."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import docker
from docker.errors import DockerException
from requests.exceptions import RequestException

from scripts.errors import ToolkitError


@contextmanager
def connect(timeout: int = 60) -> Iterator[docker.DockerClient]:
    """Hand over a client of the Docker engine; its calls time out after `timeout` seconds.

    Raises ToolkitError if the engine cannot be reached, and turns a failure of
    a later call into one.
    """
    try:
        client = docker.from_env(timeout=timeout)
        client.ping()
    except (DockerException, RequestException, ValueError) as error:
        where = os.environ.get("DOCKER_HOST", "its socket")
        raise ToolkitError(
            f"Docker engine not reachable at {where} ({_cause(error)}): start it (`systemctl start docker`), "
            "join the group docker, or set DOCKER_HOST"
        ) from error
    try:
        yield client
    except (DockerException, RequestException) as error:
        raise ToolkitError(f"Docker refused: {brief(error)}") from error
    finally:
        client.close()


def _cause(error: BaseException) -> str:
    """Return the system's message at the bottom of the exceptions that led to `error`."""
    found = brief(error)
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            found = link.strerror
        link = link.__cause__ or link.__context__
    return found


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
