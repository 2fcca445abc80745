"""Cloning, looking at and exporting the pinned upstreams."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.patchset import series
from scripts.pins.settings import Settings
from scripts.sources import trees
from scripts.sources.export import export
from tests.conftest import git


def change(settings: Settings, **values: object) -> Settings:
    """Return `settings` with other values for the first source."""
    first, *rest = settings.sources
    return dataclasses.replace(settings, sources=(dataclasses.replace(first, **values), *rest))  # type: ignore[arg-type]


def test_clone_is_shallow_and_sparse(settings: Settings) -> None:
    results = trees.clone(settings.sources, settings.patches)
    assert [result.fresh for result in results] == [True, True]
    for source in settings.sources:
        assert git(source.path, "rev-parse", "HEAD") == source.commit
        assert git(source.path, "rev-list", "--count", "--all") == "1"
        assert (source.path / "src/main.c").exists()
        assert not (source.path / "win32").exists()
        missing = git(source.path, "rev-list", "--objects", "--missing=print", "HEAD").splitlines()
        assert len([line for line in missing if line.startswith("?")]) == 1


def test_clone_again_does_nothing(settings: Settings) -> None:
    trees.clone(settings.sources, settings.patches)
    (settings.sources[0].path / "mine").write_text("mine")
    for name in ("one", "two"):
        shutil.rmtree(settings.sources[0].path.parents[2] / "upstream" / name)
    assert [result.fresh for result in trees.clone(settings.sources, settings.patches)] == [False, False]
    assert (settings.sources[0].path / "mine").exists()


def test_clone_of_a_commit_without_a_tag(settings: Settings) -> None:
    settings = change(settings, tag="")
    trees.clone(settings.sources, settings.patches)
    assert git(settings.sources[0].path, "rev-parse", "HEAD") == settings.sources[0].commit


def test_clone_prints_plain_lines_without_a_terminal(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    trees.clone(settings.sources, settings.patches, Console(force_terminal=False))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"one: cloning v1.0 from {settings.sources[0].url}"
    assert "one: receiving objects" in lines
    assert next(line for line in lines if line.startswith("one: cloned")).startswith("one: cloned v1.0 in ")
    assert all(line.isprintable() for line in lines)


def test_pin_mismatch_keeps_nothing(settings: Settings) -> None:
    pinned = "0123456789" * 4
    with pytest.raises(ToolkitError) as error:
        trees.clone(change(settings, commit=pinned).sources, settings.patches)
    for part in ("one", "v1.0", settings.sources[0].commit, pinned, "sources.one.commit"):
        assert part in str(error.value)
    assert list(settings.sources[0].path.parent.iterdir()) == []


def test_unreachable_source(settings: Settings, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/nowhere"
    with pytest.raises(ToolkitError) as error:
        trees.clone(change(settings, url=url).sources, settings.patches)
    message = str(error.value)
    assert "\n" not in message
    assert url in message and "does not appear to be a git repository" in message
    assert "insteadOf" in message and "--set sources.one.url=" in message
    assert list(settings.sources[0].path.parent.iterdir()) == []


def test_tag_that_does_not_exist(settings: Settings) -> None:
    with pytest.raises(ToolkitError, match=r"has no tag v9: correct sources\.one\.tag"):
        trees.clone(change(settings, tag="v9").sources, settings.patches)


def test_commit_that_does_not_exist(settings: Settings) -> None:
    with pytest.raises(ToolkitError, match=r"has no commit (0123456789){4}: correct sources\.one\.commit"):
        trees.clone(change(settings, tag="", commit="0123456789" * 4).sources, settings.patches)


def test_repository_that_lacks_a_file(settings: Settings) -> None:
    upstream = settings.sources[0].path.parents[2] / "upstream/one"
    blob = git(upstream, "rev-parse", "v1.0:src/main.c")
    (upstream / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(
        ToolkitError, match=rf"one: .* has v1\.0, but not all of its files \(object {blob} is missing\)"
    ):
        trees.clone(settings.sources, settings.patches)
    assert list(settings.sources[0].path.parent.iterdir()) == []


def test_module_that_does_not_exist_keeps_what_was_there(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "upstream/one/src/mod/say/mod_say_en").mkdir(parents=True)
    (tmp_path / "upstream/one/src/mod/say/mod_say_en/mod_say_en.c").touch()
    git(tmp_path / "upstream/one", "add", "--all")
    git(tmp_path / "upstream/one", "commit", "--quiet", "--message=Module")
    commit = git(tmp_path / "upstream/one", "rev-parse", "HEAD")
    settings = change(settings, tag="", commit=commit, modules=("say/mod_say_en",))
    trees.clone(settings.sources, settings.patches)
    other = change(settings, exclude=(), modules=("say/mod_say_en", "say/mod_say_xx", "say/mod_say_en.c"))
    expected = f"one: {commit[:12]} has no module say/mod_say_xx, say/mod_say_en.c: correct the setting build.modules"
    with pytest.raises(ToolkitError, match=re.escape(expected)):
        trees.clone(other.sources, other.patches)
    assert [result.fresh for result in trees.clone(settings.sources, settings.patches)] == [False, False]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("fatal: write error: No space left on device", "No space left on device"),
        ("error: unable to write file a.c\nfatal: gone", "unable to write file a.c"),
    ],
)
def test_full_disk_is_not_put_down_to_the_network(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, why: str
) -> None:
    helper = tmp_path / "bin/git-remote-full"
    helper.parent.mkdir()
    helper.write_text(f"#!/bin/sh\necho '{told}' >&2\nexit 128\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "full")
    with pytest.raises(ToolkitError) as error:
        trees.clone(change(settings, url="full://host/x").sources, settings.patches)
    assert str(error.value).startswith(
        f"one: cannot write v1.0 to {settings.sources[0].path.parent} ({why}): make room there"
    )
    assert "network" not in str(error.value)


def test_remedy_can_be_pasted(settings: Settings, tmp_path: Path) -> None:
    spaced = change(settings, path=tmp_path / "my trees/one")
    trees.clone(spaced.sources, spaced.patches)
    path = spaced.sources[0].path
    (path / ".git/MERGE_HEAD").touch()
    with pytest.raises(ToolkitError) as error:
        trees.check_idle(spaced.sources[0])
    (command,) = re.findall(r"`(git -C [^`]*) --abort`", str(error.value))
    assert shlex.split(command) == ["git", "-C", str(path), "merge"]


@pytest.mark.parametrize(
    "hostile",
    [
        {"GIT_OBJECT_DIRECTORY": "/nowhere"},
        {"GIT_ALTERNATE_OBJECT_DIRECTORIES": "/nowhere"},
        {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.autocrlf", "GIT_CONFIG_VALUE_0": "true"},
        {"GIT_CONFIG_PARAMETERS": "'core.autocrlf'='true'"},
        {"GIT_NAMESPACE": "other"},
        {"core.autocrlf": "true"},
        {"core.hooksPath": "HOOKS"},
        {"core.attributesFile": "ATTRIBUTES"},
        {"apply.whitespace": "error"},
        {"am.threeWay": "true"},
        {"commit.gpgSign": "true"},
    ],
    ids=lambda hostile: next(iter(hostile)),
)
def test_git_of_the_user_changes_nothing(
    settings: Settings, add_patch: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    hostile: dict[str, str],
) -> None:  # fmt: skip
    add_patch("one", "First", {"src/main.c": [3], "new.c": []})
    hook, attributes = tmp_path / "hooks/post-checkout", tmp_path / "attributes"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    hook.chmod(0o755)
    attributes.write_text("* text eol=crlf\n")
    for name, value in hostile.items():
        if name.isupper() or name.startswith("GIT_"):
            monkeypatch.setenv(name, value)
        else:
            value = {"HOOKS": str(hook.parent), "ATTRIBUTES": str(attributes)}.get(value, value)
            subprocess.run(["git", "config", "--global", name, value], check=True)
    trees.clone(settings.sources, settings.patches)
    series.apply(settings)
    assert not any(trees.changes(source) for source in settings.sources)
    assert b"\r" not in (settings.sources[0].path / "src/main.c").read_bytes()
    series.revert(settings)
    assert not (tmp_path / "called").exists()
    assert trees.clone(settings.sources, settings.patches)[0].fresh is False


@pytest.mark.parametrize("damage", ["HEAD", "objects", "index", "config", "refs"])
def test_tree_that_git_cannot_read_has_a_remedy(settings: Settings, damage: str) -> None:
    trees.clone(settings.sources, settings.patches)
    path = settings.sources[0].path
    spoiled = path / ".git" / damage
    if spoiled.is_dir():
        shutil.rmtree(spoiled)
    else:
        spoiled.write_text("[rubbish\n")
    with pytest.raises(ToolkitError) as caught:
        series.apply(settings)
    assert re.fullmatch(
        rf"one: git can't read {path} \(.+\): save what is yours there, remove it, then run `inv clone`",
        str(caught.value),
    )
    shutil.rmtree(path)
    assert [result.fresh for result in trees.clone(settings.sources, settings.patches)] == [True, False]


def test_link_to_nothing_is_said_before_anything_is_fetched(settings: Settings, tmp_path: Path) -> None:
    path = settings.sources[0].path
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ToolkitError, match="one is a link to nothing: remove it, then run `inv clone`"):
        trees.clone(settings.sources, settings.patches)
    assert [item.name for item in path.parent.iterdir()] == ["one"]


def test_leftover_of_an_interrupted_clone_is_removed(settings: Settings) -> None:
    leftover = settings.sources[0].path.with_name(".one.12345.partial")
    (leftover / ".git").mkdir(parents=True)
    (leftover / ".git/HEAD").write_text("half done")
    trees.clone(settings.sources, settings.patches)
    assert sorted(path.name for path in leftover.parent.iterdir()) == ["one", "two"]


def test_changed_pin_clones_again(settings: Settings) -> None:
    trees.clone(settings.sources, settings.patches)
    changed = change(settings, exclude=("/win32/", "/src/other.c"))
    assert [result.fresh for result in trees.clone(changed.sources, changed.patches)] == [True, False]
    assert not (settings.sources[0].path / "src/other.c").exists()
    assert sorted(path.name for path in settings.sources[0].path.parent.iterdir()) == ["one", "two"]


def both(settings: Settings, **values: object) -> Settings:
    """Return `settings` with other excludes, which ask for new trees, and other `values` for the second."""
    first, second = (dataclasses.replace(source, exclude=("/src/other.c",)) for source in settings.sources)
    return dataclasses.replace(settings, sources=(first, dataclasses.replace(second, **values)))  # type: ignore[arg-type]


def inodes(settings: Settings) -> list[tuple[str, int]]:
    """Return what is in the directory of the trees."""
    return sorted((path.name, path.stat().st_ino) for path in settings.sources[0].path.parent.iterdir())


@pytest.mark.parametrize("there", [[], ["one"], ["one", "two"]])
def test_second_upstream_that_fails_leaves_the_first(settings: Settings, there: list[str]) -> None:
    trees.clone(settings.sources, settings.patches)
    for source in settings.sources:
        if source.name not in there:
            shutil.rmtree(source.path)
    before = inodes(settings)
    with pytest.raises(ToolkitError, match=r"two: .* has no tag v9: "):
        trees.clone(both(settings, tag="v9").sources, settings.patches)
    assert inodes(settings) == before
    assert [name for name, _ in before] == there
    assert [result.fresh for result in trees.clone(both(settings).sources, settings.patches)] == [True, True]


@pytest.mark.parametrize("there", [[], ["one", "two"]])
@pytest.mark.parametrize("number", range(4))
def test_interrupted_replacing_leaves_all_trees(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, there: list[str], number: int
) -> None:
    trees.clone(settings.sources, settings.patches)
    for source in settings.sources:
        if source.name not in there:
            shutil.rmtree(source.path)
    before = inodes(settings)
    renames = 0
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        found = rename(path, target)
        if renames == number + 1:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Path, "rename", interrupted)
    if number < 2 or there:
        with pytest.raises(KeyboardInterrupt):
            trees.clone(both(settings).sources, settings.patches)
        assert inodes(settings) == before
    monkeypatch.undo()
    assert [result.fresh for result in trees.clone(both(settings).sources, settings.patches)] == [True, True]
    assert [name for name, _ in inodes(settings)] == ["one", "two"]


def test_pattern_can_be_taken_back(settings: Settings, tmp_path: Path) -> None:
    changed = change(settings, exclude=("/src/**", "!/src/other.c"))
    trees.clone(changed.sources, changed.patches)
    tree = changed.sources[0].path
    assert [path.name for path in (tree / "src").iterdir()] == ["other.c"]
    export(changed.sources[0], tmp_path / "one.tar")
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert [name for name in tar.getnames() if name.startswith("src/")] == ["src/other.c"]


def test_changed_pin_spares_an_uncommitted_change(settings: Settings) -> None:
    trees.clone(settings.sources, settings.patches)
    file = settings.sources[0].path / "README"
    file.write_text("mine\n")
    with pytest.raises(ToolkitError, match=r"one: .* has local changes \(README\)"):
        trees.clone(change(settings, exclude=()).sources, settings.patches)
    assert file.read_text() == "mine\n"


@pytest.mark.parametrize("keep", [["checkout", "--quiet", "-b", "mine"], []])
def test_changed_pin_spares_a_commit(settings: Settings, keep: list[str]) -> None:
    trees.clone(settings.sources, settings.patches)
    path = settings.sources[0].path
    if keep:
        git(path, *keep)
    (path / "README").write_text("mine\n")
    git(path, "commit", "--quiet", "--all", "--message=My work")
    if keep:
        git(path, "checkout", "--quiet", "--detach", settings.sources[0].commit)
    with pytest.raises(ToolkitError, match="My work"):
        trees.clone(change(settings, exclude=()).sources, settings.patches)
    assert "My work" in git(path, "log", "--format=%s", "HEAD", "--all")


def test_clone_refuses_another_checkout(settings: Settings) -> None:
    trees.clone(settings.sources, settings.patches)
    git(settings.sources[0].path, "commit", "--quiet", "--allow-empty", "--message=My work")
    with pytest.raises(ToolkitError, match=r"has local changes .*My work"):
        trees.clone(settings.sources, settings.patches)


def test_directory_that_is_not_a_clone(settings: Settings) -> None:
    settings.sources[0].path.mkdir(parents=True)
    (settings.sources[0].path / "mine").write_text("mine")
    with pytest.raises(ToolkitError, match=r"was not made by `inv clone`"):
        trees.clone(settings.sources, settings.patches)
    assert (settings.sources[0].path / "mine").exists()


def test_export(settings: Settings, tmp_path: Path) -> None:
    trees.clone(settings.sources, settings.patches)
    source = settings.sources[0]
    (source.path / "README").write_text("changed\n")
    target = tmp_path / "out/one.tar"
    export(source, target)
    with tarfile.open(target) as tar:
        members = {member.name: member for member in tar}
        assert list(members) == ["README", "build.sh", "link", "src/main.c", "src/other.c"]
        readme = tar.extractfile("README")
        assert readme is not None and readme.read() == b"one\n"
    assert [members[name].mode for name in ("README", "build.sh")] == [0o644, 0o755]
    assert members["link"].issym() and members["link"].linkname == "src/main.c"
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, 1714979289)}


def test_export_is_deterministic(settings: Settings, tmp_path: Path) -> None:
    trees.clone(settings.sources, settings.patches)
    source = settings.sources[0]
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    export(source, first)
    shutil.rmtree(source.path)
    trees.clone(settings.sources, settings.patches)
    export(source, second)
    assert first.read_bytes() == second.read_bytes()


def test_export_again_does_nothing(settings: Settings, tmp_path: Path) -> None:
    trees.clone(settings.sources, settings.patches)
    source, target = settings.sources[0], tmp_path / "one.tar"
    export(source, target)
    before = target.stat().st_mtime_ns
    export(source, target)
    assert target.stat().st_mtime_ns == before
    wider = change(settings, exclude=())
    with pytest.raises(ToolkitError, match=r"was cloned for other settings of one: run `inv clone`"):
        export(wider.sources[0], target)


def test_export_of_an_incomplete_tree(settings: Settings, tmp_path: Path) -> None:
    trees.clone(settings.sources, settings.patches)
    source = settings.sources[0]
    blob = git(source.path, "rev-parse", "HEAD:README")
    packs = source.path / ".git/objects/pack"
    loose = tmp_path / "packs"
    packs.rename(loose)
    packs.mkdir()
    for pack in loose.glob("*.pack"):
        with pack.open("rb") as stream:
            subprocess.run(["git", "unpack-objects", "-q"], cwd=source.path, stdin=stream, check=True)
    (source.path / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(ToolkitError, match="is incomplete"):
        export(source, tmp_path / "one.tar")
    assert not list(tmp_path.glob("one.tar*"))


def test_clone_waits_for_another_run(settings: Settings) -> None:
    output = io.StringIO()
    with ThreadPoolExecutor() as pool:
        with trees.locked(settings.sources, make=True):
            other = pool.submit(trees.clone, settings.sources, settings.patches, Console(file=output))
            deadline = time.monotonic() + 10
            while "waiting for another run" not in output.getvalue() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.2)
            assert not other.done() and list(settings.sources[0].path.parent.iterdir()) == []
        assert [result.fresh for result in other.result(timeout=30)] == [True, True]
    assert output.getvalue().startswith("waiting for another run in ")


def test_reachable(settings: Settings, tmp_path: Path) -> None:
    source = settings.sources[0]
    assert trees.unreachable(source) is None
    tag = trees.unreachable(dataclasses.replace(source, tag="v9"))
    assert tag is not None and tag.what == "there is no tag v9"
    url = trees.unreachable(dataclasses.replace(source, url=f"file://{tmp_path}/nowhere"))
    assert url is not None and "repository" in url.what
    assert {tag.remedy, url.remedy} == {"check the network or use --set sources.one.url=..."}


def test_upstream_of_another_user_is_told_as_that(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What git's own tests do for a repository that another user owns.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    source = settings.sources[0]
    why = trees.unreachable(source)
    assert why is not None
    with pytest.raises(ToolkitError) as listed:
        trees.references(source)
    with pytest.raises(ToolkitError) as cloned:
        trees.clone(settings.sources, settings.patches)
    for error in (why, listed.value, cloned.value):
        assert "dubious ownership" in error.what and "\n" not in str(error)
        (command,) = re.findall("`(.*)`", error.remedy)
        assert command == f"git config --global --add safe.directory {tmp_path}/upstream/one/.git"
        assert "network" not in str(error)
    for name in ("one", "two"):
        subprocess.run([*shlex.split(command)[:-1], f"{tmp_path}/upstream/{name}/.git"], check=True)
    assert trees.unreachable(source) is None
    assert [result.fresh for result in trees.clone(settings.sources, settings.patches)] == [True, True]


def test_directory_of_the_trees_that_is_not_ours(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = settings.sources[0].path.parent
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (directory, os.W_OK))
    with pytest.raises(ToolkitError, match=rf"^cannot write to {directory}: make it yours \(`sudo chown -R "):
        trees.clone(settings.sources, settings.patches)


def test_real_upstreams(real_settings: Settings, tmp_path: Path) -> None:
    for source in real_settings.sources:
        if why := trees.unreachable(source):
            pytest.skip(f"{source.url}: {why.what}")
    trees.clone(real_settings.sources, real_settings.patches)
    for source in real_settings.sources:
        export(source, tmp_path / f"{source.name}.tar")
        with tarfile.open(tmp_path / f"{source.name}.tar") as tar:
            exported = {member.name for member in tar}
        assert exported == set(git(source.path, "ls-files").splitlines()) - {
            line[2:] for line in git(source.path, "ls-files", "-t").splitlines() if line.startswith("S ")
        }


def test_clone_leaves_the_trees_if_the_series_is_not_there(settings: Settings) -> None:
    trees.clone(settings.sources, settings.patches, Console(quiet=True))
    path = settings.sources[0].path
    before = path.stat().st_ino
    astray = dataclasses.replace(settings, patches=settings.patches / "nowhere")
    with pytest.raises(ToolkitError, match=r"nowhere is not a directory: correct the setting 'patches\.directory'"):
        trees.clone(astray.sources, astray.patches, Console(quiet=True))
    assert path.stat().st_ino == before
