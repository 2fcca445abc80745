"""Plays many cases side by side: each waits most of its time for something to come, or not to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from scripts.scenario.table import Case

T = TypeVar("T")
# How many at once. They share one interpreter, and the machine with what they test.
PLAYERS = 8


@contextlib.contextmanager
def play(cases: Sequence[Case], act: Callable[[Case], T], players: int = PLAYERS) -> Iterator[Mapping[Case, Future[T]]]:
    """Call `act` with each of `cases` and hand over what comes of each, as futures.

    Those that must be alone are first, one after the other, then `players` of
    the others at a time. What has not begun when the context is left never does.
    """
    with ThreadPoolExecutor(1, "alone") as one, ThreadPoolExecutor(players, "player") as many:
        alone = {case: one.submit(act, case) for case in cases if case.alone}

        def after(case: Case) -> T:
            for future in alone.values():
                future.exception()
            return act(case)

        together = {case: many.submit(after, case) for case in cases if not case.alone}
        try:
            yield {**alone, **together}
        finally:
            one.shutdown(wait=False, cancel_futures=True)
            many.shutdown(wait=False, cancel_futures=True)
