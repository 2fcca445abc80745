from __future__ import annotations

import pytest
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
