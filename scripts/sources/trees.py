"""The pinned upstreams: clone them, look at their trees.

A tree is shallow (one commit), blobless and sparse. Its .git/config records
the pin it was made for (`toolkit.pin`, `toolkit.commit`).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from git.cmd import handle_process_output
from git.exc import GitCommandError
from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.machine import files, terminal
from scripts.machine.files import short
from scripts.machine.git import (
    GIT,
    Failure,
    GitError,
    OwnGit,
    Reason,
    end,
    git_in,
    is_ancestor,
    local,
    network_environment,
    reason,
)
from scripts.machine.terminal import listing
from scripts.pins.settings import FILE, Source

# The committer of the commits that `patchset` makes; other commits are the user's.
COMMITTER_NAME = "freeswitch-tp-error toolkit"
COMMITTER_EMAIL = "toolkit@freeswitch-tp-error.invalid"
# The branch on which it makes the series commits to edit; `toolkit.branch` records where it put it.
BRANCH = "series"

PROGRESS = re.compile(r"(?:remote: )?(?P<phase>[A-Z][A-Za-z ]+): +\d+% \((?P<done>\d+)/(?P<total>\d+)\)")
# Files in .git that a git makes that is at work, and one that is killed leaves.
LOCKS = ("index.lock", "config.lock", "HEAD.lock", "shallow.lock")
# Files in .git that tell of an operation of git that waits for its user.
OPERATIONS = {
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "sequencer": "cherry-pick",
    "rebase-merge": "rebase",
    "rebase-apply/rebasing": "rebase",
    "rebase-apply": "am",
    "MERGE_HEAD": "merge",
}


@dataclass(frozen=True)
class Cloned:
    """What `clone` did for one source.

    `fresh` is False if the tree was there already; then `seconds` and `size`
    (bytes of .git) are 0.
    """

    source: Source
    fresh: bool
    seconds: float = 0.0
    size: int = 0


@dataclass(frozen=True)
class Tree:
    """The state of a source's tree.

    `head` is the checked-out commit, `pin` the commit that it was cloned at,
    `foreign` the commits on top of it that the toolkit did not make (a line
    each), `config` the toolkit's own keys in .git/config, without "toolkit.".
    """

    head: str
    pin: str
    foreign: tuple[str, ...]
    config: dict[str, str]


def clone(sources: Sequence[Source], patches: Path, console: Console | None = None) -> list[Cloned]:
    """Clone every source that is not there yet at its pin.

    `patches` is the directory of the series. Raises ToolkitError if that is
    missing, if a source is unreachable, if its tag is not the pinned commit, or
    if a tree that another pin asks to replace has local changes. Whatever
    happens, all trees are those of the pins then, or all are what they were.
    """
    console = console or get_console()
    # The modules that the series changes are part of the tree.
    require_series(patches)
    with locked(sources, console, make=True):
        current = {source.name: _is_current(source) for source in sources}
        directory = sources[0].path.parent
        if not all(current.values()) and not os.access(directory, os.W_OK):
            raise ToolkitError(
                f"cannot write to {short(directory)}",
                f"make it yours (`sudo chown -R $(id -u) {shlex.quote(str(directory))}`) or use --set "
                "sources.directory=...",
            )
        for source in sources:
            if current[source.name]:
                console.print(f"{source.name}: already at {version(source)}", soft_wrap=True)
        cloned = _clone([source for source in sources if not current[source.name]], console)
    return [cloned.get(source.name, Cloned(source, fresh=False)) for source in sources]


@contextmanager
def locked(sources: Sequence[Source], console: Console | None = None, make: bool = False) -> Iterator[None]:
    """Keep other runs of the toolkit from the trees; wait for one that is at work.

    Without `make` there is nothing to keep them from if the directory is missing.
    """
    directory = sources[0].path.parent
    if make:
        directory.mkdir(parents=True, exist_ok=True)
    elif not directory.exists():
        yield
        return
    with files.locked(directory, console or get_console()):
        yield


def inspect(source: Source, every_ref: bool = False) -> Tree | None:
    """Return the state of the tree of `source`, None if there is none.

    `every_ref` also looks for commits on branches and in the stash. Raises
    ToolkitError if the directory is not a tree that `clone` made, or if git
    can't read it any more.
    """
    if source.path.is_symlink() and not source.path.exists():
        raise ToolkitError(f"{short(source.path)} is a link to nothing", "remove it, then run `inv clone`")
    if not source.path.exists():
        return None
    try:
        return _state(source, every_ref)
    except GitError as error:
        raise _damaged(source, error) from error


def _state(source: Source, every_ref: bool) -> Tree:
    config = _config(source)
    pin = config.get("commit", "")
    if not pin:
        raise ToolkitError(f"{short(source.path)} was not made by `inv clone`", "move it away, then run `inv clone`")
    head = local(source.path, "rev-parse", "--verify", "HEAD").strip()
    refs = ["HEAD", "--all"] if every_ref else ["HEAD"]
    if head == pin and not every_ref:
        return Tree(head, pin, (), config)
    commits = local(source.path, "log", "--format=%ce%x09%h %s", *refs, f"^{pin}").splitlines()
    foreign = [line.split("\t", 1)[1] for line in commits if line.split("\t")[0] != COMMITTER_EMAIL]
    if head != pin and not is_ancestor(source.path, pin):
        foreign.append(f"{head[:12]} does not stand on the pin {pin[:12]}")
    return Tree(head, pin, tuple(foreign), config)


def _damaged(source: Source, error: GitError) -> ToolkitError:
    if error.remedy:
        return error
    return ToolkitError(
        f"{source.name}: git can't read {short(source.path)} ({error.reason})",
        "save what is yours there, remove it, then run `inv clone`",
    )


def require_series(patches: Path) -> None:
    """Raise ToolkitError if the directory of the patches is missing."""
    if not patches.is_dir():
        raise ToolkitError(f"{short(patches)} is not a directory", "correct the setting 'patches.directory'")


def require(source: Source) -> Tree:
    """Return the tree of `source`; ToolkitError if it is missing or at another pin."""
    tree = inspect(source)
    if tree is None:
        raise ToolkitError(f"{short(source.path)} is missing", "run `inv clone`, with the same options")
    if tree.config.get("pin") != _pin(source):
        raise ToolkitError(
            f"{short(source.path)} was cloned for other settings of {source.name}", "run `inv clone` with these options"
        )
    return tree


def changes(source: Source) -> tuple[str, ...]:
    """Return the paths of the uncommitted changes in the tree of `source`, sorted."""
    try:
        output = local(source.path, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
    except GitError as error:
        raise _damaged(source, error) from error
    return tuple(sorted(entry[3:] for entry in output.split("\0") if entry))


def check_idle(source: Source) -> None:
    """Raise ToolkitError if an operation of git in the tree of `source` waits for its user, or has not ended."""
    for name in LOCKS:
        if (lock := source.path / ".git" / name).exists():
            raise ToolkitError(
                f"{source.name}: git is at work in {short(source.path)}, or was killed there",
                f"wait for it, or remove {short(lock)}",
            )
    for name, operation in OPERATIONS.items():
        if (source.path / ".git" / name).exists():
            if operation == "am" and "applying" in _config(source):
                continue
            call = f"{git_in(source.path)} {operation}"
            raise ToolkitError(
                f"{source.name}: {short(source.path)} is in the middle of a `git {operation}`",
                f"finish it (`{call} --continue`) or give it up (`{call} --abort`)",
            )


def check_unchanged(source: Source) -> None:
    """Raise ToolkitError if removing the tree of `source` would lose work of the user."""
    tree = inspect(source, every_ref=True)
    check_idle(source)
    if tree is not None and (lost := (*changes(source), *tree.foreign, *_moved_branch(source, tree))):
        raise ToolkitError(
            f"{source.name}: {short(source.path)} has local changes ({listing(lost)})",
            "save them elsewhere and remove the directory",
        )


def branch_tip(source: Source) -> str:
    """Return the commit of the branch `series` in the tree of `source`, "" if there is no such branch."""
    return local(source.path, "for-each-ref", "--format=%(objectname)", f"refs/heads/{BRANCH}").strip()


def _moved_branch(source: Source, tree: Tree) -> list[str]:
    """Return a line if the branch `series` is not what the toolkit made of the patches, though all commits are its."""
    tip = branch_tip(source)
    if not tip or tip == tree.config.get("branch", tip):
        return []
    return [f"branch {BRANCH}, which is not what the patches make: `inv patches-export` writes it to them"]


def committed(source: Source) -> int:
    """Return when the pinned commit of `source` was made, in seconds since the epoch; its tree must be there."""
    return int(local(source.path, "show", "--no-patch", "--format=%ct", source.commit))


def unreachable(source: Source, timeout: float = 10.0) -> ToolkitError | None:
    """Return None if git can read the pinned tag of `source`, else why it can't, and what to do.

    `timeout` is in seconds. Without a tag, any answer of the repository will do.
    """
    ref = f"refs/tags/{source.tag}" if source.tag else "HEAD"
    remedy = f"check the network or use --set {key(source)}.url=..."
    try:
        command = ["git", "ls-remote", "--", source.url, ref]
        output = OwnGit().execute(command, env={"GIT_TERMINAL_PROMPT": "0"}, kill_after_timeout=timeout)
    except GitCommandError as error:
        why = reason(error)
        return ToolkitError(str(why), why.remedy(source.path) or remedy)
    return None if output or not source.tag else ToolkitError(f"there is no tag {source.tag}", remedy)


def references(source: Source, *arguments: str, timeout: float = 60.0) -> dict[str, str]:
    """Return the commits of the references that `git ls-remote` lists with `arguments`, in its order.

    `timeout` is in seconds. Raises ToolkitError if the repository cannot be read.
    """
    options = [argument for argument in arguments if argument.startswith("-")]
    names = [argument for argument in arguments if not argument.startswith("-")]
    command = ["git", "ls-remote", *options, "--", source.url, *names]
    try:
        output = OwnGit().execute(command, env={"GIT_TERMINAL_PROMPT": "0"}, kill_after_timeout=timeout)
    except GitCommandError as error:
        why = reason(error)
        raise ToolkitError(
            f"{source.name}: cannot list the references of {source.url} ({why})",
            why.remedy(source.path) or "check the network",
        ) from error
    lines = (line.partition("\t") for line in str(output).splitlines())
    return {reference: commit for commit, _, reference in lines}


def tip(source: Source) -> str:
    """Return the newest commit of the default branch of `source`; ToolkitError if it cannot be read."""
    found = references(source, "HEAD")
    if "HEAD" not in found:
        raise ToolkitError(f"{source.name}: {source.url} has no branch", f"correct {key(source)}.url")
    return found["HEAD"]


def version(source: Source) -> str:
    """Return the name of the pinned version: the tag, else a short commit."""
    return source.tag or source.commit[:12]


def key(source: Source) -> str:
    """Return the prefix of the settings of `source`, as `--set` spells it."""
    return "sources." + source.name.replace("-", "_")


def _pin(source: Source) -> str:
    return json.dumps([source.url, source.tag, source.commit, source.exclude])


def _config(source: Source) -> dict[str, str]:
    if not (source.path / ".git").is_dir():
        return {}
    output = local(source.path, "config", "--local", "--null", "--list")
    entries = (entry.partition("\n") for entry in output.split("\0"))
    return {name.removeprefix("toolkit."): value for name, _, value in entries if name.startswith("toolkit.")}


def _is_current(source: Source) -> bool:
    tree = inspect(source)
    if tree is None:
        return False
    if tree.config.get("pin") != _pin(source):
        check_unchanged(source)
        return False
    if tree.foreign:
        raise ToolkitError(
            f"{source.name}: {short(source.path)} has local changes ({listing(tree.foreign)})",
            f"save them, then run `{git_in(source.path)} checkout --detach {source.commit}`",
        )
    return True


def _place(source: Source, suffix: str) -> Path:
    """Return where a tree is while it is replaced; of its own: the git of a killed run may go on for a while."""
    return source.path.with_name(f".{source.name}.{os.getpid()}.{suffix}")


def _clone(sources: Sequence[Source], console: Console) -> dict[str, Cloned]:
    """Clone all of the `sources`, and only then put them in the place of what is there; return the outcomes by name."""
    found = {}
    moved: list[Source] = []
    for source in sources:
        source.path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in source.path.parent.glob(f".{source.name}.*"):
            shutil.rmtree(leftover, ignore_errors=True)
    try:
        for source in sources:
            start = time.monotonic()
            _fill(source, _place(source, "partial"), console)
            seconds = time.monotonic() - start
            files = (_place(source, "partial") / ".git").rglob("*")
            size = sum(file.stat().st_size for file in files if file.is_file())
            found[source.name] = Cloned(source, True, seconds, size)
        for source in sources:
            moved.append(source)
            if source.path.exists():
                source.path.rename(_place(source, "old"))
            _place(source, "partial").rename(source.path)
    except BaseException:
        for source in moved:
            if (old := _place(source, "old")).exists():
                if source.path.exists():
                    source.path.rename(_place(source, "partial"))
                old.rename(source.path)
            elif not _place(source, "partial").exists():
                source.path.rename(_place(source, "partial"))
        raise
    finally:
        for source in sources:
            for suffix in ("partial", "old"):
                shutil.rmtree(_place(source, suffix), ignore_errors=True)
    for source, outcome in zip(sources, found.values(), strict=True):
        console.print(
            f"{source.name}: cloned {version(source)} in {outcome.seconds:.1f} s, {outcome.size / 1e6:.1f} MB in .git",
            soft_wrap=True,
        )
    return found


def _fill(source: Source, path: Path, console: Console) -> None:
    """Make the complete tree of `source` in the new directory `path`."""
    make_repository(source, path)
    for name, value in {
        "core.sparseCheckout": "true",
        "core.sparseCheckoutCone": "false",
        "core.autocrlf": "false",
        "toolkit.pin": _pin(source),
        "toolkit.commit": source.commit,
    }.items():
        local(path, "config", name, value)
    patterns = ["/*", *(negated(pattern) for pattern in source.exclude)]
    (path / ".git/info").mkdir(exist_ok=True)
    (path / ".git/info/sparse-checkout").write_text("".join(f"{pattern}\n" for pattern in patterns))

    ref = f"refs/tags/{source.tag}" if source.tag else source.commit
    target = f"{ref}:{ref}" if source.tag else ref
    with _progress(source, console) as report:
        _remote(path, report, "fetch", "--depth=1", "--filter=blob:none", "--no-tags", "origin", target, source=source)
        found = local(path, "rev-parse", "--verify", (ref if source.tag else "FETCH_HEAD") + "^{commit}").strip()
        if found != source.commit:
            raise ToolkitError(
                f"{source.name}: tag {source.tag} of {source.url} is commit {found}, but the pin is {source.commit}",
                f"check what moved the tag, then correct {key(source)}.commit or .tag; nothing was kept",
            )
        _check_modules(source, path)
        _remote(path, report, "checkout", "--detach", source.commit, source=source)


def _check_modules(source: Source, path: Path) -> None:
    """Raise ToolkitError if the pinned commit lacks one of the modules that are to be built of it."""
    directories = {module: f"src/mod/{module}" for module in source.modules}
    there = set(local(path, "ls-tree", "-d", "-z", "--name-only", source.commit, *directories.values()).split("\0"))
    if missing := [module for module, directory in directories.items() if directory not in there]:
        raise ToolkitError(
            f"{source.name}: {version(source)} has no module {listing(missing)}",
            "correct the setting build.modules, or module_sets of invoke.yaml",
        )


def make_repository(source: Source, path: Path) -> None:
    """Make an empty repository in the new directory `path` that fetches from `source` what it needs."""
    path.mkdir(parents=True)
    local(path, "init", "--quiet", "--template=")
    for name, value in {
        "remote.origin.url": source.url,
        "remote.origin.promisor": "true",
        "remote.origin.partialCloneFilter": "blob:none",
        "gc.auto": "0",
    }.items():
        local(path, "config", name, value)


@contextmanager
def _progress(source: Source, console: Console) -> Iterator[Callable[[str], None]]:
    """Show the progress of git: a bar on a terminal, else its phases as lines.

    The function handed over takes the lines that git writes.
    """
    if not console.is_interactive:
        console.print(f"{source.name}: cloning {version(source)} from {source.url}", soft_wrap=True)
    with terminal.task(console, source.name) as shown:

        def update(line: str) -> None:
            if match := PROGRESS.match(line):
                shown.say(match["phase"].lower())
                shown.at(int(match["done"]), int(match["total"]))

        yield update


def _remote(path: Path, report: Callable[[str], None], command: str, *arguments: str, source: Source) -> None:
    """Run a git command that may use the network; `report` gets its lines of progress."""
    lines: list[str] = []

    def handle(line: str) -> None:
        report(line)
        if not PROGRESS.match(line):
            lines.append(line.rstrip())

    def finish(process: Any) -> None:
        process.wait(stderr="\n".join(lines))

    try:
        process = OwnGit(path).execute(
            [*GIT, command, "--progress", *arguments],
            env=network_environment(path),
            as_process=True,
            universal_newlines=True,
        )
        try:
            handle_process_output(process, None, handle, finish, decode_streams=False)
        except BaseException:
            end(process.pid)
            raise
    except GitCommandError as error:
        raise _not_fetched(source, reason(error)) from error


def _not_fetched(source: Source, why: Reason) -> ToolkitError:
    """Return the error that tells why `source` could not be fetched."""
    if why.kind is Failure.FULL_DISK:
        return ToolkitError(
            f"{source.name}: cannot write {version(source)} to {short(source.path.parent)} ({why.subject})",
            "make room there (`inv clean`, `docker system prune`) or use --set sources.directory=...",
        )
    if why.kind is Failure.UNKNOWN_OBJECT and why.subject != source.commit:
        return ToolkitError(
            f"{source.name}: {source.url} has {version(source)}, but not all of its files (object {why.subject} is "
            "missing)",
            f"use a complete mirror, or leave the file out with {key(source)}.exclude in {FILE.name}",
        )
    if why.kind in (Failure.UNKNOWN_OBJECT, Failure.UNKNOWN_REFERENCE):
        return ToolkitError(
            f"{source.name}: {source.url} has no {'tag ' + source.tag if source.tag else 'commit ' + source.commit}",
            f"correct {key(source)}.{'tag' if source.tag else 'commit'} or {key(source)}.url",
        )
    return ToolkitError(
        f"{source.name}: cannot fetch {version(source)} from {source.url} ({why})",
        why.remedy(source.path.parent)
        or f"check the network, redirect the address (git config --global url.MIRROR.insteadOf {source.url}) or use "
        f"--set {key(source)}.url=MIRROR",
    )


def negated(pattern: str) -> str:
    """Return what a sparse checkout takes instead of a pattern of what to leave out."""
    return pattern.removeprefix("!") if pattern.startswith("!") else f"!{pattern}"
