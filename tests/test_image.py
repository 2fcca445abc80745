"""The images: when they are made anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import image
from scripts.errors import ToolkitError
from scripts.image import STOCK_INPUTS, Target
from scripts.settings import load

STOCK = Target("runtime-stock", "x:stock", STOCK_INPUTS, {})
PATCHED = Target("runtime-patched", "x:patched", (*STOCK_INPUTS, "patches"), {})


@pytest.fixture
def context(tmp_path: Path) -> Path:
    for name in ("sources/a.tar", "patches/a/0001-b.patch", "conf/c.xml", "scripts/d.sh", "modules.conf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def hashes(context: Path, base_id: str = "sha256:1") -> tuple[str, str]:
    return image.hash_inputs(context, STOCK, base_id), image.hash_inputs(context, PATCHED, base_id)


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
    monkeypatch.setattr(image, "DOCKERFILE", other)
    seen.add(hashes(context))
    assert len(seen) == 5


def test_release_with_sofia_sip_in_its_tree_is_refused_at_once() -> None:
    with pytest.raises(ToolkitError, match=r"freeswitch v1\.8\.7 has sofia-sip and spandsp in its tree.*use v1\.10\.4"):
        image.build(load(freeswitch="v1.8.7"))
