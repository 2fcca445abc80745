"""The context of the subscriber's image."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from scripts import example


def test_example_has_a_name_of_its_own(root: Path) -> None:
    """Not that of its directory, `compose`, which other projects have as well."""
    name = "freeswitch-tp-error-example"
    assert f"COMPOSE_PROJECT_NAME={name}" in (example.DIRECTORY / ".env").read_text().splitlines()
    assert f"`{name}`" in (root / "docs/deployment.md").read_text()


def test_context_of_the_subscriber_is_all_python(tmp_path: Path) -> None:
    context = example.make_context(tmp_path / "context")
    files = [path for path in context.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".so", ".pyc")]
    # It starts without anything of this environment, and says what it misses.
    outcome = subprocess.run(
        ["python3", "-S", "-m", "scripts.freeswitch.subscriber"],
        cwd=context / "toolkit",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(context / "packages")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("error: no password for the event socket at 127.0.0.1:8021")
    assert json.dumps(outcome.stdout) == '""'
