"""Registries: log in, push, pull, and ask which image a tag is.

Every call goes through the Docker engine, so its settings hold: mirrors,
proxies, certificates, and no TLS for registries on the loopback interface.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from docker import DockerClient
from docker.errors import APIError, DockerException, NotFound
from docker.models.images import Image
from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.machine import engine

# Seconds without a sign of life from the engine while it moves layers.
TIMEOUT = 600
USER = "REGISTRY_USER"
PASSWORD = "REGISTRY_PASSWORD"
# What the engine calls the registry of names without a host.
HUB = "docker.io"


def host(repository: str) -> str:
    """Return the host of `repository`, with its port: a first part with a dot or colon in it, or localhost."""
    first, separator, _ = repository.partition("/")
    return first if separator and (any(sign in first for sign in ".:") or first == "localhost") else HUB


def login(repository: str, console: Console | None = None) -> None:
    """Log in to the registry of `repository` with REGISTRY_USER and REGISTRY_PASSWORD of the environment.

    The password reaches `docker login` through its standard input. Raises
    ToolkitError if a variable is missing or the registry refuses.
    """
    console = console or get_console()
    registry = host(repository)
    for variable in (USER, PASSWORD):
        if not os.environ.get(variable):
            raise ToolkitError(
                f"the environment variable {variable} is not set", f"it is needed to log in to {registry}"
            )
    user, password = os.environ[USER], os.environ[PASSWORD]
    result = _docker("login", "--username", user, "--password-stdin", registry, password=password)
    if result.returncode:
        told = " ".join(result.stderr.replace(password, "***").split())
        if not _is_denied(told):
            raise ToolkitError(
                f"cannot log in to {registry} ({told})", "check the network and the name of the registry"
            )
        raise ToolkitError(f"{registry} refuses the login of {user} ({told})", f"check {USER} and {PASSWORD}")
    console.print(f"logged in to {registry} as {user}", highlight=False, soft_wrap=True)


def logout(repository: str, console: Console | None = None) -> None:
    """Forget the password of the registry of `repository`."""
    registry = host(repository)
    result = _docker("logout", registry)
    if result.returncode:
        raise ToolkitError(f"cannot log out of {registry}: {' '.join(result.stderr.split())}")
    (console or get_console()).print(f"logged out of {registry}", highlight=False, soft_wrap=True)


def digest(client: DockerClient, reference: str) -> str:
    """Return the digest (sha256:...) of `reference` in its registry, "" if there is no such tag.

    Raises ToolkitError if the registry cannot be asked.
    """
    try:
        return str(client.images.get_registry_data(reference).id)
    except NotFound:
        return ""
    except APIError as error:
        raise _refused(reference, engine.brief(error)) from error


def pull(client: DockerClient, reference: str) -> Image | None:
    """Pull `reference`, with a tag, and return the image; None if there is no such tag.

    Raises ToolkitError if the registry cannot be asked.
    """
    repository, _, tag = reference.rpartition(":")
    try:
        return client.images.pull(repository, tag=tag)
    except NotFound:
        return None
    except APIError as error:
        raise _refused(reference, engine.brief(error)) from error


def push(client: DockerClient, image: Image, reference: str) -> str:
    """Push `image` as `reference`, with a tag, and return its digest.

    Raises ToolkitError if the registry does not take it; the name is then what
    it was on this machine, too.
    """
    repository, _, tag = reference.rpartition(":")
    with _named(client, image, reference):
        found = ""
        for line in client.images.push(repository, tag=tag, stream=True, decode=True):
            if "error" in line:
                raise _refused(reference, " ".join(str(line["error"]).split()))
            found = (line.get("aux") or {}).get("Digest", found)
        if not found:
            raise ToolkitError(f"{reference}: Docker did not say which digest it pushed", "push again")
        return str(found)


@contextmanager
def _named(client: DockerClient, image: Image, reference: str) -> Iterator[None]:
    """Give `image` the name `reference`; take it back if something is raised."""
    repository, _, tag = reference.rpartition(":")
    before: Image | None = None
    with suppress(NotFound):
        before = client.images.get(reference)
    image.tag(repository, tag)
    try:
        yield
    except BaseException:
        with suppress(DockerException):
            if before is not None:
                before.tag(repository, tag)
            elif image.tags:
                # It has another name still, and so stays.
                client.images.remove(reference, noprune=True)
        raise


def _refused(reference: str, why: str) -> ToolkitError:
    registry = host(reference)
    # "server gave HTTP response" and the like tell enough by themselves.
    remedy = "log in (`inv login`) and see that the repository exists" if _is_denied(why) else "check the network"
    return ToolkitError(f"{reference}: {registry} does not answer as it should ({why})", remedy)


def _is_denied(why: str) -> bool:
    return any(word in why.lower() for word in ("denied", "unauthorized", "authentication", "no basic auth"))


def _docker(*arguments: str, password: str = "") -> subprocess.CompletedProcess[str]:
    engine.check_command()
    return subprocess.run(["docker", *arguments], input=password, capture_output=True, text=True, check=False)
