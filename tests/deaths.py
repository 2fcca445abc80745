"""The scenario `deaths`, whose lab most tests of a running FreeSWITCH share, and what its profiles are set to."""

from __future__ import annotations

import re

from scripts.scenario import table

DEATHS = table.load("deaths")
# With few CPUs one thread handles all SIP messages, with many several do.
CPUS = DEATHS.cpus
# The bound that profile `silent` sets on the silent death of a peer, seconds.
DEAD_PEER_TIMEOUT = int(DEATHS.profile("silent").parameters["tcp-dead-peer-timeout"])
# An alias of profile `silent`: tcp only, with a stack of its own.
ALIAS_PORT = int(re.findall(r":(\d+);", DEATHS.profile("silent").parameters["alias"])[0])
# Requests per second that profile `limited` takes, FreeSWITCH's own default.
LIMIT = int(DEATHS.profile("limited").parameters["max-recv-requests-per-second"])
