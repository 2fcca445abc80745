"""What the image takes from its environment: checked by the entrypoint itself, in a container."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import trustme
from docker.models.containers import Container

from scripts.image import variables
from scripts.machine import engine
from scripts.machine.engine import LABEL
from scripts.pins.settings import Settings

PREFIX = "freeswitch-entrypoint: "
CONFIGURATION_ERROR = 78
TLS = "/etc/freeswitch/tls"


@dataclass
class Checker:
    """A container in which settings are checked without starting FreeSWITCH."""

    container: Container

    def check(self, environment: Mapping[str, str]) -> tuple[int, str, str]:
        """Return the exit status of the check, its standard output and its standard error."""
        done = engine.execute(self.container, ["freeswitch-entrypoint.sh", "check"], environment=environment)
        return done.status, done.output.decode(), done.errors.decode()

    def refusal(self, environment: Mapping[str, str]) -> str:
        """Return the one line with which `environment` is refused, without its prefix."""
        code, output, errors = self.check(environment)
        lines = errors.splitlines()
        assert (code, output, len(lines)) == (CONFIGURATION_ERROR, "", 1), output + errors
        assert lines[0].startswith(PREFIX)
        return lines[0].removeprefix(PREFIX)


@pytest.fixture(scope="module")
def checker(built: Settings) -> Iterator[Checker]:
    authority = trustme.CA()
    mine, other = (authority.issue_cert("example.test") for _ in range(2))
    files = {
        "tls.crt": mine.cert_chain_pems[0].bytes().decode(),
        "tls.key": mine.private_key_pem.bytes().decode(),
        "other.key": other.private_key_pem.bytes().decode(),
        "ca.pem": authority.cert_pem.bytes().decode(),
        "password": "s3cret\n",
        "empty": "",
        "text": "no certificate\n",
    }
    with engine.connect() as client:
        container = client.containers.create(
            f"{built.image}:patched", ["sleep", "infinity"], init=True, network_mode="none", labels={LABEL: "true"}
        )
        try:
            container.put_archive("/etc/freeswitch/tls", engine.tar(files))
            configuration = "<configuration name='hiredis.conf'/>\n"
            container.put_archive("/etc/freeswitch/autoload_configs", engine.tar({"redis.xml": configuration}))
            container.start()
            yield Checker(container)
        finally:
            container.remove(force=True, v=True)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SIP_PORT": ""},
        {"SIP_TRANSPORTS": "udp,tcp,tls,ws,wss"},
        {"SIP_TRANSPORTS": "tls", "TLS_CLIENT_CA_FILE": f"{TLS}/ca.pem"},
        {"SIP_CODECS": "opus@48000h@20i,PCMA"},
        {"SIP_LISTEN_IP": "2001:db8::7", "SIP_EXTERNAL_IP": "2001:db8::8"},
        {
            "ESL_LISTEN_IP": "::",
            "ESL_PASSWORD_FILE": f"{TLS}/password",
            "ESL_ACL": "192.0.2.0/24,2001:db8::/32,10.0.0.1",
        },
        {
            "DIRECTORY_URL": "https://users.example.test/directory?node=1",
            "DIRECTORY_USER": "me",
            "DIRECTORY_PASSWORD": "x",
        },
        {"LOAD_MODULES": "mod_cdr_csv,mod_hiredis", "DRAIN_SECONDS": "600", "TCP_DEAD_PEER_TIMEOUT": "0"},
    ],
)
def test_good_settings(checker: Checker, environment: dict[str, str]) -> None:
    code, output, errors = checker.check(environment)
    assert (code, output) == (0, f"{PREFIX}the settings are in order\n"), errors


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("SIP_DOMAIN", 'a"b', "must be made of the characters"),
        ("SIP_DOMAIN", "a\nb", "must be made of the characters"),
        ("SIP_LISTEN_IP", "300.0.0.1", "is not an IP address"),
        ("SIP_LISTEN_IP", "192.0.2", "is not an IP address"),
        ("SIP_LISTEN_IP", "1::2::3", "is not an IP address"),
        ("SIP_LISTEN_IP", "0.0.0.0", "SIP needs the address that clients are told"),
        ("SIP_EXTERNAL_IP", "example.org", "is not an IP address"),
        ("SIP_TRANSPORTS", "udp,sctp", "there is no 'sctp': use udp, tcp, tls, ws, wss"),
        ("SIP_TRANSPORTS", "udp, tcp", "give items with commas between, without spaces"),
        ("SIP_TRANSPORTS", "ws", "must have one of udp, tcp and tls in it"),
        ("SIP_PORT", "0", "is not a port: give a number from 1 to 65535"),
        ("SIP_PORT", "65536", "is not a port"),
        ("SIP_PORT", "sip", "is not a port"),
        ("SIP_PORT", "20000", "is among the ports for media"),
        ("SIP_PORT", "8021", "ESL_PORT='8021' is SIP_PORT as well"),
        ("SIP_TLS_PORT", "-1", "is not a port"),
        ("SIP_WS_PORT", "5066 ", "is not a port"),
        ("SIP_WSS_PORT", "1e3", "is not a port"),
        ("SIP_CODECS", "PCMA,FOO", "the image has no codec 'FOO': use PCMU, PCMA,"),
        ("SIP_CODECS", "PCMA@x", "'@x' is no parameter of a codec"),
        ("RTP_START_PORT", "99999", "is not a port"),
        ("RTP_END_PORT", "16385", "must be at least 3 more than RTP_START_PORT='16384'"),
        ("MAX_SESSIONS", "0", "must be a whole number from 1 to 100000"),
        ("SESSIONS_PER_SECOND", "many", "must be a whole number from 1 to 10000"),
        ("REQUESTS_PER_SECOND", "1e3", "must be a whole number from 0 to 1000000"),
        ("TP_ERROR_REPORT", "yes", "must be true or false"),
        ("TP_ERROR_UNREGISTER", "1", "must be true or false"),
        ("TCP_DEAD_PEER_TIMEOUT", "1", "must be 0 or a whole number from 2 to 32767"),
        ("TLS_CERT_FILE", "tls.crt", "is not an absolute path"),
        ("TLS_CLIENT_CA_FILE", f"{TLS}/ca.pem", "is for TLS: add tls to SIP_TRANSPORTS"),
        ("DIRECTORY_URL", "ftp://example.test", "begin it with https:// or http://"),
        ("DIRECTORY_URL", "http://a/?b&c", "must be made of the characters"),
        ("DIRECTORY_USER", "me", "is given without DIRECTORY_URL"),
        ("DIRECTORY_TIMEOUT", "0", "must be a whole number from 1 to 60"),
        ("ESL_LISTEN_IP", "localhost", "is not an IP address"),
        ("ESL_LISTEN_IP", "0.0.0.0", "opens the event socket, and ESL_PASSWORD is empty: give one"),
        ("ESL_ACL", "10/8", "'10/8' is not a network"),
        ("ESL_ACL", "10.0.0.0/33", "'/33' is not the length of a network: give a number up to 32"),
        ("LOAD_MODULES", "mod_nothing", "the image has no mod_nothing"),
        ("LOAD_MODULES", "../mod_amqp", "is not a module"),
        ("LOG_LEVEL", "loud", "is none of debug, info, notice, warning, err, crit"),
        ("DRAIN_SECONDS", "-1", "must be a whole number from 0 to 86400"),
    ],
)
def test_wrong_values(checker: Checker, name: str, value: str, why: str) -> None:
    line = checker.refusal({name: value})
    assert why in line
    assert name in line
    # What it was, unless the line names another variable that it does not go with.
    assert value.replace("\n", " ") in line or name == "DIRECTORY_USER"


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (
            {"ESL_LISTEN_IP": "192.0.2.1", "ESL_PASSWORD": "s3cret"},
            "ESL_LISTEN_IP='192.0.2.1' opens the event socket, and ESL_ACL is empty: "
            "name the networks that may connect",
        ),
        (
            {"SIP_LISTEN_IP": "2001:db8::7", "SIP_EXTERNAL_IP": "192.0.2.7"},
            "SIP_EXTERNAL_IP='192.0.2.7' is IPv4, and SIP listens on 2001:db8::7: give one of the same kind",
        ),
        (
            {"SIP_TRANSPORTS": "tls", "TLS_CERT_FILE": "/nowhere"},
            "TLS_CERT_FILE='/nowhere': there is no such file: mount it, or name another",
        ),
        (
            {"SIP_TRANSPORTS": "udp,wss", "TLS_KEY_FILE": f"{TLS}/other.key"},
            f"TLS_KEY_FILE='{TLS}/other.key' is not the key of the first certificate in TLS_CERT_FILE='{TLS}/tls.crt': "
            "name the right one",
        ),
        (
            {"SIP_TRANSPORTS": "tls", "TLS_CERT_FILE": f"{TLS}/text"},
            f"TLS_CERT_FILE='{TLS}/text' has no certificate in PEM: convert it, or name another",
        ),
        (
            {"SIP_TRANSPORTS": "tls", "TLS_KEY_FILE": f"{TLS}/text"},
            f"TLS_KEY_FILE='{TLS}/text' has no key in PEM without a passphrase: convert it, or name another",
        ),
        (
            {"SIP_TRANSPORTS": "tls", "TLS_CLIENT_CA_FILE": f"{TLS}/text"},
            f"TLS_CLIENT_CA_FILE='{TLS}/text' has no certificate in PEM: convert it, or name another",
        ),
        (
            {"SIP_TRANSPORTS": "tls,ws", "SIP_WS_PORT": "5061"},
            "SIP_WS_PORT='5061' is SIP_TLS_PORT as well: give each transport and the event socket a port of its own",
        ),
        (
            {"DIRECTORY_URL": "https://a.example.test", "DIRECTORY_CA_FILE": "/nowhere"},
            "DIRECTORY_CA_FILE='/nowhere': there is no such file: mount it, or name another",
        ),
        (
            {"DIRECTORY_URL": "http://a.example.test", "DIRECTORY_PASSWORD": "x"},
            "DIRECTORY_PASSWORD is given without DIRECTORY_USER: give both or none",
        ),
        (
            {"SIP_TRANSPORTS": "udp,wss", "TLS_CLIENT_CA_FILE": f"{TLS}/ca.pem"},
            f"TLS_CLIENT_CA_FILE='{TLS}/ca.pem' is for TLS: add tls to SIP_TRANSPORTS",
        ),
        (
            {"LOAD_MODULES": "mod_cdr_csv,mod_amqp"},
            "LOAD_MODULES='mod_cdr_csv,mod_amqp': mod_amqp needs a configuration: "
            "mount /etc/freeswitch/autoload_configs/amqp.conf.xml",
        ),
    ],
)
def test_values_that_do_not_go_together(checker: Checker, environment: dict[str, str], line: str) -> None:
    assert checker.refusal(environment) == line


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"ESL_PASSWORD": "a b&c"}, "ESL_PASSWORD must be made of the characters 0-9a-zA-Z._~- : choose another"),
        ({"ESL_PASSWORD": "ClueCon"}, "ESL_PASSWORD is the well-known one: choose another"),
        (
            {"ESL_PASSWORD": "hush", "ESL_PASSWORD_FILE": f"{TLS}/password"},
            "ESL_PASSWORD and ESL_PASSWORD_FILE are both given: give one of them",
        ),
        (
            {"ESL_PASSWORD_FILE": f"{TLS}/none"},
            f"ESL_PASSWORD_FILE='{TLS}/none' is not a file that user 5060 can read: mount it, or mend its mode",
        ),
        (
            {"DIRECTORY_PASSWORD_FILE": f"{TLS}/empty"},
            f"DIRECTORY_PASSWORD_FILE='{TLS}/empty' is empty: write the value into it",
        ),
        (
            {"DIRECTORY_URL": "https://me:hush@a.example.test"},
            "DIRECTORY_URL has a user in it: give it as DIRECTORY_USER and DIRECTORY_PASSWORD",
        ),
    ],
)
def test_secrets_are_refused_without_being_shown(checker: Checker, environment: dict[str, str], line: str) -> None:
    assert checker.refusal(environment) == line
    assert "hush" not in line


def test_clients_of_wss_without_a_certificate_are_told(checker: Checker) -> None:
    code, _, errors = checker.check({"SIP_TRANSPORTS": "tls,wss", "TLS_CLIENT_CA_FILE": f"{TLS}/ca.pem"})
    assert code == 0
    assert f"TLS_CLIENT_CA_FILE='{TLS}/ca.pem' does not hold for WSS: its clients need no certificate" in errors


def test_directory_that_the_user_cannot_read(checker: Checker) -> None:
    for mode, code in ((700, CONFIGURATION_ERROR), (755, 0)):
        assert engine.execute(checker.container, ["chmod", str(mode), USERS], "root").status == 0
        assert checker.check({})[0] == code


def test_misspelled_variables_are_told(checker: Checker) -> None:
    """Of every family of variables, and where the first word lacks an S or has one too many."""
    families = {variable["name"].split("_")[0] for group in variables.groups() for variable in group["variables"]}
    names = {f"{family}_X" for family in families} | {"REQUEST_PER_SECOND", "LOGS_LEVEL", "TCP_FIRST_TIMEOUT"}
    code, _, errors = checker.check({**dict.fromkeys(names, "5"), "HOSTNAMES": "5"})
    assert code == 0
    told = [line for line in errors.splitlines() if line.endswith(" is not one of the variables of this image")]
    assert sorted(told) == sorted(
        f"{PREFIX}warning: {name} is not one of the variables of this image" for name in names
    )


def test_address_of_another_network_is_told(checker: Checker) -> None:
    """The check runs in a network of its own, and doesn't know that of the start, which refuses it."""
    code, _, errors = checker.check({"SIP_LISTEN_IP": "192.0.2.7"})
    assert code == 0
    expected = "SIP_LISTEN_IP='192.0.2.7' is not an address that can be listened on here: right only if the container"
    assert f"{PREFIX}warning: {expected} will have it" in errors
    assert errors.rstrip().endswith(", else give one of auto, 127.0.0.1")
    _, _, errors = checker.check({"SIP_LISTEN_IP": "127.0.0.1", "ESL_LISTEN_IP": "127.0.0.2"})
    assert "listened on" not in errors


USERS = "/etc/freeswitch/directory"
ALICE = '<user id="alice"><params><param name="password" value="{}"/></params></user>'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"<include>{ALICE}</include>\n", "line 1: FreeSWITCH passes over a line with <include>,"),
        (f"<include>\n{ALICE}</include>\n", "line 2: FreeSWITCH passes over a line with"),
        (f"<?xml version='1.0'?>{ALICE}\n", "line 1: FreeSWITCH passes over a line with"),
        (
            f"<include>\n{ALICE}\n<user id='bob'><params></user>\n</include>\n",
            "line 3: mismatched tag: correct the XML",
        ),
        (f"<include>\n{ALICE}\n<user id='bob'>\n", "line 4: mismatched tag: correct the XML"),
        (f"<include>\n{ALICE}\n<user id='bo", "line 3: it ends in the middle of a tag: complete it"),
        (f"{ALICE}\n<!-- <user id='bob'/>\n", "line 2: unclosed token: correct the XML"),
    ],
)
def test_files_of_which_freeswitch_would_lose_a_part(checker: Checker, text: str, fault: str) -> None:
    files = {"a.xml": f"<include>\n{ALICE}\n</include>\n", "b b.xml": text, "c.xml": ALICE}
    with _files(checker, files):
        assert checker.refusal({}).startswith(f"{USERS}/b b.xml: {fault}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"\n<?xml version='1.0' encoding='UTF-8'?>\n  <include>\t\r\n{ALICE}\r\n</include> \n\n",
        f"{ALICE}\n{ALICE.replace('alice', 'bob')}",
        "<!-- of <include> -->\n<!-- two\nlines -- and more -->\n" + ALICE.format("a&b<c>"),
        ALICE.format("M\u00fcller"),
    ],
)
def test_files_that_freeswitch_takes_as_they_are(checker: Checker, text: str) -> None:
    with _files(checker, {"a.xml": text}):
        code, _, errors = checker.check({})
        assert code == 0, errors


def test_file_that_the_user_cannot_read(checker: Checker) -> None:
    with _files(checker, {"a.xml": ALICE}):
        assert engine.execute(checker.container, ["chmod", "600", f"{USERS}/a.xml"], "root").status == 0
        line = checker.refusal({})
        assert line == f"{USERS}/a.xml is not readable for user 5060: mend its owner or mode"


@contextmanager
def _files(checker: Checker, files: Mapping[str, str]) -> Iterator[None]:
    """Put files of users into the container."""
    checker.container.put_archive(USERS, engine.tar(dict(files)))
    try:
        yield
    finally:
        engine.execute(checker.container, ["sh", "-c", f"rm -f {USERS}/*"], "root")
