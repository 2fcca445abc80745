"""A scenario, played on its images."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import docker
from docker.errors import APIError, DockerException, NotFound
from requests.exceptions import RequestException

from scripts.errors import Terminated, ToolkitError
from scripts.freeswitch.events import REGISTER, UNREGISTER
from scripts.machine import engine
from scripts.machine.terminal import ProgressDisplay, TaskProgress
from scripts.pins.settings import Settings
from scripts.scenario import check, ensemble, lab, player, record
from scripts.scenario.lab import RUN_LABEL, Lab
from scripts.scenario.outcome import Image, Result, Run
from scripts.scenario.record import Lost, Record
from scripts.scenario.table import Case, Scenario

# The image that SIPp and tcpdump are in.
SIPP = "sipp"
# What breaks a run off, and what it is called.
SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}


class Interrupted(ToolkitError):
    """The run was broken off by a signal."""


@dataclass
class Break:
    """SIGINT, SIGTERM and SIGHUP, caught in its context: the first sets `event`, which ends what waits.

    More do nothing, and a SIGHUP that is ignored (nohup) stays so.
    """

    event: threading.Event = field(default_factory=threading.Event)
    number: signal.Signals | None = None

    @property
    def name(self) -> str:
        """What the first signal is called, "" if none came."""
        return SIGNALS[self.number] if self.number else ""

    def __enter__(self) -> Break:
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        caught = [one for one in SIGNALS if _is_main() and not (one is signal.SIGHUP and ignored)]
        self._old = {number: signal.signal(number, self._caught) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def error(self, *before: str) -> Interrupted:
        """Return what to raise after a signal; `before` is what had failed already."""
        assert self.number
        error = Interrupted("; ".join([*before, f"verification broken off by {self.name}"]))
        error.__cause__ = KeyboardInterrupt() if self.number is signal.SIGINT else Terminated(self.number)
        return error

    def _caught(self, number: int, _: object) -> None:
        self.number = self.number or signal.Signals(number)
        self.event.set()


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def run(
    settings: Settings,
    scenario: Scenario,
    logs: Path,
    work: ProgressDisplay,
    stopped: Break,
    variants: Sequence[str] = (),
) -> tuple[Run, ToolkitError | None]:
    """Play `scenario` on its images, or those of `variants`; return what came, and what broke it off.

    Logs of what went wrong go to `logs`. `stopped` breaks it off. Containers
    and networks are removed in any case; the error says what could not be.
    """
    check.check(scenario, player.VERBS)
    # A log must not be taken for this run's.
    shutil.rmtree(logs, ignore_errors=True)
    failure: ToolkitError | None = None
    with engine.connect() as client:
        this = _Session(settings, scenario, logs, work, client, stopped)
        for variant in variants or scenario.images:
            this.add(variant)
        try:
            this.find_images()
            this.play()
        except ToolkitError as error:
            failure = error
        except (DockerException, RequestException) as error:
            failure = ToolkitError(f"Docker failed in the middle of the verification: {engine.failure(error)}")
        finally:
            left = sweep(client, this.id)
        outcome = this.outcome(str(failure or "broken off"))
    if left and failure:
        failure = _longer(failure, *left)
    elif left:
        failure = ToolkitError(left[0])
    return outcome, failure


def _longer(error: ToolkitError, *more: str) -> ToolkitError:
    longer = type(error)("; ".join([str(error), *more]))
    longer.__cause__ = error
    return longer


@dataclass
class _Part:
    """What is played on one image with one number of CPUs."""

    variant: str
    cpus: int
    cases: list[Case]
    record: Record


@dataclass
class _Session:
    """One run of a scenario, with an identifier that marks all that it makes."""

    settings: Settings
    scenario: Scenario
    logs: Path
    work: ProgressDisplay
    client: docker.DockerClient
    stopped: Break
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    parts: list[_Part] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def add(self, variant: str) -> None:
        """Let the cases be played on the image `variant`, with each number of CPUs."""
        for cpus in self.scenario.cpus or (0,):
            name = f"{variant}, {cpus} CPUs" if cpus else variant
            self.parts.append(_Part(variant, cpus, self.scenario.cases(variant), Record(self.scenario, name)))

    def find_images(self) -> None:
        """Note the images; raise ToolkitError if one is missing."""
        for variant in (*dict.fromkeys(part.variant for part in self.parts), SIPP):
            tag = f"{self.settings.image}:{variant}"
            try:
                image = self.client.images.get(tag)
            except NotFound:
                raise ToolkitError(f"there is no image {tag}: `inv build` makes it") from None
            names = [part.record.name for part in self.parts if part.variant == variant] or [variant]
            self.images += [Image(name, tag, image.id, image.labels) for name in names]
            self.versions |= record.versions(self.settings, self.client, image.labels)

    def play(self) -> None:
        """Play all parts, those without CPUs of their own at the same time: most of a case is waiting."""
        together = 1 if self.scenario.cpus else len(self.parts)
        with ThreadPoolExecutor(together, "image") as pool:
            futures = [pool.submit(self._begin, part) for part in self.parts]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((error for future in done if (error := future.exception())), None)
            if failed:
                # The others end at once.
                self.stopped.event.set()
        if self.stopped.name:
            raise self.stopped.error()
        if failed:
            raise failed

    def _begin(self, part: _Part) -> None:
        """Play `part`, unless the run has been broken off before it."""
        if not self.stopped.event.is_set():
            self._part(part)

    def _part(self, part: _Part) -> None:
        with (
            tempfile.TemporaryDirectory() as directory,
            self.work.task(part.record.name, len(part.cases) if self.scenario.several else None) as shown,
        ):
            shown.say("starting FreeSWITCH")
            started = lab.start(
                self.settings,
                self.scenario,
                Path(directory),
                part.variant,
                cpus=part.cpus,
                run=self.id,
                logs=self.logs,
                halt=self.stopped.event,
                subclasses=(self.settings.esl_event, REGISTER, UNREGISTER),
                image=next(str(image.id) for image in self.images if image.variant == part.record.name),
            )
            with contextlib.suppress(KeyboardInterrupt), started as place:
                part.record.note_lab(place)
                self._cases(part, place, shown)

    def _cases(self, part: _Part, place: Lab, shown: TaskProgress) -> None:
        halted = threading.Event()

        def act(case: Case) -> None:
            if self.stopped.event.is_set() or halted.is_set():
                raise KeyboardInterrupt
            if not self.scenario.several:
                shown.say(case.name)
            try:
                play(place, part.record, case)
            except Lost:
                halted.set()
                raise
            shown.advance()

        with ensemble.play(part.cases, act) as outcomes:
            for future in outcomes.values():
                with contextlib.suppress(KeyboardInterrupt, CancelledError):
                    error = future.exception()
                    # Of what a client runs into, its result tells.
                    if isinstance(error, Lost | DockerException | RequestException) and not isinstance(error, APIError):
                        raise error

    def outcome(self, why: str) -> Run:
        """Return what came; cases that were not played, were not because of `why`."""
        results: list[Result] = []
        for part in self.parts:
            part.record.fill(part.cases, why)
            results += part.record.results.values()
        for part in self.parts:
            self.versions |= part.record.versions
        return Run(
            min(part.record.started for part in self.parts),
            self.images,
            self.versions,
            results,
            name=self.scenario.report,
            subclass=self.settings.esl_event,
        )


def play(place: Lab, kept: Record, case: Case) -> list[str] | None:
    """Play `case` and note what comes of it; return what was wrong, one line each, None if it can't be played here.

    Raises Lost if FreeSWITCH is gone, and what a client ran into otherwise.
    """
    if place.scenario.profile(case.profile).ipv6 and not place.freeswitch.address6:
        kept.skip(case, "this Docker engine makes no IPv6 networks")
        return None
    with kept.case(place, case) as playing:
        playing.play()
    return list(kept.results[case].problems)


def sweep(client: docker.DockerClient, run_id: str) -> list[str]:
    """Remove the run's containers and networks; return what failed, as lines."""
    try:
        engine.remove(client, f"{RUN_LABEL}={run_id}")
    except (DockerException, RequestException) as error:
        return [f"can't remove the containers of this run ({engine.brief(error)}): `inv clean --no-sources` does"]
    return []
