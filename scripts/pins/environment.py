"""The INVOKE_... variables of the environment, checked before Invoke reads them.

Invoke ignores one that it does not know, and fails with a traceback on a value
that it cannot use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from scripts.errors import ToolkitError
from scripts.machine.files import ROOT, read_yaml

FILE = ROOT / "invoke.yaml"
PREFIX = "INVOKE_"
# What Invoke itself reads from the environment: INVOKE_RUN_ECHO, say.
INVOKE = ("debug", "run", "runtime", "sudo", "tasks", "timeouts")


def check() -> None:
    """Raise ToolkitError on a variable that is no setting or has a value of the wrong type."""
    raw = read_yaml(FILE)
    given = [name for name in os.environ if name.startswith(PREFIX) and not _is_invokes(name)]
    if not given and _is_readable(raw):
        return
    # Only now: the models take longer to import than `inv --list` takes.
    from scripts.pins import schema

    meant, seen = dict(_leaves(schema.shape(raw, FILE.name))), dict(_leaves(raw))
    known = {PREFIX + "_".join(keys).upper(): keys for keys in meant}
    for name in given:
        if name not in known:
            raise ToolkitError(f"unknown setting in environment variable {name}: {FILE.name} lists the known ones")
    for name in given:
        keys = known[name]
        if isinstance(meant[keys], list):
            key = ".".join(keys)
            raise ToolkitError(f"environment variable {name}: a list is set with --set {key}=first,second")
        _check_value(name, seen[keys])


def form(number: float) -> str:
    """Return in words what a text has to be to stand for a number like `number`."""
    return "a whole number" if isinstance(number, int) else "a number"


def _is_invokes(name: str) -> bool:
    return name.removeprefix(PREFIX).split("_")[0].lower() in INVOKE


def _is_readable(raw: Any) -> bool:
    """Return whether Invoke can read the settings, be they right or not: else it fails before a task can tell."""
    if not isinstance(raw, dict) or any(name in raw for name in INVOKE):
        return False
    keys = [keys for keys, _ in _leaves(raw)]
    names = {"_".join(map(str, path)).upper() for path in keys}
    return len(names) == len(keys) and all(isinstance(part, str) for path in keys for part in path)


def _leaves(values: Any, *keys: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _leaves(value, *keys, key)
    else:
        yield keys, values


def _check_value(variable: str, seen: Any) -> None:
    """Raise ToolkitError if Invoke cannot make the type of `seen`, the value in the file, of the text."""
    text = os.environ[variable]
    try:
        if seen is not None:
            type(seen)(text)
    except ValueError:
        raise ToolkitError(f"environment variable {variable}: '{text}' is not {form(seen)}") from None
