"""tcpdump that fails is a line of the report."""

from __future__ import annotations

from typing import Any

import pytest
from docker.errors import APIError, DockerException
from requests.exceptions import ConnectionError as RequestsConnectionError

from scripts.freeswitch import capture
from scripts.freeswitch.capture import Sniffer


class Broken:
    """An engine or a container that fails in all it is asked."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.id = "0"

    def __getattr__(self, name: str) -> Any:
        if name == "containers":
            return self

        def fail(*arguments: object, **options: object) -> None:
            raise self.error

        return fail


@pytest.mark.parametrize(
    "error",
    [DockerException("went\naway"), RequestsConnectionError("gone"), APIError("boom", explanation="no such network")],
)
def test_broken_engine_is_a_line(error: Exception) -> None:
    broken: Any = Broken(error)
    found = Sniffer(broken, "image", broken, "tcp", "name", {})
    found.start()
    assert found.problem.startswith("nothing was captured: ") and "\n" not in found.problem
    assert found.read() == (b"", found.problem)
    found.remove()
    found.container, found.problem = broken, ""
    assert found.read()[1].startswith("the capture could not be read: ")
    found.remove()
    assert found.problem.startswith("tcpdump's container stays: ")


class Ended(Broken):
    """A container that has logged its last words."""

    status = "exited"

    def __init__(self, words: bytes) -> None:
        super().__init__(DockerException())
        self.words = words

    def create(self, *arguments: object, **options: object) -> Ended:
        return self

    def start(self) -> None: ...

    def reload(self) -> None: ...

    def logs(self) -> bytes:
        return self.words


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (b"tcpdump: eth0: You don't have permission\n(socket: Operation not permitted)\n", "tcpdump: eth0: You"),
        (b"\n", "tcpdump ended at once"),
    ],
)
def test_tcpdump_that_ends_says_why(words: bytes, problem: str) -> None:
    ended: Any = Ended(words)
    found = Sniffer(ended, "image", ended, "tcp", "name", {})
    found.start()
    assert found.problem.startswith(f"nothing was captured: {problem}")


def test_tcpdump_that_never_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "START_TIMEOUT", 0.1)
    monkeypatch.setattr(Ended, "status", "running")
    ended: Any = Ended(b"hm\n")
    found = Sniffer(ended, "image", ended, "tcp", "name", {})
    found.start()
    assert found.problem == "nothing was captured: tcpdump was not ready after 0.1 s"
