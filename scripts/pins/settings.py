"""The settings of the toolkit: invoke.yaml, the environment, `--set`.

Invoke merges invoke.yaml with its `INVOKE_...` variables; this module adds
`--set key=value`, checks the outcome and hands it on as frozen dataclasses.
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
from scripts.pins import releases
from scripts.pins.releases import COMMIT, Pair

FILE = ROOT / "invoke.yaml"

# A nua event is a C enumerator, and the ESL subclass ends up in a C string
# and in an event header.
NUA_EVENT = re.compile(r"nua_i_[a-z0-9_]+")
ESL_EVENT = re.compile(r"[A-Za-z0-9_-]+::[A-Za-z0-9_-]+")
IMAGE = re.compile(r"[a-z0-9]+(?:[._/-]+[a-z0-9]+)*")
# With or without the host of a registry, never with a tag.
REPOSITORY = re.compile(
    r"(?:(?=[^/]*[.:]|localhost/)[A-Za-z0-9.-]+(?::\d+)?/)?[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
    r"(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
)
PATCH = re.compile(r"[a-z0-9-]+/\d{4}")
MODULE = re.compile(r"[a-z_]+/mod_[a-z0-9_]+")
# The module that reports lost connections: without it there is nothing to build.
SOFIA = "endpoints/mod_sofia"
PATCHED_FILE = re.compile(rb"^diff --git a/(\S+) b/", re.MULTILINE)
MODULE_FILE = re.compile(r"src/mod/([a-z_]+/mod_[a-z0-9_]+)/")
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
# A repository, and a tag, a digest or both.
REFERENCE = re.compile(rf"{REPOSITORY.pattern}(?::\w[\w.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?", re.ASCII)
URL = re.compile(r"(?:https?://\S+)?")
OPTION = re.compile(r"--[a-z][A-Za-z0-9=/,._-]*")
# What Invoke itself reads from the environment: INVOKE_RUN_ECHO, say.
INVOKE = ("debug", "run", "runtime", "sudo", "tasks", "timeouts")

# What has to be in invoke.yaml: groups, and the types of the settings in them.
SOURCE = {"url": str, "tag": str, "commit": str, "exclude": list}
FORM: Mapping[str, Any] = {
    "sources": {"directory": str, "sofia_sip": SOURCE, "spandsp": SOURCE, "freeswitch": SOURCE},
    "patches": {"directory": str, "nua_event": str, "esl_event": str, "exclude": list},
    "build": {
        "base_image": str,
        "base_suite": str,
        "image": str,
        "cache": str,
        "source_url": str,
        "jobs": int,
        "module_set": str,
        "modules": list,
        "packages": list,
        "growth": float,
    },
    "module_sets": {},
    "verify": {"report_directory": str, "start_timeout": float, "event_timeout": float},
    "watch": {"host": str, "port": int},
    "push": {"repository": str},
}
MODULE_SET = {"size": float, "packages": list, "configure": list, "include": list, "extends": str, "modules": list}


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
    watch_host: str
    watch_port: int
    push_repository: str

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
    schema = read()
    values = {key: _plain(config[key]) for key in schema} if config is not None else schema
    _check_keys(values, schema)
    check_environment()
    overrides = list(overrides)
    sets = [override for override in overrides if "=" not in override]
    pair = _choose(values, sets, freeswitch, sofia_sip)
    for override in overrides:
        if override not in sets:
            _override(values, override)
    settings = _settings(values)
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
    """Return the settings in `file`, as groups in a dictionary.

    Raises ToolkitError, with the name of the file, if it cannot be read, or if
    a setting is missing, unknown or of the wrong type.
    """
    values = read_yaml(file)
    values = values if isinstance(values, dict) else {}
    sets = values.get("module_sets")
    form = {**FORM, "module_sets": dict.fromkeys(sets, MODULE_SET) if isinstance(sets, dict) else {}}
    found: dict[str, Any] = _formed(values, form, file.name)
    return found


def _formed(values: Any, form: Any, name: str, key: str = "") -> Any:
    """Return `values` if they have the `form`; nothing at all stands for an empty text or list."""
    if isinstance(form, Mapping):
        if not isinstance(values, Mapping):
            raise ToolkitError(f"{name}: '{key}' must be a group of settings, not '{values}'")
        for unknown in [item for item in values if item not in form]:
            raise ToolkitError(f"{name}: there is no setting '{_joined(key, unknown)}': remove it")
        for missing in [item for item in form if item not in values]:
            raise ToolkitError(f"{name}: the setting '{_joined(key, missing)}' is missing: add it")
        return {item: _formed(values[item], form[item], name, _joined(key, item)) for item in form}
    if values is None and form in (str, list):
        return form()
    good = isinstance(values, (int, float) if form is float else form) and not isinstance(values, bool)
    if not good:
        what = {str: "text (put it in quotes)", list: "a list", int: "a whole number", float: "a number"}[form]
        raise ToolkitError(f"{name}: the setting '{key}' must be {what}, not '{values}'")
    if form is list and not all(isinstance(item, str) for item in values):
        raise ToolkitError(f"{name}: the setting '{key}' must be a list of texts (put them in quotes), not {values}")
    return values


def _joined(key: str, item: object) -> str:
    return f"{key}.{item}" if key else str(item)


def _plain(value: Any) -> Any:
    """Turn Invoke's DataProxy into plain dictionaries."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _check_keys(values: Mapping[str, Any], schema: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in schema:
            raise ToolkitError(f"unknown setting '{name}': {FILE.name} lists the known ones")
        if isinstance(schema[key], Mapping):
            if not isinstance(value, Mapping):
                raise ToolkitError(f"setting '{name}' must be a group of settings, not '{value}'")
            _check_keys(value, schema[key], f"{name}.")


def _leaves(schema: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in schema.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def check_environment() -> None:
    """Raise ToolkitError on a variable that Invoke would silently ignore, or fail on with a traceback."""
    schema = read()
    known = {"INVOKE_" + leaf.replace(".", "_").upper() for leaf in _leaves(schema)}
    for variable in os.environ:
        group = variable.removeprefix("INVOKE_").split("_")[0].lower()
        if variable.startswith("INVOKE_") and group not in INVOKE and variable not in known:
            raise ToolkitError(f"unknown setting in environment variable {variable}: {FILE.name} lists the known ones")
    for leaf in _leaves(schema):
        variable = "INVOKE_" + leaf.replace(".", "_").upper()
        if variable in os.environ:
            _check_variable(variable, leaf, schema)


def _check_variable(variable: str, leaf: str, schema: Mapping[str, Any]) -> None:
    default: Any = schema
    for name in leaf.split("."):
        default = default[name]
    if isinstance(default, list):
        raise ToolkitError(f"environment variable {variable}: a list is set with --set {leaf}=first,second")
    try:
        type(default)(os.environ[variable])
    except ValueError:
        raise ToolkitError(
            f"environment variable {variable}: '{os.environ[variable]}' is not {_form(default)}"
        ) from None


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
        raise ToolkitError(f"--set {override}: '{text}' is not {_form(old)}") from None


def _form(value: Any) -> str:
    return "a whole number" if isinstance(value, int) else "a number"


def _match(pattern: re.Pattern[str], value: str, name: str, form: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ToolkitError(f"setting '{name}': '{value}' is not {form}")
    return value


def repository(value: str, name: str) -> str:
    """Return `value` if it is the name of a repository or empty; else raise ToolkitError about the setting `name`."""
    return value and _match(
        REPOSITORY, value, name, "a repository without a tag (registry.example.org/voip/freeswitch)"
    )


def _number(value: Any, name: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ToolkitError(f"setting '{name}': '{value}' is not a number from {low:g} to {high:g}")
    return value


def _inside(path: str, name: str) -> Path:
    """Return the directory `path` for the trees; ToolkitError if it is one that has other things in it."""
    directory = (ROOT / path).resolve()
    if directory == ROOT or directory in ROOT.parents:
        raise ToolkitError(f"setting '{name}': '{path}' is not a directory of its own: give one (build/sources)")
    return directory


def _source(key: str, values: Mapping[str, Any], directory: Path) -> Source:
    name = key.replace("_", "-")
    where = f"sources.{key}"
    if not values["url"]:
        raise ToolkitError(f"setting '{where}.url' is empty: give the address of a git repository")
    form = "a full commit (40 hexadecimal digits; `git rev-parse TAG^{commit}` prints it)"
    return Source(
        name=name,
        url=values["url"],
        tag=values["tag"] or "",
        commit=_match(COMMIT, values["commit"], f"{where}.commit", form),
        exclude=tuple(values["exclude"] or ()),
        path=directory / name,
    )


def _module_set(build: Mapping[str, Any], sets: Mapping[str, Any]) -> tuple[ModuleSet, tuple[str, ...]]:
    """Return the set that `build` chooses, and the patterns that it takes back from the excluded sources."""
    name = build["module_set"]
    if name not in sets:
        raise ToolkitError(f"setting 'build.module_set': there is no set '{name}', use {', '.join(sets)}")
    where = f"module_sets.{name}"
    chosen = sets[name]
    extended = chosen["extends"]
    if extended and extended not in sets:
        raise ToolkitError(f"setting '{where}.extends': there is no set '{extended}', use {', '.join(sets)}")
    modules = (*(sets[extended]["modules"] if extended else ()), *chosen["modules"])
    packages = (*chosen["packages"], *build["packages"])
    size = _number(chosen["size"], f"{where}.size", 0, 100_000)
    built = tuple(
        _match(MODULE, module, "build.modules", "a module (endpoints/mod_sofia, say)")
        for module in build["modules"] or modules
    )
    if SOFIA not in built:
        listed = "build.modules" if build["modules"] else f"{where}.modules"
        raise ToolkitError(f"setting '{listed}': {SOFIA} is missing, which reports lost connections: add it")
    return (
        ModuleSet(
            name=name,
            modules=built,
            packages=tuple(
                _match(PACKAGE, item, "build.packages", "the name of a Debian package") for item in packages
            ),
            configure=tuple(
                _match(OPTION, item, f"{where}.configure", "an option of configure (--disable-libvpx, say)")
                for item in chosen["configure"]
            ),
            size=None if build["modules"] else size or None,
        ),
        tuple(chosen["include"]),
    )


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


def _settings(values: Mapping[str, Any]) -> Settings:
    sources, patches, build = dict(values["sources"]), values["patches"], values["build"]
    verify, watch, push = values["verify"], values["watch"], values["push"]
    directory = _inside(sources.pop("directory"), "sources.directory")
    chosen, include = _module_set(build, values["module_sets"])
    trees = (_source(key, value, directory) for key, value in sources.items())
    series = ROOT / patches["directory"]
    return Settings(
        sources=tuple(
            _sparse(tree, chosen.modules, include, series) if tree.name == "freeswitch" else tree for tree in trees
        ),
        patches=series,
        excluded_patches=tuple(
            _match(PATCH, name, "patches.exclude", "a patch (freeswitch/0003, say)") for name in patches["exclude"]
        ),
        nua_event=_match(NUA_EVENT, patches["nua_event"], "patches.nua_event", "a nua indication (nua_i_...)"),
        esl_event=_match(ESL_EVENT, patches["esl_event"], "patches.esl_event", "an event subclass (module::name)"),
        base_image=_match(
            REFERENCE, build["base_image"], "build.base_image", "the name of an image (debian:bookworm-slim)"
        ),
        base_suite=build["base_suite"],
        image=_match(IMAGE, build["image"], "build.image", "an image name without a tag"),
        cache=repository(build["cache"], "build.cache"),
        jobs=int(_number(build["jobs"], "build.jobs", 0, 256)) or os.cpu_count() or 1,
        module_set=chosen,
        source_url=_match(URL, build["source_url"] or "", "build.source_url", "an address (https://...)"),
        growth=_number(build["growth"], "build.growth", -1, 10_000),
        build_directory=ROOT / "build",
        report_directory=ROOT / verify["report_directory"],
        start_timeout=_number(verify["start_timeout"], "verify.start_timeout", 1, 3600),
        event_timeout=_number(verify["event_timeout"], "verify.event_timeout", 0.5, 3600),
        watch_host=watch["host"],
        watch_port=int(_number(watch["port"], "watch.port", 1, 65535)),
        push_repository=repository(push["repository"], "push.repository"),
    )
