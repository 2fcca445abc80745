"""The documentation: its commands work, its links lead somewhere, and it says what the code says."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from invoke.collection import Collection
from invoke.exceptions import ParseError
from invoke.main import program
from invoke.parser import Parser

import tasks
from scripts.bench.parts import PARTS
from scripts.errors import ToolkitError
from scripts.freeswitch import events
from scripts.machine.files import ROOT
from scripts.pins import environment, settings
from scripts.pins.settings import Settings
from scripts.scenario import judge, player
from scripts.scenario import table as scenarios
from scripts.sources import trees
from tests.documentation import PAGES, Link, Snippet, anchors, api_lines, commands, links, snippets, table
from tests.project.test_inv import made, run

PICTURES = sorted(ROOT.glob("docs/images/*.svg"))
# What stands for something of the reader's own.
PLACEHOLDERS = frozenset({"NAME", "TAG", "TASK", "CONTAINER"})
INV = frozenset({"inv", "scripts/inv", ".venv/bin/inv"})
# Commands that a block of shell may run besides inv.
OTHERS = frozenset({"cd", "docker", "docker-compose", "export", "fs_cli", "git", "grep", "nsenter", "ss", "tcpdump"})
# Lines of the pages that are run here as they are, in a copy of the project. The first ones need nothing, the
# others the upstreams. What builds images, kills clients or removes things has tests of its own.
OFFLINE = ("inv --list", "scripts/inv doctor")
ONLINE = (
    "scripts/inv clone",
    "scripts/inv patch --check",
    "scripts/inv patches-import",
    "scripts/inv patches-export",
)


def inv_lines() -> list[tuple[Snippet, list[str]]]:
    """Return every use of inv, in blocks and in text, without the word `inv`."""
    return [
        (snippet, words[1:])
        for snippet in snippets()
        if snippet.language == "sh" or (not snippet.language and re.match(r"(\S*/)?inv ", snippet.text))
        for words in commands(snippet.text)
        if words[0] in INV
    ]


def check_inv(arguments: list[str]) -> None:
    """Parse `arguments` as inv does, and look at what it does not look at before the task runs."""
    collection = Collection.from_module(tasks)
    core = Parser(initial=program.initial_context, ignore_unknown=True).parse_argv(arguments)
    helped = core[0].args["help"].value
    assert helped is None or helped in collection.task_names or helped in PLACEHOLDERS, f"no task {helped}"
    for context in Parser(contexts=collection.to_contexts()).parse_argv(core.unparsed):
        values: dict[str, Any] = {name: argument.value for name, argument in context.args.items()}
        pair = [values.get(name) or "" for name in ("freeswitch", "sofia_sip")]
        overrides = values.get("set") or []
        if not PLACEHOLDERS & {*pair}:
            settings.load(None, [override for override in overrides if "..." not in override], *pair)
        for override in overrides:
            if "..." in override:
                check_key(override.partition("=")[0])
        assert {*(values.get("only") or "").split(",")} <= {"", *PARTS}, f"--only {values['only']}"
        check_pytest(values.get("args") or "")


def check_key(key: str) -> None:
    """Check that there is a setting `key`: the page leaves its value open."""
    group: Any = yaml.safe_load(settings.FILE.read_text())
    for name in key.split("."):
        assert name in group, f"there is no setting {key}"
        group = group[name]


def check_pytest(arguments: str) -> None:
    """Check that the markers in `arguments` of pytest are ours."""
    known = re.findall(r'^    "(\w+): ', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    words = shlex.split(arguments)
    for option, value in itertools.pairwise(words):
        if option == "-m":
            assert {*re.findall(r"\w+", value)} - {"not", "and", "or"} <= {*known}, value


def test_there_is_something_to_test() -> None:
    """The extraction finds what it must find, or the tests below could not fail."""
    assert len(PAGES) > 8
    assert len(PICTURES) >= 3
    assert len(inv_lines()) > 40
    assert len(links()) > 60
    assert len(api_lines()) > 15
    assert commands("A=1 scripts/inv x --set 'a b' && cd - # c\nsudo ss | grep y") == [
        ["scripts/inv", "x", "--set", "a b"],
        ["cd", "-"],
        ["ss"],
        ["grep", "y"],
    ]


@pytest.mark.parametrize(("snippet", "words"), inv_lines(), ids=lambda value: str(value))
def test_inv_line(snippet: Snippet, words: list[str]) -> None:
    if not snippet.language and len(words) == 1 and not words[0].startswith("-"):
        # A task is named, not called.
        assert words[0] in Collection.from_module(tasks).task_names
    elif "key=value" not in words:
        check_inv(words)


@pytest.mark.parametrize(
    "arguments",
    [
        "verfy",
        "verify --frob",
        "verify --set build.job=1",
        "verify --set build.base=...",
        "verify --freeswitch v9.9.9",
        "bench --only storms",
        "test --args='-m quick'",
        "--help verfy",
    ],
)
def test_inv_line_that_is_wrong(arguments: str) -> None:
    with pytest.raises((AssertionError, ParseError, ToolkitError)):
        check_inv(shlex.split(arguments))


@pytest.mark.parametrize("snippet", [item for item in snippets() if item.language == "sh"], ids=str)
def test_block_of_shell(snippet: Snippet) -> None:
    """It is shell, and calls nothing that the page would have to explain first."""
    checked = subprocess.run(["sh", "-n"], input=snippet.text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for words in commands(snippet.text):
        assert words[0] in INV | OTHERS or (ROOT / words[0]).exists() or words[0].startswith(".venv/"), words


def test_options_in_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--set` without a task, and every variable INVOKE_... ."""
    for snippet in snippets():
        if snippet.text.startswith("--set ") and "key=value" not in snippet.text:
            check_inv(["verify", *shlex.split(snippet.text)])
    for page in PAGES:
        for name, value in re.findall(r"\b(INVOKE_[A-Z_]*[A-Z])\b(?:=(\S+))?", page.read_text()):
            monkeypatch.setenv(name, value if value.strip(".") else "1")
    environment.check()


def test_named_files() -> None:
    """What looks like a path of the project is one."""
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"build", ".venv"}
    path = re.compile(rf"(?:{'|'.join(map(re.escape, tops))})/[\w./-]*|[\w.-]+\.(?:yaml|py|toml)")
    missing = [
        f"{snippet}: {word}"
        for snippet in snippets()
        if snippet.language in ("", "sh")
        for word in re.split(r"[\s\"'=:]+", snippet.text)
        if path.fullmatch(word) and not (ROOT / word).exists()
    ]
    assert not missing


@pytest.mark.parametrize("link", links(), ids=str)
def test_link(link: Link) -> None:
    target, _, anchor = link.target.partition("#")
    if re.match(r"\w+:", target):
        assert target.startswith("https://")
        moving = re.match(r"https://github\.com/[^/]+/[^/]+/(?:blob|tree|raw)/(?:master|main|HEAD)\b", target)
        assert not moving, "name a tag or a commit: what is there now will not stay"
        return
    path = (link.page.parent / target).resolve() if target else link.page
    assert path.is_relative_to(ROOT) and path.exists()
    assert not anchor or anchor in anchors(path), f"the headings there are {sorted(anchors(path))}"
    assert link.alt is None or len(link.alt) > 3, "an image needs words for those who don't see it"


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    listed = {(index.parent / link.target).resolve() for link in links() if link.page == index}
    assert {*ROOT.glob("docs/*.md"), ROOT / "README.md"} - {index} == listed


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_picture(picture: Path) -> None:
    """It works alone, in light and in dark, and for those who don't see it."""
    root = ElementTree.parse(picture).getroot()
    names = {element.tag.partition("}")[2]: element for element in root.iter()}
    assert {"title", "desc"} <= {*names} and not {"image", "script", "foreignObject"} & {*names}
    assert root.get("viewBox")
    light, _, dark = (names["style"].text or "").partition("@media (prefers-color-scheme: dark)")
    used = {name for element in root.iter() for name in (element.get("class") or "").split()}
    for scheme in (light, dark):
        assert used <= set(re.findall(r"\.(\w+)", scheme))
    for value in (value for element in root.iter() for value in element.attrib.values()):
        assert not re.search(r"https?:|#[0-9a-f]{3,8}\b", value), f"{value}: a colour out of reach of the style"


def test_tasks_are_listed() -> None:
    listed = [name for row in table("docs/toolkit.md", "The toolkit") for name in row]
    assert sorted(listed) == sorted(Collection.from_module(tasks).task_names)


def test_event_is_described() -> None:
    headers = [name for row in table("docs/events.md", "Headers") for name in row]
    assert sorted(headers) == sorted(name.replace("_", "-") for name in events.TpErrorReport.__dataclass_fields__)
    causes = [name for row in table("docs/events.md", "close-cause") for name in row]
    assert sorted(causes) == sorted(events.CLOSE_CAUSES)


def test_parameters_are_described() -> None:
    series = "".join(path.read_text() for path in sorted(ROOT.glob("patches/freeswitch/*.patch")))
    added = set(re.findall(r'^\+.*strcasecmp\(var, "([\w-]+)"\)', series, re.MULTILINE))
    assert added and added <= anchors(ROOT / "docs/parameters.md")


def test_parameters_are_looked_for() -> None:
    """The line that shows which of them a profile has shows every one."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    (pattern,) = re.findall(r"name sofia\.conf' \| grep -E '(.+)'", page)
    described = re.findall(r"^## ([a-z-]+-[a-z-]+)$", (ROOT / "docs/parameters.md").read_text(), re.MULTILINE)
    assert "tcp-first-message-timeout" in described
    for parameter in described:
        assert re.search(pattern, f'<param name="{parameter}"')
        assert f'<param name="{parameter}" value=' in page


def test_log_has_no_line_numbers() -> None:
    """They are others with each release and each patch."""
    assert re.findall(r"\b\w+\.c:\d+", (ROOT / "docs/troubleshooting.md").read_text()) == []


def test_patches_are_described() -> None:
    series = {*ROOT.glob("patches/*/*.patch")}
    page = ROOT / "docs/concepts.md"
    assert series <= {(page.parent / link.target).resolve() for link in links() if link.page == page}
    reasons = (ROOT / "docs/upstream.md").read_text()
    for path in series:
        assert f"\n| {path.parent.name} {path.name[:4]} " in reasons, path.name


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of the project as a clone of it would be, with this Python's environment."""
    path = tmp_path / "project"
    skip = shutil.ignore_patterns("build", ".venv", ".git", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, path, ignore=skip, symlinks=True)
    return made(path)


def run_line(project: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run `line`, which a page must have as it is."""
    known = {shlex.join(["inv", *words]) for _, words in inv_lines()}
    assert shlex.join(["inv", *shlex.split(line)[1:]]) in known, f"no page has '{line}' any more"
    return run(project, *shlex.split(line)[1:])


def test_lines_that_need_nothing(project: Path) -> None:
    listed, doctor = (run_line(project, line) for line in OFFLINE)
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in Collection.from_module(tasks).task_names)
    lines = doctor.stdout.splitlines()
    assert len(lines) > 5 and all(line[0] in "✓✗" for line in lines), doctor.stdout
    assert doctor.returncode == int(any(line[0] == "✗" for line in lines))


def test_lines_that_need_the_upstreams(project: Path, real_settings: Settings) -> None:
    for source in real_settings.sources:
        if why := trees.unreachable(source):
            pytest.skip(f"the commands of docs/ that fetch sources are not tested: {source.url}: {why}")
    before = {path.name: path.read_bytes() for path in project.glob("patches/*/*.patch")}
    for line in ONLINE:
        done = run_line(project, line)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert {path.name: path.read_bytes() for path in project.glob("patches/*/*.patch")} == before


def test_language_of_the_tables_is_described() -> None:
    """Every verb, what each outcome of the page means to the judge, every field of a scenario, every scenario."""
    cells = {
        name: [cell for row in table("docs/scenarios.md", name) for cell in row]
        for name in ("Scenarios", "Outcomes", "Verbs", "A scenario")
    }
    assert sorted(cells["Scenarios"]) == scenarios.names(), (
        "docs/scenarios.md: give each folder of templates/scenarios a row in the first table, below Scenarios"
    )
    kinds = {one.kind for cell in cells["Outcomes"] for one in judge.read(cell)[0]}
    assert kinds == {"report", "unregistered", "itself", "registered"}
    assert cells["Verbs"] == [str(one) for one in player.VERBS.values()]
    assert sorted(cells["A scenario"]) == sorted(scenarios.FIELDS)


def test_filters_of_ss_and_tcpdump() -> None:
    """Both programs read the filters that the pages show."""
    missing = [name for name in ("ss", "tcpdump") if not shutil.which(name)]
    tried = 0
    for snippet in snippets():
        for words in commands(snippet.text) if snippet.language == "sh" else []:
            if words[0] in ("ss", "tcpdump") and words[0] not in missing:
                # tcpdump compiles its filter, and captures nothing.
                command = words if words[0] == "ss" else ["tcpdump", "-d", "-y", "EN10MB", words[-1]]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{words}: {done.stderr}"
                tried += 1
    if missing:
        pytest.skip(f"its filters are not tested: there is no {' and no '.join(missing)}")
    assert tried
