"""Settings: that they arrive, and what those that are wrong end in."""

from __future__ import annotations

import re

import pytest
from docker.types import Ulimit

from tests.image.deployment.node import (
    STATUS_OF_CONFIGURATION_ERROR,
    Run,
)


def test_values_arrive_in_the_configuration(run: Run) -> None:
    node = run(
        SIP_CODECS="PCMA,G722",
        SIP_EXTERNAL_IP="198.51.100.7",
        RTP_START_PORT="20000",
        RTP_END_PORT="20100",
        MAX_SESSIONS="50",
        SESSIONS_PER_SECOND="5",
        REQUESTS_PER_SECOND="300",
        TP_ERROR_REPORT="false",
        TP_ERROR_UNREGISTER="true",
        TCP_DEAD_PEER_TIMEOUT="30",
        LOG_LEVEL="err",
    ).ready()
    profile = node.configured("sofia.conf")
    assert profile["inbound-codec-prefs"] == profile["outbound-codec-prefs"] == "PCMA,G722"
    assert profile["ext-sip-ip"] == profile["ext-rtp-ip"] == "198.51.100.7"
    assert (profile["tp-error-report"], profile["tp-error-unregister"]) == ("false", "true")
    assert profile["tcp-dead-peer-timeout"] == "30"
    assert profile["max-recv-requests-per-second"] == "300"
    core = node.configured("switch.conf")
    assert (core["rtp-start-port"], core["rtp-end-port"]) == ("20000", "20100")
    assert (core["max-sessions"], core["sessions-per-second"]) == ("50", "5")
    status = node.cli("sofia status profile internal")
    assert "198.51.100.7" in status and "PCMA,G722" in status
    assert "[WARNING]" not in node.log()


def test_wrong_setting_ends_the_container(run: Run) -> None:
    node = run(SIP_PORT="sip")
    assert node.container.wait()["StatusCode"] == STATUS_OF_CONFIGURATION_ERROR
    assert node.log() == "freeswitch-entrypoint: SIP_PORT='sip' is not a port: give a number from 1 to 65535\n"


def test_address_of_another_machine(run: Run) -> None:
    node = run(SIP_LISTEN_IP="192.0.2.1")
    assert node.container.wait()["StatusCode"] == STATUS_OF_CONFIGURATION_ERROR
    assert re.search(
        r": SIP_LISTEN_IP='192\.0\.2\.1' is not an address that can be listened on here: "
        r"give one of auto(, [1-9][0-9a-f.:]+)+\n",
        node.log(),
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"ESL_LISTEN_IP": "::", "ESL_PASSWORD": "s3cret", "ESL_ACL": "2001:db8::/32"},
        {"ESL_LISTEN_IP": "::1"},
        {"SIP_EXTERNAL_IP": "2001:db8::1"},
    ],
)
def test_address_of_a_kind_that_is_not_there(run: Run, environment: dict[str, str]) -> None:
    node = run(**environment)
    assert node.container.wait(timeout=180)["StatusCode"] == STATUS_OF_CONFIGURATION_ERROR
    name, value = next(iter(environment.items()))
    assert f"freeswitch-entrypoint: {name}='{value}' is " in node.log()


def test_command_in_place_of_freeswitch(run: Run) -> None:
    node = run(options={"command": ["fs_cli", "--help"]})
    node.container.wait()
    assert "Usage: fs_cli" in node.log()


@pytest.mark.parametrize(("allowed", "warned"), [(8192, False), (2048, True)])
def test_as_many_open_files_as_the_engine_allows(run: Run, allowed: int, warned: bool) -> None:
    """What the engines of today start a container with, 1024, would be the limit of connections, too."""
    node = run(options={"ulimits": [Ulimit(name="nofile", soft=1024, hard=allowed)]}).ready()
    limits = node.shell("grep '^Max open files' /proc/1/limits")[1].split()
    assert limits[3:5] == [str(allowed)] * 2
    assert (f"warning: no more than {allowed} files may be open" in node.log()) is warned


def test_port_of_another_program(run: Run) -> None:
    node = run(SIP_TRANSPORTS="udp,tcp,ws").ready()
    for variables, line in {
        "SIP_TRANSPORTS=udp": "SIP_PORT='5060'",
        "SIP_TRANSPORTS=tcp,ws SIP_PORT=5070": "SIP_WS_PORT='5066'",
        "SIP_TRANSPORTS=udp SIP_PORT=5070": "ESL_PORT='8021'",
    }.items():
        code, told = node.shell(f"{variables} freeswitch-entrypoint.sh")
        assert code == STATUS_OF_CONFIGURATION_ERROR
        assert told.splitlines()[-1].startswith(f"freeswitch-entrypoint: {line}: another program listens on that port")


def test_debugging_log(run: Run) -> None:
    node = run(LOG_LEVEL="debug").ready()
    assert "[DEBUG]" in node.log()
    assert "[DEBUG]" not in run().ready().log()


def test_module_on_request(run: Run) -> None:
    node = run(LOAD_MODULES="mod_cdr_csv,mod_syslog").ready()
    assert node.cli("module_exists mod_cdr_csv") == node.cli("module_exists mod_syslog") == "true"
    assert node.cli("module_exists mod_amqp") == "false"
