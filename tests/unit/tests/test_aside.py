from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

MODULE = """
import contextlib, threading
import pytest
from tests import aside

barrier, ended = threading.Barrier(2), []

@contextlib.contextmanager
def arguments(item):
    yield {"place": "aside", **aside.parameters(item)}
    ended.append(item.name)

@pytest.fixture(scope="module", autouse=True)
def begin(request):
    together = [item for item in aside.below(request) if "place" in item.fixturenames]
    with aside.ahead(together, arguments, 2):
        yield

@pytest.fixture
def place():
    return "pytest"

@pytest.mark.parametrize("number", [1, 2])
def test_together(place, number):
    assert place == "aside"
    barrier.wait(60)
    assert number == 1, "wrong number"

def test_skips(place):
    pytest.skip("no reason")

def test_other():
    assert sorted(ended) == ["test_together[1]"]
"""


def test_tests_run_side_by_side(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MODULE)
    result = pytester.runpytest_inprocess("-rs", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1, skipped=1)
    result.stdout.fnmatch_lines(['*assert number == 1, "wrong number"', "E*wrong number*", "*no reason"])


def test_only_what_was_selected_runs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MODULE.replace("Barrier(2)", "Barrier(1)"))
    pytester.runpytest_inprocess("-k", "test_together and 1 or test_other", "-p", "no:cacheprovider").assert_outcomes(
        passed=2, deselected=2
    )


PACKAGE = """
import contextlib, pytest
from tests import aside

@contextlib.contextmanager
def arguments(item):
    yield {"place": "aside"}

@pytest.fixture(scope="package", autouse=True)
def begin(request):
    with aside.ahead([item for item in aside.below(request) if "place" in item.fixturenames], arguments, 1):
        yield

@pytest.fixture
def place():
    return "pytest"
"""
SLOW = """
import time

def test_slow(place):
    time.sleep(0.5)
    assert place == "aside"
"""


def test_package_may_be_left_before_its_tests_have_begun(pytester: pytest.Pytester) -> None:
    package = pytester.mkpydir("together")
    (package / "conftest.py").write_text(PACKAGE)
    (package / "test_a.py").write_text("def test_other():\n    pass\n")
    for name in "bcd":
        (package / f"test_{name}.py").write_text(SLOW)
    pytester.makepyfile(test_else="def test_else():\n    pass\n")
    order = ["together/test_a.py", "test_else.py", *(f"together/test_{name}.py" for name in "bcd")]
    pytester.runpytest_inprocess("-p", "no:cacheprovider", *order).assert_outcomes(passed=5)
