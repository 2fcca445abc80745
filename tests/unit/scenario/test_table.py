"""Scenarios are data: what is in a folder is read, and what can't be is told with its place."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from scripts.errors import ToolkitError
from scripts.scenario import player, table
from scripts.scenario.sipp import TRANSPORTS
from scripts.scenario.table import PATCHED, STOCK, Scenario

NEEDS = {
    "title": "one",
    "report": "one",
    "images": ["patched", "stock"],
    "users": ["alice"],
    "profiles": {"internal": {"port": 5060}},
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
    folder.mkdir(exist_ok=True)
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
    ],
)
def test_step_that_cannot_be_played_is_refused_before_anything_runs(tmp_path: Path, step: str, what: str) -> None:
    found = made(tmp_path, rows=({**ROW, "do": [step]},))
    with pytest.raises(ToolkitError) as caught:
        player.check(found)
    assert f"case 'the client closes': step '{step}': " in str(caught.value) and what in str(caught.value)


def test_template_that_is_none_is_refused_with_its_name(tmp_path: Path) -> None:
    found = made(tmp_path)
    (found.directory / "freeswitch").mkdir()
    (found.directory / "freeswitch/x.xml.j2").write_text("{{ nobody_gives_this }}")
    with pytest.raises(ToolkitError, match=r"mine/freeswitch/x\.xml\.j2: UndefinedError: 'nobody_gives_this'"):
        found.files()


@pytest.mark.parametrize("name", table.names())
def test_the_scenarios_of_the_project_can_be_played(name: str) -> None:
    found = table.load(name)
    player.check(found)
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
