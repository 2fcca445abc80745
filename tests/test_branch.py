"""The series as a branch: import, edit with git, export."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import branch, patchset, sources
from scripts.errors import ToolkitError
from scripts.settings import Settings
from tests.conftest import LINES, edited, git

AddPatch = Callable[..., Path]


@pytest.fixture
def series(settings: Settings, add_patch: AddPatch) -> Settings:
    """Return settings with two patches for "one", one for "two", all as an export writes them."""
    add_patch("one", "First", {"src/main.c": [3], "new.c": []})
    add_patch("one", "Second", {"src/main.c": [30, 55], "src/other.c": [10, 50]})
    add_patch("two", "Third", {"src/main.c": [20]})
    sources.clone(settings)
    branch.import_series(settings)
    branch.export_series(settings)
    return settings


def files(settings: Settings) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(settings.patches.rglob("*")) if path.is_file()}


def tree(settings: Settings, name: str = "one") -> Path:
    return settings.source(name).path


def patch_file(settings: Settings, start: str) -> Path:
    return next((settings.patches / "one").glob(f"{start}*.patch"))


def commit_all(path: Path, message: str) -> None:
    git(path, "add", "--all")
    git(path, "commit", "--quiet", f"--message={message}")


def test_import_makes_a_branch(series: Settings) -> None:
    path = tree(series)
    assert git(path, "branch", "--show-current") == branch.BRANCH
    assert git(path, "log", "--format=%s", f"{series.source('one').commit}..").splitlines() == ["Second", "First"]


def test_export_writes_no_noise(series: Settings) -> None:
    text = patch_file(series, "0002").read_text()
    assert text.startswith(f"From {'0' * 40} Mon Sep 17 00:00:00 2001\n")
    assert "\nindex " not in text and "\n-- \n" not in text
    assert "@@ -29,3 +29,3 @@\n line 29\n-line 30\n+changed 30\n line 31\n" in text


def test_round_trip_changes_nothing(series: Settings) -> None:
    before = files(series)
    for _ in range(2):
        branch.import_series(series)
        assert not any(item.changed for item in branch.export_series(series))
    assert files(series) == before


def test_edited_commit_is_exported_and_the_others_stay(series: Settings) -> None:
    before = files(series)
    edited(tree(series) / "src/other.c", 20)
    git(tree(series), "commit", "--quiet", "--all", "--amend", "--no-edit")
    branch.export_series(series)
    after = files(series)
    assert [name for name in after if after[name] != before.get(name)] == [str(patch_file(series, "0002"))]
    assert "+changed 20\n" in patch_file(series, "0002").read_text()
    # The toolkit knows its own series again, and nothing keeps it from the tree.
    assert patchset.apply(series)[0].action == patchset.ALREADY
    branch.import_series(series)


def test_new_and_dropped_commits(series: Settings) -> None:
    path = tree(series)
    git(path, "reset", "--quiet", "--hard", "HEAD~1")
    edited(path / "src/other.c", 40)
    (path / "src/other.c").write_text((path / "src/other.c").read_text() + f"{series.nua_event}\n")
    commit_all(path, "Another one")
    branch.export_series(series)
    names = [file.name for file in sorted((series.patches / "one").iterdir())]
    assert names == ["0001-first.patch", "0002-Another-one.patch"]
    assert "+%{ nua_event }%\n" in patch_file(series, "0002").read_text()
    assert branch.export_series(series)[0].changed is False


def test_conditions_and_variables_survive(series: Settings) -> None:
    path = patch_file(series, "0001")
    text = path.read_text()
    condition = '%[ if one < "0.9" ]%\n line two\n%[ else ]%\n line 2\n%[ endif ]%\n'
    assert text.count(" line 2\n") == 1
    path.write_text(text.replace(" line 2\n", condition).replace("+changed 3\n", "+%{ nua_event }%\n"))
    written = path.read_bytes()
    branch.import_series(series)
    edited(tree(series) / "src/main.c", 57)
    commit_all(tree(series), "More")
    branch.export_series(series)
    assert path.read_bytes() == written
    edited(tree(series) / "src/main.c", 2)
    commit_all(tree(series), "More still")
    git(tree(series), "reset", "--quiet", "--soft", series.source("one").commit)
    commit_all(tree(series), "First")
    before = files(series)
    with pytest.raises(ToolkitError, match=r"0001-first\.patch:\d+: the line depends on a condition"):
        branch.export_series(series)
    assert files(series) == before


def test_hunk_that_fits_in_several_places_gets_more_context(series: Settings, tmp_path: Path) -> None:
    upstream = tmp_path / "upstream/one"
    block = ["{\n", "\n", "}\n"]
    (upstream / "src/main.c").write_text("".join(LINES[:5] + block + LINES[5:10] + block + LINES[10:]))
    git(upstream, "commit", "--quiet", "--all", "--message=Blocks")
    commit = git(upstream, "rev-parse", "HEAD")
    git(upstream, "tag", "v2.0")
    one = dataclasses.replace(series.source("one"), tag="v2.0", commit=commit)
    for path in (series.patches / "one").iterdir():
        path.unlink()
    settings = dataclasses.replace(series, sources=(one, series.source("two")))
    sources.remove(one.path)
    sources.clone(settings)
    content = (one.path / "src/main.c").read_text()
    (one.path / "src/main.c").write_text(content.replace("line 10\n{\n\n}", "line 10\n{\n\nfound\n}"))
    commit_all(one.path, "Second block")
    branch.export_series(settings)
    (file,) = (series.patches / "one").iterdir()
    _, hunk = file.read_text().split(" @@\n")
    assert hunk == " {\n \n+found\n }\n line 11\n"


def test_carried_over_to_a_new_release_with_conflicts(series: Settings, tmp_path: Path) -> None:
    upstream = tmp_path / "upstream/one"
    edited(upstream / "src/other.c", 10, 51)
    git(upstream, "commit", "--quiet", "--all", "--message=Next")
    git(upstream, "tag", "v2.0")
    commit = git(upstream, "rev-parse", "HEAD")
    one = dataclasses.replace(series.source("one"), tag="v2.0", commit=commit)
    following = dataclasses.replace(series, sources=(one, series.source("two")))
    sources.remove(one.path)
    sources.clone(following)
    before = files(series)
    with pytest.raises(ToolkitError, match=r"one: conflicts in src/other\.c of .*cherry-pick --continue"):
        branch.import_series(following, base=series)
    assert "<<<<<<<" in (one.path / "src/other.c").read_text()
    for action in (branch.import_series, branch.export_series):
        with pytest.raises(ToolkitError, match=r"one: .* is in the middle of a `git cherry-pick`"):
            action(following)
    assert files(series) == before
    text = (one.path / "src/other.c").read_text()
    kept = [line for line in text.splitlines() if not line.startswith(("<<<<<<<", "=======", ">>>>>>>"))]
    (one.path / "src/other.c").write_text("\n".join(dict.fromkeys(kept)) + "\n")
    git(one.path, "add", "src/other.c")
    git(one.path, "-c", "core.editor=true", "cherry-pick", "--continue")
    branch.export_series(following)
    assert patchset.apply(following)[0].action == patchset.ALREADY


def test_export_from_another_release_leaves_the_line_numbers(series: Settings, tmp_path: Path) -> None:
    upstream = tmp_path / "upstream/one"
    (upstream / "src/main.c").write_text("// more\n" * 9 + "".join(LINES))
    git(upstream, "commit", "--quiet", "--all", "--message=Next")
    git(upstream, "tag", "v2.0")
    one = dataclasses.replace(series.source("one"), tag="v2.0", commit=git(upstream, "rev-parse", "HEAD"))
    following = dataclasses.replace(series, sources=(one, series.source("two")))
    sources.remove(one.path)
    sources.clone(following)
    before = files(series)
    branch.import_series(following, base=series)
    branch.export_series(following, base=series)
    assert files(series) == before
    branch.export_series(following, base=following)
    assert "@@ -38,3 +38,3 @@\n line 29\n" in patch_file(series, "0002").read_text()


def test_edited_tree_is_left_alone(series: Settings) -> None:
    edited(tree(series, "two") / "src/main.c", 7)
    before = files(series)
    with pytest.raises(ToolkitError, match=r"two: .* has uncommitted changes \(src/main\.c\)"):
        branch.import_series(series)
    with pytest.raises(ToolkitError, match=r"two: .* has uncommitted changes \(src/main\.c\): commit them"):
        branch.export_series(series)
    assert files(series) == before


def test_work_that_was_not_exported_is_left_alone(series: Settings) -> None:
    path = tree(series)
    edited(path / "src/main.c", 7)
    commit_all(path, "Mine")
    with pytest.raises(ToolkitError, match=r"one: .* has commits that are not the toolkit's .*Mine"):
        branch.import_series(series)
    git(path, "checkout", "--quiet", "--detach", series.source("one").commit)
    with pytest.raises(ToolkitError, match=r"one: branch series .* has commits of yours .*Mine"):
        branch.import_series(series)


def test_tree_that_does_not_stand_on_the_pin(series: Settings) -> None:
    path = tree(series)
    git(path, "checkout", "--quiet", "--orphan", "other")
    git(path, "commit", "--quiet", "--message=Alone")
    before = files(series)
    with pytest.raises(ToolkitError, match=r"one: .* does not stand on the pin .*history is too shallow"):
        branch.export_series(series)
    assert files(series) == before


def test_patches_that_the_tree_was_not_made_from_are_not_overwritten(series: Settings) -> None:
    path = patch_file(series, "0001")
    path.write_text(path.read_text().replace("+changed 3\n", "+changed by hand\n"))
    before = files(series)
    with pytest.raises(ToolkitError, match=r"one: .*patches has changed since the import into"):
        branch.export_series(series)
    branch.import_series(series)
    assert "changed by hand\n" in (tree(series) / "src/main.c").read_text()
    patchset.revert(series)
    with pytest.raises(ToolkitError, match=r"one: .* is at the pin, and would leave no patches"):
        branch.export_series(series)
    assert files(series) == before


def test_merge_and_empty_commits(series: Settings) -> None:
    path = tree(series)
    git(path, "commit", "--quiet", "--allow-empty", "--message=Nothing")
    with pytest.raises(ToolkitError, match=r"one: commit \w+ in .* changes nothing: drop it"):
        branch.export_series(series)
    git(path, "reset", "--quiet", "--hard", "HEAD~1")
    git(path, "checkout", "--quiet", "-b", "side", "HEAD~1")
    edited(path / "README", 1)
    commit_all(path, "Side")
    git(path, "checkout", "--quiet", branch.BRANCH)
    git(path, "merge", "--quiet", "--no-edit", "side")
    with pytest.raises(ToolkitError, match=r"one: \w+ is a merge"):
        branch.export_series(series)


def test_excluded_patch_is_not_lost(series: Settings) -> None:
    before = files(series)
    with pytest.raises(ToolkitError, match=r"'patches\.exclude' leaves out one/0002: export without it"):
        branch.export_series(dataclasses.replace(series, excluded_patches=("one/0002",)))
    assert files(series) == before


def test_interrupted_export_is_taken_back(series: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(series)
    edited(tree(series) / "README", 1)
    commit_all(tree(series), "Fourth")
    rename = Path.rename

    def killed(path: Path, target: str | os.PathLike[str]) -> Path:
        if path.name.endswith(".new"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        branch.export_series(series)
    monkeypatch.undo()
    branch.export_series(series)
    after = files(series)
    assert {name: after[name] for name in before} == before
    assert [Path(name).name for name in after if name not in before] == ["0003-Fourth.patch"]


def test_real_series_is_byte_identical(real_settings: Settings, tmp_path: Path, root: Path) -> None:
    for source in real_settings.sources:
        if why := sources.reachable(source):
            pytest.skip(f"{source.url}: {why}")
    for name in ("freeswitch", "sofia-sip"):
        (tmp_path / "patches" / name).mkdir(parents=True)
        for path in (root / "patches" / name).iterdir():
            (tmp_path / "patches" / name / path.name).write_bytes(path.read_bytes())
    settings = dataclasses.replace(real_settings, patches=tmp_path / "patches")
    before = files(settings)
    sources.clone(settings)
    branch.import_series(settings)
    branch.export_series(settings)
    assert files(settings) == before
