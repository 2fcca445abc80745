"""The project's files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from scripts.errors import ToolkitError

ROOT = Path(__file__).resolve().parents[2]


def short(path: Path) -> str:
    """Return `path` relative to the project if it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def remove(path: Path) -> None:
    """Remove the directory `path` if it is there."""
    if path.exists():
        shutil.rmtree(path)


def keep(path: Path, content: bytes) -> str:
    """Write `content` to `path`, a file that somebody is told of; return the path as it is to be shown.

    Raises ToolkitError if that is not possible.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ToolkitError(f"can't write {path}: {error.strerror}") from None
    return short(path)


def first_line(output: bytes) -> str:
    """Return the first line of `output` that has something on it, 200 characters at most."""
    lines = (" ".join(line.split()) for line in output.decode(errors="replace").splitlines())
    return next((line for line in lines if line), "")[:200]


def read_yaml(path: Path) -> Any:
    """Return what the YAML file `path` holds.

    Raises ToolkitError, with the name of the file, if it cannot be read, is
    not YAML, or has a key twice.
    """
    yaml = YAML(typ="safe", pure=True)
    # As Invoke reads its file.
    yaml.version = (1, 1)
    try:
        return yaml.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToolkitError(f"{path.name}: {error.strerror}", f"take it back (`git checkout {short(path)}`)") from error
    except UnicodeDecodeError as error:
        raise ToolkitError(f"{path.name}: is not UTF-8 ({error.reason})", "save it as that") from error
    except MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = " ".join(str(error.problem).split())
        raise ToolkitError(f"{path.name}: is not YAML ({where}{problem})", "correct it") from error
    except YAMLError as error:
        raise ToolkitError(f"{path.name}: is not YAML ({' '.join(str(error).split())})", "correct it") from error
