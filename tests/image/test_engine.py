"""Commands in a running container: nothing of their output is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import docker
import pytest
from docker.errors import APIError
from docker.models.containers import Container

from scripts.machine import engine
from scripts.machine.engine import LABEL, Executed
from scripts.pins.settings import Settings

# What the engine sends within this time arrives together, seconds.
TOGETHER = 0.3
SAY = 'echo "$WORD"; echo bad >&2; exit 7'


@pytest.fixture
def sleeper(built: Settings) -> Iterator[Container]:
    with engine.connect() as client:
        container = client.containers.run(
            f"{built.image}:build", ["sleep", "infinity"], detach=True, init=True, labels={LABEL: "true"}
        )
        try:
            yield container
        finally:
            container.remove(force=True, v=True)


@contextmanager
def _late(engine_socket: str) -> Iterator[str]:
    """Hand over the address of a relay to the engine: what it answers arrives at one go, as on a busy machine."""
    loop = asyncio.new_event_loop()

    async def gather(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(TOGETHER)
            with contextlib.suppress(TimeoutError):
                data += await asyncio.wait_for(reader.read(65536), TOGETHER)
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near, far = await asyncio.open_unix_connection(engine_socket)
        answers = asyncio.create_task(gather(near, writer))
        while data := await reader.read(65536):
            far.write(data)
        far.close()
        await answers

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_output_that_arrives_together_with_the_header(sleeper: Container) -> None:
    place = docker.utils.parse_host(os.environ.get("DOCKER_HOST"))
    if not place.startswith("http+unix://"):
        pytest.skip(
            f"output that arrives late is not tested: the engine is at {place}, not at a socket of this machine"
        )
    with (
        _late(place.removeprefix("http+unix://")) as address,
        contextlib.closing(docker.DockerClient(address)) as client,
    ):
        done = engine.execute(client.containers.get(sleeper.id), ["sh", "-c", SAY], environment={"WORD": "good"})
    assert (done.status, done.output, done.errors) == (7, b"good\n", b"bad\n")


def test_what_a_command_came_to(sleeper: Container) -> None:
    done = engine.execute(sleeper, ["sh", "-c", SAY], environment={"WORD": "good"})
    assert (done.status, done.output, done.errors) == (7, b"good\n", b"bad\n")
    assert sorted(done.everything.splitlines()) == [b"bad", b"good"]
    assert engine.execute(sleeper, ["true"]) == Executed(0, ())
    assert engine.execute(sleeper, ["id", "-u"], "1234").output == b"1234\n"
    assert len(engine.execute(sleeper, ["head", "-c", "1000000", "/dev/zero"]).output) == 1_000_000


def test_container_that_does_not_run(sleeper: Container) -> None:
    sleeper.kill()
    with pytest.raises(APIError, match="not running"):
        engine.execute(sleeper, ["true"])
