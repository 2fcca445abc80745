"""Throws random and mutated input at the probe and checks that the end of each connection is reported once.

    python3 -m tests.fuzz --inputs 10000 --tool asan

Runs inside the container of the probe (tests/probe/Dockerfile). Input N of a
seed is always the same, whatever else is going on: `--only N` repeats it.
Prints a JSON document; what failed is saved below --save.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.probe.drive import PROTOCOLS, Probe, Wire, frame, generator, sip, source, upgrade

CAUSES = {"peer-closed", "reset", "send-error", "tls-error", "protocol-error"}
SDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"
METHODS = ("REGISTER", "REGISTER", "INVITE", "OPTIONS", "MESSAGE", "SUBSCRIBE", "BYE", "CANCEL", "ACK", "200", "486")
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
class Input:
    """What is sent over connection `number`, and how it is ended."""

    number: int
    protocol: str
    stage: str
    mutations: list[str]
    parts: list[bytes]
    pause: float
    end: str


@dataclass
class Result:
    seed: int
    tool: str
    inputs: int = 0
    seconds: float = 0
    status: int = -1
    refused: int = 0
    slowest: float = 0
    causes: Counter[str] = field(default_factory=Counter)
    registers: int = 0
    faults: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def make(seed: int, number: int, protocols: tuple[str, ...]) -> Input:
    rng = generator(seed, number)
    protocol = rng.choices(protocols, [3 if name == "tcp" else 1 for name in protocols])[0]
    host = source(number)
    method = rng.choice(METHODS)
    data = sip(method, f"{seed}-{number}", protocol, host, body=SDP if method == "INVITE" else "")
    # Mutated are the hands to shake, too.
    stages = {"tcp": ["message"], "tls": ["message", "tls", "record"], "ws": ["message", "upgrade", "frame"]}
    stages["wss"] = [*stages["ws"], "tls", "record"]
    stage = rng.choice(["message", *stages[protocol]])
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
    return Input(
        number, protocol, stage, names, parts, rng.choice((0, 0, 0.002, 0.02)), rng.choice(("fin", "fin", "reset"))
    )  # fmt: skip


def refusable(item: Input) -> bool:
    """Return whether tport_accept() may refuse the connection, so that there is none that could end.

    It does so with WebSockets whose first bytes are wrong.
    """
    return item.protocol in ("ws", "wss") and item.stage in ("upgrade", "tls", "record")


async def throw(item: Input, port: int, seed: int) -> tuple[Wire, float]:
    """Send one input and return its connection and when it was closed."""
    rng = generator(seed, item.number, "wire")
    wire = await Wire.open(port, source(item.number))
    try:
        if item.protocol in ("tls", "wss"):
            if item.stage == "tls":
                await wire.raw(rng.choice(MUTATIONS)(rng, wire.hello()))
            else:
                await wire.handshake()
        if item.protocol in ("ws", "wss") and item.stage in ("message", "frame"):
            await wire.send(upgrade())
            await wire.receive_until(b"\r\n\r\n")
        for part in item.parts:
            if item.stage in ("tls", "record") and rng.random() < 0.8:
                size = rng.choice((len(part), 0, 1, 65535)) & 0xFFFF
                head = rng.choice((b"\x17", b"\x16", b"\x15", b"\0")) + b"\3\3" + size.to_bytes(2, "big")
                await wire.raw(head + part)
            elif item.stage == "tls":
                await wire.raw(part)
            else:
                await wire.send(part)
            await asyncio.sleep(item.pause)
    except (OSError, TimeoutError):
        pass  # The probe may well have had enough.
    if item.end == "fin":
        wire.fin()
    else:
        wire.reset()
    return wire, time.time()


async def run(
    result: Result, numbers: range, protocols: tuple[str, ...], abreast: int, limit: float, save: Path
) -> None:
    """Throw the inputs `numbers`, `abreast` at a time, and put into `result` what came of it."""
    probe = await Probe.start(result.tool, *(["-k"] if result.seed % 2 else []), log=Path("/tmp/fuzz.log"))
    start = time.monotonic()
    queue = iter(numbers)
    thrown: dict[int, tuple[Input, Wire, float]] = {}

    async def work() -> None:
        for number in queue:
            if probe.reader.done():
                return
            item = make(result.seed, number, protocols)
            try:
                thrown[number] = (item, *await throw(item, probe.ports[item.protocol], result.seed))
            except OSError as error:
                result.faults.append(f"input {number}: can't connect: {error}")
                continue
            # Else a slow parser would make the queue of accept() overflow.
            await probe.reported(thrown[number][1], 0.1 if refusable(item) else limit)

    await asyncio.gather(*(work() for _ in range(abreast)))
    result.inputs = len(thrown)
    result.seconds = round(time.monotonic() - start, 1)
    # Long enough for the late and for the second report.
    await asyncio.sleep(2 * limit)
    died = probe.reader.done()
    result.status = await probe.stop()
    result.complaints = probe.complaints()[:200]
    result.registers = sum(event.data["event"] == "nua_i_register" for event in probe.events)

    identifiers: Counter[int] = Counter()
    for number, (item, wire, closed) in thrown.items():
        found = probe.ends.pop((wire.host, str(wire.port)), [])
        faults = []
        if not found and refusable(item):
            result.refused += 1
        elif len(found) != 1:
            faults.append(f"{len(found)} reports {[(event.data['cause'], event.data['errno']) for event in found]}")
        for event in found:
            data = event.data
            late = event.at - closed
            result.slowest = max(result.slowest, round(late, 3))
            result.causes[f"{item.protocol} {data['cause']} {data['errno']}"] += 1
            identifiers[data["id"]] += 1
            if late > limit:
                faults.append(f"reported {late:.1f} s after the close")
            right = data["errno"] == errno.ECONNRESET if data["cause"] == "reset" else data["cause"] in CAUSES
            if not right or (data["errno"] == 0) != (data["cause"] == "peer-closed"):
                faults.append(f"cause {data['cause']} with errno {data['errno']}")
            if (data["proto"], data["own_port"]) != (item.protocol, str(probe.ports[item.protocol])):
                faults.append(f"reported as {data['proto']} on port {data['own_port']}")
        if faults:
            what = f"{item.protocol} {item.stage} {'+'.join(item.mutations)} {item.end}"
            result.faults.append(f"input {number} ({what}): {', '.join(faults)}")
            save.mkdir(parents=True, exist_ok=True)
            (save / f"{result.seed}-{number}.bin").write_bytes(b"".join(item.parts))
    result.faults += [f"report of {host}:{port}, where nothing was sent" for host, port in probe.ends]
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
    result = Result(options.seed, options.tool)
    numbers = range(options.inputs) if options.only is None else range(options.only, options.only + 1)
    asyncio.run(run(result, numbers, tuple(options.protocols.split(",")), options.abreast, options.limit, options.save))
    print(json.dumps(vars(result), indent=1))
    return bool(result.faults or result.complaints)


if __name__ == "__main__":
    sys.exit(main())
