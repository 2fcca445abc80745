"""The command line: scripts/inv and the tasks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from scripts.bench.parts import PARTS
from scripts.cli import command
from scripts.errors import ToolkitError
from scripts.machine.files import ROOT
from scripts.pins.settings import load


@pytest.fixture
def project(tmp_path: Path, root: Path) -> Path:
    """Return a copy of the project, at a path with a space, with nothing to install."""
    path = tmp_path / "a project"
    shutil.copytree(root / "scripts", path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "patches", path / "patches")
    for name in ("tasks.py", "invoke.yaml", "releases.yaml"):
        shutil.copy(root / name, path / name)
    (path / "requirements.txt").write_text("# nothing\n")
    return path


def made(project: Path) -> Path:
    """Give `project` a complete .venv that stands for this Python's environment."""
    venv = project / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/inv").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m invoke "$@"\n')
    (venv / "bin/inv").chmod(0o755)
    shutil.copy(project / "requirements.txt", venv / ".requirements")
    (venv / ".place").write_text(f"{project}\n")
    return project


def run(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/inv of `project` in another directory."""
    command = [str(project / "scripts/inv"), *arguments]
    return subprocess.run(
        command, cwd="/", env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def pinned() -> str:
    """Return what is fetched of sofia-sip."""
    source = load().source("sofia-sip")
    return source.tag or source.commit


def test_list_explains_every_task(project: Path) -> None:
    result = run(made(project), "--list")
    assert result.returncode == 0
    for name in (
        "doctor",
        "base",
        "clone",
        "patch",
        "build",
        "verify",
        "watch",
        "clean",
        "lint",
        "push",
        "summary",
        "test",
    ):
        line = next(line for line in result.stdout.splitlines() if line.split()[:1] == [name])
        assert len(line.split()) > 3


def test_list_of_tasks_imports_none_of_the_slow_libraries() -> None:
    """`inv --list` would take several times as long."""
    slow = ("docker", "git", "pydantic", "jinja2", "matplotlib", "scapy", "genesis", "requests", "unidiff", "wsproto")
    code = f"import sys, tasks; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("task", ["doctor", "base", "clone", "patch", "build", "verify", "watch", "clean", "test"])
def test_every_task_has_set(project: Path, task: str) -> None:
    result = run(made(project), "--help", task)
    assert result.returncode == 0
    assert "-s, --set " in result.stdout and "key=value" in result.stdout
    assert "-q, --quiet " in result.stdout


def test_help_of_the_benchmark_lists_its_parts(project: Path) -> None:
    result = run(made(project), "--help", "bench")
    assert f"(storm,latency, say): {', '.join(PARTS)}. " in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clone", "--set", "build.job=3"], "error: --set build.job=3: unknown setting 'build.job', invoke.yaml lists"),
        (["clone", "-s", "build.jobs=many"], "error: --set build.jobs=many: 'many' is not a whole number"),
        (["patch", "--check", "--revert"], "error: --check and --revert exclude each other"),
        (["patch", "--check"], "error: build/sources/sofia-sip is missing: run `inv clone`"),
        (["watch", "--port", "x", "--password", "y"], "error: --port='x' is not a port: give a number from 1 to 65535"),
        (["watch", "--port", "99999", "--password", "y"], "error: --port='99999' is not a port: give a number"),
        (["test", "--args", "-k 'a"], 'error: --args "-k \'a": no closing quotation: close the quotation'),
        (["push", "--cache", "--check"], "error: --cache and --check exclude each other"),
        (["base", "--set", "build.base_image="], "error: setting 'build.base_image': '' is not the name of an image"),
        (["patch", "--chek"], "No idea what '--chek' is!"),
        (["ptach"], "No idea what 'ptach' is!"),
    ],
)
def test_mistakes_get_one_line(project: Path, arguments: list[str], message: str) -> None:
    result = run(made(project), *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_slip_in_invoke_yaml_gets_one_line(project: Path) -> None:
    made(project)
    file = project / "invoke.yaml"
    file.write_text(file.read_text() + "foo: [\n")
    result = run(project, "clone")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: invoke.yaml: is not YAML (") and len(result.stderr.splitlines()) == 1


def test_quiet_run_prints_errors_only(project: Path) -> None:
    made(project)
    result = run(project, "clone", "--quiet", INVOKE_SOURCES_SOFIA_SIP_URL="file:///nowhere")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: sofia-sip: cannot fetch {pinned()} from file:///nowhere (")
    result = run(project, "doctor", "--quiet", DOCKER_HOST="unix:///nowhere")
    assert result.returncode == 1 and "✗ Docker" in result.stdout and "✓" not in result.stdout


def test_setting_from_the_environment(project: Path) -> None:
    result = run(made(project), "clone", INVOKE_SOURCES_SOFIA_SIP_URL="file:///nowhere")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: sofia-sip: cannot fetch {pinned()} from file:///nowhere (")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("INVOKE_BUILD_JOB", "3", "error: unknown setting in environment variable INVOKE_BUILD_JOB: invoke.yaml"),
        ("INVOKE_BIULD_JOBS", "3", "error: unknown setting in environment variable INVOKE_BIULD_JOBS: invoke.yaml"),
        ("INVOKE_BUILD_JOBS", "abc", "error: environment variable INVOKE_BUILD_JOBS: 'abc' is not a whole number"),
        ("INVOKE_BUILD_MODULES", "x", "error: environment variable INVOKE_BUILD_MODULES: a list is set with --set"),
    ],
)
def test_mistakes_in_the_environment_get_one_line(project: Path, variable: str, value: str, message: str) -> None:
    result = run(made(project), "clone", **{variable: value})
    assert result.returncode == 1
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1


def test_without_git(project: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cmp", "readlink", "dirname"):
        (tools / name).symlink_to(str(shutil.which(name)))
    result = run(made(project), "clone", PATH=str(tools))
    assert (result.returncode, result.stderr) == (1, "error: git is missing: install it (`apt-get install git`)\n")


def test_git_that_does_not_start(project: Path, tmp_path: Path) -> None:
    (tmp_path / "gitconfig").write_text("[broken\n")
    result = run(made(project), "clone", GIT_CONFIG_GLOBAL=str(tmp_path / "gitconfig"))
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert f"bad config line 1 in file {tmp_path}/gitconfig" in result.stderr


@pytest.mark.parametrize("context", [None, KeyboardInterrupt, ValueError])
def test_error_that_ctrl_c_led_to_has_its_status(context: type[BaseException] | None) -> None:
    @command()
    def task(context_: Context, set_: list[str]) -> None:
        try:
            if context:
                raise context
        except BaseException:
            # As `verify` does.
            try:
                raise ToolkitError("broken off") from None
            except ToolkitError as error:
                raise ToolkitError(f"{error}; report") from error
        raise ToolkitError("failed")

    with pytest.raises(Exit) as end:
        task(Context(), set_=[])
    assert end.value.code == (130 if context is KeyboardInterrupt else 1)
    assert str(end.value.message) == f"error: {'broken off; report' if context else 'failed'}"


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGINT, "interrupted\n"), (signal.SIGTERM, "terminated\n"), (signal.SIGKILL, "")]
)
def test_clone_that_is_ended(project: Path, tmp_path: Path, number: signal.Signals, words: str) -> None:
    """A git server that accepts connections and never answers holds the clone up. Afterwards the next one works."""
    fake = tmp_path / "bin/git-remote-slow"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}", "GIT_ALLOW_PROTOCOL": "slow"}
    process = subprocess.Popen(
        [str(made(project) / "scripts/inv"), "clone", "--set", "sources.sofia_sip.url=slow://host/x"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    trees = project / "build/sources"
    deadline = time.monotonic() + 20
    while not [*trees.glob(".sofia-sip.*/.git/info/sparse-checkout")] and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    # Ctrl-C of a terminal goes to git, too; others to the one process.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    process.wait(timeout=20)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
    if number != signal.SIGKILL:
        assert process.communicate(timeout=20)[1] == words
        assert list(trees.iterdir()) == []
    again = run(project, "clone", "--set", f"sources.sofia_sip.url=file://{tmp_path}/none")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    # It gets as far as its own source, whatever the one that was killed left.
    assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)
    assert f"{tmp_path}/none" in again.stderr
    assert list(trees.iterdir()) == []


@pytest.fixture
def chatty(project: Path) -> Path:
    """Return a project with a task that prints more than a pipe holds."""
    with (project / "tasks.py").open("a") as tasks:
        tasks.write(
            "\n\n@command()\n"
            "def chatter(context: Context, set_: list[str]) -> None:\n"
            "    from rich import get_console\n\n"
            "    for number in range(20000):\n"
            '        get_console().print(f"✓ {number}")\n'
        )
    return made(project)


def test_output_without_the_character(chatty: Path) -> None:
    result = run(chatty, "chatter", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "\\u2713 0"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_output_that_is_closed(chatty: Path, closed: str) -> None:
    result = subprocess.run(
        ["sh", "-c", f'"$0" chatter {closed}', str(chatty / "scripts/inv")], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_output_that_nobody_reads_to_its_end(chatty: Path) -> None:
    command = [str(chatty / "scripts/inv"), "chatter"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "✓ 0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_first_run_makes_the_environment(project: Path) -> None:
    """Without network: the requirement is a package in the project itself."""
    package = project / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (package / "backend.py").write_text(BACKEND)
    (project / "requirements.txt").write_text(f"fakeinv @ {package.as_uri()}\n")
    first = run(project, "some", "task")
    assert first.returncode == 0, first.stderr
    assert first.stderr.startswith("inv: first use, making ")
    assert first.stdout.split("\n")[0] == f"--search-root|{project}|some|task"
    second = run(project, "some", "task")
    # Nothing is made a second time.
    assert (second.stdout, second.stderr) == (first.stdout, "")

    (project / ".venv/.requirements").unlink()
    (project / ".venv/bin/inv").write_text("broken")
    assert run(project, "some", "task").stdout == first.stdout


# The smallest build backend: a wheel with a script `inv` that prints its arguments.
BACKEND = """
import zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    info = "fakeinv-1.dist-info"
    with zipfile.ZipFile(f"{directory}/fakeinv-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("fakeinv.py", "import sys\\ndef main(): print('|'.join(sys.argv[1:]))\\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: fakeinv\\nVersion: 1\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\\ninv = fakeinv:main\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return "fakeinv-1-py3-none-any.whl"
"""


def test_requirement_that_cannot_be_installed(project: Path) -> None:
    (project / "requirements.txt").write_text("nothing-of-that-name==0.0.1\n")
    result = run(project, "--list", PIP_NO_INDEX="1")
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("inv: cannot install requirements.txt (ERROR: No matching distribution found")
    assert not (project / ".venv").exists()


def test_python_is_the_one_of_the_caller(project: Path, tmp_path: Path) -> None:
    """A newer one further down PATH is not taken: that is how a pipeline tests several."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("python3", "python3.13"):
        (tools / name).write_text(f'#!/bin/sh\necho {name} >>"{tmp_path}/used"\nexec "{sys.executable}" "$@"\n')
        (tools / name).chmod(0o755)
    (project / "requirements.txt").write_text("nothing-of-that-name==0.0.1\n")
    run(project, "--list", PATH=f"{tools}:{os.environ['PATH']}", PIP_NO_INDEX="1")
    assert set((tmp_path / "used").read_text().split()) == {"python3"}


def test_python_that_is_too_old(project: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cmp", "readlink", "dirname", "mktemp", "rm", "flock"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    old = tools / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" || exit 1\n')
    old.chmod(0o755)
    result = run(project, "--list", PATH=str(tools))
    assert result.returncode == 1
    assert result.stderr == "inv: Python 3.11 or newer is needed, found Python 3.9.2: install it (python3.11, say)\n"
