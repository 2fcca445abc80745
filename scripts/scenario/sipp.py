"""SIPp as one process in a container that outlives it.

Only the process is killed: how the network of a killed container ends, and
whether a FIN still gets out of it, is up to the engine.
"""

from __future__ import annotations

import re
import secrets
import signal
import time
from dataclasses import dataclass

from docker.models.containers import Container

from scripts.errors import ToolkitError
from scripts.machine import engine, files
from scripts.scenario.lab import DOMAIN, Lab
from scripts.scenario.table import Scenario

LOGS = ("screen.log", "errors.log", "messages.log")
# SIPp's -t.
TRANSPORTS = {"udp": "u1", "tcp": "t1", "tls": "l1"}
# How long a scenario that holds its connection holds it, milliseconds.
HOLD_MS = 3_600_000


def log_name(variant: str, case: str) -> str:
    """Return the name of the file with SIPp's logs of `case` on the image `variant`."""
    return f"{variant}-{plain(case)}-sipp.log"


def plain(case: str) -> str:
    """Return what a file and a container can be called after `case`."""
    return re.sub("[^A-Za-z0-9.-]+", "-", case)


@dataclass
class Sipp:
    """SIPp, started with `start`, in its `container` with the IPv4 `address`; `name` is its scenario's."""

    lab: Lab
    name: str
    log: str
    container: Container
    address: str
    execution: str

    def kill(self) -> int:
        """Kill SIPp; return when, in nanoseconds since the epoch.

        The container's shell takes the time just before, on the clock that
        stamps the events; starting an exec takes far longer than the kill.
        """
        code = self._exit_code(0)
        if code is not None:
            raise ToolkitError(f"SIPp had ended before it could be killed (exit code {code}): {self.errors()}")
        script = 'pid=$(cat /tmp/sipp.pid) && date +%s%N && kill -KILL "$pid"'
        kill = engine.execute(self.container, ["sh", "-c", script])
        if kill.status != 0:
            raise ToolkitError(f"can't kill SIPp in {self.container.name}: {files.first_line(kill.everything)}")
        code = self._exit_code(2.0)
        if code != 128 + signal.SIGKILL:
            raise ToolkitError(f"SIPp in {self.container.name} was not killed: exit code {code}")
        return int(kill.output)

    def end(self, timeout: float) -> None:
        """Wait until SIPp has carried out its scenario, for `timeout` seconds at most."""
        code = self._exit_code(timeout)
        if code is None:
            raise ToolkitError(f"SIPp did not end its scenario '{self.name}' in {timeout:g} s")
        if code != 0:
            raise ToolkitError(f"SIPp failed with exit code {code}: {self.errors()}")

    def errors(self) -> str:
        """Keep SIPp's logs; return where, with the first line of its errors."""
        path = self.keep_logs()
        head = engine.execute(self.container, ["head", "-n", "5", "/tmp/errors.log"])
        return f"{files.first_line(head.output) or 'SIPp noted no error'}; SIPp's log is in {path}"

    def keep_logs(self) -> str:
        """Keep SIPp's logs; return the path of the file."""
        script = f'cd /tmp; for f in {" ".join(LOGS)}; do echo "== $f"; cat "$f" 2>/dev/null; done'
        logs = engine.execute(self.container, ["sh", "-c", script])
        return files.write(self.lab.freeswitch.logs / self.log, logs.output)

    def remove(self) -> None:
        """Remove the container."""
        self.container.remove(force=True, v=True)

    def _exit_code(self, timeout: float) -> int | None:
        deadline = time.monotonic() + timeout
        while True:
            state = self.container.client.api.exec_inspect(self.execution)
            if not state["Running"] and state["ExitCode"] is not None:
                return int(state["ExitCode"])
            if time.monotonic() >= deadline:
                return None
            self.lab.pause(0.05)


def rendered(scenario: Scenario, name: str, user: str, password: str, seconds: float) -> str:
    """Return SIPp's scenario sipp/`name`.xml; it may wait so many seconds for a response.

    Raises ToolkitError if it can't be rendered.
    """
    return scenario.render(
        f"sipp/{name}.xml",
        user=user,
        answer=f"[authentication username={user} password={password}]",
        domain=DOMAIN,
        timeout_ms=int(seconds * 1000),
        hold_ms=HOLD_MS,
    )


def start(lab: Lab, name: str, case: str, user: str, profile: str, transport: str) -> Sipp:
    """Run SIPp with the scenario sipp/`name`.xml as `user`, against `profile` over `transport` (udp, tcp, tls)."""
    client = lab.client
    container = client.containers.create(
        f"{lab.settings.image}:sipp",
        entrypoint=["sleep"],
        command=["infinity"],
        init=True,
        # Cases that are told apart by more than a name can have names that are plainly the same.
        name="-".join([lab.name, *([secrets.token_hex(2)] if lab.scenario.several else []), plain(case), "sipp"]),
        labels=dict(lab.labels),
        network=lab.network,
    )
    text = rendered(lab.scenario, name, user, lab.password, lab.wait.report)
    container.put_archive("/tmp", engine.tar({"scenario.xml": text}))
    container.start()
    container.reload()
    address = str(container.attrs["NetworkSettings"]["Networks"][lab.network]["IPAddress"])
    host, port = lab.target(profile, transport)
    command = (
        f"sipp {host}:{port} -sf scenario.xml -t {TRANSPORTS[transport]} -i {address} -m 1 -nostdin -aa "
        "-trace_err -error_file errors.log -trace_msg -message_file messages.log"
    )
    script = f"cd /tmp && echo $$ >sipp.pid && exec {command} >screen.log 2>&1"
    execution = client.api.exec_create(container.id, ["sh", "-c", script])
    client.api.exec_start(execution["Id"], detach=True)
    return Sipp(lab, name, log_name(lab.freeswitch.variant, case), container, address, execution["Id"])


def version(container: Container) -> str:
    """Return what SIPp in `container` says of its version."""
    return files.first_line(engine.execute(container, ["sipp", "-v"]).everything)
