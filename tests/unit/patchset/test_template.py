"""Templates: conditions, hunk headers, and putting an edited patch back."""

from __future__ import annotations

from itertools import pairwise

import pytest

from scripts.errors import ToolkitError
from scripts.patchset import template
from scripts.pins.releases import Version

HEAD = "Subject: [PATCH] About %{ event }%\n\ndiff --git a/f.c b/f.c\n--- a/f.c\n+++ b/f.c\n"
PATCH = (
    HEAD
    + """@@ -10,2 +10,3 @@
 one
+call(%{ event }%);
%[ if upstream < "1.3" ]%
 old
%[ else ]%
 new
%[ endif ]%
@@ -20,3 +21,3 @@
 two
-three
+four
 five
%[ if upstream >= "1.5" ]%
@@ -30,2 +31,3 @@
 six
+seven
 eight
%[ endif ]%
"""
)


def variables(version: str = "v1.3.1", event: str = "nua_i_x") -> dict[str, object]:
    return {"event": event, "upstream": Version(version)}


def filled(text: str, version: str = "v1.3.1") -> str:
    return "".join(line.text for line in template.fill(text, variables(version), "f.patch"))


@pytest.mark.parametrize(
    ("version", "there", "absent"),
    [
        ("v1.2.9", " old\n", " new\n"),
        ("v1.3", " new\n", " old\n"),
        ("v1.10", " seven", " old\n"),
        ("", "seven", " old\n"),
    ],
)
def test_conditions(version: str, there: str, absent: str) -> None:
    text = filled(PATCH, version)
    assert there.strip() in text and absent not in text and "%[" not in text


def test_lines_know_where_they_come_from() -> None:
    lines = template.fill(PATCH, variables(), "f.patch")
    source = PATCH.splitlines(keepends=True)
    assert [line.text for line in lines if line.text in (" new\n", "+four\n")] == [" new\n", "+four\n"]
    assert all(source[line.number - 1] == line.text for line in lines if line.text.startswith((" ", "-")))


def test_headers_are_counted_anew() -> None:
    text = HEAD + '@@ -10,2 +10,3 @@\n one\n%[ if upstream < "2" ]%\n+a\n+b\n%[ endif ]%\n two\n@@ -20 +23 @@\n-x\n+y\n'
    assert "@@ -10,2 +10,4 @@\n" in filled(text) and "@@ -20 +22 @@\n" in filled(text)
    assert "@@ -10,2 +10,2 @@\n" in filled(text, "2") and "@@ -20 +20 @@\n" in filled(text, "2")


def test_form_feed_is_no_end_of_line() -> None:
    text = HEAD + "@@ -1 +1,2 @@\n a\x0cb\n+c\x85d\n"
    assert filled(text).endswith(" a\x0cb\n+c\x85d\n")


def test_merge_of_what_was_filled_in_changes_nothing() -> None:
    for version in ("1.2", "1.3", "1.5"):
        assert template.merge(PATCH, variables(version), filled(PATCH, version), "f.patch") == PATCH


def test_merge_keeps_variables_and_conditions() -> None:
    new = filled(PATCH).replace("+four\n", "+fourth(nua_i_x, other_nua_i_x);\n").replace("-20,3 +21,3", "-21,3 +22,3")
    merged = template.merge(PATCH, variables(), new, "f.patch")
    assert merged == PATCH.replace("+four\n", "+fourth(%{ event }%, other_nua_i_x);\n").replace(
        "-20,3 +21,3", "-21,3 +22,3"
    )


def test_merge_puts_a_new_line_behind_the_condition() -> None:
    new = filled(PATCH).replace(" new\n", " new\n+extra\n").replace("+10,3 @@", "+10,4 @@").replace("+21,3", "+22,3")
    merged = template.merge(PATCH, variables(), new, "f.patch")
    assert "%[ endif ]%\n+extra\n" in merged
    assert filled(merged) == new


def test_merge_refuses_to_lose_a_condition() -> None:
    line = PATCH.splitlines().index(" new") + 1
    with pytest.raises(ToolkitError, match=rf"f\.patch:{line}: the line depends on a condition"):
        template.merge(PATCH, variables(), filled(PATCH).replace(" new\n", " newer\n"), "f.patch")


def test_merge_refuses_to_lose_a_variable() -> None:
    line = PATCH.splitlines().index("+call(%{ event }%);") + 1
    message = rf"f\.patch:{line}: the variable event would be lost: write its value 'nua_i_x' there"
    with pytest.raises(ToolkitError, match=message):
        template.merge(PATCH, variables(), filled(PATCH).replace("+call(nua_i_x);", "+call(0);"), "f.patch")
    gone = (
        filled(PATCH).replace("+call(nua_i_x);\n", "").replace("-10,2 +10,3", "-10,2 +10,2").replace("+21,3", "+20,3")
    )
    assert "call(" not in template.merge(PATCH, variables(), gone, "f.patch")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n%[ if upstrem < 1 ]%\nb\n%[ endif ]%\n", "f.patch:2: unknown variable 'upstrem': use event, upstream"),
        ("a\n%[ if upstream ]%\n", "f.patch:"),
        ("a\n%{ event\n", "f.patch:"),
    ],
)
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(ToolkitError) as error:
        template.fill(text, variables(), "f.patch")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_versions() -> None:
    order = ["v1.8.7", "v1.10", "v1.10.2", "v1.10.12", "master"]
    assert all(Version(one) < other for one, other in pairwise(order))
    assert Version("v1.10") == "1.10" and Version("1.9") < "1.10" <= Version("v1.10.0") and Version("") > "99"
