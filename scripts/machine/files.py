"""The project's files."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
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


def write(path: Path, content: str | bytes) -> str:
    """Write `content` to `path` at one stroke; return the path as it is to be shown.

    Raises ToolkitError if that is not possible; what was there is then as it was.
    """
    try:
        with replacing(path) as file:
            file.write(content if isinstance(content, bytes) else content.encode(errors="surrogateescape"))
    except OSError as error:
        raise ToolkitError(f"can't write {short(path)}: {error.strerror or error}", remedy(error)) from None
    return short(path)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Hand over a file that becomes `path`, which others may read, if all goes well; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        # mkstemp makes it private.
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def locked(directory: Path, console: Console) -> Iterator[None]:
    """Keep other runs of the toolkit from `directory`; wait for one that is at work, and say so."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"waiting for another run in {short(directory)}", soft_wrap=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remedy(error: OSError) -> str:
    """Return what to do about a file that could not be written."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "make room there (`df`)"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "give yourself the right to write there, or name another directory in invoke.yaml"
    return "name another directory in invoke.yaml"


def open_to_all(directory: Path) -> None:
    """Let everybody read what is in `directory`, and run what its owner may.

    Docker copies and mounts with the modes, FreeSWITCH runs as a user of its own, and the umask may be strict.
    """
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def first_line(output: bytes) -> str:
    """Return the first line of `output` that has something on it, 200 characters at most."""
    lines = (" ".join(line.split()) for line in output.decode(errors="replace").splitlines())
    return next((line for line in lines if line), "")[:200]


def read_yaml(path: Path, shown: str = "") -> Any:
    """Return what the YAML file `path` holds.

    Raises ToolkitError, with the name of the file or what is to be `shown` for
    it, if it cannot be read, is not YAML, or has a key twice.
    """
    yaml = YAML(typ="safe", pure=True)
    # As Invoke reads its file.
    yaml.version = (1, 1)
    try:
        return yaml.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToolkitError(
            f"{shown or path.name}: {error.strerror}", f"write it, or take it back (`git checkout {short(path)}`)"
        ) from error
    except UnicodeDecodeError as error:
        raise ToolkitError(f"{shown or path.name}: is not UTF-8 ({error.reason})", "save it as that") from error
    except MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = " ".join(str(error.problem).split())
        raise ToolkitError(f"{shown or path.name}: is not YAML ({where}{problem})", "correct it") from error
    except (YAMLError, ValueError, RecursionError) as error:
        # A date or a number that is none, and brackets without end, are errors of Python.
        problem = " ".join(str(error).split())
        raise ToolkitError(f"{shown or path.name}: is not YAML ({problem})", "correct it") from error
