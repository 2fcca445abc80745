"""An extension behind a main number: what the far end is sent, and how each failure is told."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import docker
import pytest

from scripts.freeswitch.capture import Sniffer
from scripts.machine.engine import LABEL
from scripts.pins.settings import Settings
from scripts.scenario.lab import DOMAIN
from tests import far_end
from tests.far_end import PORT
from tests.image.deployment.node import DeployedContainer, running

DURATION = 120
ENVIRONMENT = {
    "SIP_CODECS": "PCMU,PCMA",
    "EXTENSION_DIALLING": "true",
    "EXTENSION_ANSWER_TIMEOUT": "4",
    "EXTENSION_PROMPT_LIMIT": "8",
    "EXTENSION_DURATION": str(DURATION),
    "LOG_LEVEL": "info",
}


@dataclass
class Line:
    """The image, and a far end that also has the phone of its user alice."""

    near: DeployedContainer
    far: DeployedContainer

    def dial(self, number: str) -> str:
        """Have the phone dial `number`; return its call's identifier, or -ERR with the cause."""
        caller = "originate_timeout=300,origination_caller_id_number=alice"
        caller += f",sip_auth_username=alice,sip_auth_password={self.near.password}"
        # A comma would begin another destination there.
        target = f"sofia/far/{number.replace(',', '%2C')}@{self.near.address}:{PORT}"
        return self.far.cli(f"originate {{{caller}}}{target} &park")

    def originate(self, number: str, arguments: str) -> str:
        """Have the image dial `number` and send what `send_extension` is given; return as `dial` does."""
        timed = "rtp_timer_name=soft,ignore_early_media=true,originate_timeout=300,group_confirm_cancel_timeout=true"
        application = f"{timed},group_confirm_key=exec,group_confirm_file='send_extension {arguments}'"
        return self.near.cli(f"originate {{{application}}}sofia/internal/{number}@{self.far.address}:{PORT} &park")

    def hears(self, number: str, keys: str) -> None:
        """Wait until the far end has heard `keys`, all of them and nothing else."""
        self.far.wait(lambda: bool(far_end.heard(self.far, number)), "nothing was heard")
        assert far_end.heard(self.far, number) == [keys]

    def result(self, answer: str) -> str:
        """Return what send_extension says of the call that `originate` has answered with."""
        return self.near.cli(f"uuid_getvar {answer.split()[1]} send_extension_result")

    def causes(self) -> list[str]:
        """Return with which causes the image has hung up the phone, so far."""
        return re.findall(r"Hangup sofia/internal/alice@\S+ \[CS_EXECUTE\] \[(\w+)\]", self.near.log())

    def idle(self) -> None:
        """Wait until no channel is left."""
        for node in (self.near, self.far):
            node.wait(lambda node=node: "0 total" in node.cli("show channels"), "channels are left")  # type: ignore[misc]

    def hang_up(self) -> None:
        for node in (self.near, self.far):
            node.cli("hupall NORMAL_CLEARING")
        self.idle()


def profile_runs(node: DeployedContainer, name: str) -> Callable[[], bool]:
    return lambda: f"{name}" in (found := node.shell("fs_cli -x 'sofia status'")[1]) and "RUNNING" in found


@pytest.fixture(scope="module")
def both(built: Settings) -> Iterator[Line]:
    with running(built) as start:
        far = start(files=far_end.files(), users=False, SIP_CODECS="PCMU", LOG_LEVEL="info")
        where = f"sofia/internal/NUMBER@{far.address}:{PORT}"
        near = start(EXTENSION_DIAL_STRING=where, **ENVIRONMENT).ready()
        far.wait(profile_runs(far, "far"), "the far end's profile doesn't run")
        yield Line(near, far)


@pytest.fixture
def line(both: Line) -> Iterator[Line]:
    """Return the two with no call up, and leave none."""
    yield both
    both.hang_up()


@pytest.fixture
def sniffer(client: docker.DockerClient, built: Settings, both: Line) -> Iterator[Sniffer]:
    name = f"tp-error-capture-{secrets.token_hex(4)}"
    found = Sniffer(client, f"{built.image}:sipp", both.far.container, "udp and not port 5060", name, {LABEL: "true"})
    try:
        found.start()
        assert found.problem == ""
        yield found
    finally:
        found.remove()


def stream(sniffer: Sniffer, line: Line) -> far_end.Stream:
    """Return the one stream of digits that there was."""
    pcap, problem = sniffer.read()
    assert problem == ""
    (found,) = far_end.streams(pcap, line.far.address).values()
    return found


def check(found: far_end.Stream, keys: str, duration: int = DURATION) -> None:
    """See that the digits are all there, once, in order, whole, and after the prompt."""
    assert found.keys == keys
    assert found.prompted and found.digits[0].when > found.prompted
    assert all(digit.ended and digit.duration == duration * 8 for digit in found.digits), found.digits


@pytest.mark.parametrize(
    ("dialled", "keys"),
    [
        ("+1001,4207", "4207"),
        ("1001;ext=12345", "12345"),
        ("1001,*1w2%23", "*12#"),
        ("1001;ext=77;phone-context=+49", "77"),
    ],
)
def test_digits_come_after_the_prompt_and_the_call_goes_on(
    line: Line, sniffer: Sniffer, dialled: str, keys: str
) -> None:
    answer = line.dial(dialled)
    assert answer.startswith("+OK"), answer
    line.hears("+1001" if dialled.startswith("+") else "1001", keys)
    check(stream(sniffer, line), keys)
    assert "1 total" in line.near.cli("show calls")


def test_pause_in_the_prompt_is_not_its_end(line: Line, sniffer: Sniffer) -> None:
    assert line.dial("1002,99").startswith("+OK")
    line.hears("1002", "99")
    check(stream(sniffer, line), "99")


def test_digits_wait_for_media(line: Line, sniffer: Sniffer) -> None:
    assert line.dial("1004,7890").startswith("+OK")
    line.hears("1004", "7890")
    found = stream(sniffer, line)
    check(found, "7890")
    assert found.digits[0].when > found.media > 0


def test_early_media_is_no_answer(line: Line, sniffer: Sniffer) -> None:
    answer = line.originate("1011", "55 silence=500")
    assert answer.startswith("+OK"), answer
    line.hears("1011", "55")
    check(stream(sniffer, line), "55", 100)


def test_silence_from_the_start_is_a_prompt_that_is_over(line: Line, sniffer: Sniffer) -> None:
    answer = line.originate("1013", "31 start=2000 duration=200 gap=300")
    assert answer.startswith("+OK"), answer
    line.hears("1013", "31")
    found = stream(sniffer, line)
    assert found.keys == "31"
    assert [digit.duration for digit in found.digits] == [1600, 1600]
    assert not found.prompted and found.digits[0].when > found.media > 0


def test_set_time_instead_of_silence(line: Line, sniffer: Sniffer) -> None:
    answer = line.originate("1005", "8642 delay=2500")
    assert answer.startswith("+OK"), answer
    assert line.result(answer) == "sent"
    found = stream(sniffer, line)
    # The prompt goes on.
    assert found.keys == "8642" and found.digits[0].when < found.prompted
    assert int(line.near.cli(f"uuid_getvar {answer.split()[1]} send_extension_prompt_ms")) >= 2500


def hold(line: Line, after: float, seconds: float) -> None:
    """Have the far end hold its call so long after it was answered, and so long."""
    line.far.wait(lambda: "1 total" in line.far.cli("show channels"), "no call")
    call = next(row for row in line.far.cli("show channels").splitlines() if ",inbound," in row).partition(",")[0]
    line.far.wait(lambda: line.far.cli(f"uuid_getvar {call} endpoint_disposition") == "ANSWER", "no answer")
    time.sleep(after)
    assert "+OK" in line.far.cli(f"uuid_hold {call}")
    time.sleep(seconds)
    assert "+OK" in line.far.cli(f"uuid_hold off {call}")


def test_far_end_that_holds_in_the_prompt_is_not_silent(line: Line, sniffer: Sniffer) -> None:
    """Its prompt goes on, or begins anew, and nobody hears it; nor does anybody hear digits."""
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(line.originate, "1001", "4711")
        hold(line, 1, 4)
        assert call.result().startswith("+OK"), call.result()
    line.hears("1001", "4711")
    found = stream(sniffer, line)
    assert found.keys == "4711" and all(digit.ended for digit in found.digits)


def test_digits_go_on_when_the_far_end_resumes(line: Line, sniffer: Sniffer) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(line.originate, "1015", "0123456789 delay=500 duration=200 gap=200")
        hold(line, 2, 2)
        assert call.result().startswith("+OK"), call.result()
        assert line.result(call.result()) == "sent"
    found = stream(sniffer, line)
    assert found.keys == "0123456789" and all(digit.ended for digit in found.digits)


def test_far_end_that_holds_for_ever_is_told(line: Line) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(line.originate, "1015", "12 delay=2000 limit=2000")
        hold(line, 0.5, 6)
        assert "RECOVERY_ON_TIMER_EXPIRE" in call.result(), call.result()


def test_caller_adds_nothing_to_his_call(line: Line) -> None:
    """What looks like variables of an application is a part of the number, which it makes invalid."""
    answer = line.dial("%25%5Buser_name=bob%5D1001,42")
    assert "INVALID_NUMBER_FORMAT" in answer, answer
    assert "[%[user_name=bob]1001,42]" in line.near.log()


def test_info(line: Line, sniffer: Sniffer) -> None:
    answer = line.originate("1001", "90#*D type=info")
    assert answer.startswith("+OK"), answer
    line.hears("1001", "90#*D")
    pcap, problem = sniffer.read()
    assert problem == "" and not far_end.streams(pcap, line.far.address)
    # What comes after is sent as before.
    line.near.cli(f"uuid_send_dtmf {answer.split()[1]} 5")
    line.near.wait(lambda: bool(far_end.streams(sniffer.read()[0], line.far.address)), "no RTP event")


def test_in_band(line: Line, sniffer: Sniffer) -> None:
    keys = "0123456789*#ABCD"
    answer = line.originate("1003", f"{keys} type=inband")
    assert answer.startswith("+OK"), answer
    line.hears("1003", keys)
    pcap, problem = sniffer.read()
    assert problem == "" and not far_end.streams(pcap, line.far.address)


def test_far_end_that_takes_tones_only(line: Line, sniffer: Sniffer) -> None:
    assert line.originate("1014", "12 type=rfc2833").split() == ["-ERR", "INCOMPATIBLE_DESTINATION"]
    line.idle()
    answer = line.originate("1014", "369 type=auto")
    assert answer.startswith("+OK"), answer
    line.hears("1014", "369")
    pcap, problem = sniffer.read()
    assert problem == "" and not far_end.streams(pcap, line.far.address)


def test_comma_and_parameter_as_phones_send_them(line: Line) -> None:
    for dialled, keys in (("1001,77", "77"), ("1001;ext=88", "88")):
        phone = line.near.client("udp")
        phone.invite("alice", line.near.password, DOMAIN, dialled)
        line.hears("1001", keys)
        phone.close()
        line.hang_up()


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        ("1005", "RECOVERY_ON_TIMER_EXPIRE"),
        ("1006", "NO_ANSWER"),
        ("1007", "UNALLOCATED_NUMBER"),
        ("1008", "DESTINATION_OUT_OF_ORDER"),
        ("1009", "DESTINATION_OUT_OF_ORDER"),
        ("1010", "MEDIA_TIMEOUT"),
        ("1012", "USER_BUSY"),
    ],
)
def test_each_failure_has_its_cause(line: Line, number: str, cause: str) -> None:
    before = len(line.causes())
    answer = line.dial(f"{number},4321")
    assert answer.startswith("-ERR"), answer
    line.near.wait(lambda: len(line.causes()) > before, "the caller was not hung up")
    assert line.causes()[-1] == cause
    # Nobody had to hang up.
    line.idle()


@pytest.mark.parametrize(
    ("dialled", "reason"),
    [
        ("1001,", "the extension must be"),
        ("1001,12x", "the extension must be"),
        ("1001,www", "the extension must be"),
        ("1001,1,2", "the extension must be"),
        (f"1001,{'1' * 51}", "the extension must be"),
        ("1001;isub=5", "it has no extension"),
        ("10a1;ext=5", "the number must be"),
        (",5", "the number must be"),
        ("++1001,5", "the number must be"),
    ],
)
def test_bad_number_is_one_line(line: Line, dialled: str, reason: str) -> None:
    before = line.near.log()
    assert line.dial(dialled).split() == ["-ERR", "INVALID_NUMBER_FORMAT"]
    told = line.near.log()[len(before) :].splitlines()
    assert [text for text in told if "[ERR]" in text and f"split_extension: [{dialled}]: {reason}" in text]
    assert len([text for text in told if "[ERR]" in text]) == 1
    # The main number was not dialled.
    assert ",inbound," not in line.far.cli("show channels")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("12y", "send_extension: [12y] is no extension"),
        ("12 gap=1", "send_extension: gap=1 must be a whole number from 40 to 2000"),
        ("12 type=morse", "send_extension: type=morse is none of"),
        ("12 speed=1", "send_extension: there is no setting [speed]"),
    ],
)
def test_bad_setting_is_one_line(line: Line, arguments: str, reason: str) -> None:
    before = line.near.log()
    assert line.originate("1001", arguments).split() == ["-ERR", "INVALID_NUMBER_FORMAT"]
    (told,) = (text for text in line.near.log()[len(before) :].splitlines() if "[ERR]" in text)
    assert reason in told
    line.idle()


def test_several_at_once(line: Line, sniffer: Sniffer) -> None:
    keys = [f"{number}{number * 11}*{9 - number}" for number in range(1, 7)]
    with ThreadPoolExecutor(len(keys)) as pool:
        answers = list(pool.map(lambda extension: line.dial(f"1001,{extension}"), keys))
    assert all(answer.startswith("+OK") for answer in answers), answers
    line.far.wait(lambda: len(far_end.heard(line.far, "1001")) == len(keys), "not all were heard")
    assert sorted(far_end.heard(line.far, "1001")) == sorted(keys)
    pcap, problem = sniffer.read()
    assert problem == ""
    found = far_end.streams(pcap, line.far.address).values()
    assert sorted(one.keys for one in found) == sorted(keys)
    for one in found:
        check(one, one.keys)


def test_caller_who_gives_up_leaves_no_call(line: Line) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(line.dial, "1005,1")
        line.far.wait(lambda: ",1005," in line.far.cli("show channels"), "it was not dialled")
        calling = [row for row in line.far.cli("show channels").splitlines() if ",outbound," in row]
        line.far.cli(f"uuid_kill {calling[0].split(',')[0]}")
        assert answer.result().startswith("-ERR")
    line.idle()
