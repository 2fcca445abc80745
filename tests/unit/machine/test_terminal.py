"""Progress and `--quiet`: on a terminal, in a pipe, in a log."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from scripts.machine import terminal
from scripts.machine.files import ROOT

WORK = """
import rich
from scripts.machine import terminal
terminal.configure(quiet={quiet})
console = rich.get_console()
with terminal.task(console, "building [image]", 20) as shown:
    for number in range(20):
        shown.say(f"Step {{number // 5}} [RUN]")
        shown.advance()
    shown.say("finished")
console.print("done")
"""
LINES = [
    "building [image]: Step 0 [RUN]",
    "building [image]: 2 of 20",
    "building [image]: 4 of 20",
    "building [image]: Step 1 [RUN]",
    "building [image]: 6 of 20",
]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def piped(quiet: bool = False, **environment: str) -> str:
    """What the work prints into a pipe."""
    variables = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "NO_COLOR")}
    command = [sys.executable, "-c", WORK.format(quiet=quiet)]
    return subprocess.run(
        command, cwd=ROOT, env={**variables, **environment}, capture_output=True, text=True, check=True
    ).stdout


def on_terminal(quiet: bool = False, **environment: str) -> str:
    """What the work prints on a terminal."""
    near, far = os.openpty()
    command = [sys.executable, "-c", WORK.format(quiet=quiet)]
    variables = {**os.environ, "TERM": "xterm", "COLUMNS": "100", **environment}
    with subprocess.Popen(command, cwd=ROOT, env=variables, stdin=far, stdout=far, stderr=far) as process:
        os.close(far)
        output = b""
        # Once the other end is closed, reading from a terminal is an error.
        with contextlib.suppress(OSError):
            while data := os.read(near, 65536):
                output += data
        os.close(near)
    assert process.returncode == 0
    return output.decode()


def test_pipe_gets_plain_lines() -> None:
    output = piped()
    assert output.splitlines()[:5] == LINES and output.endswith("20 of 20\nbuilding [image]: finished\ndone\n")
    assert not CONTROL.search(output)


def test_colours_that_are_forced_bring_nothing_that_moves() -> None:
    output = piped(FORCE_COLOR="1", TERM="xterm")
    assert output.splitlines()[0] == LINES[0]
    assert "\r" not in output and "\x1b[2K" not in output and "\x1b[?25l" not in output


def test_terminal_shows_what_goes_on_and_leaves_nothing() -> None:
    output = on_terminal()
    assert "Step 0 [RUN]" in output and "20 of 20" in output
    # The cursor is hidden and comes back; the line is erased before the next output.
    assert output.index("\x1b[?25l") < output.index("\x1b[?25h") < output.index("done")
    assert output.rindex("\x1b[2K") > output.rindex("[image]")


def test_dumb_terminal_gets_plain_lines() -> None:
    output = on_terminal(TERM="dumb")
    assert output.splitlines()[:5] == LINES
    assert not CONTROL.search(output.replace("\r\n", "\n"))


def test_quiet_prints_nothing() -> None:
    assert piped(quiet=True) == ""
    assert on_terminal(quiet=True) == ""


def test_table_in_a_pipe_is_wide() -> None:
    script = "import rich; from scripts.machine import terminal; terminal.configure(); print(rich.get_console().width)"
    variables = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-c", script]
    for columns, width in ((None, "160"), ("70", "70")):
        environment = {**variables, **({"COLUMNS": columns} if columns else {})}
        output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        assert output.strip() == width


def test_loud_console_prints_in_spite_of_quiet() -> None:
    output = io.StringIO()
    console = Console(file=output, quiet=True)
    console.print("news")
    terminal.loud(console).print("a failure")
    assert output.getvalue() == "a failure\n"
    ordinary = Console(file=output)
    assert terminal.loud(ordinary) is ordinary


def test_work_of_several_threads() -> None:
    output = io.StringIO()
    with (
        terminal.work(Console(file=output)) as work,
        work.task("stock", 100) as stock,
        work.task("patched") as patched,
        ThreadPoolExecutor(8) as pool,
    ):
        for _ in pool.map(lambda _: stock.advance(), range(100)):
            pass
        patched.say("starting")
        patched.say("starting")
    lines = output.getvalue().splitlines()
    assert lines.count("patched: starting") == 1
    assert "stock: 100 of 100" in lines


@pytest.mark.parametrize("still", [False, True])
def test_every_state_is_drawn(still: bool) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, force_interactive=True, width=100, _environ={"TERM": "xterm"})
    with terminal.task(console, "clone", still=still) as shown:
        shown.say("receiving objects")
        shown.at(3, 7)
        shown.say("resolving")
    assert "3 of 7" in output.getvalue() and "clone: resolving" in output.getvalue()


def test_nobody_makes_a_console_of_their_own() -> None:
    """`--quiet` holds for rich's own console; who makes another one must know why."""
    known = {"terminal.py", "watch.py"}
    for path in Path(ROOT, "scripts").rglob("*.py"):
        if path.name not in known:
            assert not re.search(r"\bConsole\(", path.read_text()), f"{path}: use rich.get_console()"
