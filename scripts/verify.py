"""The verification, from the images to the report: `inv verify`."""

from __future__ import annotations

from collections.abc import Sequence

from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.image import build
from scripts.machine import files, terminal
from scripts.pins.settings import Settings
from scripts.report import write
from scripts.scenario import check, player, run, table
from scripts.scenario.outcome import Run
from scripts.scenario.run import Break, Interrupted
from scripts.scenario.table import Scenario

KILL = "kill"


def verify(settings: Settings, name: str = KILL) -> None:
    """Build the images and play the scenario `name` on them, or each there is if it is "all".

    Shows the results and writes them to the report directory. Raises
    ToolkitError if any case didn't pass or couldn't be run.
    """
    scenarios = table.chosen(name)
    for scenario in scenarios:
        check.check(scenario, player.VERBS)
    write.prepare(settings.report_directory, [scenario.report for scenario in scenarios])
    build.build(settings)
    failures = []
    for scenario in scenarios:
        try:
            play(settings, scenario)
        except Interrupted:
            raise
        except ToolkitError as error:
            if len(scenarios) == 1:
                raise
            failures.append(f"scenario '{scenario.name}': {error}")
    if failures:
        raise ToolkitError("; ".join(failures))


def play(settings: Settings, scenario: Scenario, variants: Sequence[str] = (), console: Console | None = None) -> Run:
    """Play `scenario` on the existing images, or those of `variants`, and return the results.

    The report is written in any case, also of a run that broke off; containers
    and networks are removed. Raises ToolkitError if a case didn't pass, if
    FreeSWITCH or Docker failed, or on SIGINT and SIGTERM.
    """
    console = console or get_console()
    # An impatient second signal must not cost the report.
    with Break() as stopped:
        with terminal.work(console) as work:
            outcome, failure = run.run(settings, scenario, settings.report_directory / "logs", work, stopped, variants)
        try:
            page = write.write(outcome, settings.report_directory)
        except ToolkitError as error:
            raise ToolkitError("; ".join(str(one) for one in (failure, error) if one)) from failure
        write.show(outcome, console)
    if stopped.name and not isinstance(failure, Interrupted):
        # It came when all was played.
        failure = stopped.error(*([str(failure)] if failure else []))
    where = f"report in {files.short(page)}"
    if failure:
        raise type(failure)(f"{failure}; {where}") from failure
    if outcome.failures:
        first = outcome.failures[0]
        problem = first.problems[0] if first.problems else first.verdict
        raise ToolkitError(
            f"{len(outcome.failures)} of {len(outcome.results)} cases did not pass, first '{first.name}' on "
            f"{first.variant}: {problem}; {where}"
        )
    console.print(where, soft_wrap=True)
    return outcome
