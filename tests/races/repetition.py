"""One repetition of a race: its users, connections and requests, and what its events say."""

from __future__ import annotations

import errno
import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from docker.models.containers import Container

from scripts.freeswitch.events import REGISTER, UNREGISTER
from scripts.scenario.lab import DOMAIN
from tests.races.connection import FinalResponse, RaceConnection
from tests.races.events import LEFT, Headers
from tests.races.steps import AwaitResponse, NoResponse, PortInUse, Sleep, Step

# The most that lies between two things that cross, seconds.
OFFSET = 0.002


@dataclass
class DigestCredentials:
    """The credentials of one challenge of digest authentication: a nonce, and how often it has been used."""

    nonce: str
    realm: str
    password: str
    count: int = 0

    def header(self, user: str) -> str:
        self.count += 1
        cnonce, count = "c0ffee", f"{self.count:08x}"
        first, second = _md5(f"{user}:{self.realm}:{self.password}"), _md5(f"REGISTER:sip:{DOMAIN}")
        response = _md5(f"{first}:{self.nonce}:{count}:{cnonce}:auth:{second}")
        return (
            f'Authorization: Digest username="{user}", realm="{self.realm}", nonce="{self.nonce}", '
            f'uri="sip:{DOMAIN}", response="{response}", algorithm=MD5, cnonce="{cnonce}", qop=auth, nc={count}\r\n'
        )


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


@dataclass
class Repetition:
    """One repetition: its dice, connections and Call-IDs, and what it found."""

    number: int
    users: list[str]
    transport: str
    profile: str
    target: tuple[str, int]
    container: Container
    # The password, if the server asks for one.
    password: str
    dice: random.Random
    token: str
    stock: bool
    connections: list[RaceConnection] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    # How many events there were at each AwaitEvents.
    marks: list[int] = field(default_factory=list)
    # Tells of a connection that it opens while it is played.
    opened: Callable[[RaceConnection], None] = lambda connection: None
    _cseq: Counter[str] = field(default_factory=Counter)

    @property
    def user(self) -> str:
        return self.users[0]

    def open(self, count: int) -> None:
        for _ in range(count):
            self.connections.append(RaceConnection(self.transport, self.target))

    def reopen(self, connection: RaceConnection) -> RaceConnection:
        """Return a new connection with the near end of `connection`, which is closed.

        Raises PortInUse if that port is in use: another connection has got it, or a process that was just being
        started still holds a copy of the closed socket.
        """
        try:
            self.connections.append(RaceConnection(self.transport, self.target, connection.near))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise PortInUse from error
            raise
        self.opened(self.connections[-1])
        return self.connections[-1]

    def call(self) -> str:
        """Return a new Call-ID."""
        self.calls.append(f"{self.token}-{self.number}-{len(self.calls)}")
        return self.calls[-1]

    def offset(self, most: float = OFFSET) -> Sleep:
        """Return a pause of up to `most` seconds, in half of the cases none."""
        return Sleep(self.dice.choice((0, 1)) * self.dice.uniform(0, most))

    def contact(self, connection: RaceConnection, user: str = "") -> str:
        host, port = connection.near
        return f"<sip:{user or self.user}@{host}:{port};transport={connection.transport}>"

    def request(
        self,
        connection: RaceConnection,
        call: str,
        expires: int = 3600,
        user: str = "",
        contact: str = "",
        login: DigestCredentials | None = None,
        more: str = "",
    ) -> bytes:
        """Return the next REGISTER of the Call-ID `call`; `more` are further header lines."""
        user = user or self.user
        host, port = connection.near
        self._cseq[call] += 1
        cseq = self._cseq[call]
        return (
            f"REGISTER sip:{DOMAIN} SIP/2.0\r\n"
            f"Via: SIP/2.0/{connection.transport.upper()} {host}:{port};branch=z9hG4bK{call}{cseq};rport\r\n"
            "Max-Forwards: 70\r\n"
            f"From: <sip:{user}@{DOMAIN}>;tag={call}{port}\r\n"
            f"To: <sip:{user}@{DOMAIN}>\r\n"
            f"Call-ID: {call}\r\n"
            f"CSeq: {cseq} REGISTER\r\n"
            f"Contact: {contact or self.contact(connection, user)}\r\n"
            f"Expires: {expires}\r\n"
            f"{login.header(user) if login else ''}{more}"
            "User-Agent: races\r\nContent-Length: 0\r\n\r\n"
        ).encode()

    def probe(self, connection: RaceConnection) -> bytes:
        """Return a request that the stack answers itself, as soon as it has read it: see RaceConnection.read."""
        host, port = connection.near
        branch = f"z9hG4bK{self.token}{self.number}p{port}"
        return (
            f"CANCEL sip:{DOMAIN} SIP/2.0\r\n"
            f"Via: SIP/2.0/{connection.transport.upper()} {host}:{port};branch={branch};rport\r\n"
            "Max-Forwards: 70\r\n"
            f"From: <sip:probe@{DOMAIN}>;tag=p{port}\r\nTo: <sip:{DOMAIN}>\r\n"
            f"Call-ID: probe-{self.token}-{port}\r\nCSeq: 1 CANCEL\r\nContent-Length: 0\r\n\r\n"
        ).encode()

    def log_in(
        self, connection: RaceConnection, call: str, user: str = ""
    ) -> Generator[Step, Any, DigestCredentials | None]:
        """Get a nonce; None where nobody asks for one."""
        if not self.password:
            return None
        connection.send(self.request(connection, call, user=user))
        answer = yield AwaitResponse(connection)
        if not answer or answer.status != 401:
            raise NoResponse(f"no challenge but {answer and answer.status}")
        nonce = re.search(r'nonce="([^"]+)"', answer.head)
        assert nonce
        return DigestCredentials(nonce.group(1), DOMAIN, self.password)

    def register(self, connection: RaceConnection, call: str, **options: Any) -> Generator[Step, Any, FinalResponse]:
        """Register and wait until it is done."""
        connection.send(self.request(connection, call, **options))
        answer = yield AwaitResponse(connection)
        if not answer or answer.status != 200:
            raise NoResponse(f"not registered: {answer and answer.status}")
        return answer  # type: ignore[no-any-return]

    # What came, in the order of Event-Sequence; of stock an unregister that nobody asked for is the report.

    def is_register(self, event: Headers) -> bool:
        return event["Event-Subclass"] == REGISTER

    def is_removal(self, event: Headers) -> bool:
        """Return whether stock's watching of sockets has removed a row."""
        return event["Event-Subclass"] == UNREGISTER and "reason" in event

    def is_leave(self, event: Headers) -> bool:
        return event["Event-Subclass"] == UNREGISTER and "reason" not in event

    def is_report(self, event: Headers) -> bool:
        return self.is_removal(event) if self.stock else event["Event-Subclass"] not in (REGISTER, UNREGISTER)

    def is_offline(self, event: Headers) -> bool:
        return self.is_report(event) and event.get(LEFT, "0") == "0"

    def online(self, events: Sequence[Headers]) -> bool:
        """Return whether the last event that tells says that the user is there."""
        for event in reversed(events):
            if self.is_register(event):
                return True
            if self.is_report(event):
                return not self.is_offline(event)
            if self.is_leave(event):
                # Stock's does not tell of others.
                return event.get(LEFT, "0") != "0"
        return False
