"""The maps are true, no module knows one below, no file is long or one that git ignores, no class is there twice."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from scripts.machine.files import ROOT
from tests.conftest import git

SCRIPTS, TESTS = ROOT / "scripts", ROOT / "tests"
WINGS = sorted(path.parent for path in SCRIPTS.glob("*/__init__.py"))
# Lines of a file.
MOST_LINES = 600


def listed(package: Path) -> list[str]:
    """Return the names in the map of `package`, in its order."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    return re.findall(r"^`([\w/]+)`: \S", text, re.MULTILINE)


def rooms(package: Path) -> set[str]:
    """Return the modules and packages of `package`, and its directories of shell and C with a slash."""
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in package.glob("*/__init__.py")}
    return modules | packages | {f"{path.parent.name}/" for end in ("sh", "c") for path in package.glob(f"*/*.{end}")}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the modules of the project that are imported, by their whole names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", [SCRIPTS, *WINGS], ids=lambda path: path.name)
def test_map_is_true(package: Path) -> None:
    names = listed(package)
    assert len(names) == len(set(names))
    assert set(names) == rooms(package)


def test_no_module_knows_one_below() -> None:
    order = listed(SCRIPTS)
    up = set()
    for path in SCRIPTS.rglob("*.py"):
        own, _, _ = str(path.relative_to(SCRIPTS).with_suffix("")).partition("/")
        for name in imported(ast.parse(path.read_text())):
            project, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if project == "scripts" and own in order and other in order and order.index(other) > order.index(own):
                up.add((own, other))
    assert up == set()


def test_modules_make_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in SCRIPTS.rglob("*.py"):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[own] = set(imported(ast.parse(path.read_text())))
    edges = {
        own: {other for name in names for other in (name, name.rpartition(".")[0]) if other in graph and other != own}
        for own, names in graph.items()
    }
    while leaves := [own for own, others in edges.items() if not others & edges.keys()]:
        for own in leaves:
            del edges[own]
    assert not edges


def twice(paths: Iterable[Path]) -> list[str]:
    """Return the names that more than one class of the modules `paths` has, an underscore in front left out."""
    names = Counter(
        node.name.lstrip("_")
        for path in paths
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    )
    return sorted(name for name, count in names.items() if count > 1)


@pytest.mark.parametrize("folder", [SCRIPTS, TESTS], ids=lambda path: path.name)
def test_no_class_has_the_name_of_another(folder: Path) -> None:
    assert twice(folder.rglob("*.py")) == []


def test_no_file_is_long() -> None:
    files = [path for path in SCRIPTS.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files += [*TESTS.rglob("*.py"), *TESTS.rglob("*.sh")]
    lines = {str(path.relative_to(ROOT)): path.read_bytes().count(b"\n") for path in files}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_file_that_git_ignores_is_tracked() -> None:
    """Caches would change with every run."""
    if not (ROOT / ".git").exists():
        pytest.skip("whether a file that git ignores is tracked is not tested: this is no clone")
    assert git(ROOT, "ls-files", "--cached", "--ignored", "--exclude-per-directory=.gitignore").splitlines() == []
