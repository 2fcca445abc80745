"""The health check: what it finds, and what it calls unhealthy."""

from __future__ import annotations

import contextlib

import pytest

from scripts.bench.offenders import RawConnection
from tests.image.deployment.node import (
    Run,
    certificates,
)


def test_health_is_what_freeswitch_says(run: Run) -> None:
    node = run(options={"healthcheck": {"test": ["CMD", "freeswitch-health.sh"], "interval": 10**9}})
    node.wait(lambda: node.state["Health"]["Status"] == "healthy", "never healthy")
    # A profile stops after it was up for ten seconds.
    node.wait(lambda: "Please wait" not in node.cli("sofia profile internal stop"), "the profile doesn't stop")
    node.wait(lambda: "no SIP profile runs" in node.shell("freeswitch-health.sh")[1], "the profile still runs")
    node.wait(lambda: node.state["Health"]["Status"] == "unhealthy", "still healthy")


@pytest.mark.parametrize(
    "environment",
    [
        {"SIP_NAT": "198.51.100.7"},
        {"SIP_TRANSPORTS": "tcp"},
        {"SIP_TRANSPORTS": "tls,wss"},
        # It has no certificate that the profile would take.
        {"SIP_TRANSPORTS": "tls", "TLS_CLIENT_CA_FILE": "/etc/freeswitch/tls/tls.crt"},
        {"SIP_BIND": "127.0.0.1"},
    ],
    ids=str,
)
def test_health_check_finds_the_port(run: Run, environment: dict[str, str]) -> None:
    node = run(files=certificates(), **environment).ready()
    assert node.shell("freeswitch-health.sh") == (0, "ready")
    assert node.shell("cat /proc/[0-9]*/comm | grep -c openssl") == (1, "0")


@pytest.mark.parametrize("transports", ["udp,ws", "tls,ws"])
def test_profile_that_stands_still_is_unhealthy(run: Run, transports: str) -> None:
    # Stock waits for the rest of a frame, for ten seconds each, and answers nobody.
    node = run(files=certificates(), stage="stock", SIP_TRANSPORTS=transports).ready()
    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(contextlib.closing(RawConnection("ws", (node.address, 5066)))) for _ in range(5)]
        for raw in raws:
            raw.send(b"\x81")
        node.wait(
            lambda: node.shell("freeswitch-health.sh") == (1, "SIP profile internal doesn't answer"), "still healthy"
        )


def test_full_disk_is_unhealthy(run: Run) -> None:
    node = run(options={"tmpfs": {"/var/lib/freeswitch/db": "size=4m,uid=5060,gid=5060,mode=750"}}).ready()
    node.shell("cat /dev/zero > /var/lib/freeswitch/db/full")
    assert node.shell("freeswitch-health.sh") == (1, "no room in /var/lib/freeswitch/db")
    node.shell("rm /var/lib/freeswitch/db/full")
    assert node.shell("freeswitch-health.sh")[0] == 0
