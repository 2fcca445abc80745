"""What the steps of a table can say: verbs, and what their arguments are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from scripts.errors import ToolkitError
from scripts.scenario.judge import USERS

Method = TypeVar("Method", bound=Callable[..., Any])


class Role(Enum):
    """What a verb needs its argument to be, and what it makes of it."""

    OPENS = "a connection that it opens"
    OPEN = "a connection that is open"
    HALVES = "a connection that is open, and whose own half it closes"
    ENDS = "a connection that is open, and that it ends"
    JOINS = "a connection that is open, and that it registers the user over"
    HELD = "a connection that is open, and that the user has registered over"
    LEFT = "a connection that the user has registered over"
    USER = "a user"
    CROWD = "users, for each of which it opens a connection of its name"
    STARTS = "a user, whose process it starts"
    RUNS = "a user with SIPp, which comes to an end by itself"
    KILLS = "a user with a process, which it ends"


_NAME = Field(pattern=r"^[A-Za-z0-9._-]+$")
_USERS = Field(pattern=f"^{USERS}$")
Opens = Annotated[str, _NAME, Role.OPENS]
Open = Annotated[str, _NAME, Role.OPEN]
Halves = Annotated[str, _NAME, Role.HALVES]
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
Option = Annotated[str, Field(pattern=r"^(plain|expires=[0-9]{1,10})$")]
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

    @property
    def over(self) -> Sequence[str]:
        """The transports that it can be played over; empty: all."""
        return getattr(self.method, "over", ())

    @cached_property
    def _signature(self) -> inspect.Signature:
        """The signature of a step, without the player."""
        found = inspect.signature(self.method)
        _, *parameters = found.parameters.values()
        return found.replace(parameters=parameters)

    @cached_property
    def _hints(self) -> Mapping[str, Any]:
        return get_type_hints(self.method, include_extras=True)

    @cached_property
    def _adapters(self) -> Mapping[str, TypeAdapter[Any]]:
        return {name: TypeAdapter(self._hints[name]) for name in self._signature.parameters}

    def __str__(self) -> str:
        words = [
            f"[{one.name}]" if one.default != one.empty else f"{one.name}..." if one.kind == one.VAR_POSITIONAL
            else one.name
            for one in self._signature.parameters.values()
        ]  # fmt: skip
        return " ".join([self.name, *words])

    def read(self, words: Sequence[str]) -> list[Any]:
        """Return the arguments `words` as the method takes them.

        Raises ToolkitError if they are too many, too few, or not what they must be.
        """
        values = []
        for parameter, word in self._bound(words):
            try:
                values.append(self._adapters[parameter].validate_python(word))
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
            bound = self._signature.bind(*words)
        except TypeError:
            raise ToolkitError(f"{len(words)} arguments: write '{self}'") from None
        for name, value in bound.arguments.items():
            for word in value if isinstance(value, tuple) else [value]:
                yield name, word


def only(*transports: str) -> Callable[[Method], Method]:
    """Return a decorator for a verb that can be played over `transports` only."""

    def mark(method: Method) -> Method:
        setattr(method, "over", transports)  # noqa: B010
        return method

    return mark


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
