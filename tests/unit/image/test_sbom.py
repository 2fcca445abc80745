"""The bill of materials: complete, valid, and the same each time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from scripts.image import sbom
from scripts.patchset import series
from scripts.pins.settings import Settings, load

LISTING = [
    "libc6\t2.36-9+deb12u13\tamd64\tglibc\t2.36-9+deb12u13",
    "zlib1g\t1:1.2.13.dfsg-1\tamd64\tzlib\t1:1.2.13.dfsg-1",
    "openssl\t3.0.19-1\tamd64\topenssl\t3.0.19-1",
]


@pytest.fixture(scope="module")
def text() -> str:
    return make(load())


def make(settings: Settings) -> str:
    return sbom.make(settings, "x:patched", "1.11.1-tp1", 1_700_000_000, sbom.packages(LISTING), "debian-12")


def components(text: str) -> dict[str, dict[str, Any]]:
    return {component["name"]: component for component in json.loads(text)["components"]}


def test_it_is_valid(text: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_same_contents_give_the_same_text(text: str) -> None:
    assert make(load()) == text
    other = make(dataclasses.replace(load(), excluded_patches=("freeswitch/0003",)))
    assert json.loads(other)["serialNumber"] != json.loads(text)["serialNumber"]


def test_upstreams_with_commits_and_patches(text: str) -> None:
    settings, found = load(), components(text)
    for source in settings.sources:
        component = found[source.name]
        assert [commit["uid"] for commit in component["pedigree"]["commits"]] == [source.commit]
        patches = series.render(settings, source)
        assert {part["name"]: part["hashes"][0]["content"] for part in component.get("components", [])} == {
            f"patches/{source.name}/{patch.name}": hashlib.sha256(patch.text.encode()).hexdigest() for patch in patches
        }
        assert len(component["pedigree"].get("patches", [])) == len(patches)
    modules = [item["value"] for item in found["freeswitch"]["properties"]]
    assert modules == sorted(settings.module_set.modules)


def test_packages_of_debian(text: str) -> None:
    found = components(text)
    assert found["openssl"]["purl"] == "pkg:deb/debian/openssl@3.0.19-1?arch=amd64&distro=debian-12"
    assert found["zlib1g"]["version"] == "1:1.2.13.dfsg-1"
    # What a scanner looks for is the source package.
    assert "upstream=glibc%402.36-9%2Bdeb12u13" in found["libc6"]["purl"]


def test_upstream_on_a_mirror_has_no_address_on_github() -> None:
    settings = load(overrides=["sources.sofia_sip.url=https://git.example.org/sofia-sip"])
    found = components(make(settings))
    assert "purl" not in found["sofia-sip"]
    assert found["spandsp"]["purl"].startswith("pkg:github/freeswitch/spandsp@")
