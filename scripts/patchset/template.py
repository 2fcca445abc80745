"""Patches as templates: each is filled in, and an edited one is put back into its template.

They are Jinja2 templates whose delimiters are %{ }%, %[ ]% and %# #%, because
{{, {% and {# occur in C. A line with nothing but %[ if ... ]%, %[ elif ... ]%,
%[ else ]% or %[ endif ]% vanishes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from jinja2 import Environment, StrictUndefined, TemplateError, meta, nodes

from scripts.errors import ToolkitError
from scripts.patchset.hunks import DIFF, lengths, recounted, split, unplaced

DIRECTIVE = re.compile(r"%\[-?\s*(?P<word>if|elif|else|endif)\b[^\n]*\]%")
VARIABLE = re.compile(r"%\{\s*(?P<name>\w+)\s*\}%")
EXPRESSION = re.compile(r"%\{.*?\}%|%\[.*?\]%")
# Control characters, which no patch has, mark the lines of the template while it is filled in.
MARK = re.compile("\x01(\\d+)\x02")


@dataclass(frozen=True)
class Line:
    """A line of a filled-in template, with its end, and the number of its line in the template (from 1)."""

    text: str
    number: int


def fill(template: str, variables: Mapping[str, object], where: str) -> list[Line]:
    """Return the lines of `template` with the `variables` filled in.

    The lengths and places in the hunk headers are those of the outcome, so
    that lines of a hunk can depend on conditions. Raises ToolkitError, with
    the file `where` and a line, on an error in the template.
    """
    environment = Environment(
        block_start_string="%[",
        block_end_string="]%",
        variable_start_string="%{",
        variable_end_string="}%",
        comment_start_string="%#",
        comment_end_string="#%",
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    try:
        parsed = environment.parse(_marked(template))
        unknown = meta.find_undeclared_variables(parsed) - variables.keys()
        for node in parsed.find_all(nodes.Name):
            if node.name in unknown:
                raise ToolkitError(
                    f"{where}:{node.lineno}: unknown variable '{node.name}'", f"use {', '.join(variables)}"
                )
        text = environment.from_string(parsed).render(variables)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise ToolkitError(f"{where}{f':{line}' if line else ''}: {error.message}") from error
    _, *parts = MARK.split(text)
    lines = [Line(body, int(number)) for number, body in zip(parts[::2], parts[1::2], strict=True)]
    if not DIRECTIVE.search(template):
        return lines
    counted = recounted([line.text for line in lines])
    return [Line(text, line.number) for text, line in zip(counted, lines, strict=True)]


def is_conditional(template: str) -> bool:
    """Return whether the whole diff of the patch `template` depends on one condition."""
    return _around(split(template)) is not None


def _marked(template: str) -> str:
    lines = split(template) or [""]
    return "".join(
        line if DIRECTIVE.fullmatch(line.rstrip("\n")) else f"\x01{number}\x02{line}"
        for number, line in enumerate(lines, 1)
    )


def merge(template: str, variables: Mapping[str, object], new: str, where: str, places: bool = True) -> str:
    """Return `template` changed so that it fills in to `new`.

    Without `places` hunks that are the same but for their place keep the place
    that they have in `template`. Lines that stay keep their variables and conditions; in the others the
    values of the `variables` that are plain texts become variables again.
    Raises ToolkitError that names the file `where` and the line if that would
    lose a condition or a variable.
    """
    if around := _around(split(template)):
        return _merge_inside(template, *around, variables, new, where, places)
    old = fill(template, variables, where)
    source = split(template)
    wanted = split(new)
    inside = _conditional(source)
    # By number of the line in the template: what comes in its place.
    result: dict[int, list[str]] = {number: [line] for number, line in enumerate(source, 1)}
    start: list[str] = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(
        None, [unplaced(line.text) for line in old], [unplaced(line) for line in wanted], autojunk=False
    ).get_opcodes():
        if tag == "equal":
            for line, text in zip(old[i1:i2], wanted[j1:j2], strict=True):
                # What is on the line but its numbers is the same, so a header has no variables to lose.
                if lengths(text) and line.text != text and (places or lengths(line.text) != lengths(text)):
                    result[line.number] = [text]
            continue
        removed = [line.number for line in old[i1:i2]]
        if held := [number for number in removed if number in inside]:
            raise ToolkitError(
                f"{where}:{held[0]}: the line depends on a condition, and was changed",
                "edit the condition in the patch itself",
            )
        _check_variables([source[number - 1] for number in removed], wanted[j1:j2], variables, where, removed)
        added = [put_back(line, variables) for line in wanted[j1:j2]]
        for number in removed:
            result[number] = []
        if removed:
            result[removed[0]] = added
        elif i1:
            before = old[i1 - 1].number
            # Behind the conditional block in which the line before stands.
            before = max((end for begin, end in _blocks(source) if begin <= before <= end), default=before)
            result[before] = result[before] + added
        else:
            start = added
    merged = "".join([*start, *(line for number in sorted(result) for line in result[number])])
    outcome = [line.text for line in fill(merged, variables, where)]
    if outcome != wanted and (places or [*map(unplaced, outcome)] != [*map(unplaced, wanted)]):
        raise ToolkitError(f"{where}: a condition is in the way of the changes", "edit it in the patch itself")
    return merged


def _merge_inside(
    template: str, before: int, after: int, variables: Mapping[str, object], new: str, where: str, places: bool
) -> str:
    """Merge like `merge` without the condition in the lines `before` and `after`; put it around the diff again."""
    lines = split(template)
    inner = "".join([*lines[:before], *lines[before + 1 : after]])
    result = split(merge(inner, variables, new, where, places))
    first = next(index for index, line in enumerate(result) if line.startswith(DIFF))
    return "".join([*result[:first], lines[before], *result[first:], lines[after]])


def put_back(text: str, variables: Mapping[str, object]) -> str:
    """Return `text` with the values of the `variables` that are plain texts written as variables."""
    for name, value in sorted(variables.items(), key=lambda item: -len(str(item[1]))):
        if isinstance(value, str):
            text = re.sub(rf"(?<![\w:]){re.escape(value)}(?![\w:])", f"%{{ {name} }}%", text)
    return text


def _blocks(source: Sequence[str]) -> list[tuple[int, int]]:
    """Return the first and last lines of the outermost conditional blocks."""
    blocks, depth, begin = [], 0, 0
    for number, line in enumerate(source, 1):
        if match := DIRECTIVE.fullmatch(line.rstrip("\n")):
            if match["word"] == "if":
                begin = begin if depth else number
                depth += 1
            elif match["word"] == "endif":
                depth -= 1
                if not depth:
                    blocks.append((begin, number))
    return blocks


def _around(source: Sequence[str]) -> tuple[int, int] | None:
    """Return the indices of the lines of the condition that the whole diff depends on, None if there is none."""
    first = next((index for index, line in enumerate(source) if line.startswith(DIFF)), 0)
    last = len(source)
    return (first - 1, last - 1) if first and (first, last) in _blocks(source) else None


def _conditional(source: Sequence[str]) -> set[int]:
    inside = {number for begin, end in _blocks(source) for number in range(begin, end + 1)}
    return inside | {
        number
        for number, line in enumerate(source, 1)
        if EXPRESSION.search(VARIABLE.sub("", line)) and not DIRECTIVE.fullmatch(line.rstrip("\n"))
    }


def _check_variables(
    removed: Sequence[str], added: Sequence[str], variables: Mapping[str, object], where: str, numbers: Sequence[int]
) -> None:
    """Raise ToolkitError if lines with a variable were replaced by lines without its value."""
    if not added:
        return
    before = Counter(match["name"] for line in removed for match in VARIABLE.finditer(line))
    after = Counter(match["name"] for line in added for match in VARIABLE.finditer(put_back(line, variables)))
    for name in before:
        if not after[name]:
            number = next(number for number, line in zip(numbers, removed, strict=True) if f" {name} " in line)
            raise ToolkitError(
                f"{where}:{number}: the variable {name} would be lost",
                f"write its value '{variables[name]}' there, or take the line out of the patch first",
            )
