"""The systemd units: what they start, what Debian 12's systemd would silently ignore, exposure."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = ROOT / "systemd"
COMMANDS = {
    "hcp-agent": "/usr/bin/hcp-agent run --config /etc/hcp-agent/agent.toml",
    "hcp-node": "/usr/bin/hcp-agent node --config /etc/hcp-agent/node.toml",
    "hcp-host": "/usr/bin/hcp-agent host --config /etc/hcp-agent/host.toml",
    "hcp-hub": "/usr/bin/hcp-hub serve --config /etc/hcp-hub/hub.toml",
}
# Keeps no state, runs as root, and ends by itself when it is stuck: no watchdog, no user.
HELPERS = {
    "hcp-gpu-control": ("/usr/bin/hcp-agent gpu-control --config /etc/hcp-agent/gpu-control.toml"),
}
# Started by the host alone, with what it writes; programs of others, so the fences are wider.
TEMPLATES = {"hcp-engine@": "/usr/bin/env -S ${HCP_ENGINE_COMMAND}"}
EVERY = COMMANDS | HELPERS | TEMPLATES
# Known to newer versions only; systemd 252 ignores each with nothing but a warning.
NEWER_THAN_252 = (
    "notify-reload",
    "ImportCredential",
    "MemoryPressureWatch",
    "OpenFile",
    "PrivatePIDs",
    "RestartMaxDelaySec",
    "RestartMode",
    "RestartSteps",
)
EXPOSURE_TENTHS_MAX = 15
# Programs of others: they speak netlink, and go where their pools and models are.
ENGINE_EXPOSURE_TENTHS_MAX = 16


def settings(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / f"{unit}.service").read_text().splitlines():
        match = re.match(r"([A-Za-z]+)=(.*)", line)
        if match:
            found.setdefault(match[1], []).append(match[2])
    return found


def test_every_unit_is_known_here() -> None:
    assert {path.stem for path in SYSTEMD.glob("*.service")} == set(EVERY)


@pytest.mark.parametrize("unit", COMMANDS)
def test_unit_starts_its_command_and_watches_it(unit: str) -> None:
    found = settings(unit)
    assert found["ExecStart"] == [COMMANDS[unit]]
    assert found["Type"] == ["notify"]
    assert found["NotifyAccess"] == ["main"]
    assert int(found["WatchdogSec"][0]) > 0
    assert found["StateDirectory"] == [unit]
    assert found["RuntimeDirectory"] == [unit]
    assert found["Restart"] == ["always"]
    assert found["StartLimitIntervalSec"] == ["0"]


@pytest.mark.parametrize("unit", HELPERS)
def test_helper_starts_its_command_with_one_right_and_no_network(unit: str) -> None:
    found = settings(unit)
    assert found["ExecStart"] == [HELPERS[unit]]
    assert found["Restart"] == ["always"]
    assert found["CapabilityBoundingSet"] == ["CAP_SYS_ADMIN"]
    assert found["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert found["PrivateNetwork"] == ["yes"]
    # those who may use its socket are a group that the package makes
    (group,) = found["Group"]
    assert re.match(rf"u {group} - ", (SYSTEMD / f"{group}.sysusers").read_text())


@pytest.mark.parametrize("unit", TEMPLATES)
def test_engine_runs_as_the_agents_user_and_is_nobodys_to_enable(unit: str) -> None:
    found = settings(unit)
    assert found["ExecStart"] == [TEMPLATES[unit]]
    assert found["User"] == ["hcp-agent"]
    assert found["NoNewPrivileges"] == ["yes"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["DevicePolicy"] == ["closed"]
    assert "[Install]" not in (SYSTEMD / f"{unit}.service").read_text()
    assert "WatchdogSec" not in found


@pytest.mark.parametrize("unit", [*COMMANDS, *TEMPLATES])
def test_user_of_the_unit_is_made_by_the_package(unit: str) -> None:
    (user,) = settings(unit)["User"]
    assert re.match(rf"u {user} - ", (SYSTEMD / f"{user}.sysusers").read_text())


@pytest.mark.parametrize("unit", EVERY)
def test_unit_uses_nothing_that_debian_12_ignores(unit: str) -> None:
    text = (SYSTEMD / f"{unit}.service").read_text()
    assert [name for name in NEWER_THAN_252 if name in text] == []


def systemd_analyze() -> str:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is missing: apt-get install -y systemd")
    return tool


@pytest.mark.parametrize("unit", EVERY)
def test_unit_is_hardly_exposed(unit: str) -> None:
    tenths = ENGINE_EXPOSURE_TENTHS_MAX if unit in TEMPLATES else EXPOSURE_TENTHS_MAX
    limit = f"--threshold={tenths}"
    path = SYSTEMD / f"{unit}.service"
    done = subprocess.run(
        [systemd_analyze(), "security", "--offline=true", "--no-pager", limit, path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-600:] + done.stderr


@pytest.mark.parametrize("unit", EVERY)
def test_systemd_has_nothing_to_say_about_the_unit(unit: str, tmp_path: Path) -> None:
    program = tmp_path / EVERY[unit].split()[0].lstrip("/")
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    folder = tmp_path / "etc/systemd/system"
    folder.mkdir(parents=True)
    shutil.copy(SYSTEMD / f"{unit}.service", folder)
    for target in ("basic", "multi-user", "network-online", "shutdown", "sysinit"):
        (folder / f"{target}.target").write_text("[Unit]\nDescription=stand-in\n")
    where = [f"--root={tmp_path}", f"/etc/systemd/system/{unit}.service"]
    done = subprocess.run(
        [systemd_analyze(), "verify", "--man=no", *where],
        capture_output=True,
        text=True,
        check=False,
    )
    # an unknown key gives a warning and status 0
    assert (done.returncode, done.stderr) == (0, "")
