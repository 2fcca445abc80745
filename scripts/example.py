"""The example of examples/compose: build its images, start it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.image import build, provenance
from scripts.image.build import Target
from scripts.machine import engine
from scripts.machine.files import ROOT
from scripts.pins.settings import Settings

DIRECTORY = ROOT / "examples" / "compose"
# What of the toolkit the subscriber is made of, and the Python packages that it imports.
TOOLKIT = (
    "scripts/errors.py",
    "scripts/freeswitch/events.py",
    "scripts/freeswitch/watch.py",
    "scripts/freeswitch/subscriber.py",
    "scripts/machine/terminal.py",
)
PACKAGES = ("genesis", "rich")


def build_images(settings: Settings, console: Console | None = None) -> str:
    """Build the images of the example, the subscriber's included; return the tag of that."""
    console = console or get_console()
    build.build(settings, console)
    context = make_context(settings.build_directory / "subscriber")
    labels = {
        f"{provenance.OCI}.title": "Subscriber",
        f"{provenance.OCI}.version": provenance.version(settings.source("freeswitch")),
    }
    tag = f"{settings.image}:subscriber"
    target = Target("", tag, ("packages", "toolkit"), labels, DIRECTORY / "Dockerfile")
    build.make(settings, context, target, settings.build_directory / "subscriber.log", console)
    return tag


def start(settings: Settings, console: Console | None = None) -> None:
    """Build the images and run the example until Ctrl-C; its containers go, its volumes stay.

    Raises ToolkitError if there is no Docker Compose or it fails.
    """
    command = engine.compose_command()
    build_images(settings, console)
    environment = {**os.environ, "IMAGE": settings.image, "ESL_EVENT": settings.esl_event}

    def compose(*arguments: str) -> int:
        every = [*command.split(), "--file", str(DIRECTORY / "compose.yaml"), "--profile", "phone", *arguments]
        return subprocess.run(every, env=environment, check=False).returncode

    try:
        code = compose("up", "init", "freeswitch", "subscriber")
    except KeyboardInterrupt:
        code = 0
    finally:
        compose("down")
    # 130: Compose was ended by Ctrl-C itself.
    if code not in (0, 130):
        raise ToolkitError(f"`{command} up` failed with status {code}: see its messages above")


def make_context(context: Path) -> Path:
    """Make the context of the subscriber's image in the directory `context` and return it.

    The Python packages are those of this environment: pinned, and without a
    network. They are all Python; what is compiled would be for another one.
    """
    shutil.rmtree(context, ignore_errors=True)
    packages = {package / "__init__.py" for name in TOOLKIT for package in Path(name).parents if package.name}
    for name in {*map(Path, TOOLKIT), *packages}:
        _copy(ROOT / name, context / "toolkit" / name)
    for distribution in _closure(PACKAGES):
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
            if (
                ".." not in file.parts
                and "__pycache__" not in file.parts
                and source.suffix != ".so"
                and source.exists()
            ):
                _copy(source, context / "packages" / file)
    return context


def _closure(names: Sequence[str]) -> Iterator[importlib.metadata.Distribution]:
    """Return the installed packages `names` and all that they require."""
    seen: set[str] = set()
    left = list(names)
    while left:
        name = left.pop().lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise ToolkitError(f"the Python package {name} is missing: pip install -r requirements.txt") from None
        yield distribution
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
