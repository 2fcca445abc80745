"""The events of a FreeSWITCH as headers, for tests that look at all of them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from scripts.bench.stream import Esl, frame, parse_headers
from scripts.freeswitch.recorder import ESL_PORT
from scripts.scenario.lab import Lab
from tests.conftest import PATIENCE

Headers = dict[str, str]


class EventStream:
    """The events of a lab's FreeSWITCH that `wanted` names, as the command `event plain` takes it; `came` has them."""

    def __init__(self, lab: Lab, wanted: str) -> None:
        self.came: list[Headers] = []
        self._esl = Esl(lab.freeswitch.address, ESL_PORT, lab.password)
        self._esl.command(f"event plain {wanted}")
        self._esl.sock.settimeout(None)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        data, position = b"", 0
        # It is closed with something unread.
        with contextlib.suppress(ConnectionResetError):
            while more := self._esl.sock.recv(1 << 16):
                data, position = data[position:] + more, 0
                while found := frame(data, position):
                    headers, start, position = found
                    if headers.get("Content-Type") == "text/event-plain":
                        self.came.append(parse_headers(data[start:position].partition(b"\n\n")[0]))

    def close(self) -> None:
        self._esl.sock.shutdown(socket.SHUT_RDWR)

    def wait(self, done: Callable[[], object], patience: float = PATIENCE) -> bool:
        """Wait until `done` returns something true; False if it doesn't in so many seconds."""
        deadline = time.monotonic() + patience
        while not done() and time.monotonic() < deadline:
            time.sleep(0.01)
        return bool(done())
