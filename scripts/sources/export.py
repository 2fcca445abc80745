"""Export the files of a tree, without those that are not built, as a tar."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from pathlib import Path

from scripts.errors import ToolkitError
from scripts.machine.files import short
from scripts.machine.git import OwnGit, environment, local
from scripts.pins.settings import Source
from scripts.sources.trees import committed, require

# Raise when the format of the exported tar changes.
EXPORT_VERSION = 1


def export(source: Source, target: Path) -> None:
    """Write the tree of `source` at its pin to the tar file `target`.

    Patches and excluded paths are left out; the same pin and excludes always
    give the same bytes. `<target>.key` tells the next call that nothing is
    left to do. Raises ToolkitError if the tree is missing or incomplete.
    """
    sidecar = target.with_name(target.name + ".key")
    key = json.dumps([EXPORT_VERSION, source.name, source.commit, source.exclude])
    if target.exists() and sidecar.exists() and sidecar.read_text() == key:
        return
    require(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    sidecar.unlink(missing_ok=True)
    partial = target.with_name(target.name + ".partial")
    try:
        _write_tar(source, partial)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    sidecar.write_text(key)


def _write_tar(source: Source, target: Path) -> None:
    path = source.path
    excluded = _excluded(source)
    when = committed(source)
    git = OwnGit(path)
    git.update_environment(**environment(path))
    try:
        with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
            for entry in local(path, "ls-tree", "-r", "-z", source.commit).split("\0"):
                meta, _, name = entry.partition("\t")
                if not name or name in excluded:
                    continue
                mode, kind, blob = meta.split()
                if kind != "blob":
                    continue
                data = git.get_object_data(blob)[3]
                tar.addfile(*_member(name, mode, data, when))
    except ValueError as error:
        raise ToolkitError(
            f"{short(path)} is incomplete ({error})", "remove the directory and run `inv clone`"
        ) from error
    finally:
        git.clear_cache()


def _excluded(source: Source) -> set[str]:
    """Return the paths at the pin that the sparse checkout leaves out."""
    if not source.exclude:
        return set()
    with tempfile.TemporaryDirectory() as directory:
        index = Path(directory) / "index"
        local(source.path, "read-tree", source.commit, index=index)
        patterns = [f"--exclude={pattern}" for pattern in source.exclude]
        return set(local(source.path, "ls-files", "-z", "-c", "-i", *patterns, index=index).split("\0"))


def _member(name: str, mode: str, data: bytes, when: int) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.mtime = when
    if mode == "120000":
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, data.decode(), 0o777
        return info, io.BytesIO()
    info.size, info.mode = len(data), 0o755 if mode == "100755" else 0o644
    return info, io.BytesIO(data)
