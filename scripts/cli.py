"""What every task has in common: `--set` and `--quiet`, and how a failure is shown."""

from __future__ import annotations

import functools
import inspect
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, ParamSpec, cast

import rich
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from scripts.errors import Terminated, ToolkitError
from scripts.machine import terminal
from scripts.machine.files import ROOT
from scripts.pins import environment

if TYPE_CHECKING:
    from scripts.pins.settings import Settings

# Else GitPython, if there is no git, fails when it is imported.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

P = ParamSpec("P")
# The exit status of what Ctrl-C ended, as shells have it; what they add to the number of another signal.
INTERRUPTED, SIGNALLED = 130, 128
# A closed terminal is the end, too.
ENDS = {signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
SET = {
    "set": "Override a setting of invoke.yaml, as key=value (build.jobs=4, say), or use the set of releases "
    "of that name (master, say; see releases.yaml); may be repeated."
}
QUIET = {"quiet": "Print errors only, and what the task is there to print (the events of watch, say)."}
RELEASES = {
    "freeswitch": "FreeSWITCH release to use in place of the pinned one (v1.10.7, say).",
    "sofia_sip": "sofia-sip release to use (default: the newest that fits).",
}


def command(**help_texts: str) -> Callable[[Callable[P, object]], Callable[..., Any]]:
    """Make an Invoke task with the options `--set` and `--quiet` out of a function.

    `help_texts` describe the other options. A ToolkitError becomes one line on
    stderr and exit status 1, and so do, without the line, the result False and
    a reader of the output that has enough (`| head`); Ctrl-C becomes exit
    status 130, SIGTERM 143, SIGHUP 129, also if an error tells of it.
    """

    def decorate(function: Callable[P, object]) -> Callable[..., Any]:
        @functools.wraps(function)
        def body(*args: P.args, **kwargs: P.kwargs) -> None:
            _check_git()
            terminal.configure(quiet=bool(kwargs.pop("quiet", False)))
            if threading.current_thread() is threading.main_thread():
                _catch()
            try:
                result = function(*args, **kwargs)
                # Here it can still be told what fails.
                if sys.stdout is not None:
                    sys.stdout.flush()
            except ToolkitError as error:
                if status(error) > SIGNALLED:
                    terminal.let_go()
                raise Exit(f"error: {error}", code=status(error)) from error
            except BrokenPipeError:
                # As rich does for what it prints itself.
                terminal.silence()
                raise Exit(code=1) from None
            except OSError as error:
                if not error.filename and not _prints():
                    terminal.silence()
                    raise Exit(
                        f"error: the standard output can't be written ({error.strerror or error}): "
                        "make room where it goes, or send it elsewhere",
                        code=1,
                    ) from error
                raise Exit(f"error: {error.filename or 'system'}: {error.strerror or error}", code=1) from error
            except Terminated as error:
                terminal.let_go()
                raise Exit(ENDS[signal.Signals(error.number)], code=SIGNALLED + error.number) from None
            except KeyboardInterrupt:
                raise Exit("interrupted", code=INTERRUPTED) from None
            if result is False:
                raise Exit(code=1)

        # Invoke makes the options out of the signature.
        signature = inspect.signature(function)
        quiet = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)
        body.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*signature.parameters.values(), quiet]
        )
        return task(body, iterable=["set_"], help={**SET, **QUIET, **help_texts})

    return decorate


def _prints() -> bool:
    """Return whether the standard output takes what is left of it: what it could not take, it keeps."""
    try:
        if getattr(sys.stdout, "write_through", False):
            # Unbuffered (PYTHONUNBUFFERED), it keeps nothing.
            sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        return False
    return True


def status(error: ToolkitError) -> int:
    """Return the exit status that `error` ends a task with: that of the signal, Ctrl-C say, if it came of one."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, KeyboardInterrupt):
        link = link.__cause__ or link.__context__
    return 1 if link is None else SIGNALLED + link.number if isinstance(link, Terminated) else INTERRUPTED


def _catch() -> None:
    """Let SIGTERM and SIGHUP raise Terminated, but for a SIGHUP that is ignored: that is how nohup works."""
    for number in ENDS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    # Either may follow the other.
    for one in ENDS:
        signal.signal(one, signal.SIG_IGN)
    terminal.let_go()
    raise Terminated(number)


def _check_git() -> None:
    if shutil.which("git") is None:
        raise Exit("error: git is missing: install it (`apt-get install git`)", code=1)
    # GitPython calls it when it is imported.
    done = subprocess.run(["git", "version"], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        told = " ".join(done.stderr.split()).removeprefix("fatal: ")
        raise Exit(f"error: git doesn't start ({told}): correct that, `git version` must answer", code=1)


def check_variables() -> None:
    """Check the INVOKE_... variables before Invoke reads them, and exit with one line if one is wrong."""
    try:
        environment.check()
    except ToolkitError as error:
        raise Exit(f"error: {error}", code=1) from error


def settings(context: Context, overrides: list[str], freeswitch: str = "", sofia_sip: str = "") -> Settings:
    """Return the settings in force: Invoke's configuration, the `--set` options and the releases."""
    # Not for `inv --list`: the models take longer to import than that.
    from scripts.pins.settings import load

    return load(cast(Mapping[str, Any], context.config), overrides, freeswitch, sofia_sip)


def run_tests(
    context: Context, overrides: list[str], arguments: str, freeswitch: str = "", sofia_sip: str = ""
) -> bool:
    """Run pytest with `arguments` (one shell-quoted string) and return whether all tests passed.

    The tests of the real upstreams use the `--set` options and the releases, too.
    """
    settings(context, overrides, freeswitch, sofia_sip)
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise ToolkitError(f"--args {arguments!r}: {str(error).lower()}: close the quotation") from None
    variables = {
        **os.environ,
        "TOOLKIT_SET": "\n".join(overrides),
        "TOOLKIT_FREESWITCH": freeswitch,
        "TOOLKIT_SOFIA_SIP": sofia_sip,
    }
    command = [sys.executable, "-m", "pytest", *(["-q"] if rich.get_console().quiet else []), *words]
    return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode == 0
