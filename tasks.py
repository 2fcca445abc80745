"""The tasks of the toolkit. `inv --list` lists them, `inv --help TASK` explains one.

The modules are imported where they are needed: `inv --list` stays fast.
"""

from invoke.context import Context

from scripts.cli import RELEASES, check_variables, command, run_tests, settings

check_variables()


@command()
def doctor(context: Context, set_: list[str]) -> bool:
    """Check that this machine has all that the toolkit needs."""
    from scripts.upkeep import doctor

    return doctor.doctor(settings(context, set_))


@command()
def base(context: Context, set_: list[str]) -> None:
    """Get the base image: pull it or, failing that, make it with debootstrap."""
    from scripts.image import base

    chosen = settings(context, set_)
    base.ensure(chosen.base_image, chosen.base_suite, chosen.build_directory)


@command(**RELEASES)
def clone(context: Context, set_: list[str], freeswitch: str = "", sofia_sip: str = "") -> None:
    """Clone the pinned upstreams into build/sources."""
    from scripts.sources import trees

    chosen = settings(context, set_, freeswitch, sofia_sip)
    trees.clone(chosen.sources, chosen.patches)


@command(
    check="Only check that the series applies to the pins; the trees stay as they are.",
    revert="Take the trees back to their pins.",
    **RELEASES,
)
def patch(
    context: Context,
    set_: list[str],
    freeswitch: str = "",
    sofia_sip: str = "",
    check: bool = False,
    revert: bool = False,
) -> None:
    """Apply the patch series to the cloned upstreams, all of it or nothing."""
    from scripts.patchset import series

    series.run(settings(context, set_, freeswitch, sofia_sip), check_only=check, to_pins=revert)


@command(**RELEASES)
def build(context: Context, set_: list[str], freeswitch: str = "", sofia_sip: str = "") -> None:
    """Build the image with the patched FreeSWITCH."""
    from scripts.image import build

    build.build(settings(context, set_, freeswitch, sofia_sip))


@command(start="Also start it, until Ctrl-C (default; --no-start only builds its images).")
def example(context: Context, set_: list[str], start: bool = True) -> None:
    """Run the example of examples/compose: FreeSWITCH, and a subscriber that prints who goes offline."""
    from scripts import example

    (example.start if start else example.build_images)(settings(context, set_))


@command(image="Image to look at (default: the patched one).", json="Print JSON.")
def image_info(context: Context, set_: list[str], image: str = "", json: bool = False) -> None:
    """Print what is in an image: upstreams, patches, modules, base, size."""
    from scripts.image import info

    patched = f"{settings(context, set_).image}:patched"
    info.show(image or patched, json)


@command(first="Name of an image.", second="Name of the other one.")
def image_diff(context: Context, first: str, second: str, set_: list[str]) -> bool:
    """List the files and settings in which two images differ."""
    from scripts.image import diff

    settings(context, set_)
    return diff.show(first, second)


@command(**RELEASES)
def reproduce(context: Context, set_: list[str], freeswitch: str = "", sofia_sip: str = "") -> bool:
    """Build the patched image twice, the second time from nothing, and compare the two."""
    from scripts.image import diff

    return diff.reproduce(settings(context, set_, freeswitch, sofia_sip))


@command(
    scenario="Scenario to play, a folder of templates/scenarios (docs/scenarios.md lists them), or `all` "
    "(default: kill).",
    **RELEASES,
)
def verify(
    context: Context, set_: list[str], scenario: str = "kill", freeswitch: str = "", sofia_sip: str = ""
) -> None:
    """Clone, patch, build, and verify the images with a scenario (`kill`, unless --scenario names another)."""
    from scripts import verify

    verify.verify(settings(context, set_, freeswitch, sofia_sip), scenario)


@command(tip="Try the newest commits of the upstreams instead, released or not.")
def matrix(context: Context, set_: list[str], tip: bool = False) -> bool:
    """Try the series on every supported release of the upstreams."""
    from scripts.patchset import trials

    return trials.run(settings(context, set_), tip=tip)


@command(**RELEASES)
def patches_import(context: Context, set_: list[str], freeswitch: str = "", sofia_sip: str = "") -> None:
    """Make the series commits on the branch `series` of each tree, to edit with git."""
    from scripts.patchset import branch

    branch.import_series(settings(context, set_, freeswitch, sofia_sip))


@command(**RELEASES)
def patches_export(context: Context, set_: list[str], freeswitch: str = "", sofia_sip: str = "") -> None:
    """Write the commits in the trees back to patches/, with the variables and conditions."""
    from scripts.patchset import branch

    branch.export_series(settings(context, set_, freeswitch, sofia_sip))


@command(freeswitch="FreeSWITCH release to move to (default: the newest that the series applies to).")
def bump(context: Context, set_: list[str], freeswitch: str = "") -> None:
    """Pin newer upstream releases, if the series applies to them."""
    from scripts.patchset import bump

    bump.bump(settings(context, set_), freeswitch)


@command(
    registry="Repository to push to, HOST/NAME (default: push.repository).",
    tags="Push under these tags, with commas between (default: those of the version that the commit is tagged with).",
    cache="Push the stages of the build to build.cache instead.",
    check="Only check that there is a version to push, and a repository.",
)
def push(
    context: Context, set_: list[str], registry: str = "", tags: str = "", cache: bool = False, check: bool = False
) -> None:
    """Push the image that `inv verify` passed to a registry."""
    from scripts.publish import push

    push.run(settings(context, set_), registry, tags, cache, check)


@command()
def save(context: Context, set_: list[str]) -> None:
    """Write the image that `inv verify` passed to build/image.tar."""
    from scripts.publish import push

    push.save(settings(context, set_))


@command()
def load(context: Context, set_: list[str]) -> None:
    """Load build/image.tar, if it has the image that `inv verify` passed."""
    from scripts.publish import push

    push.load(settings(context, set_))


@command(registry="Any repository of the registry, HOST/NAME (default: push.repository, else build.cache).")
def login(context: Context, set_: list[str], registry: str = "") -> None:
    """Log in to the registry with the variables REGISTRY_USER and REGISTRY_PASSWORD."""
    from scripts.machine import registry as registry_module
    from scripts.publish import push

    chosen = settings(context, set_)
    registry_module.login(push.chosen_registry(registry, chosen.push.repository, chosen.cache))


@command(registry="Any repository of the registry, HOST/NAME (default: push.repository, else build.cache).")
def logout(context: Context, set_: list[str], registry: str = "") -> None:
    """Forget the login to the registry."""
    from scripts.machine import registry as registry_module
    from scripts.publish import push

    chosen = settings(context, set_)
    registry_module.logout(push.chosen_registry(registry, chosen.push.repository, chosen.cache))


@command(output="File to append it to (default: standard output).")
def summary(context: Context, set_: list[str], output: str = "") -> None:
    """Summarize the reports of build/report on a page of Markdown."""
    from scripts.publish import summary

    summary.write(settings(context, set_).report_directory, output)


@command()
def tip_issue(context: Context, set_: list[str]) -> None:
    """Open an issue on GitHub if `inv matrix --tip` failed; close it if it passed."""
    from scripts.publish import github

    github.tell_of_tip(settings(context, set_).report_directory)


@command()
def release_page(context: Context, set_: list[str]) -> None:
    """Make the release page on GitHub of the version that `inv push` pushed."""
    from scripts.publish import github

    github.release(settings(context, set_).report_directory)


@command(
    host="Host of the event socket (default: watch.host).",
    port="Port of the event socket (default: watch.port).",
    password="Password of the event socket (default: the environment variable ESL_PASSWORD).",
    json="Print each event as one line of JSON.",
)
def watch(
    context: Context, set_: list[str], host: str = "", port: str = "", password: str = "", json: bool = False
) -> None:
    """Print the reports of lost connections of a running FreeSWITCH as they come."""
    from scripts.freeswitch import watch as reports

    chosen = settings(context, set_)
    number = reports.parse_port(port, "--port") if port else chosen.watch.port
    reports.watch(host or chosen.watch.host, number, chosen.esl_event, password, json)


@command(
    quick="Smaller loads and fewer runs, done in a few minutes.",
    docs="Also copy the plots and the report to docs/.",
    # In words of its own: the benchmark takes long to import. A test compares the two.
    only="Measure these parts only, with commas between (storm,latency, say): idle, latency, storm, sizes, registrar, "
    "calls, footprint, burden, offenders.",
    with_kamailio="Also measure Kamailio, which must be installed.",
)
def bench(
    context: Context,
    set_: list[str],
    quick: bool = False,
    docs: bool = False,
    only: str = "",
    with_kamailio: bool = False,
) -> None:
    """Measure stock and patched FreeSWITCH side by side."""
    from scripts.bench import suite

    suite.run(settings(context, set_), quick, docs, only, with_kamailio)


@command(
    cycles="How often a client connects, registers and dies.",
    profile="SIP profile of the scenario `deaths`.",
    cpus="CPUs that FreeSWITCH is made to believe in (0: those of this machine).",
    stock="Soak the stock image, to compare with.",
    pending="Let clients die with NOTIFYs, subscriptions and calls pending.",
    limit="End after so many seconds.",
)
def soak(
    context: Context,
    set_: list[str],
    cycles: int = 10000,
    profile: str = "main",
    cpus: int = 0,
    stock: bool = False,
    pending: bool = False,
    limit: int = 3600,
) -> bool:
    """Connect, register, die, many thousand times: what is left behind?"""
    from scripts.bench import soak

    return soak.soak(settings(context, set_), cycles, profile, cpus, stock, pending, limit)


@command()
def compare(context: Context, set_: list[str]) -> bool:
    """Write docs/comparison.md: the scenario `deaths`, and what crosses, against stock and patched FreeSWITCH."""
    from tests import compare

    return compare.compare(settings(context, set_))


@command(
    sources="Remove the source trees too (default; --no-sources keeps them).",
    images="Remove the images too (default; --no-images keeps them).",
    force="Remove source trees with local changes, too.",
)
def clean(context: Context, set_: list[str], sources: bool = True, images: bool = True, force: bool = False) -> None:
    """Remove what the toolkit made: containers, networks, images, build trees."""
    from scripts.upkeep import clean

    clean.clean(settings(context, set_), sources, images, force)


@command()
def lint(context: Context, set_: list[str]) -> bool:
    """Check code, types, shell scripts, Dockerfiles and workflows."""
    from scripts.upkeep import lint

    settings(context, set_)
    return lint.lint()


@command(args="Arguments for pytest, in one string (--args='-k patchset -x', say).", **RELEASES)
def test(context: Context, set_: list[str], args: str = "", freeswitch: str = "", sofia_sip: str = "") -> object:
    """Run the tests with pytest."""
    return run_tests(context, set_, args, freeswitch, sofia_sip)
