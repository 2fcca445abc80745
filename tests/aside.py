"""Runs tests side by side that mostly wait: in threads, before pytest comes to them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

# What a test is called with, and what is there as long as it runs.
Arguments = Callable[[pytest.Function], contextlib.AbstractContextManager[dict[str, Any]]]

# What a test that has begun is told by.
OUTCOME = "aside_outcome"


@contextlib.contextmanager
def ahead(items: Iterable[pytest.Function], arguments: Arguments, lanes: int) -> Iterator[None]:
    """Begin with the tests `items`, `lanes` at a time, in this order; pytest then only waits for each.

    They get their `arguments` here: fixtures that pytest makes for one test at
    a time are not for them. What has not begun when the context is left is an
    ordinary test again: pytest leaves a package, and enters it once more, if it
    is given its tests in such an order.
    """
    begun = []
    with ThreadPoolExecutor(lanes, "aside") as pool:
        for item in items:
            if not hasattr(item.obj, OUTCOME):
                test, future = item.obj, pool.submit(_run, item, item.obj, arguments)
                item.obj = _outcome(test, future)
                begun.append((item, test, future))
        try:
            yield
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for item, test, future in begun:
                if future.cancelled():
                    item.obj = test


def _run(item: pytest.Function, test: Callable[..., None], arguments: Arguments) -> None:
    with arguments(item) as given:
        test(**given)


def _outcome(test: Callable[..., None], future: Future[None]) -> Callable[..., None]:
    @functools.wraps(test)
    def wait(**_: object) -> None:
        future.result()

    setattr(wait, OUTCOME, future)
    return wait


def parameters(item: pytest.Function) -> dict[str, Any]:
    """Return the parameters of the test `item`."""
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}


def below(request: pytest.FixtureRequest) -> list[pytest.Function]:
    """Return the tests of the module or package that asks (the scope of the fixture), those that were selected."""
    return [
        item for item in request.session.items if isinstance(item, pytest.Function) and request.node in item.listchain()
    ]
