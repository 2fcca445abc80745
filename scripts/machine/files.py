"""The project's files."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def short(path: Path) -> str:
    """Return `path` relative to the project if it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def remove(path: Path) -> None:
    """Remove the directory `path` if it is there."""
    if path.exists():
        shutil.rmtree(path)
