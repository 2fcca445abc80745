"""What the steps of a table can say: verbs with their arguments, and what becomes of connections and users by them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from scripts.errors import ToolkitError
from scripts.image import variables
from scripts.machine.files import short
from scripts.scenario import judge
from scripts.scenario.table import ARROW, Scenario

Method = TypeVar("Method", bound=Callable[..., Any])


class Role(Enum):
    """What a verb needs its argument to be, and what it makes of it."""

    OPENS = "a connection that it opens"
    OPEN = "a connection that is open"
    ENDS = "a connection that is open, and that it ends"
    JOINS = "a connection that is open, and that it registers the user over"
    HELD = "a connection that is open, and that the user has registered over"
    LEFT = "a connection that the user has registered over"
    USER = "a user"
    CROWD = "users, for each of which it opens a connection of its name"
    STARTS = "a user, whose process it starts"
    RUNS = "a user with a process"
    KILLS = "a user with a process, which it ends"


_OF_USERS = {Role.USER, Role.CROWD, Role.STARTS, Role.RUNS, Role.KILLS}
_OF_OPEN = {Role.OPEN, Role.ENDS, Role.JOINS, Role.HELD}
_OF_REGISTERED = {Role.HELD, Role.LEFT}
_OF_PROCESSES = {Role.RUNS, Role.KILLS}
_NAME = Field(pattern=r"^[A-Za-z0-9._-]+$")
_USERS = Field(pattern=r"^[A-Za-z0-9._-]+(\*[1-9][0-9]{0,3})?$")
Opens = Annotated[str, _NAME, Role.OPENS]
Open = Annotated[str, _NAME, Role.OPEN]
Ends = Annotated[str, _NAME, Role.ENDS]
Joins = Annotated[str, _NAME, Role.JOINS]
Held = Annotated[str, _NAME, Role.HELD]
Left = Annotated[str, _NAME, Role.LEFT]
User = Annotated[str, _NAME, Role.USER]
Users = Annotated[str, _USERS, Role.USER]
Crowd = Annotated[str, _USERS, Role.CROWD]
Starts = Annotated[str, _NAME, Role.STARTS]
Runs = Annotated[str, _NAME, Role.RUNS]
Kills = Annotated[str, _NAME, Role.KILLS]
Count = Annotated[int, Field(ge=0, le=100_000)]
Pause = Annotated[float, Field(ge=0, le=3600)]
Option = Annotated[str, Field(pattern=r"^(plain|expires=[0-9]+)$")]
Script = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
End = Literal["fin", "rst"]
Broken = Literal[
    "partial", "unfinished", "oversize", "binary", "text", "headers", "bad-cseq", "no-call-id", "no-via", "version"
]


@dataclass(frozen=True)
class Verb:
    """A verb of the table: a method of the player, whose annotations say what its arguments are."""

    method: Callable[..., Any]

    @property
    def name(self) -> str:
        return self.method.__name__

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of a step, by name, without the player."""
        _, *found = inspect.signature(self.method).parameters.values()
        return {one.name: one for one in found}

    @cached_property
    def _hints(self) -> Mapping[str, Any]:
        return get_type_hints(self.method, include_extras=True)

    def __str__(self) -> str:
        words = [
            f"[{one.name}]" if one.default != one.empty else f"{one.name}..." if one.kind == one.VAR_POSITIONAL
            else one.name
            for one in self.parameters.values()
        ]  # fmt: skip
        return " ".join([self.name, *words])

    @property
    def help(self) -> str:
        """The first line of its docstring."""
        return (self.method.__doc__ or "").splitlines()[0]

    def read(self, words: Sequence[str]) -> list[Any]:
        """Return the arguments `words` as the method takes them.

        Raises ToolkitError if they are too many, too few, or not what they must be.
        """
        values = []
        for parameter, word in self._bound(words):
            try:
                values.append(TypeAdapter(self._hints[parameter]).validate_python(word))
            except ValidationError as error:
                wrong = error.errors()[0]["msg"]
                raise ToolkitError(f"'{word}' is no {parameter}: {wrong[:1].lower()}{wrong[1:]}") from None
        return values

    def roles(self, words: Sequence[str]) -> Mapping[Role, str]:
        """Return those of the arguments `words` that are a connection or a user."""
        return {
            role: word
            for parameter, word in self._bound(words)
            for role in getattr(self._hints[parameter], "__metadata__", ())
            if isinstance(role, Role)
        }

    def _bound(self, words: Sequence[str]) -> Iterator[tuple[str, str]]:
        try:
            bound = inspect.signature(self.method).bind(None, *words)
        except TypeError:
            raise ToolkitError(f"{len(words)} arguments: write '{self}'") from None
        for name in self.parameters:
            value = bound.arguments.get(name, ())
            for word in value if isinstance(value, tuple) else [value]:
                yield name, word


class Verbs(Mapping[str, Verb]):
    """The verbs that a table can call, in the order of their names."""

    def __init__(self) -> None:
        self._found: dict[str, Verb] = {}

    def add(self, method: Method) -> Method:
        """Let a table call `method`."""
        self._found[method.__name__] = Verb(method)
        return method

    def __getitem__(self, name: str) -> Verb:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._found))

    def __len__(self) -> int:
        return len(self._found)


def check(scenario: Scenario, verbs: Verbs) -> None:
    """Raise ToolkitError, with the file, the case and the step, if `verbs` can't play a step of `scenario`."""
    where = short(scenario.directory / "table.yaml")
    if not scenario.composed:
        _check_alone(scenario)
    listens = _listens(scenario)
    for variant in scenario.images:
        for case in scenario.cases(variant):
            known = _Known(scenario, verbs, listens)
            try:
                known.connect(case.transport)
            except ToolkitError as error:
                raise ToolkitError(f"{where}: case '{case.name}': {error}") from None
            for step in case.steps:
                action, _, outcome = step.partition(ARROW)
                try:
                    known.play(action.split())
                    known.judge(outcome.strip())
                except ToolkitError as error:
                    raise ToolkitError(f"{where}: case '{case.name}': step '{step}': {error}") from None


def _check_alone(scenario: Scenario) -> None:
    """Raise ToolkitError if nobody could register with the image as it is."""
    if not scenario.configures("directory") and not scenario.environment.get("DIRECTORY_URL"):
        raise ToolkitError(
            f"{short(scenario.directory)}: there is no freeswitch/directory/users.xml.j2, and the image has no users: "
            "copy the one of the scenario 'kill'"
        )


def _listens(scenario: Scenario) -> set[str] | None:
    """Return the transports of the image that `scenario` leaves as it is; None if it says itself what is there."""
    if scenario.composed or scenario.configures("autoload_configs/sofia.conf.xml.j2"):
        return None
    return set((scenario.environment.get("SIP_TRANSPORTS") or variables.default("SIP_TRANSPORTS")).split(","))


@dataclass
class _Known:
    """What there is at a step of a case: connections, registrations (user, connection), processes, users."""

    scenario: Scenario
    verbs: Verbs
    listens: set[str] | None
    connections: set[str] = field(default_factory=set)
    registrations: set[tuple[str, str]] = field(default_factory=set)
    processes: set[str] = field(default_factory=set)
    users: set[str] = field(default_factory=set)

    def connect(self, transport: str) -> None:
        """Raise ToolkitError if nothing listens for `transport`."""
        if self.listens is not None and transport not in self.listens:
            raise ToolkitError(
                f"the image listens for {', '.join(sorted(self.listens))} only, not for {transport}: "
                f"add it to SIP_TRANSPORTS in the environment of scenario.yaml"
            )

    def play(self, words: Sequence[str]) -> None:
        """Note what the step `words` does; raise ToolkitError if it can't be done."""
        name, *arguments = words or [""]
        if name not in self.verbs:
            raise ToolkitError(f"there is no verb '{name}': one of {', '.join(self.verbs)}")
        called = self.verbs[name]
        values = called.read(arguments)
        roles = called.roles(arguments)
        aliases = {one for role, word in roles.items() if role in _OF_USERS for one in judge.aliases(word)}
        if self.scenario.users and (strangers := sorted(aliases - set(self.scenario.users))):
            raise ToolkitError(f"no user '{strangers[0]}': add it to users in scenario.yaml")
        for role, word in roles.items():
            self._needs(role, word, aliases)
        for role, word in roles.items():
            self._note(role, word, aliases)
        self.users |= aliases
        if called.name == "open" and len(values) > 1:
            self.connect(values[1])
        if called.name == "fin_all":
            self.connections.clear()
        if called.name == "sipp" and not self.scenario.has(f"sipp/{values[1]}.xml"):
            raise ToolkitError(f"there is no {short(self.scenario.directory)}/sipp/{values[1]}.xml.j2: add it")

    def judge(self, outcome: str) -> None:
        """Raise ToolkitError if `outcome` is about somebody who was not in the case up to here."""
        for wanted in judge.read(outcome)[0] if outcome else ():
            if strangers := sorted(set(judge.aliases(wanted.alias)) - self.users):
                raise ToolkitError(f"nothing can come of '{strangers[0]}', who is in no step so far")

    def _needs(self, role: Role, word: str, aliases: set[str]) -> None:
        if role in _OF_OPEN and word not in self.connections:
            raise ToolkitError(f"no connection '{word}' is open: write 'open {word}' before")
        if role in _OF_PROCESSES and word not in self.processes:
            raise ToolkitError(f"'{word}' has no process: write 'spawn {word}' or 'sipp {word} scenario' before")
        if role in _OF_REGISTERED:
            for alias in aliases:
                if (alias, word) not in self.registrations:
                    raise ToolkitError(
                        f"'{alias}' has not registered over '{word}': write 'register {alias} {word}' before"
                    )

    def _note(self, role: Role, word: str, aliases: set[str]) -> None:
        match role:
            case Role.OPENS:
                self.connections.add(word)
            case Role.ENDS:
                self.connections.discard(word)
            case Role.JOINS:
                self.registrations |= {(alias, word) for alias in aliases}
            case Role.CROWD:
                self.connections |= aliases
                self.registrations |= {(alias, alias) for alias in aliases}
            case Role.STARTS:
                self.processes.add(word)
            case Role.KILLS:
                self.processes.discard(word)
