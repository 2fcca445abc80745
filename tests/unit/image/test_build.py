"""The images: when they are made anew."""

from __future__ import annotations

import dataclasses
import io
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.image import build
from scripts.image.build import STOCK_INPUTS, Target
from scripts.machine import engine
from scripts.pins.settings import Settings, load
from scripts.sources import trees

STOCK = Target("runtime-stock", "x:stock", STOCK_INPUTS, {})
PATCHED = Target("runtime-patched", "x:patched", (*STOCK_INPUTS, "patches"), {})


@pytest.fixture
def context(tmp_path: Path) -> Path:
    for name in ("sources/a.tar", "patches/a/0001-b.patch", "conf/c.xml", "scripts/d.sh", "modules.conf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def hashes(context: Path, base_id: str = "sha256:1") -> tuple[str, str]:
    return build.hash_inputs(context, STOCK, base_id), build.hash_inputs(context, PATCHED, base_id)


def test_same_inputs_have_the_same_hash(context: Path) -> None:
    before = hashes(context)
    (context / "conf/c.xml").write_text("conf/c.xml")
    assert hashes(context) == before
    assert before[0] != before[1]


def test_changed_patch_concerns_the_patched_image_only(context: Path) -> None:
    stock, patched = hashes(context)
    (context / "patches/a/0001-b.patch").write_text("changed")
    assert hashes(context)[0] == stock
    assert hashes(context)[1] != patched


@pytest.mark.parametrize("name", ["sources/a.tar", "conf/c.xml", "scripts/d.sh", "modules.conf"])
def test_other_changes_concern_both(context: Path, name: str) -> None:
    before = hashes(context)
    (context / name).write_text("changed")
    assert all(old != new for old, new in zip(before, hashes(context), strict=True))


def test_moved_file_mode_base_and_dockerfile_count(
    context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {hashes(context)}
    seen.add(hashes(context, "sha256:2"))
    (context / "scripts/d.sh").chmod(0o755)
    seen.add(hashes(context))
    (context / "conf/c.xml").rename(context / "conf/e.xml")
    seen.add(hashes(context))
    other = tmp_path / "Dockerfile"
    other.write_text("FROM scratch\n")
    monkeypatch.setattr(build, "DOCKERFILE", other)
    seen.add(hashes(context))
    assert len(seen) == 5


def told(freeswitch: str) -> str:
    """Return what the configure scripts of a release are told, without comments."""
    lines = build.site(load(freeswitch=freeswitch)).splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def test_configure_is_told_what_old_releases_need_and_nothing_else() -> None:
    assert told("v1.10.12") == told("v1.10.10") == told("master") == ""
    assert "-Wno-error" in told("v1.10.9") and "CPPFLAGS" not in told("v1.10.9")
    assert "-D_ANSI_SOURCE" in told("v1.10.8") and "CRYPTO_mem_ctrl" not in told("v1.10.8")
    assert told("v1.10.7") == told("v1.10.6") + "\nenable_libyuv=yes"
    assert told("v1.8.0") == told("v1.10.6")


def test_sources_that_only_one_release_needs() -> None:
    assert "!/libs/libyuv/" in load(freeswitch="v1.10.7").source("freeswitch").exclude
    assert "!/libs/libyuv/" not in load(freeswitch="v1.10.6").source("freeswitch").exclude


def test_upstream_in_the_tree_of_another_has_no_sources_of_its_own(settings: Settings) -> None:
    one, two = settings.sources
    sofia, freeswitch = dataclasses.replace(one, name="sofia-sip"), dataclasses.replace(two, name="freeswitch")
    settings = dataclasses.replace(settings, sources=(sofia, freeswitch), patches=settings.patches / "none")
    settings.patches.mkdir()
    trees.clone(settings.sources, settings.patches, Console(quiet=True))
    context = build.make_context(settings)
    assert {file.name for file in (context / "sources").glob("*.tar")} == {"sofia-sip.tar", "freeswitch.tar"}
    carrier = dataclasses.replace(freeswitch, carried=(("sofia-sip", "src"),))
    build.make_context(dataclasses.replace(settings, sources=(carrier,)))
    assert {file.name for file in (context / "sources").glob("*.tar")} == {"freeswitch.tar"}
    assert {directory.name for directory in (context / "patches").iterdir()} == {"sofia-sip", "freeswitch"}


@pytest.mark.parametrize(
    ("overrides", "added", "refused"),
    [
        ([], 100, False),
        ([], 109, False),
        ([], 111, True),
        (["build.growth=0"], 101, True),
        (["build.growth=20"], 119, False),
        (["build.growth=-1"], 1000, False),
        (["build.modules=endpoints/mod_sofia"], 1000, False),
    ],
)
def test_image_must_not_grow_unasked(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], added: float, refused: bool
) -> None:
    settings = load(overrides=["module_sets.core.size=100", *overrides])
    sizes = {settings.base_image: 100, f"{settings.image}:patched": 100 + added}
    du = "du --summarize --apparent-size --bytes --one-file-system /"

    def run(tag: str, command: list[str], user: str) -> tuple[int, str]:
        assert (" ".join(command), user) == (du, "root")
        return 0, f"{sizes[tag] * 1_000_000:.0f}\t/\n"

    monkeypatch.setattr(engine, "run", run)
    console = Console(file=io.StringIO())
    if not refused:
        build.check_size(settings, console)
        return
    with pytest.raises(
        ToolkitError, match=rf"adds {added} MB to its base, over \d+ % more than the 100 stated"
    ) as error:
        build.check_size(settings, console)
    assert "--set build.growth=" in str(error.value) and "\n" not in str(error.value)


def test_labels_count(context: Path) -> None:
    def hashed(labels: dict[str, str]) -> str:
        return build.hash_inputs(context, Target("runtime-stock", "x:stock", STOCK_INPUTS, labels), "sha256:1")

    assert hashed({"a": "1", "b": "2"}) == hashed({"b": "2", "a": "1"}) != hashed({"a": "2", "b": "2"})


@pytest.mark.parametrize("name", ["core", "full"])
def test_configuration_is_rendered_for_each_set(tmp_path: Path, name: str) -> None:
    settings = load(overrides=[f"build.module_set={name}"])
    build._render(settings.module_set, tmp_path, build.CONFIGURATION)
    build._render(settings.module_set, tmp_path, build.SHARE)
    for path in (tmp_path / build.CONFIGURATION).rglob("*.xml"):
        ElementTree.fromstring(path.read_text())
    loaded = (tmp_path / "conf/autoload_configs/modules.conf.xml").read_text()
    # What opens a port or needs a configuration is not loaded unasked.
    assert "mod_sofia" in loaded and "mod_xml_rpc" not in loaded and "mod_amqp" not in loaded
    variables = (tmp_path / "share/variables").read_text().splitlines()
    assert "SIP_PORT|port|5060" in variables and all(line.count("|") == 2 for line in variables)
    codecs = (tmp_path / "share/codecs").read_text().split()
    assert ("VP8" in codecs) is (name == "full")
    assert len(set(codecs)) == len(codecs)


def test_documentation_has_the_sizes(root: Path) -> None:
    page = (root / "docs/deployment.md").read_text()
    stated = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d+) MB \|", page, re.MULTILINE))
    sets = [load(overrides=[f"build.module_set={name}"]).module_set for name in ("core", "full")]
    sizes = {chosen.name: chosen.size for chosen in sets if chosen.size}
    assert stated.keys() == sizes.keys()
    assert all(abs(size - int(stated[name])) <= size / 10 for name, size in sizes.items())


CLASSIC = """Step 1/4 : FROM debian
 ---> 846d349020b6
Step 2/4 : RUN make
 ---> Using cache
 ---> 7966c60110f1
Step 3/4 : RUN make install
 ---> Running in 0123
Step 4/4 : LABEL a=b
 ---> Running in 4567
"""
BUILDKIT = """#1 [internal] load build definition from Dockerfile.build
#5 [stock 2/9] RUN make
#5 CACHED
#6 [stock 3/9] RUN make install
#6 0.345 cc -c x.c
#6 DONE 1.2s
"""


@pytest.mark.parametrize(
    ("printed", "step"), [(CLASSIC, "Step 3/4 : RUN make install"), (BUILDKIT, "#6 [stock 3/9] RUN make install")]
)
def test_steps_that_take_long_are_shown(
    printed: str, step: str, settings: Settings, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.clone(settings.sources, settings.patches, Console(quiet=True))
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}END\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
    output, log = io.StringIO(), tmp_path / "build.log"
    build.docker_build(settings, context, STOCK, {}, log, Console(file=output, width=200))
    first, last = output.getvalue().splitlines()
    assert first == f"building x:stock: {step}" and last.startswith("x:stock: ")
    assert log.read_text() == f"==> x:stock\n{printed}"
