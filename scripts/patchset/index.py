"""An index apart from that of a tree: patches are applied to it, and the tree stays as it is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.machine import git
from scripts.machine.git import local

# Any bytes of an upstream file survive a round trip through str.
BYTES = "surrogateescape"


@dataclass(frozen=True)
class Index:
    """The index `file` for the tree `path`, and a `mail`: the file of the patch that was written last."""

    path: Path
    file: Path
    mail: Path

    @staticmethod
    @contextmanager
    def at(path: Path, commit: str) -> Iterator[Index]:
        """Hand over an index of the tree `path` that holds the files of `commit`; it is removed when it is left."""
        with tempfile.TemporaryDirectory() as directory:
            index = Index(path, Path(directory) / "index", Path(directory) / "mail")
            local(path, "read-tree", commit, index=index.file)
            yield index

    def write(self, text: str) -> Path:
        """Write the patch `text` to the file `mail`, and return that."""
        self.mail.write_text(text, errors=BYTES)
        return self.mail

    def apply(self, text: str, context: int | None = None, fetch: bool = False) -> int:
        """Write the patch `text` and apply it, as `git.apply` does; return how far git moved a hunk, in lines."""
        return git.apply(self.path, self.write(text), self.file, context, fetch)

    def read(self, file: str) -> str:
        """Return what `file` holds now. Raises GitError if there is no such file."""
        return local(self.path, "show", f":{file}", index=self.file)

    def tree(self) -> str:
        """Write what the index holds as a tree of git and return that (40 hexadecimal digits)."""
        return local(self.path, "write-tree", "--missing-ok", index=self.file).strip()
