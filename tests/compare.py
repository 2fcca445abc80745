"""Write docs/comparison.md: the table of cases against stock and patched FreeSWITCH.

    python -m tests.compare

What stock offers for the purpose is tcp-unreg-on-socket-close: it is set in
every profile of the stock run, and its sofia::unregister with the reason
socket-disconnection counts as the report. The patched run is what the tests
run. Both are measured anew; the file has no date and no delays, so that it
changes only when an outcome does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from rich import get_console

from scripts import report, terminal
from scripts.clean import LABEL
from scripts.errors import ToolkitError
from scripts.events import UNREGISTER
from scripts.report import Verdict
from scripts.settings import ROOT, Settings, load
from scripts.terminal import Work
from tests import lab as lab_module
from tests import player
from tests.lab import Lab
from tests.player import Case, Player, Stage
from tests.record import Record

FILE = ROOT / "docs" / "comparison.md"
STOCK = {"tcp-unreg-on-socket-close": "true"}
# What these parameters do is not the stock image's to show.
PATCHED_ONLY = frozenset({"remove", "both", "quiet"})


@dataclass(frozen=True)
class Run:
    """An image by its version and labels, and the outcome of each case."""

    version: str
    labels: dict[str, str]
    outcomes: dict[Case, str]
    record: Record


def measure(settings: Settings, variant: str, work: Work) -> Run:
    """Run the table against the image `variant`; `work` shows the progress."""
    outcomes = {}
    record = Record(variant)
    cases = [case for case in player.load() if variant == "patched" or case.profile not in PATCHED_ONLY]
    with (
        tempfile.TemporaryDirectory() as directory,
        work.task(variant, len(cases)) as shown,
        lab_module.start(settings, Path(directory), variant, parameters=STOCK if variant == "stock" else None) as lab,
    ):
        version = " ".join(lab.freeswitch.recorder.api("version").split())
        labels = dict(lab.freeswitch.container.image.labels)
        for case in cases:
            if case.profile != "six" or lab.freeswitch.address6:
                outcomes[case] = _outcome(record, lab, case)
            shown.advance()
    return Run(version, labels, outcomes, record)


def _outcome(record: Record, lab: Lab, case: Case) -> str:
    try:
        with record.case(lab, case) as entry:
            entry.stages = entry.player.play()
    except (AssertionError, OSError, ToolkitError) as error:
        return f"failed: {' '.join(str(error).split())[:80] or type(error).__name__}"
    if record.variant == "patched":
        problems = player.problems(entry.stages)
        if problems:
            record.note(case, Verdict.FAILED, problems=problems)
        return "; ".join(problems) or "as it must be"
    outcome, right = _judge_stock(entry.player, entry.stages)
    record.note(case, Verdict.PASSED if right else Verdict.FAILED, came=outcome)
    return outcome


def _judge_stock(play: Player, stages: Sequence[Stage]) -> tuple[str, bool]:
    """Return in words how many of the expected reports came as an unregister, and how many that were not.

    And whether it is as with the patch: all of them in time, and nothing else.
    """
    wanted = sum(len(stage.expected.reports) for stage in stages)
    found = wrong = 0
    for stage in stages:
        found += min(len(stage.expected.reports), stage.unregisters)
        wrong += max(0, stage.unregisters - len(stage.expected.reports))
    total = sum(
        event.subclass == UNREGISTER and event.get("reason") == "socket-disconnection" and play.is_mine(event)
        for event in play.switch.recorder.events[play.start :]
    )
    late = total - found - wrong
    # How many clients of a storm have registered is a matter of luck.
    storm = any("each registered" in stage.step for stage in stages)
    if storm and found == wanted:
        parts = ["all"]
    elif wanted:
        parts = [f"{found} of {wanted}"]
    else:
        parts = [] if total else ["none, rightly"]
    parts += [f"{wrong} false"] if wrong else []
    parts += [f"{late} late"] if late > 0 else []
    return ", ".join(parts), found == wanted and not wrong and late <= 0


def document(settings: Settings, stock: Run, patched: Run) -> str:
    """Return the text of the comparison."""
    lines = [
        "# Stock and patched FreeSWITCH compared",
        "",
        "Written by `python -m tests.compare`, which runs tests/matrix.yaml against both images. Don't edit.",
        "",
        "- **patched**: what must come according to the table came, and nothing else, within a second.",
        "- **stock**: with `tcp-unreg-on-socket-close=true`, its `sofia::unregister` with reason",
        "  `socket-disconnection` counted as the report; *n of m*: of m that had to be reported n were;",
        "  *all*: all of those that had registered in time; *false*: one came for a registration that",
        "  the end of the connection did not concern; *–*: the profile has parameters that only the patch knows.",
        "",
        f"- FreeSWITCH: `{patched.version}`",
        *(f"- {source.name}: {patched.labels.get(f'{LABEL}.{source.name}', 'unknown')}" for source in settings.sources),
        f"- patch series: {patched.labels.get(f'{LABEL}.series', 'unknown')}",
        "",
        "| case | profile | transport | stock | patched |",
        "| --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for case in patched.outcomes:
        key = (case.name, case.profile, stock.outcomes.get(case, "–"), patched.outcomes[case])
        groups.setdefault(key, []).append(case.transport)
    for (name, profile, before, after), transports in groups.items():
        lines.append(f"| {name} | {profile} | {', '.join(transports)} | {before} | {after} |")
    return "\n".join(lines) + "\n"


def compared(stock: Record, patched: Record) -> report.Run:
    """Return what the report is made of: both images side by side, stock only to be compared with."""
    run = patched.run()
    return replace(
        run,
        name="comparison",
        images=[*run.images, *stock.images],
        versions={**run.versions, **stock.versions},
        results=[*run.results, *stock.results.values()],
        compared={stock.variant},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; return the exit code: 1 if the patched image is not as it must be."""
    parser = argparse.ArgumentParser(description=f"Measure both images and write {FILE.relative_to(ROOT)}.")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    terminal.configure(parser.parse_args(arguments).quiet)
    settings, console = load(), get_console()
    try:
        with terminal.work(console) as work, ThreadPoolExecutor(2) as pool:
            stock, patched = pool.map(lambda variant: measure(settings, variant, work), ("stock", "patched"))
    except ToolkitError as error:
        terminal.loud(console).print(str(error), soft_wrap=True)
        return 1
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(document(settings, stock, patched))
    try:
        page = report.write(compared(stock.record, patched.record), settings.report_directory)
    except ToolkitError as error:
        terminal.loud(console).print(str(error), soft_wrap=True)
        return 1
    wrong = [str(case) for case, outcome in patched.outcomes.items() if outcome != "as it must be"]
    console.print(
        f"wrote {FILE.relative_to(ROOT)}: {len(patched.outcomes)} cases, {len(wrong)} not as they must be; "
        f"report in {page}",
        soft_wrap=True,
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
