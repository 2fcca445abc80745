"""A small event socket that speaks the wire format, and an event of a lost connection."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from urllib.parse import quote

from scripts.freeswitch.events import Event

PASSWORD = "s3cret"
REPORT = {
    "Event-Subclass": "sofia::tp_error_report",
    "Event-Name": "CUSTOM",
    "Core-UUID": "2b3c",
    "profile-name": "internal",
    "from-user": "alice",
    "from-host": "example.test",
    "contact": '"Alice B." <sip:alice@192.0.2.7:5060;transport=TCP>',
    "call-id": "1-15@192.0.2.7",
    "user-agent": "SIPp",
    "network-ip": "192.0.2.7",
    "network-port": "41179",
    "transport": "tcp",
    "error-code": "104",
    "error-name": "ECONNRESET",
    "error-phrase": "Connection reset by peer",
    "registrations-left": "0",
    "close-cause": "reset",
    "connected-at": "1795406415",
    "registered-at": "1795406416",
    "detected-at-us": "1795406420123456",
}


def wire(headers: dict[str, str], body: str = "") -> bytes:
    """Return an event as mod_event_socket sends it: URL-encoded values."""
    lines = [f"{key}: {quote(value, safe='/@.;=-<> ') or '_undef_'}" for key, value in headers.items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    text = "\n".join(lines) + "\n\n" + body
    return f"Content-Length: {len(text)}\nContent-Type: text/event-plain\n\n{text}".encode()


def message(content: bytes, kind: bytes = b"text/event-plain") -> bytes:
    """Return a message of the type `kind`."""
    return b"Content-Type: %b\nContent-Length: %d\n\n%b" % (kind, len(content), content)


class FakeEventSocket:
    """A FreeSWITCH of a few lines. `script` is run after the subscription."""

    def __init__(self, script: Callable[[FakeEventSocket], Awaitable[None]] | None = None, mode: str = "") -> None:
        self.script = script
        self.mode = mode
        self.commands: list[str] = []
        self.writer: asyncio.StreamWriter

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._talk(reader)
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader) -> None:
        if self.mode == "acl":
            await self.send(b"Content-Type: text/rude-rejection\nContent-Length: 24\n\nAccess Denied, go away.\n")
            return
        if self.mode == "close":
            return
        if self.mode == "silent":
            await reader.read()
            return
        if self.mode == "blank":
            await self.flood(b"\n")
        await self.send(b"Content-Type: auth/request\n\n")
        while command := (await reader.readuntil(b"\n\n")).decode().strip():
            self.commands.append(command)
            if command.startswith("auth "):
                if command != f"auth {PASSWORD}":
                    await self.send(b"Content-Type: command/reply\nReply-Text: -ERR invalid\n\n")
                    await self.notice()
                    return
                await self.send(b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
            elif command.startswith("event "):
                await self.send(b"Content-Type: command/reply\nReply-Text: +OK event listener enabled plain\n\n")
                if self.script:
                    await self.script(self)
            elif command == "api hang":
                pass
            elif command == "api die":
                return
            elif command == "api bytes":
                await self.send(b"Content-Type: api/response\nContent-Length: 7\n\ncaf\xe9 \xe2\x82")
            else:
                body = f"you said {command}\n\nand more\n"
                await self.send(f"Content-Type: api/response\nContent-Length: {len(body)}\n\n{body}".encode())

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def flood(self, data: bytes) -> None:
        """Send `data` without end."""
        while True:
            await self.send(data * 10_000)

    async def notice(self) -> None:
        await self.send(b"Content-Type: text/disconnect-notice\nContent-Length: 14\n\nDisconnected.\n")


@contextlib.asynccontextmanager
async def serving(server: FakeEventSocket) -> AsyncIterator[int]:
    async with await asyncio.start_server(server.handle, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]


@contextlib.contextmanager
def serving_thread(server: FakeEventSocket) -> Iterator[int]:
    """Serve from a thread, for a client that is a process of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    listener = asyncio.run_coroutine_threadsafe(asyncio.start_server(server.handle, "127.0.0.1", 0), loop).result()
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(listener.close)
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def event(**changes: str | list[str] | None) -> Event:
    headers: dict[str, str | list[str]] = dict(REPORT)
    for key, value in changes.items():
        name = key.replace("_", "-")
        if value is None:
            del headers[name]
        else:
            headers[name] = value
    return Event(headers, 1795406420125456000)
