"""What of a scenario can't be played, told before anything is built or started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

from scripts.errors import ToolkitError
from scripts.image import variables
from scripts.machine.files import short
from scripts.scenario import judge, lab, sipp
from scripts.scenario.lab import RESERVED, USERS
from scripts.scenario.table import ARROW, Scenario
from scripts.scenario.verb import Role, Verb, Verbs

_OF_USERS = {Role.USER, Role.CROWD, Role.STARTS, Role.RUNS, Role.KILLS}
_WRITES = {Role.OPEN, Role.HALVES, Role.JOINS, Role.HELD}
_NEEDS_OPEN = {*_WRITES, Role.ENDS}
_NEEDS_REGISTRATION = {Role.HELD, Role.LEFT}
# What is put into it is not the image's.
PROFILES = "autoload_configs/sofia.conf.xml.j2"
PROFILE = "internal"
# The image's variables for what its profile listens on.
PORTS = {"udp": "SIP_PORT", "tcp": "SIP_PORT", "tls": "SIP_TLS_PORT", "ws": "SIP_WS_PORT", "wss": "SIP_WSS_PORT"}


def check(scenario: Scenario, verbs: Verbs) -> None:
    """Raise ToolkitError, with the file, the case and the step, if `verbs` can't play `scenario`."""
    for name, value in scenario.environment.items():
        taken = f"every run sets {name} itself: leave it out" if name in RESERVED else ""
        if wrong := taken or variables.refusal(name, value):
            shown = wrong if len(wrong) < 300 else f"{wrong[:200]}…"
            raise ToolkitError(f"{short(scenario.directory / 'scenario.yaml')}: environment: {shown}")
    listens = None if scenario.composed else _of_image(scenario)
    everybody: set[str] = set()
    where = short(scenario.directory / "table.yaml")
    for variant in scenario.images:
        busy: dict[str, str] = {}
        files: dict[str, str] = {}
        needed = 0
        for case in scenario.cases(variant):
            known = _Known(scenario, verbs, case.transport, listens)
            if (other := files.setdefault(sipp.plain(case.name), case.name)) != case.name:
                raise ToolkitError(f"{where}: cases '{other}' and '{case.name}' have one name for files: change one")
            try:
                known.connect(case.transport)
                for step in case.steps:
                    action, _, outcome = step.partition(ARROW)
                    try:
                        known.play(action.split())
                        known.judge(outcome.strip())
                    except ToolkitError as error:
                        raise ToolkitError(f"step '{step}': {error}") from None
                if scenario.users and not case.alone:
                    known.share(busy, str(case))
            except ToolkitError as error:
                raise ToolkitError(f"{where}: case '{case.name}': {error}") from None
            everybody |= known.users
            needed += len(known.users)
        if not scenario.users and needed > USERS:
            raise ToolkitError(f"{where}: the cases have {needed} users, {USERS} is the most: take fewer")
    if scenario.composed:
        # What it is filled in with, only a run knows.
        scenario.compile("compose.yml")
    users = any(path.startswith("directory/") for path in _render(scenario, sorted(everybody)))
    if everybody and not (scenario.composed or users or scenario.environment.get("DIRECTORY_URL")):
        raise ToolkitError(
            f"{short(scenario.directory)}: freeswitch/directory (a directory, no link) has no users.xml.j2, and the "
            "image has no users: copy the one of the scenario 'kill'"
        )


def _of_image(scenario: Scenario) -> set[str] | None:
    """Return the transports that the image listens for; None if the scenario says itself what there is.

    Raises ToolkitError if `scenario` needs what only a Compose file or profiles of its own give.
    """
    where = short(scenario.directory / "scenario.yaml")
    if scenario.cpus:
        raise ToolkitError(f"{where}: cpus need a Compose file: add compose.yml.j2")
    for profile in scenario.profiles:
        if profile.ipv6:
            raise ToolkitError(f"{where}: profile '{profile.name}': ipv6 needs a Compose file: add compose.yml.j2")
    if scenario.configures(PROFILES):
        return None

    def value(name: str) -> str:
        return scenario.environment.get(name) or variables.default(name)

    listens = set(value("SIP_TRANSPORTS").split(","))
    for profile in scenario.profiles:
        if profile.name != PROFILE:
            raise ToolkitError(
                f"{where}: profile '{profile.name}': the image has one profile, {PROFILE}: "
                f"name that, or add freeswitch/{PROFILES}"
            )
        if profile.parameters:
            raise ToolkitError(
                f"{where}: profile '{profile.name}': the image's profile takes no parameters: "
                f"set its variables in environment, or add freeswitch/{PROFILES}"
            )
        for transport in sorted(listens, key=list(PORTS).index):
            port = value(PORTS[transport])
            if str(profile.listens(transport)) != port:
                raise ToolkitError(
                    f"{where}: profile '{profile.name}': the image listens on port {port} for {transport}: "
                    f"write that ({_shown(transport, port)}), or set {PORTS[transport]} in environment"
                )
    if secure := sorted(listens & {"tls", "wss"}):
        file = value("TLS_CERT_FILE")
        if not scenario.configures(f"{file.removeprefix(f'{lab.CONFIGURATION}/')}.j2"):
            raise ToolkitError(
                f"{where}: SIP_TRANSPORTS: {secure[0]} needs a certificate, and there is none in {file}: "
                "add a compose.yml.j2 that mounts one, and profiles of its own (the scenario 'deaths' has both)"
            )
    return listens


def _shown(transport: str, port: str) -> str:
    """Return how scenario.yaml says that `transport` is on `port`."""
    return f"port: {port}" if transport in ("udp", "tcp") else f"ports: {{{transport}: {port}}}"


def _render(scenario: Scenario, users: Sequence[str]) -> list[str]:
    """Return the paths of its files for /etc/freeswitch.

    Raises ToolkitError if one can't be rendered, or is none of XML where it has to be.
    """
    files = scenario.files(**lab.values(scenario, users, "password", {}, ""))
    for path, text in files.items():
        if path.endswith(".xml"):
            _parse(scenario, f"freeswitch/{path}", text)
    return list(files)


def _parse(scenario: Scenario, path: str, text: str) -> None:
    try:
        ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ToolkitError(f"{short(scenario.directory / path)}.j2: rendered, it is no XML: {error}") from None


@dataclass
class _Known:
    """What there is at a step of a case: connections with their transport, registrations (user, connection), ..."""

    scenario: Scenario
    verbs: Verbs
    transport: str
    listens: set[str] | None
    connections: dict[str, str] = field(default_factory=dict)
    # Nothing can be sent over them any more.
    halved: set[str] = field(default_factory=set)
    registrations: set[tuple[str, str]] = field(default_factory=set)
    # Users with a process, and the verb that has started it.
    processes: dict[str, str] = field(default_factory=dict)
    users: set[str] = field(default_factory=set)

    def connect(self, transport: str) -> None:
        """Raise ToolkitError if nothing listens for `transport`."""
        if self.listens is not None and transport not in self.listens:
            more = ", with a compose.yml.j2 that mounts a certificate" if transport in ("tls", "wss") else ""
            raise ToolkitError(
                f"the image listens for {', '.join(sorted(self.listens))} only, not for {transport}: "
                f"add it to SIP_TRANSPORTS in the environment of scenario.yaml{more}"
            )

    def share(self, busy: dict[str, str], case: str) -> None:
        """Note in `busy` who is in `case`; raise ToolkitError if a user is in another one at its side."""
        for user in sorted(self.users):
            if other := busy.get(user):
                raise ToolkitError(
                    f"user '{user}' is in '{other}' as well, which is played at its side: "
                    "name another user, write `alone: true`, or leave users out of scenario.yaml"
                )
            busy[user] = case

    def play(self, words: Sequence[str]) -> None:
        """Note what the step `words` does; raise ToolkitError if it can't be done."""
        name, *arguments = words or [""]
        if name not in self.verbs:
            raise ToolkitError(f"there is no verb '{name}': one of {', '.join(self.verbs)}")
        called = self.verbs[name]
        values = called.read(arguments)
        roles = called.roles(arguments)
        aliases = {one for role, word in roles.items() if role in _OF_USERS for one in judge.aliases(word)}
        if self.scenario.users and (strangers := sorted(aliases - set(self.scenario.users))):
            raise ToolkitError(f"no user '{strangers[0]}': add it to users in scenario.yaml")
        transport = self.transport
        for role, word in roles.items():
            self._needs(called, role, word, aliases)
            transport = self.connections.get(word, transport) if role in _NEEDS_OPEN else transport
        if called.over and transport not in called.over:
            raise ToolkitError(f"it can't be played over {transport}: only over {', '.join(called.over)}")
        opened = self.transport
        if called.name == "open" and len(values) > 1:
            opened = values[1]
            self.connect(opened)
        for role, word in roles.items():
            self._note(called, role, word, aliases, opened)
        self.users |= aliases
        if called.name == "fin_all":
            self.connections.clear()
        if called.name == "sipp":
            name = f"sipp/{values[1]}.xml"
            if not self.scenario.has(name):
                raise ToolkitError(f"there is no {short(self.scenario.directory)}/{name}.j2: add it")
            _parse(self.scenario, name, sipp.rendered(self.scenario, values[1], words[1], "password", 1))

    def judge(self, outcome: str) -> None:
        """Raise ToolkitError if `outcome` is about somebody who was not in the case up to here."""
        for wanted in judge.read(outcome)[0] if outcome else ():
            if strangers := sorted(set(judge.aliases(wanted.alias)) - self.users):
                raise ToolkitError(f"nothing can come of '{strangers[0]}', who is in no step so far")

    def _needs(self, called: Verb, role: Role, word: str, aliases: set[str]) -> None:
        for name in {Role.OPENS: {word}, Role.CROWD: aliases}.get(role, ()):
            if name in self.connections:
                raise ToolkitError(f"connection '{name}' is open already: give this one another name")
        if role in _NEEDS_OPEN and word not in self.connections:
            raise ToolkitError(f"no connection '{word}' is open: write 'open {word}' before")
        if role in _WRITES and word in self.halved:
            raise ToolkitError(f"nothing can be sent over '{word}' any more, its own half is closed")
        if role is Role.STARTS and word in self.processes:
            raise ToolkitError(f"'{word}' has a process already: write 'kill {word}' before, or take another user")
        if role in (Role.RUNS, Role.KILLS) and word not in self.processes:
            raise ToolkitError(f"'{word}' has no process: write 'spawn {word}' or 'sipp {word} scenario' before")
        if role is Role.RUNS and self.processes[word] != "sipp":
            raise ToolkitError(f"'{word}' has no SIPp, which comes to an end by itself: write 'kill {word}'")
        if role in _NEEDS_REGISTRATION:
            for alias in aliases:
                if (alias, word) not in self.registrations:
                    raise ToolkitError(
                        f"'{alias}' has not registered over '{word}': write 'register {alias} {word}' before"
                    )

    def _note(self, called: Verb, role: Role, word: str, aliases: set[str], transport: str) -> None:
        match role:
            case Role.OPENS:
                self.connections[word] = transport
                self.halved.discard(word)
            case Role.HALVES:
                self.halved.add(word)
            case Role.ENDS:
                self.connections.pop(word)
            case Role.JOINS:
                self.registrations |= {(alias, word) for alias in aliases}
            case Role.CROWD:
                self.connections |= dict.fromkeys(aliases, transport)
                self.registrations |= {(alias, alias) for alias in aliases}
            case Role.STARTS:
                self.processes[word] = called.name
            case Role.KILLS | Role.RUNS:
                self.processes.pop(word)
