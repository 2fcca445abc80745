"""The Docker images: stock and patched FreeSWITCH, and SIPp to test them.

Dockerfile.build does the work; this module makes its context from the
exported sources and the rendered series, and checks what came out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from docker.errors import NotFound
from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.image import base, cache, provenance, sbom, variables
from scripts.machine import engine, files, terminal
from scripts.machine.files import ROOT, short
from scripts.patchset import series
from scripts.pins.settings import ModuleSet, Settings
from scripts.sources import trees
from scripts.sources.export import export
from scripts.templates import environment, render

DOCKERFILE = ROOT / "Dockerfile.build"
TEMPLATES = ROOT / "templates" / "freeswitch"
# Directories of templates and of the context: the configuration, and what the entrypoint reads.
CONFIGURATION, SHARE = "conf", "share"
SCRIPTS = (
    "stages/build-dist.sh",
    "stages/build-library.sh",
    "stages/build-patch.sh",
    "runtime/freeswitch-entrypoint.sh",
    "runtime/freeswitch-health.sh",
)
# What the entrypoint is made of, besides the values; the image has it in the directory of the same name in SHARE.
ENTRYPOINT = Path(__file__).parent / "runtime/entrypoint"
# How Docker's two builders begin a step that takes long, and how they say that they need not.
STEP = re.compile(r"Step \d+/\d+ : RUN .*|#\d+ \[.*\] RUN .*")
CACHED = re.compile(r" ---> Using cache|#\d+ CACHED")
# What the bill of materials calls the image, whatever its tag: the tag must not make it another image.
NAME = "freeswitch-tp-error"
# Where the runtime images keep what the series changes.
LIBRARY = "/usr/local/lib/libsofia-sip-ua.so.0"
MODULE = "/usr/local/freeswitch/mod/mod_sofia.so"
# Its bill of materials: in the context, in the image, in the reports.
SBOM = "sbom.cdx.json"
SBOM_IN_IMAGE = f"/usr/local/share/freeswitch/{SBOM}"

PHONE = "phone.xml"
# What of the context goes into an image that has nothing of the series.
STOCK_INPUTS = (
    "sources",
    "config.site",
    "modules.conf",
    "packages",
    "configure.options",
    CONFIGURATION,
    SHARE,
    "scripts",
)
INPUTS = cache.INPUTS


@dataclass(frozen=True)
class Target:
    """A stage of Dockerfile.build and the image made of it.

    `inputs` are the files and directories of the context it depends on;
    `dockerfile` is another file than Dockerfile.build, the whole of it.
    """

    stage: str
    tag: str
    inputs: Sequence[str]
    labels: Mapping[str, str]
    dockerfile: Path | None = None


@dataclass(frozen=True)
class Images:
    """The tags of the images that `build` makes, and how long it took (s)."""

    stock: str
    patched: str
    sipp: str
    seconds: float


def build(settings: Settings, console: Console | None = None) -> Images:
    """Clone, patch and build; return the images.

    Does what is missing only. Raises ToolkitError if a step fails or if the
    images do not contain what they should; Docker's output is then in
    build/build.log.
    """
    console = console or get_console()
    start = time.monotonic()
    engine.check_command()
    with engine.connect():
        pass  # Without an engine nothing below is worth its time.
    trees.clone(settings.sources, settings.patches, console)
    series.run(settings, console=console)
    settings.build_directory.mkdir(parents=True, exist_ok=True)
    with files.locked(settings.build_directory, console):
        base.ensure(settings.base_image, settings.base_suite, settings.build_directory, console)
        context = make_context(settings)
        log = settings.build_directory / "build.log"
        log.unlink(missing_ok=True)
        for target in targets(settings):
            if SBOM in target.inputs:
                _write_sbom(settings, context)
            make(settings, context, target, log, console)
        check(settings)
        check_size(settings, console)
    tags = {stage: f"{settings.image}:{stage}" for stage in ("stock", "patched", "sipp")}
    images = Images(**tags, seconds=time.monotonic() - start)
    console.print(f"built {images.stock}, {images.patched} and {images.sipp} in {images.seconds:.0f} s")
    return images


def targets(settings: Settings) -> tuple[Target, ...]:
    """Return what is built, in the order in which one can need what came before."""
    stock, patched = (provenance.labels(settings, patched) for patched in (False, True))
    # The build stage of the stock image is named too, so that pruning dangling images does not cost its cache.
    return (
        Target("stock", f"{settings.image}:build", STOCK_INPUTS, {}),
        Target("runtime-stock", f"{settings.image}:stock", STOCK_INPUTS, stock),
        Target("runtime-patched", f"{settings.image}:patched", (*STOCK_INPUTS, "patches", SBOM), patched),
        Target("sipp", f"{settings.image}:sipp", (PHONE,), {}),
    )


def make_context(settings: Settings) -> Path:
    """Make the build context and return its directory.

    Docker compares contents, so what has not changed does not rebuild.
    """
    context = settings.build_directory / "context"
    for source in settings.sources:
        export(source, context / "sources" / f"{source.name}.tar")
        for name, _ in source.carried:
            (context / "sources" / f"{name}.tar").unlink(missing_ok=True)
    for name in ("patches", CONFIGURATION, SHARE, "scripts"):
        shutil.rmtree(context / name, ignore_errors=True)
        (context / name).mkdir(parents=True)
    for source in settings.sources:
        # The patches of what it carries are among its own.
        for name in (source.name, *dict(source.carried)):
            (context / "patches" / name).mkdir()
        for patch in series.render(settings, source):
            _write(context / "patches" / source.name / patch.name, patch.text)
    for script in SCRIPTS:
        shutil.copy2(Path(__file__).parent / script, context / "scripts")
    _write(context / "config.site", site(settings))
    chosen = settings.module_set
    # A phone as SIPp plays it: user, domain and the answer to the challenge are
    # fields of its CSV file, the answer as a whole: SIPp has no fields inside of a keyword.
    _write(
        context / PHONE,
        render(
            "sipp/register",
            user="[field0]",
            domain="[field1]",
            answer="[field2]",
            timeout_ms=10_000,
            hold_ms=86_400_000,
        ),
    )
    for file, lines in {
        "modules.conf": chosen.modules,
        "packages": chosen.packages,
        "configure.options": chosen.configure,
    }.items():
        _write(context / file, "".join(f"{line}\n" for line in lines))
    _render(chosen, context, CONFIGURATION)
    _render(chosen, context, SHARE)
    write_entrypoint(context / SHARE)
    for empty in ("directory", "scripts", "tls"):
        (context / CONFIGURATION / empty).mkdir()
    for name in (CONFIGURATION, SHARE, "scripts"):
        files.open_to_all(context / name)
    return context


def write_entrypoint(directory: Path) -> None:
    """Write the entrypoint's files of functions into a new directory of `directory`."""
    shutil.copytree(ENTRYPOINT, directory / ENTRYPOINT.name)
    _write(directory / ENTRYPOINT.name / "values.sh", variables.values())


def site(settings: Settings) -> str:
    """Return what every configure script is told (autoconf's CONFIG_SITE)."""
    return environment().get_template("build/config.site.j2").render(series.variables(settings))


def check(settings: Settings) -> None:
    """Check that the patched image contains the patched library and module, and the stock image does not.

    Raises ToolkitError that names the image and the file.
    """
    in_tree = "sofia-sip" in dict(settings.source("freeswitch").carried)
    # A sofia-sip in the tree of FreeSWITCH is linked into the module.
    expected = ((MODULE if in_tree else LIBRARY, settings.nua_event), (MODULE, settings.esl_event))
    for stage, patched in (("patched", True), ("stock", False)):
        tag = f"{settings.image}:{stage}"
        for path, text in expected:
            if _contains(tag, path, text) is not patched:
                what = "does not contain" if patched else "contains"
                raise ToolkitError(
                    f"image {tag}: {path} {what} '{text}': remove the image (`inv clean`) and build again"
                )


def _contains(tag: str, path: str, text: str) -> bool:
    command = ["grep", "--quiet", "--binary-files=text", "--fixed-strings", text, path]
    status, _ = engine.run(tag, command)
    if status > 1:
        raise ToolkitError(f"image {tag}: {path} is missing: remove the image (`inv clean`) and build again")
    return status == 0


def check_size(settings: Settings, console: Console) -> None:
    """Check that the patched image adds no more to its base than is stated for its module set.

    Raises ToolkitError with both sizes if it is too large.
    """
    tag, chosen = f"{settings.image}:patched", settings.module_set
    added = (_size(tag) - _size(settings.base_image)) / 1e6
    if chosen.size is None:
        console.print(f"{tag}: {added:.0f} MB more than {settings.base_image}")
        return
    console.print(
        f"{tag}: {added:.0f} MB more than {settings.base_image}, {chosen.size:g} are stated for {chosen.name}"
    )
    if settings.growth >= 0 and added > chosen.size * (1 + settings.growth / 100):
        raise ToolkitError(
            f"image {tag} adds {added:.0f} MB to its base, over {settings.growth:g} % more than the {chosen.size:g} "
            f"stated for the module set {chosen.name}: find what it is, or state it (module_sets.{chosen.name}.size), "
            "or allow it with --set build.growth=..."
        )


def _size(tag: str) -> int:
    """Return the bytes of all files in the image: what the engine calls its size depends on how it stores images."""
    status, output = engine.run(
        tag, ["du", "--summarize", "--apparent-size", "--bytes", "--one-file-system", "/"], "root"
    )
    if status:
        raise ToolkitError(f"image {tag}: du failed: {output.strip()}")
    return int(output.split()[0])


def _write_sbom(settings: Settings, context: Path) -> None:
    """Write the bill of materials into the context and the reports; the stock image has the packages."""
    query = f"dpkg-query --show --showformat='{sbom.FORMAT}' && . /etc/os-release && echo $ID-$VERSION_ID"
    status, output = engine.run(f"{settings.image}:stock", ["sh", "-c", query])
    if status:
        raise ToolkitError(f"image {settings.image}:stock: dpkg-query failed: {output.strip()}")
    *listing, distro = output.splitlines()
    text = sbom.make(
        settings,
        NAME,
        provenance.version(settings.source("freeswitch")),
        provenance.epoch(settings.sources),
        sbom.packages(listing),
        distro,
    )
    _write(context / SBOM, text)
    files.write(settings.report_directory / SBOM, text)


def hash_inputs(context: Path, target: Target, base_id: str) -> str:
    """Return a hash of all that `target` is made from: base image, Dockerfile, labels, its part of the context.

    Docker's own cache knows as much, but only after all of the context has been
    sent to it, once for each target.
    """
    head = f"{base_id}\0{target.stage}\0{json.dumps(dict(target.labels), sort_keys=True)}\0"
    digest = hashlib.sha256(head.encode() + (target.dockerfile or DOCKERFILE).read_bytes())
    for name in target.inputs:
        top = context / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                digest.update(f"\0{path.relative_to(context)}\0{path.stat().st_mode:o}\0".encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def make(settings: Settings, context: Path, target: Target, log: Path, console: Console) -> None:
    """Make the image of `target` unless it was made from the same already."""
    with engine.connect() as client:
        inputs = hash_inputs(context, target, client.images.get(settings.base_image).id)
        made_from = ""
        with contextlib.suppress(NotFound):
            made_from = str(client.images.get(target.tag).labels.get(INPUTS, ""))
    if made_from == inputs:
        console.print(f"{target.tag}: up to date")
    elif not cache.fetch(settings.cache, target.tag, inputs, console):
        docker_build(settings, context, target, {**engine.IMAGE_LABEL, INPUTS: inputs, **target.labels}, log, console)


def _write(path: Path, text: str) -> None:
    """Write as bytes that survive: upstream's files are not all UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


# What the entrypoint makes of the variables for the configuration.
DERIVED = (
    "SIP_NAT",
    "SIP_BIND",
    "SIP_TLS",
    "SIP_TLS_ONLY",
    "SIP_TLS_VERIFY",
    "SIP_WS_BINDING",
    "SIP_WSS_BINDING",
    "DIRECTORY_CREDENTIALS",
    "LOG_LEVELS",
    "CORE_LOG_LEVEL",
    "EXTENSION_PREFIX",
    "EXTENSION_SUFFIX",
)


def _render(chosen: ModuleSet, context: Path, name: str) -> None:
    """Render the directory `name` of the templates for the modules `chosen` into the context."""
    templates = environment(TEMPLATES / name, markup=True)
    groups = variables.groups()
    values: Mapping[str, object] = {
        "modules": chosen.modules,
        "configure": chosen.configure,
        "groups": groups,
        "variables": [*(variable["name"] for group in groups for variable in group["variables"]), *DERIVED],
    }
    for path in templates.list_templates():
        _write(context / name / path.removesuffix(".j2"), templates.get_template(path).render(values))


def docker_build(
    settings: Settings,
    context: Path,
    target: Target,
    labels: Mapping[str, str],
    log: Path,
    console: Console,
    afresh: bool = False,
) -> None:
    """Run `docker build`, which shows its own steps, and add its output to `log`.

    `afresh` does without Docker's cache.
    """
    tag = target.tag
    command = ["docker", "build", "--force-rm", "--file", str(target.dockerfile or DOCKERFILE), "--tag", tag]
    if target.stage:
        command += ["--target", target.stage]
    arguments = {
        "BASE_IMAGE": settings.base_image,
        "JOBS": str(settings.jobs),
        "SOURCE_DATE_EPOCH": str(provenance.epoch(settings.sources)),
    }
    if settings.cache:
        # BuildKit reuses the layers of a pulled image only if the image describes them.
        arguments["BUILDKIT_INLINE_CACHE"] = "1"
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    for image in [] if afresh else cache.layers(settings.cache, settings.image):
        command += ["--cache-from", image]
    for name, value in labels.items():
        command += ["--label", f"{name}={value}"]
    if afresh:
        command.append("--no-cache")
    command.append(str(context))
    environment = {**os.environ, "BUILDKIT_PROGRESS": "plain"}
    start = time.monotonic()
    with log.open("a", encoding="utf-8", errors="replace") as output:
        output.write(f"==> {tag}\n")
        with terminal.task(console, f"building {tag}") as shown:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                encoding="utf-8", errors="replace",
            )  # fmt: skip
            assert process.stdout
            last, failure, step = "", "", None
            try:
                for line in process.stdout:
                    output.write(line)
                    last = line.strip() or last
                    failure = line.strip() if line.startswith("ERROR: ") else failure
                    if step and not CACHED.match(line):
                        shown.say(step[0][:100].rstrip())
                    step = STEP.match(line)
            except BaseException:
                process.terminate()
                raise
            finally:
                process.wait()
    if process.returncode:
        raise ToolkitError(f"docker build of {tag} failed: {failure or last}; the whole output is in {short(log)}")
    console.print(f"{tag}: {time.monotonic() - start:.0f} s")
