"""Throws random and mutated input at the probe and checks that the end of each connection is noticed once.

It must be reported if nua had told of the connection with a request, a REGISTER say, and only then.
And what comes in frames of WebSocket must be answered and closed as RFC 6455 has
it (tests/probe/frames.py).

    python3 -m tests.fuzz --inputs 10000 --tool asan

Runs inside the container of the probe (tests/probe/Dockerfile). Input N of a
seed is always the same, whatever else is going on: `--only N` repeats it.
Prints a JSON document; what failed is saved below --save.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.probe import frames
from tests.probe.drive import PROTOCOLS, REPORT, Probe, ProbeConnection, frame, generator, sip, source, upgrade
from tests.probe.frames import FrameExchange, ServerFrames

CAUSES = {"peer-closed", "reset", "send-error", "tls-error", "protocol-error"}
SDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"
METHODS = ("REGISTER", "REGISTER", "INVITE", "OPTIONS", "MESSAGE", "SUBSCRIBE", "BYE", "CANCEL", "ACK", "200", "486")
# Seconds for what the server owes: a busy machine is not a fault.
PATIENCE = 20.0
LENGTHS = ("-1", "0", "1", "17", "99999999", "4294967296", "18446744073709551616", "x", "", "1 2", "0x10")


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flip(rng: random.Random, data: bytes) -> bytes:
    mutable = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        mutable[rng.randrange(len(mutable))] ^= 1 << rng.randrange(8)
    return bytes(mutable)


def duplicate(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    lines[1:1] = [rng.choice(lines)] * rng.choice((1, 2, 50))
    return b"\r\n".join(lines)


def drop(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    del lines[rng.randrange(len(lines))]
    return b"\r\n".join(lines)


def swell(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    number = rng.randrange(len(lines))
    # Upstream takes a second for 40,000 parameters.
    part, most = rng.choice(((b"x", 70000), (b" ", 70000), (b";a=b", 8000), (b"%", 9000), (b'"', 9000), (b"<", 9000)))
    lines[number] += part * rng.choice((100, 2000, most))
    return b"\r\n".join(lines)


def mistake_length(rng: random.Random, data: bytes) -> bytes:
    head, _, rest = data.partition(b"Content-Length: ")
    return head + b"Content-Length: " + rng.choice(LENGTHS).encode() + b"\r\n" + rest.partition(b"\r\n")[2]


def nul(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes(rng.choice((1, 1, 4, 300))) + data[place:]


def rubbish_text(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.choice((b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", "ß€𝄞".encode())) * 3 + data[place:]


def keepalives(rng: random.Random, data: bytes) -> bytes:
    blanks = b"".join(rng.choice((b"\r\n\r\n", b"\r\n", b"\n", b"\0\0\0\0", b" ")) for _ in range(rng.randrange(1, 9)))
    return rng.choice((blanks, blanks + data, data + blanks))


def splice(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))] + data[rng.randrange(len(data)) :]


def noise(rng: random.Random, data: bytes) -> bytes:
    return rng.randbytes(rng.choice((1, 9, 100, 3000)))


def twice(rng: random.Random, data: bytes) -> bytes:
    return data + data


def untouched(rng: random.Random, data: bytes) -> bytes:
    return data


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    truncate, flip, duplicate, drop, swell, mistake_length, nul, rubbish_text, keepalives, splice, noise, twice,
    untouched,
)  # fmt: skip


@dataclass
class FuzzInput:
    """The input of the fuzzer that is sent over connection `number`, and how it is ended."""

    number: int
    protocol: str
    stage: str
    mutations: list[str]
    parts: list[bytes]
    pause: float
    end: str
    # What must come of it, if that is known.
    exchange: FrameExchange | None = None


@dataclass
class FuzzConnection:
    """The connection of one input: itself, when that was closed, and what the server had sent until then."""

    item: FuzzInput
    connection: ProbeConnection
    closed: float = 0
    received: ServerFrames = field(default_factory=ServerFrames)


@dataclass
class FuzzResult:
    """The result of a run of the fuzzer: counts, and what was wrong."""

    seed: int
    tool: str
    inputs: int = 0
    seconds: float = 0
    status: int = -1
    refused: int = 0
    slowest: float = 0
    causes: Counter[str] = field(default_factory=Counter)
    # What was done in frames, and how often.
    exchanges: Counter[str] = field(default_factory=Counter)
    registers: int = 0
    faults: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def make(seed: int, number: int, protocols: tuple[str, ...]) -> FuzzInput:
    rng = generator(seed, number)
    protocol = rng.choices(protocols, [3 if name == "tcp" else 1 for name in protocols])[0]
    host = source(number)
    method = rng.choice(METHODS)
    data = sip(method, f"{seed}-{number}", protocol, host, body=SDP if method == "INVITE" else "")
    # Mutated are the hands to shake, too.
    stages = {"tcp": ["message"], "tls": ["message", "tls", "record"], "ws": ["message", "upgrade", "frame"]}
    stages["ws"] += ["exchange"] * 3
    stages["wss"] = [*stages["ws"], "tls", "record"]
    stage = rng.choice(["message", *stages[protocol]])
    if stage == "exchange":
        exchange = frames.exchange(rng, f"{seed}-{number}", protocol, host)
        pause = rng.choice((0, 0, 0.002, 0.02)) if len(exchange.parts) < 10 else 0
        return FuzzInput(
            number, protocol, stage, [exchange.kind], exchange.parts, pause, rng.choice(("fin", "reset")), exchange
        )
    names = []
    if stage == "upgrade":
        path = rng.choice(("/", "/ws?x=" + "y" * 900))
        data = upgrade(path, rng.choice(("", "x" * 300, "dGhlIHNhbXBsZSBub25jZQ==")))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        mutation = rng.choice(MUTATIONS)
        if data:
            data = mutation(rng, data)
            names.append(mutation.__name__)
    if protocol in ("ws", "wss") and stage in ("message", "frame"):
        opcode = rng.choice((1, 1, 1, 2, 0, 8, 9, 10, 3, 15)) if stage == "frame" else 1
        data = frame(data, opcode, stage == "message" or rng.random() < 0.7)
        if stage == "frame":
            # Wrong lengths, masks, flags: the head is what is flipped.
            head = flip(rng, data[: rng.choice((2, 4, 10, 14))] or b"\0")
            data = rng.choice((data, head + data[len(head) :], head, truncate(rng, data), data * 3))
    parts = [data]
    if rng.random() < 0.3 and len(data) > 1:
        cut = rng.randrange(1, len(data))
        parts = [data[:cut], data[cut:]]
    return FuzzInput(
        number, protocol, stage, names, parts, rng.choice((0, 0, 0.002, 0.02)), rng.choice(("fin", "fin", "reset"))
    )  # fmt: skip


def refusable(item: FuzzInput) -> bool:
    """Return whether tport_accept() may refuse the connection, so that there is none that could end.

    It does so with WebSockets whose first bytes are wrong.
    """
    return item.protocol in ("ws", "wss") and item.stage in ("upgrade", "tls", "record")


async def converse(
    exchange: FrameExchange, connection: ProbeConnection, pause: float, rng: random.Random
) -> ServerFrames:
    """Send what belongs to `exchange` and return what the server sends, until that is all, or the end."""
    received = ServerFrames()

    async def listen(done: Callable[[], bool]) -> None:
        while not received.ended and not done():
            try:
                received.take(await connection.receive(PATIENCE))
            except TimeoutError:
                received.faults.append("no more from the server")
                return
            except OSError:
                received.take(b"")

    async def send(parts: list[bytes]) -> None:
        # Who has been told to go away can be cut off while it goes on.
        with contextlib.suppress(ConnectionError):
            for part in parts:
                await connection.raw(part)
                await asyncio.sleep(pause)

    parts = [connection.seal(part) for part in exchange.parts]
    # Records are cut elsewhere than frames.
    await send(frames.segments(rng, parts) if connection.tls and parts and rng.random() < 0.5 else parts)
    if exchange.patient:
        await listen(lambda: exchange.answered(received))
        if not exchange.farewell:
            # Is it still there?
            exchange.pings.append(b"still there?")
            await send([connection.seal(frame(exchange.pings[-1], frames.PING))])
            await listen(lambda: exchange.answered(received))
        else:
            await send([connection.seal(exchange.farewell)])
    if exchange.code:
        await listen(lambda: False)
        try:
            # Who closes before that has closed first.
            await connection.end(PATIENCE)
        except TimeoutError:
            received.faults.append("socket not closed")
        except OSError:
            pass
    return received


async def throw(item: FuzzInput, port: int, seed: int) -> FuzzConnection:
    """Send one input and return what came of it."""
    rng = generator(seed, item.number, "wire")
    thrown = FuzzConnection(item, await ProbeConnection.open(port, source(item.number)))
    connection = thrown.connection
    try:
        if item.protocol in ("tls", "wss"):
            if item.stage == "tls":
                await connection.raw(rng.choice(MUTATIONS)(rng, connection.hello()))
            else:
                await connection.handshake()
        if item.protocol in ("ws", "wss") and item.stage in ("message", "frame", "exchange"):
            await connection.send(upgrade())
            await connection.receive_until(b"\r\n\r\n")
        if item.exchange:
            thrown.received = await converse(item.exchange, connection, item.pause, rng)
        for part in item.parts if not item.exchange else []:
            if item.stage in ("tls", "record") and rng.random() < 0.8:
                size = rng.choice((len(part), 0, 1, 65535)) & 0xFFFF
                head = rng.choice((b"\x17", b"\x16", b"\x15", b"\0")) + b"\3\3" + size.to_bytes(2, "big")
                await connection.raw(head + part)
            elif item.stage == "tls":
                await connection.raw(part)
            else:
                await connection.send(part)
            await asyncio.sleep(item.pause)
    except (OSError, TimeoutError):
        pass  # The probe may well have had enough.
    if item.end == "fin":
        connection.fin()
    else:
        connection.reset()
    thrown.closed = time.time()
    return thrown


async def run(
    result: FuzzResult, numbers: range, protocols: tuple[str, ...], abreast: int, limit: float, save: Path
) -> None:
    """Throw the inputs `numbers`, `abreast` at a time, and put into `result` what came of it."""
    probe = await Probe.start(result.tool, *(["-k"] if result.seed % 2 else []))
    start = time.monotonic()
    queue = iter(numbers)
    thrown: dict[int, FuzzConnection] = {}

    async def work() -> None:
        for number in queue:
            if probe.reader.done():
                return
            item = make(result.seed, number, protocols)
            try:
                thrown[number] = await throw(item, probe.ports[item.protocol], result.seed)
            except OSError as error:
                result.faults.append(f"input {number}: can't connect: {error}")
                continue
            # Else a slow parser would make the queue of accept() overflow.
            await probe.ended(thrown[number].connection, 0.1 if refusable(item) else limit)

    await asyncio.gather(*(work() for _ in range(abreast)))
    result.inputs = len(thrown)
    result.seconds = round(time.monotonic() - start, 1)
    # Long enough for the late and for the second report.
    await asyncio.sleep(2 * limit)
    died = probe.reader.done()
    result.status = await probe.stop()
    result.complaints = probe.complaints()[:200]
    registers = Counter(event.data["id"] for event in probe.events if event.data["event"] == "nua_i_register")
    result.registers = registers.total()
    told = (event.data for event in probe.events if event.data["event"] != REPORT)
    watched = {data["id"] for data in told if data["event"].startswith("nua_i_") and "id" in data}

    identifiers: Counter[int] = Counter()
    for number, done in thrown.items():
        item, connection, exchange = done.item, done.connection, done.item.exchange
        found = probe.ends.pop(connection.peer, [])
        reports = [event.data for event in probe.reports.pop(connection.peer, [])]
        faults = exchange.faults(done.received) if exchange else []
        if not found and refusable(item):
            result.refused += 1
        elif len(found) != 1:
            faults.append(f"ended {len(found)} times {[(event.data['cause'], event.data['errno']) for event in found]}")
        if [data["id"] for data in reports] != [event.data["id"] for event in found if event.data["id"] in watched]:
            faults.append(f"{len(reports)} reports")
        faults += [
            f"reported on port {data['own_port']}" for data in reports
            if data["own_port"] != str(probe.ports[item.protocol])
        ]  # fmt: skip
        for event in found:
            data = event.data
            late = event.at - done.closed
            result.slowest = max(result.slowest, round(late, 3))
            result.causes[f"{item.protocol} {data['cause']} {data['errno']}"] += 1
            identifiers[data["id"]] += 1
            if late > limit:
                faults.append(f"noticed {late:.1f} s after the close")
            if exchange:
                result.exchanges[exchange.kind] += 1
                got = registers[data["id"]]
                if got > exchange.registers or (got < exchange.registers and exchange.kind != "is cut off"):
                    faults.append(f"{got} REGISTERs got through, not {exchange.registers}")
                if data["cause"] not in exchange.causes(item.end, CAUSES):
                    faults.append(f"cause {data['cause']}")
            right = data["errno"] == errno.ECONNRESET if data["cause"] == "reset" else data["cause"] in CAUSES
            if not right or (data["errno"] == 0) != (data["cause"] == "peer-closed"):
                faults.append(f"cause {data['cause']} with errno {data['errno']}")
            if data["proto"] != item.protocol:
                faults.append(f"noticed as {data['proto']}")
        if faults:
            what = f"{item.protocol} {item.stage} {'+'.join(item.mutations)} {item.end}"
            result.faults.append(f"input {number} ({what}): {', '.join(faults)}")
            save.mkdir(parents=True, exist_ok=True)
            (save / f"{result.seed}-{number}.bin").write_bytes(b"".join(item.parts))
    result.faults += [
        f"end of {host}:{port}, where nothing was sent" for host, port in probe.ends.keys() | probe.reports.keys()
    ]
    result.faults += [f"identifier {number} given {count} times" for number, count in identifiers.items() if count > 1]
    if died or result.status:
        result.faults.append(f"the probe {'died' if died else 'ended'} with status {result.status}")
        save.mkdir(parents=True, exist_ok=True)
        (save / f"{result.seed}.log").write_text(probe.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", type=int, help="repeat this one input")
    parser.add_argument("--tool", choices=("asan", "valgrind", "plain"), default="asan")
    parser.add_argument("--protocols", default=",".join(PROTOCOLS))
    parser.add_argument("--abreast", type=int, default=20, help="connections at a time")
    parser.add_argument("--limit", type=float, default=1.0, help="a report may take so many seconds")
    parser.add_argument("--save", type=Path, default=Path("/tmp/failed"))
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    result = FuzzResult(options.seed, options.tool)
    numbers = range(options.inputs) if options.only is None else range(options.only, options.only + 1)
    asyncio.run(run(result, numbers, tuple(options.protocols.split(",")), options.abreast, options.limit, options.save))
    print(json.dumps(vars(result), indent=1))
    return bool(result.faults or result.complaints)


if __name__ == "__main__":
    sys.exit(main())
