"""The comparison of two images, and what `inv image-info` says of one."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
from docker.models.images import Image
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.image import build, diff, info
from scripts.image.diff import Difference
from scripts.machine import engine
from scripts.machine.engine import LABEL
from scripts.patchset.series import render
from scripts.pins.settings import Settings


@pytest.fixture
def other(built: Settings) -> Iterator[Image]:
    """The patched image with changes: one file is new, one other, one has other rights, one is gone."""
    script = "echo x >/etc/new; echo '# x' >>/etc/profile; chmod 600 /etc/issue; rm /etc/fs_cli.conf; touch /etc/hosts"
    with engine.connect() as client:
        container = client.containers.create(
            f"{built.image}:patched", ["sh", "-c", script], user="root", labels={LABEL: "true"}
        )
        container.start()
        assert container.wait()["StatusCode"] == 0
        changed = container.commit(repository=f"{built.image}-changed", conf={"Env": ["A=b"]})
        container.remove(v=True)
        yield changed
        client.images.remove(changed.id, force=True)


def test_what_differs_is_listed(built: Settings, other: Image) -> None:
    found = diff.compare(f"{built.image}:patched", other.tags[0])
    paths = {difference.path: difference.what for difference in found if difference.path.startswith("/")}
    assert paths == {
        "/etc/new": "presence",
        "/etc/profile": "content",
        "/etc/issue": "rights",
        "/etc/fs_cli.conf": "presence",
    }
    (rights,) = (difference for difference in found if difference.what == "rights")
    assert rights == Difference("/etc/issue", "rights", "644 0:0", "600 0:0")
    assert any(difference.path == "Env" for difference in found)
    console = Console(file=io.StringIO(), width=200)
    assert not diff.show(f"{built.image}:patched", other.tags[0], console)
    assert "/etc/fs_cli.conf" in console.file.getvalue()  # type: ignore[attr-defined]


def test_series_changes_what_it_says_it_changes(built: Settings) -> None:
    found = diff.compare(f"{built.image}:stock", f"{built.image}:patched")
    files = {difference.path for difference in found if difference.what in ("content", "presence")}
    assert {build.MODULE, build.SBOM_IN_IMAGE} <= files
    changed = ("/mod/", "/libsofia-sip", "/libfreeswitch.so", build.SBOM_IN_IMAGE)
    assert all(any(part in path for part in changed) for path in files), files


def test_image_and_itself(built: Settings) -> None:
    console = Console(file=io.StringIO(), width=200)
    assert diff.show(f"{built.image}:stock", f"{built.image}:stock", console)
    with pytest.raises(ToolkitError, match="there is no image nothing:here on this machine"):
        diff.compare("nothing:here", f"{built.image}:stock")
    with pytest.raises(ToolkitError, match="there is no image nothing:here and no image nor:this on this machine"):
        diff.compare("nothing:here", "nor:this")


def test_info_as_json(built: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    info.show(f"{built.image}:patched", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert {item["name"]: item["commit"] for item in found["upstreams"]} == {
        source.name: source.commit for source in built.sources
    }
    names = [f"patches/{source.name}/{patch.name}" for source in built.sources for patch in render(built, source)]
    assert sorted(found["patches"]) == sorted(names)
    assert set(found["modules"]) == {module.partition("/")[2] for module in built.module_set.modules}
    assert found["module_set"] == built.module_set.name
    assert "libc6" in found["packages"] and found["size"] > found["base_size"] > 0
    assert found["base"] == built.base_image
    assert found["user"] == "5060:5060"


def test_info_for_people(built: Settings) -> None:
    console = Console(file=io.StringIO(), width=120)
    info.show(f"{built.image}:patched", console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0001-mod_sofia-report" in text and "mod_hiredis" in text and built.source("sofia-sip").commit in text
    console = Console(file=io.StringIO(), width=120)
    info.show(f"{built.image}:stock", console=console)
    assert "none" in console.file.getvalue()  # type: ignore[attr-defined]


def test_info_of_what_is_none_of_ours(built: Settings) -> None:
    with pytest.raises(ToolkitError, match="it was not made by this toolkit"):
        info.inspect(built.base_image)
    with pytest.raises(ToolkitError, match="there is no image nothing:here"):
        info.inspect("nothing:here")
