"""Hunks: read, counted anew, given context, applied again, whatever the files are."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unidiff.patch import Hunk, PatchedFile, PatchSet

from scripts.patchset import hunks

HEAD = "From: A <a@example.org>\nDate: now\nSubject: [PATCH] x\n\nindex 0123..4567\n---\n"
# Few kinds of lines, so that many places look alike.
FILES = st.lists(st.sampled_from(["{", "}"]), max_size=20) | st.lists(
    st.sampled_from(["", "{", "}", "a\x0cb", "\udce4", "-- x", "@@ -1 +1 @@"]), max_size=30
)
MANY = settings(max_examples=400, deadline=None)


@dataclass(frozen=True)
class Change:
    """A file, before and after: its text, and whether the last line of each has an end."""

    old: str
    new: str

    @property
    def lines(self) -> list[str]:
        return hunks.split(self.old)

    def patch(self, around: int = 1) -> str:
        """Return the change as git writes it, with so many lines `around` each."""
        old, new = hunks.split(self.old), hunks.split(self.new)
        text = f"{hunks.DIFF}a/f.c b/f.c\nindex {'1' * 40}..{'2' * 40} 100644\n--- a/f.c\n+++ b/f.c\n"
        for group in SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(around):
            (_, i1, _, j1, _), (_, _, i2, _, j2) = group[0], group[-1]
            text += f"@@ -{i1 + bool(i2 - i1)},{i2 - i1} +{j1 + bool(j2 - j1)},{j2 - j1} @@ text behind\n"
            for tag, a, b, c, d in group:
                pieces = [(" ", old[a:b])] if tag == "equal" else [("-", old[a:b]), ("+", new[c:d])]
                text += "".join(
                    f"{sign}{line}" if line.endswith("\n") else f"{sign}{line}\n\\ No newline at end of file\n"
                    for sign, lines in pieces
                    for line in lines
                )
        return text


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """Make a change of a file that is there before and after, and differs."""
    old = draw(FILES.filter(bool))
    new = list(old)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(new)))
        end = draw(st.integers(start, min(start + 3, len(new))))
        new[start:end] = draw(st.lists(st.sampled_from(["{", "}", "new"]), max_size=3))
    ends = [draw(st.sampled_from(["\n", ""])) if lines and lines[-1] else "\n" for lines in (old, new)]
    texts = ["\n".join(lines) + (end if lines else "") for lines, end in zip((old, new), ends, strict=True)]
    if texts[0] == texts[1] or not new:
        texts[1] = texts[0].removesuffix("\n") + "\nlast\n"
    return Change(*texts)


def only_file(text: str) -> PatchedFile:
    (file,) = PatchSet(text)
    return file


def applied(lines: list[str], file: list[Hunk]) -> str:
    """Apply the hunks where they say, and nowhere else."""
    result = list(lines)
    for hunk in reversed(file):
        start = hunk.source_start - bool(hunk.source_length)
        assert result[start : start + hunk.source_length] == hunks.old_lines(hunk)
        result[start : start + hunk.source_length] = hunks.new_lines(hunk)
    return "".join(result)


@MANY
@given(changes(), st.integers(0, 4))
def test_sides_of_a_hunk_are_what_is_in_the_files(change: Change, around: int) -> None:
    file = only_file(change.patch(around))
    assert applied(change.lines, file) == change.new
    for hunk in file:
        assert hunk.source_start - bool(hunk.source_length) in hunks.places(change.lines, hunks.old_lines(hunk))
        new = hunks.split(change.new)
        assert hunk.target_start - bool(hunk.target_length) in hunks.places(new, hunks.new_lines(hunk))


@MANY
@given(FILES, FILES)
def test_places_are_where_it_is(lines: list[str], wanted: list[str]) -> None:
    found = hunks.places(lines, wanted)
    assert found == [start for start in range(len(lines) + 1) if lines[start:][: len(wanted)] == wanted]


@MANY
@given(changes())
def test_tidy_patch_makes_the_same_file_of_unique_hunks(change: Change) -> None:
    text = hunks.tidy(HEAD + change.patch(), lambda path: {"f.c": change.lines}[path])
    file = only_file(text)
    assert text.startswith(HEAD) and "\nindex 1" not in text and "text behind" not in text
    assert text.endswith("\n"), "the next file begins on a line of its own"
    assert applied(change.lines, file) == change.new
    end = -1
    for hunk in file:
        assert hunk.is_valid()
        assert hunk.target_start - bool(hunk.target_length) in hunks.places(
            hunks.split(change.new), hunks.new_lines(hunk)
        )
        start, old, (above, below) = hunk.source_start - bool(hunk.source_length), *sides(hunk)
        assert start > end, "hunks that meet are one"
        end = start + len(old)
        whole = start == 0 and end == len(change.lines)
        assert whole or hunks.places(change.lines, old) == [start]
        assert above == below or (start == 0 and above < below) or (end == len(change.lines) and below < above)
    assert hunks.tidy(text, lambda _: change.lines) == text


def sides(hunk: Hunk) -> tuple[list[str], tuple[int, int]]:
    return hunks.old_lines(hunk), hunks.context(hunk)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes())
def test_git_and_the_build_take_a_tidy_patch(change: Change) -> None:
    text = hunks.tidy(HEAD + change.patch(), lambda _: change.lines)
    for command in (["git", "apply", "patch"], ["patch", "--fuzz=0", "-s", "-p1", "-i", "patch"]):
        with tempfile.TemporaryDirectory() as directory:
            file, mail = Path(directory) / "f.c", Path(directory) / "patch"
            file.write_bytes(change.old.encode(errors="surrogateescape"))
            mail.write_bytes(text.encode(errors="surrogateescape"))
            subprocess.run(command, cwd=directory, check=True, capture_output=True)
            assert file.read_bytes().decode(errors="surrogateescape") == change.new


@MANY
@given(changes(), st.integers(0, 3))
def test_wrong_lengths_and_places_are_counted_anew(change: Change, around: int) -> None:
    right = hunks.split(HEAD + change.patch(around))
    wrong = [re.sub(r"^(@@ -\d+),.*? @@", rf"\1,{number} +7,1 @@", line) for number, line in enumerate(right)]
    assert wrong != right
    expected = [re.sub(r",1(?= )", "", line) if line.startswith("@@ -") else line for line in right]
    assert hunks.recounted(wrong) == expected
    assert [hunks.unplaced(line) for line in wrong] == [hunks.unplaced(line) for line in right]


@pytest.mark.parametrize(
    ("line", "unplaced", "lengths"),
    [
        ("@@ -1 +2,0 @@\n", "@@\n", (1, 0)),
        ("@@ -10,3 +11,4 @@ int main -3,1 (\n", "@@int main -3,1 (\n", (3, 4)),
        (" @@ -1 +2 @@\n", " @@ -1 +2 @@\n", None),
        ("@@ -x @@\n", "@@ -x @@\n", None),
    ],
)
def test_header(line: str, unplaced: str, lengths: tuple[int, int] | None) -> None:
    assert (hunks.unplaced(line), hunks.lengths(line)) == (unplaced, lengths)


@pytest.mark.parametrize(
    "text",
    [
        "Words\n",
        "\n@@ -1 +1 @@\n-a\n+b\n",
        "diff --git a/x b/x\nindex 01..02\n--- a/x\n+++ b/x\n@@ -1,9 +1 @@\n-a\n",
    ],
)
def test_what_is_no_patch_stays(text: str) -> None:
    assert hunks.tidy(text, lambda _: []) == text


def test_new_and_binary_files_are_not_read() -> None:
    text = (
        f"{HEAD}diff --git a/n b/n\nnew file mode 100644\nindex 00..11\n--- /dev/null\n+++ b/n\n@@ -0,0 +1 @@\n+x\n"
        "diff --git a/p b/p\nindex 22..33 100644\nBinary files a/p and b/p differ\n"
        "diff --git a/m b/m\nold mode 100644\nnew mode 100755\n"
    )
    expected = re.sub("index (00|22).*\n", "", text)
    assert hunks.tidy(text, lambda path: pytest.fail(path)) == expected


def test_file_whose_name_has_a_space() -> None:
    change = Change("a\nb\n", "a\nc\n")
    text = change.patch().replace("/f.c b/f.c\n", "/my f.c b/my f.c\n").replace("/f.c\n", "/my f.c\t\n")
    assert "-b\n" in hunks.tidy(text, lambda path: {"my f.c": change.lines}[path])


def test_last_line_without_an_end_can_be_context() -> None:
    change = Change("{\n}\n" * 3 + "X", "{\n}\n{\n}\nnew\n}\nX")
    text = hunks.tidy(change.patch(), lambda _: change.lines)
    assert text.endswith("@@ -3,5 +3,5 @@\n {\n }\n-{\n+new\n }\n X\n\\ No newline at end of file\n")
