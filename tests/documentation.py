"""The pages of the documentation, taken apart: snippets, links, tables, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from scripts.machine.files import ROOT

PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


@dataclass(frozen=True)
class Snippet:
    """A piece of code in a page: a block of shell, or a span (`language` is empty) in a line of text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Link:
    """A link or an image of a page."""

    page: Path
    line: int
    target: str
    alt: str | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line} {self.target}"


def tokens(page: Path) -> Iterator[tuple[int, Token]]:
    """Yield the tokens of `page`, those inside of paragraphs too, with their lines."""
    line = 0
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        line = token.map[0] + 1 if token.map else line
        yield line, token
        for child in token.children or ():
            yield line, child


def snippets() -> list[Snippet]:
    found = []
    for page in PAGES:
        for line, token in tokens(page):
            if token.type == "fence":
                found.append(Snippet(page, line, token.info, token.content))
            elif token.type == "code_inline":
                found.append(Snippet(page, line, "", token.content))
    return found


def links() -> list[Link]:
    found = []
    for page in PAGES:
        for line, token in tokens(page):
            if token.type == "link_open":
                found.append(Link(page, line, str(token.attrGet("href"))))
            elif token.type == "image":
                found.append(Link(page, line, str(token.attrGet("src")), token.content))
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors that the headings of `page` have on a forge."""
    found: set[str] = set()
    heading = False
    for _, token in tokens(page):
        if heading:
            text = "".join(child.content for child in token.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            again = 0
            while (name := f"{slug}-{again}" if again else slug) in found:
                again += 1
            found.add(name)
        heading = token.type == "heading_open"
    return found


def table(page: str, heading: str) -> list[list[str]]:
    """Return the rows of the first table after `heading`, without its head: the code spans of the first cell each."""
    rows: list[list[str]] = []
    here = cell = False
    column = 0
    for _, token in tokens(ROOT / page):
        if token.type == "inline" and token.content == heading:
            here = True
        elif here and token.type == "table_close":
            return rows
        elif here and token.type == "tr_open":
            rows, column = [*rows, []], 0
        elif token.type in ("td_open", "td_close"):
            cell, column = token.type == "td_open", column + (token.type == "td_open")
        elif here and cell and column == 1 and token.type == "code_inline":
            rows[-1].append(token.content)
    raise AssertionError(f"{page} has no table after '{heading}'")


def commands(shell: str) -> list[list[str]]:
    """Return the simple commands in `shell`, word by word: without comments, assignments and sudo."""
    found = []
    for line in shell.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                found.append(words)
                words = []
            elif words or not (word == "sudo" or re.match(r"\w+=", word)):
                words.append(word)
    return [words for words in found if words]


def api_lines() -> list[tuple[Snippet, str, str]]:
    """Return every command for FreeSWITCH, and what its output is piped into."""
    found = []
    for snippet in snippets():
        for command, pipe in re.findall(r"^(?:\S+ )*?fs_cli -x '([^']+)'(?: \| (.+))?", snippet.text, re.MULTILINE):
            found.append((snippet, command, pipe))
        if not snippet.language and re.match(r"(sofia|fsctl|sofia_contact|xml_locate) ", snippet.text):
            found.append((snippet, snippet.text, ""))
    return found
