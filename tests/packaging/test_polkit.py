"""The polkit rule: the host's user and instances of the engines' template, and nothing else."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RULE = ROOT / "packaging" / "polkit" / "60-hcp-engine.rules"
MANAGE = "org.freedesktop.systemd1.manage-units"
VERBS = ("start", "stop", "kill", "reset-failed", "set-property")
OTHER_UNITS = (
    "ssh.service", "hcp-agent.service", "hcp-host.service", "hcp-engine@.service",
    "hcp-engine@a.service.socket", "hcp-engine@a.socket", "evil-hcp-engine@a.service",
    "hcp-engine@a/../ssh.service", "hcp-engine@a\nb.service", "hcp-engine-a.service", "", None,
)  # fmt: skip
# Answers polkitd's part, as polkit(8) has it; an empty detail is undefined there.
STAND_IN = """
var asked = JSON.parse(process.argv[1]), rules = [];
var polkit = {Result: {YES: "yes", NOT_HANDLED: null}, addRule: function(f) { rules.push(f); }};
eval(require("fs").readFileSync(process.argv[2], "utf8"));
console.log(JSON.stringify(asked.map(function(one) {
    var details = {unit: one[1] === null ? undefined : one[1],
                   verb: one[2] === null ? undefined : one[2]};
    var action = {id: one[0], lookup: function(name) { return details[name]; }};
    return rules[0](action, {user: one[3]});
})));
"""


def _answers(*asked: tuple[str, str | None, str | None, str]) -> list[str | None]:
    program = shutil.which("node") or shutil.which("nodejs")
    if program is None:
        pytest.skip("no JavaScript here")
    done = subprocess.run(
        [program, "-e", STAND_IN, json.dumps(asked), RULE],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answers: list[str | None] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("unit", ["hcp-engine@gpu0-server.service", "hcp-engine@a.b:c_d.service"])
def test_the_host_starts_and_ends_engines(unit: str) -> None:
    asked = [(MANAGE, unit, verb, "hcp-agent") for verb in VERBS]
    assert _answers(*asked) == ["yes"] * len(VERBS)


def test_nobody_else_and_nothing_else_is_allowed() -> None:
    unit = "hcp-engine@gpu0-server.service"
    asked: list[tuple[str, str | None, str | None, str]] = [
        (MANAGE, other, verb, "hcp-agent") for other in OTHER_UNITS for verb in VERBS
    ]
    asked += [(MANAGE, unit, verb, "hcp-agent") for verb in ("restart", "reload", "freeze", "")]
    asked += [(MANAGE, unit, "start", user) for user in ("nobody", "hcp-hub", "", "hcp-agent2")]
    for action in ("manage-unit-files", "reload-daemon", "set-environment"):
        asked.append((f"org.freedesktop.systemd1.{action}", unit, "start", "hcp-agent"))
    # a transient unit: systemd 252 gives no details at all
    asked.append((MANAGE, None, None, "hcp-agent"))
    assert _answers(*asked) == [None] * len(asked)


def test_the_rule_names_the_template_and_the_user_of_the_host() -> None:
    text = RULE.read_text()
    (pattern,) = re.findall(r"/(\^hcp-engine@.*\$)/\.test", text)
    assert re.fullmatch(pattern.replace("\\.", "[.]"), "hcp-engine@gpu0-miner.service")
    assert text.count("Result.YES") == 1
    host = (ROOT / "systemd" / "hcp-host.service").read_text()
    (user,) = re.findall(r"^User=(.+)$", host, re.MULTILINE)
    assert f'subject.user == "{user}"' in text
    assert (ROOT / "systemd" / "hcp-engine@.service").is_file()
