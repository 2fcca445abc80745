"""The base image: present, pulled or, where no registry answers, bootstrapped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from docker.errors import DockerException, ImageNotFound, NotFound
from requests.exceptions import RequestException
from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.machine import engine, terminal

INSTALL = "install it (`apt-get install debootstrap`)"
# It, and what it fetches packages with, whose libraries git needs, too.
PACKAGES = ("debootstrap", "wget")


def ensure(name: str, suite: str, directory: Path, console: Console | None = None) -> None:
    """See to it that the base image `name` is on this machine: `make` it if it can't be pulled.

    Raises ToolkitError if it is not there, cannot be pulled and cannot be made.
    """
    console = console or get_console()
    with engine.connect() as client:
        try:
            client.images.get(name)
            console.print(f"{name}: present", soft_wrap=True)
            return
        except ImageNotFound:
            console.print(f"{name}: pulling", soft_wrap=True)
        try:
            client.images.pull(*_reference(name))
            console.print(f"{name}: pulled", soft_wrap=True)
            return
        except NotFound as error:
            # There is a registry, and it does not know the name: Debian is not what was asked for.
            raise ToolkitError(
                f"{name}: the registry has no such image ({engine.brief(error)}): correct build.base_image, or log in"
            ) from error
        except (DockerException, RequestException) as error:
            reason = engine.brief(error)
    console.print(f"{name}: cannot be pulled ({reason}); bootstrapping {suite} instead", soft_wrap=True)
    make(name, suite, directory, console)


def make(name: str, suite: str, directory: Path, console: Console | None = None) -> None:
    """Make the base image `name` out of the packages of the Debian release `suite` with debootstrap.

    Needs root or sudo, and takes a minute or two; debootstrap is downloaded
    where it is not installed. Raises ToolkitError if something it needs is
    missing or fails; its temporary directory (some 300 MB in `directory`) is
    removed in any case.
    """
    console = console or get_console()
    with engine.connect(), _temporary(directory) as root, tempfile.TemporaryDirectory(prefix="toolkit-") as tools:
        command = _tool(name, Path(tools), console)
        _bootstrap([*_root_command(), *command, "--variant=minbase", suite, str(root)], console)
        _import(name, root)
    console.print(f"{name}: made from {suite}", soft_wrap=True)


def _tool(name: str, directory: Path, console: Console) -> list[str]:
    """Return what calls debootstrap, which may be downloaded to `directory`: anybody can, and it runs where it is."""
    if found := debootstrap():
        return [found]
    missing = [name for name in PACKAGES if name == "debootstrap" or shutil.which(name) is None]
    console.print(f"debootstrap: not installed, downloading {' and '.join(missing)}", soft_wrap=True)
    try:
        _run(["apt-get", "download", "-q", *missing], directory)
        for package in directory.glob("*.deb"):
            _run(["dpkg-deb", "-x", str(package), "."], directory)
    except (OSError, subprocess.CalledProcessError) as error:
        told = " ".join((getattr(error, "stderr", None) or str(error)).split())[-200:]
        raise ToolkitError(
            f"debootstrap is missing, so {name} cannot be made, and it cannot be downloaded ({told}): {INSTALL}"
        ) from None
    path = f"{directory / 'usr/bin'}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    library = directory / "usr/share/debootstrap"
    return ["env", f"PATH={path}", f"DEBOOTSTRAP_DIR={library}", str(directory / "usr/sbin/debootstrap")]


def _run(command: list[str], directory: Path) -> None:
    subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True, errors="replace")


def can_make() -> bool:
    """Return whether debootstrap is here, or what downloads it."""
    return debootstrap() is not None or shutil.which("apt-get") is not None


def debootstrap() -> str | None:
    """Return the path of debootstrap, which an ordinary user's PATH may lack; None if it is missing."""
    return shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _reference(image: str) -> tuple[str, str]:
    """Split an image name into repository and tag ("latest" if there is none)."""
    repository, separator, tag = image.rpartition(":")
    return (repository, tag) if separator and "/" not in tag else (image, "latest")


def _root_command() -> list[str]:
    """Return what to put before a command that needs root: nothing or sudo."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        raise ToolkitError("debootstrap needs root and sudo is missing: run `inv base` as root")
    if sys.stdin.isatty():
        return ["sudo"]
    if subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode:
        raise ToolkitError("debootstrap needs root and sudo asks for a password: run `inv base` on a terminal")
    return ["sudo", "-n"]


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    parent.mkdir(parents=True, exist_ok=True)
    # Not /tmp, which is often mounted nodev.
    path = Path(tempfile.mkdtemp(prefix="base-", dir=parent))
    try:
        path.chmod(0o755)
        yield path
    finally:
        command = _root_command()
        # An interrupted debootstrap can leave these mounted.
        for mount in ("proc", "sys"):
            if os.path.ismount(path / mount):
                subprocess.run([*command, "umount", str(path / mount)], check=False)
        subprocess.run([*command, "rm", "-rf", "--one-file-system", str(path)], check=False)
        if not any(parent.iterdir()):
            parent.rmdir()


def _bootstrap(command: list[str], console: Console) -> None:
    """Run debootstrap; its steps are a status on a terminal, else plain lines."""
    last = ""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        with terminal.task(console, "debootstrap") as shown:
            for line in process.stdout or ():
                last = line.strip() or last
                shown.say(last.removeprefix("I: "))
    finally:
        process.wait()
    if process.returncode:
        raise ToolkitError(
            f"debootstrap failed ({last.removeprefix('E: ')}): check the network, build.base_suite, and that root may "
            "mount and make devices here"
        )


def _import(name: str, root: Path) -> None:
    """Load the tree `root`, without its package archives and lists, as the image `name`."""
    repository, tag = _reference(name)
    excludes = ["--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*"]
    tar = [*_root_command(), "tar", "-C", str(root), "--numeric-owner", *excludes, "-c", "."]
    changes = [*(f"LABEL {key}={value}" for key, value in engine.IMAGE_LABEL.items()), 'CMD ["bash"]']
    with engine.connect(timeout=600) as client, subprocess.Popen(tar, stdout=subprocess.PIPE) as process:
        answer = client.api.import_image_from_stream(process.stdout, repository=repository, tag=tag, changes=changes)
        process.wait()
        # The engine has made the image before anyone could see that its tar was cut short.
        if process.returncode:
            client.images.remove(name)
            raise ToolkitError(f"tar of {root} failed with status {process.returncode}: see its message above")
    for line in answer.splitlines():
        if error := json.loads(line).get("error"):
            raise ToolkitError(f"Docker did not import {name}: {error}")
