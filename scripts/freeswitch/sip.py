"""A SIP user agent for tests that owns its socket.

It registers like a phone and can then end the connection in every way that a
socket allows. SIPp covers the well-behaved cases; this covers the others.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import re
import socket
import ssl
import struct
import termios
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, Ping, Request, TextMessage

from scripts.errors import ToolkitError

TIMEOUT = 10.0

# One for all: to make one takes longer than to connect.
CSEQ = itertools.count(1)
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CONTEXT.check_hostname = False
CONTEXT.verify_mode = ssl.CERT_NONE


@dataclass
class Response:
    """A SIP response: `headers` maps lower-case names to the values in order."""

    status: int
    phrase: str
    headers: dict[str, list[str]]

    def header(self, name: str) -> str:
        """The first value of the header `name` (lower case), or an empty string."""
        return self.headers.get(name, [""])[0]


class Refused(ToolkitError):
    """A final response that was not the one awaited, `response`."""

    def __init__(self, method: str, response: Response) -> None:
        super().__init__(f"{method} was answered {response.status} {response.phrase}")
        self.args = method, response
        self.response = response


def accepted(method: str, response: Response, *statuses: int) -> Response:
    """Return `response`; raise Refused if its status is none of `statuses`."""
    if response.status not in statuses:
        raise Refused(method, response)
    return response


@dataclass
class Client:
    """One connection (or one UDP socket) of a user agent to a SIP server.

    `transport` is udp, tcp, tls, ws or wss; `host` an IPv4 or IPv6 address;
    `source` (host, port) binds the near end, `relay` is where tests/relay.py
    listens, if the connection goes through it. Times out after `limit` seconds.
    """

    transport: str
    host: str
    port: int
    source: tuple[str, int] | None = None
    relay: tuple[str, int] | None = None
    limit: float = TIMEOUT
    sock: socket.socket = field(init=False)
    _far: tuple[str, int] | None = None
    _buffer: bytes = b""
    _ws: WSConnection | None = None
    _text: str = ""

    def __post_init__(self) -> None:
        if self.transport == "udp":
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            self.sock = socket.socket(family, socket.SOCK_DGRAM)
            self.sock.settimeout(self.limit)
            self.sock.connect((self.host, self.port))
            return
        target = self.relay or (self.host, self.port)
        self.sock = socket.create_connection(target, self.limit, source_address=self.source)
        if self.relay:
            self._far = self._through_relay()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.transport in ("tls", "wss"):
            self.sock = CONTEXT.wrap_socket(self.sock, suppress_ragged_eofs=False)
        if self.transport in ("ws", "wss"):
            self._ws = WSConnection(ConnectionType.CLIENT)
            request = Request(host=self._bracketed(self.host), target="/", subprotocols=["sip"])
            self.sock.sendall(self._ws.send(request))
            while not any(isinstance(event, AcceptConnection) for event in self._ws_events()):
                pass

    def _through_relay(self) -> tuple[str, int]:
        self.sock.sendall(f"CONNECT {self.host} {self.port}\n".encode())
        line = b""
        while not line.endswith(b"\n"):
            byte = self.sock.recv(1)
            if not byte:
                raise ConnectionError("relay closed the connection")
            line += byte
        host, port = line.decode().split()
        return host, int(port)

    @property
    def address(self) -> tuple[str, int]:
        """The near end of the connection, as the server sees it without NAT."""
        if self._far:
            return self._far
        host, port = self.sock.getsockname()[:2]
        return host, port

    @staticmethod
    def _bracketed(host: str) -> str:
        return f"[{host}]" if ":" in host else host

    def send(self, data: bytes) -> None:
        """Send `data` as it is, in one WebSocket text frame over WebSocket."""
        if self._ws:
            data = self._ws.send(TextMessage(data.decode("latin-1")))
        self.sock.sendall(data)

    def _ws_events(self) -> list[Event]:
        assert self._ws
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("server closed the connection")
        self._ws.receive_data(data)
        events = list(self._ws.events())
        for event in events:
            if isinstance(event, Ping):
                self.sock.sendall(self._ws.send(event.response()))
            if isinstance(event, CloseConnection):
                raise ConnectionError(f"server closed the WebSocket with code {event.code}")
        return events

    def receive(self) -> Response:
        """Return the next response; requests from the server are passed over."""
        while True:
            message = self._message()
            start, *lines = message.split("\r\n")
            if not start.startswith("SIP/2.0 "):
                continue
            _, status, phrase = start.split(" ", 2)
            headers: dict[str, list[str]] = {}
            for line in lines:
                name, _, value = line.partition(":")
                headers.setdefault(name.strip().lower(), []).append(value.strip())
            return Response(int(status), phrase, headers)

    def _message(self) -> str:
        """Return the head of the next message and drop its body."""
        while True:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if separator:
                length = re.search(rb"(?im)^(?:content-length|l)\s*:\s*(\d+)", head)
                size = int(length.group(1)) if length else 0
                if len(rest) >= size:
                    self._buffer = rest[size:].lstrip(b"\r\n")
                    return head.lstrip(b"\r\n").decode()
            self._buffer += self._chunk()

    def _chunk(self) -> bytes:
        if self._ws:
            return "".join(event.data for event in self._ws_events() if isinstance(event, TextMessage)).encode()
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("server closed the connection")
        return data

    def request(
        self,
        user: str,
        domain: str,
        expires: int,
        call_id: str,
        contact: str | None = None,
        authorization: str = "",
    ) -> bytes:
        """Return a REGISTER request, complete and ready to `send`."""
        host, port = self.address
        # A device that moves to another connection counts on.
        cseq = next(CSEQ)
        where = f"{self._bracketed(host)}:{port}"
        contact = contact or f"<sip:{user}@{where};transport={self.transport}>"
        lines = [
            f"REGISTER sip:{domain} SIP/2.0",
            f"Via: SIP/2.0/{self.transport.upper()} {where};branch=z9hG4bK{uuid.uuid4().hex};rport",
            "Max-Forwards: 70",
            f"From: <sip:{user}@{domain}>;tag={uuid.uuid4().hex[:8]}",
            f"To: <sip:{user}@{domain}>",
            f"Call-ID: {call_id}",
            f"CSeq: {cseq} REGISTER",
            f"Contact: {contact}",
            f"Expires: {expires}",
            "User-Agent: tp-error-tests",
            *([f"Authorization: {authorization}"] if authorization else []),
            "Content-Length: 0",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def register(
        self,
        user: str,
        password: str,
        domain: str,
        expires: int = 3600,
        call_id: str = "",
        contact: str | None = None,
        wait: bool = True,
    ) -> str:
        """Register `user` (with expires=0: unregister) and return the Call-ID.

        With `wait` False the response to the authorized request is not
        awaited. Raises Refused if the server does.
        """
        call_id = call_id or uuid.uuid4().hex
        self.send(self.request(user, domain, expires, call_id, contact))
        challenge = accepted("REGISTER", self.receive(), 401)
        authorization = digest(challenge.header("www-authenticate"), user, password, "REGISTER", f"sip:{domain}")
        self.send(self.request(user, domain, expires, call_id, contact, authorization))
        if wait:
            accepted("REGISTER", self.receive(), 200)
        return call_id

    def wait_request(self, method: str) -> str:
        """Return the next request `method` from the server; what else comes is passed over."""
        while not (message := self._message()).startswith(f"{method} "):
            pass
        return message

    def invite(self, user: str, password: str, domain: str, number: str) -> tuple[str, str]:
        """Call `number`; return Call-ID and To of the call once it is answered. Raises Refused if it isn't."""
        call_id, uri = uuid.uuid4().hex, f"sip:{number}@{domain}"
        self.send(self._call_request("INVITE", user, domain, uri, call_id, 1, ""))
        reply = accepted("INVITE", self._final(), 407)
        self.send(self._call_request("ACK", user, domain, uri, call_id, 1, reply.header("to")))
        authorization = digest(reply.header("proxy-authenticate"), user, password, "INVITE", uri)
        self.send(self._call_request("INVITE", user, domain, uri, call_id, 2, "", authorization))
        reply = accepted("INVITE", self._final(), 200)
        self.send(self._call_request("ACK", user, domain, uri, call_id, 2, reply.header("to")))
        return call_id, reply.header("to")

    def within(self, method: str, user: str, domain: str, number: str, call: tuple[str, str], cseq: int = 0) -> None:
        """Send a request in the dialog of `call`, Call-ID and To as of `invite`, and do not wait for the answer.

        With `cseq`, a CANCEL is for the INVITE that had it.
        """
        call_id, to = call
        cseq = cseq or next(CSEQ) + 2
        self.send(self._call_request(method, user, domain, f"sip:{number}@{domain}", call_id, cseq, to))

    def message(self, user: str, password: str, domain: str, number: str) -> int:
        """Send a MESSAGE to `number` and return the status of the final response."""
        uri = f"sip:{number}@{domain}"
        self.send(self._call_request("MESSAGE", user, domain, uri, uuid.uuid4().hex, 1, ""))
        authorization = digest(self._final().header("proxy-authenticate"), user, password, "MESSAGE", uri)
        # With the Call-ID of before one in a hundred is answered 500 by stock FreeSWITCH, too: it goes down with
        # the challenge, whose handle is just being destroyed.
        self.send(self._call_request("MESSAGE", user, domain, uri, uuid.uuid4().hex, 2, "", authorization))
        return self._final().status

    def subscribe(
        self,
        user: str,
        password: str,
        domain: str,
        number: str,
        expires: int = 3600,
        call_id: str = "",
        to: str = "",
        wait: bool = True,
        more: Sequence[str] = ("Event: presence", "Accept: application/pidf+xml"),
    ) -> tuple[str, str]:
        """Subscribe to the presence of `number`, or again in the dialog of `call_id` and `to`; return these two.

        With `wait` False the response to the authorized request is not
        awaited. Raises Refused if the server does.
        """
        call_id, uri = call_id or uuid.uuid4().hex, f"sip:{number}@{domain}"
        more = (*more, f"Expires: {expires}")
        self.send(self._call_request("SUBSCRIBE", user, domain, uri, call_id, next(CSEQ), to, more=more))
        reply = self._final()
        if reply.status == 407:
            authorization = digest(reply.header("proxy-authenticate"), user, password, "SUBSCRIBE", uri)
            self.send(self._call_request("SUBSCRIBE", user, domain, uri, call_id, next(CSEQ), to, authorization, more))
            if not wait:
                return call_id, to
            reply = self._final()
        accepted("SUBSCRIBE", reply, 200, 202)
        return call_id, reply.header("to")

    def ask(self, method: str, user: str, domain: str, number: str) -> Response:
        """Return the final response to a request without credentials."""
        call_id, uri = uuid.uuid4().hex, f"sip:{number}@{domain}"
        self.send(self._call_request(method, user, domain, uri, call_id, 1, ""))
        reply = self._final()
        if method == "INVITE":
            self.send(self._call_request("ACK", user, domain, uri, call_id, 1, reply.header("to")))
        return reply

    def _final(self) -> Response:
        while (reply := self.receive()).status < 200:
            pass
        return reply

    def _call_request(
        self,
        method: str,
        user: str,
        domain: str,
        uri: str,
        call_id: str,
        number: int,
        to: str,
        authorization: str = "",
        more: Sequence[str] = (),
    ) -> bytes:
        host, port = self.address
        where = f"{self._bracketed(host)}:{port}"
        version = "IP6" if ":" in host else "IP4"
        body = "\r\n".join(
            [
                "v=0", f"o=- 1 1 IN {version} {host}", "s=-", f"c=IN {version} {host}", "t=0 0",
                "m=audio 40000 RTP/AVP 8", "a=rtpmap:8 PCMA/8000", "",
            ]
        )  # fmt: skip
        kind = {"INVITE": "application/sdp", "MESSAGE": "text/plain"}.get(method, "")
        body = {"INVITE": body, "MESSAGE": "hello"}.get(method, "")
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/{self.transport.upper()} {where};branch=z9hG4bK{call_id}{number};rport",
            "Max-Forwards: 70",
            f"From: <sip:{user}@{domain}>;tag={call_id[:8]}",
            f"To: {to or f'<{uri}>'}",
            f"Call-ID: {call_id}",
            f"CSeq: {number} {method}",
            f"Contact: <sip:{user}@{where};transport={self.transport}>",
            *([f"Proxy-Authorization: {authorization}"] if authorization else []),
            *more,
            *([f"Content-Type: {kind}"] if kind else []),
            f"Content-Length: {len(body)}",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()

    def flush(self) -> None:
        """Wait until the server's kernel has all that was sent: with an answer unread, close() discards the rest."""
        deadline = time.monotonic() + self.limit
        while struct.unpack("i", fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]:
            if time.monotonic() >= deadline:
                raise TimeoutError("the server does not take what was sent")
            time.sleep(0.001)

    def close(self) -> None:
        """Close in good order: FIN, over TLS without a close_notify."""
        self.sock.close()

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def half_close(self) -> None:
        """Send FIN, but keep on reading."""
        raw = self.sock
        socket.socket.shutdown(raw, socket.SHUT_WR)

    def close_notify(self) -> None:
        """Close a TLS connection with a close_notify alert."""
        assert isinstance(self.sock, ssl.SSLSocket)
        self.sock.settimeout(0.5)
        with contextlib.suppress(OSError):  # The server need not answer the alert.
            self.sock.unwrap()
        self.sock.close()

    def ws_close(self) -> None:
        """Send a WebSocket close frame, then FIN."""
        assert self._ws
        self.sock.sendall(self._ws.send(CloseConnection(code=1000)))
        self.sock.close()


class Dialog:
    """A subscription of `user` to the presence of `number`, made over `client`.

    Who has been challenged once need not wait for an answer to go on.
    """

    def __init__(self, client: Client, user: str, password: str, domain: str, number: str) -> None:
        self.call_id, self.to = uuid.uuid4().hex, ""
        self._who, self._uri = (user, password, domain), f"sip:{number}@{domain}"
        self._challenge, self._uses = "", itertools.count(1)
        self.send(client)
        reply = client.receive()
        if reply.status == 407:
            self._challenge = reply.header("proxy-authenticate")
            self.send(client)
            reply = client.receive()
        accepted("SUBSCRIBE", reply, 200, 202)
        self.to = reply.header("to")

    def send(self, client: Client, expires: int = 3600) -> None:
        """Send a SUBSCRIBE over `client`, and do not wait for the answer."""
        user, password, domain = self._who
        authorization = ""
        if self._challenge:
            authorization = digest(self._challenge, user, password, "SUBSCRIBE", self._uri, next(self._uses))
        more = ("Event: presence", "Accept: application/pidf+xml", f"Expires: {expires}")
        dialog = (self._uri, self.call_id, next(CSEQ), self.to)
        client.send(client._call_request("SUBSCRIBE", user, domain, *dialog, authorization, more))


def digest(challenge: str, user: str, password: str, method: str, uri: str, number: int = 1) -> str:
    """Return the Authorization header for a Digest `challenge` (RFC 2617, MD5, qop=auth), its use `number`."""
    values = dict(re.findall(r'(\w+)="?([^",]+)"?', challenge))

    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    cnonce, count = uuid.uuid4().hex, f"{number:08x}"
    a1, a2 = md5(f"{user}:{values['realm']}:{password}"), md5(f"{method}:{uri}")
    response = md5(f"{a1}:{values['nonce']}:{count}:{cnonce}:auth:{a2}")
    return (
        f'Digest username="{user}", realm="{values["realm"]}", nonce="{values["nonce"]}", uri="{uri}", '
        f'response="{response}", algorithm=MD5, cnonce="{cnonce}", qop=auth, nc={count}'
    )
