"""What every task has in common: `--set`, and how a failure is shown."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, cast

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from scripts.errors import ToolkitError
from scripts.settings import ROOT, Settings, check_environment, load

# Else GitPython, if there is no git, fails when it is imported.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

P = ParamSpec("P")
SET = {
    "set": "Override a setting of invoke.yaml, as key=value (build.jobs=4, say), or use the set of releases "
    "of that name (master, say; see releases.yaml); may be repeated."
}
RELEASES = {
    "freeswitch": "FreeSWITCH release to use in place of the pinned one (v1.10.7, say).",
    "sofia_sip": "sofia-sip release to use (default: the newest that fits).",
}


def command(**help_texts: str) -> Callable[[Callable[P, object]], Callable[..., Any]]:
    """Make an Invoke task with the option `--set` out of a function.

    `help_texts` describe the other options. A ToolkitError becomes one line on
    stderr and exit status 1, and so does the result False, without the line;
    Ctrl-C becomes exit status 130.
    """

    def decorate(function: Callable[P, object]) -> Callable[..., Any]:
        @functools.wraps(function)
        def body(*args: P.args, **kwargs: P.kwargs) -> None:
            if shutil.which("git") is None:
                raise Exit("error: git is missing: install it (`apt-get install git`)", code=1)
            try:
                result = function(*args, **kwargs)
            except ToolkitError as error:
                raise Exit(f"error: {error}", code=1) from error
            except OSError as error:
                raise Exit(f"error: {error.filename or 'system'}: {error.strerror or error}", code=1) from error
            except KeyboardInterrupt:
                raise Exit("interrupted", code=130) from None
            if result is False:
                raise Exit(code=1)

        return task(body, iterable=["set_"], help={**SET, **help_texts})

    return decorate


def check_variables() -> None:
    """Check the INVOKE_... variables before Invoke reads them, and exit with one line if one is wrong."""
    try:
        check_environment()
    except ToolkitError as error:
        raise Exit(f"error: {error}", code=1) from error


def settings(context: Context, overrides: list[str], freeswitch: str = "", sofia_sip: str = "") -> Settings:
    """Return the settings in force: Invoke's configuration, the `--set` options and the releases."""
    return load(cast(Mapping[str, Any], context.config), overrides, freeswitch, sofia_sip)


def run_tests(context: Context, overrides: list[str], arguments: str) -> bool:
    """Run pytest with `arguments` (one shell-quoted string) and return whether all tests passed.

    The tests of the real upstreams use the `--set` options too.
    """
    settings(context, overrides)
    environment = {**os.environ, "TOOLKIT_SET": "\n".join(overrides)}
    command = [sys.executable, "-m", "pytest", *shlex.split(arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
