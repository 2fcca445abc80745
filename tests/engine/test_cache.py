"""The cache of the build: what is pushed to it, what is taken from it, and what is not trusted."""

from __future__ import annotations

import dataclasses
import io
import uuid
from collections.abc import Iterator

import docker
import pytest
from docker.errors import ImageNotFound
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.image import build, cache
from scripts.machine import engine
from scripts.machine import registry as registry_module
from scripts.machine.engine import LABEL
from scripts.pins.settings import Settings
from tests import registries as registries_module

STAGES = ("build", "stock", "patched", "sipp")
HASHES = {stage: character * 64 for stage, character in zip(STAGES, "abcd", strict=True)}


class LineConsole(Console):
    """A console that keeps what it prints."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), width=300)

    @property
    def text(self) -> str:
        assert isinstance(self.file, io.StringIO)
        return self.file.getvalue()


@pytest.fixture
def mine(registries: Settings, client: docker.DockerClient, registry: str) -> Iterator[Settings]:
    """Return settings with an image name and a cache of their own."""
    name = f"freeswitch-tp-error-test-{uuid.uuid4().hex[:8]}"
    yield dataclasses.replace(registries, image=name, cache=f"{registry}/cache/{uuid.uuid4().hex}")
    every = [tag for found in engine.images(client, label=f"{LABEL}.test={name}") for tag in found.tags]
    registries_module.forget(client, *every)


def tags(settings: Settings) -> dict[str, str]:
    return {f"{settings.image}:{stage}": HASHES[stage] for stage in STAGES}


def fetch(settings: Settings, wanted: dict[str, str], console: Console | None = None) -> list[str]:
    """Return the tags of `wanted` that the cache does not have."""
    return [
        tag for tag, inputs in wanted.items() if not cache.fetch(settings.cache, tag, inputs, console or LineConsole())
    ]


def make(client: docker.DockerClient, settings: Settings) -> dict[str, str]:
    """Make a small image for each stage and return the ids by tag."""
    labels = {f"{LABEL}.test": settings.image}
    found = {
        tag: registries_module.small_image(client, settings.base_image, tag, **{**labels, cache.INPUTS: inputs})
        for tag, inputs in tags(settings).items()
    }
    return {tag: str(one.id) for tag, one in found.items()}


def exists(client: docker.DockerClient, name: str) -> bool:
    try:
        return bool(client.images.get(name))
    except ImageNotFound:
        return False


def test_without_a_cache_all_is_built(registries: Settings) -> None:
    settings = dataclasses.replace(registries, cache="")
    assert fetch(settings, tags(settings)) == list(tags(settings))
    assert cache.layers(settings.cache, settings.image) == []
    with pytest.raises(ToolkitError, match=r"build\.cache is empty"):
        cache.push(settings.cache, settings.image)


def test_stages_come_back_on_another_machine(client: docker.DockerClient, mine: Settings) -> None:
    ids = make(client, mine)
    pushed = cache.push(mine.cache, mine.image, LineConsole())
    assert len(pushed) == 2 * len(STAGES)
    assert f"{mine.cache}:patched-{'c' * 16}" in pushed and f"{mine.cache}:patched" in pushed
    assert not any(exists(client, name) for name in pushed)
    again = LineConsole()
    assert cache.push(mine.cache, mine.image, again) == []
    assert again.text.count("there already") == len(STAGES)

    registries_module.forget(client, *ids)
    console = LineConsole()
    assert fetch(mine, tags(mine), console) == []
    assert f"{mine.image}:patched: pulled {mine.cache}:patched-{'c' * 16}" in console.text
    assert {tag: str(client.images.get(tag).id) for tag in ids} == ids


def test_changed_series_takes_the_compiled_stage(client: docker.DockerClient, mine: Settings) -> None:
    ids = make(client, mine)
    cache.push(mine.cache, mine.image, LineConsole())
    registries_module.forget(client, *ids)
    patched = f"{mine.image}:patched"
    assert fetch(mine, {**tags(mine), patched: "e" * 64}) == [patched]
    assert str(client.images.get(f"{mine.image}:build").id) == ids[f"{mine.image}:build"]
    sources = cache.layers(mine.cache, mine.image)
    assert f"{mine.cache}:build" in sources and f"{mine.image}:build" in sources
    assert f"{mine.cache}:patched" in sources and patched not in sources


def test_changed_sources_start_from_the_newest_layers(client: docker.DockerClient, mine: Settings) -> None:
    ids = make(client, mine)
    cache.push(mine.cache, mine.image, LineConsole())
    registries_module.forget(client, *ids)
    console = LineConsole()
    wanted = dict.fromkeys(tags(mine), "f" * 64)
    assert fetch(mine, wanted, console) == list(wanted)
    assert f"starting from the layers of {mine.cache}:build" in console.text
    assert cache.layers(mine.cache, mine.image) == sorted(f"{mine.cache}:{stage}" for stage in STAGES)
    assert not exists(client, f"{mine.image}:build")


def test_layers_of_this_machine_need_no_help(client: docker.DockerClient, mine: Settings) -> None:
    make(client, mine)
    cache.push(mine.cache, mine.image, LineConsole())
    assert cache.layers(mine.cache, mine.image) == []


def test_image_under_a_wrong_tag_is_not_used(client: docker.DockerClient, mine: Settings) -> None:
    """Somebody has pushed something else under the hash."""
    make(client, mine)
    wrong = client.images.get(f"{mine.image}:stock")
    place = cache.reference(mine.cache, f"{mine.image}:patched", HASHES["patched"])
    registry_module.push(client, wrong, place)
    registries_module.forget(client, place, *tags(mine))
    console = LineConsole()
    patched = f"{mine.image}:patched"
    assert fetch(mine, {patched: HASHES["patched"]}, console) == [patched]
    assert f"cache not used: {place} is not the image that its tag promises" in console.text
    assert not exists(client, patched) and not exists(client, place)


def test_unreachable_cache_costs_a_line(registries: Settings) -> None:
    settings = dataclasses.replace(registries, cache="127.0.0.1:9/cache")
    console = LineConsole()
    assert fetch(settings, tags(settings), console) == list(tags(settings))
    lines = console.text.splitlines()
    assert len(lines) == len(STAGES)
    assert lines[0].startswith("cache not used: 127.0.0.1:9/cache:build-") and lines[0].endswith("check the network")


def test_nothing_to_push(mine: Settings) -> None:
    with pytest.raises(ToolkitError, match=r"there is no image freeswitch-tp-error-test-\w+ to push: run `inv build`"):
        cache.push(mine.cache, mine.image, LineConsole())


def test_real_images_are_not_built_twice(built: Settings, client: docker.DockerClient, mine: Settings) -> None:
    """The build of the real pins, under another name: all is pulled, nothing is built."""
    real = dataclasses.replace(built, image=mine.image, cache=mine.cache)
    own = list(tags(mine))
    ids = {}
    try:
        for tag in own:
            original = client.images.get(tag.replace(mine.image, built.image))
            ids[tag] = str(original.id)
            original.tag(tag)
        cache.push(real.cache, real.image, LineConsole())
        # The engine still has them under their own name, but no tag of these.
        registries_module.forget(client, *own)
        console = LineConsole()
        build.build(real, console)
        assert console.text.count(": pulled ") == len(own)
        assert {tag: str(client.images.get(tag).id) for tag in own} == ids
        again = LineConsole()
        build.build(real, again)
        assert again.text.count(": up to date") == len(own)
    finally:
        registries_module.forget(client, *own, *(cache.reference(real.cache, tag) for tag in own))
