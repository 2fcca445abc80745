"""Look whether this machine has what the toolkit needs."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from docker import DockerClient
from docker.errors import DockerException, ImageNotFound
from git import Git
from requests.exceptions import RequestException
from rich import get_console
from rich.console import Console
from rich.markup import escape

from scripts.errors import ToolkitError
from scripts.image.base import INSTALL, can_make
from scripts.machine import engine, terminal
from scripts.pins.settings import Settings, Source
from scripts.sources import trees

PYTHON = (3, 11)
# Partial clones that a sparse checkout fills, and GIT_CONFIG_GLOBAL.
GIT = (2, 35)
# Free space in bytes: at Docker's root for the images, and in the build directory, with the sources.
DOCKER_SPACE = 10e9
BUILD_SPACE = 2e9
# Where sources.directory is on a disk of its own: two sets of trees, while one replaces the other.
SOURCES_SPACE = 1e9
# The one port of this machine that the toolkit takes, by default and for the example only.
PORT = 5060
# Seconds to wait for Docker, a registry or a git server.
TIMEOUT = 8


@dataclass(frozen=True)
class Check:
    """The outcome of one check: what has a `remedy` did not pass, nor did what `failed` for a reason without one."""

    name: str
    detail: str
    remedy: str = ""
    failed: bool = False

    @property
    def passed(self) -> bool:
        """Whether all is well."""
        return not self.failed and not self.remedy


def doctor(settings: Settings, console: Console | None = None, port: int = PORT) -> bool:
    """Print a line per check and return whether all of them passed.

    `port` is that of the example. Takes some 15 s at most.
    """
    console = console or get_console()
    checks: list[Callable[[], list[Check]]] = [
        lambda: [_python(), _git(), *_directories(settings)],
        lambda: _docker(settings.base_image),
        lambda: [_port(port)],
        *(functools.partial(_source, source) for source in settings.sources),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        outcomes = [outcome for result in pool.map(lambda check: check(), checks) for outcome in result]
    for outcome in outcomes:
        mark = "[green]✓[/green]" if outcome.passed else "[red]✗[/red]"
        remedy = f": {outcome.remedy}" if outcome.remedy else ""
        where = console if outcome.passed else terminal.loud(console)
        where.print(mark, escape(f"{outcome.name}: {outcome.detail}{remedy}"), soft_wrap=True, highlight=False)
    return all(outcome.passed for outcome in outcomes)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", version, "" if sys.version_info >= PYTHON else f"use {PYTHON[0]}.{PYTHON[1]} or newer")


def _git() -> Check:
    version = Git().version_info
    found = ".".join(map(str, version))
    return Check("git", found, "" if version >= GIT else f"use {GIT[0]}.{GIT[1]} or newer")


def _docker(base_image: str) -> list[Check]:
    try:
        engine.check_command()
        with engine.connect(TIMEOUT) as client:
            found = Check("Docker", f"engine {client.version()['Version']}")
            return [found, _compose(), _docker_space(client), _base_image(client, base_image)]
    except ToolkitError as error:
        return [_failed("Docker", error)]


def _compose() -> Check:
    try:
        return Check("Docker Compose", f"`{engine.compose_command()}`")
    except ToolkitError as error:
        return _failed("Docker Compose", error)


def _failed(name: str, error: ToolkitError) -> Check:
    return Check(name, error.what.removeprefix(f"{name} "), error.remedy, failed=True)


def _docker_space(client: DockerClient) -> Check:
    root = Path(client.info()["DockerRootDir"])
    try:
        here = root.exists()
    except PermissionError:
        here = False
    if not here:
        return Check("disk space of Docker", f"{root} is not on this machine or closed to this user, not checked")
    return _space(root, DOCKER_SPACE, "Docker")


def _directories(settings: Settings) -> list[Check]:
    """Check the disk of the build directory, and that of the source trees if it is another one."""
    build = _existing(settings.build_directory)
    found = [_space(build, BUILD_SPACE, "build")]
    sources = _existing(settings.sources[0].path.parent)
    if _disk(sources) != _disk(build):
        found.append(_space(sources, SOURCES_SPACE, "sources"))
    return found


def _existing(path: Path) -> Path:
    """Return `path` or, as long as it is not there, what it will be made in."""
    while not path.exists():
        path = path.parent
    return path


def _disk(path: Path) -> int:
    return path.stat().st_dev


def _space(path: Path, needed: float, what: str) -> Check:
    free = shutil.disk_usage(path).free
    remedy = (
        "" if free >= needed else f"{needed / 1e9:.0f} GB are needed, make room (`inv clean`, `docker system prune`)"
    )
    return Check(f"disk space of {what}", f"{free / 1e9:.1f} GB free at {path}", remedy)


def _base_image(client: DockerClient, image: str) -> Check:
    name = f"base image {image}"
    try:
        client.images.get(image)
        return Check(name, "present")
    except ImageNotFound:
        pass
    try:
        client.images.get_registry_data(image)
        return Check(name, "can be pulled")
    except (DockerException, RequestException):
        pass
    if can_make():
        return Check(name, "cannot be pulled, `inv base` will make it with debootstrap")
    return Check(name, "neither present nor to be pulled, and neither debootstrap nor apt-get is there", INSTALL)


def _port(port: int) -> Check:
    """Look whether the example can have `port`; nothing else needs it, so a taken one is no failure."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(type=kind) as server:
            if kind == socket.SOCK_STREAM:
                # Else the end of a connection, just closed, looks like a server.
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                server.bind(("", port))
                if kind == socket.SOCK_STREAM:
                    server.listen()
            except OSError as error:
                why = os.strerror(error.errno or 0).lower()
                return Check(f"port {port}", f"{why}, start the example with another one (SIP_PORT=5070 inv example)")
    return Check(f"port {port}", "free for the example")


def _source(source: Source) -> list[Check]:
    name = f"source {source.name}"
    if why := trees.unreachable(source, TIMEOUT):
        return [Check(name, f"{source.url}: {why.what}", why.remedy)]
    return [Check(name, f"{source.url} {trees.version(source)}")]
