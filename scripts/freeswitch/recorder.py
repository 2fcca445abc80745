"""The events of a running FreeSWITCH, all that came."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError

from scripts.freeswitch.events import ConnectionLost, Event, Subscriber

ESL_PORT = 8021
# Seconds that an answer may take: FreeSWITCH answers some commands only when all else is done.
ANSWER = 120.0
# How often who waits looks whether the run has been broken off, seconds.
LOOK = 0.5


class Recorder:
    """An event socket in a thread of its own that keeps all events that come.

    `error` is what ended it, None while it records. `halt` ends who waits for an event.
    """

    def __init__(
        self, host: str, password: str, subclasses: Sequence[str], halt: threading.Event | None = None
    ) -> None:
        self._halt = halt or threading.Event()
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self._came = threading.Condition()
        self._api = threading.Lock()
        self._subscribe = functools.partial(Subscriber, host, ESL_PORT, password, subclasses, timeout=ANSWER)
        self._loop = asyncio.new_event_loop()
        self._subscriber = self._subscribe()
        self._recording: asyncio.Task[None]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Connect and start to record.

        Raises Unreachable or ConnectionLost if FreeSWITCH doesn't answer; it may be tried again then.
        """
        self._subscriber = self._subscribe()
        self._loop.run_until_complete(self._subscriber.__aenter__())
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._recording = self._loop.create_task(self._record())
        try:
            self._loop.run_until_complete(self._recording)
        except BaseException as error:
            with self._came:
                self.error = error
                self._came.notify_all()

    async def _record(self) -> None:
        try:
            async for event in self._subscriber:
                with self._came:
                    self.events.append(event)
                    self._came.notify_all()
        finally:
            await self._subscriber.__aexit__(None, None, None)

    def stop(self) -> None:
        """End the recording; who waits for an event waits no longer."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._recording.cancel)
            self._thread.join(5)

    def api(self, command: str) -> str:
        """Return the output of an API command; one at a time, whatever thread it comes from.

        Raises ConnectionLost if FreeSWITCH is gone or does not answer.
        """
        with self._api:
            self.check()
            future = asyncio.run_coroutine_threadsafe(self._subscriber.api(command), self._loop)
            deadline = time.monotonic() + ANSWER + 10
            while True:
                try:
                    return future.result(0.5)
                except FutureTimeoutError:
                    if future.done():
                        raise
                # What an ended loop was asked it never answers.
                self.check(command)
                if time.monotonic() > deadline:
                    raise ConnectionLost(f"the event socket is gone: no answer to '{command}'")

    def check(self, command: str = "") -> None:
        """Raise ConnectionLost if the recording has ended."""
        if self.error is not None:
            reason = str(self.error) or "it was stopped"
            asked = f" (asked '{command}')" if command else ""
            raise ConnectionLost(f"the event socket is gone: {reason}{asked}") from self.error

    def wait(self, done: Callable[[Sequence[Event]], bool], timeout: float) -> bool:
        """Wait until `done` says so of all events so far; False if it didn't in `timeout` seconds.

        Raises KeyboardInterrupt if the run is broken off meanwhile.
        """
        deadline = time.monotonic() + timeout
        with self._came:
            while not self._came.wait_for(
                lambda: self.error is not None or done(self.events), max(0, min(LOOK, deadline - time.monotonic()))
            ):
                if self._halt.is_set():
                    raise KeyboardInterrupt
                if time.monotonic() >= deadline:
                    return False
            return not self.error
