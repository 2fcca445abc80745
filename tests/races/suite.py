"""Plays cases against an image."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path

from scripts.pins.settings import Settings
from scripts.scenario import lab as lab_module
from tests.deaths import DEATHS
from tests.races.cases import RaceCase
from tests.races.result import RaceResult
from tests.races.runner import RaceRunner

# None of these is about the limit of requests per second, nor about a REGISTER that takes longer than a report waits:
# on a busy machine many would.
PARAMETERS = {"max-recv-requests-per-second": "0", "tp-error-wait": "60"}
# What stock offers for the purpose.
STOCK = {"tcp-unreg-on-socket-close": "true"}


class RaceSuite:
    """Plays cases against an image: those with other CPUs side by side, in labs of their own.

    A context manager; on the way out it waits for what is being played and leaves out the rest.
    """

    def __init__(
        self, settings: Settings, cases: Sequence[RaceCase], variant: str = "patched", repetitions: int = 0
    ) -> None:
        self.settings, self.variant, self.repetitions = settings, variant, repetitions
        self.futures: dict[RaceCase, Future[RaceResult]] = {case: Future() for case in cases}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._play_all, args=(cpus,)) for cpus in sorted({case.cpus for case in cases})
        ]

    def __enter__(self) -> RaceSuite:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def outcome(self, case: RaceCase) -> RaceResult:
        """Wait for what came of `case`. Raises what kept it from being played."""
        return self.futures[case].result()

    def _play_all(self, cpus: int) -> None:
        for blind in (True, False):
            cases = [case for case in self.futures if case.cpus == cpus and case.blind == blind]
            try:
                if cases and not self._stop.is_set():
                    self._play(cases, cpus, blind)
            except BaseException as error:
                for case in cases:
                    if not self.futures[case].done():
                        self.futures[case].set_exception(error)
            for case in cases:
                if not self.futures[case].done():
                    self.futures[case].set_exception(CancelledError())

    def _play(self, cases: Sequence[RaceCase], cpus: int, blind: bool) -> None:
        stock = self.variant == "stock"
        parameters = {**PARAMETERS, "accept-blind-reg": str(blind).lower(), **(STOCK if stock else {})}
        with (
            tempfile.TemporaryDirectory() as directory,
            lab_module.start(
                self.settings, DEATHS, Path(directory), self.variant, parameters=parameters, cpus=cpus
            ) as lab,
        ):
            # It would read all events a second time.
            lab.freeswitch.recorder.stop()
            engine = RaceRunner(lab, blind, stock)
            try:
                for case in cases:
                    if self._stop.is_set():
                        return
                    race = case.race
                    wanted = self.repetitions or race.repetitions_over(case.transport)
                    try:
                        outcome = engine.run(race, case.transport, max(wanted, race.least), str(case))
                        if not outcome.proves and not outcome.wrong:
                            # A process was just being started, with copies of the sockets.
                            outcome = engine.run(race, case.transport, max(wanted, race.least), f"{case}, again")
                        self.futures[case].set_result(outcome)
                    except Exception as error:
                        # The others can be played all the same.
                        self.futures[case].set_exception(error)
            finally:
                engine.close()
