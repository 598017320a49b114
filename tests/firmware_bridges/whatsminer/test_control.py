"""Writes to WhatsMiners whose answers are scripted: what is sent, and how answers are judged."""

import base64
import json
from collections.abc import Callable, Sequence

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from firmware_bridges.base import WorkMode, WriteState
from firmware_bridges.commands import (
    Command,
    Locate,
    MinerControl,
    PoolTarget,
    Reboot,
    RestartMining,
    SetMode,
    SetPools,
    SetPowerLimit,
    SetPowerPercent,
    Sleep,
    Wake,
)
from firmware_bridges.errors import (
    BridgeAuthError,
    BridgeGarbledError,
    BridgeTimeoutError,
    BridgeUnreachableError,
    BridgeUnsupportedError,
)
from firmware_bridges.family import ControlContext
from firmware_bridges.http.digest import Credentials
from firmware_bridges.query import Query
from firmware_bridges.transport import Deadlines
from firmware_bridges.whatsminer.cipher import digest_v3, token_v2, token_v3
from firmware_bridges.whatsminer.control_v2 import WhatsminerV2Control
from firmware_bridges.whatsminer.control_v3 import WhatsminerV3Control

PASSWORD = "hunter2-of-the-owner"
NOW_S = 1_800_000_000
TOKEN = token_v2(PASSWORD, "BQ5hoXV9", "jbzkfQls", "5626")
Reply = object


class Script:
    """Gives one answer after the other, and keeps what was asked."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)
        self.asked: list[Query] = []

    async def ask(self, query: Query, deadlines: Deadlines | None = None) -> bytes:
        self.asked.append(query)
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, bytes) else json.dumps(reply).encode()


def context(script: Script, now_s: Sequence[float] = ()) -> ControlContext:
    times = list(now_s)
    return ControlContext(
        asker=script,
        credentials=Credentials("super", PASSWORD),
        address="m:1",
        wall_s=lambda: times.pop(0) if times else float(NOW_S),
        random_text=lambda: "abc",
    )


def v2(*replies: Reply) -> tuple[WhatsminerV2Control, Script]:
    script = Script(*replies)
    return WhatsminerV2Control(context(script)), script


def v3(*replies: Reply) -> tuple[WhatsminerV3Control, Script]:
    script = Script(*replies)
    return WhatsminerV3Control(context(script)), script


def own(code: int, message: object, letter: str = "S") -> dict[str, object]:
    return {"STATUS": letter, "When": NOW_S, "Code": code, "Msg": message, "Description": ""}


TOKEN_GIVEN = own(134, {"salt": "BQ5hoXV9", "newsalt": "jbzkfQls", "time": "5626"})


def sealed(answer: object) -> dict[str, str]:
    plain = json.dumps(answer).encode()
    plain += bytes(-len(plain) % 16)
    cipher = Cipher(algorithms.AES(TOKEN.key), modes.ECB()).encryptor()
    return {"enc": base64.b64encode(cipher.update(plain) + cipher.finalize()).decode()}


def unsealed(query: Query) -> dict[str, object]:
    outer = json.loads(query.payload)
    assert outer["enc"] == 1
    cipher = Cipher(algorithms.AES(TOKEN.key), modes.ECB()).decryptor()
    inner: dict[str, object] = json.loads(
        cipher.update(base64.b64decode(outer["data"])).rstrip(b"\0")
    )
    return inner


POOL = PoolTarget(url="stratum+tcp://p:3333", user="w", password="pool-secret")
V2_WRITES: list[tuple[Command, dict[str, object]]] = [
    (Sleep(), {"cmd": "power_off", "respbefore": "true"}),
    (Wake(), {"cmd": "power_on"}),
    (SetMode(WorkMode.LOW), {"cmd": "set_low_power"}),
    (SetMode(WorkMode.NORMAL), {"cmd": "set_normal_power"}),
    (SetMode(WorkMode.HIGH), {"cmd": "set_high_power"}),
    (SetPowerLimit(3000), {"cmd": "adjust_power_limit", "power_limit": "3000"}),
    (SetPowerPercent(80), {"cmd": "set_power_pct", "percent": "80"}),
    (RestartMining(), {"cmd": "restart_btminer"}),
    (Reboot(), {"cmd": "reboot"}),
    (Locate(on=False), {"cmd": "set_led", "param": "auto"}),
    (
        SetPools((POOL,)),
        {"cmd": "update_pools", "pool1": "stratum+tcp://p:3333", "worker1": "w",
         "passwd1": "pool-secret", "pool2": "", "worker2": "", "passwd2": "", "pool3": "",
         "worker3": "", "passwd3": ""},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("command", "wanted"), V2_WRITES)
async def test_v2_writes_are_encrypted(command: Command, wanted: dict[str, object]) -> None:
    control, script = v2(TOKEN_GIVEN, sealed(own(131, "API command OK")))
    result = await control.write(command)
    assert (result.state, result.code) == (WriteState.ACKNOWLEDGED, "131")
    assert unsealed(script.asked[1]) == {"token": TOKEN.sign, **wanted}
    assert b"pool-secret" not in script.asked[1].payload


async def test_v2_keeps_its_token_and_renews_it_once_when_it_is_refused() -> None:
    done = sealed(own(131, "API command OK"))
    control, script = v2(
        TOKEN_GIVEN, done, done, own(135, "check token error", "E"), TOKEN_GIVEN, done
    )
    for _ in range(3):
        assert (await control.write(Reboot())).state is WriteState.ACKNOWLEDGED
    keys = [query.key for query in script.asked]
    assert keys == ["get_token", "reboot", "reboot", "reboot", "get_token", "reboot"]


async def test_v2_does_not_use_a_token_to_the_end_of_its_life() -> None:
    done = sealed(own(131, "API command OK"))
    script = Script(TOKEN_GIVEN, done, TOKEN_GIVEN, done)
    control = WhatsminerV2Control(context(script, [0.0, 1_600.0, 1_600.0]))
    await control.write(Reboot())
    await control.write(Reboot())
    assert [query.key for query in script.asked] == ["get_token", "reboot"] * 2


@pytest.mark.parametrize(
    ("code", "words"),
    [(45, "not enabled"), (132, "failed"), (135, "token"), (136, "too many tokens")],
)
async def test_v2_refusals_are_told_with_their_code(code: int, words: str) -> None:
    control, _ = v2(TOKEN_GIVEN, own(code, "no", "E"))
    result = await control.write(Sleep())
    assert (result.state, result.code) == (WriteState.REFUSED, str(code))
    assert words in result.detail


async def test_v2_without_the_owner_s_write_api_is_refused_before_anything_is_sent() -> None:
    control, script = v2(own(45, "permission denied", "E"))
    result = await control.write(Sleep())
    assert (result.state, result.code) == (WriteState.REFUSED, "45")
    assert "not enabled" in result.detail
    assert len(script.asked) == 1


SILENCE = BridgeTimeoutError("m:1", "no whole answer", sent=True)
NO_WAY = BridgeUnreachableError("m:1", "no connection")


@pytest.mark.parametrize("make", [v2, v3])
@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (SILENCE, WriteState.UNKNOWN),
        (NO_WAY, WriteState.REFUSED),
        (b"\x00\xff{{{", WriteState.UNKNOWN),
        (b'{"enc":"AAAA"}', WriteState.UNKNOWN),
        (b'{"enc":"%%"}', WriteState.UNKNOWN),
        (b"{}", WriteState.UNKNOWN),
        (b"[1]", WriteState.UNKNOWN),
    ],
)
async def test_silence_and_noise_are_unknown(
    make: Callable[..., tuple[MinerControl, Script]], reply: Reply, state: WriteState
) -> None:
    first = TOKEN_GIVEN if make is v2 else SALT
    control, _ = make(first, reply)
    assert (await control.write(Sleep())).state is state


@pytest.mark.parametrize("make", [v2, v3])
async def test_what_is_read_before_a_write_may_fail(
    make: Callable[..., tuple[MinerControl, Script]],
) -> None:
    for error in (SILENCE, NO_WAY):
        control, _ = make(error)
        with pytest.raises(type(error)):
            await control.write(Sleep())


@pytest.mark.parametrize("make", [v2, v3])
async def test_what_no_whatsminer_can_do_is_not_sent(
    make: Callable[..., tuple[MinerControl, Script]],
) -> None:
    control, script = make()
    for command in (SetMode(WorkMode.SLEEP), SetPools(()), SetPools((POOL,) * 4)):
        with pytest.raises(BridgeUnsupportedError):
            await control.write(command)
    assert script.asked == []


async def test_v2_wakes_into_the_former_mode() -> None:
    done = sealed(own(131, "API command OK"))
    kept = own(131, {"mineroff": "false", "power_mode": "Low"})
    control, script = v2(TOKEN_GIVEN, done, kept)
    assert (await control.write(Wake(WorkMode.LOW))).state is WriteState.ACKNOWLEDGED
    assert len(script.asked) == 3
    control, script = v2(TOKEN_GIVEN, done, kept, done)
    assert (await control.write(Wake(WorkMode.HIGH))).state is WriteState.ACKNOWLEDGED
    assert unsealed(script.asked[3])["cmd"] == "set_high_power"
    control, script = v2(TOKEN_GIVEN, done, SILENCE, SILENCE)
    result = await control.write(Wake(WorkMode.HIGH))
    assert result.state is WriteState.UNKNOWN
    assert "woken" in result.detail


@pytest.mark.parametrize(
    ("replies", "mode"),
    [
        ([own(131, {"mineroff": "true", "power_mode": "low"})], WorkMode.SLEEP),
        ([own(131, {"mineroff": "false", "power_mode": "low"})], WorkMode.LOW),
        (
            [
                own(131, {"btmineroff": "false"}),
                {"STATUS": [{"STATUS": "S"}], "SUMMARY": [{"Power Mode": "High"}]},
            ],
            WorkMode.HIGH,
        ),
    ],
)
async def test_v2_mode(replies: list[Reply], mode: WorkMode) -> None:
    assert await v2(*replies)[0].mode() is mode


def v3_said(message: object, code: int = 0) -> dict[str, object]:
    return {"code": code, "when": NOW_S, "msg": message, "desc": ""}


SALT = v3_said({"salt": "Abc123xy"})
V3_WRITES: list[tuple[Command, str, object]] = [
    (Sleep(), "set.miner.service", "stop"),
    (Wake(), "set.miner.service", "start"),
    (RestartMining(), "set.miner.service", "restart"),
    (SetMode(WorkMode.LOW), "set.miner.power_mode", "low"),
    (SetPowerLimit(3000), "set.miner.power_limit", 3000),
    (SetPowerPercent(80), "set.miner.power_percent", {"percent": "80", "mode": "normal"}),
    (Reboot(), "set.system.reboot", None),
    (Locate(on=False), "set.system.led", "auto"),
]


@pytest.mark.parametrize(("command", "name", "param"), V3_WRITES)
async def test_v3_writes_are_signed(command: Command, name: str, param: object) -> None:
    control, script = v3(SALT, v3_said("ok"))
    result = await control.write(command)
    assert (result.state, result.code) == (WriteState.ACKNOWLEDGED, "0")
    body = json.loads(script.asked[1].payload)
    assert (body["cmd"], body.get("param"), body["account"]) == (name, param, "super")
    assert body["ts"] == NOW_S
    assert body["token"] == token_v3(digest_v3(name, PASSWORD, "Abc123xy", NOW_S))


async def test_v3_pools_are_encrypted_with_the_whole_digest() -> None:
    control, script = v3(SALT, v3_said("ok"))
    await control.write(SetPools((POOL,)))
    body = json.loads(script.asked[1].payload)
    key = digest_v3("set.miner.pools", PASSWORD, "Abc123xy", NOW_S)
    cipher = Cipher(algorithms.AES(key), modes.ECB()).decryptor()
    plain = cipher.update(base64.b64decode(body["param"]))
    pools = json.loads(plain[: -plain[-1]])
    assert pools == [{"pool": POOL.url, "worker": "w", "passwd": "pool-secret"}]


async def test_v3_fetches_the_salt_once_again_when_it_is_not_permitted() -> None:
    denied = v3_said("no permission", -4)
    control, script = v3(SALT, v3_said("ok"), denied, SALT, v3_said("ok"))
    await control.write(Reboot())
    assert (await control.write(Reboot())).state is WriteState.ACKNOWLEDGED
    assert [query.key for query in script.asked].count("get.device.info") == 2
    control, script = v3(SALT, denied)
    result = await control.write(Sleep())
    assert (result.state, result.code) == (WriteState.REFUSED, "-4")
    assert "not enabled" in result.detail


async def test_v3_salt_that_is_refused_is_told() -> None:
    with pytest.raises(BridgeAuthError):
        await v3(v3_said("no permission", -4))[0].write(Sleep())
    with pytest.raises(BridgeGarbledError):
        await v3(v3_said({}))[0].write(Sleep())


async def test_v3_starts_and_then_sets_the_mode() -> None:
    control, script = v3(SALT, v3_said("ok"), v3_said("ok"))
    assert (await control.write(Wake(WorkMode.HIGH))).state is WriteState.ACKNOWLEDGED
    sent = [json.loads(query.payload).get("param") for query in script.asked[1:]]
    assert sent == ["start", "high"]
    control, _ = v3(SALT, v3_said("ok"), v3_said("fail", -1))
    assert (await control.write(Wake(WorkMode.HIGH))).state is WriteState.REFUSED
    control, script = v3(SALT, v3_said("fail", -1))
    assert (await control.write(Wake(WorkMode.HIGH))).state is WriteState.REFUSED
    assert len(script.asked) == 2


async def test_v3_mode() -> None:
    stopped = v3_said({"miner": {"working": "false"}})
    running = v3_said({"miner": {"working": "true"}})
    assert await v3(stopped)[0].mode() is WorkMode.SLEEP
    setting = v3_said({"power-mode": "normal"})
    assert await v3(running, setting)[0].mode() is WorkMode.NORMAL
