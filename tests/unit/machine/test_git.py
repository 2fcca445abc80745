"""Why a git failed, read from a real one."""

from __future__ import annotations

import pickle
import re
import shlex
from pathlib import Path

import pytest
from git.exc import GitCommandError

from scripts.errors import ToolkitError
from scripts.machine import git
from scripts.machine.git import Failure, GitError, Reason
from scripts.pins.settings import Settings
from scripts.sources import trees


@pytest.fixture
def tree(settings: Settings) -> Path:
    """Return the tree of "one", cloned."""
    trees.clone(settings.sources, settings.patches)
    return settings.source("one").path


def diff(before: str, old: str, new: str, file: str = "src/main.c", start: int = 9) -> str:
    """Return a patch that makes `new` of `old` between `before` and line 11."""
    head = f"diff --git a/{file} b/{file}\n--- a/{file}\n+++ b/{file}\n@@ -{start},3 +{start},3 @@\n"
    return f"{head} {before}-{old}+{new} line 11\n"


def applied(tree: Path, tmp_path: Path, text: str) -> int:
    """Apply the patch `text` to an index of its own, at HEAD."""
    mail, index = tmp_path / "mail", tmp_path / "index"
    mail.write_text(text)
    git.local(tree, "read-tree", "HEAD", index=index)
    return git.apply(tree, mail, index)


@pytest.mark.parametrize(("start", "offset"), [(9, 0), (13, 4), (7, 2)])
def test_offset(tree: Path, tmp_path: Path, start: int, offset: int) -> None:
    assert applied(tree, tmp_path, diff("line 9\n", "line 10\n", "new\n", start=start)) == offset


@pytest.mark.parametrize(
    ("text", "kind", "subject", "line", "told"),
    [
        (diff("line 9\n", "line ten\n", "new\n"), Failure.DOES_NOT_APPLY, "src/main.c", 9, "patch failed: "),
        (diff("error: patch failed\n", "x\n", "y\n"), Failure.DOES_NOT_APPLY, "src/main.c", 9, "patch failed: "),
        (diff("fatal: garbage at 7\n", "x\n", "y\n"), Failure.DOES_NOT_APPLY, "src/main.c", 9, "patch failed: "),
        (diff("a\n", "b\n", "c\n", "src/gone.c"), Failure.DOES_NOT_APPLY, "", 0, "src/gone.c: does not exist in index"),
        (diff("line 9\n", "line 10\n", "\n?\n"), Failure.CORRUPT_PATCH, "", 8, "corrupt patch at "),
    ],
)  # fmt: skip
def test_patch_that_cannot_be_applied(
    tree: Path, tmp_path: Path, text: str, kind: Failure, subject: str, line: int, told: str
) -> None:
    with pytest.raises(GitError) as caught:
        applied(tree, tmp_path, text)
    reason = caught.value.reason
    assert (reason.kind, reason.subject, reason.line) == (kind, subject, line)
    assert reason.text.startswith(told) and str(caught.value) == f"{tree}: git apply failed: {reason}"
    assert git.local(tree, "write-tree", index=tmp_path / "index") == git.local(tree, "rev-parse", "HEAD^{tree}")


def test_what_the_other_side_lacks(tree: Path) -> None:
    with pytest.raises(GitError) as reference:
        git.online(tree, "fetch", "--quiet", "origin", "refs/tags/v9")
    with pytest.raises(GitError) as thing:
        git.online(tree, "fetch", "--quiet", "origin", "0123456789" * 4)
    kinds = [(error.value.reason.kind, error.value.reason.subject) for error in (reference, thing)]
    assert kinds == [(Failure.UNKNOWN_REFERENCE, ""), (Failure.UNKNOWN_OBJECT, "0123456789" * 4)]


@pytest.mark.parametrize(
    ("told", "kind", "subject"),
    [
        ("fatal: Unable to create '/a b/index.lock': Permission denied", Failure.NO_PERMISSION, "/a b/index.lock"),
        ("error: could not lock config file /a/config: Permission denied", Failure.NO_PERMISSION, "/a/config"),
        (
            "error: insufficient permission for adding an object to repository database .git/objects\nfatal: x",
            Failure.NO_PERMISSION,
            ".git/objects",
        ),
        ("git@host: Permission denied (publickey).\nfatal: Could not read", Failure.OTHER, ""),
        ("fatal: detected dubious ownership in repository at '/it's'\nTo add", Failure.FOREIGN_OWNER, "/it's"),
        ("fatal: write error: No space left on device", Failure.FULL_DISK, "No space left on device"),
    ],
)  # fmt: skip
def test_files_and_disks(told: str, kind: Failure, subject: str) -> None:
    reason = git.reason(GitCommandError(["git", "x"], 128, told))
    assert (reason.kind, reason.subject) == (kind, subject)
    remedy = reason.remedy(Path("/my trees"))
    last = {
        Failure.NO_PERMISSION: ["/my trees"],
        Failure.FOREIGN_OWNER: ["/it's"],
        Failure.FULL_DISK: ["clean", "prune"],
    }
    assert [shlex.split(command)[-1] for command in re.findall("`(.*?)`", remedy)] == last.get(kind, [])


def test_failure_of_no_known_kind(tree: Path) -> None:
    with pytest.raises(GitError) as caught:
        git.local(tree, "rev-parse", "--verify", "nothing")
    assert caught.value.reason == Reason(Failure.OTHER, "Needed a single revision")


def test_words_of_git_are_english(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    for call in (git.local, git.online):
        assert call(tree, "-c", "alias.told=!echo $LC_ALL $LANGUAGE", "told") == "C C\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ToolkitError("patches is missing", "clone it"), "patches is missing: clone it"),
        (ToolkitError("patches is missing"), "patches is missing"),
        (GitError("one: git am failed", Reason(Failure.OTHER, "no")), "one: git am failed: no"),
    ],
)
def test_error_is_one_line_in_another_process_too(error: ToolkitError, line: str) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert str(error) == str(other) == line
    assert vars(other) == vars(error)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GIT_COMMON_DIR", "/dev/null/nowhere"),
        ("GIT_CONFIG", "/dev/null/nowhere"),
        ("GIT_ATTR_SOURCE", "nothing"),
        ("GIT_SHALLOW_FILE", "/dev/null/nowhere"),
        ("GIT_LITERAL_PATHSPECS", "1"),
        ("GIT_DEFAULT_HASH", "sha256"),
        ("GIT_EXTERNAL_DIFF", "false"),
    ],
)
def test_variables_of_the_user_change_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    trees.clone(settings.sources, settings.patches)
    path = settings.source("one").path
    (path / "src/main.c").write_text("changed\n")
    for call in (git.local, git.online):
        assert call(path, "-c", f"alias.told=!echo ${variable}", "told") == "\n"
        assert call(path, "config", "core.bare") == "false\n"
        assert call(path, "diff", "--", "*.c").startswith("diff --git a/src/main.c")
    assert git.blob(path, "HEAD", "src/main.c").startswith("line 1\n")


def test_variables_that_reach_a_host_stay(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -i key")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody")
    assert git.online(tree, "-c", "alias.told=!echo $GIT_SSH_COMMAND $GIT_AUTHOR_NAME", "told") == "ssh -i key\n"
    given = {"GIT_AUTHOR_NAME": "Ann", "GIT_AUTHOR_EMAIL": "a@b"}
    assert git.local(tree, "var", "GIT_AUTHOR_IDENT", env=given).startswith("Ann <a@b> ")
