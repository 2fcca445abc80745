"""The hunks of a patch: counted anew, given more context, looked for in a file, written as git does.

A hunk is unidiff's, which is a list of its lines. Its `source_start` counts
from 1 and, if it has no lines of the old file, is the line before it.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from unidiff.constants import (
    LINE_TYPE_ADDED,
    LINE_TYPE_CONTEXT,
    LINE_TYPE_NO_NEWLINE,
    LINE_TYPE_REMOVED,
    LINE_VALUE_NO_NEWLINE,
    RE_HUNK_HEADER,
)
from unidiff.errors import UnidiffParseError
from unidiff.patch import Hunk, Line, PatchedFile, PatchSet

DIFF = "diff --git "
CONTENT = frozenset({LINE_TYPE_ADDED, LINE_TYPE_CONTEXT, LINE_TYPE_REMOVED})
BLOBS = re.compile(r"index [0-9a-f]+\.\.[0-9a-f]+( \d+)?\n")


def split(text: str) -> list[str]:
    """Return the lines of `text` with their ends. Only a line feed ends one: C has form feeds, too."""
    return list(io.StringIO(text))


def old_lines(hunk: Hunk) -> list[str]:
    """Return the lines that `hunk` expects, with their ends."""
    return _side(hunk, LINE_TYPE_REMOVED)


def new_lines(hunk: Hunk) -> list[str]:
    """Return the lines that `hunk` leaves, with their ends."""
    return _side(hunk, LINE_TYPE_ADDED)


def _side(hunk: Hunk, own: str) -> list[str]:
    found: list[str] = []
    mine = False
    for line in hunk:
        if line.line_type in CONTENT:
            if mine := line.line_type in (LINE_TYPE_CONTEXT, own):
                found.append(line.value)
        elif mine and line.line_type == LINE_TYPE_NO_NEWLINE:
            found[-1] = found[-1].removesuffix("\n")
    return found


def context(hunk: Hunk) -> tuple[int, int]:
    """Return how many lines of context `hunk` begins and ends with."""
    kinds = [line.line_type for line in hunk if line.line_type in CONTENT]
    above, below = (
        sum(1 for _ in itertools.takewhile(LINE_TYPE_CONTEXT.__eq__, order)) for order in (kinds, reversed(kinds))
    )
    return above, below


def places(lines: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Return the indices at which `wanted` occurs in `lines`; if nothing is wanted, that is before and after each."""
    length = len(wanted)
    return [
        start
        for start in range(len(lines) - length + 1)
        if not length or (lines[start] == wanted[0] and [*lines[start : start + length]] == [*wanted])
    ]


def unplaced(line: str) -> str:
    """Return what is the same in a hunk header wherever the hunk is, and `line` itself if it is none."""
    match = RE_HUNK_HEADER.match(line)
    return f"@@{line[match.start(5) :]}" if match else line


def lengths(line: str) -> tuple[int, int] | None:
    """Return how many lines of the old and of the new file the hunk header `line` announces, None if it is none."""
    match = RE_HUNK_HEADER.match(line)
    if not match:
        return None
    hunk = Hunk(*match.groups())
    return hunk.source_length, hunk.target_length


def header(hunk: Hunk) -> str:
    """Return the header of `hunk` as git writes it, which leaves out a length of 1."""
    sides = (
        f"{sign}{start}" if length == 1 else f"{sign}{start},{length}"
        for sign, start, length in (
            ("-", hunk.source_start, hunk.source_length),
            ("+", hunk.target_start, hunk.target_length),
        )
    )
    section = f" {hunk.section_header}" if hunk.section_header else ""
    return f"@@ {' '.join(sides)} @@{section}\n"


def recounted(lines: Sequence[str]) -> list[str]:
    """Correct the lengths in the hunk headers among the `lines` of a patch, and the places in the new file."""
    result = list(lines)
    shift = 0
    for number, line in enumerate(lines):
        if line.startswith(DIFF):
            shift = 0
        if match := RE_HUNK_HEADER.match(line):
            # Its lengths are those of the template, so unidiff's parser can't read it.
            hunk = Hunk(*match.groups())
            hunk.extend(_body(itertools.islice(lines, number + 1, None)))
            shift = _count(hunk, shift)
            result[number] = header(hunk)
    return result


def _body(lines: Iterable[str]) -> Iterator[Line]:
    for line in lines:
        if line[:1] not in (*CONTENT, LINE_TYPE_NO_NEWLINE):
            return
        yield Line(line[1:], line[0])


def _count(hunk: Hunk, shift: int) -> int:
    """Give `hunk` the lengths of its lines, and the place in the new file if that is `shift` lines longer before it.

    Returns how much longer the new file is after it.
    """
    hunk.source_length, hunk.target_length = len(old_lines(hunk)), len(new_lines(hunk))
    # An empty side is at the line before.
    hunk.target_start = hunk.source_start - bool(hunk.source_length) + shift + bool(hunk.target_length)
    return shift + hunk.target_length - hunk.source_length


def tidy(text: str, read: Callable[[str], list[str]]) -> str:
    """Return the patch `text` without what changes for no reason, with as much context as makes each hunk unique.

    `read` returns the lines of a file before the patch. What is no patch is
    returned as it is.
    """
    try:
        files = PatchSet(text)
    except UnidiffParseError:
        return text
    lines = split(text)
    result: list[str] = []
    position = 0
    for file in files:
        info = file.patch_info
        if not info or not info[0].startswith(DIFF):
            continue
        start = _index(file)
        result += lines[position:start]
        position = start + len(info)
        result += [line for line in lines[start:position] if not BLOBS.fullmatch(line)]
        if file:
            first = _index(file[0][0]) - 1
            result += lines[position:first]
            position = first + sum(1 + len(hunk) for hunk in file)
            if file.source_file.startswith("a/"):
                grow(file, read(file.path))
            result += _written(file)
    return "".join([*result, *lines[position:]])


def _index(part: PatchedFile | Line) -> int:
    """Return the index of the line of the patch at which `part` begins."""
    assert part.diff_line_no is not None
    return part.diff_line_no - 1


def grow(hunks: list[Hunk], lines: Sequence[str]) -> None:
    """Add lines of context to each of the `hunks` of a file until it fits in one place of the old `lines` only.

    And until it has as many above as below: GNU patch takes fewer for the
    start or the end of the file. Hunks that meet become one.
    """
    number = 0
    while number < len(hunks):
        hunk = hunks[number]
        while True:
            above, below = context(hunk)
            old = old_lines(hunk)
            unique = len(places(lines, old)) <= 1
            start = _start(hunk)
            end = start + len(old)
            top, bottom = start == 0, end == len(lines)
            up = not top and (above < below or (not unique and (above == below or bottom)))
            down = not bottom and (below < above or (not unique and (above == below or top)))
            if not up and not down:
                break
            if up:
                start -= 1
                hunk.insert(0, Line(lines[start], LINE_TYPE_CONTEXT))
            if down:
                hunk.extend(_context_line(lines[end]))
            hunk.source_start = start + 1
            number = _join(hunks, number)
            hunk = hunks[number]
        number += 1


def _start(hunk: Hunk) -> int:
    """Return the index of the first line of `hunk` in the old file."""
    return hunk.source_start - bool(old_lines(hunk))


def _context_line(line: str) -> list[Line]:
    if line.endswith("\n"):
        return [Line(line, LINE_TYPE_CONTEXT)]
    return [Line(f"{line}\n", LINE_TYPE_CONTEXT), Line(f"{LINE_VALUE_NO_NEWLINE}\n", LINE_TYPE_NO_NEWLINE)]


def _join(hunks: list[Hunk], number: int) -> int:
    """Join the hunk of that `number`, from 0, with its neighbours if they meet; return its number then."""
    for first in (number, number - 1):
        if 0 <= first < len(hunks) - 1:
            one, other = hunks[first], hunks[first + 1]
            # They had a line between them at least, and have grown by one.
            if _start(one) + len(old_lines(one)) == _start(other):
                one.extend(other)
                del hunks[first + 1]
                number = first
    return number


def _written(file: PatchedFile) -> list[str]:
    """Return the lines of the hunks of `file` with headers like those of git, but no text behind."""
    result = []
    shift = 0
    for hunk in file:
        shift = _count(hunk, shift)
        hunk.section_header = ""
        result += [header(hunk), *map(str, hunk)]
    return result
