"""The commands of the documentation, given to a FreeSWITCH that runs."""

from __future__ import annotations

import re
import shlex
import subprocess

from scripts.scenario.lab import Lab
from tests.documentation import api_lines, commands, snippets

# How FreeSWITCH says that it does not know a command, or not in this form.
REFUSALS = ("-ERR", "-USAGE", "USAGE", "Invalid", "Unknown Command", "can't find")


def test_commands_for_freeswitch(lab: Lab) -> None:
    """FreeSWITCH knows them; the output of one that is piped has what is looked for."""
    api = lab.freeswitch.recorder.api
    refused = []
    try:
        for snippet, command, pipe in api_lines():
            command = re.sub(r"\bprofile (?:internal|NAME)\b", "profile main", command)
            # Other tests have clients there.
            if command.endswith(" restart"):
                continue
            answer = api(command)
            if answer.startswith(REFUSALS) or not answer.strip():
                refused.append(f"{snippet}: {command}: {answer}")
            if pipe:
                looked = subprocess.run(["sh", "-c", pipe], input=answer, text=True, capture_output=True, check=False)
                assert looked.returncode == 0, f"{snippet}: {pipe} finds nothing"
    finally:
        # As configured. `fsctl loglevel` can't be asked what it is: without an argument it ends all logging.
        for command in ("fsctl loglevel info", "fsctl debug_level 0", "sofia loglevel all 0"):
            api(command)
        api("sofia tracelevel warning")
        api("sofia global siptrace off")
    assert not refused


def test_marks_of_the_patched_files(lab: Lab) -> None:
    """The files that troubleshooting.md looks into tell patched from stock."""
    looks = [
        (snippet, words)
        for snippet in snippets()
        for words in (commands(snippet.text) if snippet.language == "sh" else [])
        if words[0] == "grep" and words[1] == "-c"
    ]
    assert len(looks) == 2
    for snippet, words in looks:
        subclass = words[2].replace("sofia::tp_error_report", lab.settings.esl_event)
        assert int(lab.freeswitch.shell(shlex.join(["grep", "-c", subclass, words[3]]))) > 0, snippet
