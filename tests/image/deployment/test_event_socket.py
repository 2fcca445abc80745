"""The event socket: who gets in, where it listens."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from pathlib import Path

import pytest
from docker.types import IPAMConfig, IPAMPool

from scripts.errors import ToolkitError
from scripts.freeswitch.events import Subscriber
from scripts.machine import engine
from scripts.machine.engine import LABEL
from tests.image.deployment.node import (
    Run,
)


def test_event_socket_wants_password_and_network(run: Run, gateway: str) -> None:
    password = secrets.token_hex(16)
    node = run(ESL_LISTEN_IP="0.0.0.0", ESL_PORT="9021", ESL_ACL="127.0.0.0/8", ESL_PASSWORD=password).ready()

    async def version(address: str, secret: str) -> str:
        async with Subscriber(address, 9021, secret, ["sofia::register"]) as subscriber:
            return await subscriber.api("version")

    with pytest.raises(ToolkitError, match="denies this host"):
        asyncio.run(version(node.address, password))
    node = run(ESL_LISTEN_IP="0.0.0.0", ESL_PORT="9021", ESL_ACL=gateway, ESL_PASSWORD=password).ready()
    assert "FreeSWITCH Version" in asyncio.run(version(node.address, password))
    with pytest.raises(ToolkitError, match="refuses the password"):
        asyncio.run(version(node.address, "ClueCon"))


def test_who_the_acl_refuses_takes_no_memory(run: Run) -> None:
    """In stock FreeSWITCH a thousand take more than a gigabyte."""
    node = run(ESL_LISTEN_IP="0.0.0.0", ESL_ACL="192.0.2.0/24", ESL_PASSWORD=secrets.token_hex(16)).ready()
    peak = "awk '/^VmHWM/ {print $2}' /proc/$(pidof freeswitch)/status"
    before = int(node.shell(peak)[1])
    for _ in range(1000):
        with socket.create_connection((node.address, 8021), 20) as client:
            assert b"text/rude-rejection" in client.recv(1000)
    assert int(node.shell(peak)[1]) - before < 300_000


def test_event_socket_on_one_address(run: Run) -> None:
    """fs_cli, and with it the health check, finds the event socket wherever it listens."""
    prefix = f"10.{secrets.randbelow(256)}.{secrets.randbelow(256)}"
    address = f"{prefix}.77"
    with engine.connect() as client, contextlib.ExitStack() as stack:
        network = client.networks.create(
            f"tp-error-{secrets.token_hex(4)}",
            labels={LABEL: "true"},
            ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=f"{prefix}.0/24")]),
        )
        stack.callback(network.remove)
        options = {
            "network": network.name,
            "networking_config": {network.name: client.api.create_endpoint_config(ipv4_address=address)},
        }
        node = run(options=options, ESL_LISTEN_IP=address, ESL_ACL="192.0.2.0/24", ESL_PASSWORD="s3cret")
        stack.callback(network.disconnect, node.container, force=True)
        assert node.ready().address == address


def test_password_from_a_file(run: Run) -> None:
    secret = secrets.token_hex(16)
    node = run(files={"secret": f"{secret}\n"}, ESL_PASSWORD_FILE="/etc/freeswitch/secret").ready()
    assert node.shell("cat /run/freeswitch/esl-password")[1] == secret
    assert secret not in node.log()


def test_first_report_need_not_wait(run: Run, root: Path) -> None:
    """Started by the first REGISTER, as in stock FreeSWITCH, this thread would hold up all events for half a second."""
    file = "autoload_configs/logfile.conf.xml"
    template = (root / "templates/freeswitch/conf" / f"{file}.j2").read_text()
    node = run(files={file: template.replace('"debug,', '"console,debug,')}).ready()
    assert "Event Thread Started" in node.shell("cat /var/log/freeswitch/freeswitch.log")[1]
