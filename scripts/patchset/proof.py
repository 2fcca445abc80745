"""Does a series that is about to be written make the commits again that it was made from?"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from scripts.errors import ToolkitError
from scripts.machine.files import short
from scripts.machine.git import in_mail, local
from scripts.patchset import series
from scripts.patchset.index import BYTES, Index
from scripts.pins.settings import Settings, Source

# What a message is, so that a mail can hold it.
MESSAGE = "; a message has words, no [brackets] at its begin, and no line that begins a diff, a mail or ends with ---"


def check(
    settings: Settings,
    source: Source,
    texts: Mapping[str, Mapping[str, str]],
    commits: Mapping[tuple[str, str], str],
) -> None:
    """Raise ToolkitError, with the name of the commit, if one does not survive as a patch.

    `texts` are the patch templates of `source`, by upstream and file name,
    `commits` what each was made of, by the same two; nothing is written to the
    patches. A commit survives if its author, its message and its diff come
    back as they are when the series is applied.
    """
    with tempfile.TemporaryDirectory() as directory:
        written = dataclasses.replace(settings, patches=Path(directory) / "patches")
        for upstream in (*dict(source.carried), source.name):
            (written.patches / upstream).mkdir(parents=True)
            for name, text in texts.get(upstream, {}).items():
                (written.patches / upstream / name).write_bytes(text.encode(errors=BYTES))
        with Index.at(source.path, source.commit) as index:
            first = True
            for upstream, below in (*source.carried, (source.name, "")):
                for name in sorted(texts.get(upstream, {})):
                    commit = commits.get((upstream, name), "")
                    with _told(f"{_name(source, commit, name)} can't be a patch", written, settings):
                        if not series.NAME.fullmatch(name):
                            raise ToolkitError(
                                "it has no subject that names a file", "give it one (`git commit --amend`)"
                            )
                        patch = series.render_file(written, written.patches / upstream / name, upstream, below)
                        if patch:
                            _check_head(source, commit, index.write(patch.text))
                            series.put(index, source, patch, first)
                            first = False
                with _told(f"{source.name}: the series can't be written", written, settings):
                    series.files(written, upstream)
            tree = index.tree()
    if tree != local(source.path, "rev-parse", "HEAD^{tree}").strip():
        raise ToolkitError(
            f"{source.name}: the patches would not make the files of HEAD in {short(source.path)} again: a variable or "
            "a condition of a template is in the way"
        )


@contextmanager
def _told(what: str, written: Settings, settings: Settings) -> Iterator[None]:
    """Put `what` before an error, and the patches of `settings` in the place of the `written` ones."""
    try:
        yield
    except ToolkitError as error:
        told, remedy = (
            text.replace(str(written.patches), short(settings.patches)) for text in (error.what, error.remedy)
        )
        raise ToolkitError(f"{what}: {told}", remedy) from error


def _check_head(source: Source, commit: str, mail: Path) -> None:
    """Raise ToolkitError if the patch in the file `mail` does not have author and message of `commit`."""
    if not commit:
        return
    author, date, message = local(source.path, "log", "-1", "--format=%an <%ae>%x00%aD%x00%B", commit).split("\0")
    found = in_mail(mail)
    for what, wanted, came in (
        ("author", author, f"{found.author} <{found.address}>"),
        ("date", date, found.date),
        ("message", _words(message), _words(f"{found.subject}\n\n{found.body}")),
    ):
        if wanted != came:
            raise ToolkitError(
                f"its {what} would come back as '{' '.join(came.split())[:60] if what == 'message' else came}'",
                "change it (`git commit --amend`)" + (MESSAGE if what == "message" else ""),
            )


def _words(message: str) -> str:
    """Return `message` as git writes it into a mail: its first paragraph on one line, and no space at line ends."""
    first, _, rest = message.strip().partition("\n\n")
    return "\n\n".join([" ".join(first.split()), re.sub(r"[ \t]+$", "", rest.strip(), flags=re.MULTILINE)]).strip()


def _name(source: Source, commit: str, file: str) -> str:
    if not commit:
        return f"{source.name}: {file}"
    return f"{source.name}: commit {commit[:12]} in {short(source.path)}"
