"""The series as a branch: commits to edit with git, and back to patch files.

`inv patches-import` makes the commits, `inv patches-export` the files.
"""

from __future__ import annotations

import dataclasses
import email
import email.policy
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.machine import git
from scripts.machine.files import remove, short
from scripts.machine.git import in_mail, local, online
from scripts.machine.terminal import listing
from scripts.patchset import hunks, proof, series, template
from scripts.patchset.hunks import DIFF
from scripts.patchset.index import BYTES, Index
from scripts.patchset.series import Patch
from scripts.pins import settings as settings_module
from scripts.pins.settings import Settings, Source
from scripts.sources import trees
from scripts.sources.trees import BRANCH, COMMITTER_EMAIL, COMMITTER_NAME, branch_tip, version

# One line of context around each change, whatever git is configured to do.
FORMAT = (
    "--unified=1", "--inter-hunk-context=0", "--diff-algorithm=myers", "--indent-heuristic", "--no-renames",
    "--no-ext-diff", "--no-textconv", "--no-color", "--full-index", "--src-prefix=a/", "--dst-prefix=b/",
    "--zero-commit", "--no-stat", "--no-signature", "--no-numbered", "--no-attach", "--no-thread",
    "--no-encode-email-headers", "--subject-prefix=PATCH", "--filename-max-length=200",
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """The series of one upstream, as files: texts by name, and which of them differ from those in patches/.

    `removed` are files that were there and are none of the series any more.
    """

    upstream: str
    texts: Mapping[str, str]
    written: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether there is anything to write or to remove."""
        return bool(self.written or self.removed)


def import_series(settings: Settings, console: Console | None = None, base: Settings | None = None) -> None:
    """Commit the series on the branch `series` of every tree and check that out.

    Where it does not apply to the pin, it is carried over from the pin of
    `base` (None: invoke.yaml), and conflicts are left in the tree, as git shows
    them. Raises ToolkitError if there are some, or if a tree has changes of
    the user. Whatever else fails or interrupts it leaves the trees as they were.
    """
    console = console or get_console()
    base = base or settings_module.load()
    conflicts: list[str] = []
    done: list[str] = []
    with trees.locked(settings.sources, console):
        for source in settings.sources:
            series.own_tree(source)
            _check_branch(source)
        with _restoring(settings.sources):
            for source in settings.sources:
                try:
                    outcome = series.check_source(settings, source)
                except ToolkitError as error:
                    conflicts += _carry_over(settings, source, base, error, console)
                    continue
                if outcome.patches:
                    series.apply_source(source, outcome.patches)
                    _put_branch(source)
                    number = len(outcome.patches)
                    done.append(f"{source.name}: {number} commits on branch {BRANCH} in {short(source.path)}")
    for line in done:
        console.print(line, soft_wrap=True)
    if conflicts:
        raise ToolkitError("; ".join(conflicts))


def export_series(settings: Settings, console: Console | None = None, base: Settings | None = None) -> list[Exported]:
    """Write the commits on the pins back as the series: all upstreams, or none.

    The line numbers are those of the pins of `base` (None: invoke.yaml): an
    export from another release leaves them alone where it can. Raises
    ToolkitError if a tree has uncommitted changes or is in the middle of an
    operation of git, or if a template would lose a variable or a condition.
    """
    console = console or get_console()
    if settings.excluded_patches:
        raise ToolkitError(
            f"setting 'patches.exclude' leaves out {listing(settings.excluded_patches)}", "export without it"
        )
    with trees.locked(settings.sources, console):
        _recover(settings)
        pins = {source.name: source.commit for source in (base or settings_module.load()).sources}
        exported = [
            item
            for source in settings.sources
            for item in _export(settings, source, pins.get(source.name, source.commit) == source.commit)
        ]
        for item in exported:
            if item.changed:
                _write(settings, item)
        for source in settings.sources:
            _adopt(settings, source)
    for item in exported:
        if item.texts or item.changed:
            count = f"{len(item.written)} of {len(item.texts)}" if item.changed else str(len(item.texts))
            state = "written" if item.changed else "unchanged"
            removed = f", {len(item.removed)} removed" if item.removed else ""
            console.print(
                f"{item.upstream}: {count} patches {state}{removed} in {short(settings.patches)}", soft_wrap=True
            )
    return exported


@contextmanager
def _restoring(every: Sequence[Source]) -> Iterator[None]:
    """Put the trees of `every` source, which have no changes, back as they were if something is raised."""
    names = ("--abbrev-ref", "HEAD")
    before = [
        (source, trees.require(source), local(source.path, "rev-parse", *names).strip(), branch_tip(source))
        for source in every
    ]
    try:
        yield
    except BaseException:
        for source, tree, checked_out, tip in before:
            series.restore(source, tree)
            if tip:
                local(source.path, "branch", "--force", BRANCH, tip)
            elif branch_tip(source):
                local(source.path, "branch", "-D", BRANCH)
            if checked_out != "HEAD":
                local(source.path, "checkout", "--quiet", checked_out)
        raise


def _put_branch(source: Source) -> None:
    """Make the commit that is checked out, which the patches make, the branch `series`, and check that out."""
    local(source.path, "checkout", "--quiet", "-B", BRANCH)
    local(source.path, "config", "toolkit.branch", branch_tip(source))


def _check_branch(source: Source) -> None:
    """Raise ToolkitError if the branch `series` has commits of the user, which an import would drop."""
    if not local(source.path, "branch", "--list", BRANCH).strip():
        return
    lines = local(source.path, "log", "--format=%ce%x09%h %s", BRANCH, f"^{source.commit}").splitlines()
    if mine := [line.split("\t", 1)[1] for line in lines if line.split("\t")[0] != COMMITTER_EMAIL]:
        raise ToolkitError(
            f"{source.name}: branch {BRANCH} in {short(source.path)} has commits of yours ({listing(mine)})",
            "check it out and run `inv patches-export`, or rename it "
            f"(`{git.git_in(source.path)} branch -m {BRANCH} NAME`)",
        )


def _carry_over(
    settings: Settings, source: Source, base_settings: Settings, why: ToolkitError, console: Console
) -> list[str]:
    """Cherry-pick the series from the release that invoke.yaml pins; return a line if that ends in conflicts."""
    pinned = {item.name: item for item in base_settings.sources}
    base = pinned.get(source.name, source)
    if base.commit == source.commit or source.carried:
        raise why
    console.print(
        f"{source.name}: does not apply to {version(source)}, carried over from {version(base)}", soft_wrap=True
    )
    path = source.path
    online(path, "fetch", "--quiet", "--depth=1", "--filter=blob:none", "--no-tags", "origin", base.commit)
    on_base = dataclasses.replace(
        settings,
        sources=tuple(
            dataclasses.replace(item, tag=base.tag, commit=base.commit) if item.name == source.name else item
            for item in settings.sources
        ),
    )
    patches = series.render(on_base, on_base.source(source.name))
    commits = _commit_all(source, base.commit, patches)
    series.to_pin(source)
    local(path, "config", "toolkit.applying", json.dumps(series.touched(patches)))
    local(path, "checkout", "--quiet", "-B", BRANCH, source.commit)
    local(path, "config", "toolkit.branch", source.commit)
    local(path, "config", "toolkit.series", series.patches_hash(series.render(settings, source)))
    try:
        identity = {"GIT_COMMITTER_NAME": COMMITTER_NAME, "GIT_COMMITTER_EMAIL": COMMITTER_EMAIL}
        # Finding renames would fetch half of the tree.
        online(path, "-c", "merge.renames=false", "cherry-pick", *commits, env=identity)
    except ToolkitError as error:
        if not (path / ".git/CHERRY_PICK_HEAD").exists():
            raise
        series.unset(source, "applying")
        files = local(path, "diff", "--name-only", "--diff-filter=U").split()
        return [
            f"{source.name}: conflicts in {listing(files)} of {short(path)}: resolve them, `git add` the files and run "
            f"`{git.git_in(path)} cherry-pick --continue`, then `inv patches-export`" + ("" if files else f" ({error})")
        ]
    series.unset(source, "applying")
    return []


def _commit_all(source: Source, parent: str, patches: Sequence[Patch]) -> list[str]:
    """Commit the `patches` on `parent` without touching the tree; return the commits."""
    commits = []
    with Index.at(source.path, parent) as index:
        for patch in patches:
            index.apply(patch.text, fetch=True)
            found = in_mail(index.mail)
            body = ["-m", found.body.strip()] if found.body.strip() else []
            identity = {
                "GIT_AUTHOR_NAME": found.author,
                "GIT_AUTHOR_EMAIL": found.address,
                "GIT_AUTHOR_DATE": found.date,
                "GIT_COMMITTER_NAME": COMMITTER_NAME,
                "GIT_COMMITTER_EMAIL": COMMITTER_EMAIL,
            }
            words = ("-p", parent, "-m", found.subject, *body)
            parent = local(source.path, "commit-tree", index.tree(), *words, env=identity).strip()
            commits.append(parent)
    return commits


def _export(settings: Settings, source: Source, places: bool) -> list[Exported]:
    commits = _commits(source)
    _check_imported(settings, source, commits)
    variables = series.variables(settings)
    result = []
    owners = {commit: _owner(source, commit) for commit in commits}
    made: dict[tuple[str, str], str] = {}
    for upstream, directory in (*source.carried, (source.name, "")):
        mine = [commit for commit in commits if owners[commit] == upstream]
        texts, of = _texts(settings, source, upstream, directory, mine, variables, places)
        made |= {(upstream, name): commit for name, commit in of.items()}
        old = {path.name: path.read_bytes().decode(errors=BYTES) for path in series.files(settings, upstream)}
        written = tuple(name for name, text in texts.items() if old.get(name) != text)
        result.append(Exported(upstream, texts, written, tuple(name for name in old if name not in texts)))
    proof.check(settings, source, {item.upstream: item.texts for item in result}, made)
    return result


def _commits(source: Source) -> list[str]:
    """Return the commits on the pin, oldest first; ToolkitError if the tree is in no state to export."""
    tree = trees.require(source)
    trees.check_idle(source)
    if changed := trees.changes(source):
        raise ToolkitError(
            f"{source.name}: {short(source.path)} has uncommitted changes ({listing(changed)})",
            "commit them, to the patch they belong to (`git rebase -i`), or discard them",
        )
    if tree.head != tree.pin and not git.is_ancestor(source.path, tree.pin):
        raise ToolkitError(
            f"{source.name}: {tree.head[:12]} in {short(source.path)} does not stand on the pin {tree.pin[:12]} "
            "(or the history is too shallow to tell)",
            f"check out the branch {BRANCH}, or rebase it onto the pin",
        )
    if merges := local(source.path, "rev-list", "--merges", f"{tree.pin}..HEAD").split():
        raise ToolkitError(f"{source.name}: {merges[0][:12]} is a merge, which is no patch", "rebase it away")
    return local(source.path, "rev-list", "--reverse", f"{tree.pin}..HEAD").split()


def _check_imported(settings: Settings, source: Source, commits: Sequence[str]) -> None:
    """Raise ToolkitError if the export would overwrite patches that the tree was not made from."""
    patches = series.render(settings, source)
    if patches and not commits:
        raise ToolkitError(
            f"{source.name}: {short(source.path)} is at the pin, and would leave no patches",
            f"run `inv patches-import`, or check out the branch {BRANCH}",
        )
    if patches and trees.require(source).config.get("series") != series.patches_hash(patches):
        raise ToolkitError(
            f"{source.name}: {short(settings.patches)} has changed since the import into {short(source.path)}",
            f"save your commits (`{git.git_in(source.path)} branch NAME`), run `inv patches-import` and pick them "
            "again",
        )


def _owner(source: Source, commit: str) -> str:
    """Return the upstream whose files `commit` changes."""
    files = local(source.path, "diff-tree", "-r", "-z", "--name-only", "--no-commit-id", commit).split("\0")
    owners = {
        next((name for name, directory in source.carried if file.startswith(f"{directory}/")), source.name)
        for file in files
        if file
    }
    if len(owners) != 1:
        what = f"changes files of {' and '.join(sorted(owners))}" if owners else "changes nothing"
        raise ToolkitError(
            f"{source.name}: commit {commit[:12]} in {short(source.path)} {what}", "split it" if owners else "drop it"
        )
    return owners.pop()


def _texts(
    settings: Settings,
    source: Source,
    upstream: str,
    directory: str,
    commits: Sequence[str],
    variables: Mapping[str, object],
    places: bool,
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the patch templates of `commits` by file name, and the commits by the same.

    Patches that are left out of this release, and so have no commit, stay as
    they are and keep their numbers.
    """
    old = {}
    texts: dict[str, str] = {}
    for path in series.files(settings, upstream):
        content = path.read_bytes().decode(errors=BYTES)
        filled = "".join(line.text for line in template.fill(content, variables, short(path)))
        if f"\n{DIFF}" in filled:
            old[_subject(filled)] = (path, content)
        else:
            texts[path.name] = content
    taken = {int(name[:4]) for name in texts}
    numbers = [number for number in range(1, len(commits) + len(taken) + 1) if number not in taken]
    mails = [_mail(source, commit, directory, number) for number, commit in zip(numbers, commits, strict=False)]
    subjects = {_subject(text) for _, text in mails}
    made = {}
    for commit, number, (name, text) in zip(commits, numbers, mails, strict=False):
        known = old.get(_subject(text)) or _renamed(old, subjects, number)
        if known:
            path, content = known
            # The name tells the event as it was called when the patch was made.
            slug = path.name[5:] if _subject(text) in old else name[5:]
            name = f"{number:04}-{slug}"
            texts[name] = template.merge(content, variables, text, short(path), places)
        else:
            texts[name] = template.put_back(text, variables)
        made[name] = commit
    return texts, made


def _renamed(old: Mapping[str, tuple[Path, str]], subjects: set[str], number: int) -> tuple[Path, str] | None:
    """Return the patch that had this number if no commit has its subject any more."""
    for subject, (path, content) in old.items():
        if subject not in subjects and int(path.name[:4]) == number:
            return path, content
    return None


def _subject(mail: str) -> str:
    return str(email.message_from_string(mail, policy=email.policy.default)["Subject"])


def _mail(source: Source, commit: str, directory: str, number: int) -> tuple[str, str]:
    """Return the file name and the text of the patch that `commit` is."""
    relative = [f"--relative={directory}"] if directory else []
    with tempfile.TemporaryDirectory() as target:
        local(
            source.path, "format-patch", "-1", "--quiet", f"--output-directory={target}",
            f"--start-number={number}", *FORMAT, *relative, commit,
        )  # fmt: skip
        (file,) = Path(target).iterdir()
        text = file.read_bytes().decode(errors=BYTES)

        def read(path: str) -> list[str]:
            return hunks.split(git.blob(source.path, f"{commit}^", f"{directory}/{path}" if directory else path))

        return file.name, hunks.tidy(text, read)


def _directories(settings: Settings, upstream: str) -> tuple[Path, Path, Path]:
    """Return the directory of the series of `upstream`, and where a new and the old one are while it is replaced.

    They are next to it: a rename does not lead to another file system.
    """
    target = settings.patches / upstream
    return target, target.with_name(f".{upstream}.new"), target.with_name(f".{upstream}.old")


def _write(settings: Settings, item: Exported) -> None:
    """Replace the series of one upstream: by two renames, between which a signal leaves what `_recover` mends."""
    target, new, old = _directories(settings, item.upstream)
    remove(new)
    remove(old)
    new.mkdir()
    for name, text in item.texts.items():
        (new / name).write_bytes(text.encode(errors=BYTES))
    if target.exists():
        for path in target.iterdir():
            if path.suffix != ".patch":
                path.rename(new / path.name)
        target.rename(old)
    new.rename(target)
    remove(old)


def _recover(settings: Settings) -> None:
    """Put back what an export that was interrupted had moved out of the way."""
    for source in settings.sources:
        for upstream in (source.name, *dict(source.carried)):
            target, new, old = _directories(settings, upstream)
            if old.exists() and not target.exists():
                old.rename(target)
            remove(new)
            remove(old)


def _adopt(settings: Settings, source: Source) -> None:
    """Make the exported commits the toolkit's own, so that `inv patch` and `inv clone` know them."""
    tree = trees.require(source)
    patches = tuple(series.render(settings, source))
    if not patches or series.is_applied(tree, patches):
        return
    before = local(source.path, "rev-parse", "HEAD^{tree}").strip()
    # The commits are the series now: if this is interrupted, another export takes them.
    local(source.path, "config", "toolkit.series", series.patches_hash(patches))
    with _restoring([source]):
        series.apply_source(source, patches)
        if local(source.path, "rev-parse", "HEAD^{tree}").strip() != before:
            raise ToolkitError(
                f"{source.name}: the exported series does not make the tree of {tree.head[:12]} again",
                "take the patches back (`git checkout patches`) and report this",
            )
        _put_branch(source)
