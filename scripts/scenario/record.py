"""What the cases of a table came to on one image."""

from __future__ import annotations

import contextlib
import importlib.metadata
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import docker
from docker.errors import APIError
from requests.exceptions import RequestException

from scripts.errors import ToolkitError
from scripts.freeswitch.capture import Capture, Sniffer
from scripts.freeswitch.container import ANSI
from scripts.freeswitch.events import delay_ms, parse
from scripts.freeswitch.packets import has_end
from scripts.freeswitch.recorder import ESL_PORT
from scripts.image import provenance
from scripts.machine import engine
from scripts.pins.settings import Settings
from scripts.scenario import judge, outcome, player
from scripts.scenario.lab import Lab
from scripts.scenario.outcome import Image, Result, Run, Verdict
from scripts.scenario.player import Player
from scripts.scenario.table import PATCHED, Case, Scenario

# Lines of a log that go into the report of a case that failed.
EXCERPT = 60
# Seconds by which tcpdump may lag behind.
CAPTURE_LAG = 10.0
# Several connections have no one end that a delay could begin at.
MANY = ("storm", "fin_all")


class Lost(ToolkitError):
    """The FreeSWITCH that the cases are played against is gone."""


@dataclass
class Record:
    """The results of the cases of `scenario` on one image; `name` is what the report calls it.

    Cases may be noted in several threads. `compared` is what plays against stock
    with tcp-unreg-on-socket-close, whose unregisters count as reports.
    """

    scenario: Scenario
    name: str = PATCHED
    compared: bool = False
    started: datetime = field(default_factory=lambda: datetime.now().astimezone())
    results: dict[Case, Result] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    subclass: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def case(self, lab: Lab, case: Case) -> Iterator[Player]:
        """Note what comes of `case`, whatever it is; hand over who plays it.

        Raises what was raised; Lost if FreeSWITCH is gone.
        """
        with self._lock:
            self.note_lab(lab)
        play = Player(lab, case, stock=self.compared)
        began_ns = time.time_ns()
        verdict, problems = Verdict.PASSED, []
        with _captured(lab, case) as sniffer:
            try:
                yield play
                if problems := player.problems(case, play.stages) if not self.compared else []:
                    verdict = Verdict.FAILED
            except (KeyboardInterrupt, SystemExit):
                raise
            except Exception as error:
                verdict, problems = Verdict.ERROR, [player.located(case, play.step, _said(error))]
                if death := _death(lab):
                    problems = [f"{death} (case '{case.name}')"]
                    raise Lost(problems[0]) from error
                raise
            finally:
                if not lab.freeswitch.halt.is_set():
                    self.results[case] = self._result(lab, play, verdict, problems, began_ns, sniffer)

    def skip(self, case: Case, why: str) -> None:
        """Note that this machine lacks what `case` needs."""
        self.results[case] = replace(self._unplayed(case, why), verdict=Verdict.SKIPPED)

    def note(self, case: Case, verdict: Verdict, **changes: Any) -> None:
        """Change the verdict on `case` and other fields of its result."""
        self.results[case] = replace(self.results[case], verdict=verdict, **changes)

    def fill(self, cases: Iterable[Case], why: str) -> None:
        """Add those of `cases` that have not been run because of `why`, and put all into the order of `cases`."""
        self.results = {case: self.results.get(case) or self._unplayed(case, why) for case in cases}

    def run(self) -> Run:
        """Return what the report is made of."""
        return Run(
            self.started,
            self.images,
            self.versions,
            list(self.results.values()),
            name=self.scenario.report,
            subclass=self.subclass,
        )

    def _unplayed(self, case: Case, why: str) -> Result:
        return Result(self.name, case.name, "", _expected(case), "", Verdict.NOT_RUN, [why], **self._where(case))

    def _where(self, case: Case) -> dict[str, Any]:
        """Return what tells the results of a row's cases apart, and what is done in them."""
        found: dict[str, Any] = {} if case.done else {"steps": case.steps}
        return {**found, "profile": case.profile, "transport": case.transport} if self.scenario.several else found

    def note_lab(self, lab: Lab) -> None:
        """Note what the cases are played against."""
        if not self.images:
            container = lab.freeswitch.container
            self.images.append(Image(self.name, lab.image, container.image.id, container.image.labels))
            self.versions |= versions(lab.settings, lab.client, container.image.labels)
            self.versions[f"freeswitch ({self.name})"] = lab.freeswitch.version()
            self.subclass = lab.freeswitch.subclass

    def _result(
        self,
        lab: Lab,
        play: Player,
        verdict: Verdict,
        problems: list[str],
        began_ns: int,
        sniffer: Sniffer | None,
    ) -> Result:
        case, stages = play.case, play.stages
        self.versions |= lab.versions
        capture = _capture(lab, play, sniffer, began_ns) if sniffer else None
        ended_ns = time.time_ns()
        measured = [stage for stage in stages if stage.step.split()[0] not in MANY]
        delays = [arrival * 1e3 for stage in measured for arrival in stage.arrivals]
        logs = (
            self._logs(lab, [one.log for one in play.sipps.values()], began_ns)
            if verdict in (Verdict.FAILED, Verdict.ERROR)
            else {}
        )
        expected = outcome.counted(
            sum(len(stage.expected.reports) for stage in stages),
            sum(len(stage.expected.unregisters) + len(stage.expected.itself) for stage in stages),
        )
        came = outcome.counted(
            sum(stage.reports for stage in stages),
            sum(stage.unregisters - stage.unasked + stage.itself for stage in stages),
        )
        if verdict is Verdict.ERROR:
            # A step may have had no chance to come to anything.
            expected = _expected(case)
        return Result(
            self.name,
            case.name,
            case.done,
            expected,
            came,
            verdict,
            problems,
            delay_ms=max(delays, default=None),
            timings=_timings(play),
            seconds=(ended_ns - began_ns) / 1e9,
            events=play.events() if capture or logs else (),
            logs=logs,
            capture=capture,
            **self._where(case),
        )

    def _logs(self, lab: Lab, played: Sequence[str], began_ns: int) -> dict[str, str]:
        """Return the ends of the logs: of SIPp's, the files `played`, and of what FreeSWITCH printed meanwhile."""
        switch, found = lab.freeswitch, {}
        try:
            with self._lock:
                switch.keep_log()
                printed = switch.container.logs(since=began_ns // 10**9, tail=EXCERPT)
            found[f"{switch.variant}-freeswitch.log"] = _end(printed)
        except (APIError, RequestException, ToolkitError):
            # It is gone, and its death has kept what there was.
            with contextlib.suppress(OSError):
                found[f"{switch.variant}-freeswitch.log"] = _end(
                    (switch.logs / f"{switch.variant}-freeswitch.log").read_bytes()
                )
        for name in played:
            with contextlib.suppress(OSError):
                found = {name: _end((switch.logs / name).read_bytes()), **found}
        return found


def versions(settings: Settings, client: docker.DockerClient, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of what a run stands on, and of what an image with `labels` is made of."""
    return {
        **provenance.upstreams(settings, labels),
        **engine.versions(client),
        "genesis": importlib.metadata.version("genesis"),
    }


def _expected(case: Case) -> str:
    """Return what must come of `case`, counted."""
    wanted = case.outcomes
    return outcome.counted(
        sum(len(judge.aliases(one.alias)) for one in wanted if one.kind in ("report", "registered")),
        sum(len(judge.aliases(one.alias)) for one in wanted if one.kind in ("unregistered", "itself")),
    )


def _said(error: Exception) -> str:
    if isinstance(error, APIError):
        return f"Docker refused: {engine.brief(error)}"
    return " ".join(str(error).split())[:600] or type(error).__name__


def _death(lab: Lab) -> str | None:
    """Return how FreeSWITCH died, None if it lives."""
    with contextlib.suppress(APIError, RequestException):
        return lab.freeswitch.death()
    return None


def _end(log: bytes) -> str:
    lines = ANSI.sub("", log.decode(errors="replace")).splitlines()
    return "\n".join(line.rstrip() for line in lines[-EXCERPT:])


def _timings(play: Player) -> dict[str, float]:
    """Return the milliseconds between kill, detection and arrival."""
    reports = [event for event in play.events() if event.subclass == play.switch.subclass]
    if play.killed_ns is None or not reports:
        return {}
    timings = {"kill_to_event": (reports[0].arrived_ns - play.killed_ns) / 1e6}
    with contextlib.suppress(ToolkitError):
        timings["detected_to_event"] = delay_ms(parse(reports[0]), reports[0].arrived_ns)
    return {key: round(value, 3) for key, value in timings.items()}


@contextlib.contextmanager
def _captured(lab: Lab, case: Case) -> Iterator[Sniffer | None]:
    """Capture what goes over the wire if `case` wants it."""
    if not case.capture:
        yield None
        return
    container = lab.freeswitch.container
    sniffer = Sniffer(
        lab.client,
        f"{lab.settings.image}:sipp",
        container,
        f"tcp and host {lab.freeswitch.address} and not port {ESL_PORT}",
        f"{container.name}-capture",
        lab.labels,
    )
    try:
        sniffer.start()
        yield sniffer
    finally:
        sniffer.remove()


def _capture(lab: Lab, play: Player, sniffer: Sniffer, began_ns: int) -> Capture:
    """Read the capture, on a busy machine again until the client's end is in it."""
    deadline = time.monotonic() + CAPTURE_LAG
    registered = play.last_registration()
    while True:
        pcap, problem = sniffer.read()
        capture = Capture(
            play.case.transport,
            lab.freeswitch.address,
            registered.get("network-ip") if registered and play.sipps else "",
            began_ns,
            time.time_ns(),
            play.killed_ns,
            pcap,
            problem,
        )
        complete = not registered or bool(capture.problem) or has_end(capture)
        if complete or time.monotonic() >= deadline:
            return capture
        time.sleep(0.2)


def together(first: Record, *others: Record) -> Run:
    """Return what the report on several records is made of, side by side."""
    run = first.run()
    for other in others:
        run = replace(
            run,
            images=[*run.images, *other.images],
            versions={**other.versions, **run.versions},
            results=[*run.results, *other.results.values()],
            subclass=run.subclass or other.subclass,
        )
    return run
