"""The attestation of an image: what it was made from, by whom, as an in-toto statement with SLSA's predicate.

It is not signed. On GitHub the release workflow adds a signed one of its own.
Source: https://slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from docker import DockerClient
from docker.models.images import Image
from google.protobuf.json_format import MessageToDict, MessageToJson, ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement

from scripts.errors import ToolkitError
from scripts.image import cache
from scripts.image.provenance import OCI
from scripts.machine import engine, git
from scripts.machine.engine import LABEL
from scripts.machine.files import ROOT
from scripts.pins.settings import Settings, Source
from scripts.sources import trees

PREDICATE = "https://slsa.dev/provenance/v1"
# docs/pipeline.md describes them.
BUILD_TYPE = "https://freeswitch-tp-error.invalid/inv-build/v1"
LOCAL_BUILDER = "https://freeswitch-tp-error.invalid/local-machine/v1"
BASE_NAME = f"{OCI}.base.name"
BASE_DIGEST = f"{OCI}.base.digest"


def statement(
    settings: Settings, client: DockerClient, image: Image, name: str, digest: str, byproducts: Sequence[Path]
) -> str:
    """Return the provenance of `image`, which is `name`@`digest` in a registry, as JSON.

    `byproducts` are files that were made along with it: the reports.
    """
    predicate = ParseDict(
        {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "releases": {source.name: trees.version(source) for source in settings.sources},
                    "moduleSet": settings.module_set.name,
                    "modules": list(settings.module_set.modules),
                    "excludedPatches": list(settings.excluded_patches),
                    "names": {"nuaEvent": settings.nua_event, "eslEvent": settings.esl_event},
                },
                "internalParameters": {
                    "series": image.labels.get(f"{LABEL}.series", ""),
                    "inputs": image.labels.get(cache.INPUTS, ""),
                },
                "resolvedDependencies": [
                    *_toolkit(),
                    *_upstreams(settings.sources, image),
                    *_base(settings.base_image, client, image),
                ],
            },
            "runDetails": {
                "builder": {"id": _builder(), "version": _versions(client)},
                "metadata": _metadata(),
                "byproducts": [_file(path) for path in byproducts],
            },
        },
        Provenance(),
    )
    subject = ResourceDescriptor(name=name, digest={"sha256": digest.removeprefix("sha256:")})
    made = Statement([subject.pb], PREDICATE, MessageToDict(predicate))
    made.validate()
    return str(MessageToJson(made.pb, indent=2, sort_keys=True)) + "\n"


def _toolkit() -> list[dict[str, Any]]:
    """Return this project at its commit; nothing outside of a git clone."""
    try:
        commit = git.local(ROOT, "rev-parse", "HEAD").strip()
    except ToolkitError:
        return []
    where = {"uri": f"git+{_github()}"} if "GITHUB_REPOSITORY" in os.environ else {"name": "toolkit"}
    return [{**where, "digest": {"gitCommit": commit}}]


def _upstreams(sources: Iterable[Source], image: Image) -> list[dict[str, Any]]:
    return [
        {
            "name": source.name,
            "uri": f"git+{source.url}" + (f"@refs/tags/{source.tag}" if source.tag else ""),
            "digest": {"gitCommit": image.labels.get(f"{LABEL}.{source.name}", source.commit)},
        }
        for source in sources
    ]


def _base(base: str, client: DockerClient, image: Image) -> list[dict[str, Any]]:
    """Return the base image `base`, as the labels of `image` or, failing that, this machine know it."""
    name, digest = image.labels.get(BASE_NAME, base), image.labels.get(BASE_DIGEST, "")
    if not digest:
        known = engine.images(client, base)
        digest = str(known[0].id) if known else ""
    return [{"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}] if digest else []


def _file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"name": path.name, "digest": {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}}


def _builder() -> str:
    """Return who built: the workflow on GitHub, any machine elsewhere."""
    reference = os.environ.get("GITHUB_WORKFLOW_REF")
    return f"{os.environ['GITHUB_SERVER_URL']}/{reference}" if reference else LOCAL_BUILDER


def _versions(client: DockerClient) -> dict[str, str]:
    return {"docker": str(client.version()["Version"]), "python": platform.python_version()}


def _metadata() -> dict[str, str]:
    """Return which run of a workflow it was; the times of the build are not known."""
    run = os.environ.get("GITHUB_RUN_ID")
    if not run:
        return {}
    attempt = os.environ.get("GITHUB_RUN_ATTEMPT", "1")
    return {"invocationId": f"{_github()}/actions/runs/{run}/attempts/{attempt}"}


def _github() -> str:
    return f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}"
