"""The nftables rule of docs/parameters.md, in a network namespace of its own."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from scripts.machine.files import ROOT

LIMIT, TRIED, PORT = 100, 120, 5060
SERVER = f"""
import socket, sys, time
server = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog={TRIED})
print(flush=True)
time.sleep(60)
"""
# Prints how often it could connect.
CLIENT = f"""
import socket, sys
held = []
for _ in range({TRIED}):
    try:
        held.append(socket.create_connection((sys.argv[1], {PORT}), 5))
    except ConnectionRefusedError:
        pass
print(len(held))
"""
# As Docker does for a port that it publishes.
PUBLISHED = f"""
table inet translation {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        tcp dport {PORT} redirect to :6060
    }}
}}
"""
NEAR = {"ip": "10.255.255.1", "ip6": "fd00:5060::1"}
FAR = {"ip": "10.255.255.2", "ip6": "fd00:5060::2"}


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Return the names of the network namespaces of a server and a client, which have a link between them."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("nft"):
        pytest.skip("the nftables rule is not tested: that takes root, ip (iproute2) and nft (nftables)")
    names = [f"tp-error-{secrets.token_hex(4)}" for _ in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", "sip", "type", "veth", "peer", "name", "sip", "netns", names[1])
        for name, addresses in zip(names, (NEAR, FAR), strict=True):
            ip("-n", name, "address", "add", f"{addresses['ip']}/24", "dev", "sip")
            ip("-n", name, "address", "add", f"{addresses['ip6']}/64", "dev", "sip", "nodad")
            ip("-n", name, "link", "set", "sip", "up")
        yield names[0], names[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.mark.parametrize("published", [False, True], ids=["of the host", "published"])
@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_rule_for_connections_per_address(namespaces: tuple[str, str], family: str, published: bool) -> None:
    found = re.search(r"^table inet sip .*?^}$", (ROOT / "docs/parameters.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    inside, outside = (["ip", "netns", "exec", name] for name in namespaces)
    rules = found[0] + (PUBLISHED if published else "")
    subprocess.run([*inside, "nft", "-f", "-"], input=rules, text=True, check=True)
    port = "6060" if published else str(PORT)
    with subprocess.Popen([*inside, sys.executable, "-c", SERVER, port], stdout=subprocess.PIPE) as server:
        assert server.stdout and server.stdout.readline()
        command = [*outside, sys.executable, "-c", CLIENT, NEAR[family]]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        server.kill()
    # Not TRIED, and not one more than is allowed at the same time.
    assert int(done.stdout) == LIMIT
