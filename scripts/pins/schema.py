"""The schema of invoke.yaml: which settings there are, of which type, and which values they can have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationError

from scripts.errors import ToolkitError
from scripts.machine.files import ROOT
from scripts.pins.model import (
    AS_TUPLE,
    SHAPE_ONLY,
    Model,
    Problem,
    SettingKind,
    Text,
    Texts,
    between,
    checked,
    matching,
    problem,
)
from scripts.pins.releases import COMMIT

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
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
# A repository, and a tag, a digest or both.
REFERENCE = re.compile(rf"{REPOSITORY.pattern}(?::\w[\w.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?", re.ASCII)
URL = re.compile(r"(?:https?://\S+)?")
OPTION = re.compile(r"--[a-z][A-Za-z0-9=/,._-]*")


def tree_directory(path: str) -> Path:
    """Return the absolute path of the directory `path`, relative to the project, that is to have the trees."""
    return (ROOT / path).resolve()


def _own(usual: str) -> AfterValidator:
    """Return a validator of directories, like `usual`, that must not have the project or more in them."""

    def wrong(path: str) -> str:
        directory = tree_directory(path)
        other = directory == ROOT or directory in ROOT.parents
        return f": '{path}' is not a directory of its own: give one ({usual})" if other else ""

    return checked(wrong)


def wrong_repository(value: str) -> str:
    """Return what is wrong with the name of a repository, "" if nothing: it may be empty."""
    good = not value or REPOSITORY.fullmatch(value)
    return "" if good else f": '{value}' is not a repository without a tag (registry.example.org/voip/freeswitch)"


Repository = Annotated[Text, checked(wrong_repository)]
Modules = Annotated[tuple[Annotated[str, matching(MODULE, "a module (endpoints/mod_sofia, say)")], ...], AS_TUPLE]
Packages = Annotated[tuple[Annotated[str, matching(PACKAGE, "the name of a Debian package")], ...], AS_TUPLE]
Options = Annotated[
    tuple[Annotated[str, matching(OPTION, "an option of configure (--disable-libvpx, say)")], ...], AS_TUPLE
]


class SourceSection(Model):
    url: Annotated[Text, checked(lambda url: "" if url else " is empty: give the address of a git repository")]
    tag: Text
    commit: Annotated[
        Text, matching(COMMIT, "a full commit (40 hexadecimal digits; `git rev-parse TAG^{commit}` prints it)")
    ]
    exclude: Texts


class Sources(Model):
    directory: Annotated[Text, _own("build/sources")]
    sofia_sip: SourceSection
    spandsp: SourceSection
    freeswitch: SourceSection


class Patches(Model):
    directory: Text
    nua_event: Annotated[Text, matching(NUA_EVENT, "a nua indication (nua_i_...)")]
    esl_event: Annotated[Text, matching(ESL_EVENT, "an event subclass (module::name)")]
    exclude: Annotated[tuple[Annotated[str, matching(PATCH, "a patch (freeswitch/0003, say)")], ...], AS_TUPLE]


class Build(Model):
    base_image: Annotated[Text, matching(REFERENCE, "the name of an image (debian:bookworm-slim)")]
    base_suite: Text
    image: Annotated[Text, matching(IMAGE, "an image name without a tag")]
    cache: Repository
    source_url: Annotated[Text, matching(URL, "an address (https://...)")]
    jobs: Annotated[int, between(0, 256)]
    module_set: Text
    modules: Modules
    packages: Packages
    growth: Annotated[float, between(-1, 10_000)]


class ModuleSetSection(Model):
    size: Annotated[float, between(0, 100_000)]
    packages: Packages
    configure: Options
    include: Texts
    extends: Text
    modules: Modules


class Verify(Model):
    report_directory: Annotated[Text, _own("build/report")]
    start_timeout: Annotated[float, between(1, 3600)]
    event_timeout: Annotated[float, between(0.5, 3600)]


class Watch(Model):
    """Where the event socket is that `inv watch` listens to."""

    host: Text
    port: Annotated[int, between(1, 65535)]


class Push(Model):
    """Where `inv push` pushes to; an empty repository: nowhere."""

    repository: Repository


class Schema(Model):
    """All of invoke.yaml. Times are in seconds, sizes in MB, `growth` is in percent."""

    sources: Sources
    patches: Patches
    build: Build
    module_sets: dict[str, ModuleSetSection]
    verify: Verify
    watch: Watch
    push: Push


def shape(values: object, file: str = "") -> dict[str, Any]:
    """Return `values` as groups in a dictionary if keys and types are right.

    Raises ToolkitError that names the `file`; without one they are those in
    force, which Invoke has from several places.
    """
    try:
        found = Schema.model_validate({} if file and not isinstance(values, Mapping) else values, context=SHAPE_ONLY)
    except ValidationError as error:
        raise ToolkitError(_line(problem(error), file)) from None
    return found.model_dump(mode="json")


def check(values: Mapping[str, Any]) -> Schema:
    """Return the settings `values`; ToolkitError if one has a value of the wrong form."""
    try:
        return Schema.model_validate(values)
    except ValidationError as error:
        raise ToolkitError(_line(problem(error), "")) from None


def _line(wrong: Problem, file: str) -> str:
    key = ".".join(wrong.keys)
    start = f"{file}: " if file else ""
    match wrong.kind:
        case SettingKind.UNKNOWN:
            known = f"unknown setting '{key}': invoke.yaml lists the known ones"
            return f"{file}: there is no setting '{key}': remove it" if file else known
        case SettingKind.MISSING:
            return f"{start}the setting '{key}' is missing: add it"
        case SettingKind.NAME:
            return f"{start}a name in '{key}' must be text (put it in quotes), not '{wrong.value}'"
        case SettingKind.GROUP:
            return f"{start}'{key}' must be a group of settings, not '{wrong.value}'"
        case SettingKind.ITEM:
            what = "a list of texts (put them in quotes)"
            return f"{start}the setting '{key}' must be {what}, and '{wrong.value}' in it is none"
        case SettingKind.TYPE:
            return f"{start}the setting '{key}' must be {wrong.expected}, not '{wrong.value}'"
        case SettingKind.VALUE:
            return f"setting '{key}'{wrong.expected}"
