"""What the tests of this folder share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.image.parts import Parts


@pytest.fixture(scope="session")
def parts_of_all(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Return the entrypoint's files of functions, for tests that change nothing there."""
    return Parts(tmp_path_factory.mktemp("parts")).make()


@pytest.fixture
def parts(parts_of_all: Parts, tmp_path: Path) -> Parts:
    """Return the entrypoint's files of functions in a directory of the test's own."""
    shutil.copytree(parts_of_all.root, tmp_path, dirs_exist_ok=True)
    return Parts(tmp_path)
