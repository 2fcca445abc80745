"""The entrypoint's functions, sourced from its files by a shell of this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from scripts.image import build
from tests.unit.image.parts import PREFIX, Parts

BOTH = "192.0.2.5 2001:db8::5 "
DERIVED = " ".join(f'{name}="${name}"' for name in build.DERIVED)


def test_entrypoint_sources_each_file_once(root: Path, parts: Parts) -> None:
    script = (root / "scripts/image/runtime/freeswitch-entrypoint.sh").read_text()
    found = re.search(r"^for part in (.*); do$", script, re.MULTILINE)
    assert found
    assert sorted(found[1].split()) == sorted(path.stem for path in parts.directory.iterdir())


def test_files_do_nothing_when_they_are_sourced(parts: Parts) -> None:
    before = sorted(parts.root.rglob("*"))
    script = "".join(f". '{path}'\n" for path in sorted(parts.directory.iterdir()))
    done = subprocess.run(["/bin/sh", "-euc", script], env={"PATH": ""}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(parts.root.rglob("*")) == before


def test_failure_is_one_line(parts: Parts) -> None:
    done = parts.run('fail "a\nb: mend it"; echo on')
    assert (done.returncode, done.stdout, done.stderr) == (78, "", f"{PREFIX}a b: mend it\n")
    done = parts.run('warn "a%s"; echo on')
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", f"{PREFIX}warning: a%s\n")


def test_variables_are_loaded(parts: Parts) -> None:
    secret = parts.root / "secret"
    secret.write_text("s3cret\n")
    # A given one, an empty one, one without a word, one out of a file: all of them for FreeSWITCH as well.
    script = "env | sed -n 's/^\\(SIP_PORT\\|SIP_CODECS\\|LOG_LEVEL\\|ESL_PASSWORD\\)=/&/p' | sort"
    done = parts.loaded(script, SIP_PORT="6060", SIP_CODECS="", ESL_PASSWORD_FILE=str(secret))
    assert done.stdout.split() == [
        "ESL_PASSWORD=s3cret",
        "LOG_LEVEL=warning",
        "SIP_CODECS=OPUS,PCMA,PCMU",
        "SIP_PORT=6060",
    ]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"SIP_PORT": "sip"}, "SIP_PORT='sip' is not a port: give a number from 1 to 65535"),
        ({"SIP_DOMAIN": "a\nb"}, "SIP_DOMAIN='a b' must be made of the characters 0-9a-zA-Z:._-: correct it"),
        (
            {"ESL_PASSWORD": "x", "ESL_PASSWORD_FILE": "/x"},
            "ESL_PASSWORD and ESL_PASSWORD_FILE are both given: give one of them",
        ),
        (
            {"ESL_PASSWORD_FILE": "/nowhere"},
            f"ESL_PASSWORD_FILE='/nowhere' is not a file that user {os.getuid()} can read: mount it, or mend its mode",
        ),
        ({"ESL_PASSWORD_FILE": "/dev/null"}, "ESL_PASSWORD_FILE='/dev/null' is not a file that user"),
        (
            {"SIP_CODECS": "PCMA,FOO"},
            "SIP_CODECS='PCMA,FOO': the image has no codec 'FOO': use PCMU, PCMA, OPUS, H263-",
        ),
        ({"LOAD_MODULES": "mod_x"}, "LOAD_MODULES='mod_x': the image has no mod_x: use a module set that has it"),
    ],
)
def test_wrong_variables_are_refused(parts: Parts, given: dict[str, str], line: str) -> None:
    assert parts.refusal("echo on", **given).startswith(line)


def test_names_that_look_like_variables_are_told(parts: Parts) -> None:
    done = parts.loaded("warn_about_names", SIP_PROT="1", REQUEST_PER_SECOND="1", HOSTNAMES="1", ESL_PASSWORD_FILE="")
    assert sorted(done.stderr.splitlines()) == [
        f"{PREFIX}warning: {name} is not one of the variables of this image"
        for name in ("REQUEST_PER_SECOND", "SIP_PROT")
    ]


@pytest.mark.parametrize(
    ("function", "given", "line"),
    [
        (
            "check_transports",
            {"SIP_TRANSPORTS": "ws"},
            "SIP_TRANSPORTS='ws' must have one of udp, tcp and tls in it: add one",
        ),
        (
            "check_extension",
            {"EXTENSION_DIALLING": "true"},
            "EXTENSION_DIALLING='true', and EXTENSION_DIAL_STRING is empty: give one like sofia/gateway/trunk/NUMBER",
        ),
        (
            "check_ports",
            {"SIP_PORT": "8021"},
            "ESL_PORT='8021' is SIP_PORT as well: give each transport and the event socket a port of its own",
        ),
        (
            "check_ports",
            {"RTP_END_PORT": "16386"},
            "RTP_END_PORT='16386' must be at least 3 more than RTP_START_PORT='16384'",
        ),
        (
            "check_ports",
            {"SIP_PORT": "20000"},
            "SIP_PORT='20000' is among the ports for media: move RTP_START_PORT or RTP_END_PORT",
        ),
        (
            "check_external ::1",
            {"SIP_EXTERNAL_IP": "192.0.2.1"},
            "SIP_EXTERNAL_IP='192.0.2.1' is IPv4, and SIP listens on ::1: give one of the same kind",
        ),
        (
            "check_event_socket",
            {"ESL_LISTEN_IP": "0.0.0.0", "ESL_ACL": "::1"},
            "ESL_LISTEN_IP='0.0.0.0' opens the event socket, and ESL_PASSWORD is empty: give one",
        ),
        (
            "check_event_socket",
            {"ESL_LISTEN_IP": "::", "ESL_PASSWORD": "x"},
            "ESL_LISTEN_IP='::' opens the event socket, and ESL_ACL is empty: name the networks that may connect",
        ),
        (
            "check_directory",
            {"DIRECTORY_USER": "x"},
            "DIRECTORY_USER or DIRECTORY_PASSWORD is given without DIRECTORY_URL: give the address, too",
        ),
        (
            "check_directory",
            {"DIRECTORY_URL": "https://a", "DIRECTORY_CA_FILE": "/nowhere"},
            "DIRECTORY_CA_FILE='/nowhere': there is no such file: mount it, or name another",
        ),
        (
            "check_tls",
            {"TLS_CLIENT_CA_FILE": "/a"},
            "TLS_CLIENT_CA_FILE='/a' is for TLS: add tls to SIP_TRANSPORTS",
        ),
    ],
)
def test_values_that_do_not_go_together(parts: Parts, function: str, given: dict[str, str], line: str) -> None:
    assert parts.refusal(function, **given) == line


def test_values_that_go_together(parts: Parts) -> None:
    script = "check_transports; check_ports; check_external 192.0.2.5; check_event_socket; check_directory"
    # What is not listened for has no port.
    given = {"SIP_TRANSPORTS": "tls", "SIP_PORT": "8021", "SIP_EXTERNAL_IP": "192.0.2.1", "DIRECTORY_URL": "http://a"}
    done = parts.loaded(script, **given)
    assert (done.returncode, done.stderr) == (0, "")


def test_module_that_needs_a_configuration(parts: Parts) -> None:
    path = parts.root / "etc/autoload_configs/hiredis.xml"
    line = parts.refusal("check_configurations", LOAD_MODULES="mod_hiredis")
    expected = f"mod_hiredis needs a configuration: mount {path.parent}/hiredis.conf.xml"
    assert line == f"LOAD_MODULES='mod_hiredis': {expected}"
    path.parent.mkdir()
    path.write_text("<configuration name='hiredis.conf'/>")
    assert parts.loaded("check_configurations", LOAD_MODULES="mod_hiredis").returncode == 0


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [
        (BOTH, {}, "192.0.2.5 auto 127.0.0.1 192.0.2.5"),
        ("2001:db8::5 192.0.2.5", {"SIP_DOMAIN": "a.test"}, "a.test auto 127.0.0.1 192.0.2.5"),
        ("2001:db8::5", {}, "[2001:db8::5] 2001:db8::5 ::1 2001:db8::5"),
        (BOTH, {"SIP_LISTEN_IP": "2001:db8::5"}, "[2001:db8::5] 2001:db8::5 127.0.0.1 2001:db8::5"),
    ],
)
def test_addresses_that_are_chosen(parts: Parts, own: str, given: dict[str, str], expected: str) -> None:
    parts.command("hostname", f"echo '{own}'")
    done = parts.loaded('choose_addresses; echo "$SIP_DOMAIN $SIP_LISTEN_IP $ESL_LISTEN_IP $sip"', **given)
    assert done.stdout.strip() == expected


def test_container_without_an_address(parts: Parts) -> None:
    parts.command("hostname", "echo")
    assert parts.refusal("choose_addresses").startswith("SIP_DOMAIN is empty, and this container has no address")


def test_address_of_another_machine(parts: Parts) -> None:
    parts.command("hostname", f"echo '{BOTH}'")
    line = "SIP_LISTEN_IP='192.0.2.7' is not an address that can be listened on here"
    given = {"SIP_LISTEN_IP": "192.0.2.7"}
    assert parts.refusal("check_local", **given) == f"{line}: give one of auto, 192.0.2.5, 2001:db8::5, 127.0.0.1, ::1"
    done = parts.loaded("check_local later", **given)
    assert done.returncode == 0
    assert done.stderr.startswith(f"{PREFIX}warning: {line}: right only if the container will have it")
    good = {"SIP_LISTEN_IP": "127.0.0.9", "ESL_LISTEN_IP": "::"}
    done = parts.loaded("check_local", **good)
    assert (done.returncode, done.stderr) == (0, "")


def test_port_of_another_program(parts: Parts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        told = "another program listens on that port already: stop it, or give another port"
        # 5060 may be somebody's here.
        given = {"SIP_TRANSPORTS": "ws", "SIP_WS_PORT": port}
        assert parts.refusal("sip=127.0.0.1; check_free", **given) == f"SIP_WS_PORT='{port}': {told}"
        given = {"SIP_TRANSPORTS": "", "ESL_PORT": port}
        assert parts.refusal("SIP_TRANSPORTS=; sip=; check_free", **given) == f"ESL_PORT='{port}': {told}"
        # At another address it is free.
        script = "SIP_TRANSPORTS=; sip=; ESL_LISTEN_IP=127.0.0.2; check_free"
        done = parts.loaded(script, **given)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<include><user/></include>\n", "line 1: FreeSWITCH passes over a line with <include>,"),
        ("<include>\n<user/>\n<!-- x --> <?xml?> x\n</include>\n", "line 3: FreeSWITCH passes over a line"),
        ("<include>\n<user id='bo", "line 2: it ends in the middle of a tag: complete it"),
    ],
)
def test_files_of_which_freeswitch_would_lose_a_part(parts: Parts, text: str, fault: str) -> None:
    directory = parts.root / "etc/directory"
    directory.mkdir()
    (directory / "a.xml").write_text("<include>\n<user/>\n</include>\n")
    (directory / "b b.xml").write_text(text)
    assert parts.refusal("check_files").startswith(f"{directory}/b b.xml: {fault}")


def test_fault_that_is_found_in_a_file(parts: Parts) -> None:
    """What xmlwf says of a file is told; of what FreeSWITCH is content with, nothing."""
    directory = parts.root / "etc/directory"
    directory.mkdir()
    (directory / "a.xml").write_text("<user>\n")
    parts.command("xmlwf", "cat >/dev/null; echo STDIN:2:3: mismatched tag")
    assert parts.refusal("check_files") == f"{directory}/a.xml: line 2: mismatched tag: correct the XML"
    parts.command("xmlwf", "cat >/dev/null; echo STDIN:2:3: not well-formed")
    assert parts.loaded("check_files").returncode == 0


def test_nobody_to_register(parts: Parts) -> None:
    told = f"{PREFIX}warning: there are no users: mount them to /etc/freeswitch/directory, or set DIRECTORY_URL\n"
    assert parts.loaded("warn_about_users").stderr == told
    assert parts.loaded("warn_about_users", DIRECTORY_URL="http://a").stderr == ""


def test_certificates(parts: Parts) -> None:
    """The one that is sent, its key, and of those after it the ones that nobody but another one has issued."""
    root = trustme.CA()
    certificate = root.create_child_ca().issue_cert("example.test")
    chain = [*(pem.bytes().decode() for pem in certificate.cert_chain_pems), root.cert_pem.bytes().decode()]
    paths = {"TLS_CERT_FILE": "tls.crt", "TLS_KEY_FILE": "tls.key", "TLS_CLIENT_CA_FILE": "ca.pem"}
    given = {name: str(parts.root / file) for name, file in paths.items()} | {"SIP_TRANSPORTS": "tcp,tls"}
    (parts.root / "tls.crt").write_text("".join(chain))
    (parts.root / "tls.key").write_text(certificate.private_key_pem.bytes().decode())
    (parts.root / "ca.pem").write_text(chain[-1])
    done = parts.loaded("check_tls; write_certificates; warn_about_certificates", **given)
    assert (done.returncode, done.stderr) == (0, "")
    written = parts.run_directory / "tls"
    assert (written / "agent.pem").read_text() == (written / "wss.pem").read_text()
    assert (written / "agent.pem").read_text().startswith("".join(chain))
    authorities = (written / "cafile.pem").read_text()
    assert authorities.split() == (chain[-1] + chain[1]).split()
    other = trustme.CA().issue_cert("example.test")
    (parts.root / "tls.key").write_text(other.private_key_pem.bytes().decode())
    assert "is not the key of the first certificate in" in parts.refusal("check_tls", **given)


def test_certificate_that_nobody_gives_is_made(parts: Parts) -> None:
    """By FreeSWITCH it would be, with a key that takes it seconds."""
    directory = parts.run_directory / "tls"
    directory.mkdir()
    for name in ("agent.pem", "cafile.pem", "wss.pem"):
        (directory / name).write_text("of an earlier start\n")
    assert parts.loaded("write_certificates", OPENSSL_CONF="/nowhere").returncode == 0
    assert [path.name for path in directory.iterdir()] == ["wss.pem"]
    written = (directory / "wss.pem").read_bytes()
    key, certificate = load_pem_private_key(written, None), load_pem_x509_certificate(written)
    assert isinstance(key, EllipticCurvePrivateKey)
    assert key.public_key() == certificate.public_key()


@pytest.mark.parametrize("script", ["exit 1", "exec /usr/bin/touch $run/tls/wss.pem.new"])
def test_certificate_that_cannot_be_made_is_left_to_freeswitch(parts: Parts, script: str) -> None:
    """Also on a full disk, which leaves an empty file, and is no error for openssl."""
    openssl = shutil.which("openssl")
    made = script.replace("$run", str(parts.run_directory))
    parts.command("openssl", f'case $1 in req) {made} ;; *) exec {openssl} "$@" ;; esac')
    assert parts.loaded("write_certificates").returncode == 0
    assert list((parts.run_directory / "tls").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"SIP_BIND": "udp,tcp", "SIP_NAT": "no-nat", "SIP_TLS": "false", "CORE_LOG_LEVEL": "info"}),
        ({"SIP_TRANSPORTS": "udp,ws", "SIP_WS_PORT": "8080"}, {"SIP_BIND": "udp", "SIP_WS_BINDING": ":8080"}),
        ({"SIP_TRANSPORTS": "tls"}, {"SIP_BIND": "tcp", "SIP_TLS": "true", "SIP_TLS_ONLY": "true"}),
        (
            {"SIP_TRANSPORTS": "tls,tcp,wss", "TLS_CLIENT_CA_FILE": "/a"},
            {"SIP_TLS_ONLY": "false", "SIP_TLS_VERIFY": "in", "SIP_WSS_BINDING": ":7443"},
        ),
        ({"SIP_EXTERNAL_IP": "192.0.2.1"}, {"SIP_NAT": "behind-nat"}),
        ({"LOG_LEVEL": "debug"}, {"CORE_LOG_LEVEL": "debug", "LOG_LEVELS": "debug,info,notice,warning,err,crit,alert"}),
        ({"LOG_LEVEL": "err"}, {"LOG_LEVELS": "err,crit,alert"}),
        (
            {"EXTENSION_DIAL_STRING": "sofia/internal/0NUMBER@192.0.2.7"},
            {"EXTENSION_PREFIX": "sofia/internal/0", "EXTENSION_SUFFIX": "@192.0.2.7"},
        ),
        ({"DIRECTORY_USER": "me", "DIRECTORY_PASSWORD": "x"}, {"DIRECTORY_CREDENTIALS": "me:x"}),
        (
            {"ESL_LISTEN_IP": "192.0.2.5", "ESL_ACL": "10.0.0.0/8,::2,192.0.2.9"},
            {"ESL_ACL": "127.0.0.0/8,::1/128,192.0.2.5/32,10.0.0.0/8,::2/128,192.0.2.9/32"},
        ),
    ],
)
def test_what_is_derived(parts: Parts, given: dict[str, str], expected: dict[str, str]) -> None:
    done = parts.loaded("derive; env", **given)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    # FreeSWITCH gets each of them from its environment.
    assert found.keys() >= set(build.DERIVED)
    assert found | expected == found


def test_password_is_another_one_at_each_start(parts: Parts) -> None:
    first, second = (parts.loaded('derive; echo "$ESL_PASSWORD"').stdout.strip() for _ in range(2))
    assert re.fullmatch("[0-9a-f]{32}", first) and first != second
    assert parts.loaded('derive; echo "$ESL_PASSWORD"', ESL_PASSWORD="mine").stdout.strip() == "mine"


def test_modules_and_client_that_are_written(parts: Parts) -> None:
    given = {"LOAD_MODULES": "mod_hiredis,mod_amqp,mod_amqp", "DIRECTORY_URL": "http://a"}
    lines = parts.loaded("write_modules", **given).stdout.splitlines()
    assert lines[1:-1] == [f'<load module="{name}"/>' for name in ("mod_amqp", "mod_hiredis", "mod_xml_curl")]
    for listen, host in {"0.0.0.0": "127.0.0.1", "::": "::1", "192.0.2.5": "192.0.2.5"}.items():
        text = parts.loaded("write_client", ESL_LISTEN_IP=listen, ESL_PASSWORD="x").stdout
        assert text == f"[default]\nhost => {host}\nport => 8021\npassword => x\n"


def test_priority_is_asked_for_where_it_can_be_had(parts: Parts) -> None:
    for chrt, niceness, option in (("true", "0", ""), ("false", "-10", ""), ("false", "0", "-np")):
        parts.command("chrt", chrt)
        parts.command("nice", f"echo {niceness}")
        assert parts.run("priority").stdout.strip() == option, (chrt, niceness)


@pytest.mark.parametrize(("allowed", "warned"), [(4096, False), (2048, True)])
def test_open_files_are_raised_to_what_is_allowed(parts: Parts, allowed: int, warned: bool) -> None:
    done = parts.run(f"ulimit -Sn 1024; ulimit -Hn {allowed}; raise_limit; ulimit -Sn")
    assert done.stdout.strip() == str(allowed)
    assert (f"warning: no more than {allowed} files may be open" in done.stderr) is warned


# A FreeSWITCH that notes what it gets, and is there once who started it listens to signals: HUP, of which the
# trap comes last, is the lowest bit.
FAKE = """
trap 'echo HUP >> "{log}"' HUP
trap 'echo TERM >> "{log}"; exit 3' TERM
until caught=$(sed -n 's/^SigCgt:[^0-9a-f]*//p' /proc/$PPID/status) && [ $((0x$caught & 1)) -ne 0 ]; do sleep 0.01; done
echo started "$@" >> '{log}'
while :; do sleep 0.05; done"""


@pytest.fixture
def started(parts: Parts) -> Path:
    """Let FreeSWITCH be one that writes to the file that is returned."""
    log = parts.root / "log"
    parts.command("freeswitch", FAKE.format(log=log))
    parts.command("fs_cli", f"echo cli \"$@\" >> '{log}'; echo is ready")
    return log


def test_signals_reach_freeswitch_and_its_status_is_the_end(parts: Parts, started: Path) -> None:
    with launched(parts, started, DRAIN_SECONDS="0") as process:
        process.send_signal(signal.SIGHUP)
        wait_for(started, "HUP")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 3
    lines = started.read_text().splitlines()
    assert lines[0].startswith("started ") and lines[0].endswith("-temp /tmp -x")
    assert lines[-1] == "TERM" and not any("fsctl" in line for line in lines)


def test_second_signal_ends_the_drain(parts: Parts, started: Path) -> None:
    with launched(parts, started, DRAIN_SECONDS="3600") as process:
        process.send_signal(signal.SIGTERM)
        wait_for(started, "fsctl shutdown elegant")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 3
        assert process.stderr and "taking no more calls, waiting up to 3600 s" in process.stderr.read()
    lines = started.read_text().splitlines()
    assert lines.index("cli -x fsctl pause inbound") < lines.index("cli -x bgapi fsctl shutdown elegant")


def launched(parts: Parts, log: Path, **given: str) -> subprocess.Popen[str]:
    """Return the entrypoint's last step, with FreeSWITCH running."""
    command = ["sh", "-c", parts.text("load_variables\nstart -x")]
    process = subprocess.Popen(command, env=parts.environment(**given), stderr=subprocess.PIPE, text=True)
    wait_for(log, "started")
    return process


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < deadline, f"{text} never came"
        time.sleep(0.02)
