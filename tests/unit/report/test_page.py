"""The report as a page: whole, self-contained, safe, and with what matters first."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from scapy.packet import Raw

from scripts.freeswitch.capture import Capture
from scripts.freeswitch.events import Event
from scripts.machine.files import ROOT
from scripts.report import ladder, latency, page, write
from scripts.scenario.outcome import Image, Result, Run, Verdict
from tests.flows import CLIENT, SERVER, TcpFlow, killed, ms, pcap, request, response

SUBCLASS = "sofia::tp_error_report"
VOID = {"meta", "link", "br", "hr", "img", "input"}
# What makes a browser fetch something, and what makes it run something.
FETCHING = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "background", "formaction", "manifest"}
ACTIVE = {"script", "iframe", "object", "embed", "link", "img", "base", "form", "foreignobject", "animate", "set"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>]]></style></title></svg>"


class Page(HTMLParser):
    """A page that was read strictly: every tag is closed, in the right order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.lines: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open}, line {self.getpos()[0]}"
        self.open.pop()
        self.texts.append(" " if tag in ("th", "td", "small", "summary") else "")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of each <tag>."""
        return [attributes for name, attributes in self.tags if name == tag]


def event(subclass: str, at_ms: float, **headers: str) -> Event:
    return Event({"Event-Subclass": subclass, **headers}, ms(at_ms))


def reported(agent: str = "SIPp", at_ms: float = 103) -> Event:
    headers = {
        "profile-name": "internal", "from-user": "alice", "from-host": "example.test", "user-agent": agent,
        "contact": "<sip:alice@192.0.2.10:40000>", "call-id": "one", "network-ip": CLIENT, "network-port": "40000",
        "transport": "tcp", "error-code": "0", "error-name": "NONE", "error-phrase": "", "registrations-left": "0",
        "close-cause": "peer-closed", "connected-at": "1700000000", "registered-at": "1700000000",
        "detected-at-us": str(ms(102) // 1000),
    }  # fmt: skip
    return event(SUBCLASS, at_ms, **headers)


def result(**changes: Any) -> Result:
    base = Result(
        "patched", "killed client", "SIPp killed (SIGKILL)", "1 report", "1 report", Verdict.PASSED, delay_ms=3.0,
        seconds=2.0, events=[event("sofia::register", 14, **{"from-user": "alice"}), reported()],
        capture=Capture("tcp", SERVER, CLIENT, killed_ns=ms(100), pcap=killed()),
    )  # fmt: skip
    return replace(base, **changes)


def run(*results: Result, **changes: Any) -> Run:
    base = Run(
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        [Image("patched", "fs:patched", "sha256:aa", {"org.example.series": "abc123"})],
        {"docker": "20.10", "kernel": "6.1.0"},
        results or [result()],
        subclass=SUBCLASS,
    )
    return replace(base, **changes)


def many(cases: int) -> Run:
    """A death matrix with so many cases over four transports; one in ten fails."""
    found = [
        Result(
            "patched", f"case {number}", "", "1 report", "1 report" if number % 10 else "no report",
            Verdict.PASSED if number % 10 else Verdict.FAILED, [] if number % 10 else [f"problem of {number}"],
            delay_ms=0.5 + number % 10 * 3 if number % 10 else None, seconds=1, profile="main" if number % 2 else "six",
            transport=transport, steps=["open a", "fin a -> u 0 left peer-closed"],
        )
        for number in range(cases) for transport in ("tcp", "tls", "ws", "wss")
    ]  # fmt: skip
    return run(*found, name="death-matrix")


PAGES = {
    "passed": run(),
    "failed": run(
        result(),
        result(case="other", verdict=Verdict.FAILED, problems=["0 reports instead of 1"], logs={"x.log": "the log"}),
        result(variant="stock", verdict=Verdict.ERROR, problems=["died"], capture=None, events=[], delay_ms=None),
    ),
    "not run": run(result(verdict=Verdict.NOT_RUN, problems=["no IPv6"], capture=None, came="", delay_ms=None)),
    "skipped": run(
        result(),
        result(case="six", verdict=Verdict.SKIPPED, problems=["no IPv6 here"], capture=None, came="", delay_ms=None),
    ),
    "many": many(70),
    "compared": run(
        result(transport="tcp"),
        result(transport="tcp", variant="stock", verdict=Verdict.FAILED, came="0 of 1", capture=None),
        name="comparison",
        compared={"stock"},
    ),
    "nothing": run(results=[]),
    "hostile": run(
        result(
            variant=HOSTILE, case=HOSTILE, done=HOSTILE, came=HOSTILE, problems=[HOSTILE], verdict=Verdict.FAILED,
            profile=HOSTILE, steps=[HOSTILE], logs={HOSTILE: HOSTILE},
            events=[event(HOSTILE, 10, **{HOSTILE: HOSTILE}), reported(HOSTILE)],
            capture=Capture("tcp", SERVER, killed_ns=ms(100), pcap=killed(HOSTILE)),
        ),
        result(case="bad", capture=Capture("tcp", SERVER, problem=HOSTILE)),
        result(case="not run", verdict=Verdict.NOT_RUN, problems=[HOSTILE], capture=None),
        images=[Image("patched", HOSTILE, HOSTILE, {HOSTILE: HOSTILE})],
        versions={HOSTILE: HOSTILE},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_and_fetches_and_runs_nothing(name: str) -> None:
    text = page.render(PAGES[name])
    assert text.lstrip().startswith("<!DOCTYPE html>")
    found = Page(text)
    for tag, attributes in found.tags:
        assert tag not in ACTIVE, f"<{tag}>"
        for attribute, value in attributes.items():
            assert not attribute.startswith("on"), f"<{tag} {attribute}>"
            if attribute in FETCHING:
                assert value.startswith(("#", "data:application/vnd.tcpdump.pcap;base64,")), (
                    f"<{tag} {attribute}={value}>"
                )
            assert "url(" not in value.replace("url(#", ""), f"<{tag} {attribute}={value}>"
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policy = next(item["content"] for item in found.all("meta") if "http-equiv" in item)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


@pytest.mark.parametrize("name", PAGES)
def test_references_and_tables_are_accessible(name: str) -> None:
    found = Page(page.render(PAGES[name]))
    names = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(names) == len(set(names))
    for tag, attributes in found.tags:
        for reference in attributes.get("aria-labelledby", "").split():
            assert reference in names, f"<{tag} aria-labelledby={reference}>"
        for attribute in ("href", "xlink:href"):
            if attributes.get(attribute, "").startswith("#"):
                assert attributes[attribute][1:] in names
        if tag == "th":
            assert attributes.get("scope") in ("row", "col", "colgroup")
        if attributes.get("tabindex"):
            assert tag == "pre" or (
                attributes["role"] == "region" and {"aria-label", "aria-labelledby"} & set(attributes)
            )
        if tag == "svg" and attributes.get("class") == "ladder":
            assert attributes["role"] == "img"
    assert found.all("html")[0]["lang"] == "en"
    assert len(found.all("h1")) == len(found.all("main")) == 1
    assert found.all("meta")[1]["content"] == "width=device-width, initial-scale=1"


def test_hostile_values_are_shown_as_they_are() -> None:
    text = Page(page.render(PAGES["hostile"])).text
    assert text.count(HOSTILE) >= 12
    assert f"User-Agent: {HOSTILE}" in text


def test_user_agent_that_is_a_script_is_escaped() -> None:
    capture = Capture("tcp", SERVER, pcap=killed("<script>alert(1)</script>"))
    text = page.render(run(result(capture=capture)))
    assert "<script" not in text and "User-Agent: &lt;script&gt;alert(1)" in text


def test_words_go_with_the_colours() -> None:
    text = page.render(PAGES["failed"])
    for verdict, sign in ((Verdict.PASSED, "✓"), (Verdict.FAILED, "✗"), (Verdict.ERROR, "!")):
        assert re.search(rf'<td class="{verdict}">\s*<b>(<a [^>]*>)?{sign} {verdict}', text)
    assert re.search(r'<td class="not-run">\s*<b>– not run', page.render(PAGES["not run"]))


def test_failure_comes_first_with_its_log_and_its_ladder() -> None:
    text = Page(page.render(PAGES["failed"])).text
    places = [
        text.index(part)
        for part in (
            "failed: 2 of 3 cases",
            "Not passed",
            "0 reports instead of 1",
            "the log",
            "Ladder diagram",
            "Matrix",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("name", "headline"),
    [
        ("passed", "passed: all 1 cases"),
        ("failed", "failed: 2 of 3 cases did not pass"),
        ("not run", "incomplete: 1 of 1 cases were not run"),
        ("skipped", "passed: 1 of 2 cases, none failed"),
        ("compared", "passed: all 1 cases"),
        ("nothing", "incomplete: 0 of 0 cases were not run"),
    ],
)
def test_headline(name: str, headline: str) -> None:
    assert headline in Page(page.render(PAGES[name])).text


def test_matrix_has_a_row_for_each_case_and_profile_and_a_column_for_each_transport() -> None:
    found = Page(page.render(PAGES["many"]))
    matrix = found.text[found.text.index("Matrix") :]
    assert "case tcp tls ws wss" in matrix
    assert sum(attributes.get("class") == "failed" for attributes in found.all("td")) == 28
    assert sum(attributes.get("class") == "passed" for attributes in found.all("td")) == 252
    assert "case 69" in matrix and "profile: six" in matrix


def test_compared_variant_fails_nothing() -> None:
    found = Page(page.render(PAGES["compared"]))
    assert "on stock 0 of 1" in found.text and "Not passed" not in found.text
    assert "0 of 1" in found.text[found.text.index("Matrix") :]


def test_ladder_shows_the_kill_the_end_and_the_event() -> None:
    text = page.render(run())
    svg = text[text.index('<svg class="ladder"') :]
    svg = svg[: svg.index("</svg>")]
    kinds = re.findall(r'<g class="(\w+)">', svg)
    assert kinds == ["tcp", "tcp", "sip", "sip", "sip", "sip", "event", "kill", "end", "end", "detected", "report"]
    heights = [int(y) for y in re.findall(r'class="time" x="52" y="(\d+)"', svg)]
    assert heights == sorted(heights) and len(set(heights)) == len(heights)
    for label in ("SYN, ACK", "REGISTER (1)", "401 Unauthorized (1)", "SIGKILL", "FIN, ACK", SUBCLASS, "+1.00"):
        assert f">{label}<" in svg


def test_ladder_texts_fit_between_the_lanes() -> None:
    wire = TcpFlow().open()
    wire.send(1, "PA", request(method="A" * 200))
    found = result(capture=Capture("tcp", SERVER, pcap=pcap(*wire.packets)), events=[event("e" * 100, 5)])
    picture = page._picture(run(found), found, 1)
    assert max(len(rung.label) for rung in picture.rungs) <= 22
    assert picture.rungs[-1].tip.startswith("e" * 100)


def test_long_ladder_is_shortened_and_its_table_is_not() -> None:
    wire = TcpFlow().open()
    for number in range(500):
        wire.send(1 + number / 10, "PA", request(cseq=number))
    found = result(capture=Capture("tcp", SERVER, pcap=pcap(*wire.packets)), events=[])
    picture = page._picture(run(found), found, 1)
    assert len(picture.rungs) == page.LADDER_ROWS + 1
    assert "422 more, in the table below" in [rung.label for rung in picture.rungs]
    assert len(picture.table) == 503


def test_pause_is_a_row() -> None:
    wire = TcpFlow().open()
    wire.send(1500, "FA")
    found = result(capture=Capture("tcp", SERVER, pcap=pcap(*wire.packets)), events=[])
    assert [rung.label for rung in page._picture(run(found), found, 1).rungs] == [
        "SYN",
        "SYN, ACK",
        "1.5 s",
        "FIN, ACK",
    ]


@pytest.mark.parametrize(
    ("capture", "line"),
    [
        (Capture("tcp", SERVER, problem="nothing was captured: no NET_RAW"), "nothing was captured: no NET_RAW"),
        (Capture("tcp", SERVER, pcap=b"rubbish"), "the capture can't be read"),
    ],
)
def test_missing_capture_is_a_line_and_changes_no_verdict(capture: Capture, line: str, tmp_path: Path) -> None:
    found = run(result(capture=capture))
    path = write.write(found, tmp_path)
    text = Page(path.read_text()).text
    assert f"No ladder diagram: {line}" in text and "passed: all 1 cases" in text
    assert not found.failures


@pytest.mark.parametrize("lost", [3, 4, 5])
def test_gaps_of_a_capture_are_told(lost: int) -> None:
    wire = TcpFlow().open()
    wire.send(10, "PA", request())
    wire.send(11, "PA", response("401 Unauthorized"), back=True)
    wire.send(12, "PA", request(cseq=2))
    wire.send(20, "FA")
    wire.send(21, "FA", back=True)
    wire.send(22, "A")
    for packets, missing in (
        (wire.packets, 0),
        # Late is not lost.
        ([*wire.packets[:lost], wire.packets[lost + 1], wire.packets[lost], *wire.packets[lost + 2 :]], 0),
        (wire.packets[:lost] + wire.packets[lost + 1 :], len(wire.packets[lost][Raw].load)),
    ):
        text = Page(page.render(run(result(capture=Capture("tcp", SERVER, pcap=pcap(*packets)))))).text
        assert ("It has gaps" in text) == bool(missing)
        assert not missing or f"It has gaps: {missing} bytes were sent that tcpdump did not see." in text


def test_what_fails_in_a_library_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no room for the font cache")

    monkeypatch.setattr(ladder, "build", fail)
    monkeypatch.setattr(latency, "timeline", fail)
    monkeypatch.setattr(latency, "distribution", fail)
    assert "No ladder diagram: can't be drawn: RuntimeError: no room" in Page(page.render(run())).text
    assert "can't be drawn: RuntimeError: no room" in Page(page.render(many(4))).text


def test_capture_can_be_saved() -> None:
    found = next(item for item in Page(page.render(run())).all("a") if "download" in item)
    assert found["download"] == "patched-killed-client.pcap"
    assert base64.b64decode(found["href"].partition(",")[2]) == killed()


def test_large_capture_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LARGEST_CAPTURE", 100)
    assert not any("download" in item for item in Page(page.render(run())).all("a"))


def test_stages_add_up_to_the_delay() -> None:
    found = result()
    picture = page._picture(run(found), found, 1)
    assert [round(milliseconds, 3) for _, milliseconds in picture.stages] == [1.0, 1.0, 1.0]
    assert "From SIGKILL to the event at the subscriber." in Page(page.render(run(found))).text
    stock = replace(found, events=[])
    assert page._picture(run(stock), stock, 1).stages == []


def test_distribution_is_plotted_by_transport() -> None:
    text = page.render(many(40))
    plot = text[text.index('<figure class="plot">') :]
    plot = plot[: plot.index("</figure>")]
    for transport in ("tcp", "tls", "ws", "wss"):
        assert f">{transport}</text>" in plot
    assert "#0102" not in plot and "var(--series-4)" in plot


def test_percentile_is_a_delay_that_was_measured() -> None:
    series = latency.DelaySeries("tcp", [1.0, 2.0, 3.0, 100.0])
    assert [series.percentile(share) for share in (50, 99, 100)] == [3.0, 100.0, 100.0]


def test_nobody_reported() -> None:
    text = Page(page.render(run(result(delay_ms=None, events=[])))).text
    assert "No report came, so there is no delay to show." in text


def test_versions_and_labels_are_listed() -> None:
    text = Page(page.render(run())).text
    for part in ("docker 20.10", "kernel 6.1.0", "Image fs:patched", "sha256:aa", "org.example.series abc123"):
        assert part in text


def luminance(colour: str) -> float:
    """The relative luminance of #rrggbb or #rgb (WCAG 2.2)."""
    digits = colour.lstrip("#")
    if len(digits) == 3:
        digits = "".join(digit * 2 for digit in digits)
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_contrast_is_enough_for_everybody() -> None:
    """Text on what it stands on: 4.5 to 1; lines of a plot: 3 to 1 (WCAG 2.2, 1.4.3 and 1.4.11)."""
    css = (ROOT / "templates/report/style.css").read_text()
    schemes = [
        dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+)", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    assert len(schemes) == 3
    texts = [
        *((name, ground) for name in ("ink", "soft", "link", "kill", "report", "sip") for ground in ("page", "box")),
        *((name, "after") for name in ("ink", "soft", "kill", "report", "sip")),
        *((name, f"{name}-box") for name in ("passed", "failed", "error", "not-run")),
    ]
    for scheme in schemes:
        for name, ground in texts:
            assert contrast(scheme[name], scheme[ground]) >= 4.5, (name, ground, scheme[name], scheme[ground])
        for number in range(1, 6):
            assert contrast(scheme[f"series-{number}"], scheme["page"]) >= 3


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_page_of_a_whole_death_matrix_stays_small() -> None:
    assert len(page.render(many(70)).encode()) < 1_000_000
