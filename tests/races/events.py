"""The events of a FreeSWITCH, and what its registrar has."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable
from xml.etree import ElementTree

from scripts.bench.stream import Esl, frame, parse_headers
from scripts.freeswitch.events import REGISTER, UNREGISTER
from scripts.freeswitch.recorder import ESL_PORT
from scripts.scenario.lab import DOMAIN, Lab

TRUNK = "sofia::tp_error_trunk"
# The headers of an event that are looked at.
SEQUENCE, PORT, LEFT = "Event-Sequence", "network-port", "registrations-left"

Headers = dict[str, str]


class EventLog:
    """The events of a FreeSWITCH, by Call-ID, and its API; parsed only when they are asked for."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._esl = Esl(lab.freeswitch.address, ESL_PORT, lab.password)
        self._esl.command(f"event plain CUSTOM {lab.settings.esl_event} {REGISTER} {UNREGISTER} {TRUNK}")
        self._commands = Esl(lab.freeswitch.address, ESL_PORT, lab.password, timeout=120)
        self._lock = threading.Lock()
        self._data = bytearray()
        self.error: Exception | None = None
        self.by_call: dict[str, list[Headers]] = {}
        # By profile, transport and port of the far end.
        self.trunks: dict[tuple[str, str, str], list[Headers]] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._esl.sock.settimeout(None)
        try:
            while data := self._esl.sock.recv(1 << 18):
                with self._lock:
                    self._data += data
        except OSError as error:
            self.error = error

    def close(self) -> None:
        for esl in (self._esl, self._commands):
            with contextlib.suppress(OSError):
                esl.sock.shutdown(socket.SHUT_RDWR)
            esl.sock.close()
        self._thread.join(5)

    def update(self) -> int:
        """File what has come since the last time; return how many events that were."""
        with self._lock:
            data = bytes(self._data)
        position = count = 0
        while found := frame(data, position):
            headers, start, position = found
            if headers.get("Content-Type") == "text/event-plain":
                event = parse_headers(data[start:position].partition(b"\n\n")[0])
                key = event.get("call-id", "")
                if event.get("Event-Subclass") == TRUNK:
                    place = (event.get("profile-name", ""), event.get("transport", ""), event.get(PORT, ""))
                    self.trunks.setdefault(place, []).append(event)
                else:
                    self.by_call.setdefault(key, []).append(event)
                count += 1
        with self._lock:
            del self._data[:position]
        return count

    def of(self, calls: Iterable[str]) -> list[Headers]:
        """Return the events of these Call-IDs in their order."""
        found = (event for call in calls for event in self.by_call.get(call, ()))
        return sorted(found, key=lambda event: int(event[SEQUENCE]))

    def api(self, command: str) -> str:
        return self._commands.command(f"api {command}")

    def rows(self, profile: str) -> dict[str, list[Headers]]:
        """Return what is registered in `profile`, by Call-ID."""
        found: dict[str, list[Headers]] = {}
        text = self.api(f"sofia xmlstatus profile {profile} reg").strip()
        for node in ElementTree.fromstring(text).iterfind("registrations/registration"):
            row = {child.tag: child.text or "" for child in node}
            found.setdefault(row["call-id"], []).append(row)
        return found

    def flush(self, profile: str) -> None:
        """Remove what is registered in `profile`."""
        # Of the domain: without an argument it would take the nonces, too, and only later.
        self.api(f"sofia profile {profile} flush_inbound_reg {DOMAIN}")
