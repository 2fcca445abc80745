"""Runs the probe and connects to it as clients do: TCP, TLS, WebSocket. Needs nothing but Python.

It runs inside the container of the probe, see tests/probe/Dockerfile.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

ADDRESS = "127.0.0.1"
PROTOCOLS = ("tcp", "tls", "ws", "wss")
CERTIFICATES = "/probe/tls"
# What a run of the probe may end with, other than 0, says who complained.
COMMANDS = {
    "asan": ["/probe/probe-asan"],
    "valgrind": [
        "valgrind", "--quiet", "--leak-check=full", "--show-leak-kinds=definite,indirect",
        "--errors-for-leak-kinds=definite,indirect", "--error-exitcode=99", "/probe/probe-plain",
    ],
    "plain": ["/probe/probe-plain"],
}  # fmt: skip
ENVIRONMENT = {
    "ASAN_OPTIONS": "exitcode=99:detect_leaks=1:detect_stack_use_after_return=1:abort_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=0",
}
LOGS = itertools.count()
# What nua tells its application, and what nta tells nua about each connection.
REPORT, END = "nua_i_tp_error_report", "ended"
# Upstream's own, without consequences: the macro tests a bit of the mask for characters that it does not hold.
KNOWN = ("url.c:361:",)


class Connection(Protocol):
    """A connection to the probe, which names it by the `peer`, address and port."""

    host: str
    peer: tuple[str, str]


@dataclass
class ProbeEvent:
    """A line of the probe, and when it came."""

    at: float
    data: dict[str, Any]


@dataclass
class Probe:
    """A running probe. `stderr` is there once it has ended."""

    process: asyncio.subprocess.Process
    log: Path
    events: list[ProbeEvent] = field(default_factory=list)
    # By the address of the peer.
    ends: dict[tuple[str, str], list[ProbeEvent]] = field(default_factory=dict)
    reports: dict[tuple[str, str], list[ProbeEvent]] = field(default_factory=dict)
    stderr: str = ""
    reader: asyncio.Task[None] = field(init=False)

    @classmethod
    async def start(cls, tool: str, *arguments: str, level: int = 1) -> Probe:
        """Start the probe on ports that the kernel chooses."""
        debug = {f"{module}_DEBUG": str(level) for module in ("TPORT", "NTA", "NUA", "SU")}
        log = Path(f"/tmp/probe-{next(LOGS)}.log")
        command = [*COMMANDS[tool], "-c", CERTIFICATES, *arguments, *(f"{name}=0" for name in PROTOCOLS)]
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                limit=1 << 24,  # It quotes the fuzzer's input.
                env={**os.environ, **ENVIRONMENT, **debug},
            )
        probe = cls(process, log)
        probe.reader = asyncio.create_task(probe._read())
        await probe.wait(lambda event: event["event"] == "listening", 60)
        return probe

    async def _read(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            event = ProbeEvent(time.time(), json.loads(line))
            self.events.append(event)
            for name, found in ((END, self.ends), (REPORT, self.reports)):
                if event.data["event"] == name:
                    found.setdefault((event.data["peer_host"], event.data["peer_port"]), []).append(event)

    @property
    def ports(self) -> dict[str, int]:
        return {name: int(self.events[0].data[name]) for name in PROTOCOLS}

    async def ended(self, connection: Connection, timeout: float) -> None:
        """Wait for the end of a connection."""
        end = time.monotonic() + timeout
        while connection.peer not in self.ends and time.monotonic() < end and not self.reader.done():
            await asyncio.sleep(0.005)

    async def wait(self, wanted: Callable[[dict[str, Any]], bool], timeout: float) -> ProbeEvent | None:
        """Return the first event that is wanted, None if none comes in time or the probe ends."""
        end = time.monotonic() + timeout
        seen = 0
        while True:
            for event in self.events[seen:]:
                if wanted(event.data):
                    return event
            seen = len(self.events)
            if time.monotonic() > end or self.reader.done():
                return None
            await asyncio.sleep(0.005)

    async def stop(self, timeout: float = 120) -> int:
        """End the probe in good order and return its status."""
        assert self.process.stdin
        self.process.stdin.close()
        try:
            status = await asyncio.wait_for(self.process.wait(), timeout)
        except TimeoutError:
            self.process.kill()
            status = await self.process.wait()
        await self.reader
        self.stderr = self.log.read_text(errors="replace")
        return status

    def complaints(self) -> list[str]:
        """Return the lines in which sanitizers or valgrind complain."""
        marks = ("runtime error:", "ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "SUMMARY:", "definitely lost")
        return [
            line
            for line in self.stderr.splitlines()
            if (any(mark in line for mark in marks) or line.startswith("==")) and not line.startswith(KNOWN)
        ]


class ProbeConnection:
    """One connection to the probe, from an address of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.host, self.port = sock.getsockname()[:2]
        # As the probe names it.
        self.peer = (self.host, str(self.port))
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls: ssl.SSLObject | None = None

    @classmethod
    async def open(cls, port: int, source: str = ADDRESS, to: str = ADDRESS) -> ProbeConnection:
        sock = socket.socket()
        sock.setblocking(False)
        # What is sent in two parts shall come in two.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, (to, port))
        return cls(sock)

    @classmethod
    async def open_as(cls, protocol: str, port: int, source: str = ADDRESS, to: str = ADDRESS) -> ProbeConnection:
        """Connect and shake the hands that `protocol` demands."""
        connection = await cls.open(port, source, to)
        if protocol in ("tls", "wss"):
            await connection.handshake()
        if protocol in ("ws", "wss"):
            await connection.send(upgrade())
            await connection.receive_until(b"\r\n\r\n")
        return connection

    async def raw(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def seal(self, data: bytes) -> bytes:
        """Return what is sent for `data`: itself, or a record of TLS."""
        if not self.tls:
            return data
        self.tls.write(data)
        return self.outgoing.read()

    async def send(self, data: bytes) -> None:
        await self.raw(self.seal(data))

    async def receive(self, timeout: float = 10) -> bytes:
        """Return what comes next, b"" at the end of the stream."""
        loop = asyncio.get_running_loop()
        while True:
            if self.tls:
                try:
                    return self.tls.read(65536)
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return b""
            data = await asyncio.wait_for(loop.sock_recv(self.sock, 65536), timeout)
            if not self.tls:
                return data
            if not data:
                return b""
            self.incoming.write(data)

    async def end(self, timeout: float = 10) -> None:
        """Wait until the far end has closed the socket: over TLS its stream can end before."""
        while await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, 65536), timeout):
            pass

    async def receive_until(self, end: bytes) -> bytes:
        data = b""
        while end not in data:
            part = await self.receive()
            if not part:
                raise ConnectionError(f"the probe closed, not sent {end!r}")
            data += part
        return data

    def hello(self) -> bytes:
        """Begin TLS and return the ClientHello."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.tls = context.wrap_bio(self.incoming, self.outgoing)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    async def handshake(self, last: bool = True) -> None:
        """Shake hands; what is sent last can be left to the caller."""
        await self.raw(self.hello())
        assert self.tls
        loop = asyncio.get_running_loop()
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.raw(self.outgoing.read())
                data = await asyncio.wait_for(loop.sock_recv(self.sock, 65536), 10)
                if not data:
                    raise ConnectionError("the probe closed during the TLS handshake") from None
                self.incoming.write(data)
        if last:
            await self.raw(self.outgoing.read())

    def notify(self) -> bytes:
        """Return the close_notify alert."""
        assert self.tls
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        return self.outgoing.read()

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def fin(self) -> None:
        """Close. What has not been read would make it a reset."""
        try:
            while self.sock.recv(65536):
                pass
        except OSError:
            pass
        self.sock.close()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def upgrade(path: str = "/", key: str = "dGhlIHNhbXBsZSBub25jZQ==") -> bytes:
    lines = [
        f"GET {path} HTTP/1.1", "Host: probe", "Upgrade: websocket", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: sip",
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode()


def frame(
    payload: bytes, opcode: int = 1, final: bool = True, mask: bytes = b"\1\2\3\4", bits: int = 0,
    length: int | None = None, size: int | None = None,
) -> bytes:  # fmt: skip
    """Return a WebSocket frame, masked as clients must.

    Without `mask` it is not; `bits` are those of extensions, and `length` bytes
    (0, 2 or 8, by default the least) hold `size`, by default that of `payload`.
    """
    if size is None:
        size = len(payload)
    if length is None:
        length = 0 if size < 126 else 2 if size < 65536 else 8
    marker = {0: size, 2: 126, 8: 127}[length]
    head = bytes([0x80 * final | bits << 4 | opcode, 0x80 * bool(mask) | marker])
    head += size.to_bytes(length, "big") if length else b""
    if not mask:
        return head + payload
    # As one number: byte by byte takes long for a large payload.
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    covered = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return head + mask + covered.to_bytes(len(payload), "big")


def sip(
    method: str, number: str, protocol: str = "tcp", host: str = ADDRESS, port: int = 9, body: str = "", cseq: int = 1
) -> bytes:
    """Return a valid request, or a response (to nothing that was asked) if `method` is a number."""
    user = f"sip:u{number}@probe.invalid"
    first = f"SIP/2.0 {method} OK" if method.isdigit() else f"{method} {user} SIP/2.0"
    lines = [
        first,
        f"Via: SIP/2.0/{protocol.upper()} {host}:{port};branch=z9hG4bK{number}x{cseq};rport",
        "Max-Forwards: 70",
        f"From: <{user}>;tag=f{number}",
        f"To: <{user}>",
        f"Call-ID: {number}@probe.invalid",
        f"CSeq: {cseq} {'REGISTER' if method.isdigit() else method}",
        f"Contact: <sip:u{number}@{host}:{port};transport={protocol}>",
        "Expires: 60",
    ]
    if body:
        lines.append("Content-Type: application/sdp")
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", body]).encode()


def source(number: int) -> str:
    """Return a loopback address for connection `number` that no other connection has."""
    return f"127.{1 + (number >> 16) % 250}.{(number >> 8) % 256}.{number % 256}"


def generator(*seed: object) -> random.Random:
    return random.Random(":".join(map(str, seed)))
