"""The nftables rule of docs/parameters.md, in a network namespace of its own."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.settings import ROOT

LIMIT, TRIED, PORT = 100, 120, 5060
# Connects to itself and prints how often that worked.
PROGRAM = f"""
import socket
server = socket.create_server(("127.0.0.1", {PORT}), backlog={TRIED})
held = []
for _ in range({TRIED}):
    try:
        held.append(socket.create_connection(("127.0.0.1", {PORT}), 5))
    except ConnectionRefusedError:
        pass
print(len(held))
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    """Return the name of a network namespace with nothing but a loopback interface."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("nft"):
        pytest.skip("the nftables rule is not tested: that takes root, ip (iproute2) and nft (nftables)")
    name = f"tp-error-{secrets.token_hex(4)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_rule_for_connections_per_address(namespace: str, tmp_path: Path) -> None:
    found = re.search(r"^table inet sip .*?^}$", (ROOT / "docs/parameters.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    rules = tmp_path / "rules"
    rules.write_text(found[0])
    inside = ["ip", "netns", "exec", namespace]
    subprocess.run([*inside, "nft", "-f", str(rules)], check=True)
    done = subprocess.run([*inside, sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    # Not TRIED, and not one more than is allowed at the same time.
    assert int(done.stdout) == LIMIT
