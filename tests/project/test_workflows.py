"""The workflows: their form, what they may do, and that each line is one that a laptop runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from invoke.collection import Collection
from invoke.exceptions import ParseError
from invoke.parser import Parser

import tasks
from scripts.machine.files import ROOT
from scripts.pins import releases

FILES = sorted((ROOT / ".github/workflows").glob("*.y*ml"))
PINNED = re.compile(r"\s*(?:- )?uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+){2}")
# What is given to `run` must not be spelt out in the script: others write it.
FOREIGN = re.compile(r"\$\{\{")
WRITES = {
    ("ci.yml", "cache"): {"packages"},
    ("release.yml", "push"): {"packages", "id-token", "attestations"},
    ("release.yml", "page"): {"contents"},
    ("nightly.yml", "issue"): {"issues"},
}
# Both run the code of pull requests.
SECRETLESS = {("ci.yml", job) for job in ("lint", "unit", "series", "images")}


def document(file: Path) -> dict[str, Any]:
    return yaml.load(file.read_text(), Loader=yaml.BaseLoader)  # type: ignore[no-any-return]


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for file in FILES:
        for name, job in document(file)["jobs"].items():
            yield file.name, name, job


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for file, name, job in jobs():
        for number, step in enumerate(job["steps"], 1):
            yield f"{file}-{name}-{number}", step


def lines() -> list[str]:
    return sorted({line for _, step in steps() for line in step.get("run", "").splitlines()})


JOBS = [pytest.param(file, name, job, id=f"{file}-{name}") for file, name, job in jobs()]


def test_there_are_the_three_pipelines() -> None:
    assert [file.name for file in FILES] == ["ci.yml", "nightly.yml", "release.yml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_actions_are_pinned_with_their_version(file: Path) -> None:
    used = [line for line in file.read_text().splitlines() if "uses:" in line]
    assert used
    assert [line for line in used if not PINNED.fullmatch(line)] == []


def test_one_action_has_one_version() -> None:
    used = {line.split("uses: ")[1] for file in FILES for line in file.read_text().splitlines() if "uses:" in line}
    assert len({entry.partition("@")[0] for entry in used}) == len(used)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_is_allowed_by_default(file: Path) -> None:
    assert document(file)["permissions"] == {}
    assert "pull_request_target" not in document(file)["on"]
    assert "workflow_run" not in document(file)["on"]
    assert "concurrency" in document(file)


@pytest.mark.parametrize(("file", "name", "job"), JOBS)
def test_job_has_the_least_permissions(file: str, name: str, job: dict[str, Any]) -> None:
    written = {permission for permission, access in job["permissions"].items() if access == "write"}
    assert written == WRITES.get((file, name), set())
    others = {permission for permission, access in job["permissions"].items() if access != "write"}
    assert others <= {"contents", "packages"}
    assert all(access in ("read", "write") for access in job["permissions"].values())


@pytest.mark.parametrize(("file", "name", "job"), JOBS)
def test_job_has_a_time_limit_and_a_fixed_runner(file: str, name: str, job: dict[str, Any]) -> None:
    assert 1 <= int(job["timeout-minutes"]) <= 180
    assert re.fullmatch(r"[a-z]+-[\d.]+", job["runs-on"])


@pytest.mark.parametrize(("file", "name", "job"), JOBS)
def test_checkout_leaves_no_token(file: str, name: str, job: dict[str, Any]) -> None:
    found = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert [step["with"]["persist-credentials"] for step in found] == ["false"]


@pytest.mark.parametrize(("file", "name", "job"), JOBS)
def test_code_of_pull_requests_sees_no_secret(file: str, name: str, job: dict[str, Any]) -> None:
    if document(ROOT / ".github/workflows" / file)["on"].keys() & {"pull_request"} and name != "cache":
        assert (file, name) in SECRETLESS
        assert "secrets." not in str(job)
    if (file, name) == ("ci.yml", "cache"):
        assert "github.event_name == 'push'" in job["if"]


def test_secrets_are_those_of_an_environment() -> None:
    assert {(file, name): job["environment"] for file, name, job in jobs() if "secrets." in str(job)} == {
        ("ci.yml", "cache"): "cache",
        ("release.yml", "push"): "release",
    }


def test_a_secret_is_handed_to_the_login_only() -> None:
    for place, step in steps():
        if "secrets." in str(step):
            assert step["run"] == "scripts/inv login", place
            assert all("secrets." not in str(value) for key, value in step.items() if key != "env")


def test_login_is_followed_by_logout() -> None:
    for file, name, job in jobs():
        runs = [step.get("run", "") for step in job["steps"]]
        if "scripts/inv login" in runs:
            after = job["steps"][runs.index("scripts/inv login") + 1 :]
            assert [step for step in after if step.get("run") == "scripts/inv logout" and "always()" in step["if"]], (
                f"{file} {name}"
            )


@pytest.mark.parametrize(("place", "step"), [pytest.param(place, step, id=place) for place, step in steps()])
def test_step_runs_a_task_or_is_plumbing(place: str, step: dict[str, Any]) -> None:
    if "uses" in step:
        action = step["uses"].partition("@")[0]
        allowed = {"checkout", "setup-python", "upload-artifact", "download-artifact", "attest"}
        assert action.removeprefix("actions/") in allowed
        assert "run" not in step
    else:
        assert len(step["run"].splitlines()) == 1
        assert not FOREIGN.search(step["run"])


def parse(arguments: list[str]) -> str:
    """Return the name of the task that `inv` with `arguments` runs; ParseError if it has no such task or option."""
    parser = Parser(contexts=Collection.from_module(tasks).to_contexts())
    (found,) = parser.parse_argv(arguments)
    return str(found.name)


@pytest.mark.parametrize("line", lines())
def test_line_is_one_that_a_laptop_runs(line: str) -> None:
    program, *arguments = shlex.split(line)
    if program == "bash":
        assert arguments[0] == ".ci/run"
        assert all(argument.startswith("--junitxml=") for argument in arguments[1:])
    else:
        assert program == "scripts/inv"
        assert parse(arguments)


@pytest.mark.parametrize(
    "arguments", [["lintt"], ["matrix", "--tipp"], ["push", "--cache=yes", "x"], ["summary", "-o"]]
)
def test_a_line_that_is_none_is_found(arguments: list[str]) -> None:
    with pytest.raises(ParseError):
        parse(arguments)


def test_gate_runs_what_the_jobs_run() -> None:
    gate = (ROOT / ".ci/run").read_text()
    assert "scripts/inv lint\n" in gate and "scripts/inv test " in gate


def test_unit_tests_run_on_every_supported_python() -> None:
    versions = document(ROOT / ".github/workflows/ci.yml")["jobs"]["unit"]["strategy"]["matrix"]["python"]
    project = (ROOT / "pyproject.toml").read_text()
    assert versions[0] == re.findall(r'requires-python = ">=([\d.]+)"', project)[0]
    assert len(versions) >= 3


def test_nightly_verifies_every_set_of_releases() -> None:
    chosen = document(ROOT / ".github/workflows/nightly.yml")["jobs"]["verify"]["strategy"]["matrix"]["releases"]
    assert chosen == list(releases.load().sets)


def test_release_pushes_only_what_was_verified() -> None:
    release = document(ROOT / ".github/workflows/release.yml")
    order = [step["run"] for step in release["jobs"]["verify"]["steps"] if "run" in step]
    assert order.index("scripts/inv verify") < order.index("scripts/inv save")
    assert release["jobs"]["push"]["needs"] == "verify" and "if" not in release["jobs"]["push"]
    order = [step["run"] for step in release["jobs"]["push"]["steps"] if "run" in step]
    assert order.index("scripts/inv load") < order.index("scripts/inv login") < order.index("scripts/inv push")
    # A release is compiled from the pins, not taken from a cache.
    assert "BUILD_CACHE" not in str(release)
