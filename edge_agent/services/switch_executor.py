"""Carries out switches: asks nodes and the ASIC fleet phase by phase, closes each durably.

The intent is durable before ``start`` is called; the close is one commit. Phase notes ride unsynced
beside the phase they announce: a lost one only repeats its effect with the same (switch_id, phase).
A node that is away is waited for: forward phases within their deadline, undoing without one,
because what it holds is its to say. Its device counts with its nameplate meanwhile.
A raise that a former life left open is only held here; the plan says when it goes on, or back.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from edge_agent.core.curve import ModePoint
from edge_agent.core.switching import (
    Ask,
    Begun,
    Said,
    Stage,
    Switch,
    SwitchDevice,
    encode_switch,
    hear,
    step,
)
from edge_agent.devices.ports import AsicAction, AsicFleet, OutcomeState
from edge_agent.ports import Clock, CommitBatch, NodeLinks, SwitchRow
from edge_agent.services.journal import Journal
from protocol.node import DeviceOutcome, DeviceStep, NextPhase, Phase, PhaseDo, PhaseEnd
from protocol.resource import Activity, DeviceKind

logger = logging.getLogger(__name__)

# The answer of a phase may come this much after the node's own deadline.
GRACE_S = 2.0
RECONNECT_POLL_S = 0.2
SWITCHES_MAX = 4_096
NS_PER_MS = 1_000_000


class SwitchExecutor:
    """Runs one task per open switch.

    Args:
        agent_epoch: as raised by this start. closed: called with each switch that is over; returns
            when its close is durable.
    """

    def __init__(
        self,
        journal: Journal,
        links: NodeLinks,
        fleet: AsicFleet,
        clock: Clock,
        agent_epoch: int,
        closed: Callable[[Switch], Awaitable[None]],
    ) -> None:
        self._journal = journal
        self._links = links
        self._fleet = fleet
        self._clock = clock
        self._agent_epoch = agent_epoch
        self._closed = closed
        self._group: asyncio.TaskGroup | None = None
        self._early: list[Switch] = []
        self.open: dict[str, Switch] = {}
        self.held: dict[str, Switch] = {}

    def start(self, switch: Switch) -> None:
        """Begin or resume a switch whose intent is durable; it waits for ``run``."""
        self.open[switch.switch_id] = switch
        if self._group is None:
            self._early.append(switch)
        else:
            self._begin(self._group, switch)

    def hold(self, switch: Switch) -> None:
        """Keep a switch of a former life, open and not carried on, until it is resumed."""
        self.open[switch.switch_id] = self.held[switch.switch_id] = switch
        logger.info("switch=%s waits until the site is read", switch.switch_id)

    def resume(self, switch: Switch) -> None:
        """Carry out a held switch, as it was decided."""
        self.held.pop(switch.switch_id, None)
        way = "on" if switch.stage is Stage.FORWARD else "back: it is not known to fit"
        logger.info("switch=%s of a former life goes %s", switch.switch_id, way)
        self.start(switch)

    def room(self) -> int:
        """Give how many switches may be started now."""
        return SWITCHES_MAX - len(self.open)

    async def run(self) -> None:
        """Run until cancelled; what is then open is resumed after the next start."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            early, self._early = self._early, []
            for switch in early:
                self._begin(group, switch)
            await asyncio.Event().wait()

    def _begin(self, group: asyncio.TaskGroup, switch: Switch) -> None:
        group.create_task(self._drive(switch), name=f"switch {switch.switch_id}")

    async def _drive(self, switch: Switch) -> None:
        switch, effects = step(switch, Begun(), self._now_ns())
        while switch.stage is not Stage.CLOSED:
            asks = [effect for effect in effects if isinstance(effect, Ask)]
            assert asks, "an open switch always asks for something"
            self.open[switch.switch_id] = switch
            began_ns = self._now_ns()
            said = await self._phase(switch, asks[0])
            switch, effects = hear(switch, asks[0], said, began_ns, self._now_ns())
        await self._closed(switch)
        self.open.pop(switch.switch_id, None)
        self._log(switch)

    def _log(self, switch: Switch) -> None:
        """Say in one line what a switch came to and what it took, to its durable end."""
        ends = [device.status.value for device in switch.devices]
        logger.info(
            "switch=%s from=%s to=%s devices=%d %s took_us=%d engine_us=%d phases=%s",
            switch.switch_id,
            switch.devices[0].from_activity.value,
            switch.to_activity.value,
            len(ends),
            " ".join(f"{name}={ends.count(name)}" for name in dict.fromkeys(ends)),
            max(self._now_ns() - switch.opened_ns, 0) // 1_000,
            max(device.engine_us for device in switch.devices),
            ",".join(f"{span.phase.value}:{span.took_us}" for span in switch.spans),
        )

    async def _phase(self, switch: Switch, ask: Ask) -> tuple[Said, ...]:
        if switch.kind is DeviceKind.ASIC:
            asks = self._asks_of_fleet(switch, ask)
        else:
            asks = self._asks_of_nodes(switch, ask)
        if len(asks) == 1 and not switch.spans:
            return (await asks[0],)  # nothing is to be written beside it
        async with asyncio.TaskGroup() as group:
            if switch.spans:
                group.create_task(self._write_note(switch), name=f"note {switch.switch_id}")
            tasks = [group.create_task(one, name=f"ask {switch.switch_id}") for one in asks]
        return tuple(task.result() for task in tasks)

    async def _write_note(self, switch: Switch) -> None:
        row = SwitchRow(switch_id=switch.switch_id, body=encode_switch(switch), closed=False)
        await self._journal.commit(CommitBatch(switches=(row,), sync=False))

    def _asks_of_nodes(self, switch: Switch, ask: Ask) -> list[Coroutine[Any, Any, Said]]:
        by_node: dict[str, list[SwitchDevice]] = {}
        for device in ask.devices:
            by_node.setdefault(device.node_id or "", []).append(device)
        return [
            self._ask_node(switch, ask, node_id, tuple(devices))
            for node_id, devices in by_node.items()
        ]

    async def _ask_node(
        self, switch: Switch, ask: Ask, node_id: str, devices: tuple[SwitchDevice, ...]
    ) -> Said:
        request = PhaseDo(
            agent_epoch=self._agent_epoch,
            switch_id=switch.switch_id,
            phase=ask.phase,
            deadline_ms=_ms(ask.deadline_s),
            then=tuple(
                NextPhase(phase=one.phase, deadline_ms=_ms(one.deadline_s)) for one in ask.then
            ),
            steps=tuple(
                DeviceStep(
                    device_id=device.device_id,
                    from_activity=device.from_activity,
                    to_activity=switch.to_activity,
                    work=device.work,
                )
                for device in devices
            ),
        )
        undoing = ask.phase in (Phase.ROLLBACK, Phase.QUARANTINE)
        began_ns, lost = self._now_ns(), False
        while True:
            reached = self._links.connected(node_id)
            try:
                async with asyncio.timeout(request.walk_ms / 1_000 + GRACE_S):
                    return Said((await self._links.do(node_id, request)).walk, lost)
            except TimeoutError:
                return Said((), lost=True)
            except PermissionError:
                return Said((), lost)  # refused for good, e.g. a newer agent owns the node
            except ConnectionError:
                lost = lost or reached
            # What never reached the node need not be waited for any longer than its first phase.
            limit_ms = request.walk_ms if lost else request.deadline_ms
            ends_ns = None if undoing else began_ns + limit_ms * NS_PER_MS
            if not await self._reconnected(node_id, ends_ns):
                return Said((), lost)

    async def _reconnected(self, node_id: str, ends_ns: int | None) -> bool:
        """Wait until a node can be asked again; False: not up to ``ends_ns``."""
        while True:
            if ends_ns is not None and self._now_ns() >= ends_ns:
                return False
            # A link that is up and still refuses must not be asked without a pause.
            await asyncio.sleep(RECONNECT_POLL_S)
            if self._links.connected(node_id):
                return True

    def _asks_of_fleet(self, switch: Switch, ask: Ask) -> list[Coroutine[Any, Any, Said]]:
        actions: dict[AsicAction | ModePoint, list[str]] = {}
        for device in ask.devices:
            chosen = _mode_of if switch.mode else _action_of
            action: AsicAction | ModePoint | None = chosen(switch, ask, device)
            if action is not None:
                actions.setdefault(action, []).append(device.device_id)
        return [
            self._ask_action(switch, ask, action, tuple(device_ids))
            for action, device_ids in actions.items()
        ]

    async def _ask_action(
        self,
        switch: Switch,
        ask: Ask,
        action: AsicAction | ModePoint,
        device_ids: tuple[str, ...],
    ) -> Said:
        if ask.phase is Phase.QUARANTINE:
            # A miner that obeys nothing is made safe by hand; it counts as nameplate.
            return Said(())
        key = (switch.switch_id, ask.phase.value)
        try:
            async with asyncio.timeout(ask.deadline_s + GRACE_S):
                if isinstance(action, ModePoint):
                    asked = self._fleet.set_mode(*key, action, device_ids, ask.deadline_s)
                else:
                    asked = self._fleet.apply(*key, action, device_ids, ask.deadline_s)
                outcomes = await asked
        except (TimeoutError, ConnectionError, PermissionError):
            return Said(())
        told = tuple(
            DeviceOutcome(
                device_id=row.device_id,
                status="done" if row.state is OutcomeState.CONFIRMED else row.state.value,
                code=row.code,
                detail=row.detail[:2_000],
            )
            for row in outcomes
        )
        return Said((PhaseEnd(phase=ask.phase, outcomes=told),))

    def _now_ns(self) -> int:
        return self._clock.boottime_ns()


def _action_of(switch: Switch, ask: Ask, device: SwitchDevice) -> AsicAction:
    entered = switch.to_activity if ask.phase is Phase.ACTIVATE else device.from_activity
    return AsicAction.MINE if entered is Activity.MINE else AsicAction.CURTAIL


def _mode_of(switch: Switch, ask: Ask, device: SwitchDevice) -> ModePoint | None:
    return switch.mode if ask.phase is Phase.ACTIVATE else device.from_mode


def _ms(seconds: float) -> int:
    return max(int(seconds * 1_000), 1)
