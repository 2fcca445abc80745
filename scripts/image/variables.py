"""The variables that the image takes from its environment, and the kinds of their values.

templates/freeswitch/variables.yaml has both as data. What the values may be is
rendered into shell, the file `values.sh` of the entrypoint.
"""

from __future__ import annotations

import difflib
import functools
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.errors import ToolkitError
from scripts.machine.files import ROOT, read_yaml
from scripts.templates import environment

FILE = ROOT / "templates/freeswitch/variables.yaml"
NAME = re.compile(r"<([a-z][a-z0-9]*)>")
PLACEHOLDER = re.compile(r"<(name|family|value|item|after .)>")
# What is a word of `say` in shell; of `<after X>`, X follows.
WORDS = {"name": "$1", "family": "${1%_*}", "value": "$2", "item": "$item"}


@dataclass(frozen=True)
class ValueRule:
    """What has to hold of a value, or of an item of it.

    `like` and `unlike` are regular expressions for all of it, extended ones of
    POSIX that mean the same to `re`; `lowest` and `highest` are what the number
    must not be beyond. `ask` is a function of the entrypoint. What is empty does
    not count. `say` is what is told, with the placeholders of PLACEHOLDER.
    """

    like: str = ""
    unlike: str = ""
    lowest: str = ""
    highest: str = ""
    ask: str = ""
    say: str = ""

    def holds(self, text: str) -> bool:
        """Return whether it holds of `text`; `ask` is left to the image."""
        if self.like and not re.fullmatch(self.like, text, re.DOTALL):
            return False
        if self.unlike and re.fullmatch(self.unlike, text, re.DOTALL):
            return False
        return not ((self.lowest and int(text) < int(self.lowest)) or (self.highest and int(text) > int(self.highest)))

    def told(self, name: str, value: str, item: str = "") -> str:
        """Return what the rule says of the `value` of the variable `name`, on one line."""
        words = {"name": name, "family": name.rpartition("_")[0], "value": value, "item": item}
        text = PLACEHOLDER.sub(
            lambda found: words[found[1]] if found[1] in words else item.partition(found[1][-1])[2], self.say
        )
        return text.replace("\n", " ")


@dataclass(frozen=True)
class Kind:
    """The rules for a value, and those for each of its items; `name` has the arguments in it."""

    name: str
    rules: tuple[ValueRule, ...]
    each: tuple[ValueRule, ...]

    def refusal(self, name: str, value: str, has: Callable[[str, str], bool] = lambda ask, item: True) -> str:
        """Return what is wrong with the `value` of the variable `name`, "" if nothing is.

        `has` answers in the image's place: whether it has what a rule's `ask` looks for, for an item.
        """
        for rule in self.rules:
            if not rule.holds(value):
                return rule.told(name, value)
        for item in value.split(",") if self.each else ():
            for rule in self.each:
                if rule.ask and not has(rule.ask, item):
                    return f"{name}='{value}': the image has no {item}"
                if not rule.holds(item):
                    return rule.told(name, value, item)
        return ""


def groups() -> list[dict[str, Any]]:
    """Return the groups of variables: `title` and `variables`, each with `name`, `kind`, `default`, `text`."""
    return list(_read(FILE)["groups"])


def default(name: str) -> str:
    """Return what the variable `name` is where nothing is given for it; KeyError if there is none of that name."""
    return {item["name"]: str(item["default"]) for group in groups() for item in group["variables"]}[name]


def refusal(name: str, value: str) -> str:
    """Return why the image would not start with the `value` of the variable `name`, "" if it is right by itself.

    What only the image knows, its modules and codecs, and what does not go
    together with other values, is not looked at.
    """
    known = {item["name"]: item["kind"] for group in groups() for item in group["variables"]}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        return f"the image has no variable {name!r}: " + (f"write {near[0]}" if near else "docs/deployment.md has them")
    return next(kind for kind in kinds() if kind.name == known[name]).refusal(name, value) if value else ""


def kinds() -> list[Kind]:
    """Return every kind that a variable has, with its arguments filled in.

    Raises ToolkitError if the file does not know it or it lacks an argument.
    """
    data = _read(FILE)
    patterns: dict[str, str] = {}
    for name, parts in data["patterns"].items():
        whole = parts if isinstance(parts, str) else "|".join(parts)
        patterns[name] = _fill(whole, patterns, f"pattern {name}")
    names = dict.fromkeys(variable["kind"] for group in data["groups"] for variable in group["variables"])
    return [_kind(name, data["kinds"], patterns) for name in names]


@functools.cache
def _read(path: Path) -> Mapping[str, Any]:
    return read_yaml(path)  # type: ignore[no-any-return]


def values() -> str:
    """Return the file `values.sh` of the entrypoint: the function `check` with a case for every kind."""
    templates = environment(FILE.parent)
    templates.filters["condition"] = _condition
    templates.filters["message"] = _message
    templates.filters["quote"] = shlex.quote
    return templates.get_template("values.sh.j2").render(kinds=kinds())


def _kind(text: str, known: Mapping[str, Any], patterns: Mapping[str, str]) -> Kind:
    name, *given = text.split()
    if name not in known:
        raise _wrong(f"there is no kind {name}: use {', '.join(known)}, or add it")
    wanted = list(known[name].get("arguments", ()))
    several = bool(wanted) and wanted[-1].endswith("...")
    if len(given) < len(wanted) if several else len(given) != len(wanted):
        raise _wrong(f"kind '{text}': give the words after it that it has arguments for: {' '.join(wanted) or 'none'}")
    if strange := [word for word in given if not re.fullmatch("[0-9A-Za-z-]+", word)]:
        raise _wrong(f"kind '{text}': '{strange[0]}' would mean something in a pattern: use letters, digits and -")
    arguments: dict[str, list[str]] = {}
    for index, argument in enumerate(wanted):
        rest = argument.endswith("...")
        arguments[argument.removesuffix("...")] = given[index:] if rest else given[index : index + 1]

    def rules(key: str) -> tuple[ValueRule, ...]:
        return tuple(_rule(entry, patterns, arguments, f"kind '{text}'") for entry in known[name].get(key, ()))

    return Kind(text, rules("rules"), rules("each"))


def _rule(
    entry: Mapping[str, str], patterns: Mapping[str, str], arguments: Mapping[str, list[str]], where: str
) -> ValueRule:
    entry = dict(entry)
    in_patterns = {**patterns, **{name: "|".join(words) for name, words in arguments.items()}}
    in_words = {name: ", ".join(words) for name, words in arguments.items()}
    if "characters" in entry:
        in_words["characters"] = entry.pop("characters")
        entry["like"] = f"[{in_words['characters']}]+"
    for key in ("like", "unlike"):
        if key in entry:
            entry[key] = _fill(entry[key], in_patterns, where)
    for key in ("lowest", "highest"):
        if key in entry:
            entry[key] = NAME.sub(lambda found: in_words.get(found[1], found[0]), str(entry[key]))
    if "say" in entry:
        entry["say"] = NAME.sub(lambda found: in_words.get(found[1], found[0]), entry["say"])
        if left := re.search("<.*?>|<", PLACEHOLDER.sub("", entry["say"])):
            raise _wrong(f"{where}: there is no {left[0]} to say: use <{'>, <'.join((*WORDS, 'after X', *in_words))}>")
    if unknown := entry.keys() - ValueRule.__dataclass_fields__.keys():
        raise _wrong(f"{where}: a rule has no {unknown.pop()}: use {', '.join(ValueRule.__dataclass_fields__)}")
    return ValueRule(**entry)


def _fill(pattern: str, known: Mapping[str, str], where: str) -> str:
    """Return `pattern` with what it names in the place of the names."""
    if unknown := {name for name in NAME.findall(pattern) if name not in known}:
        raise _wrong(f"{where}: there is no <{unknown.pop()}>: use {', '.join(known)}")
    return NAME.sub(lambda found: f"({known[found[1]]})", pattern)


def _condition(rule: ValueRule, text: str) -> str:
    """Return the shell that succeeds if the rule holds of `text`, which is shell too."""
    tests = []
    if rule.like:
        tests.append(f"like {text} {shlex.quote(rule.like)}")
    if rule.unlike:
        tests.append(f"! like {text} {shlex.quote(rule.unlike)}")
    if rule.lowest:
        tests.append(f"[ {text} -ge {rule.lowest} ]")
    if rule.highest:
        tests.append(f"[ {text} -le {rule.highest} ]")
    return " && ".join(tests)


def _message(rule: ValueRule) -> str:
    """Return what the rule says as a word of shell."""

    def shell(text: str) -> str:
        return WORDS.get(text) or "${item#*" + text.removeprefix("after ") + "}"

    parts = PLACEHOLDER.split(rule.say)
    quoted = (shell(part) if index % 2 else re.sub(r'([\\"$`])', r"\\\1", part) for index, part in enumerate(parts))
    return f'"{"".join(quoted)}"'


def _wrong(what: str) -> ToolkitError:
    return ToolkitError(f"{FILE.name}: {what}")
