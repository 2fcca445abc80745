"""What the tests share: small upstreams, isolation, the list of skipped tests."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _pytest import runner
from docker.errors import BuildError
from rich.console import Console
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from scripts.errors import ToolkitError
from scripts.image import base, build
from scripts.machine import engine
from scripts.machine.files import ROOT
from scripts.pins.settings import Settings, Source, load
from scripts.sources import trees as sources_module
from tests import races
from tests import registries as registries_module
from tests.record import Plugin

AUTHOR = {
    "GIT_AUTHOR_NAME": "Ann Author",
    "GIT_AUTHOR_EMAIL": "ann@example.org",
    "GIT_AUTHOR_DATE": "2024-05-06T07:08:09+00:00",
    "GIT_COMMITTER_NAME": "Ann Author",
    "GIT_COMMITTER_EMAIL": "ann@example.org",
    "GIT_COMMITTER_DATE": "2024-05-06T07:08:09+00:00",
}
TAG = "v1.0"
# What came of the races that were run.
RACES = pytest.StashKey[dict[races.RaceCase, races.RaceResult]]()
# What a worker of pytest-xdist has to say in the end, and what all of them said.
SAID = "toolkit-said"
ALL_SAID = pytest.StashKey[list[str]]()
# What is in these folders needs Docker, and what is in no other does.
WITH_DOCKER = frozenset({"engine", "image", "probe", "scenarios"})
# The scenarios that have a lab of their own; one worker runs all others, which share theirs.
OWN_LABS = frozenset(f"tests/scenarios/test_{name}.py" for name in ("calls", "conference", "races", "subscriptions"))
# Its tests run side by side across its modules.
DEPLOYMENT = "tests/image/deployment"
# What must not hang may take on a busy machine, seconds.
PATIENCE = 60.0
# Far enough apart for three hunks.
LINES = [f"line {number}\n" for number in range(1, 61)]


def git(directory: Path, *arguments: str) -> str:
    """Run git as an upstream's author would and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    result = subprocess.run(
        ["git", *arguments], cwd=directory, env={**environment, **AUTHOR}, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


@pytest.fixture(scope="session")
def gitconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a configuration of git with nothing of the user's but what reaches a host.

    It is git's as long as the session lasts: a test that ends must not take the
    variable away from what reads it in another thread.
    """
    path = tmp_path_factory.mktemp("git") / "config"
    path.touch()
    redirections = subprocess.run(
        ["git", "config", "--global", "--get-regexp", r"^url\..*\.insteadof$"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    entries = [line.partition(" ")[::2] for line in redirections.splitlines()]
    for name, value in [*entries, ("uploadpack.allowFilter", "true")]:
        subprocess.run(["git", "config", "--file", str(path), "--add", name, value], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(path))
        yield path


@pytest.fixture(autouse=True)
def isolated(gitconfig: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests from the user's settings, and git from writing outside the test."""
    for variable in list(os.environ):
        if variable.startswith("INVOKE_"):
            monkeypatch.delenv(variable)
    own = tmp_path_factory.mktemp("home") / "gitconfig"
    shutil.copy(gitconfig, own)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(own))


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory, gitconfig: Path) -> Callable[[str], Path]:
    """Return a function that returns a tagged upstream repository of the name given, the same one each time."""
    directory = tmp_path_factory.mktemp("releases")

    @functools.cache
    def make(name: str) -> Path:
        path = directory / name
        (path / "src").mkdir(parents=True)
        (path / "win32").mkdir()
        git(path, "init", "--quiet", "--initial-branch=main", "--template=")
        git(path, "config", "uploadpack.allowFilter", "true")
        (path / "README").write_text(f"{name}\n")
        (path / "src/main.c").write_text("".join(LINES))
        (path / "src/other.c").write_text("".join(LINES))
        (path / "build.sh").write_text("#!/bin/sh\n")
        (path / "build.sh").chmod(0o755)
        (path / "link").symlink_to("src/main.c")
        (path / "win32/project.sln").write_text("unwanted on Linux\n")
        git(path, "add", "--all")
        git(path, "commit", "--quiet", "--message=Release")
        git(path, "tag", "--annotate", TAG, "--message=Release")
        return path

    return make


@pytest.fixture
def upstream(tmp_path: Path, releases: Callable[[str], Path]) -> Callable[[str], Path]:
    """Return a function that returns a tagged upstream repository of the name given, the test's own."""
    return functools.partial(copied, releases, tmp_path)


def copied(releases: Callable[[str], Path], directory: Path, name: str) -> Path:
    """Copy the upstream repository `name` into `directory`; return where it is."""
    return Path(shutil.copytree(releases(name), directory / "upstream" / name, symlinks=True))


@pytest.fixture
def settings(tmp_path: Path, upstream: Callable[[str], Path]) -> Settings:
    """Return settings with two small local upstreams, "one" and "two", and no patches."""
    return small_settings(tmp_path, upstream)


def small_settings(directory: Path, upstream: Callable[[str], Path]) -> Settings:
    """Return settings with two small upstreams and no patches; what they name is in `directory`."""
    sources = []
    for name in ("one", "two"):
        path = upstream(name)
        commit = git(path, "rev-parse", f"{TAG}^{{commit}}")
        sources.append(Source(name, f"file://{path}", TAG, commit, ("/win32/",), directory / "build/sources" / name))
        (directory / "patches" / name).mkdir(parents=True)
    return dataclasses.replace(
        load(),
        sources=tuple(sources),
        patches=directory / "patches",
        excluded_patches=(),
        build_directory=directory / "build",
        report_directory=directory / "build/report",
    )


def chosen(*overrides: str) -> Settings:
    """Return the project's own settings, those of the options of `inv test`, and the `overrides`."""
    given = [line for line in os.environ.get("TOOLKIT_SET", "").splitlines() if line]
    freeswitch, sofia_sip = (os.environ.get(f"TOOLKIT_{name}", "") for name in ("FREESWITCH", "SOFIA_SIP"))
    return load(overrides=[*given, *overrides], freeswitch=freeswitch, sofia_sip=sofia_sip)


@pytest.fixture
def real_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the project's own settings, and those of the options of `inv test`, with the trees in `tmp_path`."""
    real = chosen(f"sources.directory={tmp_path / 'build/sources'}")
    return dataclasses.replace(real, build_directory=tmp_path / "build", report_directory=tmp_path / "build/report")


@pytest.fixture
def root() -> Path:
    """Return the root of the project."""
    return ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a repository with the version 1.2.3 and a commit of that tag."""
    from tests.publication import release

    path = tmp_path / "project"
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    release(path, "1.2.3")
    return path


def needs_docker() -> None:
    """Skip the test if there is no Docker engine."""
    try:
        with engine.connect(timeout=10):
            pass
    except ToolkitError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def one_at_a_time(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return a function whose context only one of the workers of pytest-xdist is in: they share the engine."""
    base = tmp_path_factory.getbasetemp()

    @contextlib.contextmanager
    def alone() -> Iterator[None]:
        with ((base if worker_id == "master" else base.parent) / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    return alone


@pytest.fixture(scope="session")
def built(one_at_a_time: Callable[[], contextlib.AbstractContextManager[None]]) -> Settings:
    """Return the project's settings, and those of the options of `inv test`, once the images are up to date.

    Skips where there is no Docker or no sources; a build that fails fails the test.
    """
    found = chosen()
    needs_docker()
    with one_at_a_time():
        try:
            sources_module.clone(found.sources, found.patches, Console(quiet=True))
        except ToolkitError as error:
            pytest.skip(f"the images are not tested: {error}")
        build.build(found, Console(quiet=True))
    return found


@pytest.fixture(scope="session")
def registries(one_at_a_time: Callable[[], contextlib.AbstractContextManager[None]]) -> Settings:
    """Return the project's settings once the image of tests/registries.py is there.

    Skips where there is no Docker, or no package of the registry.
    """
    found = load(overrides=[line for line in os.environ.get("TOOLKIT_SET", "").splitlines() if line])
    needs_docker()
    with one_at_a_time():
        base.ensure(found.base_image, found.base_suite, found.build_directory, Console(quiet=True))
    with engine.connect(600) as client:
        try:
            registries_module.build(client, found.base_image)
        except BuildError as error:
            pytest.skip(f"pushing and pulling is not tested: {error.msg}")
    return found


@pytest.fixture(scope="session")
def registry(registries: Settings) -> Iterator[str]:
    """Return host and port of a registry on the loopback interface that takes everything."""
    with engine.connect() as client, registries_module.run(client) as place:
        yield place


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let who has the time play the races more often than the gate does."""
    parser.addoption("--repetitions", type=int, default=0, metavar="N", help="play each race so often over a transport")


def pytest_configure(config: pytest.Config) -> None:
    """Let the death matrix write its report, and Ctrl-C reach what the tests start."""
    # A shell has what it starts in the background ignore SIGINT, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Requests reads the environment for each call, also in another thread while pytest takes the variable away.
    setattr(runner, "_update_current_test_var", lambda *_: None)  # noqa: B010
    config.pluginmanager.register(Plugin(), "death-matrix")
    config.stash[RACES] = {}
    config.stash[ALL_SAID] = []


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Give each worker whole modules, and those that share the labs to one."""
    return Modules(config, log)


class Modules(LoadScopeScheduling):
    """Schedules by module; what shares labs or runs side by side is one, and what lasts longest comes first."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        if folder(nodeid) == "scenarios" and module not in OWN_LABS:
            return "labs"
        return DEPLOYMENT if module.startswith(f"{DEPLOYMENT}/") else module


def pytest_testnodedown(node: WorkerController) -> None:
    """Keep what a worker says in the end."""
    node.config.stash[ALL_SAID].extend(getattr(node, "workeroutput", {}).get(SAID, ()))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Say how the races went and where the report of the death matrix is, in a worker to who started it."""
    plugin = session.config.pluginmanager.get_plugin("death-matrix")
    said = [f"race {line}" for line in races.lines(session.config.stash[RACES])]
    if plugin is not None and plugin.line:
        said.append(plugin.line)
    session.config.stash[ALL_SAID].extend(said)
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[SAID] = said


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give what is in a folder that needs Docker the marker `docker`; see that nothing else needs it."""
    for item in items:
        needs = {"built", "registries"} & set(getattr(item, "fixturenames", ()))
        if folder(item.nodeid) in WITH_DOCKER:
            item.add_marker("docker")
        elif needs:
            raise pytest.UsageError(f"{item.nodeid} needs Docker: move it to one of {', '.join(sorted(WITH_DOCKER))}")


def folder(nodeid: str) -> str:
    """Return the folder of tests/ that the test is in."""
    return nodeid.split("/")[1]


def edited(path: Path, *numbers: int) -> None:
    """Change the lines `numbers` (from 1) of the file `path`."""
    lines = path.read_text().splitlines(keepends=True)
    for number in numbers:
        lines[number - 1] = f"changed {number}\n"
    path.write_text("".join(lines))


@pytest.fixture
def add_patch(settings: Settings, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that adds a patch to the series.

    It changes lines of files in a clone of the upstream that has the earlier
    patches: add_patch("one", "First", {"src/main.c": [3, 30]}).
    """
    return functools.partial(new_patch, settings.patches, tmp_path)


def new_patch(patches: Path, directory: Path, name: str, subject: str, files: dict[str, list[int]]) -> Path:
    """Add a patch to `patches`, see add_patch; the upstreams and their clones are in `directory`."""
    work = directory / "author" / name
    if not work.exists():
        work.parent.mkdir(exist_ok=True)
        git(directory, "clone", "--quiet", str(directory / "upstream" / name), str(work))
    for file, lines in files.items():
        if (work / file).exists():
            edited(work / file, *lines)
        else:
            (work / file).write_text("new\n")
    git(work, "add", "--all")
    git(work, "commit", "--quiet", f"--message={subject}")
    number = len(list((patches / name).glob("*.patch"))) + 1
    text = git(work, "format-patch", "-1", "--stdout") + "\n"
    path = patches / name / f"{number:04}-{subject.lower().replace(' ', '-')}.patch"
    path.write_text(text)
    return path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with what was said, and with the skipped tests and the reasons: a run that skips is not a full run."""
    for line in terminalreporter.config.stash[ALL_SAID]:
        terminalreporter.write_line(line)
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        reasons[reason] = reasons.get(reason, 0) + 1
        terminalreporter.write_line(f"skipped {report.nodeid}: {reason}")
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} skipped: {reason}")
