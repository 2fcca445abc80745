"""The Docker images: stock and patched FreeSWITCH, and SIPp to test them.

Dockerfile.build does the work; this module makes its context from the
exported sources and the rendered series, and checks what came out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.errors import NotFound
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console

from scripts import base, engine, patchset, sources
from scripts.clean import LABEL
from scripts.errors import ToolkitError
from scripts.settings import ROOT, Settings

DOCKERFILE = ROOT / "Dockerfile.build"
TEMPLATES = ROOT / "templates" / "freeswitch" / "conf"
SCRIPTS = ("build-dist.sh", "build-patch.sh", "freeswitch-entrypoint.sh")
# Where the runtime images keep what the series changes.
LIBRARY = "/usr/local/lib/libsofia-sip-ua.so.0"
MODULE = "/usr/local/freeswitch/mod/mod_sofia.so"


# What of the context goes into an image that has nothing of the series.
STOCK_INPUTS = ("sources", "modules.conf", "conf", "scripts")
SERIES = f"{LABEL}.series"
INPUTS = f"{LABEL}.inputs"


@dataclass(frozen=True)
class Target:
    """A stage of Dockerfile.build and the image made of it.

    `inputs` are the files and directories of the context it depends on.
    """

    stage: str
    tag: str
    inputs: Sequence[str]
    labels: Mapping[str, str]


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
    console = console or Console()
    start = time.monotonic()
    for source in settings.sources:
        if source.carried:
            raise ToolkitError(
                f"{source.name} {sources.version(source)} has {' and '.join(dict(source.carried))} in its tree, and "
                "images are built of releases with a separate sofia-sip only: use v1.10.4 or newer, or `inv patch`"
            )
    with engine.connect():
        pass  # Without an engine nothing below is worth its time.
    sources.clone(settings, console)
    patchset.run(settings, console=console)
    base.ensure(settings, console)
    context = make_context(settings)
    pins = {f"{LABEL}.{source.name}": source.commit for source in settings.sources}
    tags = {stage: f"{settings.image}:{stage}" for stage in ("stock", "patched", "sipp")}
    # The build stage of the stock image is named too, so that pruning dangling images does not cost its cache.
    targets = (
        Target("stock", f"{settings.image}:build", STOCK_INPUTS, pins),
        Target("runtime-stock", tags["stock"], STOCK_INPUTS, pins),
        Target(
            "runtime-patched",
            tags["patched"],
            (*STOCK_INPUTS, "patches"),
            {**pins, SERIES: patchset.series_hash(settings)},
        ),
        Target("sipp", tags["sipp"], (), {}),
    )
    log = settings.build_directory / "build.log"
    log.unlink(missing_ok=True)
    with engine.connect() as client:
        base_id = client.images.get(settings.base_image).id
        made_from = {target.tag: _made_from(client, target) for target in targets}
    for target in targets:
        inputs = hash_inputs(context, target, base_id)
        if made_from[target.tag] == inputs:
            console.print(f"{target.tag}: up to date")
        else:
            labels = {LABEL: "true", INPUTS: inputs, **target.labels}
            _docker_build(settings, context, target, labels, log, console)
    check(settings)
    images = Images(**tags, seconds=time.monotonic() - start)
    console.print(f"built {images.stock}, {images.patched} and {images.sipp} in {images.seconds:.0f} s")
    return images


def make_context(settings: Settings) -> Path:
    """Make the build context and return its directory.

    Docker compares contents, so what has not changed does not rebuild.
    """
    context = settings.build_directory / "context"
    for source in settings.sources:
        sources.export(source, context / "sources" / f"{source.name}.tar")
    for name in ("patches", "conf", "scripts"):
        shutil.rmtree(context / name, ignore_errors=True)
        (context / name).mkdir(parents=True)
    for source in settings.sources:
        directory = context / "patches" / source.name
        directory.mkdir()
        for patch in patchset.render(settings, source):
            _write(directory / patch.name, patch.text)
    for script in SCRIPTS:
        shutil.copy2(ROOT / "scripts" / script, context / "scripts" / script)
    _write(context / "modules.conf", "".join(f"{module}\n" for module in settings.modules))
    _render_configuration(settings, context / "conf")
    return context


def check(settings: Settings) -> None:
    """Check that the patched image contains the patched library and module, and the stock image does not.

    Raises ToolkitError that names the image and the file.
    """
    expected = {LIBRARY: settings.nua_event, MODULE: settings.esl_event}
    for stage, patched in (("patched", True), ("stock", False)):
        tag = f"{settings.image}:{stage}"
        for path, text in expected.items():
            if _contains(tag, path, text) is not patched:
                what = "does not contain" if patched else "contains"
                raise ToolkitError(
                    f"image {tag}: {path} {what} '{text}': remove the image (`inv clean`) and build again"
                )


def _contains(tag: str, path: str, text: str) -> bool:
    command = ["grep", "--quiet", "--binary-files=text", "--fixed-strings", text, path]
    with engine.connect() as client:
        container = client.containers.create(tag, entrypoint=command, network_disabled=True, labels={LABEL: "true"})
        try:
            container.start()
            status = int(container.wait()["StatusCode"])
        finally:
            container.remove(force=True)
    if status > 1:
        raise ToolkitError(f"image {tag}: {path} is missing: remove the image (`inv clean`) and build again")
    return status == 0


def hash_inputs(context: Path, target: Target, base_id: str) -> str:
    """Return a hash of all that `target` is made from: base image, Dockerfile, its part of the context.

    Docker's own cache knows as much, but only after all of the context has been
    sent to it, once for each target.
    """
    digest = hashlib.sha256(f"{base_id}\0{target.stage}\0".encode() + DOCKERFILE.read_bytes())
    for name in target.inputs:
        top = context / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                digest.update(f"\0{path.relative_to(context)}\0{path.stat().st_mode:o}\0".encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _made_from(client: docker.DockerClient, target: Target) -> str:
    """Return the hash of what the image of `target` was made from, "" if there is none."""
    with contextlib.suppress(NotFound):
        return str(client.images.get(target.tag).labels.get(INPUTS, ""))
    return ""


def _write(path: Path, text: str) -> None:
    """Write as bytes that survive: upstream's files are not all UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def _render_configuration(settings: Settings, target: Path) -> None:
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=True
    )
    variables: Mapping[str, object] = {"modules": settings.modules}
    for name in templates.list_templates():
        _write(target / name.removesuffix(".j2"), templates.get_template(name).render(variables))
    for directory in ("directory", "scripts", "tls"):
        (target / directory).mkdir()


def _docker_build(
    settings: Settings, context: Path, target: Target, labels: Mapping[str, str], log: Path, console: Console
) -> None:
    """Run `docker build`, which shows its own steps, and keep its output in `log`."""
    tag = target.tag
    command = ["docker", "build", "--force-rm", "--file", str(DOCKERFILE), "--target", target.stage, "--tag", tag]
    arguments = {"BASE_IMAGE": settings.base_image, "JOBS": str(settings.jobs)}
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    for name, value in labels.items():
        command += ["--label", f"{name}={value}"]
    command.append(str(context))
    environment = {**os.environ, "BUILDKIT_PROGRESS": "plain"}
    start = time.monotonic()
    with log.open("a", encoding="utf-8", errors="replace") as output:
        output.write(f"==> {tag}\n")
        with console.status(f"building {tag}") as status:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                encoding="utf-8", errors="replace",
            )  # fmt: skip
            assert process.stdout
            last = ""
            try:
                for line in process.stdout:
                    output.write(line)
                    last = line.strip() or last
                    if line.startswith(("Step ", "#")):
                        status.update(f"building {tag}: {line.strip()[:100]} ({time.monotonic() - start:.0f} s)")
            except BaseException:
                process.terminate()
                raise
            finally:
                process.wait()
    if process.returncode:
        raise ToolkitError(f"docker build of {tag} failed: {last}; the whole output is in {sources.short(log)}")
    console.print(f"{tag}: {time.monotonic() - start:.0f} s")
