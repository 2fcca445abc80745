"""Where an image comes from, in the labels of the OCI image specification."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from scripts.errors import ToolkitError
from scripts.machine import engine, git
from scripts.machine.engine import LABEL
from scripts.machine.files import ROOT
from scripts.patchset import series
from scripts.pins.settings import Settings, Source
from scripts.sources import trees

OCI = "org.opencontainers.image"
SERIES = f"{LABEL}.series"
MODULE_SET = f"{LABEL}.module-set"
REVISION = f"{OCI}.revision"
VERSION = f"{OCI}.version"
PATCHED = "FreeSWITCH that reports lost SIP connections at once"
STOCK = "FreeSWITCH as upstream released it"
LICENSES = "MPL-1.1 AND LGPL-2.1-or-later"
# Directories of this project that nothing of an image is made of.
ELSEWHERE = ("docs", "examples", "templates/bench", "templates/report", "templates/scenarios", "tests")


def project_version(root: Path = ROOT) -> str:
    """Return the version of the project, as pyproject.toml has it."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


def version(freeswitch: Source) -> str:
    """Return the version of the patched image: that of `freeswitch`, and that of the project behind -tp."""
    return f"{trees.version(freeswitch).removeprefix('v')}-tp{project_version(ROOT)}"


def epoch(sources: Iterable[Source]) -> int:
    """Return SOURCE_DATE_EPOCH, the time of the build to go by: when the newest commit of `sources` was made."""
    return max(trees.committed(source) for source in sources)


def labels(settings: Settings, patched: bool) -> dict[str, str]:
    """Return the labels of the patched or the stock image."""
    pins = {}
    for source in settings.sources:
        pins[f"{LABEL}.{source.name}"] = source.commit
        pins[f"{LABEL}.{source.name}.version"] = trees.version(source)
    freeswitch = settings.source("freeswitch")
    every = {
        **pins,
        SERIES: series.series_hash(settings) if patched else "",
        MODULE_SET: settings.module_set.name,
        f"{OCI}.title": "FreeSWITCH",
        f"{OCI}.description": PATCHED if patched else STOCK,
        VERSION: version(freeswitch) if patched else trees.version(freeswitch).removeprefix("v"),
        f"{OCI}.created": datetime.fromtimestamp(epoch(settings.sources), UTC).isoformat().replace("+00:00", "Z"),
        f"{OCI}.licenses": LICENSES,
        f"{OCI}.base.name": settings.base_image,
        f"{OCI}.base.digest": _base_digest(settings.base_image),
        f"{OCI}.source": settings.source_url or _origin(),
        # It changes with every commit, and only the patched image is published.
        REVISION: _revision() if patched else "",
    }
    return {name: value for name, value in every.items() if value}


def upstreams(settings: Settings, labels: Mapping[str, str]) -> dict[str, str]:
    """Return what an image with `labels` was made of: the upstreams and the patch series."""
    found = {}
    for source in settings.sources:
        if commit := labels.get(f"{LABEL}.{source.name}", ""):
            named = trees.version(source) if commit == source.commit and source.tag else ""
            found[source.name] = f"{named} ({commit})" if named else commit
    if series_hash := labels.get(SERIES, ""):
        found["patch series"] = series_hash
    return found


def _base_digest(name: str) -> str:
    """Return the digest of the base image in its registry; "" if it was not pulled from one, or is not here."""
    if "@" in name:
        return name.partition("@")[2]
    try:
        with engine.connect() as client:
            known = client.images.get(name).attrs["RepoDigests"]
    except ToolkitError:
        return ""
    return next((digest.partition("@")[2] for digest in known or ()), "")


def _origin() -> str:
    """Return the address that this project was cloned from, without credentials; "" if others can't use it."""
    try:
        found = urlsplit(git.online(ROOT, "remote", "get-url", "origin").strip())
    except ToolkitError:
        return ""
    return f"https://{found.hostname}{found.path}" if found.scheme == "https" else ""


def _revision() -> str:
    """Return the commit of this project, with -dirty behind if the image may have changes; "" outside of git."""
    try:
        commit = git.online(ROOT, "rev-parse", "HEAD").strip()
        # Else each case that is written for a scenario would make the image again.
        paths = [":/", *(f":(top,exclude){directory}" for directory in ELSEWHERE)]
        changed = git.online(ROOT, "status", "--porcelain", "--", *paths, env={"GIT_OPTIONAL_LOCKS": "0"}).strip()
    except ToolkitError:
        return ""
    return f"{commit}-dirty" if changed else commit
