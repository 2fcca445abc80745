"""The settings of the toolkit: invoke.yaml, the environment, `--set`.

Invoke merges invoke.yaml with its `INVOKE_...` variables; this module adds
`--set key=value`, has the outcome checked (`schema`) and hands it on as frozen
values: with absolute paths, the chosen set of modules, the chosen releases.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.errors import ToolkitError
from scripts.machine.files import ROOT, read_yaml
from scripts.pins import environment, releases, schema
from scripts.pins.environment import FILE as FILE
from scripts.pins.releases import Pair

# The module that reports lost connections: without it there is nothing to build.
SOFIA = "endpoints/mod_sofia"
PATCHED_FILE = re.compile(rb"^diff --git a/(\S+) b/", re.MULTILINE)
MODULE_FILE = re.compile(r"src/mod/([a-z_]+/mod_[a-z0-9_]+)/")


@dataclass(frozen=True)
class Source:
    """One pinned upstream.

    `commit` is 40 hexadecimal digits; `tag` may be empty, then the commit
    itself is fetched. `path` is where its tree lives. `carried` are other
    upstreams whose sources are in its tree: name and directory. `modules` are
    those of FreeSWITCH that are built, and so have to be there.
    """

    name: str
    url: str
    tag: str
    commit: str
    exclude: tuple[str, ...]
    path: Path
    carried: tuple[tuple[str, str], ...] = ()
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModuleSet:
    """The modules of FreeSWITCH that are built, and what that takes.

    `packages` are Debian packages besides those of the Dockerfile, `configure`
    options of FreeSWITCH's configure. `size` is what an image with the set adds
    to the base image (MB), None if nothing is stated for these modules.
    """

    name: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    configure: tuple[str, ...]
    size: float | None


@dataclass(frozen=True)
class Settings:
    """All settings, checked. Times are in seconds, paths are absolute."""

    sources: tuple[Source, ...]
    patches: Path
    excluded_patches: tuple[str, ...]
    nua_event: str
    esl_event: str
    base_image: str
    base_suite: str
    image: str
    cache: str
    jobs: int
    module_set: ModuleSet
    growth: float
    source_url: str
    build_directory: Path
    report_directory: Path
    start_timeout: float
    event_timeout: float
    watch: schema.Watch
    push: schema.Push

    def source(self, name: str) -> Source:
        """Return the source called `name`; ToolkitError if there is none."""
        for source in self.sources:
            if source.name == name:
                return source
        known = ", ".join(source.name for source in self.sources)
        raise ToolkitError(f"unknown source '{name}': use one of {known}")


def load(
    config: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
    freeswitch: str = "",
    sofia_sip: str = "",
) -> Settings:
    """Return the settings in force.

    `config` is Invoke's merged configuration (None: invoke.yaml as it is);
    `overrides` are the `--set` options, "key=value" or the name of a set of
    releases each; `freeswitch` and `sofia_sip` name releases to use in place
    of the pins. Raises ToolkitError on an unknown setting, a value of the
    wrong form, or releases that are not supported.
    """
    environment.check()
    defaults = read()
    values = schema.shape({key: _plain(config[key]) for key in defaults}) if config is not None else defaults
    overrides = list(overrides)
    sets = [override for override in overrides if "=" not in override]
    pair = _choose(values, sets, freeswitch, sofia_sip)
    for override in overrides:
        if override not in sets:
            _override(values, override)
    settings = _settings(schema.check(values))
    return choose(settings, pair, {override.partition("=")[0] for override in overrides}) if pair else settings


def _choose(values: Mapping[str, Any], sets: list[str], freeswitch: str, sofia_sip: str) -> Pair | None:
    """Return the releases that the options name, None if they name none."""
    if len(sets) + bool(freeswitch or sofia_sip) > 1:
        given = [f"--set {name}" for name in sets]
        given += [f"--freeswitch {freeswitch}"] if freeswitch else []
        given += [f"--sofia-sip {sofia_sip}"] if sofia_sip else []
        raise ToolkitError(f"{' and '.join(given)} exclude each other: give one set, or releases")
    if sets:
        return releases.load().named(sets[0])
    if freeswitch or sofia_sip:
        pinned = values["sources"]["freeswitch"]["tag"]
        return releases.load().pair(freeswitch or pinned, sofia_sip)
    return None


def choose(settings: Settings, pair: Pair, keep: Collection[str] = ()) -> Settings:
    """Return `settings` with the releases of `pair` as pins.

    Sources that are in the tree of FreeSWITCH are dropped. `keep` are settings
    (sources.freeswitch.tag, say) that stay as they are.
    """
    chosen = {"freeswitch": pair.freeswitch, "sofia-sip": pair.sofia_sip, "spandsp": pair.spandsp}
    carried = releases.IN_TREE_SOURCES if pair.freeswitch.in_tree else {}
    sources = []
    for source in settings.sources:
        if source.name in carried:
            continue
        if release := chosen.get(source.name):
            prefix = f"sources.{source.name.replace('-', '_')}"
            tag = source.tag if f"{prefix}.tag" in keep else release.tag
            commit = source.commit if f"{prefix}.commit" in keep else release.commit
            taken_back = (f"!{pattern}" for pattern in release.include)
            source = replace(source, tag=tag, commit=commit, exclude=(*source.exclude, *taken_back))
        if source.name == "freeswitch":
            source = replace(source, carried=tuple(carried.items()))
        sources.append(source)
    return replace(settings, sources=tuple(sources))


def read(file: Path = FILE) -> dict[str, Any]:
    """Return the settings in `file`, as groups in a dictionary, whatever their values.

    Raises ToolkitError, with the name of the file, if it cannot be read, or if
    a setting is missing, unknown or of the wrong type.
    """
    return schema.shape(read_yaml(file), file.name)


def _plain(value: Any) -> Any:
    """Turn Invoke's DataProxy into plain dictionaries."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _override(values: dict[str, Any], override: str) -> None:
    key, _, text = override.partition("=")
    *groups, leaf = key.split(".")
    group: Any = values
    for name in groups:
        group = group.get(name) if isinstance(group, Mapping) else None
    if not isinstance(group, dict) or leaf not in group or isinstance(group[leaf], Mapping):
        raise ToolkitError(f"--set {override}: unknown setting '{key}', {FILE.name} lists the known ones")
    old = group[leaf]
    try:
        group[leaf] = (text.split(",") if text else []) if isinstance(old, list) else type(old)(text)
    except ValueError:
        raise ToolkitError(f"--set {override}: '{text}' is not {environment.form(old)}") from None


def repository(value: str, name: str) -> str:
    """Return `value` if it is the name of a repository or empty; else raise ToolkitError about the setting `name`."""
    if wrong := schema.wrong_repository(value):
        raise ToolkitError(f"setting '{name}'{wrong}")
    return value


def _source(key: str, values: schema.SourceSection, directory: Path) -> Source:
    name = key.replace("_", "-")
    return Source(name, values.url, values.tag, values.commit, values.exclude, directory / name)


def _module_set(build: schema.Build, sets: Mapping[str, schema.ModuleSetSection]) -> tuple[ModuleSet, tuple[str, ...]]:
    """Return the set that `build` chooses, and the patterns that it takes back from the excluded sources."""

    def named(name: str, setting: str) -> schema.ModuleSetSection:
        if name not in sets:
            raise ToolkitError(f"setting '{setting}': there is no set '{name}', use {', '.join(sets)}")
        return sets[name]

    name = build.module_set
    chosen = named(name, "build.module_set")
    extended = named(chosen.extends, f"module_sets.{name}.extends").modules if chosen.extends else ()
    built = build.modules or (*extended, *chosen.modules)
    if SOFIA not in built:
        listed = "build.modules" if build.modules else f"module_sets.{name}.modules"
        raise ToolkitError(f"setting '{listed}': {SOFIA} is missing, which reports lost connections: add it")
    size = None if build.modules else chosen.size or None
    return ModuleSet(name, built, (*chosen.packages, *build.packages), chosen.configure, size), chosen.include


def _sparse(source: Source, modules: Sequence[str], include: Sequence[str], patches: Path) -> Source:
    """Leave out the modules of FreeSWITCH that aren't built, but for the Makefile.am that configure wants.

    What the series `patches` changes stays: it is applied to all of them.
    """
    # The last pattern that matches a path decides: what is excluded is so in a chosen module, too.
    patched = _patched_files(patches / source.name)
    kept = dict.fromkeys((*modules, *sorted({found[1] for path in patched if (found := MODULE_FILE.match(path))})))
    chosen = [f"!/src/mod/{module}/**" for module in kept]
    projects = [f"!/{path}" for path in patched if path.endswith(".vcxproj")]
    taken_back = [*(f"!{pattern}" for pattern in include), *projects]
    return replace(
        source,
        exclude=("/src/mod/*/*/**", "!/src/mod/*/*/Makefile.am", *chosen, *source.exclude, *taken_back),
        modules=tuple(modules),
    )


def _patched_files(directory: Path) -> list[str]:
    """Return the files that the patches in `directory` change or add, whatever their conditions say, sorted."""
    found = [name for path in directory.glob("*.patch") for name in PATCHED_FILE.findall(path.read_bytes())]
    return sorted({name.decode() for name in found})


def _settings(values: schema.Schema) -> Settings:
    sources, patches, build, verify = values.sources, values.patches, values.build, values.verify
    directory = schema.tree_directory(sources.directory)
    chosen, include = _module_set(build, values.module_sets)
    series = ROOT / patches.directory
    freeswitch = _source("freeswitch", sources.freeswitch, directory)
    return Settings(
        sources=(
            _source("sofia_sip", sources.sofia_sip, directory),
            _source("spandsp", sources.spandsp, directory),
            _sparse(freeswitch, chosen.modules, include, series),
        ),
        patches=series,
        excluded_patches=patches.exclude,
        nua_event=patches.nua_event,
        esl_event=patches.esl_event,
        base_image=build.base_image,
        base_suite=build.base_suite,
        image=build.image,
        cache=build.cache,
        jobs=build.jobs or os.cpu_count() or 1,
        module_set=chosen,
        growth=build.growth,
        source_url=build.source_url,
        build_directory=ROOT / "build",
        report_directory=ROOT / verify.report_directory,
        start_timeout=verify.start_timeout,
        event_timeout=verify.event_timeout,
        watch=values.watch,
        push=values.push,
    )
