"""The upstream releases that the series is made for (releases.yaml)."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, get_args, get_origin

from pydantic import Field, ValidationError

from scripts.errors import ToolkitError
from scripts.machine.files import ROOT, read_yaml
from scripts.pins.model import Model, Problem, SettingKind, Texts, checked, problem

FILE = ROOT / "releases.yaml"
# A release that is named after a branch: newer than all with a number.
MASTER = "master"
IN_TREE = "in tree"
# What FreeSWITCH had in its tree before it used a separate sofia-sip, and where.
# sofia-sip called itself 1.12.10devel there.
IN_TREE_VERSION = "v1.12.10"
IN_TREE_SOURCES = {"sofia-sip": "libs/sofia-sip", "spandsp": "libs/spandsp"}

COMMIT = re.compile(r"[0-9a-f]{40}")
NUMBERS = re.compile(r"v?(\d+(?:\.\d+)*)")


@functools.total_ordering
class Version:
    """A version that templates compare with a string: `freeswitch < "1.10.7"`.

    A text without a number (a branch, no tag) is newer than all others.
    """

    def __init__(self, text: str) -> None:
        match = NUMBERS.match(text)
        self.text = text
        self.key = tuple(int(part) for part in match[1].split(".")) if match else (1 << 30,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version | str) and self.key == _version(other).key

    def __lt__(self, other: Version | str) -> bool:
        return self.key < _version(other).key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return self.text


def _version(value: Version | str) -> Version:
    return value if isinstance(value, Version) else Version(value)


@dataclass(frozen=True)
class Release:
    """One release of an upstream.

    `sofia_sip` is the oldest sofia-sip that a FreeSWITCH takes: a release or
    IN_TREE; empty for other upstreams. `include` are sparse-checkout patterns
    of what only this release cannot be built without.
    """

    name: str
    commit: str
    sofia_sip: str = ""
    include: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        """The tag to fetch, empty if the commit itself has to be fetched."""
        return "" if self.name == MASTER else self.name

    @property
    def in_tree(self) -> bool:
        """Whether sofia-sip and spandsp are in its tree."""
        return self.sofia_sip == IN_TREE


@dataclass(frozen=True)
class Pair:
    """A FreeSWITCH and the sofia-sip and spandsp it is built with; None: the one in its tree."""

    freeswitch: Release
    sofia_sip: Release | None
    spandsp: Release | None = None


@dataclass(frozen=True)
class Releases:
    """All that releases.yaml lists, oldest first; `spandsp` by the FreeSWITCH from which on it is used."""

    freeswitch: Mapping[str, Release]
    sofia_sip: Mapping[str, Release]
    sets: Mapping[str, tuple[str, str]]
    spandsp: Mapping[str, Release] = field(default_factory=dict)

    def named(self, name: str) -> Pair:
        """Return the pair of the set called `name`; ToolkitError if there is none."""
        if name not in self.sets:
            raise ToolkitError(
                f"--set {name}: there is no set of that name, use {', '.join(self.sets)}, "
                "or key=value (build.jobs=4, say) for a setting"
            )
        return self.pair(*self.sets[name])

    def pair(self, freeswitch: str, sofia_sip: str = "") -> Pair:
        """Return the pair of the releases named.

        Without `sofia_sip` it is the newest that fits. Raises ToolkitError, with
        a list of what is supported, if a release is unknown or the two do not fit.
        """
        chosen = self._release("freeswitch", self.freeswitch, freeswitch)
        fitting = self.fitting(chosen)
        if not sofia_sip:
            if not fitting and not chosen.in_tree:
                raise ToolkitError(
                    f"FreeSWITCH {freeswitch} needs sofia-sip {chosen.sofia_sip}, which is not supported"
                )
            return Pair(chosen, fitting[-1] if fitting else None, self._spandsp(chosen))
        if chosen.in_tree:
            raise ToolkitError(f"FreeSWITCH {freeswitch} has sofia-sip in its tree: leave out --sofia-sip")
        other = self._release("sofia-sip", self.sofia_sip, sofia_sip)
        if other not in fitting:
            names = ", ".join(release.name for release in fitting) or f"none of them, only {chosen.sofia_sip}"
            raise ToolkitError(f"FreeSWITCH {freeswitch} is not supported with sofia-sip {sofia_sip}: use {names}")
        return Pair(chosen, other, self._spandsp(chosen))

    def fitting(self, freeswitch: Release) -> list[Release]:
        """Return the releases of sofia-sip that `freeswitch` takes; the branch only if that is one, too."""
        if freeswitch.in_tree:
            return []
        least = Version(freeswitch.sofia_sip)
        return [
            release
            for release in self.sofia_sip.values()
            if Version(release.name) >= least and (release.name != MASTER or freeswitch.name == MASTER)
        ]

    def _spandsp(self, freeswitch: Release) -> Release | None:
        used = [release for name, release in self.spandsp.items() if Version(name) <= Version(freeswitch.name)]
        return Release(MASTER, used[-1].commit) if used and not freeswitch.in_tree else None

    def _release(self, upstream: str, known: Mapping[str, Release], name: str) -> Release:
        if name not in known:
            raise ToolkitError(f"{upstream} {name} is not supported: use {', '.join(known)}")
        return known[name]


class Entry(Model):
    """What releases.yaml has for a release."""

    commit: Annotated[
        str,
        Field(description="a full commit (40 hexadecimal digits)"),
        checked(lambda commit: "" if COMMIT.fullmatch(commit) else f"'{commit}' is not a full commit"),
    ]


class FreeSwitchEntry(Entry):
    """What it has for a release of FreeSWITCH."""

    sofia_sip: Annotated[str, Field(description=f"the oldest sofia-sip that it takes, or {IN_TREE}")]
    include: Annotated[Texts, Field(description="a list of sparse-checkout patterns")] = ()


class Named(Model):
    """What it has for a pair with a name."""

    freeswitch: Annotated[str, Field(description="a release of FreeSWITCH")]
    sofia_sip: Annotated[str, Field(description="a release of sofia-sip")] = ""


class Table(Model):
    """All of releases.yaml."""

    sets: Annotated[dict[str, Named], Field(description="pairs of releases by their names")]
    freeswitch: Annotated[dict[str, FreeSwitchEntry], Field(description="releases of FreeSWITCH by their names")]
    sofia_sip: Annotated[dict[str, Entry], Field(description="releases of sofia-sip by their names")]
    spandsp: Annotated[
        dict[str, Entry], Field(default_factory=dict, description="commits of spandsp by releases of FreeSWITCH")
    ]


def load(file: Path = FILE) -> Releases:
    """Return what `file` lists; ToolkitError, with the key and what it should be, if it is not of the right form."""
    try:
        table = Table.model_validate(read_yaml(file))
    except ValidationError as error:
        raise ToolkitError(_line(problem(error), file.name)) from None
    sofia_sip, spandsp = (
        {name: Release(name, entry.commit) for name, entry in entries.items()}
        for entries in (table.sofia_sip, table.spandsp)
    )
    freeswitch = {
        name: Release(name, entry.commit, entry.sofia_sip, entry.include) for name, entry in table.freeswitch.items()
    }
    sets = {name: (entry.freeswitch, entry.sofia_sip) for name, entry in table.sets.items()}
    return Releases(freeswitch, sofia_sip, sets, spandsp)


def _line(wrong: Problem, file: str) -> str:
    """Return in one line what is wrong with `file`, where, and what is expected there."""
    *outer, last = wrong.keys or ("",)
    where = " ".join(outer)
    expected = _expected(wrong.keys)[1]
    start = f"{file}: not of the right form: "
    place = f"'{last}' of {where}" if where else f"'{last}'" if last else "all of it"
    match wrong.kind:
        case SettingKind.UNKNOWN:
            known = ", ".join(_expected(outer)[0].model_fields)
            return f"{start}{place} is no key: remove it (the keys are {known})"
        case SettingKind.MISSING:
            return f"{start}{place} is missing ({expected}): add it"
        case SettingKind.NAME:
            return f"{start}the name '{wrong.value}' in {' '.join(wrong.keys)} must be text: put it in quotes"
        case SettingKind.GROUP:
            return f"{start}{place} must be {expected}, not '{wrong.value}'"
        case SettingKind.ITEM:
            return f"{start}{place} must be {expected}, not of '{wrong.value}': put it in quotes"
        case SettingKind.TYPE:
            quotes = ": put it in quotes" if wrong.expected.startswith("text") else ""
            return f"{start}{place} must be {expected}, not '{wrong.value}'{quotes}"
        case SettingKind.VALUE:
            return f"{file}: {where}: {wrong.expected}: '{last}' must be {expected}"


def _expected(keys: Sequence[str]) -> tuple[type[Model], str]:
    """Return the model that the last of `keys` is of, or the last one above it, and what is expected there."""
    model: type[Model] = Table
    expected = f"a table of {', '.join(Table.model_fields)}"
    for key in keys:
        if found := model.model_fields.get(key):
            expected = found.description or ""
            inner = get_args(found.annotation)
            model = inner[-1] if get_origin(found.annotation) is dict else model
        else:
            # The name of a release, or of a pair.
            expected = f"a table of {', '.join(model.model_fields)}"
    return model, expected
