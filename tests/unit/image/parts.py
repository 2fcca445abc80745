"""The entrypoint's files of functions, sourced by a shell of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from scripts.image import build, variables

PREFIX = "freeswitch-entrypoint: "
# What the image has, for the checks.
CODECS = ("PCMU", "PCMA", "OPUS", "H263-1998")
MODULES = ("mod_amqp", "mod_hiredis", "mod_xml_curl")


class Parts:
    """A directory as the image has it below its root, with the files of functions in `directory`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.share = root / "share"
        self.directory = self.share / build.ENTRYPOINT.name
        self.run_directory = root / "run"
        self.commands = root / "bin"

    def make(self) -> Parts:
        """Make it, and return it."""
        root = self.root
        for directory in (self.share, root / "mod", root / "etc", root / "lib", self.run_directory, self.commands):
            directory.mkdir()
        build.write_entrypoint(self.share)
        (self.share / "codecs").write_text("".join(f"{codec}\n" for codec in CODECS))
        (self.share / "variables").write_text(
            "".join(
                f"{variable['name']}|{variable['kind']}|{variable['default']}\n"
                for group in variables.groups()
                for variable in group["variables"]
            )
        )
        for module in MODULES:
            (root / "mod" / f"{module}.so").touch()
        return self

    def command(self, name: str, script: str) -> None:
        """Let the functions find a command of that name."""
        path = self.commands / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def text(self, script: str) -> str:
        """Return a script that sets the paths as the entrypoint does and sources its files, and then does `script`."""
        paths = {
            "share": self.share,
            "modules": self.root / "mod",
            "etc": self.root / "etc",
            "configuration": self.root / "etc/autoload_configs",
            "run": self.run_directory,
            "lib": self.root / "lib",
        }
        head = "".join(f"{name}='{path}'\n" for name, path in paths.items())
        sourced = "".join(f". '{path}'\n" for path in sorted(self.directory.glob("*.sh")))
        return f"set -eu\n{head}{sourced}{script}\n"

    def environment(self, **given: str) -> dict[str, str]:
        return {"PATH": f"{self.commands}:{os.environ['PATH']}", **given}

    def run(self, script: str, *arguments: str, shell: str = "sh", **given: str) -> subprocess.CompletedProcess[str]:
        """Run `script` after the files, with the arguments and the environment `given`."""
        command = [shutil.which(shell) or shell, "-c", self.text(script), "sh", *arguments]
        return subprocess.run(command, env=self.environment(**given), capture_output=True, text=True, check=False)

    def loaded(self, script: str, **given: str) -> subprocess.CompletedProcess[str]:
        """Run `script` with the variables as the entrypoint has them: those given, and the defaults."""
        return self.run(f"load_variables\n{script}", **given)

    def refusal(self, script: str, **given: str) -> str:
        """Return the one line with which `script` is refused, without its prefix."""
        done = self.loaded(script, **given)
        lines = done.stderr.splitlines()
        assert (done.returncode, len(lines)) == (78, 1), done
        assert lines[0].startswith(PREFIX)
        return lines[0].removeprefix(PREFIX)
