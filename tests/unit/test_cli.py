"""How a task ends: on a signal, and if its output can't be written."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.cli import status
from scripts.errors import Terminated, ToolkitError
from scripts.machine.files import ROOT
from tests.conftest import PATIENCE

SLEEP = """
import sys, time
from pathlib import Path
from invoke import Collection, Context, Program
from scripts.cli import command

@command()
def sleep(context: Context, set_: list[str]) -> None:
    try:
        print("ready", flush=True)
        time.sleep({time})
    finally:
        # As a display of progress does.
        print("cleaning", flush=True)
        Path({mark!r}).touch()

Program(namespace=Collection(sleep)).run(["inv", "sleep"])
"""


def sleep(mark: Path, seconds: float = 60) -> list[str]:
    """Return the command of a task that sleeps, and touches `mark` when it cleans up."""
    return [sys.executable, "-c", SLEEP.format(mark=str(mark), time=seconds)]


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        (signal.SIGINT, 130, "interrupted\n"),
        (signal.SIGTERM, 143, "terminated\n"),
        (signal.SIGHUP, 129, "hung up\n"),
    ],
)
def test_task_that_a_signal_ends(tmp_path: Path, number: signal.Signals, status: int, words: str) -> None:
    with subprocess.Popen(
        sleep(tmp_path / "mark"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=PATIENCE) == ("cleaning\n", words)
    assert process.returncode == status
    assert (tmp_path / "mark").exists()


def test_task_whose_terminal_is_closed(tmp_path: Path) -> None:
    """It cleans up, though nothing can be printed any more."""
    ours, theirs = pty.openpty()
    # The leader of a session takes the first terminal that it opens.
    opens = f"import os; os.close(os.open({os.ttyname(theirs)!r}, os.O_RDWR))\n"
    command = sleep(tmp_path / "mark")
    command[-1] = opens + command[-1]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        assert os.read(ours, 100).startswith(b"ready")
        os.close(ours)
        assert process.wait(timeout=PATIENCE) == 129
    assert (tmp_path / "mark").exists()


def test_hangup_that_is_ignored_ends_nothing(tmp_path: Path) -> None:
    command = ["nohup", *sleep(tmp_path / "mark", 1)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.communicate(timeout=PATIENCE) == ("cleaning\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("cause", "code"),
    [(KeyboardInterrupt(), 130), (Terminated(), 143), (Terminated(signal.SIGHUP), 129), (ValueError(), 1)],
)
def test_status_is_that_of_the_signal_that_an_error_came_of(cause: BaseException, code: int) -> None:
    error = ToolkitError("broken off")
    error.__cause__ = cause
    assert status(error) == code


PRINT = """
from pathlib import Path
from invoke import Collection, Context, Program
from rich import get_console
from scripts.cli import command

@command()
def show(context: Context, set_: list[str]) -> None:
    {code}

Program(namespace=Collection(show)).run(["inv", "show"])
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("code", "output", "line"),
    [
        ("print('x')", "/dev/full", "the standard output can't be written (No space left on device): make room"),
        ("get_console().print('x')", "/dev/full", "the standard output can't be written (No space left"),
        ("open('/dev/full', 'w', 1).write('x\\n')", "/dev/null", "system: No space left on device"),
        ("Path('/nowhere').read_text()", "/dev/full", "/nowhere: No such file or directory"),
    ],
)
def test_output_that_cannot_be_written(code: str, output: str, line: str, unbuffered: str) -> None:
    with open(output, "w") as file:
        done = subprocess.run(
            [sys.executable, "-c", PRINT.format(code=code)],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.stderr.startswith(f"error: {line}") and len(done.stderr.splitlines()) == 1
    assert done.returncode == 1
