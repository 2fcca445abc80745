"""What the tasks show: how quiet they are, and the progress of long work.

On a terminal that is a spinner or a bar on a line that goes away; elsewhere
(a pipe, a log of CI) plain lines, without control characters. All print to
rich's own console, which `configure` sets up, unless they are given one.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import rich
from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Task as ProgressTask
from rich.progress_bar import ProgressBar
from rich.table import Column, Table

# Columns of tables that no terminal shows.
WIDTH = 160
# Refreshes of what moves, per second.
RATE = 5


def configure(quiet: bool = False) -> None:
    """Set up the console for a task; `quiet` keeps it from printing.

    An output that is closed takes everything, and one that does not know a
    character gets its number.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # FORCE_COLOR gives a log its colours; what moves belongs on a terminal only.
    moving = sys.stdout.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown", "")
    # Without a terminal rich takes 80 columns for granted.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH
    rich.reconfigure(quiet=quiet, highlight=False, force_interactive=moving, width=width)


def silence() -> None:
    """Print nothing more: Python flushes the standard output on its way out, and would complain that nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def let_go() -> None:
    """Print nothing more to a terminal that has been closed: that would fail."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            number = stream.fileno()
            if stat.S_ISCHR(os.fstat(number).st_mode) and not os.isatty(number):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def loud(console: Console) -> Console:
    """Return a console for what has to be said even if `console` is quiet."""
    return Console(file=console.file, highlight=False) if console.quiet else console


@dataclass
class TaskProgress:
    """The progress of one piece of long work.

    `name` says what it is; `total` counts its parts, None if that's unknown.
    It may be used from any thread.
    """

    console: Console
    name: str
    total: int | None
    _progress: Progress | None
    _id: TaskID | None = None
    _done: int = 0
    _said: str = field(default="", init=False)

    def say(self, what: str) -> None:
        """Show what is being done now."""
        if self._progress and self._id is not None:
            self._progress.update(self._id, description=f"{self.name}: {what}", refresh=what != self._said)
        elif what != self._said:
            self.console.print(f"{self.name}: {what}", soft_wrap=True, markup=False, highlight=False)
        self._said = what

    def advance(self, count: int = 1) -> None:
        """Count `count` more parts as done; off a terminal each tenth of the total is a line."""
        before, self._done = self._done, self._done + count
        if self._progress and self._id is not None:
            self._progress.update(self._id, completed=self._done, refresh=self._still)
        elif self.total and before * 10 // self.total < self._done * 10 // self.total:
            self.console.print(f"{self.name}: {self._done} of {self.total}", soft_wrap=True, markup=False)

    def at(self, done: int, total: int) -> None:
        """Show that `done` of `total` parts are done, which may be other parts than before; only on a terminal."""
        if self._progress and self._id is not None:
            self._progress.update(self._id, completed=done, total=total)

    @property
    def _still(self) -> bool:
        return self._progress is not None and not self._progress.live.auto_refresh


@dataclass
class ProgressDisplay:
    """The display of several pieces of long work at the same time."""

    console: Console
    progress: Progress | None

    @contextmanager
    def task(self, name: str, total: int | None = None) -> Iterator[TaskProgress]:
        """Show a piece of work until it is left."""
        if self.progress is None:
            yield TaskProgress(self.console, name, total, None)
            return
        identifier = self.progress.add_task(name, total=total)
        try:
            yield TaskProgress(self.console, name, total, self.progress, identifier)
        finally:
            self.progress.remove_task(identifier)


class _Bar(ProgressColumn):
    """A bar and the numbers where there is something to count, and nothing elsewhere."""

    def render(self, task: ProgressTask) -> RenderableType:
        if not task.total:
            return ""
        grid = Table.grid(padding=(0, 1))
        grid.add_row(ProgressBar(task.total, task.completed, width=20), f"{task.completed:.0f} of {task.total:.0f}")
        return grid


@contextmanager
def work(console: Console, still: bool = False) -> Iterator[ProgressDisplay]:
    """Show long work until it is left.

    With `still` nothing moves but when a task says something: what is measured
    in this process must not wait for a picture.
    """
    if not console.is_interactive:
        yield ProgressDisplay(console, None)
        return
    name = TextColumn(
        "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
    )
    columns = (SpinnerColumn(), name, _Bar(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, expand=True, auto_refresh=not still, refresh_per_second=RATE
    ) as progress:
        yield ProgressDisplay(console, progress)


@contextmanager
def task(console: Console, name: str, total: int | None = None, still: bool = False) -> Iterator[TaskProgress]:
    """Show one piece of long work until it is left."""
    with work(console, still) as shown, shown.task(name, total) as found:
        yield found


def listing(items: Iterable[str], limit: int = 5) -> str:
    """Join the first `limit` items with commas and say how many more there are."""
    every = list(items)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more


def printable(text: str) -> str:
    """Return `text`, which may be anybody's, without what a terminal obeys: that is escaped, \\x1b for ESC, say."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
