"""The software bill of materials of an image: CycloneDX, as JSON."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Commit, Component, ComponentType, Patch, PatchClassification, Pedigree
from cyclonedx.model.component import Diff as PatchDiff
from cyclonedx.model.contact import OrganizationalEntity
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from scripts.machine.engine import LABEL
from scripts.patchset import series
from scripts.patchset.index import BYTES
from scripts.pins.settings import Settings, Source
from scripts.sources import trees

LICENSES = {
    "freeswitch": "MPL-1.1",
    "sofia-sip": "LGPL-2.1-or-later",
    "spandsp": "LGPL-2.1-only",
}
# What dpkg-query prints for each package.
FORMAT = "${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\\n"
# Names the serial number, which is the same for the same contents.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, f"sbom.{LABEL}")


@dataclass(frozen=True)
class Package:
    """A Debian package that is installed in an image, and what it was built from."""

    name: str
    version: str
    architecture: str
    source: str
    source_version: str


def packages(lines: Iterable[str]) -> list[Package]:
    """Return the packages that dpkg-query listed in FORMAT."""
    return [Package(*line.split("\t")) for line in lines]


def make(settings: Settings, name: str, version: str, created: int, installed: Sequence[Package], distro: str) -> str:
    """Return the bill of materials of the image `name`, patched with the series.

    `created` is in seconds since the epoch, `installed` are its Debian packages,
    `distro` is what ID and VERSION_ID in its os-release give (debian-12). The
    same arguments give the same text.
    """
    image = Component(
        name=name,
        version=version,
        type=ComponentType.CONTAINER,
        bom_ref="image",
        properties=[Property(name=f"{LABEL}:series", value=series.series_hash(settings))],
    )
    bom = Bom(
        metadata=BomMetaData(component=image, timestamp=datetime.fromtimestamp(created, UTC)),
        components=[
            *(_upstream(settings, source) for source in settings.sources),
            *(_package(package, distro) for package in installed),
        ],
    )
    bom.register_dependency(image, list(bom.components))
    upstreams = {component.name: component for component in bom.components if component.pedigree}
    if "freeswitch" in upstreams:
        others = [component for name, component in upstreams.items() if name != "freeswitch"]
        bom.register_dependency(upstreams["freeswitch"], others)
    # First with a number that every bill has: the real one is made of the contents.
    bom.serial_number = NAMESPACE
    text = JsonV1Dot6(bom).output_as_string(indent=2)
    bom.serial_number = uuid.uuid5(NAMESPACE, hashlib.sha256(text.encode()).hexdigest())
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"


def _upstream(settings: Settings, source: Source) -> Component:
    patches = series.render(settings, source)
    modules = settings.module_set.modules if source.name == "freeswitch" else ()
    return Component(
        name=source.name,
        version=trees.version(source).removeprefix("v"),
        type=ComponentType.APPLICATION if source.name == "freeswitch" else ComponentType.LIBRARY,
        bom_ref=source.name,
        purl=_github(source),
        licenses=[LicenseExpression(LICENSES[source.name])] if source.name in LICENSES else [],
        external_references=[ExternalReference(type=ExternalReferenceType.VCS, url=XsUri(source.url))],
        pedigree=Pedigree(
            commits=[Commit(uid=source.commit, url=XsUri(f"{source.url}/commit/{source.commit}"))],
            patches=[
                Patch(type=PatchClassification.UNOFFICIAL, diff=PatchDiff(url=XsUri(_file(source, patch))))
                for patch in patches
            ],
        ),
        components=[
            Component(
                name=_file(source, patch),
                description=patch.subject,
                type=ComponentType.FILE,
                bom_ref=_file(source, patch),
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=_sha256(patch))],
            )
            for patch in patches
        ],
        properties=[Property(name=f"{LABEL}:module", value=module) for module in modules],
    )


def _github(source: Source) -> PackageURL | None:
    """Return the package URL of an upstream on GitHub, None for a mirror elsewhere."""
    host, _, path = source.url.removeprefix("https://").removesuffix(".git").partition("/")
    owner, _, repository = path.partition("/")
    if host != "github.com" or not repository:
        return None
    return PackageURL("github", owner, repository, source.tag or source.commit)


def _file(source: Source, patch: series.Patch) -> str:
    return f"patches/{source.name}/{patch.name}"


def _sha256(patch: series.Patch) -> str:
    return hashlib.sha256(patch.text.encode(errors=BYTES)).hexdigest()


def _package(package: Package, distro: str) -> Component:
    qualifiers = {"arch": package.architecture, "distro": distro}
    if (package.source, package.source_version) != (package.name, package.version):
        qualifiers["upstream"] = f"{package.source}@{package.source_version}"
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{package.name}:{package.architecture}",
        supplier=OrganizationalEntity(name=distro.partition("-")[0].capitalize()),
        purl=PackageURL("deb", distro.partition("-")[0], package.name, package.version, qualifiers),
    )
