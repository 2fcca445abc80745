"""Volumes, a root that is read-only, and the log."""

from __future__ import annotations

import secrets
from pathlib import Path

from scripts.machine import engine
from scripts.machine.engine import LABEL
from scripts.pins.settings import Settings
from scripts.scenario.lab import DOMAIN
from scripts.templates import render
from tests.image.deployment.node import (
    DIRECTORY,
    ECHO,
    ESL_PORT,
    STATUS_OF_CONFIGURATION_ERROR,
    Run,
    remove,
)


def test_read_only_root(run: Run, tmp_path: Path) -> None:
    (tmp_path / "alice.xml").write_text(render("freeswitch/user", user="alice", password="s3cret"))
    tmp_path.chmod(0o755)
    options = {
        "read_only": True,
        "tmpfs": {"/tmp": "", "/run/freeswitch": ""},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        # Docker can't copy files into it.
        "volumes": [f"{tmp_path}:{DIRECTORY}:ro"],
    }
    node = run(users=False, options=options).ready()
    node.password = "s3cret"
    assert node.shell("touch /etc/x")[0] != 0
    node.register().close()
    caller = node.client()
    caller.invite("alice", "s3cret", DOMAIN, ECHO)
    node.cli(f"uuid_record {node.call()} start /var/lib/freeswitch/recordings/call.wav")
    node.wait(lambda: node.shell("test -s /var/lib/freeswitch/recordings/call.wav")[0] == 0, "no recording")
    caller.close()
    # It wrote to nothing but the volumes and the tmpfs.
    assert not node.container.diff()
    node.container.stop(timeout=90)
    assert node.state["ExitCode"] == 0


def test_directory_that_is_not_writable(run: Run) -> None:
    node = run(users=False, options={"read_only": True})
    assert node.container.wait()["StatusCode"] == STATUS_OF_CONFIGURATION_ERROR
    assert "is not writable for user 5060: mount a volume that it owns, or a tmpfs" in node.log()


def test_hangup_signal_rotates_the_log(run: Run) -> None:
    node = run().ready()
    node.container.kill("SIGHUP")
    rotated = "ls /var/log/freeswitch/freeswitch.log.*"
    node.wait(lambda: node.shell(rotated)[0] == 0, "the log is not rotated")
    node.register().close()


def test_recordings_have_a_volume_of_their_own(run: Run) -> None:
    name = f"tp-error-recordings-{secrets.token_hex(4)}"
    with engine.connect() as client:
        client.volumes.create(name, labels={LABEL: "true"})
        try:
            options = {"volumes": [f"{name}:/var/lib/freeswitch/recordings"]}
            node = run(options=options).ready()
            assert node.shell("touch /var/lib/freeswitch/recordings/x")[0] == 0
            remove(node.container)
        finally:
            client.volumes.get(name).remove(force=True)


def test_image_has_a_health_check_and_volumes(built: Settings) -> None:
    with engine.connect() as client:
        config = client.images.get(f"{built.image}:patched").attrs["Config"]
    assert config["Healthcheck"]["Test"] == ["CMD", "freeswitch-health.sh"]
    assert set(config["Volumes"]) == {"/var/lib/freeswitch", "/var/log/freeswitch"}
    # A number: Kubernetes' runAsNonRoot can't tell whether a name is root's.
    assert config["User"] == "5060:5060"
    assert f"{ESL_PORT}/tcp" not in config["ExposedPorts"]
