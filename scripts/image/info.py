"""What is in an image: its labels and its bill of materials, for people and for programs."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import docker
from docker.errors import ImageNotFound, NotFound
from rich import get_console
from rich.console import Console
from rich.table import Table

from scripts.errors import ToolkitError
from scripts.image.build import SBOM_IN_IMAGE
from scripts.image.provenance import MODULE_SET, OCI, SERIES
from scripts.machine import engine, terminal
from scripts.machine.engine import LABEL

MODULES = "/usr/local/freeswitch/mod"


@dataclass(frozen=True)
class Upstream:
    """An upstream in an image, the version and commit it was built from."""

    name: str
    version: str
    commit: str


@dataclass(frozen=True)
class Info:
    """What is in an image.

    `size` and `base_size` are bytes, the latter None if the base image is not
    on this machine. `patches` are SHA-256 by name; empty for the stock image.
    """

    image: str
    id: str
    title: str
    version: str
    revision: str
    source: str
    created: str
    base: str
    size: int
    base_size: int | None
    upstreams: Sequence[Upstream]
    series: str
    patches: Mapping[str, str]
    module_set: str
    modules: Sequence[str]
    packages: Mapping[str, str]
    user: str
    volumes: Sequence[str]
    ports: Sequence[str]


def show(name: str, as_json: bool = False, console: Console | None = None) -> Info:
    """Print what is in the image `name`, with `as_json` as JSON.

    Raises ToolkitError if there is no such image or it is none of this toolkit.
    """
    console = terminal.loud(console or get_console())
    found = inspect(name)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        console.print(_table(found))
    return found


def inspect(name: str) -> Info:
    """Return what is in the image `name`. Raises ToolkitError as `show` does."""
    with engine.connect() as client:
        try:
            image = client.images.get(name)
        except ImageNotFound:
            raise ToolkitError(f"there is no image {name} on this machine: `inv build` makes it, or pull it") from None
        labels = image.labels
        if f"{LABEL}.freeswitch" not in labels:
            raise ToolkitError(f"image {name} has no label {LABEL}.freeswitch: it was not made by this toolkit")
        bill, modules = _contents(client, name)
        base = labels.get(f"{OCI}.base.name", "")
        base_size = None
        with contextlib.suppress(ImageNotFound, docker.errors.NullResource):
            base_size = int(client.images.get(base).attrs["Size"])
        config = image.attrs["Config"]
        components = bill.get("components", [])
        return Info(
            image=name,
            id=image.id,
            title=labels.get(f"{OCI}.description", ""),
            version=labels.get(f"{OCI}.version", ""),
            revision=labels.get(f"{OCI}.revision", ""),
            source=labels.get(f"{OCI}.source", ""),
            created=labels.get(f"{OCI}.created", ""),
            base=base,
            size=int(image.attrs["Size"]),
            base_size=base_size,
            upstreams=_upstreams(labels),
            series=labels.get(SERIES, ""),
            patches={
                part["name"]: part["hashes"][0]["content"]
                for component in components
                for part in component.get("components", [])
            },
            module_set=labels.get(MODULE_SET, ""),
            modules=modules,
            packages={
                component["name"]: component["version"]
                for component in components
                if component.get("purl", "").startswith("pkg:deb/")
            },
            user=config.get("User", ""),
            volumes=sorted(config.get("Volumes") or ()),
            ports=sorted(config.get("ExposedPorts") or ()),
        )


def _upstreams(labels: Mapping[str, str]) -> list[Upstream]:
    prefix = f"{LABEL}."
    names = [name.removeprefix(prefix).removesuffix(".version") for name in labels if name.endswith(".version")]
    return [
        Upstream(name, labels[f"{prefix}{name}.version"], labels[f"{prefix}{name}"])
        for name in sorted(names)
        if f"{prefix}{name}" in labels
    ]


def _contents(client: docker.DockerClient, name: str) -> tuple[dict[str, Any], list[str]]:
    """Return the bill of materials in the image, {} if it has none, and the names of its modules."""
    container = client.containers.create(name, network_disabled=True, labels={LABEL: "true"})
    try:
        bill: dict[str, Any] = {}
        with contextlib.suppress(NotFound):
            archive = _archive(container, SBOM_IN_IMAGE)
            (member,) = archive.getmembers()
            file = archive.extractfile(member)
            assert file
            bill = json.load(file)
        members = _archive(container, MODULES).getnames()
    finally:
        container.remove(v=True)
    return bill, sorted(path.rpartition("/")[2].removesuffix(".so") for path in members if path.endswith(".so"))


def _archive(container: docker.models.containers.Container, path: str) -> tarfile.TarFile:
    chunks, _ = container.get_archive(path)
    return tarfile.open(fileobj=io.BytesIO(b"".join(chunks)))


def _table(info: Info) -> Table:
    table = Table(show_header=False, show_lines=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    more = f", {(info.size - info.base_size) / 1e6:.0f} MB more than its base" if info.base_size else ""
    rows = {
        "image": f"{info.image}\n{info.title}\n{info.id}",
        "version": info.version,
        "source": "\n".join(filter(None, (info.source, info.revision))),
        "created": f"{info.created} (the newest pinned commit)",
        "base": info.base,
        "size": f"{info.size / 1e6:.0f} MB{more}",
        "upstreams": "\n".join(f"{item.name} {item.version} {item.commit}" for item in info.upstreams),
        "patches": "\n".join(f"{digest[:12]} {name.removeprefix('patches/')}" for name, digest in info.patches.items())
        or "none",
        "series": info.series,
        "modules": f"{len(info.modules)} ({info.module_set}): {' '.join(info.modules)}",
        "packages": f"{len(info.packages)} of Debian, see {SBOM_IN_IMAGE}" if info.packages else "",
        "user": info.user,
        "volumes": " ".join(info.volumes),
        "ports": " ".join(info.ports),
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table
