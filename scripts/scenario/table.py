"""Scenarios: a folder below templates/scenarios, with a table of cases and what these need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from jinja2 import Environment
from pydantic import Field, ValidationError, field_validator

from scripts.errors import ToolkitError
from scripts.freeswitch.container import Profile
from scripts.machine.files import read_yaml, short
from scripts.pins.model import Model
from scripts.scenario import judge
from scripts.templates import TEMPLATES, environment

SCENARIOS = TEMPLATES / "scenarios"
PATCHED = "patched"
STOCK = "stock"
# What `inv verify --scenario` takes for every folder.
ALL = "all"
ARROW = "->"

Transport = Literal["udp", "tcp", "tls", "ws", "wss"]
Port = Annotated[int, Field(gt=0, lt=65533)]
Seconds = Annotated[float, Field(ge=0, le=3600)]


def _distinct(value: list[Any]) -> list[Any]:
    if len(set(value)) != len(value):
        raise ValueError("names something twice")
    return value


class _ListenerEntry(Model):
    """`port` is for udp and tcp, tls, ws and wss are on the three after it, if `ports` says nothing else."""

    port: Port
    parameters: dict[str, str] = Field(default_factory=dict)
    ipv6: bool = False
    ports: dict[Transport, Port] = Field(default_factory=dict)


class Wait(Model):
    """Seconds: how long a report may take, how long a wrong one has to turn up, and the same at the end of a case."""

    report: Seconds
    nothing: Seconds
    end: Seconds


class _Needs(Model):
    """What is in scenario.yaml."""

    title: str
    report: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=60)]
    images: Annotated[list[Literal["patched", "stock"]], Field(min_length=1)]
    profiles: Annotated[dict[str, _ListenerEntry], Field(min_length=1)]
    cpus: list[Annotated[int, Field(ge=1, le=1024)]] = Field(default_factory=list)
    users: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]] = Field(default_factory=list)
    environment: dict[str, str] = Field(default_factory=dict)
    wait: Wait | None = None

    @field_validator("images", "cpus", "users")
    @classmethod
    def _once(cls, value: list[Any]) -> list[Any]:
        return _distinct(value)


FIELDS = tuple(_Needs.model_fields)


class _CaseEntry(Model):
    """A row of table.yaml. A step is a line or, where the images differ, a line with an outcome for each of them."""

    case: Annotated[str, Field(min_length=1)]
    profiles: Annotated[list[str], Field(min_length=1)]
    over: Annotated[list[Transport], Field(min_length=1)]
    do: Annotated[list[str | dict[str, dict[str, str]]], Field(min_length=1)]
    done: str = ""
    alone: bool = False
    capture: bool = False

    @field_validator("case", "done")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("has a character that can't be printed")
        return value

    @field_validator("profiles", "over")
    @classmethod
    def _once(cls, value: list[Any]) -> list[Any]:
        return _distinct(value)


@dataclass(frozen=True)
class Case:
    """One case of the table on one profile; `steps` are its lines.

    One that is `alone` disturbs others at its side, or is disturbed by them;
    its packets are captured if it is to be with `capture`. `done` says in the
    report what is done to the client, in place of the steps.
    """

    name: str
    profile: str
    transport: str
    steps: tuple[str, ...]
    alone: bool = field(default=False, compare=False)
    capture: bool = field(default=False, compare=False)
    done: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.name}, {self.profile}, {self.transport}"

    @property
    def outcomes(self) -> list[judge.Wanted]:
        """What must come of its steps."""
        return [
            wanted
            for step in self.steps
            for _, arrow, text in [step.partition(ARROW)]
            if arrow
            for wanted in judge.read(text.strip())[0]
        ]


@dataclass(frozen=True)
class Scenario:
    """A table, and what its cases need: `users` are theirs if they are named, else any; `cpus` empty: this machine's.

    `images` are the variants that the table runs on. `environment` is given to
    the container. Without `wait` the settings say how long to wait.
    """

    name: str
    directory: Path
    title: str
    report: str
    images: tuple[str, ...]
    profiles: tuple[Profile, ...]
    cpus: tuple[int, ...]
    users: tuple[str, ...]
    environment: Mapping[str, str] = field(hash=False)
    wait: Wait | None
    rows: tuple[_CaseEntry, ...] = field(hash=False)

    @property
    def composed(self) -> bool:
        """Whether it has a Compose file, because it needs more than one container."""
        return _there(self.directory / "compose.yml.j2")

    @property
    def several(self) -> bool:
        """Whether a name alone does not tell its cases apart."""
        return any(len(row.profiles) * len(row.over) > 1 for row in self.rows)

    def cases(self, variant: str) -> list[Case]:
        """Return all cases for the image `variant`, one per profile and transport."""
        return [
            Case(row.case, profile, transport, _steps(row, variant), row.alone or row.capture, row.capture, row.done)
            for row in self.rows
            for profile in row.profiles
            for transport in row.over
        ]

    def profile(self, name: str) -> Profile:
        return next(item for item in self.profiles if item.name == name)

    @cached_property
    def _templates(self) -> Mapping[bool, Environment]:
        return {markup: environment(self.directory, TEMPLATES, markup=markup) for markup in (False, True)}

    def render(self, template: str, **values: Any) -> str:
        """Return the scenario's file `template` (without .j2), or else that of templates/, with `values`.

        Raises ToolkitError, with its name, if it is no template.
        """
        with self._named(template):
            return self._templates[template.endswith(".xml")].get_template(f"{template}.j2").render(values)

    def compile(self, template: str) -> None:
        """Raise ToolkitError, with its name, if the file `template` (without .j2) is no template."""
        with self._named(template):
            self._templates[template.endswith(".xml")].get_template(f"{template}.j2")

    @contextlib.contextmanager
    def _named(self, template: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Of Jinja, of what its expressions come to, and of a file that is no text.
            said = " ".join(str(error).split())
            raise ToolkitError(f"{short(self.directory / template)}.j2: {type(error).__name__}: {said}") from None

    def has(self, template: str) -> bool:
        """Return whether there is a file `template` (without .j2), of the scenario or below templates/."""
        return any((root / f"{template}.j2").is_file() for root in (self.directory, TEMPLATES))

    def configures(self, path: str) -> bool:
        """Return whether it has the file or folder `path` of /etc/freeswitch."""
        return _there(self.directory / "freeswitch" / path)

    def files(self, **values: Any) -> dict[str, str]:
        """Return the files for /etc/freeswitch, contents by path there."""
        root = self.directory / "freeswitch"
        found = sorted(path.relative_to(root) for path in root.rglob("*.j2") if not path.is_dir())
        return {
            str(path.with_suffix("")): self.render(f"freeswitch/{path.with_suffix('')}", **values) for path in found
        }


def _there(path: Path) -> bool:
    """Return whether there is a file `path`, be it a link that leads nowhere: what reads it tells that."""
    return path.is_symlink() or path.is_file()


def _steps(row: _CaseEntry, variant: str) -> tuple[str, ...]:
    steps = []
    for step in row.do:
        if isinstance(step, str):
            steps.append(step)
            continue
        ((line, outcomes),) = step.items()
        steps.append(f"{line} {ARROW} {outcomes[variant]}")
    return tuple(steps)


def names() -> list[str]:
    """Return the names of all scenarios."""
    return sorted(path.parent.name for path in SCENARIOS.glob("*/scenario.yaml"))


def chosen(name: str) -> list[Scenario]:
    """Return the scenarios that `name` stands for: the one of that name, or all of them.

    Raises ToolkitError if there is none.
    """
    known = names()
    if name != ALL and name not in known:
        raise ToolkitError(f"there is no scenario '{name}': one of {', '.join([*known, ALL])}")
    return [load(one) for one in (known if name == ALL else [name])]


def load(name: str, directory: Path = SCENARIOS) -> Scenario:
    """Return the scenario in the folder `name` of `directory`.

    Raises ToolkitError, with file and field, if it can't be understood.
    """
    folder = directory / name
    needs = _checked(folder / "scenario.yaml", _Needs)
    if not (folder / "table.yaml").is_file():
        raise ToolkitError(f"{short(folder)}: has no table.yaml: write its cases there (docs/scenarios.md)")
    for other, report in _others(folder):
        if report == needs.report:
            raise ToolkitError(
                f"{short(folder / 'scenario.yaml')}: report '{report}' is that of scenario '{other}', too: "
                "give each its own"
            )
    table = read_yaml(folder / "table.yaml", short(folder / "table.yaml"))
    if not isinstance(table, list) or not table:
        raise ToolkitError(f"{short(folder / 'table.yaml')}: is no list of cases: write `- case: ...`")
    rows = tuple(_row(folder / "table.yaml", number, item, needs) for number, item in enumerate(table, 1))
    if (twice := len(rows) - len({row.case for row in rows})) > 0:
        raise ToolkitError(f"{short(folder / 'table.yaml')}: {twice} cases have the name of another: give each its own")
    return Scenario(
        name,
        folder,
        needs.title,
        needs.report,
        tuple(needs.images),
        tuple(
            Profile(
                key,
                item.port,
                item.parameters,
                item.ipv6,
                {str(transport): number for transport, number in item.ports.items()},
            )
            for key, item in needs.profiles.items()
        ),
        tuple(needs.cpus),
        tuple(needs.users),
        needs.environment,
        needs.wait,
        rows,
    )


def _others(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and report of the other scenarios; of one that can't be read, its own run tells."""
    for path in sorted(folder.parent.glob("*/scenario.yaml")):
        with contextlib.suppress(ToolkitError):
            if path.parent != folder and isinstance(found := read_yaml(path), dict):
                yield path.parent.name, str(found.get("report"))


def _checked(path: Path, model: type[_Needs]) -> _Needs:
    found = read_yaml(path, short(path))
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise ToolkitError(f"{short(path)}: {_why(error)}") from None


def _row(path: Path, number: int, item: Any, needs: _Needs) -> _CaseEntry:
    name = item.get("case", f"number {number}") if isinstance(item, dict) else f"number {number}"
    where = f"{short(path)}: case '{name}'"
    try:
        row = _CaseEntry.model_validate(item)
    except ValidationError as error:
        raise ToolkitError(f"{where}: {_why(error)}") from None
    for profile in row.profiles:
        if profile not in needs.profiles:
            raise ToolkitError(f"{where}: no profile '{profile}' in scenario.yaml: {', '.join(needs.profiles)}")
    for step in row.do:
        if isinstance(step, dict) and (
            len(step) != 1 or any(set(needs.images) != set(outcomes) for outcomes in step.values())
        ):
            raise ToolkitError(
                f"{where}: step '{next(iter(step), '')}': write one outcome for each of {', '.join(needs.images)}"
            )
        for text in _outcomes(step):
            try:
                judge.read(text)
            except ToolkitError as error:
                raise ToolkitError(f"{where}: {error}") from None
    return row


def _outcomes(step: str | Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    if isinstance(step, str):
        _, arrow, text = step.partition(ARROW)
        if arrow:
            yield text.strip()
    else:
        for outcomes in step.values():
            yield from outcomes.values()


def _why(error: ValidationError) -> str:
    """Return the first thing that is wrong, on one line."""
    # A key that is misspelt is two errors: that it is not known says more.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"] if isinstance(part, int | str))
    return f"{where or 'it'}: {first['msg'][:1].lower()}{first['msg'][1:]}".replace("\n", " ")
