"""What the pipeline leaves on GitHub: an issue while the series does not apply, a page for each release.

Everything goes through GitHub's own command, gh, which finds the repository and
the login by itself: in a clone, or in GH_REPO and GH_TOKEN.
"""

from __future__ import annotations

import enum
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from packaging.version import Version
from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.image import provenance
from scripts.machine.files import ROOT, short
from scripts.patchset import trials
from scripts.publish import push, summary

LABEL = "series-does-not-apply"
TITLE = "The series does not apply to the newest upstream"
NOT_FOUND = re.compile(r"\bnot found\b")


class ApiFailure(enum.Enum):
    """What gh failed of."""

    NOT_FOUND = enum.auto()
    OTHER = enum.auto()


class GhError(ToolkitError):
    """A gh that failed, and of what."""

    def __init__(self, what: str, failure: ApiFailure) -> None:
        super().__init__(what, "is GH_TOKEN set, and may it do that?")
        self.failure = failure


def tell_of_tip(reports: Path, console: Console | None = None) -> str:
    """Open an issue with the outcome of `inv matrix --tip`, in the directory `reports`, if the series did not apply.

    One that is open already is brought up to date and, if the series did
    apply, closed. Returns what was done, "" if nothing. Raises ToolkitError if
    there is no outcome, or if gh fails.
    """
    console = console or get_console()
    file = reports / trials.TIP_FILE
    try:
        applies = json.loads(file.read_text(encoding="utf-8"))["applies"]
    except FileNotFoundError:
        raise ToolkitError(f"{short(file)} is missing: run `inv matrix --tip`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ToolkitError(f"{short(file)} is not an outcome of `inv matrix --tip`: run it again") from error
    known = json.loads(_gh("issue", "list", "--label", LABEL, "--state", "open", "--limit", "1", "--json", "number"))
    number = str(known[0]["number"]) if known else ""
    if applies:
        if number:
            _gh("issue", "close", number, "--comment", "It applies again.")
        done = f"closed issue {number}" if number else ""
    else:
        body = summary.text(reports, [trials.TIP_FILE])
        if number:
            _gh("issue", "edit", number, "--body-file", "-", text=body)
            done = f"brought issue {number} up to date"
        else:
            _gh("label", "create", LABEL, "--force", "--color", "D93F0B", "--description", "Opened by the nightly run")
            place = _gh("issue", "create", "--title", TITLE, "--label", LABEL, "--body-file", "-", text=body)
            done = f"opened {place.strip()}"
    console.print(done or "the series applies, and there is no open issue", soft_wrap=True)
    return done


def release(reports: Path, console: Console | None = None, root: Path = ROOT) -> str:
    """Make the release page of the version that was pushed, with the files in `reports`, and return its address.

    If there is one, its files are replaced. Raises ToolkitError if nothing was
    pushed, or if gh fails.
    """
    console = console or get_console()
    pushed = _pushed(reports / push.PUSH_FILE)
    tag = f"v{provenance.project_version(root)}"
    if tag.removeprefix("v") not in pushed["tags"]:
        raise ToolkitError(f"what was pushed ({', '.join(pushed['tags'])}) is not {tag}: push the version first")
    files = [str(path) for path in sorted(reports.iterdir()) if path.is_file() and not path.name.startswith(".")]
    notes = summary.text(reports, [push.PUSH_FILE, push.VERIFY_FILE])
    if _exists(tag):
        _gh("release", "upload", tag, *files, "--clobber")
    else:
        title = f"freeswitch-tp-error {tag.removeprefix('v')}"
        latest = "true" if "latest" in pushed["tags"] else "false"
        early = ("--prerelease",) if Version(tag.removeprefix("v")).is_prerelease else ()
        options = ("--verify-tag", "--title", title, f"--latest={latest}", *early, "--notes-file", "-")
        _gh("release", "create", tag, *files, *options, text=notes)
    place = str(json.loads(_gh("release", "view", tag, "--json", "url"))["url"])
    console.print(f"{place}: {len(files)} files", soft_wrap=True)
    return place


def _pushed(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return {"tags": list(document["tags"])}
    except FileNotFoundError:
        raise ToolkitError(f"nothing was pushed: {short(file)} is missing, run `inv push`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ToolkitError(f"{short(file)} is not a record of `inv push`: run it again") from error


def _exists(tag: str) -> bool:
    try:
        _gh("release", "view", tag, "--json", "url")
    except GhError as error:
        if error.failure is ApiFailure.NOT_FOUND:
            return False
        raise
    return True


def _gh(*arguments: str, text: str = "") -> str:
    """Run gh and return what it prints; `text` is its input. Raises GhError if it fails."""
    if shutil.which("gh") is None:
        raise ToolkitError("there is no gh command", "install it (`apt-get install gh`)")
    result = subprocess.run(
        ["gh", *arguments], cwd=ROOT, input=text, capture_output=True, text=True, encoding="utf-8", check=False
    )
    if result.returncode:
        told = " ".join(result.stderr.split())[:300] or f"exit status {result.returncode}"
        # Whatever failed, its exit status is 1.
        failure = ApiFailure.NOT_FOUND if NOT_FOUND.search(told) else ApiFailure.OTHER
        raise GhError(f"gh {' '.join(arguments[:2])} failed ({told})", failure)
    return result.stdout
