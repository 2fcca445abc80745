"""Move to newer upstream releases: find them, try the series on them, write the new pins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.machine import files, git
from scripts.machine.files import short
from scripts.machine.terminal import listing
from scripts.patchset import trials
from scripts.pins import releases
from scripts.pins import settings as settings_module
from scripts.pins.releases import IN_TREE, IN_TREE_SOURCES, Pair, Release, Releases, Version
from scripts.pins.settings import Settings, Source
from scripts.sources import trees

TAG = re.compile(r"v\d+\.\d+\.\d+")
# What the configure.ac of FreeSWITCH asks for.
LEAST = re.compile(r"sofia-sip-ua >= (?P<version>[0-9.]+)")


def bump(
    settings: Settings,
    tag: str = "",
    console: Console | None = None,
    pins: Path = settings_module.FILE,
    table: Path = releases.FILE,
) -> Pair | None:
    """Pin the newest FreeSWITCH that the series applies to, or the release `tag`, and the sofia-sip that fits.

    Writes the settings `pins` and the list of releases `table`, both or, if the
    series does not apply, neither. Returns the new pair, None if there is
    nothing newer that could be used. Raises ToolkitError if `tag` is unknown,
    has moved or can't be used, or if the series applies to nothing newer.
    """
    console = console or get_console()
    known = releases.load(table)
    current = settings.source("freeswitch")
    if TAG.fullmatch(tag) and TAG.fullmatch(current.tag) and Version(tag) < Version(current.tag):
        raise ToolkitError(
            f"{tag} is older than the pinned {current.tag}, and needs more than other pins",
            f"nothing was changed, use it with --freeswitch {tag} on each task",
        )
    freeswitch = _with_tags(settings, current, known.freeswitch, tag)
    sofia = _with_tags(settings, settings.source("sofia-sip"), known.sofia_sip)
    known = replace(known, freeswitch=freeswitch, sofia_sip=sofia)
    wanted = [tag] if tag else _newer(current, freeswitch)
    if not tag and _newer(settings.source("sofia-sip"), sofia):
        wanted.append(current.tag)
    pinned = f"freeswitch {current.tag} and sofia-sip {settings.source('sofia-sip').tag}"
    if not wanted:
        console.print(f"{pinned} are the newest", soft_wrap=True)
        return None
    reasons = []
    applies = True
    for name in wanted:
        try:
            pair = known.pair(name)
        except ToolkitError as error:
            reasons.append(str(error))
            console.print(f"{error}: passed over", soft_wrap=True)
            continue
        found = trials.try_release(settings, pair, console)
        trials.show(found, console)
        if all(trial.applies for trial in found):
            _write(pair, known, pins, table)
            other = f" with sofia-sip {pair.sofia_sip.name}" if pair.sofia_sip else ""
            console.print(f"pinned freeswitch {name}{other}: run `inv verify`, then commit")
            return pair
        applies = False
        reasons.append(
            f"the series does not apply to FreeSWITCH {name} (carry it over: `inv patches-import --freeswitch {name}`)"
        )
    if applies and not tag:
        console.print(f"{pinned} are the newest that can be used: nothing was changed", soft_wrap=True)
        return None
    raise ToolkitError(f"nothing was changed, {pinned} stay pinned: {'; '.join(reasons)}")


def _newer(source: Source, known: Mapping[str, Release]) -> list[str]:
    """Return the numbered releases newer than the pin of `source`, the newest first."""
    names = [name for name in known if TAG.fullmatch(name) and Version(name) > Version(source.tag)]
    return sorted(names, key=Version, reverse=True)


def _with_tags(settings: Settings, source: Source, known: Mapping[str, Release], tag: str = "") -> dict[str, Release]:
    """Return `known` with the tags of the upstream that are newer, and `tag`, in order."""
    tags = _tags(source)
    if tag and tag not in tags and tag not in known:
        raise ToolkitError(
            f"{source.name}: {source.url} has no tag {tag}", f"its newest are {listing(list(tags)[-5:])}"
        )
    for name, commit in tags.items():
        if name in known and known[name].commit != commit:
            raise ToolkitError(
                f"{source.name}: tag {name} of {source.url} is commit {commit}, but releases.yaml has "
                f"{known[name].commit}",
                "check what moved the tag, then correct releases.yaml",
            )
    newest = max((Version(name) for name in known if TAG.fullmatch(name)), default=Version("0"))
    new = [name for name in tags if name not in known and (Version(name) > newest or name == tag)]
    found = dict(known)
    for name in new:
        release = Release(name, tags[name])
        found[name] = (
            replace(release, sofia_sip=_least(settings, source, release)) if source.name == "freeswitch" else release
        )
    return dict(sorted(found.items(), key=lambda item: Version(item[0])))


def _tags(source: Source) -> dict[str, str]:
    """Return the commits of the tags that name releases, oldest first."""
    tags = {}
    for reference, commit in trees.references(source, "--tags").items():
        name = reference.removeprefix("refs/tags/")
        # An annotated tag comes twice; the second time, with ^{}, it is the commit.
        if TAG.fullmatch(name.removesuffix("^{}")):
            tags[name.removesuffix("^{}")] = commit
    return dict(sorted(tags.items(), key=lambda item: Version(item[0])))


def _least(settings: Settings, source: Source, release: Release) -> str:
    """Return the oldest sofia-sip that the FreeSWITCH `release` takes."""
    path = trials.fetch_release(settings, replace(source, tag=release.tag, commit=release.commit))
    if git.local(path, "ls-tree", release.commit, f"{IN_TREE_SOURCES['sofia-sip']}/"):
        return IN_TREE
    match = LEAST.search(git.online(path, "show", f"{release.commit}:configure.ac"))
    if not match:
        raise ToolkitError(f"{source.name} {release.name}: its configure.ac does not say which sofia-sip it needs")
    return f"v{match['version']}"


def _write(pair: Pair, known: Releases, pins: Path, table: Path) -> None:
    chosen = {"freeswitch": pair.freeswitch, "sofia_sip": pair.sofia_sip, "spandsp": pair.spandsp}
    text = pins.read_text()
    for key, release in chosen.items():
        if release:
            pattern = rf"(?m)^(  {key}:\n(?:    .*\n)*?    tag: ).*\n    commit: .*$"
            tag = release.tag or '""'
            text, count = re.subn(pattern, rf"\g<1>{tag}\n    commit: {release.commit}", text)
            if count != 1:
                raise ToolkitError(
                    f"{short(pins)}: sources.{key} has no tag and commit below each other", "set them there"
                )
    listed = table.read_text()
    for key, every in (("freeswitch", known.freeswitch), ("sofia_sip", known.sofia_sip)):
        listed = _with_lines(listed, key, every)
    files.write(table, listed)
    files.write(pins, text)


def _with_lines(text: str, key: str, every: Mapping[str, Release]) -> str:
    """Add the releases of `every` that the table `key` lacks, each behind the one before it."""
    lines = text.splitlines()
    position = lines.index(f"{key}:")
    for name, release in every.items():
        place = next(
            (number for number in range(position, len(lines)) if lines[number].startswith(f"  {name}: ")), None
        )
        if place is None:
            more = f", sofia_sip: {release.sofia_sip}" if release.sofia_sip else ""
            position += 1
            lines.insert(position, f"  {name}: {{commit: {release.commit}{more}}}")
        else:
            position = place
    return "\n".join(lines) + "\n"
