"""Publish the patched image: only the very image that `inv verify` passed, under the tags of its version.

What was pushed is recorded in the report directory: push.json and digest.txt (as
`sha256sum` writes it, with the repository as name).
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from docker import DockerClient
from docker.errors import ImageNotFound
from docker.models.images import Image
from packaging.version import InvalidVersion, Version
from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.image import cache
from scripts.image.provenance import MODULE_SET, REVISION, VERSION, project_version
from scripts.machine import engine, files, git, registry
from scripts.machine.engine import LABEL
from scripts.machine.files import ROOT, short
from scripts.machine.terminal import listing
from scripts.patchset import series
from scripts.pins.settings import Settings, repository
from scripts.scenario.table import PATCHED

VERIFY_FILE = "verify.json"
PUSH_FILE = "push.json"
DIGEST_FILE = "digest.txt"
ARCHIVE = "image.tar"
# The set of modules that needs no mention in a tag.
USUAL = "core"
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Pushed:
    """What was pushed where. `image` is the id on this machine, `digest` that of the manifest in the registry."""

    repository: str
    tags: Sequence[str]
    digest: str
    image: str


def run(settings: Settings, target: str = "", tags: str = "", stages: bool = False, check_only: bool = False) -> None:
    """Push the verified image or, with `stages`, the stages of the build; `tags` has commas between.

    With `check_only`, only look whether there is a version to push and where
    to. Raises ToolkitError if that is not possible, or if several are asked for.
    """
    if stages and check_only:
        raise ToolkitError("--cache and --check exclude each other: --check is about the version")
    if stages and (target or tags):
        raise ToolkitError("--cache pushes to build.cache, under tags of its own: leave out --registry and --tags")
    chosen = [tag for tag in tags.split(",") if tag]
    if stages:
        cache.push(settings.cache, settings.image)
    elif check_only:
        place, version = _destination(target, settings.push.repository, chosen, ROOT)
        get_console().print(f"to be pushed to {place} as {', '.join(version)}", soft_wrap=True)
    else:
        push(settings, target, chosen)


def push(
    settings: Settings, target: str = "", tags: Sequence[str] = (), console: Console | None = None, root: Path = ROOT
) -> Pushed:
    """Push the verified image to the repository `target` (default: push.repository) and return what was pushed.

    The `tags` are those of the version that the commit in `root` is tagged
    with, if none are given. Raises ToolkitError, before anything is pushed, if
    the image did not pass `inv verify`, if there is no version, or if the
    version is in the registry already and is another image.
    """
    console = console or get_console()
    record = verified(settings.report_directory)
    target, chosen = _destination(target, settings.push.repository, tags, root)
    with engine.connect(registry.TIMEOUT) as client:
        image = _image(client, f"{settings.image}:{PATCHED}", record)
        if not tags:
            _check_built_here(image, settings, root)
            fixed, moving = _tags(image, chosen)
            for tag in fixed:
                _check_unpublished(client, image, f"{target}:{tag}")
            chosen = [*fixed, *moving]
        digests = {}
        for tag in chosen:
            digests[tag] = registry.push(client, image, f"{target}:{tag}")
            console.print(f"{target}:{tag}: pushed {digests[tag]}", soft_wrap=True)
        for tag, digest in digests.items():
            found = registry.digest(client, f"{target}:{tag}")
            if found != digests[chosen[0]]:
                raise ToolkitError(
                    f"{target}:{tag} is {found or 'missing'} after pushing {digest}: someone else pushes, or the "
                    "registry lost it; push again"
                )
        pushed = Pushed(target, chosen, digests[chosen[0]], str(image.id))
    _write(settings.report_directory, pushed)
    console.print(f"pushed {target}@{pushed.digest}; records in {short(settings.report_directory)}", soft_wrap=True)
    return pushed


def _destination(target: str, usual: str, tags: Sequence[str], root: Path) -> tuple[str, list[str]]:
    """Return the repository to push to and the tags: `target` and `tags`, or the `usual` one and the version's."""
    target = repository(target, "--registry") or usual
    if not target:
        raise ToolkitError("no repository to push to: give --registry HOST/NAME, or set push.repository")
    chosen = list(tags) or version_tags(root)
    for tag in chosen:
        if not TAG.fullmatch(tag):
            raise ToolkitError(f"--tags: '{tag}' is not a tag (letters, digits, '_', '.' and '-', 128 at most)")
    return target, chosen


def chosen_registry(target: str, *usual: str) -> str:
    """Return `target` or, if that is empty, the first of the `usual` repositories that is not; ToolkitError if none."""
    found = next(filter(None, (repository(target, "--registry"), *usual)), "")
    if not found:
        raise ToolkitError("no registry to log in to: give --registry HOST/NAME, or set push.repository")
    return found


def verified(reports: Path) -> Mapping[str, Any]:
    """Return what the last `inv verify`, by its report in `reports`, says of the patched image: tag, id and labels.

    Raises ToolkitError if it did not pass, or did not look at that image.
    """
    file = reports / VERIFY_FILE
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        passed, images = document["passed"], document["images"]
        ran = {result["image"] for result in document["results"]}
    except FileNotFoundError:
        raise ToolkitError(f"no image was verified: {short(file)} is missing, run `inv verify`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ToolkitError(f"{short(file)} is not a report of `inv verify`: run it again") from error
    if passed is not True:
        raise ToolkitError(f"the image did not pass `inv verify` ({short(file)}): it is not pushed")
    for image in images:
        if image["variant"] == PATCHED and PATCHED in ran:
            return dict(image)
    raise ToolkitError(f"{short(file)} does not tell of the patched image: run `inv verify`")


def version_tags(root: Path = ROOT) -> list[str]:
    """Return the tags for the version that the checked-out commit of `root` is tagged with, the full one first.

    v1.2.3 gives 1.2.3 and, unless a newer one of the same kind is tagged,
    1.2, 1 and latest; a pre-release (v1.3.0rc1) its own only. Raises
    ToolkitError if the commit is not tagged with the project's version or the
    work tree has changes.
    """
    own = project_version(root)
    here = git.local(root, "tag", "--points-at", "HEAD").split()
    if f"v{own}" not in here:
        has = f"has the tag {listing(here)}" if here else "has no tag"
        raise ToolkitError(
            f"the commit {has}, and pyproject.toml has the version {own}: tag it v{own}, or name tags (--tags edge)"
        )
    if changed := git.local(root, "status", "--porcelain").splitlines():
        paths = listing(line[3:] for line in changed)
        raise ToolkitError(f"{root} is not v{own}, it has changes ({paths}): commit them, or name tags (--tags edge)")
    mine = Version(own)
    if mine.is_prerelease:
        return [own]
    others = _released(git.local(root, "tag", "--list", "v*").split())
    kinds = {
        f"{mine.major}.{mine.minor}": [other for other in others if other.release[:2] == mine.release[:2]],
        f"{mine.major}": [other for other in others if other.major == mine.major],
        "latest": others,
    }
    return [own, *(name for name, same in kinds.items() if all(other <= mine for other in same))]


def save(settings: Settings, console: Console | None = None) -> Path:
    """Write the verified image to build/image.tar, for another machine to push, and return that path."""
    console = console or get_console()
    record = verified(settings.report_directory)
    target = settings.build_directory / ARCHIVE
    with engine.connect(registry.TIMEOUT) as client, files.replacing(target) as file:
        image = _image(client, f"{settings.image}:{PATCHED}", record)
        for chunk in image.save(named=f"{settings.image}:{PATCHED}"):
            file.write(chunk)
    console.print(f"{short(target)}: {target.stat().st_size / 1e6:.0f} MB, image {image.id}", soft_wrap=True)
    return target


def load(settings: Settings, console: Console | None = None) -> None:
    """Load build/image.tar; ToolkitError, before Docker gets it, if it is not the image that was verified, whole."""
    console = console or get_console()
    record = verified(settings.report_directory)
    source = settings.build_directory / ARCHIVE
    if not source.exists():
        raise ToolkitError(f"{short(source)} is missing: `inv save` writes it")
    _check_archive(source, f"{settings.image}:{PATCHED}", record)
    with engine.connect(registry.TIMEOUT) as client, source.open("rb") as file:
        client.images.load(file)
        image = _image(client, f"{settings.image}:{PATCHED}", record)
    console.print(f"{settings.image}:{PATCHED}: image {image.id}", soft_wrap=True)


def _check_archive(file: Path, tag: str, record: Mapping[str, Any]) -> None:
    """Raise ToolkitError if `file` is not a whole archive of the image in `record`, as `tag` and nothing else."""
    try:
        tags, ids = _archived(file)
    except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise ToolkitError(
            f"{short(file)} is not the whole archive of an image ({' '.join(str(error).split())}): copy it again, or "
            "write it anew (`inv save`)"
        ) from error
    if tags != [tag]:
        raise ToolkitError(
            f"{short(file)} has {listing(tags) or 'an image without a tag'}, not {tag} alone: nothing was loaded, "
            "write it anew (`inv save`)"
        )
    if record["id"] not in ids:
        raise ToolkitError(
            f"{short(file)} has {tag} as {' or '.join(ids)}, but {record['id']} was verified ({record['tag']}): "
            "nothing was loaded, copy it and the report of one `inv verify`"
        )


def _archived(file: Path) -> tuple[list[str], list[str]]:
    """Return the tags of the images in `file`, and the ids that the first of them can have.

    Docker calls an image after its configuration or, in containerd's store,
    after its manifest.
    """
    with tarfile.open(file, "r:") as archive:
        members = {member.name: member for member in archive}

        def content(name: str) -> bytes:
            stream = archive.extractfile(members[name]) if name in members else None
            if stream is None:
                raise ValueError(f"{name} is missing")
            return stream.read()

        images = json.loads(content("manifest.json"))
        if missing := [name for image in images for name in image["Layers"] if name not in members]:
            raise ValueError(f"{listing(missing)} is missing")
        names = [images[0]["Config"]] if images else []
        if "index.json" in members:
            manifests = json.loads(content("index.json"))["manifests"]
            names += [f"blobs/{manifest['digest'].replace(':', '/')}" for manifest in manifests]
        ids = [f"sha256:{hashlib.sha256(content(name)).hexdigest()}" for name in names]
        return [tag for image in images for tag in image["RepoTags"] or []], ids


def _released(tags: Sequence[str]) -> list[Version]:
    found = []
    for tag in tags:
        try:
            parsed = Version(tag.removeprefix("v"))
        except InvalidVersion:
            continue
        if not parsed.is_prerelease:
            found.append(parsed)
    return found


def _image(client: DockerClient, tag: str, record: Mapping[str, Any]) -> Image:
    """Return the patched image, `tag`; ToolkitError if it is not the one in `record`."""
    try:
        image = client.images.get(tag)
    except ImageNotFound:
        raise ToolkitError(f"there is no image {tag}: run `inv verify`") from None
    if image.id != record["id"]:
        raise ToolkitError(
            f"image {tag} is {image.id}, but {record['id']} was verified ({record['tag']}): run `inv verify`"
        )
    return image


def _tags(image: Image, version: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the tags of `image` that never move and those that do, out of the tags of the project's `version`.

    Next to that version stands the one of what is inside. A set of modules that
    is not the usual one is behind each.
    """
    inner, modules = image.labels.get(VERSION, ""), image.labels.get(MODULE_SET, USUAL)
    fixed = [version[0], *([inner] if TAG.fullmatch(inner) else [])]
    suffix = "" if modules == USUAL else f"-{modules}"
    return [f"{tag}{suffix}" for tag in fixed], [f"{tag}{suffix}" for tag in version[1:]]


def _check_built_here(image: Image, settings: Settings, root: Path) -> None:
    """Raise ToolkitError if the image was not made from the commit and the pins that its version stands for."""
    expected = {f"{LABEL}.{source.name}": source.commit for source in settings.sources}
    expected[f"{LABEL}.series"] = series.series_hash(settings)
    if REVISION in image.labels:
        expected[REVISION] = git.local(root, "rev-parse", "HEAD").strip()
    for label, value in expected.items():
        if image.labels.get(label) != value:
            raise ToolkitError(
                f"the image was made from other sources than this version has: its label {label} is "
                f"'{image.labels.get(label, '')}', not '{value}'; run `inv clean --no-sources`, then `inv verify`"
            )


def _check_unpublished(client: DockerClient, image: Image, reference: str) -> None:
    """Raise ToolkitError if `reference` is in the registry and is not `image`: a version never changes."""
    found = registry.digest(client, reference)
    if not found:
        return
    published = registry.pull(client, reference)
    if published is None or published.id != image.id:
        raise ToolkitError(f"{reference} is published already, as {found}: a version is pushed once, make a new one")


def _write(directory: Path, pushed: Pushed) -> None:
    contents = {
        PUSH_FILE: json.dumps(asdict(pushed), indent=2) + "\n",
        DIGEST_FILE: f"{pushed.digest.removeprefix('sha256:')}  {pushed.repository}\n",
    }
    for name, text in contents.items():
        files.write(directory / name, text)
