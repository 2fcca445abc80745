"""The supported releases, and the options that choose among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.errors import ToolkitError
from scripts.patchset import series
from scripts.pins import releases
from scripts.pins.settings import load


def pins(*overrides: str, freeswitch: str = "", sofia_sip: str = "") -> dict[str, str]:
    settings = load(overrides=overrides, freeswitch=freeswitch, sofia_sip=sofia_sip)
    return {source.name: source.tag for source in settings.sources if source.name != "spandsp"}


def test_every_set_is_a_pair() -> None:
    known = releases.load()
    for name in known.sets:
        assert known.named(name).freeswitch.commit
    default = load()
    pair = known.named(default.source("freeswitch").tag)
    assert pair.sofia_sip
    assert (pair.freeswitch.commit, pair.sofia_sip.commit) == (
        default.source("freeswitch").commit,
        default.source("sofia-sip").commit,
    )


def test_choices() -> None:
    assert pins(freeswitch="v1.10.7", sofia_sip="v1.13.12") == {"sofia-sip": "v1.13.12", "freeswitch": "v1.10.7"}
    assert pins("v1.10.7") == {"sofia-sip": "v1.13.12", "freeswitch": "v1.10.7"}
    assert pins("master") == {"sofia-sip": "", "freeswitch": ""}
    assert pins(freeswitch="v1.10.9") == {"sofia-sip": "v1.13.17", "freeswitch": "v1.10.9"}
    assert pins(sofia_sip="v1.13.17") == pins()
    commit = "0" * 40
    settings = load(overrides=["master", f"sources.freeswitch.commit={commit}"])
    assert settings.source("freeswitch").commit == commit


def test_spandsp_goes_with_the_release() -> None:
    def commit(name: str) -> str:
        return load(freeswitch=name).source("spandsp").commit

    assert load().source("spandsp").commit == commit("v1.11.0") == commit("master")
    assert commit("v1.10.4") == commit("v1.10.12") != commit("v1.11.0")


def test_sofia_sip_in_the_tree() -> None:
    settings = load(freeswitch="v1.8.7")
    (source,) = settings.sources
    assert dict(source.carried) == {"sofia-sip": "libs/sofia-sip", "spandsp": "libs/spandsp"}
    patches = series.render(settings, source)
    names = [patch.name for patch in patches]
    assert len(set(names)) == len(names)
    carried = [file.path for patch in patches if patch.upstream == "sofia-sip" for file in patch.diff]
    assert carried and all(path.startswith("libs/sofia-sip/libsofia-sip-ua/") for path in carried)
    own = [file.path for patch in patches if not patch.directory for file in patch.diff]
    assert all(path.startswith(("src/", "libs/win32/")) for path in own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeswitch": "v1.9.0"}, "freeswitch v1.9.0 is not supported: use v1.8.0, v1.8.1, "),
        ({"freeswitch": "v1.10.7", "sofia_sip": "v1.0"}, "sofia-sip v1.0 is not supported: use v1.13.2, "),
        (
            {"freeswitch": "v1.10.12", "sofia_sip": "v1.13.2"},
            "v1.10.12 is not supported with sofia-sip v1.13.2: use v1",
        ),
        ({"freeswitch": "v1.8.7", "sofia_sip": "v1.13.2"}, "FreeSWITCH v1.8.7 has sofia-sip in its tree"),
        ({"freeswitch": "v1.11.2"}, "FreeSWITCH v1.11.2 needs sofia-sip v1.13.18, which is not supported"),
        ({"overrides": ["main"]}, "--set main: there is no set of that name, use v1.11.1, "),
        (
            {"overrides": ["master"], "freeswitch": "v1.10.7"},
            "--set master and --freeswitch v1.10.7 exclude each other",
        ),
    ],
)
def test_unsupported(options: dict[str, str], message: str) -> None:
    with pytest.raises(ToolkitError) as error:
        load(**options)  # type: ignore[arg-type]
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets: {}\n", "not of the right form"),
        ("freeswitch: {v1: {commit: abc}}\nsofia_sip: {}\nsets: {}\n", "freeswitch v1: 'abc' is not a full commit"),
        ("[", "is not YAML \\(line 1: "),
    ],
)
def test_bad_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "releases.yaml"
    file.write_text(text)
    with pytest.raises(ToolkitError, match=f"releases.yaml: .*{message}"):
        releases.load(file)
