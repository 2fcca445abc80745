"""The variables of the image: their table, their kinds in Python and in shell, their documentation."""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scripts.errors import ToolkitError
from scripts.image import variables
from scripts.upkeep import lint
from tests.unit.image.parts import CODECS, MODULES, PREFIX, Parts

SHELLS = [shell for shell in ("sh", "bash") if shutil.which(shell)]
KINDS = {kind.name: kind for kind in variables.kinds()}
NETWORKS = ["192.0.2.0/24", "10.0.0.1", "2001:db8::/32", "::/0", "1.2.3.4/32", "1.2.3.4/032", "::1/128", "1.2.3.4,::1"]
NOT_NETWORKS = ["10/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/0032", "::/129", "::/0128", "::/x", "/8", "1.2.3.4/8/8",
                "1.2.3.4 ::1", "1.2.3.4,", ",::1", "1.2.3.4,,::1", "1.2.3.4,10.0.0.0/33", "localhost"]  # fmt: skip
IPV4 = ["0.0.0.1", "192.0.2.10", "255.255.255.255", "9.10.99.100"]
NOT_IPV4 = ["256.0.0.1", "1.2.3", "1.2.3.4.5", "01.2.3.4", "1..2.3", ".1.2.3", "1.2.3.", "1.2.3.x", "1.2.3.4\n"]
IPV6 = ["::1", "2001:db8::7", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1::8", "ABCD:ef::", "1:2::7:8"]
NOT_IPV6 = ["1::2::3", ":::", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7:8::", "12345::", "g::", ":1", "1:",
            "1::2:3:4:5:6:7:8", "::ffff:192.0.2.1", "fe80::1%eth0"]  # fmt: skip
NOT_WHOLE = ["-1", "+1", "1e3", "01", " 1", "1 ", "1\n", "1.0", "0x1", "1234567890", "x"]
# By the first word of the kind: good and bad values.
TABLE: dict[str, tuple[list[str], list[str]]] = {
    "boolean": (["true", "false"], ["yes", "1", "TRUE", "true false", "true\n", "\ntrue"]),
    "integer": (["1", "7", "60"], [*NOT_WHOLE, "999999999"]),
    "port": (["1", "5060", "65535"], [*NOT_WHOLE, "0", "65536", "99999", "sip"]),
    "timeout": (["0", "2", "9", "10", "32767"], [*NOT_WHOLE, "1", "32768", "99999"]),
    "address": ([*IPV4, *IPV6, "0.0.0.0", "::"], [*NOT_IPV4, *NOT_IPV6, "auto", "example.org"]),
    "auto-or-address": (["auto", *IPV4, *IPV6], [*NOT_IPV4, *NOT_IPV6, "0.0.0.0", "::", "Auto"]),
    "networks": (
        NETWORKS,
        NOT_NETWORKS,
    ),
    "list": (
        ["udp", "tcp,udp", "udp,tcp,tls,ws,wss"],
        ["sctp", "udp,sctp", "udp, tcp", "udp tcp", "udp,", ",", "UDP", "udp\n"],
    ),
    "choice": (["debug", "err"], ["loud", "debug info", "debug,info", "", "Debug", "err\n"]),
    "codecs": (
        ["PCMA", "opus@48000h@20i,PCMA", "H263-1998", "PCMU@20i"],
        ["FOO", "PCMA,FOO@x", "PCMA@x", "PCMA@20i@", "PCMA@", "PCM", "H263.1998", "PCMA,"],
    ),
    "modules": (["mod_amqp", "mod_amqp,mod_hiredis"], ["mod_nothing", "../mod_amqp", "mod_a/b", "amqp", "mod_A", "m*"]),
    "name": (["sip.example.org", "x", "2001:db8::1", "a_b-c"], ['a"b', "a\nb", "a b", "a/b", "ä", "$a"]),
    "word": (["me", "me@example.org", "~a._-"], ["a b", "a:b", "a&b", "a\n"]),
    "path": (["/etc/a.pem", "/", "/a+b@c"], ["tls.crt", "./a", "/a b", "/a\n", "/a<b"]),
    "url": (
        ["http://a", "https://a.example.test:8080/b?c=d%20"],
        ["ftp://a", "https://", "http://me:hush@a", "http://a?b&c", "a", "HTTP://a", "http://a\n"],
    ),
    "dial-string": (
        ["sofia/gateway/trunk/NUMBER", "sofia/internal/NUMBER@192.0.2.7:5080;transport=tcp", "sofia/a/0NUMBER"],
        [
            "NUMBER",
            "sofia/gateway/trunk/",
            "sofia/a/NUMBERNUMBER",
            "loopback/NUMBER",
            "sofia/a/NUMBER,b",
            "sofia/a/{x}NUMBER",
            "sofia/a/NUMBER\n",
            "sofia/a/$NUMBER",
            "sofia/a/number",
        ],
    ),
    "secret": (["s3cret", "~._-"], ["ClueCon", "a b&c", "a\n", "ä", "'"]),
}


def has(ask: str, item: str) -> bool:
    """Answer as the image of the tests does."""
    return item in MODULES if ask == "has_module" else item.partition("@")[0].upper() in CODECS


def cases() -> list[tuple[str, str, str, bool]]:
    """Return name, kind, value, and whether that is right: every kind that the variables have, once each."""
    kinds = {variable["name"]: variable["kind"] for group in variables.groups() for variable in group["variables"]}
    found = {kinds[name].split()[0]: (name, kinds[name]) for name in reversed(kinds)}
    # The table has what is good for these.
    for name in ("DIRECTORY_TIMEOUT", "LOG_LEVEL", "SIP_TRANSPORTS"):
        found[kinds[name].split()[0]] = (name, kinds[name])
    assert found.keys() == TABLE.keys()
    return [
        (*found[word], value, right)
        for word, both in TABLE.items()
        for right, values in zip((True, False), both, strict=True)
        for value in values
    ]


@pytest.mark.parametrize("shell", SHELLS)
def test_values_in_python_and_in_the_shell(parts: Parts, shell: str) -> None:
    table = cases()
    answers = check(parts, [(name, value, kind) for name, kind, value, _ in table], shell)
    for (name, kind, value, right), (status, line) in zip(table, answers, strict=True):
        expected = KINDS[kind].refusal(name, value, has)
        assert bool(expected) is not right, (kind, value, expected)
        assert status == ("78" if expected else "0"), (kind, value, line)
        if (lacks := "the image has no") in expected:
            assert lacks in line, (kind, value)
        else:
            assert line == (f"{PREFIX}{expected}" if expected else ""), (kind, value)


def check(parts: Parts, values: Sequence[tuple[str, str, str]], shell: str = "sh") -> list[tuple[str, str]]:
    """Return the status of the shell's check and what it says, of each name, value and kind."""
    script = """
        while [ $# -gt 0 ]; do
            status=0
            (check "$1" "$2" "$3") 2>&1 || status=$?
            printf '%s\\036' "$status"
            shift 3
        done"""
    done = parts.run(script, *(text for value in values for text in value), shell=shell)
    assert done.returncode == 0, done.stderr
    found = [answer.rpartition("\n") for answer in done.stdout.split("\036")[:-1]]
    return [(status, line) for line, _, status in found]


PARTS = st.lists(st.sampled_from(["", "0", "1", "abcd", "12345", "g", ":"]), max_size=10).map(":".join)
COUNTS = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(
    lambda counts: "::".join(":".join("12345678a"[:count]) for count in counts)
)
# Eight colons are right at an end only.
ENDS = ["1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8::", "::1:2:3:4:5:6:7:8", "1::2:3:4:5:6:7:8", "::"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.ip_addresses(v=6).map(lambda found: found.exploded), PARTS, COUNTS), max_size=50))
@example(ENDS)
def test_ipv6_addresses_are_those_that_python_knows(parts_of_all: Parts, texts: list[str]) -> None:
    def is_valid(text: str) -> bool:
        try:
            ipaddress.IPv6Address(text)
        except ValueError:
            return False
        return True

    (rule,) = KINDS["address"].rules
    expected = [is_valid(text) for text in texts]
    assert [rule.holds(text) for text in texts] == expected
    found = check(parts_of_all, [("ESL_LISTEN_IP", text, "address") for text in texts])
    assert [status == "0" for status, _ in found] == expected


def test_patterns_mean_the_same_to_both() -> None:
    """Neither Python's own ways nor POSIX's: classes, assertions, lazy repetition, anchors."""
    for kind in KINDS.values():
        for rule in (*kind.rules, *kind.each):
            for pattern in (rule.like, rule.unlike):
                outside = re.sub(r"\[\^?[^\[\]]+\]", "c", pattern)
                assert not re.search(r"\\[0-9A-Za-z-]|\(\?|[*+?}][*+?]|[\^$]|\[", outside), (kind.name, pattern)


def test_shell_of_the_values_is_clean(parts: Parts) -> None:
    tool = lint.find("shellcheck")
    if tool is None:
        pytest.skip("shellcheck is not there for this processor")
    done = subprocess.run([tool, parts.directory / "values.sh"], capture_output=True, text=True)
    assert not done.stdout


PORTS = "{patterns: {}, kinds: %s, groups: [{variables: [{name: X, kind: %s}]}]}"


@pytest.mark.parametrize(
    ("kinds", "kind", "line"),
    [
        ("{port: {}}", "prot", "there is no kind prot: use port, or add it"),
        ("{port: {arguments: [most]}}", "port", "kind 'port': give the words after it that it has arguments for: most"),
        (
            "{port: {arguments: [words...]}}",
            "port",
            "kind 'port': give the words after it that it has arguments for: words...",
        ),
        ("{port: {arguments: [word]}}", "port a.b", "kind 'port a.b': 'a.b' would mean something in a pattern"),
        ("{port: {rules: [{like: <nothing>, say: x}]}}", "port", "kind 'port': there is no <nothing>: use"),
        (
            "{port: {rules: [{like: a, say: <nothing>}]}}",
            "port",
            "kind 'port': there is no <nothing> to say: use <name>,",
        ),
        ("{port: {rules: [{lkie: a}]}}", "port", "kind 'port': a rule has no lkie: use like, unlike,"),
    ],
)
def test_mistakes_in_the_file_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: str, kind: str, line: str
) -> None:
    monkeypatch.setattr(variables, "FILE", tmp_path / "variables.yaml")
    variables.FILE.write_text(PORTS % (kinds, kind))
    with pytest.raises(ToolkitError) as error:
        variables.kinds()
    assert f"variables.yaml: {line}" in str(error.value) and "\n" not in str(error.value)


def test_value_that_the_image_would_refuse() -> None:
    assert variables.refusal("SIP_PORT", "5070") == variables.refusal("SIP_PORT", "") == ""
    assert variables.refusal("SIP_PORT", "0") == "SIP_PORT='0' is not a port: give a number from 1 to 65535"
    assert variables.refusal("SIP_PROT", "5070") == "the image has no variable 'SIP_PROT': write SIP_PORT"
    assert variables.refusal("XYZ", "1") == "the image has no variable 'XYZ': docs/deployment.md has them"


def test_table_has_a_check_for_every_variable(parts: Parts) -> None:
    script = (parts.directory / "values.sh").read_text()
    for group in variables.groups():
        for variable in group["variables"]:
            assert re.search(rf"^\t'?{variable['kind']}'?\)$", script, re.MULTILINE), variable["name"]


def test_documentation_has_the_variables(root: Path) -> None:
    page = (root / "docs/deployment.md").read_text()
    for group in variables.groups():
        assert f"### {group['title']}\n" in page
        for variable in group["variables"]:
            default = f"`{variable['default']}`" if variable["default"] else ""
            assert f"| `{variable['name']}` | {default} | {variable['text']} |" in page, variable["name"]
