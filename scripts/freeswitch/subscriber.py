"""`inv watch` for a container: settings from the environment, and it comes back if FreeSWITCH was away.

ESL_HOST           host of the event socket (127.0.0.1)
ESL_PORT           its port (8021)
ESL_PASSWORD       its password, or
ESL_PASSWORD_FILE  a file that has it
ESL_EVENT          subclass of the reports (sofia::tp_error_report)
SUBSCRIBER_JSON    true: print each event as one line of JSON
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from scripts.errors import ToolkitError
from scripts.freeswitch import watch
from scripts.freeswitch.events import ConnectionLost, Unreachable
from scripts.machine import terminal

# As the setting patches.esl_event has it, for who changes nothing.
SUBCLASS = "sofia::tp_error_report"
# Seconds between two attempts to connect.
PAUSE = 1.0


def main() -> int:
    """Print the reports of lost connections until Ctrl-C; return the exit status."""
    terminal.configure()
    try:
        password = _password()
        host = os.environ.get("ESL_HOST") or "127.0.0.1"
        port = watch.parse_port(os.environ.get("ESL_PORT") or "8021", "ESL_PORT")
        subclass = _subclass()
        as_json = os.environ.get("SUBSCRIBER_JSON") == "true"
        told = ""
        while True:
            try:
                watch.watch(host, port, subclass, password, as_json)
                return 0
            except (Unreachable, ConnectionLost) as error:
                # Once, not every second.
                if str(error) != told:
                    print(f"{error} (trying again)", file=sys.stderr, flush=True)
                told = str(error)
                time.sleep(PAUSE)
    except KeyboardInterrupt:
        return 0
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _subclass() -> str:
    """Return the subclass of the reports; ToolkitError if a command of the event socket can't name it."""
    subclass = os.environ.get("ESL_EVENT") or SUBCLASS
    if subclass.split() != [subclass]:
        raise ToolkitError(f"ESL_EVENT='{' '.join(subclass.split())}' is not an event subclass: give one ({SUBCLASS})")
    return subclass


def _password() -> str:
    """Return the password, "" if there is none."""
    path = os.environ.get("ESL_PASSWORD_FILE")
    if not path:
        return os.environ.get("ESL_PASSWORD", "")
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ToolkitError(f"ESL_PASSWORD_FILE='{path}': {error.strerror}: mount it, or mend its mode") from error


if __name__ == "__main__":
    sys.exit(main())
