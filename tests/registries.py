"""Registries on the loopback interface, for the tests of what is pushed and pulled."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from docker import DockerClient
from docker.errors import ImageNotFound
from docker.models.images import Image

from scripts.machine.engine import LABEL

IMAGE = "freeswitch-tp-error-test-registry"
CONFIGURATION = "/etc/docker/registry"


def build(client: DockerClient, base: str) -> str:
    """Build the image of the registry on `base` and return its tag."""
    directory = Path(__file__).parent / "registry"
    client.images.build(
        path=str(directory), tag=IMAGE, buildargs={"BASE_IMAGE": base}, labels={LABEL: "true"}, forcerm=True
    )
    return IMAGE


@contextmanager
def run(client: DockerClient, configuration: str = "open.yml") -> Iterator[str]:
    """Run a registry and hand over its host and port, as Docker takes them in the name of an image."""
    container = client.containers.run(
        IMAGE,
        [f"{CONFIGURATION}/{configuration}"],
        detach=True,
        ports={"5000/tcp": ("127.0.0.1", None)},
        labels={LABEL: "true"},
    )
    try:
        container.reload()
        place = f"127.0.0.1:{container.ports['5000/tcp'][0]['HostPort']}"
        _wait(place)
        yield place
    finally:
        container.remove(force=True, v=True)


def _wait(place: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(f"http://{place}/v2/", timeout=5).close()
        except urllib.error.HTTPError:
            return  # It wants a login: it is there.
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def small_image(client: DockerClient, base: str, tag: str, **labels: str) -> Image:
    """Make an image of its own under `tag`: an empty container of `base` with `labels`, and one that tells it apart."""
    lines = "".join(f'LABEL "{name}"="{value}"\n' for name, value in {LABEL: "true", **labels}.items())
    container = client.containers.create(base, ["true"], labels={LABEL: "true", f"{LABEL}.test": uuid.uuid4().hex})
    try:
        repository, _, name = tag.rpartition(":")
        return container.commit(repository, name, changes=lines)
    finally:
        container.remove(force=True)


def forget(client: DockerClient, *names: str) -> None:
    """Remove the names of images, and images that have no other."""
    for name in names:
        try:
            client.images.remove(name, force=True, noprune=True)
        except ImageNotFound:
            continue
