"""Files of the project: written whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from pathlib import Path
from typing import NoReturn

import pytest
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.machine import files


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    assert files.write(path, "old") == str(path)
    assert path.stat().st_mode & 0o777 == 0o644

    def full(handle: int, mode: str) -> NoReturn:
        os.close(handle)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", full)
        with pytest.raises(ToolkitError, match=r"report\.json: No space left on device: make room there"):
            files.write(path, "new")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]
    with pytest.raises(ToolkitError, match=r"report\.json/x: File exists: name another directory"):
        files.write(path / "x", b"new")


def test_second_run_waits_for_the_first(tmp_path: Path) -> None:
    output, order = io.StringIO(), []

    def second() -> None:
        with files.locked(tmp_path, Console(file=output)):
            order.append("second")

    thread = threading.Thread(target=second)
    with files.locked(tmp_path, Console()):
        thread.start()
        while "waiting for another run in" not in output.getvalue():
            time.sleep(0.01)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


def test_strict_umask_does_not_get_into_the_image(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        (tmp_path / "conf/directory").mkdir(parents=True)
        for name in ("conf/a.xml", "conf/run.sh"):
            (tmp_path / name).touch()
        (tmp_path / "conf/run.sh").chmod(0o700)
    finally:
        os.umask(old)
    files.open_to_all(tmp_path / "conf")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"conf": 0o755, "directory": 0o755, "a.xml": 0o644, "run.sh": 0o755}
