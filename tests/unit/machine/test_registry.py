"""Names and logins of registries."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.errors import ToolkitError
from scripts.machine import registry as registry_module

USER, PASSWORD = "ann", "correct horse"


@pytest.mark.parametrize(
    ("repository", "host"),
    [
        ("registry.example.org/voip/freeswitch", "registry.example.org"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000"),
        ("localhost/x", "localhost"),
        ("voip/freeswitch", "docker.io"),
        ("freeswitch", "docker.io"),
    ],
)
def test_host_of_a_repository(repository: str, host: str) -> None:
    assert registry_module.host(repository) == host


@pytest.mark.parametrize("missing", [registry_module.USER, registry_module.PASSWORD])
def test_missing_variable_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (registry_module.USER, registry_module.PASSWORD):
        monkeypatch.setenv(variable, "" if variable == missing else "x")
    with pytest.raises(ToolkitError, match=f"variable {missing} is not set: it is needed to log in to a.example.org"):
        registry_module.login("a.example.org/x")


def test_password_is_neither_an_argument_nor_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A docker that writes down what it is called with, and shows its input."""
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$*" > "$0.arguments"\necho "denied for $(cat)" >&2\nexit 1\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv(registry_module.USER, USER)
    monkeypatch.setenv(registry_module.PASSWORD, PASSWORD)
    with pytest.raises(ToolkitError, match=r"^a\.example\.org refuses the login of ann \(denied for \*\*\*\): check"):
        registry_module.login("a.example.org/x")
    assert (tmp_path / "docker.arguments").read_text() == "login --username ann --password-stdin a.example.org\n"
