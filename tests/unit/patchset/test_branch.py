"""The series as a branch: import, edit with git, export."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.machine.files import remove
from scripts.patchset import branch, series
from scripts.pins.settings import Settings, Source
from scripts.sources import trees
from tests.conftest import AUTHOR, LINES, edited, git
from tests.unit.patchset.conftest import (
    AddPatch,
    commit_all,
    everything,
    files,
    interrupt,
    patch_file,
    tree,
)


def test_import_makes_a_branch(prepared: Settings) -> None:
    path = tree(prepared)
    assert git(path, "branch", "--show-current") == trees.BRANCH
    assert git(path, "log", "--format=%s", f"{prepared.source('one').commit}..").splitlines() == ["Second", "First"]


@pytest.mark.parametrize(
    "message",
    [
        "",
        "Fix\n\n@@ -1 +1 @@\n-a\n+b\n",
        "Fix\n\n%{ x }%\n",
        "Fix\n\n%[ if ]%\n",
        f"Fix\n\nFrom {'0' * 40} Mon Sep 17 00:00:00 2001\n",
        "Fix\n\ndiff --git a/x b/x\n",
        "Fix\n\nIt was so:\n---\nNow it isn't.\n",
        "[core] Fix\n",
        "Fix\n\nIndex: a\n",
        "Fix\n\nFrom: somebody <else@example.org>\n\nMore\n",
    ],
)
def test_message_that_is_lost_in_a_patch_is_refused(prepared: Settings, message: str) -> None:
    before = files(prepared)
    edited(tree(prepared) / "src/other.c", 40)
    git(
        tree(prepared),
        "commit",
        "--quiet",
        "--all",
        "--allow-empty-message",
        "--cleanup=verbatim",
        f"--message={message}",
    )
    head = git(tree(prepared), "rev-parse", "HEAD")
    with pytest.raises(ToolkitError, match=f"commit {head[:12]} in .* can't be a patch: ") as caught:
        branch.export_series(prepared)
    assert "\n" not in str(caught.value)
    assert (files(prepared), git(tree(prepared), "rev-parse", "HEAD")) == (before, head)
    assert git(tree(prepared), "branch", "--show-current") == trees.BRANCH


@pytest.mark.parametrize("content", [b"\0\1\2", b"a %{ x }% b\n", b"%[ if x ]%\n", b"a\r\n"], ids=repr)
def test_file_that_is_lost_in_a_patch_is_refused(prepared: Settings, content: bytes) -> None:
    before = files(prepared)
    (tree(prepared) / "added").write_bytes(content)
    commit_all(tree(prepared), "Add a file")
    head = git(tree(prepared), "rev-parse", "HEAD")
    with pytest.raises(ToolkitError, match=f"commit {head[:12]} in .* can't be a patch: "):
        branch.export_series(prepared)
    assert (files(prepared), git(tree(prepared), "rev-parse", "HEAD")) == (before, head)


@pytest.mark.parametrize("variable", ["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL"])
@pytest.mark.parametrize("value", ['"A. U." Thor', "Ann (of two) Author", "Änn Äuthor", "a, b", "x@y"])
def test_author_survives_or_is_refused(prepared: Settings, variable: str, value: str) -> None:
    before = files(prepared)
    edited(tree(prepared) / "src/other.c", 40)
    environment = {**os.environ, **AUTHOR, variable: value}
    subprocess.run(["git", "commit", "-qam", "More"], cwd=tree(prepared), env=environment, check=True)
    head = git(tree(prepared), "log", "-1", "--format=%h %an %ae %ad %B")
    try:
        branch.export_series(prepared)
    except ToolkitError as error:
        assert "its author would come back as" in str(error)
        assert files(prepared) == before
    else:
        assert git(tree(prepared), "log", "-1", "--format=%an %ae %ad %B") == head.split(" ", 1)[1]


def test_export_writes_no_noise(prepared: Settings) -> None:
    text = patch_file(prepared, "0002").read_text()
    assert text.startswith(f"From {'0' * 40} Mon Sep 17 00:00:00 2001\n")
    assert "\nindex " not in text and "\n-- \n" not in text
    assert "@@ -29,3 +29,3 @@\n line 29\n-line 30\n+changed 30\n line 31\n" in text


def test_round_trip_changes_nothing(prepared: Settings) -> None:
    before = files(prepared)
    for _ in range(2):
        branch.import_series(prepared)
        assert not any(item.changed for item in branch.export_series(prepared))
    assert files(prepared) == before


def test_edited_commit_is_exported_and_the_others_stay(prepared: Settings) -> None:
    before = files(prepared)
    edited(tree(prepared) / "src/other.c", 20)
    git(tree(prepared), "commit", "--quiet", "--all", "--amend", "--no-edit")
    output = io.StringIO()
    branch.export_series(prepared, Console(file=output, width=500))
    assert output.getvalue().splitlines() == [
        f"one: 1 of 2 patches written in {prepared.patches}",
        f"two: 1 patches unchanged in {prepared.patches}",
    ]
    after = files(prepared)
    assert [name for name in after if after[name] != before.get(name)] == [str(patch_file(prepared, "0002"))]
    assert "+changed 20\n" in patch_file(prepared, "0002").read_text()
    # The toolkit knows its own series again, and nothing keeps it from the tree.
    assert series.apply(prepared)[0].action == series.Action.ALREADY
    branch.import_series(prepared)


def test_new_and_dropped_commits(prepared: Settings) -> None:
    path = tree(prepared)
    git(path, "reset", "--quiet", "--hard", "HEAD~1")
    edited(path / "src/other.c", 40)
    (path / "src/other.c").write_text((path / "src/other.c").read_text() + f"{prepared.nua_event}\n")
    commit_all(path, "Another one")
    item = branch.export_series(prepared)[0]
    names = [file.name for file in sorted((prepared.patches / "one").iterdir())]
    assert names == ["0001-first.patch", "0002-Another-one.patch"]
    assert (item.written, item.removed) == (("0002-Another-one.patch",), ("0002-second.patch",))
    assert "+%{ nua_event }%\n" in patch_file(prepared, "0002").read_text()
    assert branch.export_series(prepared)[0].changed is False


def test_conditions_and_variables_survive(prepared: Settings) -> None:
    path = patch_file(prepared, "0001")
    text = path.read_text()
    condition = '%[ if one < "0.9" ]%\n line two\n%[ else ]%\n line 2\n%[ endif ]%\n'
    assert text.count(" line 2\n") == 1
    path.write_text(text.replace(" line 2\n", condition).replace("+changed 3\n", "+%{ nua_event }%\n"))
    written = path.read_bytes()
    branch.import_series(prepared)
    edited(tree(prepared) / "src/main.c", 57)
    commit_all(tree(prepared), "More")
    branch.export_series(prepared)
    assert path.read_bytes() == written
    edited(tree(prepared) / "src/main.c", 2)
    commit_all(tree(prepared), "More still")
    git(tree(prepared), "reset", "--quiet", "--soft", prepared.source("one").commit)
    commit_all(tree(prepared), "First")
    before = files(prepared)
    with pytest.raises(ToolkitError, match=r"0001-first\.patch:\d+: the line depends on a condition"):
        branch.export_series(prepared)
    assert files(prepared) == before


def test_patch_that_depends_on_a_condition_as_a_whole(prepared: Settings) -> None:
    path = patch_file(prepared, "0001")
    head, separator, diff = path.read_text().partition("diff --git ")
    text = f'{head}%[ if one >= "1.0" ]%\n{separator}{diff}%[ endif ]%\n'
    path.write_text(text)
    branch.import_series(prepared)
    assert not branch.export_series(prepared)[0].changed
    # Its lines can be edited, and files come before the first and behind the last.
    edited(tree(prepared) / "src/main.c", 57)
    (tree(prepared) / "added.c").write_text("new\n")
    (tree(prepared) / "zoo.c").write_text("new\n")
    git(tree(prepared), "add", "--all")
    git(tree(prepared), "reset", "--quiet", "--soft", prepared.source("one").commit)
    commit_all(tree(prepared), "First")
    branch.export_series(prepared)
    written = patch_file(prepared, "0001").read_text()
    assert written.startswith(f'{head}%[ if one >= "1.0" ]%\ndiff --git a/added.c ')
    assert "+changed 57\n" in written and written.endswith("+new\n%[ endif ]%\n")
    assert written.count("%[") == 2


def test_patch_that_is_left_out_keeps_its_file_and_number(prepared: Settings) -> None:
    path = patch_file(prepared, "0001")
    head, separator, diff = path.read_text().partition("diff --git ")
    path.write_text(f'{head}%[ if one >= "1.1" ]%\n{separator}{diff}%[ endif ]%\n')
    before = files(prepared)
    assert [patch.name[:4] for patch in series.render(prepared, prepared.source("one"))] == ["0002"]
    branch.import_series(prepared)
    assert not branch.export_series(prepared)[0].changed
    edited(tree(prepared) / "src/other.c", 40)
    commit_all(tree(prepared), "Third")
    branch.export_series(prepared)
    assert {name: text for name, text in files(prepared).items() if name in before} == before
    assert [name.name[:4] for name in sorted((prepared.patches / "one").iterdir())] == ["0001", "0002", "0003"]


@pytest.fixture
def blocks(prepared: Settings, tmp_path: Path) -> Settings:
    """Return settings with a release of "one" that has the same block of lines twice, and no patches for it."""
    upstream = tmp_path / "upstream/one"
    block = ["{\n", "\n", "}\n"]
    (upstream / "src/main.c").write_text("".join(LINES[:5] + block + LINES[5:10] + block + LINES[10:]))
    git(upstream, "commit", "--quiet", "--all", "--message=Blocks")
    commit = git(upstream, "rev-parse", "HEAD")
    git(upstream, "tag", "v2.0")
    one = dataclasses.replace(prepared.source("one"), tag="v2.0", commit=commit)
    for path in (prepared.patches / "one").iterdir():
        path.unlink()
    settings = dataclasses.replace(prepared, sources=(one, prepared.source("two")))
    remove(one.path)
    trees.clone(settings.sources, settings.patches)
    return settings


def exported_hunk(settings: Settings, edits: dict[str, str]) -> str:
    """Make the `edits` (old text: new text) of src/main.c a patch and return its only hunk, without the header."""
    path = tree(settings)
    content = (path / "src/main.c").read_text()
    for old, new in edits.items():
        assert content.count(old) == 1
        content = content.replace(old, new)
    (path / "src/main.c").write_text(content)
    commit_all(path, "Second block")
    branch.export_series(settings, base=settings)
    (file,) = (settings.patches / "one").iterdir()
    _, hunk = file.read_text().split(" @@\n")
    return hunk


def test_hunk_that_fits_in_several_places_gets_more_context(blocks: Settings) -> None:
    hunk = exported_hunk(blocks, {"line 10\n{\n\n}": "line 10\n{\n\nfound\n}"})
    assert hunk == " {\n \n+found\n }\n line 11\n"


def test_joined_hunks_have_as_much_context_above_as_below(blocks: Settings, tmp_path: Path, root: Path) -> None:
    hunk = exported_hunk(blocks, {"line 10\n{\n\n}": "line 10\n{\n\nfound\n}", "line 13\n": "changed\n"})
    # The first change needs a second line above to be unique, which makes it meet the second one.
    assert hunk == " {\n \n+found\n }\n line 11\n line 12\n-line 13\n+changed\n line 14\n line 15\n"
    wanted = (tree(blocks) / "src/main.c").read_text()
    series.revert(blocks)
    assert (tree(blocks) / "src/main.c").read_text() != wanted
    copy = tmp_path / "copy"
    shutil.copytree(tree(blocks), copy, symlinks=True)
    subprocess.run(["sh", root / "scripts/image/stages/build-patch.sh", blocks.patches / "one", copy], check=True)
    assert (copy / "src/main.c").read_text() == wanted
    before = files(blocks)
    branch.import_series(blocks)
    branch.export_series(blocks, base=blocks)
    assert files(blocks) == before


@pytest.mark.parametrize("start", ["branch", "pin"])
@pytest.mark.parametrize(
    ("module", "words"), [(branch, "checkout --quiet -B"), (series, "am"), (series, "checkout --quiet --detach")]
)
def test_interrupted_import_leaves_the_trees(
    prepared: Settings, monkeypatch: pytest.MonkeyPatch, module: ModuleType, words: str, start: str
) -> None:
    if start == "pin":
        series.revert(prepared)
        for source in prepared.sources:
            git(source.path, "branch", "-D", trees.BRANCH)
    text = patch_file(prepared, "0001").read_text()
    patch_file(prepared, "0001").write_text(text.replace("+changed 3\n", "+changed by hand\n"))
    before = everything(prepared)
    interrupt(monkeypatch, module, "local", tree(prepared, "two"), words)
    with pytest.raises(KeyboardInterrupt):
        branch.import_series(prepared)
    assert everything(prepared) == before
    branch.import_series(prepared)


def test_am_that_was_killed_is_cleared_away(prepared: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(prepared)

    def killed(source: Source, mails: list[Path]) -> None:
        (source.path / ".git/rebase-apply").mkdir()
        edited(source.path / "src/main.c", 3)
        (source.path / "new.c").write_text("half\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(series, "_am", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            branch.import_series(prepared)
        assert everything(prepared) == before


def test_import_that_fails_in_the_second_tree_leaves_the_first(prepared: Settings) -> None:
    path = next((prepared.patches / "two").iterdir())
    path.write_text(path.read_text().replace("-line 20\n", "-line twenty\n"))
    text = patch_file(prepared, "0001").read_text()
    patch_file(prepared, "0001").write_text(text.replace("+changed 3\n", "+changed by hand\n"))
    before = everything(prepared)
    with pytest.raises(ToolkitError, match=r"hunk 1 of src/main\.c .* does not apply to two v1\.0"):
        branch.import_series(prepared, base=prepared)
    assert everything(prepared) == before


def test_export_that_was_interrupted_when_the_patches_were_written(
    prepared: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(tree(prepared) / "README", 1)
    commit_all(tree(prepared), "Fourth")
    interrupt(monkeypatch, series, "local", tree(prepared), "am")
    with pytest.raises(KeyboardInterrupt):
        branch.export_series(prepared)
    assert git(tree(prepared), "log", "-1", "--format=%s", trees.BRANCH) == "Fourth"
    assert not any(item.changed for item in branch.export_series(prepared))
    assert series.apply(prepared)[0].action == series.Action.ALREADY


def test_edited_tree_is_left_alone(prepared: Settings) -> None:
    edited(tree(prepared, "two") / "src/main.c", 7)
    before = files(prepared)
    with pytest.raises(ToolkitError, match=r"two: .* has uncommitted changes \(src/main\.c\)"):
        branch.import_series(prepared)
    with pytest.raises(ToolkitError, match=r"two: .* has uncommitted changes \(src/main\.c\): commit them"):
        branch.export_series(prepared)
    assert files(prepared) == before


def test_work_that_was_not_exported_is_left_alone(prepared: Settings) -> None:
    path = tree(prepared)
    edited(path / "src/main.c", 7)
    commit_all(path, "Mine")
    with pytest.raises(ToolkitError, match=r"one: .* has commits that are not the toolkit's .*Mine"):
        branch.import_series(prepared)
    git(path, "checkout", "--quiet", "--detach", prepared.source("one").commit)
    with pytest.raises(ToolkitError, match=r"one: branch series .* has commits of yours .*Mine"):
        branch.import_series(prepared)


def elsewhere(settings: Settings) -> Settings:
    """Return `settings` that ask for a new tree of "one"."""
    one = dataclasses.replace(settings.source("one"), exclude=())
    return dataclasses.replace(settings, sources=(one, settings.source("two")))


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_branch_that_is_not_what_the_patches_make_is_not_removed(
    prepared: Settings, dropped: bool, detached: bool
) -> None:
    path = tree(prepared)
    if dropped:
        git(path, "reset", "--quiet", "--hard", "HEAD~1")
    else:
        edited(path / "src/main.c", 7)
        commit_all(path, "Mine")
    if detached:
        git(path, "checkout", "--quiet", "--detach", prepared.source("one").commit)
    before = everything(prepared)
    what = "branch series, which is not what the patches make" if dropped else r"\w+ Mine"
    for refused in (
        lambda: trees.clone(elsewhere(prepared).sources, prepared.patches),
        lambda: trees.check_unchanged(prepared.source("one")),
    ):
        with pytest.raises(ToolkitError, match=rf"^one: .*/one has local changes \({what}"):
            refused()
    assert everything(prepared) == before
    git(path, "checkout", "--quiet", trees.BRANCH)
    branch.export_series(prepared)
    assert [result.fresh for result in trees.clone(elsewhere(prepared).sources, prepared.patches)] == [True, False]


def test_branch_that_the_patches_make_is_replaced(prepared: Settings, add_patch: AddPatch) -> None:
    # An older series than that of the tree is the toolkit's own, too.
    add_patch("one", "Fourth", {"README": [1]})
    series.apply(prepared)
    assert git(tree(prepared), "log", "-1", "--format=%s", trees.BRANCH) == "Second"
    assert [result.fresh for result in trees.clone(elsewhere(prepared).sources, prepared.patches)] == [True, False]


def test_tree_that_does_not_stand_on_the_pin(prepared: Settings) -> None:
    path = tree(prepared)
    git(path, "checkout", "--quiet", "--orphan", "other")
    git(path, "commit", "--quiet", "--message=Alone")
    before = files(prepared)
    with pytest.raises(ToolkitError, match=r"one: .* does not stand on the pin .*history is too shallow"):
        branch.export_series(prepared)
    assert files(prepared) == before


def test_patches_that_the_tree_was_not_made_from_are_not_overwritten(prepared: Settings) -> None:
    path = patch_file(prepared, "0001")
    path.write_text(path.read_text().replace("+changed 3\n", "+changed by hand\n"))
    before = files(prepared)
    with pytest.raises(ToolkitError, match=r"one: .*patches has changed since the import into"):
        branch.export_series(prepared)
    branch.import_series(prepared)
    assert "changed by hand\n" in (tree(prepared) / "src/main.c").read_text()
    series.revert(prepared)
    with pytest.raises(ToolkitError, match=r"one: .* is at the pin, and would leave no patches"):
        branch.export_series(prepared)
    assert files(prepared) == before


def test_merge_and_empty_commits(prepared: Settings) -> None:
    path = tree(prepared)
    git(path, "commit", "--quiet", "--allow-empty", "--message=Nothing")
    with pytest.raises(ToolkitError, match=r"one: commit \w+ in .* changes nothing: drop it"):
        branch.export_series(prepared)
    git(path, "reset", "--quiet", "--hard", "HEAD~1")
    git(path, "checkout", "--quiet", "-b", "side", "HEAD~1")
    edited(path / "README", 1)
    commit_all(path, "Side")
    git(path, "checkout", "--quiet", trees.BRANCH)
    git(path, "merge", "--quiet", "--no-edit", "side")
    with pytest.raises(ToolkitError, match=r"one: \w+ is a merge"):
        branch.export_series(prepared)


def test_excluded_patch_is_not_lost(prepared: Settings) -> None:
    before = files(prepared)
    with pytest.raises(ToolkitError, match=r"'patches\.exclude' leaves out one/0002: export without it"):
        branch.export_series(dataclasses.replace(prepared, excluded_patches=("one/0002",)))
    assert files(prepared) == before


def test_interrupted_export_is_taken_back(prepared: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(prepared)
    edited(tree(prepared) / "README", 1)
    commit_all(tree(prepared), "Fourth")
    rename = Path.rename

    def killed(path: Path, target: str | os.PathLike[str]) -> Path:
        if path.name.endswith(".new"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        branch.export_series(prepared)
    monkeypatch.undo()
    branch.export_series(prepared)
    after = files(prepared)
    assert {name: after[name] for name in before} == before
    assert [Path(name).name for name in after if name not in before] == ["0003-Fourth.patch"]


def test_export_needs_no_rename_to_another_file_system(prepared: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    edited(tree(prepared) / "README", 1)
    commit_all(tree(prepared), "Fourth")

    def across(rename: Callable[..., None]) -> Callable[..., None]:
        def renamed(one: str | os.PathLike[str], other: str | os.PathLike[str], **options: int) -> None:
            if len({Path(path).is_relative_to(prepared.patches) for path in (one, other)}) == 2:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(one), None, str(other))
            rename(one, other, **options)

        return renamed

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, across(getattr(os, name)))
    branch.export_series(prepared)
    assert patch_file(prepared, "0003").name == "0003-Fourth.patch"
    assert sorted(path.name for path in prepared.patches.iterdir()) == ["one", "two"]


def test_real_series_is_byte_identical(real_settings: Settings, tmp_path: Path, root: Path) -> None:
    for source in real_settings.sources:
        if why := trees.unreachable(source):
            pytest.skip(f"{source.url}: {why.what}")
    for name in ("freeswitch", "sofia-sip"):
        (tmp_path / "patches" / name).mkdir(parents=True)
        for path in (root / "patches" / name).iterdir():
            (tmp_path / "patches" / name / path.name).write_bytes(path.read_bytes())
    settings = dataclasses.replace(real_settings, patches=tmp_path / "patches")
    before = files(settings)
    trees.clone(settings.sources, settings.patches)
    branch.import_series(settings)
    branch.export_series(settings)
    assert files(settings) == before
