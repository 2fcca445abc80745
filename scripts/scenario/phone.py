"""A SIP client as a process of its own, to be killed.

Arguments: transport, host, port, user, password, domain. Registers, prints
its Call-ID, and holds the connection.
"""

from __future__ import annotations

import sys
import time

from scripts.freeswitch.sip import Client

if __name__ == "__main__":
    transport, host, port, user, password, domain = sys.argv[1:]
    client = Client(transport, host, int(port))
    print(client.register(user, password, domain), flush=True)
    time.sleep(3600)
