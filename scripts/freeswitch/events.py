"""Events of a running FreeSWITCH, over its event socket (ESL)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

from genesis import ESLEvent, Inbound
from genesis.exceptions import AuthenticationError, GenesisError
from genesis.parser import parse_headers

from scripts.errors import ToolkitError
from scripts.machine.terminal import printable

# genesis logs to stdout, in the middle of the events; what goes wrong on a
# connection comes out as an exception here instead.
_log = logging.getLogger("genesis.logger")
_log.handlers = [logging.NullHandler()]
_log.propagate = False

REGISTER = "sofia::register"
UNREGISTER = "sofia::unregister"
EXPIRE = "sofia::expire"

# What FreeSWITCH writes for a header whose value is empty.
UNDEFINED = "_undef_"
# The first microsecond of the year 9999: what is later, Python can't say in every time zone.
LATEST_US = 253_370_764_800_000_000
# A call's event with all its variables has a few hundred lines, of less than 100 KB.
MOST_HEADERS, LONGEST_HEADERS, LONGEST_EVENT = 4000, 1 << 20, 1 << 26
# In a row: between messages there is none, or one or two.
MOST_BLANK_LINES = 100
# How long reading messages that are already there may keep all else (a timeout, say) waiting, seconds.
TURN = 0.1
# What is registered in a large cluster.
LONGEST_ANSWER = 1 << 30
# In the content of messages of all other types genesis looks for headers, and of this one for nothing else.
BARE, PLAIN = frozenset({"api/response", "text/rude-rejection", "log/data"}), "text/event-plain"
TRANSPORTS = frozenset({"tcp", "tls", "ws", "wss"})
CLOSE_CAUSES = frozenset({"peer-closed", "reset", "timeout", "send-error", "tls-error", "protocol-error", "local"})

Headers = Mapping[str, str | list[str]]


class Unreachable(ToolkitError):
    """Nothing answers as an event socket at the address."""


class ConnectionLost(ToolkitError):
    """The event socket went away after it had been in use."""


@dataclass(frozen=True)
class Event:
    """One event with its decoded headers and the moment it arrived.

    `arrived_ns` is nanoseconds since the epoch on this machine's clock. A
    header that came more than once is a list.
    """

    headers: Headers
    arrived_ns: int

    @property
    def subclass(self) -> str:
        return self.get("Event-Subclass")

    def get(self, name: str) -> str:
        """Return the header's value, "" if it's missing, empty or ambiguous."""
        value = self.headers.get(name)
        return value if isinstance(value, str) and value != UNDEFINED else ""


class _Inbox(asyncio.Queue[ESLEvent]):
    """The queue between genesis's reader and its dispatcher.

    Stamping here is closest to the socket. It's also the one place that sees
    everything: the dispatcher drops what is still queued when the connection
    ends, and offers a handler no rejection by the ACL.
    """

    def __init__(self, received: asyncio.Queue[Event | None]) -> None:
        super().__init__()
        self.received = received
        self.rejected = False

    def put_nowait(self, item: ESLEvent) -> None:
        arrived_ns = time.time_ns()
        if item.get("Content-Type") == "text/rude-rejection":
            self.rejected = True
        elif "Event-Name" in item:
            headers = {key: value for key, value in item.items() if key not in ("Content-Length", "Content-Type")}
            self.received.put_nowait(Event(headers, arrived_ns))
        super().put_nowait(item)


class _BoundedReader:
    """What FreeSWITCH sends, as genesis can take it.

    Bytes that are no UTF-8 come out as U+FFFD: what a client calls itself need
    not be UTF-8, and stands in what FreeSWITCH lists as it came; genesis ends
    the connection there. It also takes apart any number of headers, in a time
    that grows with their square, and so for each line that continues one.
    FreeSWITCH sends neither, nor blank lines without end, each two of which are an
    empty message: it raises ValueError, and `excess` says what it was.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        # The headers of the message that is being read, and the type of the last one.
        self._head = ""
        self._lines = 0
        self._type = ""
        self._blank = 0
        self._turn = time.monotonic()
        self.excess = ""

    async def readline(self) -> bytes:
        # A read of what is already there lets nothing else run.
        if not self._head and time.monotonic() - self._turn > TURN:
            await asyncio.sleep(0)
            self._turn = time.monotonic()
        text = (await self._reader.readline()).decode("utf-8", "replace")
        self._blank = 0 if text.strip() else self._blank + 1
        if self._blank > MOST_BLANK_LINES:
            self._refuse(f"more than {MOST_BLANK_LINES} blank lines in a row")
        before, self._head = self._head, self._head + text
        # Just where genesis sees the end.
        if self._head.endswith(("\n\n", "\r\n\r\n")):
            self._type = str(parse_headers(self._head).get("Content-Type", ""))
            self._head, self._lines = "", 0
        elif before or text.strip():
            self._lines += self._headers(text)
            self._limit(self._lines, len(self._head))
        return text.encode()

    async def readexactly(self, count: int) -> bytes:
        limit = LONGEST_ANSWER if self._type in BARE else LONGEST_EVENT
        if count > limit:
            self._refuse(f"a message of {count} bytes")
        text = (await self._reader.readexactly(count)).decode("utf-8", "replace")
        if self._type not in BARE:
            headers, end, _ = text.partition("\n\n")
            if end or self._type == PLAIN:
                self._limit(self._headers(headers), len(headers))
        return text.encode()

    def _headers(self, text: str) -> int:
        """Return how many headers there are in `text`; refuse a line that continues one."""
        lines = text.splitlines()
        if not all(": " in line for line in lines):
            self._refuse("a header of more than one line")
        return len(lines)

    def _limit(self, lines: int, size: int) -> None:
        if lines > MOST_HEADERS or size > LONGEST_HEADERS:
            self._refuse(f"a message with more than {MOST_HEADERS} headers, or {LONGEST_HEADERS} bytes of them")

    def _refuse(self, excess: str) -> NoReturn:
        self.excess = excess
        raise ValueError(excess)


class _Connection(Inbound):
    """genesis's client that also tells when the connection is over.

    On its own it waits for ever for the answer to a command, or for the login
    prompt, of a server that is gone.
    """

    def __init__(self, host: str, port: int, password: str, timeout: float) -> None:
        super().__init__(host, port, password, timeout)
        self.reader: Any
        self.received: asyncio.Queue[Event | None] = asyncio.Queue()
        self.inbox = _Inbox(self.received)
        self.events = self.inbox
        self.ended = asyncio.Event()

    async def handler(self) -> None:
        self.reader = self.reader and _BoundedReader(self.reader)
        try:
            # A message cut off in the middle is the end of the connection too.
            with contextlib.suppress(asyncio.IncompleteReadError, OSError, ValueError):
                await super().handler()
        finally:
            # Also when genesis stops on a disconnect notice: it cancels this.
            self.is_connected = False
            self.ended.set()
            self.received.put_nowait(None)


class Subscriber:
    """A logged-in event socket that receives CUSTOM events.

    An async context manager; entering it connects, logs in and subscribes to
    `subclasses`. `timeout` (seconds) holds for each of these, and for `api`.

    Entering raises Unreachable if nothing answers at `host`:`port`, and
    ToolkitError if the password is wrong or the ACL denies this host.
    """

    def __init__(self, host: str, port: int, password: str, subclasses: Iterable[str], timeout: float = 5.0) -> None:
        if not password or any(character in password for character in "\r\n"):
            raise ToolkitError(f"event socket {host}:{port}: the password is empty or has a line break")
        try:
            password.encode()
        except UnicodeEncodeError:
            raise ToolkitError(f"event socket {host}:{port}: the password is not UTF-8: give one that is") from None
        self.host = host
        self.port = port
        self.subclasses = tuple(subclasses)
        self.timeout = timeout
        self._address = f"{host}:{port}"
        self._client = _Connection(host, port, password, timeout)

    async def __aenter__(self) -> Subscriber:
        try:
            await self._connect()
            reply = await self._send(f"event plain CUSTOM {' '.join(self.subclasses)}")
        except BaseException:
            await self._client.stop()
            raise
        if not str(reply.get("Reply-Text", "")).startswith("+OK"):
            await self._client.stop()
            raise ToolkitError(f"FreeSWITCH at {self._address} refuses the subscription: {reply.get('Reply-Text')}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.stop()

    async def api(self, command: str) -> str:
        """Return the output of an API command ("status", say), unchanged.

        Raises ConnectionLost if FreeSWITCH goes away or doesn't answer in
        time; the subscriber is of no use after that.
        """
        return (await self._send(f"api {command}")).body or ""

    async def get(self, timeout: float | None = None) -> Event:
        """Return the next event, in the order of arrival.

        `timeout` is in seconds, None waits for ever. Raises TimeoutError if
        none came, and ConnectionLost once the connection is over and all that
        had come before is handed out.
        """
        async with asyncio.timeout(timeout):
            event = await self._client.received.get()
        if event is None:
            self._client.received.put_nowait(None)
            raise self._lost()
        return event

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            yield await self.get()

    def _lost(self) -> ConnectionLost:
        if excess := getattr(self._client.reader, "excess", ""):
            return ConnectionLost(f"{self._address} sent {excess}: is it an event socket?")
        return ConnectionLost(f"lost the event socket at {self._address}: is FreeSWITCH still running?")

    async def _connect(self) -> None:
        start = asyncio.create_task(self._client.start())
        try:
            await self._race(start)
            await start
        except AuthenticationError:
            raise ToolkitError(
                f"FreeSWITCH at {self._address} refuses the password: pass the one in its event_socket.conf.xml, "
                "in the image ESL_PASSWORD"
            ) from None
        except TimeoutError:
            raise Unreachable(f"no answer from {self._address} in {self.timeout:g} s: is it an event socket?") from None
        except GenesisError:
            raise Unreachable(f"no answer from {self._address} in {self.timeout:g} s: is FreeSWITCH there?") from None
        except (socket.gaierror, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a name"
            raise Unreachable(f"can't find {self._address}: {reason}: check the name of the host") from None
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise Unreachable(
                f"can't connect to {self._address}: {reason}: is FreeSWITCH running, is its event socket there?"
            ) from None

    async def _race(self, start: asyncio.Task[None]) -> None:
        """Wait until the login is done; raise if the connection ends instead."""
        ended = asyncio.create_task(self._client.ended.wait())
        try:
            done, _ = await asyncio.wait({start, ended}, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            if start in done:
                return
            if not done:
                raise TimeoutError
            # The refusal of a login is followed at once by the end.
            done, _ = await asyncio.wait({start}, timeout=0.2)
            if start in done and start.exception():
                return
        finally:
            ended.cancel()
            start.cancel()
            await asyncio.wait({start})
        if self._client.inbox.rejected:
            raise ToolkitError(
                f"the ACL of FreeSWITCH at {self._address} denies this host: add its network to apply-inbound-acl "
                "in event_socket.conf.xml, in the image to ESL_ACL"
            )
        excess = getattr(self._client.reader, "excess", "")
        did = f"sent {excess}" if excess else "closed the connection before the login"
        raise Unreachable(f"{self._address} {did}: is it an event socket?")

    async def _send(self, command: str) -> ESLEvent:
        send = asyncio.create_task(self._client.send(command))
        ended = asyncio.create_task(self._client.ended.wait())
        try:
            done, _ = await asyncio.wait({send, ended}, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            if send in done:
                return send.result()
        except (GenesisError, OSError):
            raise self._lost() from None
        finally:
            for task in (send, ended):
                task.cancel()
        if done:
            raise self._lost()
        # Its answer may still come, and would be taken for the next one's.
        await self._client.stop()
        raise ConnectionLost(f"FreeSWITCH at {self._address} didn't answer '{command}' in {self.timeout:g} s")


@dataclass(frozen=True)
class TpErrorReport:
    """A dead connection of a registered client, as mod_sofia reports it.

    `error_code` is an errno, 0 for an orderly close; `registrations_left`
    counts the user's other registrations, 0 means offline. `connected_at` and
    `registered_at` are seconds, `detected_at_us` microseconds since the epoch.
    `calls` counts the user's calls over the connection, and `call_uuids` has
    their UUIDs: none where the profile ignores them.
    """

    profile_name: str
    from_user: str
    from_host: str
    contact: str
    call_id: str
    user_agent: str
    network_ip: str
    network_port: int
    transport: str
    error_code: int
    error_name: str
    error_phrase: str
    registrations_left: int
    close_cause: str
    connected_at: int
    registered_at: int
    detected_at_us: int
    calls: int
    call_uuids: tuple[str, ...]

    @property
    def offline(self) -> bool:
        return self.registrations_left == 0


def parse(event: Event) -> TpErrorReport:
    """Return the report that `event` carries.

    Raises ToolkitError if a header is missing or has a value that it can't
    have.
    """
    report = TpErrorReport(
        profile_name=_text(event, "profile-name"),
        from_user=_text(event, "from-user"),
        from_host=_text(event, "from-host"),
        contact=_text(event, "contact"),
        call_id=_text(event, "call-id"),
        user_agent=_text(event, "user-agent", optional=True),
        network_ip=_text(event, "network-ip"),
        network_port=_number(event, "network-port"),
        transport=_choice(event, "transport", TRANSPORTS),
        error_code=_number(event, "error-code"),
        error_name=_text(event, "error-name"),
        error_phrase=_text(event, "error-phrase", optional=True),
        registrations_left=_number(event, "registrations-left"),
        close_cause=_choice(event, "close-cause", CLOSE_CAUSES),
        connected_at=_number(event, "connected-at"),
        registered_at=_number(event, "registered-at"),
        detected_at_us=_number(event, "detected-at-us"),
        calls=_number(event, "calls") if event.get("calls") else 0,
        call_uuids=_list(event, "call-uuids"),
    )
    if len(report.call_uuids) != report.calls:
        raise _bad(event, "call-uuids", f"doesn't go with calls {report.calls}")
    if not 0 < report.network_port < 65536:
        raise _bad(event, "network-port", "is not a port")
    if report.detected_at_us >= LATEST_US:
        raise _bad(event, "detected-at-us", "is after the year 9998")
    if (report.error_code == 0) != (report.error_name == "NONE"):
        raise _bad(event, "error-name", f"doesn't go with error-code {report.error_code}")
    return report


class Order:
    """Tells whether an event of a user has been overtaken by a later one.

    FreeSWITCH numbers events as it makes them (Event-Sequence), and may deliver
    them in another order. Remembers the last `limit` users.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._core = ""
        self._last: OrderedDict[tuple[str, str, str], tuple[int, str]] = OrderedDict()

    def later(self, event: Event) -> str:
        """Note `event`; return the subclass of a later one of its user that came before it, "" if none did."""
        number = event.get("Event-Sequence")
        if not (number.isascii() and number.isdigit() and len(number) <= 20):
            return ""
        if (core := event.get("Core-UUID")) != self._core:
            # Another FreeSWITCH, or the same one started again, counts from 1.
            self._core = core
            self._last.clear()
        user = (
            event.get("profile-name"),
            event.get("from-user") or event.get("user"),
            event.get("from-host") or event.get("host"),
        )
        sequence, subclass = self._last.get(user, (0, ""))
        if int(number) < sequence:
            return subclass
        self._last[user] = int(number), event.subclass
        self._last.move_to_end(user)
        if len(self._last) > self._limit:
            self._last.popitem(last=False)
        return ""


def _bad(event: Event, name: str, what: str) -> ToolkitError:
    return ToolkitError(
        f"event {printable(event.subclass) or '(no subclass)'}: header {name} '{printable(event.get(name))}' {what}"
    )


def _text(event: Event, name: str, optional: bool = False) -> str:
    value = event.headers.get(name)
    if value is None:
        raise ToolkitError(
            f"event {event.subclass or '(no subclass)'} has no header {name}: does the patch series match?"
        )
    if not isinstance(value, str):
        raise ToolkitError(f"event {event.subclass} has {len(value)} headers {name} instead of one")
    text = event.get(name)
    if not text and not optional:
        raise _bad(event, name, "is empty")
    return text


def _list(event: Event, name: str) -> tuple[str, ...]:
    """Return the values of a header, which FreeSWITCH writes as one if there are several."""
    value = event.get(name) or ""
    return tuple(filter(None, value.removeprefix("ARRAY::").split("|:")))


def _number(event: Event, name: str) -> int:
    text = _text(event, name)
    # Longer ones are no time, no port and no number of anything.
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise _bad(event, name, "is not a whole number")
    return int(text)


def _choice(event: Event, name: str, known: frozenset[str]) -> str:
    text = _text(event, name)
    if text not in known:
        raise _bad(event, name, f"is not one of {', '.join(sorted(known))}")
    return text


def delay_ms(report: TpErrorReport, arrived_ns: int) -> float:
    """Return the milliseconds from the detection to the arrival.

    FreeSWITCH's clock and this machine's: on two machines their difference is
    in it, and it can be negative.
    """
    return arrived_ns / 1e6 - report.detected_at_us / 1e3


def as_json(event: Event) -> dict[str, Any]:
    """Return the event with all its headers for a JSON file."""
    return {"arrived_ns": event.arrived_ns, "headers": dict(event.headers)}
