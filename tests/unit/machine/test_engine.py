from __future__ import annotations

import socket
from pathlib import Path

import pytest
from requests.exceptions import ReadTimeout

from scripts.errors import ToolkitError
from scripts.machine import engine


def connect() -> ToolkitError:
    with pytest.raises(ToolkitError) as raised, engine.connect():
        pass
    return raised.value


def test_engine_that_hangs_is_told_from_one_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ANSWER", 0.2)
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    try:
        raise ReadTimeout
    except ReadTimeout:
        # Of something else.
        error = connect()
    assert "not reachable" in error.what and str(path) in error.what
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(path))
        hanging.listen()
        error = connect()
    assert f"{path} takes connections and does not answer" in error.what
    assert "restart" in error.remedy
