"""LuxOS as a dialect: the cgminer API, where every change of the machine needs the one session.

`version` spoofs the stock firmware in `Miner` and `BMMiner`, as the vendor documents; while the
automatic thermal management is on, a profile is refused (an assumption); a second parameter of 0 to
3 of `profileset` is the number of a board. Source: the vendor's public documents of its API,
recorded answers of an S19k Pro.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from simulators import asic_luxos_reads, asic_rpc
from simulators.asic_dialect import RESET, OneWire, Outcome, Unit, answer
from simulators.asic_luxos_state import BOOT, Memory, memory_of, profiles_of
from simulators.asic_luxos_state import RESET as RESET_MINER
from simulators.asic_pools import Pool, Pools
from simulators.asic_rpc import CODE_INVALID_COMMAND, Json, Voice

CODE_INVALID_SESSION = 318
CODE_SESSION_HELD = 317
CODE_INVALID_PARAMETER = 324
DESCRIPTION = f"LUXminer {asic_luxos_reads.RELEASE}-57b389c7"
_POOL_WRITES = {"addpool", "switchpool", "removepool"}
_LED_MODES = {"on", "off", "blink", "auto"}


class LuxosDialect(OneWire):
    """LuxOS.

    Args:
        secret: Seed of its sessions.
    """

    name = "luxos"

    def __init__(self, secret: int) -> None:
        self._secret = secret

    def begin(self, unit: Unit) -> object:
        """Start with one pool and the normal profile."""
        pool = Pool("stratum+tcp://pool.example.com:3333", f"site.{unit.who.index:05d}", "x")
        return Memory(Pools((pool,)), unit, self._secret)

    def restart(self, unit: Unit) -> None:
        """Boot; a curtailed machine goes on sleeping."""
        memory_of(unit).work(unit, BOOT)

    def api(self, unit: Unit, data: bytes) -> Outcome:
        """Answer one request; away while the program or the board starts."""
        if unit.is_api_away:
            return RESET
        voice = Voice(DESCRIPTION, unit.wall_s)
        return answer(
            asic_rpc.converse(data, voice, lambda name, text: _run(unit, voice, name, text))
        )


class _Call(NamedTuple):
    """One write within the session; `rest` follows the session's id in its parameter."""

    unit: Unit
    memory: Memory
    voice: Voice
    rest: list[str]


def _run(unit: Unit, voice: Voice, name: str, parameter: str) -> Json:
    memory = memory_of(unit)
    if (told := asic_luxos_reads.read(unit, voice, name)) is not None:
        return told
    if name in _POOL_WRITES:
        return memory.pools.run(name, parameter, voice)
    if name == "session":
        return voice.say(
            319, "Session information", {"SESSION": [{"SessionID": memory.session(unit)}]}
        )
    if name == "logon":
        session = memory.log_on(unit)
        if session is None:
            return voice.refuse(CODE_SESSION_HELD, "Another session is active")
        return voice.say(316, "Session created", {"SESSION": [{"SessionID": session}]})
    write = _WRITES.get(name)
    if write is None:
        return voice.refuse(CODE_INVALID_COMMAND, "Invalid command")
    session, *rest = parameter.split(",")
    if not memory.holds(unit, session):
        return voice.refuse(CODE_INVALID_SESSION, "Invalid session")
    return write(_Call(unit, memory, voice, rest))


def _log_off(call: _Call) -> Json:
    call.memory.log_off()
    return call.voice.say(320, "Session dropped")


def _curtail(call: _Call) -> Json:
    actions = {"sleep": "sleep mode", "wakeup": "wake up"}
    if not call.rest or call.rest[0] not in actions:
        return call.voice.refuse(CODE_INVALID_PARAMETER, "Invalid curtailment action")
    call.memory.curtail(call.unit, asleep=call.rest[0] == "sleep")
    said = [{"Action": actions[call.rest[0]]}]
    return call.voice.say(335, "Curtailment command sent", {"CURTAIL": said})


def _atm_set(call: _Call) -> Json:
    pairs = dict(part.partition("=")[::2] for part in call.rest)
    if pairs.get("enabled") not in {"true", "false"}:
        return call.voice.refuse(CODE_INVALID_PARAMETER, "Invalid ATM parameter")
    call.memory.is_atm_on = pairs["enabled"] == "true"
    return call.voice.say(
        340, "ATM configuration set", {"ATM": [{"Enabled": call.memory.is_atm_on}]}
    )


def _profile_set(call: _Call) -> Json:
    names = call.rest[1:] if call.rest and call.rest[0] in {"0", "1", "2", "3"} else call.rest
    profile = next((p for p in profiles_of(call.unit) if p.name in names[:1]), None)
    if profile is None:
        return call.voice.refuse(CODE_INVALID_PARAMETER, "Invalid profile")
    if call.memory.is_atm_on:
        return call.voice.refuse(
            CODE_INVALID_PARAMETER, "Profile cannot be set while ATM is enabled"
        )
    call.memory.take(call.unit, profile)
    said = [{"Board": 0, "Profile": profile.name, "FrequencyStep": 5, "VoltageStep": 0.05}]
    return call.voice.say(321, "Profile Set", {"PROFILE": said})


def _led_set(call: _Call) -> Json:
    if (
        len(call.rest) != 2
        or call.rest[0] not in {"red", "green"}
        or call.rest[1] not in _LED_MODES
    ):
        return call.voice.refuse(CODE_INVALID_PARAMETER, "Invalid LED parameter")
    if call.rest[0] == "red":
        call.memory.red_led = call.rest[1]
    return call.voice.say(326, "LED set", {"LED": [{"LED": call.rest[0], "Mode": call.rest[1]}]})


def _reboot_device(call: _Call) -> Json:
    call.memory.work(call.unit, BOOT)
    return call.voice.say(328, "Device will be rebooted")


def _reset_miner(call: _Call) -> Json:
    call.memory.work(call.unit, RESET_MINER)
    return call.voice.say(329, "Miner will be reset")


_WRITES: dict[str, Callable[[_Call], Json]] = {
    "logoff": _log_off,
    "curtail": _curtail,
    "atmset": _atm_set,
    "profileset": _profile_set,
    "ledset": _led_set,
    "rebootdevice": _reboot_device,
    "resetminer": _reset_miner,
}
