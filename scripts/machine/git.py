"""Git, at the user's trees: with settings of its own, and with the user's where a host is reached."""

from __future__ import annotations

import contextlib
import enum
import os
import re
import shlex
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from git import Git
from git.exc import GitCommandError

from scripts.errors import ToolkitError
from scripts.machine.files import short

# Whatever the user has configured: no hook runs, and files are as they were committed.
GIT = (
    "git", "-c", f"core.hooksPath={os.devnull}", "-c", f"core.attributesFile={os.devnull}", "-c", "core.autocrlf=false",
    "-c", "core.safecrlf=false", "-c", "core.fsmonitor=false",
)  # fmt: skip
# The variables of the user that a git keeps: what reaches a host, where git's own programs and the user's
# configuration are (`environment` sets the latter), and what git tells of its work.
KEPT = re.compile(
    r"GIT_(SSH|ASKPASS|PROXY|SSL|HTTP|CURL|ALLOW_PROTOCOL$|PROTOCOL_FROM_USER$|TERMINAL_PROMPT$|EXEC_PATH$"
    r"|CONFIG_|TRACE|TEST_)"
)


# How each kind of failure reads in git's own words, which are English: GitPython sets LC_ALL.
OFFSET = re.compile(r"^Hunk #\d+ succeeded at \d+ \(offset (-?\d+) lines?\)", re.MULTILINE)
SEARCHED = re.compile(r"^error: while searching for:\n.*?(?=^error: patch failed: )", re.MULTILINE | re.DOTALL)


class Failure(enum.Enum):
    """What a git failed of."""

    CORRUPT_PATCH = enum.auto()
    DOES_NOT_APPLY = enum.auto()
    UNKNOWN_REFERENCE = enum.auto()
    UNKNOWN_OBJECT = enum.auto()
    FOREIGN_OWNER = enum.auto()
    NO_PERMISSION = enum.auto()
    FULL_DISK = enum.auto()
    NO_ANSWER = enum.auto()
    OTHER = enum.auto()


@dataclass(frozen=True)
class Reason:
    """Why a git failed: the `kind` of failure, and git's own words for it, on one line and without its prefix.

    `subject` is what it is about: the file of a hunk that does not apply, the
    commit or file (40 hexadecimal digits) that the other side lacks, the
    repository that another user owns, the file that git may not write, what the
    system says of a disk. `line` is that of the hunk in its file, or that of a
    patch that git can't read. Both are empty and 0 where git does not say.
    """

    kind: Failure
    text: str
    subject: str = ""
    line: int = 0

    def __str__(self) -> str:
        return self.text

    def remedy(self, path: Path) -> str:
        """Return what to do if git failed of the files, those at `path` say, and not of what it was to do, else ""."""
        if self.kind is Failure.FOREIGN_OWNER:
            name = shlex.quote(self.subject)
            return f"another user owns it: trust it (`git config --global --add safe.directory {name}`)"
        if self.kind is Failure.NO_PERMISSION:
            return f"another user owns it: make it yours (`sudo chown -R $(id -u) {shlex.quote(str(path))}`)"
        if self.kind is Failure.FULL_DISK:
            return "make room there (`inv clean`, `docker system prune`)"
        return ""


# What git writes if a failure is of a kind; the first that is found holds.
KINDS = (
    (
        Failure.FULL_DISK,
        re.compile(
            r"(?P<subject>No space left on device|Disk quota exceeded|Read-only file system|unable to write file.*)"
        ),
    ),
    (Failure.NO_ANSWER, re.compile("Timeout")),
    (Failure.FOREIGN_OWNER, re.compile(r"dubious ownership in repository at '(?P<subject>[^\n]+)'")),
    (
        Failure.NO_PERMISSION,
        re.compile(
            r"insufficient permission for adding an object to repository database (?P<subject>.+)"
            # Not that of a host: git@host: Permission denied (publickey).
            r"|(?P<file>/[^\n:']+)'?: Permission denied$",
            re.MULTILINE,
        ),
    ),
    (Failure.UNKNOWN_OBJECT, re.compile(r"not our ref (?P<subject>[0-9a-f]{40})")),
    (Failure.UNKNOWN_REFERENCE, re.compile(r"couldn't find remote ref")),
    (
        Failure.CORRUPT_PATCH,
        re.compile(r"(?:corrupt patch|garbage) at (?:line |\S+:)(?P<line>\d+)$", re.MULTILINE),
    ),
    (Failure.DOES_NOT_APPLY, re.compile(r"patch failed: (?P<subject>.+):(?P<line>\d+)")),
    (
        Failure.DOES_NOT_APPLY,
        re.compile(r"patch failed|does not apply|(?:does not exist|already exists) in|does not match index"),
    ),
)


class OwnGit(Git):
    """A git without the variables of the user that name places or change what git means.

    Many have no value that stands for none, so they are taken away. What it is
    called with stays.
    """

    def execute(self, command: Any, *arguments: Any, **options: Any) -> Any:
        given = {**self.environment(), **(options.get("env") or {})}
        names = [name for name in os.environ if name.startswith("GIT_") and not KEPT.match(name) and name not in given]
        without = ["env", *(f"--unset={name}" for name in sorted(names))] if names else []
        return super().execute([*without, *command], *arguments, **options)


class GitError(ToolkitError):
    """A git that failed: `call` says which, `reason` why."""

    def __init__(self, call: str, reason: Reason, remedy: str = "") -> None:
        super().__init__(f"{call}: {reason}", remedy)
        self.call = call
        self.reason = reason


def local(path: Path, *arguments: str, index: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run git in the tree `path` and return its output.

    Neither the network, the user's configuration nor a hook has a part in it;
    `index` stands in for the tree's index. Raises GitError on failure.
    """
    return _git(path, arguments, {**environment(path, index), **(env or {})})[0]


def blob(path: Path, commit: str, file: str) -> str:
    """Return the contents of `file` in `commit`; bytes that are not UTF-8 become surrogates."""
    git = OwnGit(path)
    git.update_environment(**environment(path))
    try:
        data: bytes = git.get_object_data(f"{commit}:{file}")[3]
    except ValueError as error:
        raise ToolkitError(f"{short(path)}: there is no {file} in {commit[:12]}") from error
    finally:
        git.clear_cache()
    return data.decode(errors="surrogateescape")


def online(path: Path, *arguments: str, index: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run git in the tree `path` as the user would, and return its output.

    It can fetch objects that the tree lacks. Raises GitError on failure.
    """
    return _git(path, arguments, {**network_environment(path, index), **(env or {})})[0]


def apply(path: Path, mail: Path, index: Path, context: int | None = None, fetch: bool = False) -> int:
    """Apply the patch file `mail` to the `index` of the tree `path`; return how far git moved a hunk, in lines.

    `context` is the number of lines around a change that must match (None:
    all); with `fetch` git may fetch the files that the tree lacks. Raises
    GitError on failure; the index is then what it was.
    """
    options = [f"-C{context}"] if context is not None else []
    arguments = ("apply", "--cached", "--verbose", "--whitespace=nowarn", *options, str(mail))
    _, told = _git(path, arguments, (network_environment if fetch else environment)(path, index))
    return max((abs(int(lines)) for lines in OFFSET.findall(told)), default=0)


def _git(path: Path, arguments: Sequence[str], environment: dict[str, str]) -> tuple[str, str]:
    """Return what git writes to stdout and to stderr."""
    command = [*GIT, *arguments]
    try:
        _, output, told = OwnGit(path).execute(
            command, env=environment, strip_newline_in_stdout=False, with_extended_output=True
        )
    except GitCommandError as error:
        why = reason(error)
        raise GitError(f"{short(path)}: git {arguments[0]} failed", why, why.remedy(path)) from error
    return str(output), str(told)


@dataclass(frozen=True)
class Mail:
    """What `git am` takes from a mail besides the diff."""

    author: str
    address: str
    date: str
    subject: str
    body: str


def in_mail(mail: Path) -> Mail:
    """Return what `git am` would take from the file `mail`; ToolkitError if that is no mail with a patch."""
    message = mail.with_name(f"{mail.name}.message")
    command = ["git", "mailinfo", "--encoding=UTF-8", str(message), str(mail.with_name(f"{mail.name}.diff"))]
    try:
        with tempfile.TemporaryDirectory() as split:
            if (number := local(mail.parent, "mailsplit", "-b", f"-o{split}", str(mail)).strip()) != "1":
                raise ToolkitError(f"git takes it for {number} mails: a line begins one (From ...)")
        with mail.open("rb") as file:
            told = str(OwnGit(mail.parent).execute(command, istream=file, env=environment(mail.parent)))
    except GitCommandError as error:
        raise GitError("git mailinfo failed", reason(error)) from error
    headers = dict(line.split(": ", 1) for line in told.splitlines() if ": " in line)
    names = ("Author", "Email", "Date", "Subject")
    author, address, date, subject = (headers.get(name, "") for name in names)
    return Mail(author, address, date, subject, message.read_text(errors="surrogateescape"))


def reason(error: GitCommandError) -> Reason:
    """Return why git failed: the one place that reads what it writes to stderr."""
    text = re.sub(r"^\s*stderr: '|'\s*$", "", str(error.stderr or "")).strip()
    # With --verbose, `git apply` shows the lines that it looked for before it says where.
    text = SEARCHED.sub("", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("fatal: ", "error: ", "ERROR: "))]
    line = re.sub(r"^(fatal|error|ERROR): ", "", (told or lines or [f"exit status {error.status}"])[0])
    for kind, words in KINDS:
        if match := words.search(text):
            found = match.groupdict()
            if kind is Failure.NO_ANSWER:
                line = "no answer in time"
            return Reason(kind, line, found.get("subject") or found.get("file") or "", int(found.get("line") or 0))
    return Reason(Failure.OTHER, line)


def end(process: int) -> None:
    """End a git and what it has started: the helper that is on the network holds its output open, and us with it."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            end(int(child))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)


def git_in(path: Path) -> str:
    """Return how git is called for the tree `path`, as a shell takes it."""
    return f"git -C {shlex.quote(str(path))}"


def environment(path: Path, index: Path | None = None) -> dict[str, str]:
    """Return the variables for a git in the tree `path`, or with its `index`: nothing is the user's."""
    return {
        **network_environment(path, index),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        # What `git -c` and others hand on to the gits below them.
        "GIT_CONFIG_COUNT": "0",
        "GIT_CONFIG_PARAMETERS": "",
        "GIT_NO_LAZY_FETCH": "1",
    }


def network_environment(path: Path, index: Path | None = None) -> dict[str, str]:
    """Like `environment`, with the user's configuration (proxy, insteadOf, credentials)."""
    # The explicit directories keep git from a repository further up; what else a
    # hook that runs the toolkit has set, OwnGit takes away.
    return {
        "GIT_DIR": str(path / ".git"),
        "GIT_WORK_TREE": str(path),
        "GIT_INDEX_FILE": str(index or path / ".git/index"),
        "GIT_OBJECT_DIRECTORY": str(path / ".git/objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": "",
        "GIT_NAMESPACE": "",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }


def is_ancestor(path: Path, commit: str) -> bool:
    """Return whether the checked-out commit of the tree `path` stands on `commit`."""
    try:
        local(path, "merge-base", "--is-ancestor", commit, "HEAD")
    except GitError:
        return False
    return True
