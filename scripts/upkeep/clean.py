"""Remove what the toolkit made: containers, networks, images, build trees."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.machine import engine
from scripts.machine.files import short
from scripts.pins.settings import Settings, Source
from scripts.sources import trees


def clean(
    settings: Settings,
    sources: bool = True,
    images: bool = True,
    force: bool = False,
    console: Console | None = None,
    label: str = engine.LABEL,
) -> list[str]:
    """Remove the toolkit's containers and networks, and the build directory.

    `sources` includes the source trees, `images` the images, but for those that
    a container of somebody else is made of. Returns what was removed, a line
    each, and what was kept for that reason. Raises ToolkitError, before it
    removes anything, if Docker cannot be reached or (unless `force`) a source
    tree has local changes.
    """
    console = console or get_console()
    if sources:
        _check_trees(settings.sources, force)
    removed = _clean_engine(label, images) + _clean_build(settings.build_directory, settings.sources, sources)
    for line in removed or ["nothing to remove"]:
        console.print(line, soft_wrap=True)
    return removed


def _check_trees(sources: Sequence[Source], force: bool) -> None:
    for source in sources:
        if not force:
            try:
                trees.check_unchanged(source)
            except ToolkitError as error:
                raise ToolkitError(error.what, f"{error.remedy}, or give --force to lose them") from error
        # Not even force removes a directory that the user made.
        trees.inspect(source)


def _clean_engine(label: str, images: bool) -> list[str]:
    with engine.connect() as client:
        # By its value: the containers that others run from the images have the label, too.
        removed = [f"removed {name}" for name in engine.remove(client, f"{label}=true")]
        if not images:
            return removed
        users = {str(container.attrs["Image"]): str(container.name) for container in engine.containers(client)}
        for image in engine.images(client, label=label):
            name = ", ".join(image.tags) or image.short_id
            if user := users.get(str(image.id)):
                removed.append(f"kept image {name}: container {user} was made of it")
                continue
            client.images.remove(image.id, force=True)
            removed.append(f"removed image {name}")
    return removed


def _clean_build(directory: Path, sources: Sequence[Source], with_sources: bool) -> list[str]:
    trees = [source.path for source in sources]
    doomed = [path for path in trees if path.exists()] if with_sources else []
    if directory.exists():
        keep = set() if with_sources else {path for tree in trees for path in (tree, *tree.parents)}
        doomed += [path for path in sorted(directory.iterdir()) if path not in keep]
    removed = []
    for path in doomed:
        if path.exists():
            _remove(path)
            removed.append(f"removed {short(path)}")
    if directory.exists() and not any(directory.iterdir()):
        directory.rmdir()
    return removed


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise ToolkitError(
            f"cannot remove {error.filename or path} ({error.strerror})", "remove it with the rights of its owner"
        ) from error
