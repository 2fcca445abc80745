"""What the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.image.parts import Parts


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """Return the entrypoint's files of functions in a directory of their own."""
    return Parts(tmp_path)


@pytest.fixture(scope="session")
def parts_of_all(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Return them for tests that change nothing there."""
    return Parts(tmp_path_factory.mktemp("parts"))
