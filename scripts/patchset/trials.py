"""The matrix: does the series apply to every release of the upstreams?"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich import get_console
from rich.console import Console
from rich.table import Table

from scripts.errors import ToolkitError
from scripts.machine import files, git, terminal
from scripts.machine.files import remove
from scripts.machine.git import GitError, local
from scripts.machine.terminal import listing
from scripts.patchset import series
from scripts.patchset.hunks import context, new_lines, old_lines, places, split
from scripts.patchset.index import Index
from scripts.patchset.series import Patch
from scripts.pins import releases
from scripts.pins.releases import Pair, Release, Releases
from scripts.pins.settings import Settings, Source, choose
from scripts.sources import trees

MATRIX_FILE = "matrix.json"
TIP_FILE = "tip.json"


@dataclass(frozen=True)
class Trial:
    """What came of trying the series of one upstream on one of its releases.

    `offset` is the largest number of lines that a hunk was moved by; `fuzz` how
    many lines of context git had to ignore (0 if it `applies`). `why` it does
    not apply is one line.
    """

    upstream: str
    release: str
    carried: tuple[str, ...]
    hunks: int
    applies: bool
    offset: int = 0
    fuzz: int = 0
    why: str = ""


@dataclass(frozen=True)
class _Task:
    settings: Settings
    source: Source
    release: str
    patches: tuple[Patch, ...]


def run(settings: Settings, console: Console | None = None, tip: bool = False) -> bool:
    """Try the series on every release that releases.yaml lists and print a table; return whether all apply.

    With `tip`, only on the newest commits of the upstreams, which no release
    has. The trials are written to the report directory, too.
    """
    console = console or get_console()
    start = time.monotonic()
    trials = try_release(settings, newest(settings), console) if tip else try_all(settings, releases.load(), console)
    write(trials, settings.report_directory / (TIP_FILE if tip else MATRIX_FILE))
    show(trials, console)
    good = sum(trial.applies for trial in trials)
    percent = 100 * good // len(trials) if trials else 0
    what = "newest commits" if tip else "releases"
    console.print(f"{good} of {len(trials)} {what} apply ({percent} %), {time.monotonic() - start:.1f} s")
    return good == len(trials)


def newest(settings: Settings) -> Pair:
    """Return the newest commits of FreeSWITCH and sofia-sip, pinned or not."""
    freeswitch, sofia = (trees.tip(settings.source(name)) for name in ("freeswitch", "sofia-sip"))
    return Pair(Release(releases.MASTER, freeswitch), Release(releases.MASTER, sofia))


def write(trials: Sequence[Trial], path: Path) -> None:
    """Write the `trials` to `path` as JSON."""
    document = {
        "applies": all(trial.applies for trial in trials),
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    files.write(path, json.dumps(document, indent=2) + "\n")


def try_all(settings: Settings, known: Releases, console: Console | None = None) -> list[Trial]:
    """Return a trial for every release of `known`, in order.

    Only the files that the series touches are fetched, into build/matrix.
    Raises ToolkitError if an upstream cannot be reached or a tag has moved.
    """
    tasks = [*_freeswitch_tasks(settings, known), *_sofia_tasks(settings, known)]
    return try_tasks(settings, tasks, console)


def try_release(settings: Settings, pair: Pair, console: Console | None = None) -> list[Trial]:
    """Return the trials of the series on the releases of `pair`."""
    chosen = choose(settings, pair)
    tasks = [_task(chosen, source, source.tag or source.commit[:12]) for source in chosen.sources]
    return try_tasks(settings, [task for task in tasks if task.patches], console)


def try_tasks(settings: Settings, tasks: Sequence[_Task], console: Console | None = None) -> list[Trial]:
    """Fetch what the `tasks` need and carry them out in parallel; return the trials in their order."""
    console = console or get_console()
    results: dict[int, Trial] = {}
    with terminal.task(console, "upstreams") as shown:
        shown.say("fetching")
        repositories = _fetch(settings, tasks)
    with (
        terminal.task(console, "applying", len(tasks)) as shown,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        futures = {pool.submit(_try, repositories[task.source.name], task): index for index, task in enumerate(tasks)}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            shown.advance()
    return [results[index] for index in range(len(tasks))]


def show(trials: Sequence[Trial], console: Console) -> None:
    """Print a row per trial, and a line for each that does not apply."""
    table = Table("upstream", "release", "applies", "hunks", "offset", "fuzz")
    for trial in trials:
        name = " + ".join((trial.upstream, *trial.carried))
        applies = "[green]yes[/]" if trial.applies else "[red]no[/]"
        table.add_row(name, trial.release, applies, str(trial.hunks), str(trial.offset), str(trial.fuzz))
    console.print(table, highlight=False)
    for trial in trials:
        if trial.why:
            terminal.loud(console).print(
                f"{trial.upstream} {trial.release}: {trial.why}", soft_wrap=True, highlight=False
            )


def _freeswitch_tasks(settings: Settings, known: Releases) -> Iterator[_Task]:
    for release in known.freeswitch.values():
        fitting = known.fitting(release)
        chosen = choose(settings, Pair(release, fitting[-1] if fitting else None))
        yield _task(chosen, chosen.source("freeswitch"), release.name)


def _sofia_tasks(settings: Settings, known: Releases) -> Iterator[_Task]:
    for release in known.sofia_sip.values():
        chosen = dataclasses.replace(settings, sources=tuple(_pinned(source, release) for source in settings.sources))
        yield _task(chosen, chosen.source("sofia-sip"), release.name)


def _pinned(source: Source, release: Release) -> Source:
    if source.name != "sofia-sip":
        return source
    return dataclasses.replace(source, tag=release.tag, commit=release.commit)


def _task(settings: Settings, source: Source, release: str) -> _Task:
    return _Task(settings, source, release, tuple(series.render(settings, source)))


def fetch_release(settings: Settings, source: Source) -> Path:
    """Fetch the pinned commit of `source`, without files, and return the repository it is in."""
    path = _repository(settings, source)
    _fetch_commits(path, [source])
    return path


def _repository(settings: Settings, source: Source) -> Path:
    path = settings.build_directory / "matrix" / source.name
    if not (path / ".git/config").exists() or _url(path) != source.url:
        remove(path)
        trees.make_repository(source, path)
    return path


def _fetch(settings: Settings, tasks: Sequence[_Task]) -> dict[str, Path]:
    """Fetch the commits of the `tasks` and the files that their patches touch; return the repositories by name."""
    repositories: dict[str, Path] = {}
    for name in dict.fromkeys(task.source.name for task in tasks):
        mine = [task for task in tasks if task.source.name == name]
        repositories[name] = path = _repository(settings, mine[0].source)
        _fetch_commits(path, [task.source for task in mine])
        _fetch_files(path, mine)
    return repositories


def _url(path: Path) -> str:
    return local(path, "config", "remote.origin.url").strip()


def _objects(path: Path) -> set[str]:
    return set(local(path, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)", "--unordered").split())


def _fetch_commits(path: Path, wanted: Sequence[Source]) -> None:
    present = _objects(path)
    missing = [source for source in wanted if source.commit not in present]
    if not missing:
        return
    references = [
        f"refs/tags/{source.tag}:refs/tags/{source.tag}" if source.tag else source.commit for source in missing
    ]
    try:
        git.online(
            path, "fetch", "--quiet", "--force", "--depth=1", "--filter=blob:none", "--no-tags", "origin", *references
        )
    except GitError as error:
        raise ToolkitError(
            f"{wanted[0].name}: cannot fetch its releases from {wanted[0].url} ({error.reason})",
            error.remedy or "check the network and releases.yaml",
        ) from error
    for source in missing:
        found = local(path, "rev-parse", f"refs/tags/{source.tag}^{{commit}}").strip() if source.tag else source.commit
        if found != source.commit:
            raise ToolkitError(
                f"{source.name}: tag {source.tag} of {source.url} is commit {found}, but releases.yaml has "
                f"{source.commit}",
                "check what moved the tag, then correct releases.yaml",
            )


def _fetch_files(path: Path, tasks: Sequence[_Task]) -> None:
    wanted: dict[str, None] = {}
    for task in tasks:
        touched = sorted({file.path for patch in task.patches for file in patch.diff})
        for entry in local(path, "ls-tree", "-z", task.source.commit, "--", *touched).split("\0"):
            if entry:
                wanted[entry.partition("\t")[0].split()[2]] = None
    present = _objects(path)
    missing = [blob for blob in wanted if blob not in present]
    options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--filter=blob:none")
    # Else git asks the other side about all that is here first.
    negotiation = ("-c", "fetch.negotiationAlgorithm=noop")
    for start in range(0, len(missing), 1000):
        git.online(path, *negotiation, "fetch", *options, "origin", *missing[start : start + 1000])


def _try(path: Path, task: _Task) -> Trial:
    hunks = sum(len(file) for patch in task.patches for file in patch.diff)
    carried = tuple(dict.fromkeys(patch.upstream for patch in task.patches if patch.directory))
    trial = Trial(task.source.name, task.release, carried, hunks, True)
    offset = 0
    with Index.at(path, task.source.commit) as index:
        for patch in task.patches:
            if doubt := _ambiguous(index, patch):
                return dataclasses.replace(trial, applies=False, offset=offset, why=f"{patch.name}: {doubt}")
            try:
                offset = max(offset, index.apply(patch.text))
            except GitError as error:
                why = f"{patch.name}: {series.culprit(patch, error.reason)} it"
                return dataclasses.replace(trial, applies=False, offset=offset, fuzz=_fuzz(index, patch), why=why)
            if doubt := series.uneven(index, patch):
                return dataclasses.replace(trial, applies=False, offset=offset, why=f"{patch.name}: {doubt}")
    return dataclasses.replace(trial, offset=offset)


def _fuzz(index: Index, patch: Patch) -> int:
    """Return how many lines of context have to be ignored, 0 if even that does not help."""
    leading = [context(hunk)[0] for file in patch.diff for hunk in file]
    for fuzz in range(1, max(leading, default=0) + 1):
        try:
            index.apply(patch.text, max(leading) - fuzz)
        except GitError:
            continue
        return fuzz
    return 0


def _ambiguous(index: Index, patch: Patch) -> str:
    """Return which hunk fits in several places, "" if each fits in one at most.

    git takes the nearest place, which may be another one in each release.
    """
    for file in patch.diff:
        if file.is_added_file:
            continue
        try:
            lines = split(index.read(file.path))
        except GitError:
            continue  # `git apply` will say so.
        for number, hunk in enumerate(file, 1):
            found = places(lines, old_lines(hunk))
            if len(found) > 1:
                where = listing(str(place + 1) for place in found)
                return f"hunk {number} of {file.path} fits in several places (lines {where})"
            if found:
                lines[found[0] : found[0] + hunk.source_length] = new_lines(hunk)
    return ""
