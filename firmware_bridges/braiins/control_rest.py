"""Control of Braiins OS from 25.07 on, over REST.

Pausing keeps the mining program up; a miner whose program is stopped is woken by starting it. There
are no power modes: the tuner follows a power target. Source: the vendor's OpenAPI documents of
25.07 and 26.04.
"""

import json
from collections.abc import Callable
from typing import Final

from firmware_bridges.base import WorkMode, WriteResult
from firmware_bridges.braiins.decode_rest import decode_details
from firmware_bridges.braiins.sheets import REST_SHEET
from firmware_bridges.commands import (
    Command,
    Locate,
    PoolTarget,
    Reboot,
    RestartMining,
    SetPools,
    SetPowerLimit,
    SetPowerPercent,
    Sleep,
    Wake,
)
from firmware_bridges.document import Document, read_json
from firmware_bridges.errors import BridgeGarbledError, BridgeUnsupportedError
from firmware_bridges.family import ControlContext
from firmware_bridges.paths import dig, reader_at
from firmware_bridges.query import page, submit
from firmware_bridges.rows import POWER_W_MAX, as_float, as_text
from firmware_bridges.transport import Deadlines
from firmware_bridges.writes import acknowledged, deadlines_for, refused, send, unknown

V1: Final = "/api/v1/"
_GROUP: Final = "hcp"
_STATUS_NOT_STARTED: Final = 1


class BraiinsRestControl:
    """The writes of one miner.

    Args:
        context: What it is made of; the link logs in and keeps the token.
    """

    def __init__(self, context: ControlContext) -> None:
        self._asker = context.asker
        self._address = context.address

    async def mode(self) -> WorkMode | None:
        """Read what it was told: a miner that is paused or whose program is stopped sleeps.

        Raises:
            BridgeError: It could not be read.
        """
        return decode_details(await self._read("miner/details")).configured_mode

    async def write(self, command: Command) -> WriteResult:
        """Send one command.

        Raises:
            BridgeUnsupportedError: This firmware has no such command; nothing was sent.
            BridgeError: Something had to be read first and could not be; nothing was written.
        """
        deadlines = deadlines_for(REST_SHEET, command, self._address)
        match command:
            case Sleep():
                return await self._act("pause", deadlines)
            case Wake():
                return await self._act(await self._waking_action(), deadlines)
            case SetPowerLimit(power_w=power_w):
                return await self._limit(power_w, deadlines)
            case SetPowerPercent(percent=percent):
                return await self._limit(await self._share_w(percent), deadlines)
            case RestartMining():
                return await self._act("restart", deadlines)
            case Reboot():
                return await self._act("reboot", deadlines)
            case Locate(on=on):
                return await self._locate(on=on, deadlines=deadlines)
            case SetPools(pools=pools):
                return await self._set_pools(pools, deadlines)
            case _:
                raise BridgeUnsupportedError(self._address, f"no such command: {command}")

    async def _waking_action(self) -> str:
        details = await self._read("miner/details")
        status = as_float(dig(details.value, "status"))
        return "start" if status == _STATUS_NOT_STARTED else "resume"

    async def _share_w(self, percent: int) -> int:
        constraints = await self._read("configuration/constraints")
        default = reader_at(constraints.value, "tuner_constraints", "power_target", "default")
        full_w = default.number("watt", low=1.0, high=POWER_W_MAX)
        if full_w is None:
            raise BridgeUnsupportedError(self._address, "the miner tells no default power target")
        return round(full_w * percent / 100)

    async def _act(self, action: str, deadlines: Deadlines) -> WriteResult:
        return await self._put(
            f"actions/{action}", b"", lambda answer: judge_action(answer, action), deadlines
        )

    async def _limit(self, power_w: int, deadlines: Deadlines) -> WriteResult:
        body = _compact({"watt": power_w})
        path = "performance/power-target"
        return await self._put(path, body, lambda answer: judge_limit(answer, power_w), deadlines)

    async def _locate(self, *, on: bool, deadlines: Deadlines) -> WriteResult:
        body = _compact(on)
        return await self._put(
            "actions/locate", body, lambda answer: judge_locate(answer, on=on), deadlines
        )

    async def _set_pools(self, pools: tuple[PoolTarget, ...], deadlines: Deadlines) -> WriteResult:
        if not pools:
            return refused("bridge.no_pools", "a miner needs at least one pool")
        body = _compact(pool_groups(pools))
        return await self._put(
            "pools/batch", body, lambda answer: judge_pools(answer, pools), deadlines
        )

    async def _put(
        self,
        path: str,
        payload: bytes,
        judge: Callable[[Document | None], WriteResult],
        deadlines: Deadlines,
    ) -> WriteResult:
        """Send one PUT; its judge is given `None` where nothing was said (HTTP 204)."""

        def judged(body: bytes) -> WriteResult:
            return judge(read_json(body, self._address, path) if body.strip() else None)

        return await send(self._asker, submit(V1 + path, payload, "PUT"), judged, deadlines)

    async def _read(self, path: str) -> Document:
        return read_json(await self._asker.ask(page(V1 + path)), self._address, path)


def pool_groups(pools: tuple[PoolTarget, ...]) -> list[dict[str, object]]:
    """Make the one group that replaces all others; its pools serve in their order."""
    members = [
        {"enabled": True, "url": pool.url, "user": pool.user, "password": pool.password or None}
        for pool in pools
    ]
    return [{"name": _GROUP, "load_balance_strategy": {"quota": {"value": 1}}, "pools": members}]


def judge_action(answer: Document | None, action: str) -> WriteResult:
    """Judge the answer to an action: whether it was so already, or nothing at all."""
    if answer is None:
        return acknowledged(action)
    if isinstance(answer.value, bool):
        return acknowledged(f"{action}: was so already" if answer.value else action)
    return _odd(action)


def judge_limit(answer: Document | None, power_w: int) -> WriteResult:
    """Judge the answer to a power target: the target that it took."""
    taken_w = None if answer is None else as_float(dig(answer.value, "watt"))
    if taken_w is None:
        return _odd("power target")
    if taken_w > power_w:
        return refused("braiins.other_target", f"it took {taken_w:g} W instead of {power_w} W")
    return acknowledged(f"{taken_w:g} W")


def judge_locate(answer: Document | None, *, on: bool) -> WriteResult:
    """Judge the answer to `locate`: whether the light blinks now."""
    lit = None if answer is None else answer.value
    if lit is on:
        return acknowledged("blinks" if on else "is off")
    return (
        refused("braiins.no_effect", "the light is as before") if lit is not None else _odd("light")
    )


def judge_pools(answer: Document | None, pools: tuple[PoolTarget, ...]) -> WriteResult:
    """Judge the answer to new pool groups: the groups that it has now."""
    groups = None if answer is None else answer.value
    if not isinstance(groups, list):
        return _odd("pools")
    members = [row for group in groups for row in _members(group)]
    urls = [as_text(dig(row, "url")) for row in members]
    if urls == [pool.url for pool in pools]:
        return acknowledged(f"{len(urls)} pools")
    return unknown("braiins.other_pools", f"it names {len(urls)} pools, not those {len(pools)}")


def _members(group: object) -> list[object]:
    pools = dig(group, "pools")
    return pools if isinstance(pools, list) else []


def _odd(what: str) -> WriteResult:
    return unknown(BridgeGarbledError.code, f"{what}: the answer does not tell the outcome")


def _compact(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
