"""A series that does not apply to a release, carried over from another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.errors import ToolkitError
from scripts.patchset import branch, series
from scripts.pins.settings import Settings
from scripts.sources import trees
from tests.conftest import LINES, edited, git
from tests.unit.patchset.conftest import (
    AddPatch,
    everything,
    files,
    interrupt,
    next_release,
    patch_file,
    tree,
)


def test_carried_over_to_a_new_release_with_conflicts(prepared: Settings, tmp_path: Path) -> None:
    upstream = tmp_path / "upstream/one"
    edited(upstream / "src/other.c", 10, 51)
    following = next_release(prepared, upstream)
    one = following.source("one")
    before = files(prepared)
    with pytest.raises(ToolkitError, match=r"one: conflicts in src/other\.c of .*cherry-pick --continue"):
        branch.import_series(following, base=prepared)
    assert "<<<<<<<" in (one.path / "src/other.c").read_text()
    for action in (branch.import_series, branch.export_series):
        with pytest.raises(ToolkitError, match=r"one: .* is in the middle of a `git cherry-pick`"):
            action(following)
    assert files(prepared) == before
    text = (one.path / "src/other.c").read_text()
    kept = [line for line in text.splitlines() if not line.startswith(("<<<<<<<", "=======", ">>>>>>>"))]
    (one.path / "src/other.c").write_text("\n".join(dict.fromkeys(kept)) + "\n")
    git(one.path, "add", "src/other.c")
    git(one.path, "-c", "core.editor=true", "cherry-pick", "--continue")
    branch.export_series(following)
    assert series.apply(following)[0].action == series.Action.ALREADY


def test_carried_over_patch_keeps_its_message_and_author(
    prepared: Settings, add_patch: AddPatch, tmp_path: Path
) -> None:
    # It has a list of its files, which is no part of the message.
    path = add_patch("one", "Fourth", {"src/main.c": [45]})
    path.write_text(path.read_text().replace("\n---\n", "\nBecause.\n\n1 more.\n---\n", 1))
    upstream = tmp_path / "upstream/one"
    edited(upstream / "src/main.c", 47)
    following = next_release(prepared, upstream)
    branch.import_series(following, base=prepared)
    assert git(tree(following), "log", "-1", "--format=%an %ae %at %B") == (
        "Ann Author ann@example.org 1714979289 Fourth\n\nBecause.\n\n1 more."
    )
    branch.export_series(following)
    assert "Because.\n\n1 more.\n" in patch_file(prepared, "0003").read_text()


def test_interrupted_carrying_over_leaves_the_tree(
    prepared: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = tmp_path / "upstream/one"
    edited(upstream / "src/other.c", 10, 51)
    following = next_release(prepared, upstream)
    one = following.source("one")
    before = everything(following)
    interrupt(monkeypatch, branch, "online", one.path, "-c merge.renames=false cherry-pick")
    with pytest.raises(KeyboardInterrupt):
        branch.import_series(following, base=prepared)
    assert everything(following) == before
    trees.check_idle(one)


def test_series_that_was_carried_over_is_not_removed(prepared: Settings, add_patch: AddPatch, tmp_path: Path) -> None:
    add_patch("one", "Fourth", {"src/main.c": [45]})
    upstream = tmp_path / "upstream/one"
    edited(upstream / "src/main.c", 47)
    following = next_release(prepared, upstream)
    branch.import_series(following, base=prepared)
    assert "changed 45\n" in (tree(following) / "src/main.c").read_text()
    with pytest.raises(ToolkitError, match=r"one: .* has local changes \(branch series, which is not what"):
        trees.clone(prepared.sources, prepared.patches)
    branch.export_series(following)
    assert [result.fresh for result in trees.clone(prepared.sources, prepared.patches)] == [True, False]


def test_export_from_another_release_leaves_the_line_numbers(prepared: Settings, tmp_path: Path) -> None:
    upstream = tmp_path / "upstream/one"
    (upstream / "src/main.c").write_text("// more\n" * 9 + "".join(LINES))
    following = next_release(prepared, upstream)
    before = files(prepared)
    branch.import_series(following, base=prepared)
    branch.export_series(following, base=prepared)
    assert files(prepared) == before
    branch.export_series(following, base=following)
    assert "@@ -38,3 +38,3 @@\n line 29\n" in patch_file(prepared, "0002").read_text()
