"""What the models of invoke.yaml and releases.yaml share: types, checks of values, and what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo

# As the context of a validation: keys and types count, values do not.
SHAPE_ONLY = "shape only"
TYPES = {
    "string_type": "text (put it in quotes)",
    "tuple_type": "a list",
    "int_type": "a whole number",
    "float_type": "a number",
}


class Model(BaseModel):
    """A group of keys: all of them, no others, each of its own type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


# Nothing at all stands for an empty text or list.
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
AS_TUPLE = BeforeValidator(lambda value: tuple(value or ()) if value is None or isinstance(value, list) else value)
Texts = Annotated[tuple[str, ...], AS_TUPLE]


def checked(check: Callable[[Any], str]) -> AfterValidator:
    """Return a validator of values: `check` returns what is wrong, as it goes on behind the key, or ""."""

    def validate(value: Any, info: ValidationInfo) -> Any:
        if info.context != SHAPE_ONLY and (wrong := check(value)):
            raise ValueError(wrong)
        return value

    return AfterValidator(validate)


def matching(pattern: re.Pattern[str], form: str) -> AfterValidator:
    """Return a validator of texts that match `pattern` as a whole; `form` says in words what those are."""
    return checked(lambda value: "" if pattern.fullmatch(value) else f": '{value}' is not {form}")


def between(low: float, high: float) -> AfterValidator:
    """Return a validator of numbers from `low` to `high`."""
    return checked(
        lambda value: "" if low <= value <= high else f": '{value:.12g}' is not a number from {low:g} to {high:g}"
    )


class SettingKind(Enum):
    """The kinds of problems, the one first that is told first."""

    UNKNOWN = "a key that is none"
    VALUE = "a value that is wrong"
    MISSING = "a key is missing"
    NAME = "a name that is not text"
    GROUP = "a value in place of a group of keys"
    ITEM = "an item of a list that is not text"
    TYPE = "a value of the wrong type"


@dataclass(frozen=True)
class Problem:
    """What is wrong: `keys` lead to it, `value` was found, `expected` says what should have been.

    For SettingKind.VALUE `expected` is what the check of the value says.
    """

    kind: SettingKind
    keys: tuple[str, ...]
    value: object
    expected: str


def problem(error: ValidationError) -> Problem:
    """Return the first of the problems that pydantic found."""
    found = [_problem(entry["type"], entry["loc"], entry["input"], entry.get("ctx", {})) for entry in error.errors()]
    return min(found, key=lambda item: [*SettingKind].index(item.kind))


def _problem(error: str, keys: tuple[int | str, ...], value: object, context: dict[str, Any]) -> Problem:
    in_list = isinstance(keys[-1], int) if keys else False
    kind, expected = SettingKind.TYPE, TYPES.get(error, "")
    match error:
        case "extra_forbidden" | "invalid_key":
            kind = SettingKind.UNKNOWN
        case "missing":
            kind = SettingKind.MISSING
        case "value_error":
            kind, expected = SettingKind.VALUE, str(context["error"])
            keys = keys[:-1] if in_list else keys
        case "string_type" if keys[-1] == "[key]":
            kind, keys = SettingKind.NAME, keys[:-2]
        case "string_type" if in_list:
            kind, keys = SettingKind.ITEM, keys[:-1]
        case "model_type" | "dict_type":
            kind = SettingKind.GROUP
    return Problem(kind, tuple(map(str, keys)), value, expected)
