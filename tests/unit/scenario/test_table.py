"""Scenarios are data: what is in a folder is read, and what can't be is told with its place."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from scripts.errors import ToolkitError
from scripts.scenario import check, player, table
from scripts.scenario.sipp import TRANSPORTS
from scripts.scenario.table import PATCHED, STOCK, Scenario

NEEDS = {
    "title": "one",
    "report": "one",
    "images": ["patched", "stock"],
    "users": ["alice"],
    "profiles": {"internal": {"port": 5060}},
    "environment": {"SIP_TRANSPORTS": "udp,tcp,tls"},
}
ROW = {
    "case": "the client closes",
    "profiles": ["internal"],
    "over": ["tcp", "tls"],
    "do": [
        "open a",
        "register alice a",
        {"fin a": {"patched": "alice 0 left peer-closed", "stock": "nothing"}},
    ],
}


def made(root: Path, needs: object = NEEDS, rows: object = (ROW,), name: str = "mine") -> Scenario:
    folder = root / name
    (folder / "freeswitch/directory").mkdir(parents=True, exist_ok=True)
    (folder / "freeswitch/tls").mkdir(exist_ok=True)
    (folder / "freeswitch/tls/tls.crt.j2").touch()
    (folder / "freeswitch/directory/users.xml.j2").write_text("<include/>\n")
    (folder / "scenario.yaml").write_text(yaml.safe_dump(needs))
    (folder / "table.yaml").write_text(yaml.safe_dump(list(rows) if isinstance(rows, tuple) else rows))
    return table.load(name, root)


def test_row_is_a_case_for_each_profile_and_transport(tmp_path: Path) -> None:
    found = made(tmp_path)
    assert [str(case) for case in found.cases(PATCHED)] == [
        "the client closes, internal, tcp",
        "the client closes, internal, tls",
    ]
    assert found.cases(PATCHED)[0].steps[-1] == "fin a -> alice 0 left peer-closed"
    assert found.cases(STOCK)[0].steps[-1] == "fin a -> nothing"
    assert found.several and not found.composed
    assert found.profile("internal").listens("tls") == 5061


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"report": "../x"}, r"mine/scenario\.yaml: report: "),
        ({"report": "a" * 61}, r"mine/scenario\.yaml: report: "),
        ({"ovr": 1}, r"mine/scenario\.yaml: ovr: extra inputs are not permitted"),
        ({"images": ["gentoo"]}, r"mine/scenario\.yaml: images\.0: "),
        ({"images": ["stock", "stock"]}, r"mine/scenario\.yaml: images: .*twice"),
        ({"profiles": {}}, r"mine/scenario\.yaml: profiles: "),
        ({"profiles": {"x": {"port": 99999}}}, r"mine/scenario\.yaml: profiles\.x\.port: "),
        ({"profiles": {"x": {"port": "5060"}}}, r"mine/scenario\.yaml: profiles\.x\.port: .*integer"),
        ({"cpus": [0]}, r"mine/scenario\.yaml: cpus\.0: "),
        ({"users": ["a b"]}, r"mine/scenario\.yaml: users\.0: "),
        ({"wait": {"report": 1.0}}, r"mine/scenario\.yaml: wait\.nothing: field required"),
        ({"colour": "red"}, r"mine/scenario\.yaml: colour: "),
    ],
)
def test_what_a_scenario_cannot_need_is_refused_with_its_field(
    tmp_path: Path, change: dict[str, object], what: str
) -> None:
    with pytest.raises(ToolkitError, match=what) as caught:
        made(tmp_path, {**NEEDS, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"over": ["sctp"]}, "case 'the client closes': over.0: "),
        ({"profiles": ["external"]}, "case 'the client closes': no profile 'external' in scenario.yaml: internal"),
        ({"do": []}, "case 'the client closes': do: "),
        ({"do": ["fin a -> gone"]}, "case 'the client closes': 'gone' is no outcome"),
        ({"do": ["fin a -> u 0 left died"]}, "case 'the client closes': 'died' is no close-cause"),
        ({"do": [{"fin a": {"patched": "nothing"}}]}, "step 'fin a': write one outcome for each of patched, stock"),
        ({"do": [{"fin a": {"patched": "nothing", "stock": "gone"}}]}, "'gone' is no outcome"),
        ({"case": 7}, "case '7': case: "),
        ({"to": ["x"]}, "case 'the client closes': to: "),
    ],
)
def test_what_cannot_be_a_case_is_refused_with_its_name(tmp_path: Path, change: dict[str, object], what: str) -> None:
    with pytest.raises(ToolkitError) as caught:
        made(tmp_path, rows=({**ROW, **change},))
    assert "mine/table.yaml: " in str(caught.value) and what in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", ["text", [], {"case": "x"}, None])
def test_table_that_is_none_is_refused(tmp_path: Path, rows: object) -> None:
    with pytest.raises(ToolkitError, match=r"mine/table\.yaml: is no list of cases"):
        made(tmp_path, rows=rows)


def test_file_that_is_no_yaml_is_told_with_its_folder(tmp_path: Path) -> None:
    found = made(tmp_path)
    for name in ("table.yaml", "scenario.yaml"):
        (found.directory / name).write_text("- case: [\n")
        with pytest.raises(ToolkitError, match=rf"mine/{name}: is not YAML \(line 2: "):
            table.load("mine", tmp_path)


def test_names_of_cases_are_there_once(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="1 cases have the name of another"):
        made(tmp_path, rows=(ROW, ROW))


@pytest.mark.parametrize(
    ("step", "what"),
    [
        ("explode a", "there is no verb 'explode': one of abort_handshake, "),
        ("__init__ a", "there is no verb '__init__'"),
        ("play", "there is no verb 'play'"),
        ("open", "0 arguments: write 'open name [transport]'"),
        ("fin a b", "2 arguments: write 'fin name'"),
        ("sipp alice dance", "sipp/dance.xml.j2: add it"),
        ("register bob a", "no user 'bob': add it to users in scenario.yaml"),
        ("-> nothing", "there is no verb ''"),
        ("rst b", "no connection 'b' is open: write 'open b' before"),
        ("fin c", "no connection 'c' is open"),
        ("register alice b", "no connection 'b' is open"),
        ("refresh alice a", "'alice' has not registered over 'a': write 'register alice a' before"),
        ("move alice b a", "'alice' has not registered over 'b'"),
        ("kill alice", "'alice' has no process: write 'spawn alice' or"),
        ("end alice", "'alice' has no process"),
        ("open b sctp", "'sctp' is no transport: input should be 'udp', 'tcp', 'tls', 'ws' or 'wss'"),
        ("open b wss", "the image listens for tcp, tls, udp only, not for wss: add it to SIP_TRANSPORTS"),
        ("wait long", "'long' is no seconds: input should be a valid number"),
        ("noise -1", "'-1' is no count: input should be greater than or equal to 0"),
        ("send a nonsense", "'nonsense' is no what: input should be 'partial', "),
        ("storm alice slowly", "'slowly' is no end: input should be 'fin' or 'rst'"),
        ("register alice a expires=soon", "'expires=soon' is no options: string should match"),
        ("crowd u*2*3", "'u*2*3' is no alias"),
        ("open a", "connection 'a' is open already: give this one another name"),
        ("register alice h", "nothing can be sent over 'h' any more"),
        ("half_close h", "nothing can be sent over 'h' any more"),
        ("spawn carol", "'carol' has a process already: write 'kill carol' before"),
        ("end carol", "'carol' has no SIPp, which comes to an end by itself"),
        ("close_notify a", "it can't be played over tcp: only over tls, wss"),
        ("ws_close a", "it can't be played over tcp: only over ws, wss"),
        ("fin a -> u*x 0 left reset", "'u*x' are no users: write u*50"),
        ("fin a -> u*99999 0 left reset", "'u*99999' are no users"),
        ("fin a -> alice \u00b2 left reset", "is no outcome: write"),
        ("fin a -> at most alice unregistered", "only reports can be 'at most'"),
        ("fin a -> nothing; alice 0 left reset", "'nothing' is no outcome"),
        ("fin a -> alice 0 left reset; alice 1 left reset", "says two things of one user"),
        ("fin a -> bob 0 left reset", "nothing can come of 'bob', who is in no step so far"),
    ],
)
def test_step_that_cannot_be_played_is_refused_before_anything_runs(tmp_path: Path, step: str, what: str) -> None:
    before = ["open a", "open c", "fin c", "open h", "half_close h", "spawn carol"]
    needs = {**NEEDS, "users": ["alice", "carol"]}
    wrong = ("u*x", "u*99999", "\u00b2", "at most", "nothing; ", "alice 1")
    with pytest.raises(ToolkitError) as caught:
        check.check(made(tmp_path, needs, ({**ROW, "do": [*before, step]},)), player.VERBS)
    if any(text in step for text in wrong):
        assert what in str(caught.value)
        return
    assert f"case 'the client closes': step '{step}': " in str(caught.value) and what in str(caught.value)


def test_image_that_does_not_listen_is_refused_before_anything_runs(tmp_path: Path) -> None:
    found = made(tmp_path, needs={**NEEDS, "environment": {}}, rows=({**ROW, "alone": True},))
    what = "case 'the client closes': the image listens for tcp, udp only, not for tls: add it to SIP_TRANSPORTS"
    with pytest.raises(ToolkitError, match=what):
        check.check(found, player.VERBS)
    # Its own profiles listen for what they say.
    (found.directory / "freeswitch/autoload_configs").mkdir()
    (found.directory / "freeswitch/autoload_configs/sofia.conf.xml.j2").write_text("<configuration/>")
    check.check(found, player.VERBS)


def test_scenario_without_users_is_refused_before_anything_runs(tmp_path: Path) -> None:
    found = made(tmp_path, rows=({**ROW, "alone": True},))
    (found.directory / "freeswitch/directory/users.xml.j2").unlink()
    (found.directory / "freeswitch/directory").rmdir()
    with pytest.raises(
        ToolkitError, match=r"freeswitch/directory .* has no users\.xml\.j2, .* copy the one of .*'kill'"
    ):
        check.check(found, player.VERBS)
    (found.directory / "compose.yml.j2").touch()
    check.check(found, player.VERBS)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"cpus": [2]}, r"scenario\.yaml: cpus need a Compose file: add compose\.yml\.j2"),
        ({"profiles": {"internal": {"port": 5060, "ipv6": True}}}, "'internal': ipv6 needs a Compose file"),
        (
            {"profiles": {"internal": {"port": 5080}}},
            r"'internal': the image listens on port 5060 for udp: write that \(port: 5060\)",
        ),
        ({"profiles": {"internal": {"port": 5060, "parameters": {"a": "b"}}}}, "the image's profile takes no param"),
        ({"environment": {"SIP_TRANSPORTS": "udp, tcp,tls"}}, "environment: SIP_TRANSPORTS='udp, tcp,tls' is not"),
        (
            {"environment": {"SIP_TRANSPORTS": "udp,TCP"}},
            "environment: SIP_TRANSPORTS='udp,TCP': there is no 'TCP': use",
        ),
        ({"environment": {"SIP_TRANSPORT": "udp"}}, "no variable 'SIP_TRANSPORT': write SIP_TRANSPORTS"),
        (
            {"environment": {"SIP_TRANSPORTS": "tcp,ws"}},
            r"port 5066 for ws: write that \(ports: {ws: 5066}\)",
        ),
        ({"environment": {"SIP_TRANSPORTS": "tcp,tls", "TLS_CERT_FILE": "/tls.crt"}}, "tls needs a certificate, and"),
        ({"environment": {"MAX_SESSIONS": "9" * 5000}}, "MAX_SESSIONS='9{150,190}…$"),
        ({"environment": {"a\nb": "c"}}, r"no variable 'a\\nb': docs"),
        ({"environment": {"ESL_PORT": "8022"}}, "environment: every run sets ESL_PORT itself: leave it out"),
        (
            {"profiles": {"internal": {"port": 5060}, "b": {"port": 5060}}},
            "'b': the image has one profile, internal",
        ),
    ],
)
def test_what_the_image_alone_cannot_give_is_refused_with_its_field(
    tmp_path: Path, change: dict[str, object], what: str
) -> None:
    found = made(tmp_path, needs={**NEEDS, **change}, rows=({**ROW, "alone": True},))
    with pytest.raises(ToolkitError, match=what):
        check.check(found, player.VERBS)


def test_broken_templates_are_told_before_anything_runs(tmp_path: Path) -> None:
    found = made(tmp_path, rows=({**ROW, "alone": True, "over": ["tcp"], "do": ["sipp alice mine", "kill alice"]},))
    script, users = found.directory / "sipp/mine.xml.j2", found.directory / "freeswitch/directory/users.xml.j2"
    script.parent.mkdir()
    for text, what in (
        ("{% for %}", "TemplateSyntaxError"),
        ("<a", "rendered, it is no XML"),
        ("{{ nobody }}", "Undef"),
        ("<a>{{ '\\ud800' }}</a>", "rendered, it is no XML"),
    ):
        script.write_text(text)
        with pytest.raises(ToolkitError, match=rf"step 'sipp alice mine': .*sipp/mine\.xml\.j2: {what}"):
            check.check(found, player.VERBS)
    script.write_text("<scenario/>")
    check.check(found, player.VERBS)
    users.write_text("{% if %}")
    with pytest.raises(ToolkitError, match=r"freeswitch/directory/users\.xml\.j2: TemplateSyntaxError"):
        check.check(found, player.VERBS)
    users.unlink()
    users.symlink_to("nowhere")
    with pytest.raises(ToolkitError, match=r"users\.xml\.j2: TemplateNotFound"):
        check.check(found, player.VERBS)
    users.unlink()
    users.mkdir()
    with pytest.raises(ToolkitError, match=r"freeswitch/directory .* has no users\.xml\.j2"):
        check.check(found, player.VERBS)


def test_process_that_has_come_to_an_end_is_not_killed(tmp_path: Path) -> None:
    row = {**ROW, "alone": True, "over": ["tcp"]}
    with pytest.raises(ToolkitError, match="step 'kill alice': 'alice' has no process"):
        check.check(
            made(tmp_path, rows=({**row, "do": ["sipp alice leave", "end alice", "kill alice"]},)), player.VERBS
        )


def test_compose_file_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    found = made(tmp_path, rows=({**ROW, "alone": True},))
    (found.directory / "compose.yml.j2").symlink_to("nowhere")
    with pytest.raises(ToolkitError, match=r"compose\.yml\.j2: TemplateNotFound"):
        check.check(found, player.VERBS)


def test_report_of_another_scenario_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/scenario.yaml").write_text("[")
    with pytest.raises(ToolkitError, match=r"second/scenario\.yaml: report 'one' is that of scenario 'mine', too"):
        made(tmp_path, name="second")


def test_case_name_that_would_rule_the_terminal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="case: value error, has a character that can't be printed"):
        made(tmp_path, rows=({**ROW, "case": "a\x1b[2J"},))


def test_cases_with_one_name_for_files_are_refused(tmp_path: Path) -> None:
    row = {**ROW, "alone": True}
    with pytest.raises(ToolkitError, match="cases 'a b' and 'a/b' have one name for files: change one"):
        check.check(made(tmp_path, rows=({**row, "case": "a b"}, {**row, "case": "a/b"})), player.VERBS)


def test_more_users_than_there_are_is_refused(tmp_path: Path) -> None:
    needs = {name: value for name, value in NEEDS.items() if name != "users"}
    row = {**ROW, "do": ["crowd u*3500", "fin_all"]}
    check.check(made(tmp_path, needs, (row,)), player.VERBS)
    with pytest.raises(ToolkitError, match="the cases have 7002 users, 7000 is the most: take fewer"):
        check.check(made(tmp_path, needs, ({**row, "do": ["crowd u*3501", "fin_all"]},)), player.VERBS)
    with pytest.raises(ToolkitError, match="step 'crowd u\\*2': connection 'u1' is open already"):
        check.check(made(tmp_path, needs, ({**row, "do": ["open u1", "crowd u*2"]},)), player.VERBS)


def test_user_of_cases_side_by_side_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="user 'alice' is in 'the client closes, internal, tcp' as well"):
        check.check(made(tmp_path), player.VERBS)
    check.check(made(tmp_path, rows=({**ROW, "alone": True},)), player.VERBS)


@pytest.mark.parametrize("text", ["[" * 5000, "case: 2026-13-45\n", "case: !!int abc\n"])
def test_yaml_that_python_refuses_is_a_line(tmp_path: Path, text: str) -> None:
    (made(tmp_path).directory / "table.yaml").write_text(text)
    with pytest.raises(ToolkitError, match=r"mine/table\.yaml: is not YAML"):
        table.load("mine", tmp_path)


def test_connections_and_registrations_end_with_their_step(tmp_path: Path) -> None:
    steps = ["crowd u*2", "fin u1 -> u1 0 left reset", "fin_all", "open u1", "move u2 u2 u1", "refresh u2 u1"]
    needs = {key: value for key, value in NEEDS.items() if key != "users"}
    check.check(made(tmp_path, needs, ({**ROW, "do": steps},)), player.VERBS)
    with pytest.raises(ToolkitError, match="step 'fin u2': no connection 'u2' is open"):
        check.check(made(tmp_path, needs, ({**ROW, "do": [*steps, "fin u2"]},)), player.VERBS)


def test_template_that_is_none_is_refused_with_its_name(tmp_path: Path) -> None:
    found = made(tmp_path)
    (found.directory / "freeswitch/x.xml.j2").write_text("{{ nobody_gives_this }}")
    with pytest.raises(ToolkitError, match=r"mine/freeswitch/x\.xml\.j2: UndefinedError: 'nobody_gives_this'"):
        found.files()
    (found.directory / "freeswitch/x.xml.j2").write_text("{{ 1 / 0 }}")
    with pytest.raises(ToolkitError, match=r"x\.xml\.j2: ZeroDivisionError"):
        found.files()
    (found.directory / "freeswitch/x.xml.j2").write_bytes(b"\xff")
    with pytest.raises(ToolkitError, match=r"x\.xml\.j2: UnicodeDecodeError"):
        found.files()


@pytest.mark.parametrize("name", table.names())
def test_the_scenarios_of_the_project_can_be_played(name: str) -> None:
    found = table.load(name)
    check.check(found, player.VERBS)
    for variant in found.images:
        assert found.cases(variant)


def test_kill_is_told_by_the_patched_image_only() -> None:
    kill = table.load("kill")
    outcomes = {variant: [one.kind for case in kill.cases(variant) for one in case.outcomes] for variant in kill.images}
    assert outcomes == {PATCHED: ["report", "itself"], STOCK: ["itself"]}
    # Stock FreeSWITCH keeps a killed client's registration: each case has a user of its own.
    assert len(kill.users) == len(kill.cases(PATCHED))


@pytest.mark.parametrize(("name", "leaves"), [("register", False), ("leave", True)])
def test_sipp_scenarios_are_well_formed(name: str, leaves: bool) -> None:
    text = table.load("kill").render(
        f"sipp/{name}.xml",
        user="alice",
        answer="[authentication username=alice password=pw]",
        domain="example.test",
        timeout_ms=1500,
        hold_ms=7,
    )
    root = ElementTree.fromstring(text)
    sends = [element.text or "" for element in root.iter("send")]
    assert root.tag == "scenario"
    assert all("<sip:alice@example.test>" in send for send in sends)
    # Every other REGISTER answers the challenge that is received before it.
    assert ["[authentication username=alice password=pw]" in send for send in sends] == [False, True] * (
        len(sends) // 2
    )
    responses = [(element.get("response"), element.get("auth")) for element in root.iter("recv")]
    assert responses == [("401", "true"), ("200", None)] * (len(sends) // 2)
    assert {element.get("timeout") for element in root.iter("recv")} == {"1500"}
    assert ["Expires: 0\n" in send for send in sends] == [False, False] + [True, True] * leaves
    assert [element.get("milliseconds") for element in root.iter("pause")] == ([] if leaves else ["7"])


def test_sipp_plays_over_what_it_can() -> None:
    assert set(TRANSPORTS) < {"udp", "tcp", "tls", "ws", "wss"}
