"""The simulated WhatsMiners on their wires: documented shapes, defects and limits."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from simulators.asic_fleet import Fleet, FleetSpec
from simulators.asic_models import MODELS
from simulators.asic_whatsminer_secrets import crypt_md5, v2_keys, v3_digest, v3_token

EPOCH_S = 1_800_000_000


class Bench:
    """A small fleet whose clock is moved by hand."""

    def __init__(self, model: str) -> None:
        self.now_ns = 10**12
        spec = FleetSpec(count=2, models=(MODELS[model],), seed=5)
        self.fleet = Fleet(spec, now_ns=lambda: self.now_ns, wall_s=self.wall_s)

    def wall_s(self) -> float:
        return EPOCH_S + self.now_ns / 1e9

    def turn(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    def raw(self, request: object, index: int = 0) -> bytes:
        return self.fleet.cgminer(index, json.dumps(request).encode()).payload

    def ask(self, request: object, index: int = 0) -> dict[str, object]:
        payload = self.raw(request, index)
        assert payload.endswith(b"\0")
        answer: dict[str, object] = json.loads(payload[:-1])
        return answer

    def v3(self, command: str, param: object = None, **more: object) -> dict[str, object]:
        request = {"cmd": command, **({} if param is None else {"param": param}), **more}
        answer: dict[str, object] = json.loads(
            self.fleet.frame(0, json.dumps(request).encode()).payload
        )
        return answer

    def signed(self, command: str, param: object, password: str = "super") -> dict[str, object]:
        salt = self.v3("get.device.info", "salt")["msg"]
        assert isinstance(salt, dict)
        stamp = int(self.wall_s())
        digest = v3_digest(command, password, salt["salt"], stamp)
        return self.v3(command, param, ts=stamp, account="super", token=v3_token(digest))


class Token:
    """What a client makes of `get_token`."""

    def __init__(self, bench: Bench, password: str = "admin", index: int = 0) -> None:
        self._bench = bench
        self._index = index
        given = bench.ask({"cmd": "get_token"}, index)["Msg"]
        assert isinstance(given, dict)
        self.key, self.sign = v2_keys(password, given["salt"], given["newsalt"], given["time"])

    def write(self, command: str, **params: object) -> dict[str, object]:
        plain = json.dumps({"token": self.sign, "cmd": command, **params}).encode()
        plain += bytes(-len(plain) % 16)
        cipher = Cipher(algorithms.AES(self.key), modes.ECB())
        data = base64.b64encode(cipher.encryptor().update(plain)).decode()
        answer = self._bench.ask({"enc": 1, "data": data}, self._index)
        if "enc" not in answer:
            return answer
        blocks = base64.b64decode(str(answer["enc"]))
        opened: dict[str, object] = json.loads(cipher.decryptor().update(blocks).rstrip(b"\0"))
        return opened


def test_the_hash_is_that_of_crypt() -> None:
    # Source: test vectors of glibc and passlib.
    assert crypt_md5(b"Hello world!", b"saltstring") == "YMyguxXMBpd2TEZ.vS/3q1"
    assert crypt_md5(b"", b"dOHYPKoP") == "tnxS1T8Q6VVn3kpV8cN6o."


def test_reads_are_joined_but_never_with_those_of_the_firmware() -> None:
    bench = Bench("m50s")
    assert {"summary", "devs"} < set(bench.ask({"command": "summary+devs"}))
    assert bench.ask({"command": "summary+status"})["Code"] == 14
    assert bench.ask({"cmd": "get_version"})["STATUS"] == "S"


def test_error_codes_come_in_a_list_shaped_like_an_object() -> None:
    bench = Bench("m50s")
    assert b'"error_code":[]' in bench.raw({"cmd": "get_error_code"})
    assert Token(bench).write("restart_btminer")["Code"] == 131
    bench.turn(120)
    raw = bench.raw({"cmd": "get_error_code"})
    assert b'"error_code":["2320":"' in raw
    with pytest.raises(json.JSONDecodeError):
        json.loads(raw[:-1])


def test_a_client_has_32_tokens_of_half_an_hour() -> None:
    bench = Bench("m50s")
    first = Token(bench)
    for _ in range(31):
        Token(bench)
    assert bench.ask({"cmd": "get_token"})["Code"] == 136
    assert first.write("set_led", param="auto")["Code"] == 131
    bench.turn(1_801)
    assert first.write("set_led", param="auto")["Code"] == 135
    assert bench.ask({"cmd": "get_token"})["Code"] == 134


def test_writes_need_their_encryption_their_password_and_the_owner() -> None:
    bench = Bench("m50s")
    assert bench.ask({"cmd": "power_off"})["Code"] == 45
    assert Token(bench, "wrong").write("power_off")["Code"] == 135
    assert Bench("m50s-locked").ask({"cmd": "get_token"})["Code"] == 45


def test_parameters_are_texts() -> None:
    token = Token(Bench("m50s"))
    assert token.write("power_off", respbefore=True)["Code"] == 132
    assert token.write("set_power_pct", percent=80)["Code"] == 132
    assert token.write("set_power_pct", percent="80")["Code"] == 131
    assert token.write("adjust_power_limit", power_limit="100000")["Code"] == 132
    assert token.write("no_such_command")["Code"] == 14


def test_some_machines_that_are_off_refuse_what_the_mining_program_knows() -> None:
    bench = Bench("m50s")
    for index in (0, 1):
        assert Token(bench, index=index).write("power_off")["Code"] == 131
    bench.turn(60)
    assert "SUMMARY" in bench.ask({"cmd": "summary"}, 0)
    assert bench.ask({"cmd": "summary"}, 1)["STATUS"] == "E"
    status = bench.ask({"cmd": "status"}, 1)["Msg"]
    assert isinstance(status, dict)
    assert status["mineroff"] == "true"


def test_v3_percent_is_a_text_although_the_document_says_number() -> None:
    bench = Bench("m60s")
    assert bench.signed("set.miner.power_percent", {"percent": 80, "mode": "normal"})["code"] == -1
    assert bench.signed("set.miner.power_percent", {"percent": "80"})["code"] == 0


def test_v3_refuses_wrong_tokens_and_unknown_commands() -> None:
    bench = Bench("m60s")
    assert bench.signed("set.miner.service", "stop", password="wrong")["code"] == -4
    assert bench.v3("set.miner.service", "stop")["code"] == -4
    assert bench.v3("get.none.such")["code"] == -2
    assert bench.v3("get.miner.status", "nothing")["code"] == -1
    assert Bench("m60s-locked").signed("set.miner.service", "stop")["code"] == -4


def test_v3_idle_refuses_pools_alone_and_leaves_them_out_of_the_joined_answer() -> None:
    bench = Bench("m60s")
    assert bench.signed("set.miner.service", "stop")["code"] == 0
    bench.turn(60)
    assert bench.v3("get.miner.status", "pools")["code"] == -1
    joined = bench.v3("get.miner.status", "summary+pools")["msg"]
    assert isinstance(joined, dict)
    assert set(joined) == {"summary"}
    assert joined["summary"]["factory-hash"] == -0.003
    assert bench.v3("get.miner.status", "edevs")["msg"] == "btminer process is down err"


def test_v3_has_another_salt_after_a_boot() -> None:
    bench = Bench("m60s")
    before = bench.v3("get.device.info", "salt")["msg"]
    assert bench.signed("set.system.reboot", None)["code"] == 0
    bench.turn(120)
    assert bench.v3("get.device.info", "salt")["msg"] != before
