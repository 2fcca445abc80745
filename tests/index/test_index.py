"""The index of registrations alone, without FreeSWITCH: many threads cross, and sanitizers and a model watch.

TOOLKIT_INDEX_SCENARIOS and TOOLKIT_INDEX_SEED make it run more, or others.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.patchset import series
from tests.conftest import chosen

PROGRAM = Path(__file__).parent
SCENARIOS = int(os.environ.get("TOOLKIT_INDEX_SCENARIOS", "12"))
SEED = int(os.environ.get("TOOLKIT_INDEX_SEED", "20261126"))
# Generous: a busy machine is not a fault.
TIMEOUT = 900
FLAGS = ("-std=gnu11", "-g", "-O1", "-pthread", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined")
SANITIZERS = {"thread": "thread", "address": "address,undefined"}
# Threads are all that these need, so they tell whether a sanitizer works here at all.
TRIVIAL = """
#include <pthread.h>
static void *run(void *arg) { return arg; }
int main(void) { pthread_t thread; return pthread_create(&thread, 0, run, 0) || pthread_join(thread, 0); }
"""


def sources(directory: Path) -> list[Path]:
    """Write the files of the index, which the series adds as a whole, to `directory`; return those to compile."""
    settings = chosen()
    (source,) = (source for source in settings.sources if source.name == "freeswitch")
    for patch in series.render(settings, source):
        for file in patch.diff:
            if file.is_added_file and Path(file.path).stem == "sofia_tp_error":
                text = "".join(line.value for hunk in file for line in hunk if line.is_added)
                (directory / Path(file.path).name).write_text(text)
    if not (directory / "sofia_tp_error.c").exists():
        pytest.skip("the index is not in the series")
    return [PROGRAM / "index.c", PROGRAM / "stubs.c", directory / "sofia_tp_error.c"]


def compiled(program: Path, sanitizer: str, files: list[Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *("cc", *FLAGS, f"-fsanitize={SANITIZERS[sanitizer]}", f"-I{PROGRAM}", f"-I{program.parent}"),
            *("-o", str(program), *map(str, files)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Return a function that compiles the program with a sanitizer and returns the command that runs it."""
    commands: dict[str, list[str]] = {}

    def command(sanitizer: str) -> list[str]:
        if sanitizer in commands:
            return commands[sanitizer]
        if not shutil.which("cc"):
            pytest.skip("no C compiler (cc)")
        directory = tmp_path_factory.mktemp(sanitizer)
        (directory / "trivial.c").write_text(TRIVIAL)
        trivial = directory / "trivial"
        if compiled(trivial, sanitizer, [directory / "trivial.c"]).returncode:
            pytest.skip(f"cc has no sanitizer '{sanitizer}'")
        # The thread sanitizer of older compilers finds its memory taken where much of the layout is random.
        for prefix in ([], ["setarch", "-R"]):
            if (not prefix or shutil.which(prefix[0])) and not run([*prefix, str(trivial)]).returncode:
                break
        else:
            pytest.skip(f"the sanitizer '{sanitizer}' does not work here")
        result = compiled(directory / "index", sanitizer, sources(directory))
        assert result.returncode == 0, result.stderr
        commands[sanitizer] = [*prefix, str(directory / "index")]
        return commands[sanitizer]

    return command


@pytest.mark.parametrize("workers", [2, 9])
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_what_is_told_is_what_happened(program: Callable[[str], list[str]], sanitizer: str, workers: int) -> None:
    """Whatever crosses: each lost registration is told once, rows and index agree, nothing leaks, no data race."""
    result = run([*program(sanitizer), str(SEED), str(SCENARIOS), str(workers)])
    assert result.returncode == 0, f"seed {SEED}, {workers} workers:\n{result.stderr[:20000]}"
    told = json.loads(result.stdout)
    assert told.pop("scenarios") == SCENARIOS
    assert told.pop("wrong") == 0
    assert all(told.values()), told
