"""The variables of the image: their table, their checks, their documentation."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from scripts.image import build
from scripts.machine.files import ROOT

PARTS = st.lists(st.sampled_from(["", "0", "1", "abcd", "12345", "g", ":"]), max_size=10).map(":".join)
COUNTS = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(
    lambda counts: "::".join(":".join("12345678a"[:count]) for count in counts)
)
# Eight colons are right at an end only.
ENDS = ["1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8::", "::1:2:3:4:5:6:7:8", "1::2:3:4:5:6:7:8", "::"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.ip_addresses(v=6).map(lambda found: found.exploded), PARTS, COUNTS), max_size=50))
@example(ENDS)
def test_ipv6_addresses_are_those_that_python_knows(texts: list[str]) -> None:
    def is_valid(text: str) -> bool:
        try:
            ipaddress.IPv6Address(text)
        except ValueError:
            return False
        return True

    script = (ROOT / "scripts/image/runtime/entrypoint/checks.sh").read_text()
    found = re.search(r"^is_ipv6\(\) \{\n.*?^\}$", script, re.MULTILINE | re.DOTALL)
    assert found
    program = found[0] + '\nfor text; do is_ipv6 "$text" && echo yes || echo no; done\n'
    done = subprocess.run(["sh", "-c", program, "sh", *texts], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["yes" if is_valid(text) else "no" for text in texts]


def test_table_has_a_check_for_every_variable(root: Path) -> None:
    script = (root / "scripts/image/runtime/entrypoint/checks.sh").read_text()
    for group in build.variables():
        for variable in group["variables"]:
            kind = variable["kind"].split()[0].replace("-", "_")
            assert f"\ncheck_{kind}() {{" in script, variable["name"]


def test_documentation_has_the_variables(root: Path) -> None:
    page = (root / "docs/deployment.md").read_text()
    for group in build.variables():
        assert f"### {group['title']}\n" in page
        for variable in group["variables"]:
            default = f"`{variable['default']}`" if variable["default"] else ""
            assert f"| `{variable['name']}` | {default} | {variable['text']} |" in page, variable["name"]
