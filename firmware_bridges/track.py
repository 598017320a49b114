"""The state of one command: commanded, acknowledged, confirmed by effect, refused or unknown; pure.

How long an effect may take is data of the firmware's sheet. A machine that needs longer teaches it,
upward only and never to more than three times the data.
"""

from enum import StrEnum
from typing import Final

import msgspec

from firmware_bridges.base import Reading, WriteResult, WriteState
from firmware_bridges.commands import Command
from firmware_bridges.effects import Evidence, Rated, Verdict, capability_of, judge
from firmware_bridges.sheet import Capability

LEARN_FACTOR_MAX: Final = 3.0
CODE_NO_EFFECT: Final = "effect.none"
CODE_UNSEEN: Final = "effect.unseen"
_NS: Final = 1_000_000_000


class Stage(StrEnum):
    """Where a command stands."""

    COMMANDED = "commanded"
    ACKNOWLEDGED = "acknowledged"
    CONFIRMED = "confirmed"
    REFUSED = "refused"
    UNKNOWN = "unknown"


ENDED: Final = frozenset({Stage.CONFIRMED, Stage.REFUSED})


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """One command and what became of it.

    Args:
        command: As it was sent.
        before: Last reading before it.
        before_ns: Boottime of that reading.
        commanded_ns: Boottime when it was sent.
        effect_s: Within this time its effect must show; `None` = it has none to see.
        stage: Where it stands; `unknown` may still become `confirmed`.
        acknowledged_ns, confirmed_ns: Boottimes.
        took_s: From command to effect.
        code, detail: Why it is refused or unknown.
    """

    command: Command
    before: Reading | None
    before_ns: int
    commanded_ns: int
    effect_s: float | None
    stage: Stage = Stage.COMMANDED
    acknowledged_ns: int | None = None
    confirmed_ns: int | None = None
    took_s: float | None = None
    code: str = ""
    detail: str = ""

    @property
    def due_ns(self) -> int | None:
        """Give when the effect is due."""
        if self.effect_s is None:
            return None
        return self.commanded_ns + int(self.effect_s * _NS)


def answered(track: Track, result: WriteResult, now_ns: int) -> Track:
    """Give the state after the miner's answer, or its silence."""
    if result.state is WriteState.REFUSED:
        return msgspec.structs.replace(
            track, stage=Stage.REFUSED, code=result.code, detail=result.detail
        )
    if result.state is WriteState.ACKNOWLEDGED:
        return msgspec.structs.replace(track, stage=Stage.ACKNOWLEDGED, acknowledged_ns=now_ns)
    return msgspec.structs.replace(track, code=result.code, detail=result.detail)


def observed(track: Track, reading: Reading, now_ns: int, rated: Rated) -> Track:
    """Give the state after a reading; an effect counts whenever it is seen.

    Args:
        track: Before it.
        reading: Taken after the command.
        now_ns: Boottime of the reading.
        rated: Of the model.
    """
    if track.stage in ENDED:
        return track
    seen = Evidence(
        before=track.before,
        after=reading,
        elapsed_s=(now_ns - track.before_ns) / _NS,
        rated=rated,
    )
    verdict = judge(track.command, seen)
    if verdict is Verdict.EFFECTIVE:
        return msgspec.structs.replace(
            track,
            stage=Stage.CONFIRMED,
            confirmed_ns=now_ns,
            took_s=(now_ns - track.commanded_ns) / _NS,
            code="",
            detail="",
        )
    return expired(track, now_ns, seen=verdict is Verdict.NOT_YET)


def expired(track: Track, now_ns: int, *, seen: bool = False) -> Track:
    """Give the state when time has passed without the effect.

    Args:
        seen: A reading showed that nothing had happened.
    """
    due_ns = track.due_ns
    if track.stage in ENDED or due_ns is None or now_ns < due_ns:
        return track
    code = CODE_NO_EFFECT if seen else CODE_UNSEEN
    if track.code == CODE_NO_EFFECT:
        code = CODE_NO_EFFECT
    said = "acknowledged" if track.acknowledged_ns is not None else "no answer"
    detail = f"no effect {track.effect_s:g} s after the command ({said})"
    return msgspec.structs.replace(track, stage=Stage.UNKNOWN, code=code, detail=detail)


class EffectTimes:
    """How long effects take, by family and capability.

    Times start at the data of the sheets; one that was seen to take longer raises its own.
    """

    def __init__(self) -> None:
        self._learnt: dict[tuple[str, Capability], float] = {}

    def effect_s(self, family: str, capability: Capability, data_s: float) -> float:
        """Give the time within which an effect is due.

        Args:
            family: Name of the family.
            capability: What was commanded.
            data_s: That of its sheet.
        """
        return min(
            max(data_s, self._learnt.get((family, capability), 0.0)), data_s * LEARN_FACTOR_MAX
        )

    def learn(self, family: str, command: Command, took_s: float, data_s: float) -> None:
        """Take an effect that was seen; one that was in time teaches nothing."""
        key = (family, capability_of(command))
        ceiling_s = data_s * LEARN_FACTOR_MAX
        if data_s < took_s <= ceiling_s and took_s > self._learnt.get(key, 0.0):
            self._learnt[key] = took_s
