"""What is in the images."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.image import build
from scripts.machine import engine
from scripts.pins.settings import Settings, load


def test_size_of_an_image_is_that_of_its_files(built: Settings) -> None:
    base, patched = build._size(built.base_image), build._size(f"{built.image}:patched")
    assert 50e6 < base < patched < base + 100e6
    _, listing = engine.run(
        f"{built.image}:patched", ["find", "/usr", "-xdev", "-type", "f", "-printf", "%s\n"], "root"
    )
    assert 0.5 * patched < sum(map(int, listing.split())) < patched


def test_full_is_what_upstream_builds_by_default(built: Settings, root: Path) -> None:
    listed = (built.source("freeswitch").path / "build/modules.conf.in").read_text().splitlines()
    default = {line for line in listed if re.fullmatch(r"\w+/mod_\w+", line)}
    assert len(default) > 40
    chosen = set(load(overrides=["build.module_set=full"]).module_set.modules)
    left_out = {line.partition("/")[2] for line in default - chosen}
    page = (root / "docs/deployment.md").read_text()
    assert left_out == set(re.findall(r"^\| (mod_\w+) \|", page, re.MULTILINE))
