"""The settings: defaults, overrides, and what a mistake is answered with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.errors import ToolkitError
from scripts.machine.files import ROOT
from scripts.patchset import series
from scripts.pins import releases
from scripts.pins.environment import FILE
from scripts.pins.releases import COMMIT
from scripts.pins.settings import load, read

SETS = ", ".join(releases.load().sets)


def test_defaults() -> None:
    settings = load()
    assert [source.name for source in settings.sources] == ["sofia-sip", "spandsp", "freeswitch"]
    assert all(COMMIT.fullmatch(source.commit) for source in settings.sources)
    assert settings.source("freeswitch").path == ROOT / "build/sources/freeswitch"
    assert settings.jobs >= 1


def test_override() -> None:
    settings = load(overrides=["build.jobs=3", "sources.sofia_sip.url=https://git.example.org/a=b", "watch.port=9021"])
    assert settings.jobs == 3
    assert settings.source("sofia-sip").url == "https://git.example.org/a=b"
    assert settings.watch.port == 9021


def test_override_of_a_list() -> None:
    settings = load(overrides=["build.modules=endpoints/mod_sofia,dialplans/mod_dialplan_xml"])
    assert settings.module_set.modules == ("endpoints/mod_sofia", "dialplans/mod_dialplan_xml")
    # Nothing is stated about the size of any modules.
    assert settings.module_set.size is None


def test_module_sets() -> None:
    core, full = (load(overrides=[f"build.module_set={name}"]) for name in ("core", "full"))
    assert load().module_set == core.module_set
    assert set(core.module_set.modules) < set(full.module_set.modules)
    assert len(set(full.module_set.modules)) == len(full.module_set.modules)
    assert "--disable-libvpx" in core.module_set.configure
    assert "/libs/libvpx/" in core.source("freeswitch").exclude
    assert "!/libs/libvpx/" in full.source("freeswitch").exclude
    assert core.module_set.size
    assert load(overrides=["module_sets.core.size=0"]).module_set.size is None
    more = load(overrides=["build.packages=libflite1", "build.module_set=full"]).module_set
    assert more.packages == (*full.module_set.packages, "libflite1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("build.jobs", f"--set build.jobs: there is no set of that name, use {SETS}, or key=value"),
        ("build.job=3", "unknown setting 'build.job', invoke.yaml lists"),
        ("sources.sofia-sip.url=x", "unknown setting 'sources.sofia-sip.url'"),
        ("build=3", "unknown setting 'build'"),
        ("build.jobs=many", "'many' is not a whole number"),
        ("build.jobs=-1", "setting 'build.jobs': '-1' is not a number from 0 to 256"),
        ("watch.port=70000", "setting 'watch.port': '70000' is not a number from 1 to 65535"),
        ("sources.freeswitch.commit=a88d069", "'sources.freeswitch.commit': 'a88d069' is not a full commit"),
        ("sources.freeswitch.url=", "setting 'sources.freeswitch.url' is empty"),
        ("patches.nua_event=tp error", "'tp error' is not a nua indication"),
        ("patches.esl_event=sofia", "'sofia' is not an event subclass"),
        ("build.image=name:tag", "'name:tag' is not an image name without a tag"),
        ("build.base_image=BAD::tag", "setting 'build.base_image': 'BAD::tag' is not the name of an image"),
        ("build.base_image=", "setting 'build.base_image': '' is not the name of an image"),
        ("build.modules=mod_sofia", "'mod_sofia' is not a module"),
        (
            "build.modules=dialplans/mod_dialplan_xml",
            "setting 'build.modules': endpoints/mod_sofia is missing, which reports lost connections: add it",
        ),
        (
            "module_sets.core.modules=say/mod_say_en",
            "setting 'module_sets.core.modules': endpoints/mod_sofia is missing",
        ),
        ("build.module_set=tiny", "setting 'build.module_set': there is no set 'tiny', use core, full"),
        ("build.packages=rm -rf", "setting 'build.packages': 'rm -rf' is not the name of a Debian package"),
        ("module_sets.core.extends=tiny", "setting 'module_sets.core.extends': there is no set 'tiny', use core, full"),
        ("module_sets.core.size=-1", "setting 'module_sets.core.size': '-1' is not a number from 0 to 100000"),
    ],
)
def test_mistakes_in_overrides(override: str, message: str) -> None:
    with pytest.raises(ToolkitError, match=re.escape(message)) as error:
        load(overrides=[override])
    assert "\n" not in str(error.value)


def test_unknown_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOKE_BUILD_JOB", "3")
    with pytest.raises(ToolkitError, match="unknown setting in environment variable INVOKE_BUILD_JOB"):
        load()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("jobs: 0", "jobs: -1", "setting 'build.jobs': '-1' is not a number from 0 to 256"),
        ("growth: 10", "growth: -1.5", "setting 'build.growth': '-1.5' is not a number from -1 to 10000"),
        ("start_timeout: 60.0", "start_timeout: .nan", "setting 'verify.start_timeout': 'nan' is not a number from 1"),
        ("  - say/mod_say_en", "  - say", "setting 'module_sets.core.modules': 'say' is not a module"),
    ],
)
def test_wrong_value_in_the_file_is_one_line(tmp_path: Path, old: str, new: str, line: str) -> None:
    file = tmp_path / "invoke.yaml"
    text = FILE.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ToolkitError) as error:
        load(read(file))
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_number_may_have_a_fraction_where_the_file_has_none() -> None:
    assert load(overrides=["build.growth=2.5"]).growth == 2.5


def test_override_of_what_the_file_leaves_empty() -> None:
    values = read()
    empty = {**values, "patches": {**values["patches"], "exclude": None}}
    assert load(empty, ["patches.exclude=freeswitch/0003"]).excluded_patches == ("freeswitch/0003",)


def test_settings_in_force_are_checked_wherever_they_are_from() -> None:
    values = read()
    for wrong, line in (
        ({"watch": 1}, "'watch' must be a group of settings, not '1'"),
        ({"watch": {**values["watch"], "foo": 1}}, "unknown setting 'watch.foo': invoke.yaml lists the known ones"),
        ({"watch": {**values["watch"], "port": "x"}}, "the setting 'watch.port' must be a whole number, not 'x'"),
    ):
        with pytest.raises(ToolkitError, match=re.escape(line)):
            load({**values, **wrong})


def test_unknown_source() -> None:
    with pytest.raises(ToolkitError, match="unknown source 'sofia': use one of sofia-sip, spandsp, freeswitch"):
        load().source("sofia")


def test_only_the_modules_that_are_built_are_fetched() -> None:
    exclude = load(overrides=["build.modules=endpoints/mod_sofia,say/mod_say_en"]).source("freeswitch").exclude
    assert exclude[:4] == (
        "/src/mod/*/*/**",
        "!/src/mod/*/*/Makefile.am",
        "!/src/mod/endpoints/mod_sofia/**",
        "!/src/mod/say/mod_say_en/**",
    )
    assert not any("mod_sofia" in pattern for pattern in load().source("sofia-sip").exclude)


def test_modules_that_the_series_changes_are_fetched_whatever_is_built() -> None:
    settings = load(overrides=["build.modules=endpoints/mod_sofia"])
    source = settings.source("freeswitch")
    assert source.modules == ("endpoints/mod_sofia",)
    files = [file.path for patch in series.render(settings, source) for file in patch.diff]
    changed = {"/".join(path.split("/")[:4]) for path in files if path.startswith("src/mod/")}
    assert len(changed) > 1
    assert {f"!/{directory}/**" for directory in changed} <= set(source.exclude)
    # After the patterns that leave out all of them; and no more, or each new patch would want the sources cloned anew.
    projects = [path for path in files if path.endswith(".vcxproj")]
    assert projects and min(source.exclude.index(f"!/{path}") for path in projects) > source.exclude.index("*.vcxproj")
    assert not [path for path in files if f"!/{path}" in source.exclude and path not in projects]


def test_what_is_excluded_is_so_in_chosen_modules() -> None:
    exclude = load(overrides=["build.module_set=full"]).source("freeswitch").exclude
    assert exclude.index("!/src/mod/applications/mod_fsv/**") < exclude.index("*.yuv")
    assert exclude.index("/libs/libyuv/") < exclude.index("!/libs/libyuv/")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("  jobs: 0\n", "", "the setting 'build.jobs' is missing: add it"),
        (
            # The first one in the file, whatever it is.
            "    tag: ",
            "    tag: 1.10 # ",
            "the setting 'sources.sofia_sip.tag' must be text (put it in quotes), not '1.1'",
        ),
        ("growth: 10", "growth: much", "the setting 'build.growth' must be a number, not 'much'"),
        ("watch:\n", "watch: 1\nfoo:\n", "there is no setting 'foo': remove it"),
        ("    size: 33\n", "", "the setting 'module_sets.core.size' is missing: add it"),
        ("sources:\n", "sources: [\n", "is not YAML (line "),
        ("packages: []", "packages: [1]", "the setting 'build.packages' must be a list of texts (put them in quotes)"),
        ("packages: []", "packages: x", "the setting 'build.packages' must be a list, not 'x'"),
        ("jobs: 0", "jobs: 1.5", "the setting 'build.jobs' must be a whole number, not '1.5'"),
        ("jobs: 0", "jobs: yes", "the setting 'build.jobs' must be a whole number, not 'True'"),
        ("  core:\n", "  1:\n", "a name in 'module_sets' must be text (put it in quotes), not '1'"),
        ("  port: 8021", "  port: 8021\n  1: 2", "there is no setting 'watch.1': remove it"),
        ("  host: 127.0.0.1\n  port: 8021", "  - 1", "'watch' must be a group of settings, not '[1]'"),
    ],
)
def test_slip_in_the_file_is_one_line(tmp_path: Path, old: str, new: str, line: str) -> None:
    file = tmp_path / "invoke.yaml"
    text = FILE.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ToolkitError) as error:
        read(file)
    assert str(error.value).startswith(f"invoke.yaml: {line}") and "\n" not in str(error.value)


def test_key_that_is_there_twice_is_no_yaml(tmp_path: Path) -> None:
    """The first one would be dropped without a word."""
    file = tmp_path / "invoke.yaml"
    file.write_text(FILE.read_text().replace("build:\n", "build:\n  jobs: 1\n", 1))
    with pytest.raises(
        ToolkitError, match=r'^invoke\.yaml: is not YAML \(line \d+: found duplicate key "jobs".*correct it$'
    ):
        read(file)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "invoke.yaml"
    with pytest.raises(ToolkitError, match=r"invoke\.yaml: No such file"):
        read(file)
    file.write_bytes(b"\xff")
    with pytest.raises(ToolkitError, match=r"invoke\.yaml: is not UTF-8"):
        read(file)
    file.write_text("")
    with pytest.raises(ToolkitError, match=r"invoke\.yaml: the setting 'sources' is missing"):
        read(file)


def test_nothing_stands_for_an_empty_text_or_list(tmp_path: Path) -> None:
    file = tmp_path / "invoke.yaml"
    file.write_text(FILE.read_text().replace("exclude: []", "exclude:").replace('tag: ""', "tag:"))
    found = read(file)
    assert found["patches"]["exclude"] == [] and found["sources"]["spandsp"]["tag"] == ""


@pytest.mark.parametrize(
    "name", ["debian", "debian:bookworm-slim", "localhost:5000/voip/base:1.0_x", f"ghcr.io/a/b:c@sha256:{'0' * 64}"]
)
def test_base_image_is_any_reference(name: str) -> None:
    assert load(overrides=[f"build.base_image={name}"]).base_image == name


@pytest.mark.parametrize("directory", ["", "/", ".", ".."])
def test_trees_have_a_directory_of_their_own(directory: str) -> None:
    with pytest.raises(ToolkitError, match=r"setting 'sources\.directory': '.*' is not a directory of its own"):
        load(overrides=[f"sources.directory={directory}"])
    with pytest.raises(ToolkitError, match=r"setting 'verify\.report_directory': .* give one \(build/report\)"):
        load(overrides=[f"verify.report_directory={directory}"])
