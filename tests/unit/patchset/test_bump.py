"""The matrix of releases, and moving to a newer one, with small upstreams."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.patchset import bump, trials
from scripts.pins import releases
from scripts.pins.releases import Release, Releases
from scripts.pins.settings import Settings, Source
from scripts.sources import trees
from tests.conftest import LINES, TAG, edited, git

CONFIGURE = "PKG_CHECK_MODULES([SOFIA_SIP], [sofia-sip-ua >= {}])\n"


@dataclasses.dataclass
class Upstreams:
    """A FreeSWITCH with two releases and a sofia-sip with one, a patch for each, and files that pin the first."""

    settings: Settings
    freeswitch: Path
    sofia: Path
    pins: Path
    table: Path

    def release(self, upstream: Path, tag: str) -> str:
        """Tag what is in `upstream`; return the commit."""
        git(upstream, "add", "--all")
        git(upstream, "commit", "--quiet", "--allow-empty", f"--message={tag}")
        git(upstream, "tag", "--annotate", tag, f"--message={tag}")
        return git(upstream, "rev-parse", "HEAD")

    def known(self) -> Releases:
        """Return what the table lists."""
        return releases.load(self.table)

    def bump(self, tag: str = "") -> object:
        """Run bump, quietly."""
        return bump.bump(self.settings, tag, Console(quiet=True), self.pins, self.table)


def patch(settings: Settings, name: str, line: int) -> None:
    """Make a patch that changes a line of src/main.c."""
    context = [f" line {number}\n" for number in (line - 1, line, line + 1)]
    mail = (
        f"From: A <a@example.org>\nDate: Mon, 6 May 2024 07:08:09 +0000\nSubject: [PATCH] Change\n\n"
        f"diff --git a/src/main.c b/src/main.c\n--- a/src/main.c\n+++ b/src/main.c\n"
        f"@@ -{line - 1},3 +{line - 1},3 @@\n{context[0]}-line {line}\n+new\n{context[2]}"
    )
    directory = settings.patches / name
    directory.mkdir(parents=True)
    (directory / "0001-change.patch").write_text(mail)


@pytest.fixture
def world(tmp_path: Path, settings: Settings, upstream: Callable[[str], Path]) -> Upstreams:
    freeswitch, sofia = upstream("freeswitch"), upstream("sofia-sip")
    (freeswitch / "configure.ac").write_text(CONFIGURE.format("1.0.0"))
    settings = dataclasses.replace(settings, patches=tmp_path / "series")
    found = Upstreams(settings, freeswitch, sofia, tmp_path / "invoke.yaml", tmp_path / "releases.yaml")
    commits = {"freeswitch": found.release(freeswitch, "v1.0.0"), "sofia-sip": found.release(sofia, "v1.0.0")}
    pinned = tuple(
        Source(name, f"file://{tmp_path}/upstream/{name}", "v1.0.0", commit, (), tmp_path / "build/sources" / name)
        for name, commit in commits.items()
    )
    found.settings = dataclasses.replace(settings, sources=pinned)
    for name in commits:
        patch(found.settings, name, 20)
    found.table.write_text(
        "# Releases.\nsets: {}\nfreeswitch:\n"
        f"  v1.0.0: {{commit: {commits['freeswitch']}, sofia_sip: v1.0.0}}\n"
        f"sofia_sip:\n  v1.0.0: {{commit: {commits['sofia-sip']}}}\n"
    )
    found.pins.write_text(
        "# Pins.\nsources:\n"
        f"  sofia_sip:\n    url: x\n    tag: v1.0.0\n    commit: {commits['sofia-sip']}\n"
        f"  freeswitch:\n    url: x\n    tag: v1.0.0\n    commit: {commits['freeswitch']}\n    exclude: []\n"
    )
    return found


def with_freeswitch(known: Releases, *more: Release) -> Releases:
    return dataclasses.replace(known, freeswitch={**known.freeswitch, **{item.name: item for item in more}})


def tried(world: Upstreams, *more: Release) -> dict[str, trials.Trial]:
    found = trials.try_all(world.settings, with_freeswitch(world.known(), *more), Console(quiet=True))
    return {trial.release: trial for trial in found if trial.upstream == "freeswitch"}


def test_offset_and_failure(world: Upstreams) -> None:
    main = world.freeswitch / "src/main.c"
    main.write_text("extra\n" * 7 + "".join(LINES))
    moved = Release("v1.1.0", world.release(world.freeswitch, "v1.1.0"), "v1.0.0")
    main.write_text("".join(LINES))
    edited(main, 19)
    fuzzy = Release("v1.2.0", world.release(world.freeswitch, "v1.2.0"), "v1.0.0")
    edited(main, 20)
    other = Release("v1.3.0", world.release(world.freeswitch, "v1.3.0"), "v1.0.0")
    found = tried(world, moved, fuzzy, other)
    assert [(trial.applies, trial.offset, trial.fuzz) for trial in found.values()] == [
        (True, 0, 0),
        (True, 7, 0),
        (False, 0, 1),
        (False, 0, 0),
    ]
    assert found["v1.3.0"].why == "0001-change.patch: hunk 1 of src/main.c (@@ -19,3) does not apply to it"


def test_hunk_that_fits_in_several_places_does_not_apply(world: Upstreams) -> None:
    (world.freeswitch / "src/main.c").write_text("".join(LINES) * 2)
    twice = Release("v1.1.0", world.release(world.freeswitch, "v1.1.0"), "v1.0.0")
    trial = tried(world, twice)["v1.1.0"]
    assert not trial.applies
    assert trial.why.endswith("hunk 1 of src/main.c fits in several places (lines 19, 79)")


def test_hunk_that_only_the_build_refuses_does_not_apply(world: Upstreams) -> None:
    mail = world.settings.patches / "freeswitch/0001-change.patch"
    mail.write_text(mail.read_text().replace("@@ -19,3 +19,3 @@\n", "@@ -18,4 +18,4 @@\n line 18\n"))
    trial = tried(world)["v1.0.0"]
    assert not trial.applies
    where = "hunk 1 of src/main.c (@@ -18,4) has 2 lines of context above and 1 below"
    assert trial.why.startswith(f"0001-change.patch: {where}, and is not at the end of the file")


def test_series_in_the_tree_of_another(world: Upstreams) -> None:
    (world.freeswitch / "libs/sofia-sip/src").mkdir(parents=True)
    (world.freeswitch / "libs/sofia-sip/src/main.c").write_text("".join(LINES))
    inside = Release("v1.1.0", world.release(world.freeswitch, "v1.1.0"), releases.IN_TREE)
    trial = tried(world, inside)["v1.1.0"]
    assert (trial.carried, trial.hunks, trial.applies) == (("sofia-sip",), 2, True)


def test_only_the_files_that_the_series_touches_are_fetched(world: Upstreams) -> None:
    tried(world)
    path = world.settings.build_directory / "matrix/freeswitch"
    present = git(path, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)").split()
    wanted, other = (git(world.freeswitch, "rev-parse", f"HEAD:{name}") for name in ("src/main.c", "README"))
    assert wanted in present and other not in present


def test_report(world: Upstreams, monkeypatch: pytest.MonkeyPatch) -> None:
    known = world.known()
    monkeypatch.setattr(releases, "load", lambda: known)
    output = io.StringIO()
    assert trials.run(world.settings, Console(file=output, width=160)) is True
    assert "2 of 2 releases apply (100 %)" in output.getvalue()


def test_tag_that_has_moved(world: Upstreams) -> None:
    git(world.freeswitch, "tag", "--force", "v1.0.0", TAG)
    before = (world.pins.read_bytes(), world.table.read_bytes())
    for action in (world.bump, lambda: tried(world)):
        with pytest.raises(ToolkitError, match=r"freeswitch: tag v1\.0\.0 of .* is commit .*, but releases\.yaml has"):
            action()
    assert (world.pins.read_bytes(), world.table.read_bytes()) == before


def test_unreachable(world: Upstreams) -> None:
    first, second = world.settings.sources
    nowhere = dataclasses.replace(first, url="file:///nowhere")
    world.settings = dataclasses.replace(world.settings, sources=(nowhere, second))
    with pytest.raises(ToolkitError, match=r"freeswitch: cannot fetch its releases from file:///nowhere"):
        tried(world)
    with pytest.raises(ToolkitError, match=r"freeswitch: cannot list the references of file:///nowhere"):
        world.bump()


def test_bump_pins_the_newest_that_applies(world: Upstreams) -> None:
    assert world.bump() is None
    newer = world.release(world.freeswitch, "v1.9.0")
    edited(world.freeswitch / "src/main.c", 20)
    world.release(world.freeswitch, "v1.10.0")
    sofia = world.release(world.sofia, "v1.0.1")
    assert world.bump() is not None
    assert world.table.read_text().startswith("# Releases.\nsets: {}\nfreeswitch:\n  v1.0.0: ")
    assert f"\n  v1.9.0: {{commit: {newer}, sofia_sip: v1.0.0}}\n" in world.table.read_text()
    assert f"\n  v1.0.1: {{commit: {sofia}}}\n" in world.table.read_text()
    pins = world.pins.read_text()
    assert pins.startswith("# Pins.\n") and pins.endswith("    exclude: []\n")
    assert f"    tag: v1.9.0\n    commit: {newer}\n" in pins and f"    tag: v1.0.1\n    commit: {sofia}\n" in pins


def test_bump_writes_nothing_if_the_series_does_not_apply(world: Upstreams) -> None:
    edited(world.freeswitch / "src/main.c", 20)
    world.release(world.freeswitch, "v1.1.0")
    before = (world.pins.read_bytes(), world.table.read_bytes())
    stays = r"nothing was changed, freeswitch v1\.0\.0 and sofia-sip v1\.0\.0 stay pinned: "
    with pytest.raises(ToolkitError, match=rf"{stays}the series does not apply to FreeSWITCH v1\.1\.0"):
        world.bump()
    with pytest.raises(ToolkitError, match=stays):
        world.bump("v1.1.0")
    assert (world.pins.read_bytes(), world.table.read_bytes()) == before


def test_bump_to_a_release_whose_sofia_sip_there_is_not(world: Upstreams) -> None:
    (world.freeswitch / "configure.ac").write_text(CONFIGURE.format("1.0.9"))
    world.release(world.freeswitch, "v1.1.0")
    before = (world.pins.read_bytes(), world.table.read_bytes())
    output = io.StringIO()
    console = Console(file=output, width=200)
    # There is nothing to do about it, and nothing wrong.
    assert bump.bump(world.settings, "", console, world.pins, world.table) is None
    assert output.getvalue().splitlines() == [
        "FreeSWITCH v1.1.0 needs sofia-sip v1.0.9, which is not supported: passed over",
        "freeswitch v1.0.0 and sofia-sip v1.0.0 are the newest that can be used: nothing was changed",
    ]
    with pytest.raises(ToolkitError, match=r"FreeSWITCH v1\.1\.0 needs sofia-sip v1\.0\.9, which is not supported"):
        world.bump("v1.1.0")
    assert (world.pins.read_bytes(), world.table.read_bytes()) == before


def test_bump_takes_the_newest_sofia_sip_if_no_freeswitch_can_be_used(world: Upstreams) -> None:
    (world.freeswitch / "configure.ac").write_text(CONFIGURE.format("1.0.9"))
    world.release(world.freeswitch, "v1.1.0")
    world.release(world.sofia, "v1.0.1")
    pair = world.bump()
    assert isinstance(pair, releases.Pair) and pair.sofia_sip is not None
    assert (pair.freeswitch.name, pair.sofia_sip.name) == ("v1.0.0", "v1.0.1")


def test_bump_to_an_unknown_tag(world: Upstreams) -> None:
    with pytest.raises(ToolkitError, match=r"freeswitch: .* has no tag v7\.7\.7: its newest are v1\.0\.0"):
        world.bump("v7.7.7")


def test_series_applies_to_every_real_release(real_settings: Settings) -> None:
    for source in real_settings.sources:
        if why := trees.unreachable(source):
            pytest.skip(f"{source.url}: {why.what}")
    found = trials.try_all(real_settings, releases.load(), Console(quiet=True))
    assert [(trial.release, trial.why) for trial in found if not trial.applies] == []
    assert len(found) >= 22 + 17
