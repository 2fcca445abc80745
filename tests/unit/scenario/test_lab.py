from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from docker.errors import DockerException
from docker.models.networks import Network

from scripts.errors import ToolkitError
from scripts.freeswitch import container
from scripts.scenario import lab as lab_module


@pytest.mark.parametrize(("cpus", "threads"), [(1, 1), (2, 1), (3, 1), (4, 3), (8, 5), (16, 9), (18, 9), (20, 11)])
def test_threads_that_handle_messages(cpus: int, threads: int) -> None:
    assert container.threads(cpus) == threads


@pytest.mark.parametrize(
    ("pools", "address"),
    [
        ([{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.9"}], "172.17.0.9"),
        ([{"Subnet": "172.17.0.0/16"}], "172.17.0.1"),
        ([{"Subnet": "172.17.0.0/16", "Gateway": ""}], "172.17.0.1"),
        ([{"Subnet": "10.1.2.128/25", "Gateway": "10.1.2.200/25"}], "10.1.2.200"),
        ([{"Subnet": "fd00::/64", "Gateway": "fd00::1"}, {"Subnet": "10.1.2.128/25"}], "10.1.2.129"),
    ],
)
def test_gateway_of_a_network(pools: list[dict[str, str]], address: str) -> None:
    assert lab_module.gateway(Network(attrs={"Name": "x", "IPAM": {"Config": pools}})) == address


def test_network_without_a_gateway() -> None:
    with pytest.raises(ToolkitError, match="network x has no IPv4 subnet"):
        lab_module.gateway(Network(attrs={"Name": "x", "IPAM": {"Config": [{"Subnet": "fd00::/64"}]}}))


def test_compose_that_fails_is_one_line_with_what_it_said_last(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError) as caught:
        lab_module._compose("echo first; echo no space left on device; exit 3 #", str(tmp_path), "p", "up -d")
    assert "up -d` failed (no space left on device): see" in str(caught.value) and "\n" not in str(caught.value)


def test_what_compose_began_is_taken_down_though_it_failed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "compose").write_text(f'#!/bin/sh\necho "$*" >>{log}\ncase $* in *"up -d") exit 1 ;; esac\n')
    (tmp_path / "compose").chmod(0o755)
    with pytest.raises(ToolkitError), lab_module._services(str(tmp_path / "compose"), "x.yml", "p"):
        raise AssertionError("it did not start")
    assert [line.split("-p p ")[1] for line in log.read_text().splitlines()] == [
        "up -d",
        "down --volumes --timeout 0",
    ]


def test_what_was_made_is_removed_though_the_engine_fails() -> None:
    class Gone:
        def remove(self, **options: bool) -> None:
            raise DockerException("the engine is gone")

    thing: Any = Gone()
    with pytest.raises(ToolkitError, match="first"), lab_module._removed(thing, force=True):
        raise ToolkitError("first")
