"""Write docs/comparison.md: the table of cases, and what crosses, against stock and patched FreeSWITCH.

    inv compare

What stock offers for the purpose is tcp-unreg-on-socket-close: it is set in
every profile of the stock run, and its sofia::unregister with the reason
socket-disconnection counts as the report. The patched run is what the tests
run. Both are measured anew; the file has no date and no delays, so that it
changes only when an outcome does. How often stock is wrong about what crosses
is a matter of luck.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich import get_console

from scripts.bench import offenders
from scripts.bench.offenders import RawConnection
from scripts.errors import ToolkitError
from scripts.freeswitch.events import UNREGISTER
from scripts.freeswitch.sip import Client
from scripts.machine import terminal
from scripts.machine.engine import LABEL
from scripts.machine.files import ROOT
from scripts.machine.terminal import ProgressDisplay
from scripts.pins.settings import Settings
from scripts.report import write
from scripts.scenario import ensemble, outcome, table
from scripts.scenario import lab as lab_module
from scripts.scenario.lab import DOMAIN, Lab
from scripts.scenario.outcome import Verdict
from scripts.scenario.player import Player
from scripts.scenario.record import Record, together
from scripts.scenario.table import PATCHED, STOCK, Case
from tests import races

FILE = ROOT / "docs" / "comparison.md"
UNREGISTERING = {"tcp-unreg-on-socket-close": "true"}
# What these parameters do is not the stock image's to show.
PATCHED_ONLY = frozenset({"remove", "both", "quiet"})
# What crosses, with passwords where there are any: so often over each transport, or as often as it takes.
RACES = [case for case in races.CASES if not case.blind or not case.race.digest]
REPETITIONS = 200


@dataclass(frozen=True)
class Run:
    """An image by its version and labels, and the outcome of each case."""

    version: str
    labels: dict[str, str]
    outcomes: dict[Case, str]
    record: Record


def measure(settings: Settings, variant: str, work: ProgressDisplay) -> Run:
    """Run the table against the image `variant`; `work` shows the progress."""
    outcomes = {}
    scenario = table.load("deaths")
    record = Record(scenario, variant, compared=variant == STOCK)
    cases = scenario.cases(PATCHED)
    if variant == STOCK:
        cases = [_for_stock(case) for case in cases if case.profile not in PATCHED_ONLY]
    with (
        tempfile.TemporaryDirectory() as directory,
        work.task(variant, len(cases)) as shown,
        lab_module.start(
            settings, scenario, Path(directory), variant, parameters=UNREGISTERING if variant == STOCK else None
        ) as lab,
    ):
        version = " ".join(lab.freeswitch.recorder.api("version").split())
        labels = dict(lab.freeswitch.container.image.labels)
        played = [case for case in cases if case.profile != "six" or lab.freeswitch.address6]
        shown.advance(len(cases) - len(played))
        with ensemble.play(played, partial(_outcome, record, lab)) as outcomes_of:
            for case in played:
                outcomes[case] = outcomes_of[case].result()
                shown.advance()
    record.fill(played, "the run was broken off before it")
    return Run(version, labels, outcomes, record)


def _for_stock(case: Case) -> Case:
    """Return `case` as it is to be played against stock: what breaks the connections of other clients is alone.

    What stock writes to the socket of a WebSocket that has just been closed
    goes to whoever has the descriptor by then (see patch 0009 of sofia-sip).
    """
    breaks = case.transport == "wss" and any(step.startswith(("storm ", "fin_all ")) for step in case.steps)
    return replace(case, alone=case.alone or breaks)


def measure_races(
    settings: Settings, variant: str, work: ProgressDisplay
) -> dict[races.RaceCase, races.RaceResult | str]:
    """Play what crosses against the image `variant`; of what could not be played, why."""
    cases = [case for case in RACES if variant == "patched" or case.race.on_stock]
    outcomes: dict[races.RaceCase, races.RaceResult | str] = {}
    with (
        work.task(f"{variant}, what crosses", len(cases)) as shown,
        races.RaceSuite(settings, cases, variant, REPETITIONS) as runs,
    ):
        for case in cases:
            try:
                outcomes[case] = runs.outcome(case)
            except (AssertionError, OSError, ToolkitError) as error:
                outcomes[case] = _failure(error)
            shown.advance()
    return outcomes


def measure_offenders(settings: Settings, variant: str, work: ProgressDisplay) -> dict[offenders.FrameCase, str]:
    """Let clients do what is legal, illegal or slow over WebSocket; return what was wrong, others' waiting included."""
    outcomes = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        work.task(f"{variant}, offenders", len(offenders.CASES)) as shown,
        lab_module.start(settings, table.load("deaths"), Path(directory), variant) as lab,
    ):
        for case in offenders.CASES:
            with Bystander(lab) as bystander:
                try:
                    with contextlib.closing(
                        RawConnection(case.transport, lab.target("main", case.transport), limit=60)
                    ) as raw:
                        wrong = case.play(raw, 3)
                except (AssertionError, OSError) as error:
                    wrong = [_failure(error)]
            if bystander.worst > 1:
                wrong.append(f"others wait {bystander.worst:.0f} s")
            outcomes[case] = "; ".join(wrong) or "as it must be"
            shown.advance()
    return outcomes


class Bystander:
    """A client that asks all the while; `worst` is the longest it has waited for an answer, in seconds."""

    def __init__(self, lab: Lab) -> None:
        self.worst = 0.0
        self._client = Client("udp", *lab.target("main", "udp"), limit=60)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            began = time.monotonic()
            with contextlib.suppress(OSError):
                self._client.ask("OPTIONS", "x", DOMAIN, "x")
            self.worst = max(self.worst, time.monotonic() - began)

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()


def offences(stock: Mapping[offenders.FrameCase, str], patched: Mapping[offenders.FrameCase, str]) -> list[str]:
    """Return the table of offenders."""
    lines = [
        "## What a client sends over WebSocket",
        "",
        "What is legal must be answered, what is illegal must end the connection with the right close code, who does",
        "not go on is closed after a while, and nobody else waits (scripts/bench/offenders.py). Another client asks",
        "over UDP meanwhile: *others wait*, if it was for more than a second.",
        "",
        "| what a client sends | what must come of it | transport | stock | patched |",
        "| --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for case in patched:
        end = case.end.value
        groups.setdefault((case.name, end, stock[case], patched[case]), []).append(case.transport)
    for (name, end, before, after), transports in groups.items():
        lines.append(f"| {name} | {end} | {', '.join(transports)} | {before} | {after} |")
    return lines


def _failure(error: Exception) -> str:
    return f"failed: {' '.join(str(error).split())[:80] or type(error).__name__}"


def _outcome(record: Record, lab: Lab, case: Case) -> str:
    try:
        with record.case(lab, case) as playing:
            playing.play()
    except (AssertionError, OSError, UnicodeDecodeError, ToolkitError) as error:
        # Stock can write what belongs to another connection into this one: an alert of TLS is no text.
        return _failure(error)
    if not record.compared:
        return "; ".join(record.results[case].problems) or "as it must be"
    outcome, right = _judge_stock(playing)
    record.note(case, Verdict.PASSED if right else Verdict.FAILED, came=outcome)
    return outcome


def _judge_stock(play: Player) -> tuple[str, bool]:
    """Return in words how many of the expected reports came as an unregister, and how many that were not.

    And whether it is as with the patch: all of them in time, and nothing else.
    """
    stages = play.stages
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


Crossed = Mapping[races.RaceCase, races.RaceResult | str]


def crossing(stock: Crossed, patched: Crossed) -> list[str]:
    """Return the table of what crosses, a row for each race and number of CPUs."""
    lines = [
        "## What crosses",
        "",
        "What a client does within a few milliseconds (tests/races/), with random offsets of up to 2 ms and with",
        "passwords (`crowd`, the last one, blind); with 2 CPUs FreeSWITCH handles messages in one thread, with",
        "16 in nine. *n of m*: of m repetitions, over all transports together, the outcome of n was wrong. How often",
        "stock is wrong differs from run to run.",
        "",
        "| what a client does | transports | CPUs | stock, wrong | patched, wrong |",
        "| --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, int], list[races.RaceCase]] = {}
    for case in patched:
        groups.setdefault((case.race.title, case.cpus), []).append(case)
    for (title, cpus), cases in groups.items():
        transports = ", ".join(case.transport for case in cases)
        lines.append(f"| {title} | {transports} | {cpus} | {_wrong(stock, cases)} | {_wrong(patched, cases)} |")
    return lines


def _wrong(outcomes: Crossed, cases: Sequence[races.RaceCase]) -> str:
    found = [outcomes[case] for case in cases if case in outcomes]
    played = [one for one in found if isinstance(one, races.RaceResult)]
    parts = []
    if played:
        total = sum(one.repetitions - one.unplayed for one in played)
        parts.append(f"{sum(one.wrong for one in played)} of {total}")
    parts += [one for one in found if isinstance(one, str)]
    return "; ".join(parts) or "–"


def document(
    settings: Settings,
    stock: Run,
    patched: Run,
    crossed: Mapping[str, Crossed],
    offended: Mapping[str, Mapping[offenders.FrameCase, str]],
) -> str:
    """Return the text of the comparison; `crossed` and `offended` are outcomes of races and offenders, by variant."""
    lines = [
        "# Stock and patched FreeSWITCH compared",
        "",
        "Written by `inv compare`, which plays templates/scenarios/deaths, tests/races/ and",
        "scripts/bench/offenders.py against both images. Don't edit.",
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
    lines += ["", *crossing(crossed["stock"], crossed["patched"])]
    lines += ["", *offences(offended["stock"], offended["patched"])]
    return "\n".join(lines) + "\n"


def compared(stock: Record, patched: Record) -> outcome.Run:
    """Return what the report is made of: both images side by side, stock only to be compared with."""
    return replace(together(patched, stock), name="comparison", compared={stock.name})


def compare(settings: Settings) -> bool:
    """Measure and write; return whether the patched image is as it must be."""
    console = get_console()
    with terminal.work(console) as work, ThreadPoolExecutor(2) as pool:
        variants = ("stock", "patched")
        stock, patched = pool.map(lambda variant: measure(settings, variant, work), variants)
        measured = pool.map(lambda variant: measure_offenders(settings, variant, work), variants)
        offended = dict(zip(variants, measured, strict=True))
        # One after the other: each has two FreeSWITCHes busy.
        crossed = {variant: measure_races(settings, variant, work) for variant in variants}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(document(settings, stock, patched, crossed, offended))
    page = write.write(compared(stock.record, patched.record), settings.report_directory)
    wrong = [str(case) for case, outcome in patched.outcomes.items() if outcome != "as it must be"]
    wrong += [
        str(case)
        for case, outcome in crossed["patched"].items()
        if isinstance(outcome, str) or outcome.wrong or not outcome.proves
    ]
    wrong += [str(case) for case, outcome in offended["patched"].items() if outcome != "as it must be"]
    count = len(patched.outcomes) + len(crossed["patched"]) + len(offended["patched"])
    console.print(
        f"wrote {FILE.relative_to(ROOT)}: {count} cases, {len(wrong)} not as they must be; report in {page}",
        soft_wrap=True,
    )
    return not wrong
