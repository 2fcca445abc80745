"""The patch series: render it, check it, apply it, take it back.

Patches are `git format-patch` mails in patches/<upstream>/NNNN-*.patch and
templates (scripts/patchset/template.py) at once.
"""

from __future__ import annotations

import email
import email.policy
import enum
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich import get_console
from rich.console import Console
from rich.table import Table
from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchSet

from scripts.errors import ToolkitError
from scripts.machine import git
from scripts.machine.files import short
from scripts.machine.git import Failure, GitError, Reason, in_mail, local
from scripts.machine.terminal import listing
from scripts.patchset import template
from scripts.patchset.hunks import DIFF, context, new_lines, split
from scripts.patchset.index import BYTES, Index
from scripts.pins.releases import IN_TREE_VERSION, Version
from scripts.pins.settings import Settings, Source
from scripts.sources import trees
from scripts.sources.trees import COMMITTER_EMAIL, COMMITTER_NAME, Tree, version

NAME = re.compile(r"\d{4}-.+\.patch")


class Action(enum.StrEnum):
    """What was done to a tree, as the user reads it."""

    NOTHING = "no patches"
    APPLIES = "applies"
    APPLIED = "applied"
    ALREADY = "already applied"
    REPLACED = "replaced an older series"
    REVERTED = "back at the pin"
    AT_PIN = "at the pin already"


@dataclass(frozen=True)
class FileChange:
    """The lines that a patch adds to and removes from the file `path`."""

    path: str
    added: int
    removed: int


@dataclass(frozen=True)
class Patch:
    """One rendered patch of `upstream`: `text` is the whole mail, `diff` its parsed diff.

    `directory` is where in the tree the upstream's sources are, "" for its own tree.
    """

    path: Path
    subject: str
    text: str
    diff: PatchSet
    upstream: str
    directory: str = ""

    @property
    def name(self) -> str:
        """The file name, NNNN-*.patch, after the upstream's if that is only a directory in another's tree."""
        return f"{self.upstream}-{self.path.name}" if self.directory else self.path.name

    @property
    def diffstat(self) -> tuple[FileChange, ...]:
        """The changed lines of each file."""
        return tuple(FileChange(file.path, file.added, file.removed) for file in self.diff)


@dataclass(frozen=True)
class Outcome:
    """What was done to `source` with which patches."""

    source: Source
    action: Action
    patches: tuple[Patch, ...]


def render(settings: Settings, source: Source) -> list[Patch]:
    """Return the patches of `source` in the order of their numbers.

    Those of the upstreams that it carries come first. A patch whose conditions
    leave nothing of its diff is left out. Raises ToolkitError, with file and
    line, on an error in the template, an unknown variable or a diff that cannot
    be parsed.
    """
    rendered = [
        render_file(settings, path, name, directory)
        for name, directory in (*source.carried, (source.name, ""))
        for path in files(settings, name)
    ]
    return [patch for patch in rendered if patch]


def variables(settings: Settings) -> dict[str, object]:
    """Return what templates can use: the names of the events, and the version of each upstream."""
    versions = {source.name: Version(source.tag) for source in settings.sources}
    for source in settings.sources:
        versions |= {name: Version(IN_TREE_VERSION) for name, _ in source.carried}
    return {
        "nua_event": settings.nua_event,
        "esl_event": settings.esl_event,
        **{name.replace("-", "_"): version for name, version in versions.items()},
    }


def series_hash(settings: Settings) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of all rendered patches and their names."""
    return patches_hash([patch for source in settings.sources for patch in render(settings, source)])


def check(settings: Settings) -> list[Outcome]:
    """Check that the series applies to the pins, whatever is in the trees now.

    The trees stay as they are. Raises ToolkitError that names the first hunk
    that does not apply, or that the build would refuse.
    """
    return [check_source(settings, source, for_build=True) for source in settings.sources]


def apply(settings: Settings) -> list[Outcome]:
    """Commit the series on top of the pins: in all trees or, if that fails, in none.

    An older series of the toolkit is replaced. Raises ToolkitError if a patch
    does not apply or a tree has changes or commits of the user.
    """
    outcomes = check(settings)
    trees = {source.name: own_tree(source) for source in settings.sources}
    results: list[Outcome] = []
    changed: list[tuple[Source, Tree]] = []
    try:
        for outcome in outcomes:
            source, tree = outcome.source, trees[outcome.source.name]
            if is_applied(tree, outcome.patches):
                action = Action.ALREADY if outcome.patches else Action.NOTHING
                results.append(Outcome(source, action, outcome.patches))
                continue
            changed.append((source, tree))
            apply_source(source, outcome.patches)
            action = Action.REPLACED if tree.head != tree.pin else Action.APPLIED
            results.append(Outcome(source, action, outcome.patches))
    except BaseException:
        for source, tree in changed:
            restore(source, tree)
        raise
    return results


def revert(settings: Settings) -> list[Outcome]:
    """Take the trees back to their pins.

    Raises ToolkitError, before it touches any, if a tree has changes or
    commits of the user.
    """
    trees = [(source, own_tree(source)) for source in settings.sources]
    results = []
    for source, tree in trees:
        to_pin(source)
        results.append(Outcome(source, Action.AT_PIN if tree.head == tree.pin else Action.REVERTED, ()))
    return results


def run(settings: Settings, check_only: bool = False, to_pins: bool = False, console: Console | None = None) -> None:
    """Apply the series, or only check it, or take the trees back to their pins, and print the outcome."""
    if check_only and to_pins:
        raise ToolkitError("--check and --revert exclude each other", "give one of them")
    with trees.locked(settings.sources, console):
        outcomes = check(settings) if check_only else revert(settings) if to_pins else apply(settings)
    show(outcomes, console)


def show(outcomes: list[Outcome], console: Console | None = None) -> None:
    """Print what was done: a line per source and, if patches were applied, per patch and file."""
    console = console or get_console()
    table = Table("", "+", "-", box=None, pad_edge=False, show_header=any(map(_is_news, outcomes)))
    table.columns[0].overflow = "fold"
    for outcome in outcomes:
        number = len(outcome.patches)
        count = f" ({number} patch{'es' if number > 1 else ''})" if number else ""
        table.add_row(f"{outcome.source.name} {version(outcome.source)}: {outcome.action}{count}")
        for patch in outcome.patches if _is_news(outcome) else ():
            table.add_row(f"  {patch.name}")
            for file in patch.diffstat:
                table.add_row(f"    {file.path}", str(file.added), str(file.removed))
    console.print(table, highlight=False)


def _is_news(outcome: Outcome) -> bool:
    return bool(outcome.patches) and outcome.action is not Action.ALREADY


def files(settings: Settings, upstream: str) -> list[Path]:
    """Return the files of the series of `upstream` in order, without those that the settings leave out.

    Raises ToolkitError on a file or directory that is not named as it should be.
    """
    known = {name for item in settings.sources for name in (item.name, *dict(item.carried))}
    trees.require_series(settings.patches)
    for directory in settings.patches.iterdir():
        # An export that was killed leaves hidden ones.
        if directory.is_dir() and directory.name not in known and not directory.name.startswith("."):
            raise ToolkitError(f"{short(directory)}: there is no source of that name, use {listing(sorted(known))}")
    found = sorted((settings.patches / upstream).glob("*.patch"))
    for path in found:
        if not NAME.fullmatch(path.name):
            raise ToolkitError(short(path), "name it NNNN-subject.patch, the number gives the order")
    numbers = [f"{upstream}/{path.name[:4]}" for path in found]
    for index, path in enumerate(found, 1):
        number = int(path.name[:4])
        if number < index:
            raise ToolkitError(f"{short(path)}: another patch has this number", "give it the next free one")
        if number > index:
            raise ToolkitError(
                f"{short(path)}: there is no patch {index:04} before it", "take it back, or number without gaps"
            )
    for excluded in settings.excluded_patches:
        name = excluded.split("/")[0]
        if name not in known or (name == upstream and excluded not in numbers):
            raise ToolkitError(f"setting 'patches.exclude': there is no patch {excluded} in {short(settings.patches)}")
    return [path for path, number in zip(found, numbers, strict=True) if number not in settings.excluded_patches]


def render_file(settings: Settings, path: Path, upstream: str, directory: str) -> Patch | None:
    """Return the patch of the template `path`, None if its conditions leave nothing of its diff.

    `directory` is where the files of `upstream` are in the tree, "" if they
    are all of it. Raises ToolkitError like `render`.
    """
    where = short(path)
    mail_template = path.read_bytes().decode(errors=BYTES)
    if "\r" in mail_template:
        raise ToolkitError(f"{where}: has carriage returns", "save it with Unix line ends")
    text = "".join(line.text for line in template.fill(mail_template, variables(settings), where))
    mail = email.message_from_string(text, policy=email.policy.default)
    for header in ("From", "Date", "Subject"):
        if header not in mail:
            raise ToolkitError(f"{where}: has no '{header}:' header", "make the file with `git format-patch`")
    subject = re.sub(r"^\[PATCH[^]]*\]\s*", "", str(mail["Subject"]))
    text = _moved(text, directory) if directory else text
    try:
        diff = PatchSet(text)
    except UnidiffParseError as error:
        raise ToolkitError(f"{where}{_corrupt_line(text)}: {' '.join(str(error).split())}") from error
    if not diff and template.is_conditional(mail_template):
        return None
    if not diff:
        raise ToolkitError(f"{where}: has no diff", "make the file with `git format-patch`")
    return Patch(path, subject, text, diff, upstream, directory)


def _moved(text: str, directory: str) -> str:
    """Return the patch `text` for a tree that has the upstream's sources in `directory`."""
    lines = split(text)
    header = False
    for index, line in enumerate(lines):
        header = line.startswith(DIFF) or (header and not line.startswith("@@ "))
        if header:
            lines[index] = re.sub(r"(?<= )([ab])/", rf"\1/{directory}/", line)
    return "".join(lines)


def _corrupt_line(text: str) -> str:
    """Return ":LINE" of the spot where git cannot read the patch, "" if it can."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "patch"
        file.write_text(text, errors=BYTES)
        try:
            local(Path(directory), "apply", "--numstat", str(file))
        except GitError as error:
            if error.reason.kind is Failure.CORRUPT_PATCH:
                return f":{error.reason.line}"
    return ""


def patches_hash(patches: list[Patch] | tuple[Patch, ...]) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of the rendered `patches` and their names."""
    digest = hashlib.sha256()
    for patch in patches:
        for part in (patch.upstream, patch.path.name, patch.text):
            data = part.encode(errors=BYTES)
            digest.update(b"%d:%b" % (len(data), data))
    return digest.hexdigest()


def check_source(settings: Settings, source: Source, for_build: bool = False) -> Outcome:
    """Check that the series applies to the pin of `source`, like `check`; with git alone, if not `for_build`."""
    trees.require(source)
    patches = tuple(render(settings, source))
    if not patches:
        return Outcome(source, Action.NOTHING, ())
    with Index.at(source.path, source.commit) as index:
        for number, patch in enumerate(patches):
            _check_author(source, patch, index.write(patch.text))
            put(index, source, patch, first=not number)
            if for_build and (why := uneven(index, patch)):
                raise ToolkitError(
                    f"{short(patch.path)}: {why}",
                    "give it as many above as below (`inv patches-import` and `inv patches-export` do)",
                )
    return Outcome(source, Action.APPLIES, patches)


def put(index: Index, source: Source, patch: Patch, first: bool) -> None:
    """Apply `patch`, the `first` one or not, to an index of `source`.

    Raises ToolkitError, with the hunk or the line, if it does not apply.
    """
    try:
        index.apply(patch.text)
    except GitError as error:
        if error.reason.kind is Failure.CORRUPT_PATCH:
            raise ToolkitError(
                f"{short(patch.path)}:{error.reason.line}: git can't read the diff there",
                "take the patch back, or make it anew with `git format-patch`",
            ) from error
        if error.reason.kind is not Failure.DOES_NOT_APPLY:
            raise
        before = "" if first else " with the patches before it"
        raise ToolkitError(
            f"{short(patch.path)}: {culprit(patch, error.reason)} {source.name} {version(source)}{before}",
            "make the patch anew on that version",
        ) from error


def _check_author(source: Source, patch: Patch, mail: Path) -> None:
    """Raise ToolkitError if git would not take the author of `patch`, or its date, when it commits."""
    try:
        found = in_mail(mail)
        author = {
            "GIT_AUTHOR_NAME": found.author,
            "GIT_AUTHOR_EMAIL": found.address,
            "GIT_AUTHOR_DATE": found.date,
        }
        local(source.path, "var", "GIT_AUTHOR_IDENT", env=author)
    except ToolkitError as error:
        why = error.reason if isinstance(error, GitError) else error
        raise ToolkitError(
            f"{short(patch.path)}: git can't commit it ({why})",
            "correct its 'From:' and 'Date:', or make it anew with `git format-patch`",
        ) from error


def uneven(index: Index, patch: Patch) -> str:
    """Return which hunk of `patch`, which has just been applied to an index, the build would refuse, "" if none.

    GNU patch takes a hunk with less context below than above for one at the
    end of the file, and one with less above, on line 1, for one at the start.
    git takes the former so only if there is none below at all.
    """
    for file in patch.diff:
        for number, hunk in enumerate(file, 1):
            above, below = context(hunk)
            if above == below:
                continue
            left = [line.rstrip("\n") for line in new_lines(hunk)]
            content = index.read(file.path).rstrip("\n").split("\n")
            if left == (content[: len(left)] if above < below else content[-len(left) :]):
                continue
            return (
                f"hunk {number} of {file.path} (@@ -{hunk.source_start},{hunk.source_length}) has {above} "
                f"line{'s' * (above != 1)} of context above and {below} below, and is not at the "
                f"{'start' if above < below else 'end'} of the file, so the build can refuse it"
            )
    return ""


def culprit(patch: Patch, reason: Reason) -> str:
    """Return, from git's `reason`, which hunk of which file does not apply "to" something, or what else does not."""
    for file in patch.diff:
        for number, hunk in enumerate(file, 1):
            if (file.path, hunk.source_start) == (reason.subject, reason.line):
                header = f"@@ -{hunk.source_start},{hunk.source_length}"
                return f"hunk {number} of {file.path} ({header}) does not apply to"
    return f"{reason}, so it does not apply to"


@contextmanager
def _mails(patches: tuple[Patch, ...]) -> Iterator[list[Path]]:
    """Write the rendered patches to files in a temporary directory."""
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / patch.name for patch in patches]
        for file, patch in zip(files, patches, strict=True):
            file.write_text(patch.text, errors=BYTES)
        yield files


def own_tree(source: Source) -> Tree:
    """Return the state of the tree of `source`, in which everything is the toolkit's own.

    Ends a `git am` of the toolkit that was interrupted. Raises ToolkitError
    if there are changes, commits or an operation of the user.
    """
    tree = trees.require(source)
    trees.check_idle(source)
    changed = set(trees.changes(source))
    where = f"{source.name}: {short(source.path)}"
    if "applying" in tree.config:
        # The tree was clean when the toolkit began: what is on files of its patches, it did itself.
        changed -= set(json.loads(tree.config["applying"]))
    if changed:
        raise ToolkitError(
            f"{where} has uncommitted changes ({listing(sorted(changed))})",
            f"commit them elsewhere or discard them (`{git.git_in(source.path)} stash -u`)",
        )
    if tree.foreign:
        raise ToolkitError(
            f"{where} has commits that are not the toolkit's ({listing(tree.foreign)})",
            f"save them (`{git.git_in(source.path)} branch NAME`), then run "
            f"`{git.git_in(source.path)} checkout --detach {source.commit}`",
        )
    return tree


def is_applied(tree: Tree, patches: tuple[Patch, ...]) -> bool:
    """Return whether the tree is what the toolkit made of these `patches`."""
    if "applying" in tree.config:
        return False
    if not patches:
        return tree.head == tree.pin
    return tree.config.get("series") == patches_hash(patches) and tree.config.get("head") == tree.head


def apply_source(source: Source, patches: tuple[Patch, ...]) -> None:
    """Commit the `patches` on the pin of a tree that has nothing of the user in it."""
    to_pin(source)
    if patches:
        local(source.path, "config", "toolkit.applying", json.dumps(touched(patches)))
        with _mails(patches) as mails:
            _am(source, mails)
    head = local(source.path, "rev-parse", "HEAD").strip()
    local(source.path, "config", "toolkit.head", head)
    local(source.path, "config", "toolkit.series", patches_hash(patches))
    unset(source, "applying")


def touched(patches: Sequence[Patch]) -> list[str]:
    """Return the names of the files that the `patches` change, sorted."""
    files = [file for patch in patches for file in patch.diff]
    # A renamed file has two names.
    return sorted({file.path for file in files} | {file.source_file.removeprefix("a/") for file in files})


def _am(source: Source, mails: list[Path]) -> None:
    identity = {"GIT_COMMITTER_NAME": COMMITTER_NAME, "GIT_COMMITTER_EMAIL": COMMITTER_EMAIL}
    options = ("--quiet", "--committer-date-is-author-date", "--whitespace=nowarn", "--no-gpg-sign")
    local(source.path, "am", *options, *map(str, mails), env=identity)


def to_pin(source: Source) -> None:
    """Check out the pin of a tree that has nothing of the user in it."""
    tree = trees.require(source)
    if "applying" in tree.config:
        _abort(source, json.loads(tree.config["applying"]))
    local(source.path, "checkout", "--quiet", "--detach", tree.pin)
    for name in ("series", "head", "applying"):
        unset(source, name)


def _abort(source: Source, files: list[str]) -> None:
    """Clear away what git was doing for the toolkit, with the half-written `files` of its patches."""
    for name in ("rebase-apply", "sequencer"):
        shutil.rmtree(source.path / ".git" / name, ignore_errors=True)
    local(source.path, "reset", "--quiet", "--hard")
    for path in set(trees.changes(source)) & set(files):
        (source.path / path).unlink()


def restore(source: Source, tree: Tree) -> None:
    """Put a tree that had no changes back to the commit and the records that it had, wherever it is now."""
    files = set(json.loads(trees.require(source).config.get("applying", "[]")))
    # A checkout that was interrupted leaves files behind, too.
    files.update(local(source.path, "diff", "--name-only", "--no-renames", "-z", tree.head, tree.pin).split("\0"))
    _abort(source, sorted(files))
    local(source.path, "checkout", "--quiet", "--detach", tree.head)
    unset(source, "applying")
    for name in ("series", "head", "branch"):
        if name in tree.config:
            local(source.path, "config", f"toolkit.{name}", tree.config[name])
        else:
            unset(source, name)


def unset(source: Source, name: str) -> None:
    """Forget the record `name` of a tree."""
    if name in trees.require(source).config:
        local(source.path, "config", "--unset-all", f"toolkit.{name}")
