"""SIP: who gets in, over what."""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from scripts.freeswitch.sip import Refused, digest
from scripts.scenario.lab import DOMAIN
from scripts.templates import render
from tests.image.deployment.node import (
    ECHO,
    ESL_PORT,
    Run,
    certificates,
)


def test_defaults(run: Run) -> None:
    node = run(alone=True).ready()
    assert node.shell("id -un")[1] == "freeswitch"
    # The event socket listens inside only; SIP over UDP and TCP, and nothing else.
    for port in (ESL_PORT, 5061, 5066, 7443):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((node.address, port), 5).close()
    node.register("tcp").close()
    node.register("udp").close()
    password = node.shell("cat /run/freeswitch/esl-password")[1]
    assert len(password) == 32
    assert node.shell("stat -c %a /run/freeswitch/esl-password /run/freeswitch/fs_cli.conf")[1].split() == [
        "600",
        "600",
    ]
    # FreeSWITCH renames what does not suit it, and makes another.
    assert node.shell("ls /run/freeswitch/tls")[1].split() == ["dtls-srtp.pem", "wss.pem"]
    # Every module that is loaded has what it needs.
    assert not [line for line in node.log().splitlines() if "[ERR]" in line or "[CRIT]" in line]
    # Before it has a log, FreeSWITCH prints what goes wrong: that it may not have the priority of real time.
    assert "ERROR: " not in node.log()


def test_stranger_gets_no_further_than_the_challenge(run: Run) -> None:
    node = run().ready()
    client = node.client()
    for number in (ECHO, "alice", "0123456789"):
        assert client.ask("INVITE", "mallory", DOMAIN, number).status == 407
        assert client.ask("INVITE", "alice", DOMAIN, number).status == 407
    for method in ("MESSAGE", "SUBSCRIBE"):
        assert client.ask(method, "alice", DOMAIN, "alice").status in (401, 403, 405, 407, 489)
    with pytest.raises(Refused):
        client.invite("alice", "guessed", DOMAIN, ECHO)
    with pytest.raises(Refused):
        client.register("alice", "guessed", DOMAIN)
    node.wait(lambda: "0 total" in node.cli("show channels"), "a call is up")
    # The dialplan has seen none of it, but sees who has the password.
    log = "cat /var/log/freeswitch/freeswitch.log"
    routed = "in context default"
    assert "SIP auth challenge (INVITE)" in node.shell(log)[1] and routed not in node.shell(log)[1]
    client.invite("alice", node.password, DOMAIN, ECHO)
    node.wait(lambda: routed in node.shell(log)[1], "the call is in no log")
    client.close()


def test_every_transport_with_ports_and_certificates(run: Run) -> None:
    node = run(
        files=certificates(),
        SIP_TRANSPORTS="udp,tcp,tls,ws,wss",
        SIP_PORT="6060",
        SIP_TLS_PORT="6061",
        SIP_WS_PORT="6062",
        SIP_WSS_PORT="6063",
    ).ready()
    for transport, port in {"udp": 6060, "tcp": 6060, "tls": 6061, "ws": 6062, "wss": 6063}.items():
        node.register(transport, port).close()


@pytest.mark.parametrize(("transports", "closed"), [("udp", 5060), ("tls", 5060), ("tcp,ws", 5061)])
def test_transport_that_is_not_named_is_not_listened_for(run: Run, transports: str, closed: int) -> None:
    node = run(files=certificates(), SIP_TRANSPORTS=transports).ready()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((node.address, closed), 5).close()
    name = transports.rpartition(",")[2]
    node.register(name, {"udp": 5060, "tls": 5061, "ws": 5066}[name]).close()


def test_clients_need_a_certificate_if_an_authority_is_given(run: Run) -> None:
    files = {**certificates(), "tls/clients.pem": trustme.CA().cert_pem.bytes().decode()}
    node = run(files=files, SIP_TRANSPORTS="tcp,tls", TLS_CLIENT_CA_FILE="/etc/freeswitch/tls/clients.pem").ready()
    with pytest.raises((OSError, ConnectionError)):
        node.register("tls", 5061)
    node.register("tcp").close()


def test_nobody_registers_for_somebody_else(run: Run) -> None:
    bob = render("freeswitch/user", user="bob", password="other")
    node = run(files={"directory/bob.xml": bob}).ready()
    uri, call_id = f"sip:{DOMAIN}", "hijack"
    client = node.client()
    client.send(client.request("bob", DOMAIN, 3600, call_id))
    challenge = client.receive().header("www-authenticate")
    authorization = digest(challenge, "alice", node.password, "REGISTER", uri)
    client.send(client.request("bob", DOMAIN, 3600, call_id, authorization=authorization))
    assert client.receive().status == 403
    node.client().register("bob", "other", DOMAIN)


def test_certificate_is_sent_with_its_chain(run: Run, tmp_path: Path) -> None:
    root = trustme.CA()
    certificate = root.create_child_ca().issue_cert(DOMAIN)
    chain = [*(pem.bytes().decode() for pem in certificate.cert_chain_pems), root.cert_pem.bytes().decode()]
    key = certificate.private_key_pem.bytes().decode()
    node = run(files={"tls/tls.crt": "".join(chain), "tls/tls.key": key}, SIP_TRANSPORTS="tcp,tls,wss").ready()
    context = ssl.create_default_context(cadata=chain[-1])
    for port in (5061, 7443):
        with socket.create_connection((node.address, port), 10) as plain:
            # It fails if the server leaves out what is between its certificate and the root.
            context.wrap_socket(plain, server_hostname=DOMAIN).close()
    held = node.shell("grep -c BEGIN /run/freeswitch/tls/cafile.pem; grep -c BEGIN /etc/ssl/certs/ca-certificates.crt")
    assert int(held[1].split()[0]) == int(held[1].split()[1]) + 1, "the root must not become an authority for clients"


def test_several_registrations_of_a_user(run: Run) -> None:
    node = run(SIP_MULTIPLE_REGISTRATIONS="contact").ready()
    clients = [node.register() for _ in range(2)]
    assert node.cli("sofia status profile internal reg").count("Call-ID:") == 2
    for client in clients:
        client.close()


def test_message_is_no_error(run: Run) -> None:
    node = run().ready()
    client = node.client()
    assert client.message("alice", node.password, DOMAIN, "alice") == 202
    assert "[ERR]" not in node.log()


def test_codecs_that_settings_may_name_are_there(run: Run, gateway: str) -> None:
    node = run().ready()
    named = node.shell("cat /usr/local/share/freeswitch/codecs")[1].split()
    assert {"PCMU", "PCMA"} < set(named)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.bind((gateway, 0))
        phone.settimeout(node.settings.start_timeout)
        for codec in named:
            target = f"{codec}@{gateway}:{phone.getsockname()[1]}"
            node.cli(f"bgapi originate {{absolute_codec_string={codec}}}sofia/internal/{target} &park")
            offer = ""
            # Requests for the codecs before come again until they are answered.
            while f"sip:{target}" not in offer.partition("\n")[0]:
                offer = phone.recv(65536).decode()
            assert re.search(rf"(?im)^a=rtpmap:\d+ {re.escape(codec)}/", offer), offer
