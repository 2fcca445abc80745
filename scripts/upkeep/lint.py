"""The linters: what the project's own files are checked with, and how to get what is missing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import get_console
from rich.console import Console
from rich.markup import escape

from scripts.errors import ToolkitError
from scripts.machine import git, terminal
from scripts.machine.files import ROOT

WORKFLOWS = ".github/workflows/"
# How a script begins that is run, and one that others source.
SHELL = re.compile(rb"#!\s*/\S*[/ ](ba)?sh\b|# shellcheck shell=")
TIMEOUTS = "custom.github-workflows-require-timeout"
ZIZMOR = "there is no wheel for this processor (`cargo install zizmor` builds it)"
ACTIONLINT = "`go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12` gets it"


@dataclass(frozen=True)
class Linter:
    """A tool, and what it looks at: `files`, or what its own configuration says if there are none.

    `remedy` tells how to get it where requirements.txt does not bring it. One
    that is `extra` may be missing, because others look at the same files.
    """

    name: str
    tool: str
    arguments: tuple[str, ...]
    files: tuple[str, ...] = ()
    remedy: str = "remove .venv and run `scripts/inv` again"
    extra: bool = False


def lint(root: Path = ROOT, console: Console | None = None) -> bool:
    """Run every linter, print a line for each and what it found; return whether all are content.

    Raises ToolkitError if `root` is not a git work tree: what belongs to the
    project is what git knows.
    """
    console = console or get_console()
    errors = terminal.loud(console)
    good = True
    for linter in linters(_files(root)):
        tool = find(linter.tool)
        if tool is None:
            good &= linter.extra
            what = "not here, others check the same files" if linter.extra else "missing"
            where, mark = (console, "-") if linter.extra else (errors, "[red]✗[/red]")
            _line(where, mark, f"{linter.name}: {what}: {linter.remedy}")
            continue
        command = [tool, *linter.arguments, *linter.files]
        result = subprocess.run(
            command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if result.returncode:
            good = False
            _line(errors, "[red]✗[/red]", f"{linter.name}:")
            errors.print(result.stdout.rstrip(), soft_wrap=True, markup=False, highlight=False)
        else:
            _line(console, "[green]✓[/green]", linter.name)
    return good


def linters(files: Sequence[tuple[str, bool]]) -> list[Linter]:
    """Return the linters for the project's `files`: path, and whether it is a shell script."""
    names = [name for name, _ in files]
    scripts = tuple(name for name, shell in files if shell)
    dockerfiles = tuple(name for name in names if Path(name).name.startswith("Dockerfile"))
    workflows = tuple(name for name in names if name.startswith(WORKFLOWS))
    dependabot = tuple(name for name in names if name == ".github/dependabot.yml")
    shellcheck = "install it (`apt-get install shellcheck`)"
    schema = ("--no-cache", "--builtin-schema")
    found = [
        Linter("ruff check", "ruff", ("check", ".")),
        Linter("ruff format", "ruff", ("format", "--check", ".")),
        Linter("mypy", "mypy", ()),
        Linter("shellcheck", "shellcheck", (), scripts, shellcheck),
        Linter("hadolint", "hadolint", ("--no-color",), dockerfiles),
        Linter("schema of workflows", "check-jsonschema", (*schema, "vendor.github-workflows"), workflows),
        Linter("time limits of jobs", "check-jsonschema", (*schema, TIMEOUTS), workflows),
        Linter("schema of dependabot", "check-jsonschema", (*schema, "vendor.dependabot"), dependabot),
        Linter(
            "zizmor", "zizmor", ("--offline", "--quiet", "--color=never"), (*workflows, *dependabot), ZIZMOR, extra=True
        ),
        Linter("actionlint", "actionlint", ("-no-color",), workflows, ACTIONLINT, extra=True),
    ]
    own = ("ruff", "mypy")
    return [linter for linter in found if linter.files or linter.tool in own]


def find(tool: str) -> str | None:
    """Return the path of `tool`, first out of this Python's environment, None if it is missing."""
    return shutil.which(tool, path=str(Path(sys.executable).parent)) or shutil.which(tool)


def _files(root: Path) -> list[tuple[str, bool]]:
    """Return the files of the project, and whether each is a shell script."""
    try:
        listed = git.local(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    except ToolkitError as error:
        raise ToolkitError(
            f"{root} is not a git clone, so there is no list of its files", "clone the project"
        ) from error
    names = sorted({name for name in listed.split("\0") if name and (root / name).is_file()})
    return [(name, _is_shell(root / name)) for name in names]


def _is_shell(path: Path) -> bool:
    with path.open("rb") as file:
        return SHELL.match(file.readline(64)) is not None


def _line(console: Console, mark: str, text: str) -> None:
    console.print(mark, escape(text), soft_wrap=True, highlight=False)
