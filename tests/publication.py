"""What the tests of publishing share: a project with a version, a report, a saved image."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from scripts.machine import engine
from scripts.pins.settings import Settings
from tests.conftest import git

PYPROJECT = '[project]\nname = "x"\nversion = "{}"\n'


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def report(settings: Settings, image: str, passed: object = True, **changes: object) -> None:
    """Write a report of `inv verify` about `image`."""
    settings.report_directory.mkdir(parents=True, exist_ok=True)
    document = {
        "passed": passed,
        "images": [
            {"variant": "patched", "tag": "x:patched", "id": image, "labels": {}},
            {"variant": "stock", "tag": "x:stock", "id": "sha256:other", "labels": {}},
        ],
        "results": [{"image": "patched"}, {"image": "stock"}],
        **changes,
    }
    (settings.report_directory / "verify.json").write_text(json.dumps(document))


def release(path: Path, version: str) -> None:
    (path / "pyproject.toml").write_text(PYPROJECT.format(version))
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message=Release", "--allow-empty")
    git(path, "tag", f"v{version}")


def archive(settings: Settings, tags: Sequence[str], layers: Sequence[str] = ("layer.tar",), lost: int = 0) -> None:
    """Write an archive of an image as Docker does, a layer and the last `lost` bytes missing; report that it passed."""
    configuration = "{}"
    files = {
        "layer.tar": "x" * 100_000,
        "config.json": configuration,
        "manifest.json": json.dumps([{"Config": "config.json", "RepoTags": tags, "Layers": layers}]),
    }
    report(settings, f"sha256:{hashlib.sha256(configuration.encode()).hexdigest()}")
    data = engine.tar(files)
    (settings.build_directory / "image.tar").write_bytes(data[: len(data) - lost])
