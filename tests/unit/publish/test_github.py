"""What the pipeline leaves on GitHub, with a gh that keeps its issues and releases in a file."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.patchset import trials
from scripts.patchset.trials import Trial
from scripts.pins.settings import Settings
from scripts.publish import github

# The part of gh that is used; like gh, it refuses what it does not know.
GH = """#!{python}
import argparse, json, pathlib, sys
state = pathlib.Path("{state}")
data = json.loads(state.read_text())
parser = argparse.ArgumentParser(exit_on_error=False)
subject = parser.add_subparsers(dest="subject", required=True)
def command(group, name, *positional):
    found = group.add_parser(name)
    for argument in positional:
        found.add_argument(argument, **({{"nargs": "*"}} if argument == "files" else {{}}))
    return found
issue = subject.add_parser("issue").add_subparsers(dest="verb", required=True)
listing = command(issue, "list")
for option in ("--label", "--state", "--limit", "--json"):
    listing.add_argument(option, required=True)
create = command(issue, "create")
for option in ("--title", "--label", "--body-file"):
    create.add_argument(option, required=True)
command(issue, "edit", "number").add_argument("--body-file", required=True)
command(issue, "close", "number").add_argument("--comment", required=True)
label = command(subject.add_parser("label").add_subparsers(dest="verb", required=True), "create", "name")
label.add_argument("--force", action="store_true")
label.add_argument("--color")
label.add_argument("--description")
release = subject.add_parser("release").add_subparsers(dest="verb", required=True)
command(release, "view", "tag").add_argument("--json", required=True)
upload = command(release, "upload", "tag", "files")
upload.add_argument("--clobber", action="store_true")
new = command(release, "create", "tag", "files")
new.add_argument("--verify-tag", action="store_true")
new.add_argument("--latest", default="true")
new.add_argument("--prerelease", action="store_true")
for option in ("--title", "--notes-file"):
    new.add_argument(option, required=True)
options = parser.parse_args()
data["calls"].append(f"{{options.subject}} {{options.verb}}")
if data["refuse"] in data["calls"]:
    sys.exit("HTTP 403: Resource not accessible by integration")
if options.subject == "label":
    data["labels"].append(options.name)
elif options.subject == "issue" and options.verb == "list":
    print(json.dumps([{{"number": number}} for number, one in enumerate(data["issues"], 1)
                      if one["open"] and one["label"] == options.label]))
elif options.subject == "issue" and options.verb == "create":
    if options.label not in data["labels"]:
        sys.exit(f"could not add label: '{{options.label}}' not found")
    data["issues"].append({{"open": True, "label": options.label, "title": options.title, "body": sys.stdin.read()}})
    print(f"https://git.example.org/voip/toolkit/issues/{{len(data['issues'])}}")
elif options.subject == "issue":
    one = data["issues"][int(options.number) - 1]
    if options.verb == "edit":
        one["body"] = sys.stdin.read()
    else:
        one["open"] = False
else:
    page = data["releases"].get(options.tag)
    if options.verb == "create":
        data["releases"][options.tag] = {{
            "notes": sys.stdin.read(), "latest": options.latest, "early": options.prerelease, "files": options.files
        }}
    elif page is None:
        sys.exit("release not found")
    elif options.verb == "upload":
        page["files"] = options.files
    else:
        print(json.dumps({{"url": f"https://git.example.org/voip/toolkit/releases/tag/{{options.tag}}"}}))
state.write_text(json.dumps(data))
"""
GOOD = Trial("freeswitch", "0123456789ab", (), 37, True)
BAD = Trial("freeswitch", "ba9876543210", (), 37, False, 0, 2, "0001-x.patch: hunk 1 of sofia.c does not match it")


@pytest.fixture
def gh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Put a gh on PATH and return a function that returns what it has done."""
    state, tool = tmp_path / "state.json", tmp_path / "bin/gh"
    empty = {"issues": [], "labels": [], "releases": {}, "calls": [], "refuse": ""}
    state.write_text(json.dumps(empty))
    tool.parent.mkdir()
    tool.write_text(GH.format(python=sys.executable, state=state))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    return lambda: json.loads(state.read_text())


def quiet() -> Console:
    return Console(file=io.StringIO())


def tried(settings: Settings, *found: Trial) -> Path:
    """Write the outcome of `inv matrix --tip` and return the directory that it is in."""
    trials.write(found, settings.report_directory / trials.TIP_FILE)
    return settings.report_directory


def test_issue_is_opened_once_kept_up_to_date_and_closed(settings: Settings, gh: Callable[[], dict[str, Any]]) -> None:
    assert github.tell_of_tip(tried(settings, GOOD), quiet()) == ""
    assert gh()["issues"] == []

    assert github.tell_of_tip(tried(settings, BAD), quiet()) == "opened https://git.example.org/voip/toolkit/issues/1"
    (issue,) = gh()["issues"]
    assert issue["title"] == "The series does not apply to the newest upstream"
    assert "| freeswitch | ba9876543210 | **no** | 37 | 0 | 2 |" in issue["body"]
    assert "hunk 1 of sofia.c does not match it" in issue["body"]

    worse = Trial("sofia-sip", "ffffffffffff", (), 71, False, why="0003-y.patch: another")
    assert github.tell_of_tip(tried(settings, BAD, worse), quiet()) == "brought issue 1 up to date"
    (issue,) = gh()["issues"]
    assert "ffffffffffff" in issue["body"] and issue["open"]

    assert github.tell_of_tip(tried(settings, GOOD), quiet()) == "closed issue 1"
    assert not gh()["issues"][0]["open"]
    assert github.tell_of_tip(tried(settings, BAD), quiet()).endswith("/issues/2")


def test_issue_has_nothing_but_the_tip(settings: Settings, gh: Callable[[], dict[str, Any]]) -> None:
    trials.write([GOOD] * 3, settings.report_directory / trials.MATRIX_FILE)
    github.tell_of_tip(tried(settings, BAD), quiet())
    assert "Releases of the upstreams" not in gh()["issues"][0]["body"]


def test_without_an_outcome_nothing_is_said(settings: Settings, gh: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(ToolkitError, match=r"tip\.json is missing: run `inv matrix --tip`"):
        github.tell_of_tip(settings.report_directory)
    settings.report_directory.mkdir(parents=True)
    (settings.report_directory / trials.TIP_FILE).write_text("[]")
    with pytest.raises(ToolkitError, match=r"tip\.json is not an outcome of"):
        github.tell_of_tip(settings.report_directory)
    assert gh()["calls"] == []


def test_refusal_is_one_line(settings: Settings, gh: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({**gh(), "refuse": "issue create"}))
    with pytest.raises(ToolkitError, match=r"gh issue create failed \(HTTP 403: .*\): is GH_TOKEN set") as error:
        github.tell_of_tip(tried(settings, BAD), quiet())
    assert "\n" not in str(error.value)


def test_without_gh(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolkitError, match="there is no gh command: install it"):
        github.tell_of_tip(tried(settings, BAD), quiet())


@pytest.fixture
def released(settings: Settings, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes the record of a push, and a project of version 1.2.3."""

    def make(*tags: str, version: str = "1.2.3") -> Path:
        settings.report_directory.mkdir(parents=True, exist_ok=True)
        record = {"repository": "r.example.org/fs", "tags": tags, "digest": "sha256:12", "image": "sha256:34"}
        (settings.report_directory / "push.json").write_text(json.dumps(record))
        (settings.report_directory / "digest.txt").write_text("12  r.example.org/fs\n")
        (settings.report_directory / "logs").mkdir(exist_ok=True)
        (tmp_path / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
        return tmp_path

    return make


def test_release_page_has_the_digest_and_the_reports(
    settings: Settings, gh: Callable[[], dict[str, Any]], released: Callable[..., Path]
) -> None:
    project = released("1.2.3", "1.2", "1", "latest")
    address = "https://git.example.org/voip/toolkit/releases/tag/v1.2.3"
    assert github.release(settings.report_directory, quiet(), project) == address
    page = gh()["releases"]["v1.2.3"]
    assert "`r.example.org/fs@sha256:12`" in page["notes"] and page["latest"] == "true"
    assert [Path(file).name for file in page["files"]] == ["digest.txt", "push.json"]
    # A repeated run brings the files up to date.
    (settings.report_directory / "image.json").write_text("{}")
    assert github.release(settings.report_directory, quiet(), project) == address
    page = gh()["releases"]["v1.2.3"]
    assert [Path(file).name for file in page["files"]] == ["digest.txt", "image.json", "push.json"]
    assert gh()["calls"].count("release create") == 1


def test_release_page_of_an_older_version_is_not_the_latest(
    settings: Settings, gh: Callable[[], dict[str, Any]], released: Callable[..., Path]
) -> None:
    github.release(settings.report_directory, quiet(), released("1.2.3", "1.2"))
    page = gh()["releases"]["v1.2.3"]
    assert (page["latest"], page["early"]) == ("false", False)


def test_release_page_of_a_pre_release_says_so(
    settings: Settings, gh: Callable[[], dict[str, Any]], released: Callable[..., Path]
) -> None:
    github.release(settings.report_directory, quiet(), released("1.3.0rc1", version="1.3.0rc1"))
    page = gh()["releases"]["v1.3.0rc1"]
    assert (page["latest"], page["early"]) == ("false", True)


def test_release_page_of_what_was_not_pushed(
    settings: Settings, gh: Callable[[], dict[str, Any]], released: Callable[..., Path]
) -> None:
    with pytest.raises(ToolkitError, match=r"nothing was pushed: .*push\.json is missing, run `inv push`"):
        github.release(settings.report_directory, quiet())
    with pytest.raises(ToolkitError, match=r"what was pushed \(edge\) is not v1\.2\.3: push the version first"):
        github.release(settings.report_directory, quiet(), released("edge"))
    assert gh()["releases"] == {}
