"""The miners as a technician sees them: what they last said, and one-off commands to them.

A command may take minutes to show its effect, a request may not: it is given a name at once and
asked after by that name. Nothing is ever written twice, and what was asked for is kept in memory
only: after a restart of the agent nobody carries it out late.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from edge_agent.config import AsicAddress
from edge_agent.devices.poller import Known
from edge_agent.local_api.http import LocalError, LocalRequest
from edge_agent.ports import Clock
from firmware_bridges.base import Reading, WorkMode
from firmware_bridges.commands import (
    Command,
    Locate,
    Reboot,
    RestartMining,
    SetMode,
    SetPowerLimit,
    SetPowerPercent,
)

VIEW_VERSION: Final = 1
AT_ONCE: Final = 32
WAITING_MAX: Final = 4_096
ACTS_KEPT: Final = 256
SHOWN_MAX: Final = 65_536
_AWAKE: Final = {mode.value: mode for mode in WorkMode if mode is not WorkMode.SLEEP}

_log = logging.getLogger(__name__)


class MinerFleetPort(Protocol):
    """What is needed of the fleet."""

    def known(self, device_id: str) -> Known:
        """Give the last that is known of a miner."""
        ...

    async def tell(self, command: Command, device_id: str) -> tuple[str, str]:
        """Send one command and watch its effect: outcome and reason."""
        ...


class MinerLine(Struct, frozen=True, kw_only=True):
    """One miner.

    Args:
        age_s: Of the reading; `None` = there is none yet.
        error: Why there is no newer one; empty = it answered when last asked.
    """

    device_id: str
    device_class: str
    address: str
    kind: str
    rack: str
    row: str
    customer: str
    age_s: float | None
    error: str
    reading: Reading | None


class MinerLines(Struct, frozen=True, kw_only=True):
    """The answer to ``miners``."""

    v: int
    items: tuple[MinerLine, ...]


class ActBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to tell which miners: ``value`` is the mode, the watts or the percent, or on/off."""

    pattern: str
    verb: str
    value: str = ""


class ActItem(Struct, frozen=True, kw_only=True):
    """How it went on one miner: waiting, running, done, refused, unsafe or failed."""

    device_id: str
    outcome: str
    detail: str = ""


class ActView(Struct, frozen=True, kw_only=True):
    """One act; ``ended`` when every miner has an outcome."""

    v: int
    act_id: str
    verb: str
    ended: bool
    items: tuple[ActItem, ...]


class _Act:
    def __init__(self, act_id: str, verb: str, command: Command, device_ids: Iterable[str]) -> None:
        self.act_id = act_id
        self.verb = verb
        self.command = command
        self.items = {one: ActItem(device_id=one, outcome="waiting") for one in device_ids}

    def view(self) -> ActView:
        items = tuple(self.items.values())
        ended = all(item.outcome not in {"waiting", "running"} for item in items)
        return ActView(v=VIEW_VERSION, act_id=self.act_id, verb=self.verb, ended=ended, items=items)


class MinerDesk:
    """Shows miners and tells them things.

    Args:
        addresses: Of the miners, in the order of the site.
        fleet: Reads and writes. clock: For ages. new_id: Gives fresh names of acts.
    """

    def __init__(
        self,
        addresses: Iterable[AsicAddress],
        fleet: MinerFleetPort,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._addresses = {row.device_id: row for row in addresses}
        self._fleet = fleet
        self._clock = clock
        self._new_id = new_id
        self._acts: OrderedDict[str, _Act] = OrderedDict()
        self._waiting: asyncio.Queue[tuple[_Act, str]] = asyncio.Queue(WAITING_MAX)

    async def run(self) -> None:
        """Carry acts out, some at a time, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(AT_ONCE):
                group.create_task(self._worker(), name=f"miner-act-{number}")

    def lines(self, request: LocalRequest) -> MinerLines:
        """Give the miners that match ``pattern``, ``rack``, ``row`` and ``customer``."""
        wanted = {
            name: request.query[name]
            for name in ("rack", "row", "customer")
            if name in request.query
        }
        now_ns = self._clock.boottime_ns()
        found = self._matching(request.query.get("pattern", "*"))
        return MinerLines(
            v=VIEW_VERSION,
            items=tuple(
                self._line(row, now_ns)
                for row in found
                if all(fnmatchcase(getattr(row, name), text) for name, text in wanted.items())
            ),
        )

    async def act(self, request: LocalRequest) -> ActView:
        """Take an act; what becomes of it is asked by its name.

        Raises:
            LocalError: 400 for a verb or value that does not exist, 404 where no miner matches,
                409 where too many commands wait.
        """
        body = _body(request)
        command = command_of(body.verb, body.value)
        found = [row.device_id for row in self._matching(body.pattern)]
        if not found:
            raise LocalError(404, "no_device", f"no miner matches {body.pattern[:100]}")
        if len(found) > WAITING_MAX - self._waiting.qsize():
            detail = f"{len(found)} commands asked for, {self._waiting.qsize()} already wait"
            raise LocalError(409, "too_many", f"{detail}; at most {WAITING_MAX}")
        act = _Act(self._new_id(), body.verb, command, found)
        self._acts[act.act_id] = act
        while len(self._acts) > ACTS_KEPT:
            self._acts.popitem(last=False)
        for device_id in found:
            self._waiting.put_nowait((act, device_id))
        _log.info(
            "miner act act_id=%s verb=%s value=%s pattern=%s miners=%d uid=%d",
            act.act_id, body.verb, body.value, body.pattern, len(found), request.peer.uid,
        )  # fmt: skip
        return act.view()

    def acted(self, request: LocalRequest) -> ActView:
        """Give an act by its name.

        Raises:
            LocalError: 404 where it is not known (any more).
        """
        act = self._acts.get(request.query.get("id", ""))
        if act is None:
            raise LocalError(404, "no_act", "id: no such act, or it was too long ago")
        return act.view()

    async def _worker(self) -> None:
        while True:
            act, device_id = await self._waiting.get()
            act.items[device_id] = ActItem(device_id=device_id, outcome="running")
            outcome, detail = await self._fleet.tell(act.command, device_id)
            act.items[device_id] = ActItem(device_id=device_id, outcome=outcome, detail=detail)
            _log.info(
                "miner act ended act_id=%s device_id=%s outcome=%s detail=%s",
                act.act_id, device_id, outcome, detail,
            )  # fmt: skip

    def _matching(self, pattern: str) -> list[AsicAddress]:
        return [row for name, row in self._addresses.items() if fnmatchcase(name, pattern)]

    def _line(self, row: AsicAddress, now_ns: int) -> MinerLine:
        known = self._fleet.known(row.device_id)
        return MinerLine(
            device_id=row.device_id,
            device_class=row.device_class,
            address=row.host,
            kind=row.kind,
            rack=row.rack,
            row=row.row,
            customer=row.customer,
            age_s=known.age_s(now_ns),
            error=known.error,
            reading=known.reading,
        )


def command_of(verb: str, value: str) -> Command:
    """Give the command that a verb and its value name.

    Raises:
        LocalError: 400, naming what is wrong.
    """
    make = _VERBS.get(verb)
    if make is None:
        raise LocalError(400, "bad_request", f"verb: no {verb[:40]}; known: {', '.join(_VERBS)}")
    try:
        return make(value)
    except (KeyError, ValueError) as exc:
        raise LocalError(400, "bad_request", f"value: {value[:40]!r} of {verb}: {exc}") from exc


def _light(value: str) -> Command:
    return Locate(on={"": True, "on": True, "off": False}[value])


def _nothing_more(value: str, command: Command) -> Command:
    if value:
        raise ValueError("takes no value")
    return command


_VERBS: Final[Mapping[str, Callable[[str], Command]]] = {
    "locate": _light,
    "restart": lambda value: _nothing_more(value, RestartMining()),
    "reboot": lambda value: _nothing_more(value, Reboot()),
    "mode": lambda value: SetMode(mode=_AWAKE[value]),
    "limit": lambda value: SetPowerLimit(power_w=int(value)),
    "percent": lambda value: SetPowerPercent(percent=int(value)),
}


def _body(request: LocalRequest) -> ActBody:
    try:
        return msgspec.json.decode(request.body, type=ActBody)
    except msgspec.MsgspecError as exc:
        raise LocalError(400, "bad_request", str(exc)) from exc
