"""The verification: SIPp clients that are really killed, on both images."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import ipaddress
import re
import secrets
import shutil
import signal
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import docker
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container
from requests.exceptions import RequestException
from rich import get_console
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.freeswitch.capture import Capture, Sniffer
from scripts.freeswitch.events import (
    REGISTER,
    UNREGISTER,
    ConnectionLost,
    Event,
    Subscriber,
    Unreachable,
)
from scripts.freeswitch.packets import has_end
from scripts.image import build
from scripts.machine import engine, terminal
from scripts.machine.engine import LABEL
from scripts.machine.files import ROOT
from scripts.machine.terminal import ProgressDisplay
from scripts.pins.settings import Settings
from scripts.report import write
from scripts.scenario.cases import CASES, DOMAIN, PROFILE, VARIANTS, Action, Case, Expectation
from scripts.scenario.judge import Observation, judge
from scripts.scenario.outcome import Image, Result, Run, Verdict
from scripts.sources import trees
from scripts.templates import render

RUN_LABEL = f"{LABEL}.run"

SIP_PORT = 5060
ESL_PORT = 8021
DIRECTORY = "/etc/freeswitch/directory"
DEBUG_LOG = "/var/log/freeswitch/freeswitch.log"
# Seconds in which a duplicate of a report would have to come.
SETTLE = 2.0
# Seconds by which tcpdump may lag behind.
CAPTURE_LAG = 10.0
HOLD_MS = 3_600_000
# Lines of a log that go into the report.
EXCERPT = 60
SIPP_LOGS = ("screen.log", "errors.log", "messages.log")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

T = TypeVar("T")


def verify(settings: Settings) -> None:
    """Build the images and run all cases on the patched and the stock one.

    Shows the results and writes them to the report directory. Raises
    ToolkitError if any case didn't pass or couldn't be run.
    """
    write.prepare(settings.report_directory)
    build.build(settings)
    run(settings)


def run(
    settings: Settings,
    cases: Sequence[Case] = CASES,
    variants: Sequence[str] = VARIANTS,
    console: Console | None = None,
) -> Run:
    """Run `cases` on the existing images of `variants` and return the results.

    The report is written in any case, also of a run that broke off; containers
    and networks are removed. Raises ToolkitError if a case didn't pass, if
    FreeSWITCH or Docker failed, or on SIGINT and SIGTERM.
    """
    console = console or get_console()
    logs = settings.report_directory / "logs"
    # A log must not be taken for this run's.
    shutil.rmtree(logs, ignore_errors=True)
    with engine.connect() as client:
        lab = _Lab(settings, client, logs, console)
        started = datetime.now().astimezone()
        failure: ToolkitError | None = None
        try:
            lab.find_images(variants)
            _run_loop(lab, cases, variants)
        except ToolkitError as error:
            failure = error
        except (DockerException, RequestException) as error:
            failure = ToolkitError(f"Docker failed in the middle of the verification: {engine.brief(error)}")
        finally:
            with _undisturbed():
                left = _sweep(client, lab.id)
                results = _complete(lab.results, cases, variants, str(failure or "broken off"))
                results = [_with_logs(result, logs) for result in results]
                outcome = Run(started, lab.images, lab.versions, results, subclass=settings.esl_event)
                page = write.write(outcome, settings.report_directory)
                write.show(outcome, console)
    if not outcome.failures:
        console.print(f"report in {_short(page)}", soft_wrap=True)
    where = f"report in {_short(page)}"
    if failure:
        raise ToolkitError("; ".join([str(failure), *left, where])) from failure
    if outcome.failures:
        first = outcome.failures[0]
        problem = first.problems[0] if first.problems else first.verdict
        raise ToolkitError(
            f"{len(outcome.failures)} of {len(outcome.results)} cases did not pass, first '{first.case}' on "
            f"{first.variant}: {problem}; {where}"
        )
    if left:
        raise ToolkitError(left[0])
    return outcome


def _run_loop(lab: _Lab, cases: Sequence[Case], variants: Sequence[str]) -> None:
    terminated = False

    async def main() -> None:
        this = asyncio.current_task()

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            if this:
                this.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        with terminal.work(lab.console) as work:
            # Most of a case is waiting, so the variants do it at the same time.
            async with asyncio.TaskGroup() as group:
                for variant in variants:
                    group.create_task(lab.run_variant(variant, cases, work))

    try:
        # On its way out it waits for Docker calls that are still under way in
        # their threads: nothing is made after the sweep.
        asyncio.run(main())
    except BaseExceptionGroup as errors:
        # The first one made the group cancel the others.
        raise errors.exceptions[0] from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        name = "SIGTERM" if terminated else "Ctrl-C"
        raise ToolkitError(f"verification broken off by {name}") from None


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM: an impatient second one must not leave containers."""
    signals = (signal.SIGINT, signal.SIGTERM)
    old = [signal.signal(number, signal.SIG_IGN) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, old, strict=True):
            signal.signal(number, handler)


def _complete(results: Sequence[Result], cases: Sequence[Case], variants: Sequence[str], reason: str) -> list[Result]:
    """Return the results, those of cases that weren't run for `reason` included."""
    known = {(result.variant, result.case): result for result in results}
    return [
        known.get((variant, case.name))
        or Result(variant, case.name, "", str(case.expected[variant]), "", Verdict.NOT_RUN, [reason])
        for variant in variants
        for case in cases
    ]


def _with_logs(result: Result, logs: Path) -> Result:
    """Return `result` with the ends of its logs if it didn't pass: SIPp's, and what FreeSWITCH printed."""
    if result.verdict is Verdict.PASSED:
        return result
    excerpts = {}
    for name in (_sipp_log(result.variant, result.case), f"{result.variant}-freeswitch.log"):
        with contextlib.suppress(OSError):
            lines = ANSI.sub("", (logs / name).read_text(errors="replace")).splitlines()
            excerpts[name] = "\n".join(line.rstrip() for line in lines[-EXCERPT:])
    return dataclasses.replace(result, logs=excerpts)


def _sipp_log(variant: str, case: str) -> str:
    return f"{variant}-{case.replace(' ', '-')}-sipp.log"


def _sweep(client: docker.DockerClient, run_id: str) -> list[str]:
    """Remove the run's containers and networks; return what failed, as lines."""
    filters = {"label": f"{RUN_LABEL}={run_id}"}
    try:
        for container in client.containers.list(all=True, filters=filters, ignore_removed=True):
            with contextlib.suppress(NotFound):
                container.remove(force=True, v=True)
        for network in client.networks.list(filters=filters):
            with contextlib.suppress(NotFound):
                network.remove()
    except (DockerException, RequestException) as error:
        return [f"can't remove the containers of this run ({engine.brief(error)}): `inv clean --no-sources` does"]
    return []


@dataclass
class _Lab:
    """What the run has and makes: images, results, and a label for the rest."""

    settings: Settings
    client: docker.DockerClient
    logs: Path
    console: Console
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    images: list[Image] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)

    @property
    def labels(self) -> dict[str, str]:
        return {LABEL: "true", RUN_LABEL: self.id}

    def name(self, part: str) -> str:
        return f"{self.settings.image.replace('/', '-')}-{self.id}-{part}"

    def find_images(self, variants: Sequence[str]) -> None:
        for variant in (*variants, "sipp"):
            tag = f"{self.settings.image}:{variant}"
            try:
                image = self.client.images.get(tag)
            except NotFound:
                raise ToolkitError(f"there is no image {tag}: `inv build` makes it") from None
            self.images.append(Image(variant, tag, image.id, image.labels))
            self.versions |= upstreams(self.settings, image.labels)
        self.versions |= engine.versions(self.client)
        self.versions["genesis"] = importlib.metadata.version("genesis")

    def image(self, variant: str) -> str:
        return next(image.id for image in self.images if image.variant == variant)

    async def run_variant(self, variant: str, cases: Sequence[Case], work: ProgressDisplay) -> None:
        with work.task(variant) as shown:
            shown.say("starting FreeSWITCH")
            async with _freeswitch(self, variant, cases) as bench:
                for case in cases:
                    shown.say(case.name)
                    result, lost = await bench.run(case)
                    self.results.append(result)
                    if result.verdict is not Verdict.PASSED:
                        await bench.keep_log()
                    if lost:
                        raise ToolkitError(result.problems[0])


@dataclass
class _Bench:
    """A running FreeSWITCH on a network of its own, with a subscriber."""

    lab: _Lab
    variant: str
    network: str
    container: Container
    address: str
    passwords: Mapping[str, str]
    subscribe: Callable[[], Subscriber]
    sniffer: Sniffer

    def __post_init__(self) -> None:
        self.subscriber = self.subscribe()

    async def run(self, case: Case) -> tuple[Result, bool]:
        """Return the result of `case`, and whether this bench is lost."""
        observation = Observation(case.user, case.transport[1], self.lab.settings.esl_event)
        expected = case.expected[self.variant]
        start, began_ns = time.monotonic(), time.time_ns()
        lost = False
        try:
            await self._carry_out(case, expected, observation)
            problems = judge(expected, observation)
            verdict = Verdict.FAILED if problems else Verdict.PASSED
        except (ToolkitError, APIError) as error:
            death = await self.death()
            lost = death is not None or isinstance(error, ConnectionLost)
            problem = str(error) if isinstance(error, ToolkitError) else f"Docker refused: {engine.brief(error)}"
            problems = [f"{death} (case '{case.name}')" if death else problem]
            verdict = Verdict.ERROR
        timings = observation.timings()
        result = Result(
            variant=self.variant,
            case=case.name,
            done=case.action.value,
            expected=str(expected),
            came=observation.came(),
            verdict=verdict,
            problems=problems,
            delay_ms=timings.get("kill_to_event"),
            timings=timings,
            seconds=time.monotonic() - start,
            events=observation.events,
            capture=await self._capture(observation, began_ns),
        )
        return result, lost

    async def _carry_out(self, case: Case, expected: Expectation, observation: Observation) -> None:
        timeout = self.lab.settings.event_timeout
        async with _sipp(self, case) as client:
            observation.address = client.address
            observation.registered = await self._until(observation, observation.is_registration, timeout)
            if not observation.registered:
                raise ToolkitError(f"{case.user} did not register in {timeout:g} s: {await client.errors()}")
            if case.action is Action.KILL:
                await self._check_listed(observation.registered)
                observation.address = await self._peer(observation.registered.get("network-port")) or client.address
                observation.killed_ns = await client.kill()
            else:
                await client.end(timeout)
            if expected.reports and await self._until(observation, observation.is_report, timeout):
                timeout = min(SETTLE, timeout)
            await self._until(observation, lambda event: False, timeout)
            if judge(expected, observation):
                await client.keep_logs()

    async def _capture(self, observation: Observation, began_ns: int) -> Capture:
        """Read the capture, on a busy machine again until the client's end is in it."""
        deadline = time.monotonic() + CAPTURE_LAG
        while True:
            capture = await self._read_capture(observation, began_ns)
            complete = not observation.registered or bool(capture.problem) or has_end(capture)
            if complete or time.monotonic() >= deadline:
                return capture
            await asyncio.sleep(0.2)

    async def _read_capture(self, observation: Observation, began_ns: int) -> Capture:
        pcap, problem = await _docker(self.sniffer.read)
        return Capture(
            transport=observation.transport,
            server=self.address,
            client=observation.registered.get("network-ip") if observation.registered else observation.address,
            began_ns=began_ns,
            ended_ns=time.time_ns(),
            killed_ns=observation.killed_ns,
            pcap=pcap,
            problem=problem,
        )

    async def _until(self, observation: Observation, wanted: Callable[[Event], bool], timeout: float) -> Event | None:
        """Note the events that come, up to a `wanted` one; None if that doesn't come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while True:
                    event = await self.subscriber.get()
                    observation.events.append(event)
                    if wanted(event):
                        return event
        return None

    async def _check_listed(self, registered: Event) -> None:
        text = await self.subscriber.api(f"sofia xmlstatus profile {PROFILE} reg")
        listed = [node.text for node in _xml(text).iterfind("registrations/registration/call-id")]
        if registered.get("call-id") not in listed:
            raise ToolkitError(f"FreeSWITCH does not list the registration with call-id {registered.get('call-id')}")

    async def _peer(self, port: str) -> str:
        """Return the IPv4 address that FreeSWITCH's kernel has for the client at `port`; "" if none is connected.

        A rule for NAT that some other network has left behind may have changed
        the one that the client has.
        """
        table = await _docker(engine.execute, self.container, ["cat", "/proc/net/tcp"])
        for line in table.output.decode().splitlines()[1:]:
            _, near, far, *_ = line.split()
            address, _, number = far.partition(":")
            if int(near.partition(":")[2], 16) == SIP_PORT and str(int(number, 16)) == port:
                return str(ipaddress.IPv4Address(bytes.fromhex(address)[::-1]))
        return ""

    async def death(self) -> str | None:
        """Return how the container died, None if it's alive."""
        name = f"FreeSWITCH container {self.container.name} ({self.variant})"
        try:
            # The event socket ends before the container does.
            status = await _docker(self.container.wait, timeout=2)
        except NotFound:
            return f"{name} was removed in the middle"
        except (APIError, RequestException):
            return None
        path, tail = await self.keep_log()
        return f"{name} died with exit code {status['StatusCode']}: {tail}; its log is in {path}"

    async def keep_log(self) -> tuple[str, str]:
        """Keep the logs; return the path of what it printed, and the last lines of that on one line."""
        log = await _docker(self.container.logs)
        with contextlib.suppress(APIError):
            stream, _ = await _docker(self.container.get_archive, DEBUG_LOG)
            with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
                file = archive.extractfile(archive.getmembers()[0])
                _keep(self.lab.logs / f"{self.variant}-freeswitch-debug.log", file.read() if file else b"")
        path = _keep(self.lab.logs / f"{self.variant}-freeswitch.log", log)
        lines = ANSI.sub("", log.decode(errors="replace")).split("\n")
        tail = [" ".join(line.split()) for line in lines if line.strip()][-3:]
        return path, " | ".join(tail)[-400:] or "it logged nothing"

    async def start(self) -> None:
        """Wait until FreeSWITCH is ready, and subscribe to its events."""
        timeout = self.lab.settings.start_timeout
        deadline = time.monotonic() + timeout
        reason = "nothing tried yet"
        while True:
            await _docker(self.container.reload)
            if self.container.status != "running":
                raise ToolkitError(await self.death() or f"FreeSWITCH ({self.variant}) is {self.container.status}")
            if time.monotonic() > deadline:
                path, _ = await self.keep_log()
                raise ToolkitError(
                    f"FreeSWITCH ({self.variant}) isn't ready after {timeout:g} s: {reason}; its log is in {path} "
                    "(the event socket is reached at the container's address: this needs Docker on this very Linux)"
                )
            try:
                await self.subscriber.__aenter__()
                reason = await self._unready()
                if not reason:
                    return
            except (Unreachable, ConnectionLost) as error:
                reason = str(error)
            await self.subscriber.__aexit__(None, None, None)
            self.subscriber = self.subscribe()
            await asyncio.sleep(0.2)

    async def _unready(self) -> str:
        """Return why FreeSWITCH isn't ready, "" if it is."""
        status = await self.subscriber.api("status")
        if "is ready" not in status:
            return "it says it isn't ready"
        for profile in _xml(await self.subscriber.api("sofia xmlstatus")).iterfind("profile"):
            if profile.findtext("name") == PROFILE and profile.findtext("state", "").startswith("RUNNING"):
                version = await self.subscriber.api("version")
                self.lab.versions[f"freeswitch ({self.variant})"] = " ".join(version.split())
                return ""
        return f"its SIP profile {PROFILE} doesn't run"


@contextlib.asynccontextmanager
async def _freeswitch(lab: _Lab, variant: str, cases: Sequence[Case]) -> AsyncIterator[_Bench]:
    """Run FreeSWITCH of `variant` with the users of `cases`."""
    network = await _docker(lab.client.networks.create, lab.name(variant), driver="bridge", labels=lab.labels)
    await _docker(network.reload)
    subnet = network.attrs["IPAM"]["Config"][0]["Subnet"]
    password = secrets.token_hex(16)
    passwords = {case.user: secrets.token_hex(8) for case in cases}
    container = await _docker(
        lab.client.containers.create,
        lab.image(variant),
        name=lab.name(f"{variant}-freeswitch"),
        labels=lab.labels,
        network=network.name,
        environment={
            "ESL_LISTEN_IP": "0.0.0.0",
            "ESL_PORT": str(ESL_PORT),
            "ESL_PASSWORD": password,
            "ESL_ACL": subnet,
            "SIP_DOMAIN": DOMAIN,
        },
    )
    users = {f"{user}.xml": render("freeswitch/user", user=user, password=word) for user, word in passwords.items()}
    await _docker(container.put_archive, DIRECTORY, engine.tar(users))
    await _docker(container.start)
    address = await _address(container, network.name)
    subclasses = (lab.settings.esl_event, REGISTER, UNREGISTER)
    subscribe = functools.partial(Subscriber, address, ESL_PORT, password, subclasses)
    sniffer = Sniffer(
        lab.client,
        lab.image("sipp"),
        container,
        f"tcp and host {address} and not port {ESL_PORT}",
        lab.name(f"{variant}-capture"),
        lab.labels,
    )
    bench = _Bench(lab, variant, network.name, container, address, passwords, subscribe, sniffer)
    try:
        # While FreeSWITCH starts.
        await _docker(sniffer.start)
        await bench.start()
        yield bench
    finally:
        await bench.subscriber.__aexit__(None, None, None)
    await _docker(sniffer.remove)
    await _docker(container.remove, force=True, v=True)
    await _docker(network.remove)


@dataclass
class _Sipp:
    """SIPp as one process in a container that outlives it.

    Only the process is killed: how the network of a killed container ends, and
    whether a FIN still gets out of it, is up to the engine.
    """

    bench: _Bench
    case: Case
    container: Container
    address: str
    execution: str

    async def kill(self) -> int:
        """Kill SIPp; return when, in nanoseconds since the epoch.

        The container's shell takes the time just before, on the clock that
        stamps the events; starting an exec takes far longer than the kill.
        """
        await self._check_running()
        script = 'pid=$(cat /tmp/sipp.pid) && date +%s%N && kill -KILL "$pid"'
        kill = await _docker(engine.execute, self.container, ["sh", "-c", script])
        if kill.status != 0:
            raise ToolkitError(f"can't kill SIPp in {self.container.name}: {_line(kill.everything)}")
        killed_ns = int(kill.output)
        code = await self._exit_code(2.0)
        if code != 128 + signal.SIGKILL:
            raise ToolkitError(f"SIPp in {self.container.name} was not killed: exit code {code}")
        return killed_ns

    async def end(self, timeout: float) -> None:
        """Wait until SIPp has carried out its scenario."""
        code = await self._exit_code(timeout)
        if code is None:
            raise ToolkitError(f"SIPp did not end its scenario '{self.case.template}' in {timeout:g} s")
        if code != 0:
            raise ToolkitError(f"SIPp failed with exit code {code}: {await self.errors()}")

    async def errors(self) -> str:
        """Keep SIPp's logs; return where, with the first line of its errors."""
        path = await self.keep_logs()
        head = await _docker(engine.execute, self.container, ["head", "-n", "5", "/tmp/errors.log"])
        return f"{_line(head.output) or 'SIPp noted no error'}; SIPp's log is in {path}"

    async def keep_logs(self) -> str:
        script = f'cd /tmp; for f in {" ".join(SIPP_LOGS)}; do echo "== $f"; cat "$f" 2>/dev/null; done'
        logs = await _docker(engine.execute, self.container, ["sh", "-c", script])
        return _keep(self.bench.lab.logs / _sipp_log(self.bench.variant, self.case.name), logs.output)

    async def _check_running(self) -> None:
        code = await self._exit_code(0)
        if code is not None:
            raise ToolkitError(f"SIPp had ended before it could be killed (exit code {code}): {await self.errors()}")

    async def _exit_code(self, timeout: float) -> int | None:
        deadline = time.monotonic() + timeout
        while True:
            state = await _docker(self.bench.lab.client.api.exec_inspect, self.execution)
            if not state["Running"] and state["ExitCode"] is not None:
                return int(state["ExitCode"])
            if time.monotonic() >= deadline:
                return None
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def _sipp(bench: _Bench, case: Case) -> AsyncIterator[_Sipp]:
    """Run SIPp with the scenario of `case` against the FreeSWITCH of `bench`."""
    lab = bench.lab
    container = await _docker(
        lab.client.containers.create,
        lab.image("sipp"),
        entrypoint=["sleep"],
        command=["infinity"],
        init=True,
        name=lab.name(f"{bench.variant}-{case.name.replace(' ', '-')}-sipp"),
        labels=lab.labels,
        network=bench.network,
    )
    scenario = render(
        f"sipp/{case.template}",
        user=case.user,
        answer=f"[authentication username={case.user} password={bench.passwords[case.user]}]",
        domain=DOMAIN,
        timeout_ms=int(lab.settings.event_timeout * 1000),
        hold_ms=HOLD_MS,
    )
    await _docker(container.put_archive, "/tmp", engine.tar({"scenario.xml": scenario}))
    await _docker(container.start)
    address = await _address(container, bench.network)
    command = (
        f"sipp {bench.address}:{SIP_PORT} -sf scenario.xml -t {case.transport[0]} -i {address} -m 1 -nostdin -aa "
        "-trace_err -error_file errors.log -trace_msg -message_file messages.log"
    )
    script = f"cd /tmp && echo $$ >sipp.pid && exec {command} >screen.log 2>&1"
    execution = await _docker(lab.client.api.exec_create, container.id, ["sh", "-c", script])
    await _docker(lab.client.api.exec_start, execution["Id"], detach=True)
    if "sipp" not in lab.versions:
        version = await _docker(engine.execute, container, ["sipp", "-v"])
        lab.versions["sipp"] = _line(version.everything)
    try:
        yield _Sipp(bench, case, container, address, execution["Id"])
    finally:
        await _docker(container.remove, force=True, v=True)


def upstreams(settings: Settings, labels: Mapping[str, str]) -> dict[str, str]:
    """Return what an image with `labels` was made of: the upstreams and the patch series."""
    found = {}
    for source in settings.sources:
        if commit := labels.get(f"{LABEL}.{source.name}", ""):
            version = trees.version(source) if commit == source.commit and source.tag else ""
            found[source.name] = f"{version} ({commit})" if version else commit
    if series := labels.get(f"{LABEL}.series", ""):
        found["patch series"] = series
    return found


async def _docker(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call Docker in a thread: events are to be stamped meanwhile."""
    return await asyncio.to_thread(call, *args, **kwargs)


async def _address(container: Container, network: str) -> str:
    """Return the container's IPv4 address; "" if it ended already."""
    await _docker(container.reload)
    return str(container.attrs["NetworkSettings"]["Networks"][network]["IPAddress"])


def _xml(text: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(text.strip())
    except ElementTree.ParseError:
        raise ToolkitError(f"FreeSWITCH answers '{_line(text.encode())}' instead of XML") from None


def _keep(path: Path, content: bytes) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ToolkitError(f"can't write {path}: {error.strerror}") from None
    return _short(path)


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _line(output: bytes) -> str:
    """Return the first line that has something on it."""
    lines = (" ".join(line.split()) for line in output.decode(errors="replace").splitlines())
    return next((line for line in lines if line), "")[:200]
