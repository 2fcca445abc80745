"""A connection to the server, over TCP, TLS or WebSocket, that is never waited for."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
from collections import deque
from dataclasses import dataclass

from scripts.freeswitch.sip import CONTEXT


class RaceConnection:
    """A connection to the server that is never waited for once it is open, a WebSocket's handshake included."""

    def __init__(self, transport: str, target: tuple[str, int], source: tuple[str, int] | None = None) -> None:
        self.transport = transport
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.settimeout(10)
        if source:
            self.sock.bind(source)
        self.sock.connect(target)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.near: tuple[str, int] = self.sock.getsockname()
        self.answers: deque[FinalResponse] = deque()
        # Whether the stack has read all that was sent before `probe()`.
        self.read = False
        self.ended = False
        self._outgoing: deque[bytes] = deque()
        self._buffer = b""
        self._frames = b""
        if transport in ("tls", "wss"):
            self.sock = CONTEXT.wrap_socket(self.sock)
        self._is_ws = transport in ("ws", "wss")
        if self._is_ws:
            self._upgrade(target)
        self.sock.setblocking(False)

    def _upgrade(self, target: tuple[str, int]) -> None:
        self.sock.sendall(
            f"GET / HTTP/1.1\r\nHost: {target[0]}:{target[1]}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: sip\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.sock.recv(4096)
            if not data:
                raise ConnectionError("the server closed in the handshake")
            head += data
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise ConnectionError(head.split(b"\r\n")[0].decode(errors="replace"))
        self._frames = head.partition(b"\r\n\r\n")[2]

    def send(self, *messages: bytes) -> None:
        """Send messages, each in a frame of its own over WebSocket. An end by the server shows in `ended`."""
        try:
            # Not in one: sofia-sip would leave a second frame of one TLS record until the next one comes.
            for message in messages:
                self._outgoing.append(_framed(message) if self._is_ws else message)
            self._flush()
        except (BrokenPipeError, ConnectionResetError):
            self.ended = True

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
            while self._outgoing:
                sent = self.sock.send(self._outgoing[0])
                self._outgoing[0] = self._outgoing[0][sent:]
                if not self._outgoing[0]:
                    self._outgoing.popleft()

    def receive(self) -> None:
        """Take in what has come, and send what could not be sent before; never blocks."""
        try:
            self._flush()
            while True:
                data = self.sock.recv(65536)
                if not data:
                    self.ended = True
                    break
                if self._is_ws:
                    data = self._unframed(data)
                self._buffer += data
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            self.ended = True
        while True:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            length = re.search(rb"(?i)\r\n(?:content-length|l)[ \t]*:[ \t]*(\d+)", head)
            size = int(length.group(1)) if length else 0
            if len(rest) < size:
                return
            self._buffer = rest[size:]
            self._take(head.decode(errors="replace"))

    def _take(self, head: str) -> None:
        found = re.match(r"\s*SIP/2\.0 (\d+)", head)
        method = re.search(r"(?i)\r\ncseq[ \t]*:[ \t]*(\d+) (\w+)", head)
        if not found or not method:
            return
        status = int(found.group(1))
        if method.group(2) == "CANCEL":
            self.read = True
        elif status >= 200:
            self.answers.append(FinalResponse(status, int(method.group(1)), head))

    def _unframed(self, data: bytes) -> bytes:
        self._frames += data
        payloads = []
        while len(self._frames) >= 2:
            size, start = self._frames[1] & 0x7F, 2
            if size == 126:
                start = 4
                if len(self._frames) < start:
                    break
                (size,) = struct.unpack_from("!H", self._frames, 2)
            if len(self._frames) < start + size:
                break
            if self._frames[0] & 0x0F == 1:
                payloads.append(self._frames[start : start + size])
            self._frames = self._frames[start + size :]
        return b"".join(payloads)

    def close(self) -> None:
        """Close with FIN (with RST if there is something that was not read)."""
        self.sock.close()

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def _framed(message: bytes) -> bytes:
    # A mask of zeros leaves the text as it is.
    size = len(message)
    head = struct.pack("!BB", 0x81, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x81, 0xFE, size)
    return head + bytes(4) + message


@dataclass(frozen=True)
class FinalResponse:
    """A final answer to a REGISTER."""

    status: int
    cseq: int
    head: str
