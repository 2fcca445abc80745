"""The far end of calls to an extension: a FreeSWITCH that prompts and listens, and what it was sent over RTP."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from scapy.layers.inet import IP, UDP
from scapy.utils import PcapReader

from tests.image.deployment.node import DeployedContainer

logging.getLogger("scapy").setLevel(logging.CRITICAL)

PORT = 5060
EVENT = 101
KEYS = "0123456789*#ABCD"
# What PCMU has for silence, and next to it.
QUIET = frozenset(b"\xff\x7f\xfe\x7e")

SOFIA = f"""<configuration name="sofia.conf" description="SIP">
  <profiles>
    <profile name="far">
      <settings>
        <param name="context" value="far"/>
        <param name="dialplan" value="XML"/>
        <param name="sip-ip" value="$${{sip_listen_ip}}"/>
        <param name="rtp-ip" value="$${{sip_listen_ip}}"/>
        <param name="sip-port" value="{PORT}"/>
        <param name="rtp-timer-name" value="soft"/>
        <param name="auth-calls" value="false"/>
        <param name="inbound-codec-prefs" value="PCMU,PCMA"/>
        <param name="outbound-codec-prefs" value="PCMU"/>
        <!-- INFO, too. -->
        <param name="liberal-dtmf" value="true"/>
      </settings>
    </profile>
  </profiles>
</configuration>
"""
PROMPT = "playback|tone_stream://%(3000,0,440)"
# It ends 5 s after the last digit.
LISTEN = "read|1 30 silence_stream://1000 heard 5000 none"
# What is done for each number, APPLICATION|DATA.
NUMBERS = {
    # A prompt, then it listens; the second with silence in it, the third to tones.
    "1001": ["answer", PROMPT, LISTEN, "park"],
    "1002": ["answer", "playback|tone_stream://%(1500,0,440)", "playback|silence_stream://500", PROMPT, LISTEN, "park"],
    "1003": ["answer", "start_dtmf", PROMPT, LISTEN, "park"],
    # No media for 2 s.
    "1004": ["answer", "sleep|2000", PROMPT, LISTEN, "park"],
    "1005": ["answer", "playback|tone_stream://%(1000,0,440);loops=-1"],
    "1006": ["ring_ready", "sleep|300000"],
    "1007": ["respond|404"],
    # Hangs up after its prompt, and when it has heard two digits.
    "1008": ["answer", PROMPT, "hangup"],
    "1009": ["answer", PROMPT, "read|2 2 silence_stream://1000 heard 60000 none", "hangup"],
    "1010": ["answer", "sleep|300000"],
    # Rings with media: no answer.
    "1011": ["pre_answer", "playback|tone_stream://%(2000,0,440)", "sleep|2000", "answer", PROMPT, LISTEN, "park"],
    "1012": ["ring_ready", "respond|486"],
    # Takes tones only.
    "1014": ["set|dtmf_type=none", "answer", "start_dtmf", PROMPT, LISTEN, "park"],
    # A tone for as long as it takes; to hold the call ends a playback.
    "1015": ["answer", *["playback|tone_stream://%(1000,0,440);loops=-1"] * 4],
    # Says nothing at all, in packets.
    "1013": ["answer", "read|1 30 silence_stream://300000 heard 5000 none", "park"],
}


def dialplan() -> str:
    """Return the dialplan of the far end."""
    lines = ['<context name="far">']
    for number, steps in NUMBERS.items():
        lines.append(f'<extension name="{number}"><condition field="destination_number" expression="^\\+?{number}$">')
        for step in steps:
            application, _, data = step.partition("|")
            lines.append(f'<action application="{application}" data="{data}"/>')
        lines.append("</condition></extension>")
    return "\n".join([*lines, "</context>", ""])


def files() -> dict[str, str]:
    """Return the files of the far end's configuration."""
    return {"autoload_configs/sofia.conf.xml": SOFIA, "dialplan/default.xml": dialplan()}


def heard(node: DeployedContainer, number: str) -> Sequence[str]:
    """Return what each call to `number` that listens no more has heard."""
    rows = [line.split(",") for line in node.cli("show channels").splitlines() if f",{number}," in line]
    found = [node.cli(f"uuid_getvar {row[0]} heard") for row in rows]
    return [text for text in found if text and text != "_undef_"]


@dataclass(frozen=True)
class Digit:
    """A digit as an RTP event: when its first packet came, how long it says it is, and whether it ended."""

    key: str
    when: float
    duration: int
    ended: bool


@dataclass(frozen=True)
class Stream:
    """What went to one port of the far end: the digits, and when the last audible packet went the other way."""

    digits: Sequence[Digit]
    prompted: float
    media: float

    @property
    def keys(self) -> str:
        return "".join(digit.key for digit in self.digits)


def streams(pcap: bytes, far: str) -> dict[int, Stream]:
    """Return the streams to the address `far` that have digits, by its port."""
    events: dict[int, dict[tuple[bytes, bytes], list[tuple[float, bytes]]]] = {}
    loud: dict[int, float] = {}
    first: dict[int, float] = {}
    with PcapReader(io.BytesIO(pcap)) as reader:  # type: ignore[arg-type]
        for packet in reader:
            layer, datagram = packet.getlayer(IP), packet.getlayer(UDP)
            if layer is None or datagram is None:
                continue
            data = bytes(datagram.payload)
            if len(data) < 13 or data[0] >> 6 != 2:
                continue
            kind, payload = data[1] & 127, data[12:]
            if layer.dst == far and kind == EVENT:
                # One event is one time stamp of one source.
                packets = events.setdefault(datagram.dport, {}).setdefault((data[8:12], data[4:8]), [])
                packets.append((float(packet.time), payload))
            elif layer.src == far and kind == 0:
                first.setdefault(datagram.sport, float(packet.time))
                if sum(byte not in QUIET for byte in payload) > len(payload) / 2:
                    loud[datagram.sport] = float(packet.time)
    return {
        port: Stream([_digit(packets) for packets in found.values()], loud.get(port, 0.0), first.get(port, 0.0))
        for port, found in events.items()
    }


def _digit(packets: Sequence[tuple[float, bytes]]) -> Digit:
    keys = {payload[0] for _, payload in packets}
    assert len(keys) == 1, packets
    longest = max(int.from_bytes(payload[2:4], "big") for _, payload in packets)
    return Digit(KEYS[keys.pop()], packets[0][0], longest, any(payload[1] & 128 for _, payload in packets))
