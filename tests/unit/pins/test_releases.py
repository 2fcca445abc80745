"""The supported releases, and the options that choose among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.errors import ToolkitError
from scripts.patchset import series
from scripts.pins import releases
from scripts.pins.settings import load

KNOWN = releases.load()


def pins(*overrides: str, freeswitch: str = "", sofia_sip: str = "") -> dict[str, str]:
    settings = load(overrides=overrides, freeswitch=freeswitch, sofia_sip=sofia_sip)
    return {source.name: source.tag for source in settings.sources if source.name != "spandsp"}


def listed(entry: str, name: str = "v1", more: str = "") -> str:
    """Return a list of releases with `entry` for the only one of FreeSWITCH; X in it is a commit."""
    return f"{more}sets: {{}}\nsofia_sip: {{}}\nfreeswitch: {{{name}: {entry}}}\n".replace("X", f"'{'0' * 40}'")


def test_every_set_is_a_pair() -> None:
    for name in KNOWN.sets:
        assert KNOWN.named(name).freeswitch.commit
    default = load()
    pair = KNOWN.named(default.source("freeswitch").tag)
    assert pair.sofia_sip
    assert (pair.freeswitch.commit, pair.sofia_sip.commit) == (
        default.source("freeswitch").commit,
        default.source("sofia-sip").commit,
    )


def test_choices() -> None:
    assert pins(freeswitch="v1.10.7", sofia_sip="v1.13.12") == {"sofia-sip": "v1.13.12", "freeswitch": "v1.10.7"}
    assert pins("v1.10.7") == {"sofia-sip": "v1.13.12", "freeswitch": "v1.10.7"}
    assert pins("master") == {"sofia-sip": "", "freeswitch": ""}
    newest = [name for name in KNOWN.sofia_sip if name != releases.MASTER][-1]
    assert pins(freeswitch="v1.10.9") == {"sofia-sip": newest, "freeswitch": "v1.10.9"}
    assert pins(sofia_sip=load().source("sofia-sip").tag) == pins()
    commit = "0" * 40
    settings = load(overrides=["master", f"sources.freeswitch.commit={commit}"])
    assert settings.source("freeswitch").commit == commit


def test_spandsp_goes_with_the_release() -> None:
    def commit(name: str) -> str:
        return load(freeswitch=name).source("spandsp").commit

    old, new = (KNOWN.spandsp[name].commit for name in ("v1.10.4", "v1.11.0"))
    assert commit("v1.10.4") == commit("v1.10.12") == old != new == commit("v1.11.0") == commit("v1.11.1")
    assert commit("master") == [*KNOWN.spandsp.values()][-1].commit
    assert load().source("spandsp").commit == commit(load().source("freeswitch").tag)


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
        (
            {"overrides": ["main"]},
            f"--set main: there is no set of that name, use {', '.join(KNOWN.sets)}, or key=value",
        ),
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


def test_release_that_needs_a_sofia_sip_to_come(tmp_path: Path) -> None:
    file = tmp_path / "releases.yaml"
    file.write_text(listed("{commit: X, sofia_sip: v1.99}"))
    with pytest.raises(ToolkitError) as error:
        releases.load(file).pair("v1")
    assert str(error.value) == "FreeSWITCH v1 needs sofia-sip v1.99, which is not supported"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets: {}\n", "not of the right form"),
        ("freeswitch: {v1: {commit: abc}}\nsofia_sip: {}\nsets: {}\n", "freeswitch v1: 'abc' is not a full commit"),
        ("[", "is not YAML \\(line 1: "),
        ("", "all of it must be a table of sets, freeswitch, sofia_sip, spandsp, not 'None'"),
        ("sets: {}\nsets: {}\n", "is not YAML \\(line 2: found duplicate key"),
        (listed("{commit: X, sofia_sip: in tree}", more="foo: 1\n"), "'foo' is no key: remove it .*are sets, "),
        (listed("{comit: X, sofia_sip: in tree}"), "'comit' of freeswitch v1 is no key: .*are commit, sofia_sip, incl"),
        (listed("{sofia_sip: in tree}"), "'commit' of freeswitch v1 is missing .a full commit .40 hexadecimal"),
        (
            listed("{commit: X}"),
            "'sofia_sip' of freeswitch v1 is missing .the oldest sofia-sip that it takes, or in tr",
        ),
        (listed("{commit: X, sofia_sip: 1.13}"), "'sofia_sip' of freeswitch v1 must be .*, not '1.13': put it in quo"),
        (
            listed("{commit: X, sofia_sip: v1.13, include: /a/}"),
            "'include' of freeswitch v1 must be a list of sp.*, not '/a",
        ),
        (
            listed("{commit: X, sofia_sip: v1.13, include: [1]}"),
            "'include' of freeswitch v1 must be a list .* not of '1'",
        ),
        (listed("X"), "'v1' of freeswitch must be a table of commit, sofia_sip, include, not '0000"),
        (listed("{commit: X, sofia_sip: y}", "1.10"), "the name '1.1' in freeswitch must be text: put it in quotes"),
    ],
)
def test_bad_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "releases.yaml"
    file.write_text(text)
    with pytest.raises(ToolkitError, match=f"^releases.yaml: .*{message}") as error:
        releases.load(file)
    assert "\n" not in str(error.value)
