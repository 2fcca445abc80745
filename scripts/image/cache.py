"""The cache of the build: finished stages in a registry, by the hash of what they were made from.

`build.cache` names the repository. A stage has two tags there: REPOSITORY:STAGE-HASH
for who needs just that one, and REPOSITORY:STAGE, the newest, whose layers a
build starts from that needs another one.
"""

from __future__ import annotations

from docker import DockerClient
from docker.errors import ImageNotFound
from docker.models.images import Image
from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.machine import engine, registry
from scripts.machine.engine import LABEL

# The label with the hash of what an image was made from.
INPUTS = f"{LABEL}.inputs"
# So much of the hash is in a tag; the label has all of it.
LENGTH = 16


def reference(repository: str, tag: str, inputs: str = "") -> str:
    """Return the place of the image `tag` in the cache `repository`, of the newest if `inputs` is empty."""
    stage = tag.rpartition(":")[2]
    return f"{repository}:{stage}-{inputs[:LENGTH]}" if inputs else f"{repository}:{stage}"


def fetch(repository: str, tag: str, inputs: str, console: Console) -> bool:
    """Pull the image `tag` that was made from `inputs` and return whether the cache has it.

    If it does not, the newest of that stage is pulled for its layers. An
    unreachable cache costs a line, not the build. An empty `repository` is none.
    """
    if not repository:
        return False
    try:
        with engine.connect(registry.TIMEOUT) as client:
            return _fetch(client, repository, tag, inputs, console)
    except ToolkitError as error:
        console.print(f"cache not used: {error}", soft_wrap=True, highlight=False)
        return False


def layers(repository: str, image: str) -> list[str]:
    """Return the images whose layers a build of `image` may use, as `docker build --cache-from` takes them.

    It is empty as long as all layers were built on this machine: Docker knows
    them then, and it would look for them in these images only.
    """
    if not repository:
        return []
    with engine.connect() as client:
        pulled = _tags(client, repository)
        return [*pulled, *_tags(client, image)] if pulled else []


def push(repository: str, name: str, console: Console | None = None) -> list[str]:
    """Push the images `name` of this machine that `build` made to the cache; return the references that were new.

    Raises ToolkitError if there is no cache or no image, or if the registry
    does not take them.
    """
    console = console or get_console()
    if not repository:
        raise ToolkitError("the setting build.cache is empty: name a repository (--set build.cache=HOST/NAME)")
    pushed = []
    with engine.connect(registry.TIMEOUT) as client:
        images = _made(client, name)
        if not images:
            raise ToolkitError(f"there is no image {name} to push: run `inv build`")
        for tag, image in images.items():
            exact, newest = reference(repository, tag, image.labels[INPUTS]), reference(repository, tag)
            known = registry.digest(client, exact)
            if known and known == registry.digest(client, newest):
                console.print(f"{exact}: there already", soft_wrap=True, highlight=False)
                continue
            for place in (exact, newest):
                kept = _exists(client, place)
                found = registry.push(client, image, place)
                if not kept:
                    client.images.remove(place, noprune=True)
                console.print(f"{place}: pushed {found}", soft_wrap=True, highlight=False)
                pushed.append(place)
    return pushed


def _made(client: DockerClient, name: str) -> dict[str, Image]:
    """Return the images `name` of `build`, by their tags."""
    every = {tag: client.images.get(tag) for tag in _tags(client, name)}
    return {tag: image for tag, image in every.items() if image.labels.get(INPUTS)}


def _tags(client: DockerClient, repository: str) -> list[str]:
    """Return the tags of `repository` on this machine, sorted."""
    every = (tag for image in engine.images(client, repository) for tag in image.tags)
    return sorted(tag for tag in every if tag.rpartition(":")[0] == repository)


def _fetch(client: DockerClient, repository: str, tag: str, inputs: str, console: Console) -> bool:
    exact, newest = reference(repository, tag, inputs), reference(repository, tag)
    image = registry.pull(client, exact)
    if image is None:
        if registry.pull(client, newest) is not None:
            console.print(f"{tag}: starting from the layers of {newest}", soft_wrap=True, highlight=False)
        return False
    if image.labels.get(INPUTS) != inputs:
        client.images.remove(exact, noprune=True)
        raise ToolkitError(f"{exact} is not the image that its tag promises: delete it in the registry")
    # The second name tells `layers` that Docker does not know the layers by itself.
    for name in (tag, newest):
        image.tag(name)
    client.images.remove(exact, noprune=True)
    console.print(f"{tag}: pulled {exact}", soft_wrap=True, highlight=False)
    return True


def _exists(client: DockerClient, name: str) -> bool:
    try:
        client.images.get(name)
    except ImageNotFound:
        return False
    return True
