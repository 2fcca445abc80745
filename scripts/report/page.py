"""The report as one HTML page that needs nothing else: no network, no script, no font."""

from __future__ import annotations

import base64
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from scripts.errors import ToolkitError
from scripts.report import ladder, latency
from scripts.report.ladder import GAP_NS, Ladder, Lane, StepKind
from scripts.report.latency import DelaySeries, Stages
from scripts.scenario.outcome import Result, Run, Verdict
from scripts.templates import environment

TEMPLATE = "report/report.html.j2"
SIGNS = {Verdict.PASSED: "✓", Verdict.FAILED: "✗", Verdict.ERROR: "!", Verdict.NOT_RUN: "–", Verdict.SKIPPED: "–"}
BANNERS = {Verdict.PASSED: "passed", Verdict.FAILED: "failed", Verdict.NOT_RUN: "not-run"}
TITLES = {"verify": "Verification", "death-matrix": "Death matrix", "comparison": "Stock and patched compared"}
# From so many delays on their distribution says more than each of them.
DISTRIBUTION = 10
# A longer ladder is shortened in the middle; the table below it has all.
LADDER_ROWS = 80
# A larger capture is not put into the page.
LARGEST_CAPTURE = 256 * 1024

# The measures of a ladder, in units of its viewBox: the lanes, and the height of a row.
LANES = (80, 216, 352)
WIDTH = 404
ROW = 34
TOP = 46


@dataclass(frozen=True)
class Row:
    """One case (against one profile) in the matrix; a cell is None where the case is not carried out."""

    case: str
    profile: str
    done: str
    expected: str
    steps: Sequence[str]
    cells: Sequence[Result | None]


@dataclass(frozen=True)
class Matrix:
    """The results as a table, a column for each variant and transport, which may be "".

    `profiles` and `transports` say whether there is more than one of them to tell.
    """

    columns: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    profiles: bool
    transports: bool

    @property
    def variants(self) -> dict[str, int]:
        """The variants, each with its number of columns."""
        return Counter(variant for variant, _ in self.columns)


@dataclass(frozen=True)
class Rung:
    """One row of a ladder, ready to be drawn: texts that fit, and places."""

    y: int
    kind: str
    x1: int
    x2: int
    label: str
    note: str
    tip: str
    ms: str
    after_kill: str


@dataclass(frozen=True)
class LadderRow:
    """One row of the table that says the same as a ladder, and has all packets."""

    ms: str
    after_kill: str
    way: str
    what: str
    texts: Sequence[str]


@dataclass(frozen=True)
class LadderDiagram:
    """The ladder of one result. `problem` says in one line why there is none."""

    result: Result
    number: int
    problem: str = ""
    ladder: Ladder | None = None
    rungs: Sequence[Rung] = ()
    height: int = 0
    kill_y: int | None = None
    table: Sequence[LadderRow] = ()
    download: str = ""
    stages: Sequence[tuple[str, float]] = ()

    @property
    def file(self) -> str:
        """The name under which the capture is saved."""
        return re.sub("[^A-Za-z0-9]+", "-", f"{self.result.variant} {self.result.name}").strip("-") + ".pcap"


@dataclass(frozen=True)
class Latency:
    """The plot of the delays and its figures. `problem` says in one line why there is none.

    `distributed`: the delays are so many that only their distribution is shown.
    """

    svg: str = ""
    series: Sequence[DelaySeries] = ()
    stages: Sequence[Stages] = ()
    caption: str = ""
    distributed: bool = False
    problem: str = ""


def render(run: Run) -> str:
    """Return the page of `run`. What can't be drawn is a line on it."""
    failures = [result for result in run.failures if result.verdict is not Verdict.NOT_RUN]
    pictures = [_picture(run, result, number) for number, result in enumerate(_captured(run), 1)]
    banner = _banner(run)
    return (
        environment(markup=True)
        .get_template(TEMPLATE)
        .render(
            run=run,
            title=TITLES.get(run.name, run.name),
            banner=BANNERS[banner],
            headline=_headline(run, banner),
            summary=_summary(run),
            sign=SIGNS[banner],
            signs=SIGNS,
            counts=_counts(run),
            failures=failures,
            not_run=_not_run(run),
            matrix=_matrix(run.results),
            pictures=pictures,
            latency=_latency(run, pictures),
            eventful=[result for result in run.results if result.events],
            # Results can be equal, and none of them can be hashed.
            key=id,
            picture_of={id(picture.result): picture for picture in pictures},
            number_of={id(result): number for number, result in enumerate(failures, 1)},
            lanes=LANES,
            width=WIDTH,
        )
    )


def _banner(run: Run) -> Verdict:
    """Return the verdict on all cases: one that was not run fails nothing, but passes nothing either."""
    verdicts = {result.verdict for result in run.judged}
    if verdicts & {Verdict.FAILED, Verdict.ERROR}:
        return Verdict.FAILED
    return Verdict.PASSED if verdicts - {Verdict.SKIPPED} == {Verdict.PASSED} else Verdict.NOT_RUN


def _headline(run: Run, banner: Verdict) -> str:
    counts, total, wrong = _counts(run), len(run.judged), len(run.failures)
    if banner is Verdict.PASSED:
        passed = counts[Verdict.PASSED]
        return f"passed: all {total} cases" if passed == total else f"passed: {passed} of {total} cases, none failed"
    if banner is Verdict.FAILED:
        return f"failed: {wrong} of {total} cases did not pass"
    return f"incomplete: {total - counts[Verdict.PASSED]} of {total} cases were not run"


def _not_run(run: Run) -> dict[str, list[Result]]:
    """Return the cases that were not run, by the reason."""
    found: dict[str, list[Result]] = {}
    for result in run.judged:
        if result.verdict in (Verdict.NOT_RUN, Verdict.SKIPPED):
            found.setdefault("; ".join(result.problems), []).append(result)
    return found


def _summary(run: Run) -> str:
    return "; ".join([*_compared(run), *_delays(run)])


def _compared(run: Run) -> Iterator[str]:
    """Yield how many cases have passed on each variant that is only there to be compared with."""
    for variant in sorted(run.compared):
        verdicts = [result.verdict for result in run.results if result.variant == variant]
        yield f"on {variant} {verdicts.count(Verdict.PASSED)} of {len(verdicts)}"


def _delays(run: Run) -> Iterator[str]:
    delays = [result.delay_ms for result in run.judged if result.delay_ms is not None]
    if len(delays) == 1:
        yield f"the report came after {delays[0]:.1f} ms"
    elif delays:
        series = DelaySeries("", delays)
        yield f"reports after {series.percentile(50):.1f} ms in the median, {series.percentile(100):.1f} at most"
    yield f"{timedelta(seconds=round(sum(result.seconds for result in run.results)))} of cases, some side by side"


def _counts(run: Run) -> dict[Verdict, int]:
    counts = Counter(result.verdict for result in run.judged)
    return {verdict: counts[verdict] for verdict in Verdict if counts[verdict] or verdict is Verdict.PASSED}


def _matrix(results: Sequence[Result]) -> Matrix:
    variants = dict.fromkeys(result.variant for result in results)
    found = dict.fromkeys((result.variant, result.transport) for result in results)
    columns = [column for variant in variants for column in found if column[0] == variant]
    keys = list(dict.fromkeys((result.case, result.profile) for result in results))
    cells = {(result.case, result.profile, result.variant, result.transport): result for result in results}
    rows = []
    for key in keys:
        row = [cells.get((*key, *column)) for column in columns]
        filled = [cell for cell in row if cell]
        expected = {cell.expected for cell in filled}
        done = next((cell.done for cell in filled if cell.done), "")
        rows.append(Row(*key, done, expected.pop() if len(expected) == 1 else "", filled[0].steps, row))
    several = len({profile for _, profile in keys}) > 1
    return Matrix(columns, rows, several, any(transport for _, transport in columns))


def _captured(run: Run) -> list[Result]:
    """Return the results that have a capture: failures first, then kills, and of these the ones with a report."""
    judged = run.failures

    def rank(result: Result) -> tuple[bool, bool, bool]:
        killed = result.capture is not None and result.capture.killed_ns is not None
        return result not in judged, not killed, result.delay_ms is None

    return sorted((result for result in run.results if result.capture), key=rank)


def _picture(run: Run, result: Result, number: int) -> LadderDiagram:
    capture = result.capture
    assert capture
    download = ""
    if capture.pcap and len(capture.pcap) <= LARGEST_CAPTURE:
        download = base64.b64encode(capture.pcap).decode()
    try:
        found = ladder.build(capture, result.events, run.subclass)
        rungs = list(_rungs(found))
        return LadderDiagram(
            result,
            number,
            ladder=found,
            rungs=rungs,
            height=TOP + ROW * len(rungs) + 8,
            kill_y=next((rung.y for rung in rungs if rung.kind == StepKind.KILL), None),
            table=_table(found),
            download=download,
            stages=_stages(found),
        )
    except ToolkitError as error:
        return LadderDiagram(result, number, str(error), download=download)
    except Exception as error:  # What strangers sent and a library dissects must not cost the report.
        return LadderDiagram(result, number, f"can't be drawn: {type(error).__name__}: {error}", download=download)


def _rungs(found: Ladder) -> Iterator[Rung]:
    steps = found.steps
    omitted = len(steps) - LADDER_ROWS
    y = TOP
    last = steps[0].when_ns
    for index, step in enumerate(steps):
        if omitted > 0 and LADDER_ROWS // 2 <= index < LADDER_ROWS // 2 + omitted:
            if index == LADDER_ROWS // 2:
                yield Rung(y, "gap", LANES[0], LANES[-1], f"{omitted} more, in the table below", "", "", "", "")
                y += ROW
            last = step.when_ns
            continue
        if step.when_ns - last > GAP_NS:
            yield Rung(y, "gap", LANES[0], LANES[-1], f"{(step.when_ns - last) / 1e9:.1f} s", "", "", "", "")
            y += ROW
        last = step.when_ns
        room = 22
        yield Rung(
            y,
            step.kind,
            LANES[step.source],
            LANES[step.target],
            _short(step.label, room),
            _short(step.note, room + 4),
            f"{step.label}\n{step.text or step.note}".strip(),
            _ms(step.when_ns - found.start_ns),
            _after(found, step.when_ns) if step.kind is not StepKind.KILL else "",
        )
        y += ROW


def _table(found: Ladder) -> list[LadderRow]:
    names = {Lane.CLIENT: "client", Lane.SERVER: "FreeSWITCH", Lane.SUBSCRIBER: "subscriber"}
    clients = {packet.client for packet in found.packets}
    lines: list[tuple[int, LadderRow]] = []

    def add(when_ns: int, way: Sequence[str], what: Sequence[str], texts: Sequence[str]) -> None:
        words = "; ".join(word for word in what if word)
        ms, after_kill = _ms(when_ns - found.start_ns), _after(found, when_ns)
        lines.append((when_ns, LadderRow(ms, after_kill, " → ".join(way), words, texts)))

    for packet in found.packets:
        client = f"client (port {packet.client.rpartition(':')[2]})" if len(clients) > 1 else "client"
        way = (client, "FreeSWITCH") if packet.from_client else ("FreeSWITCH", client)
        labels = [message.label for message in packet.messages]
        size = f"{packet.length} bytes" if packet.length else ""
        texts = [message.text for message in packet.messages if message.text]
        add(packet.when_ns, way, [packet.flags, *labels, size, "sent again" if packet.again else ""], texts)
    for step in found.steps:
        if step.kind in (StepKind.KILL, StepKind.DETECTED, StepKind.EVENT, StepKind.REPORT):
            places = list(dict.fromkeys((names[step.source], names[step.target])))
            add(step.when_ns, places, [step.label, step.note], [step.text] if step.text else [])
    return [line for _, line in sorted(lines, key=lambda entry: entry[0])]


def _stages(found: Ladder) -> list[tuple[str, float]]:
    """Return how the time from the kill to the report was spent; nothing if there was no kill or no report."""
    marks = [("", found.killed_ns), ("SIGKILL to FIN or RST on the wire", found.end_ns)]
    for kind, name in (
        (StepKind.DETECTED, "until FreeSWITCH has noticed it"),
        (StepKind.REPORT, "until the event is here"),
    ):
        marks.append((name, next((step.when_ns for step in found.steps if step.kind is kind), None)))
    stages = []
    for (_, before), (name, after) in itertools.pairwise(marks):
        if before is None or after is None or after < before:
            return []
        stages.append((name, (after - before) / 1e6))
    return stages


def _latency(run: Run, pictures: Sequence[LadderDiagram]) -> Latency:
    delays: dict[str, list[float]] = {}
    variants = {result.variant for result in run.results if result.delay_ms is not None}
    for result in run.results:
        if result.delay_ms is not None:
            label = " ".join(part for part in (result.variant if len(variants) > 1 else "", result.transport) if part)
            delays.setdefault(label or result.variant, []).append(result.delay_ms)
    if not delays:
        return Latency(problem="No report came, so there is no delay to show.")
    try:
        series = [DelaySeries(label, found) for label, found in delays.items()]
        rows = [
            Stages(f"{picture.result.name}, {picture.result.variant}", picture.stages)
            for picture in pictures
            if picture.stages
        ]
        svg = caption = ""
        distributed = sum(map(len, delays.values())) >= DISTRIBUTION
        if distributed:
            svg = latency.distribution(series)
            caption = "In how many of the cases all reports had come after so many milliseconds."
        elif rows:
            svg = latency.timeline(rows)
            caption = "From SIGKILL to the event at the subscriber."
        return Latency(svg, series, rows, caption, distributed)
    except Exception as error:  # Nor must a plot.
        return Latency(problem=f"can't be drawn: {type(error).__name__}: {error}")


def _after(found: Ladder, when_ns: int) -> str:
    """Return the time since the kill, "" if it was before."""
    killed_ns = found.killed_ns
    return f"+{_ms(when_ns - killed_ns)}" if killed_ns is not None and when_ns >= killed_ns else ""


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.2f}" if abs(nanoseconds) < 1e9 else f"{nanoseconds / 1e6:.0f}"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
