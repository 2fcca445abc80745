"""Compare the contents of two images, file by file."""

from __future__ import annotations

import hashlib
import stat
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any, cast

import docker
from docker.errors import ImageNotFound
from rich import get_console
from rich.console import Console
from rich.table import Table

from scripts.errors import ToolkitError
from scripts.image import build, provenance
from scripts.machine import engine, terminal
from scripts.machine.engine import LABEL
from scripts.machine.files import short
from scripts.pins.settings import Settings

AGAIN = "again"
# What the engine puts into every container.
ENGINE = frozenset({".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"})
# Where an image keeps its configuration that says how it was made, not what is in it.
IGNORED_CONFIG = frozenset({"Hostname", "Image", "Labels"})
IGNORED_LABELS = frozenset({build.INPUTS, provenance.REVISION})


@dataclass(frozen=True)
class File:
    """A file of an image: everything but its times. `content` is the SHA-256, or where a link leads."""

    kind: str
    mode: int
    owner: str
    size: int
    content: str


@dataclass(frozen=True)
class Difference:
    """What differs: a path (or a name in the configuration), in which way, and how it is in each image."""

    path: str
    what: str
    first: str
    second: str


def show(first: str, second: str, console: Console | None = None) -> bool:
    """Print in which files and settings two images differ; return whether there are none.

    Times are not compared. Raises ToolkitError if an image is not there.
    """
    console = terminal.loud(console or get_console())
    differences = compare(first, second)
    if not differences:
        console.print(f"{first} and {second} have the same contents")
        return True
    table = Table("path", "differs in", first, second)
    for column in table.columns:
        column.overflow = "fold"
    for difference in differences:
        table.add_row(difference.path, difference.what, difference.first, difference.second)
    console.print(table)
    console.print(f"{len(differences)} differences")
    return False


def compare(first: str, second: str) -> list[Difference]:
    """Return in which files and settings two images differ, in the order of the paths."""
    with engine.connect(timeout=600) as client:
        mine, other = _find(client, first, second)
        if mine.id == other.id:
            return []
        return [*_configuration(mine.attrs, other.attrs), *_files(files(client, mine.id), files(client, other.id))]


def reproduce(settings: Settings, console: Console | None = None) -> bool:
    """Build the patched image once more, from nothing, and compare the two; return whether they are the same.

    The second one is <image>:again, and is kept. Takes as long as a first build.
    """
    console = console or get_console()
    build.build(settings, console)
    context = settings.build_directory / "context"
    (patched,) = (target for target in build.targets(settings) if target.stage == "runtime-patched")
    again = replace(patched, tag=f"{settings.image}:{AGAIN}")
    start = time.monotonic()
    log = settings.build_directory / "reproduce.log"
    log.unlink(missing_ok=True)
    build.docker_build(settings, context, again, {**engine.IMAGE_LABEL, **patched.labels}, log, console, afresh=True)
    console.print(f"built again in {time.monotonic() - start:.0f} s, output in {short(log)}")
    return show(patched.tag, again.tag, console)


def files(client: docker.DockerClient, name: str) -> dict[str, File]:
    """Return all files of the image `name` by their paths, without a leading slash."""
    container = client.containers.create(name, command=["true"], network_disabled=True, labels={LABEL: "true"})
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _ChunkReader(container.export())), mode="r|") as archive:
            return {member.name: _file(archive, member) for member in archive if member.name not in ENGINE}
    finally:
        container.remove(v=True)


def _find(client: docker.DockerClient, *names: str) -> list[docker.models.images.Image]:
    found, missing = [], []
    for name in names:
        try:
            found.append(client.images.get(name))
        except ImageNotFound:
            missing.append(f"no image {name}")
    if missing:
        raise ToolkitError(f"there is {' and '.join(dict.fromkeys(missing))} on this machine", "build or pull it")
    return found


def _file(archive: tarfile.TarFile, member: tarfile.TarInfo) -> File:
    content = member.linkname
    if member.isreg() and (data := archive.extractfile(member)):
        content = hashlib.file_digest(cast(Any, data), "sha256").hexdigest()
    kind = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "link"}.get(member.type, "other")
    return File(kind, stat.S_IMODE(member.mode), f"{member.uid}:{member.gid}", member.size, content)


def _files(first: Mapping[str, File], second: Mapping[str, File]) -> Iterator[Difference]:
    for path in sorted({*first, *second}):
        mine, other = first.get(path), second.get(path)
        if mine is None or other is None:
            there = ("no", "yes") if mine is None else ("yes", "no")
            yield Difference(f"/{path}", "presence", *there)
        elif (mine.kind, mine.size, mine.content) != (other.kind, other.size, other.content):
            yield Difference(f"/{path}", "content", _brief(mine), _brief(other))
        elif (mine.mode, mine.owner) != (other.mode, other.owner):
            yield Difference(f"/{path}", "rights", f"{mine.mode:o} {mine.owner}", f"{other.mode:o} {other.owner}")


def _brief(file: File) -> str:
    return (
        f"{file.kind}, {file.size} bytes, {file.content[:12]}" if file.kind == "file" else f"{file.kind} {file.content}"
    )


def _configuration(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    mine, other = (_flat(attributes["Config"]) for attributes in (first, second))
    for name in sorted({*mine, *other}):
        if mine.get(name) != other.get(name):
            yield Difference(name, "configuration", str(mine.get(name)), str(other.get(name)))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    labels = {f"label {name}": value for name, value in (config.get("Labels") or {}).items()}
    ignored = {f"label {name}" for name in IGNORED_LABELS}
    every = {**{name: value for name, value in config.items() if name not in IGNORED_CONFIG}, **labels}
    return {name: value for name, value in every.items() if name not in ignored}


class _ChunkReader:
    """The chunks of an export as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (chunk := next(self._chunks, b"")):
            self._rest += chunk
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken
