"""The tasks of the toolkit. `inv --list` lists them, `inv --help TASK` explains one.

The modules are imported where they are needed: `inv --list` stays fast.
"""

from invoke.context import Context

from scripts.cli import RELEASES, check_variables, command, run_tests, settings

check_variables()


@command()
def doctor(context: Context, set_: list[str]) -> bool:
    """Check that this machine has all that the toolkit needs."""
    from scripts import doctor

    return doctor.doctor(settings(context, set_))


@command()
def base(context: Context, set_: list[str]) -> None:
    """Get the base image: pull it or, failing that, make it with debootstrap."""
    from scripts import base

    base.ensure(settings(context, set_))


@command(**RELEASES)
def clone(context: Context, set_: list[str], freeswitch: str = "", sofia_sip: str = "") -> None:
    """Clone the pinned upstreams into build/sources."""
    from scripts import sources

    sources.clone(settings(context, set_, freeswitch, sofia_sip))


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
    from scripts import patchset

    patchset.run(settings(context, set_, freeswitch, sofia_sip), check_only=check, to_pins=revert)


@command(**RELEASES)
def build(context: Context, set_: list[str], freeswitch: str = "", sofia_sip: str = "") -> None:
    """Build the image with the patched FreeSWITCH."""
    from scripts import image

    image.build(settings(context, set_, freeswitch, sofia_sip))


@command(**RELEASES)
def verify(context: Context, set_: list[str], freeswitch: str = "", sofia_sip: str = "") -> None:
    """Clone, patch, build, and verify the patched FreeSWITCH with SIPp."""
    from scripts import scenario

    scenario.verify(settings(context, set_, freeswitch, sofia_sip))


@command()
def matrix(context: Context, set_: list[str]) -> bool:
    """Try the series on every supported release of the upstreams."""
    from scripts import matrix

    return matrix.run(settings(context, set_))


@command(**RELEASES)
def patches_import(context: Context, set_: list[str], freeswitch: str = "", sofia_sip: str = "") -> None:
    """Make the series commits on the branch `series` of each tree, to edit with git."""
    from scripts import branch

    branch.import_series(settings(context, set_, freeswitch, sofia_sip))


@command(**RELEASES)
def patches_export(context: Context, set_: list[str], freeswitch: str = "", sofia_sip: str = "") -> None:
    """Write the commits in the trees back to patches/, with the variables and conditions."""
    from scripts import branch

    branch.export_series(settings(context, set_, freeswitch, sofia_sip))


@command(freeswitch="FreeSWITCH release to move to (default: the newest that the series applies to).")
def bump(context: Context, set_: list[str], freeswitch: str = "") -> None:
    """Pin newer upstream releases, if the series applies to them."""
    from scripts import bump

    bump.bump(settings(context, set_), freeswitch)


@command(
    host="Host of the event socket (default: watch.host).",
    port="Port of the event socket (default: watch.port).",
    password="Password of the event socket (default: the environment variable ESL_PASSWORD).",
    json="Print each event as one line of JSON.",
)
def watch(
    context: Context, set_: list[str], host: str = "", port: int = 0, password: str = "", json: bool = False
) -> None:
    """Print the reports of lost connections of a running FreeSWITCH as they come."""
    from scripts import events

    events.watch(settings(context, set_), host, port, password, json)


@command(
    quick="Smaller loads and fewer runs, done in a few minutes.",
    docs="Also copy the plots and the report to docs/.",
    only="Measure these parts only, with commas between (storm,latency, say).",
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
    sources="Remove the source trees too (default; --no-sources keeps them).",
    images="Remove the images too (default; --no-images keeps them).",
    force="Remove source trees with local changes, too.",
)
def clean(context: Context, set_: list[str], sources: bool = True, images: bool = True, force: bool = False) -> None:
    """Remove what the toolkit made: containers, networks, images, build trees."""
    from scripts import clean

    clean.clean(settings(context, set_), sources, images, force)


@command(args="Arguments for pytest, in one string (--args='-k patchset -x', say).")
def test(context: Context, set_: list[str], args: str = "") -> object:
    """Run the tests with pytest."""
    return run_tests(context, set_, args)
