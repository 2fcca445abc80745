"""The context of the subscriber's image."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from scripts import example
from scripts.freeswitch.subscriber import SUBCLASS
from scripts.pins.settings import load


def test_example_has_a_name_of_its_own(root: Path) -> None:
    """Not that of its directory, `compose`, which other projects have as well."""
    name = "freeswitch-tp-error-example"
    assert f"COMPOSE_PROJECT_NAME={name}" in (example.DIRECTORY / ".env").read_text().splitlines()
    assert f"`{name}`" in (root / "docs/deployment.md").read_text()


def subscriber(context: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the subscriber in its context, without anything of this environment."""
    return subprocess.run(
        ["python3", "-S", "-m", "scripts.freeswitch.subscriber"],
        cwd=context / "toolkit",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(context / "packages"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_context_of_the_subscriber_is_all_python(tmp_path: Path) -> None:
    context = example.make_context(tmp_path / "context")
    files = [path for path in context.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".so", ".pyc")]
    # It starts, and says what it misses.
    outcome = subscriber(context)
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("error: no password for the event socket at 127.0.0.1:8021")
    assert json.dumps(outcome.stdout) == '""'


def test_subscriber_needs_the_environment_only(tmp_path: Path) -> None:
    context = example.make_context(tmp_path / "context")
    assert not [path for path in (context / "toolkit").rglob("*") if path.is_file() and path.suffix != ".py"]
    wrong = subscriber(context, ESL_EVENT="sofia::a\nexit", ESL_PASSWORD="x")
    assert (wrong.returncode, wrong.stderr) == (
        1,
        "error: ESL_EVENT='sofia::a exit' is not an event subclass: give one (sofia::tp_error_report)\n",
    )
    elsewhere = subscriber(context, ESL_HOST="pbx.example.org", ESL_PORT="9021")
    assert elsewhere.stderr.startswith("error: no password for the event socket at pbx.example.org:9021")


def test_subscriber_listens_for_what_invoke_yaml_calls_the_reports() -> None:
    assert load().esl_event == SUBCLASS
