"""Carries out switches: asks nodes and the ASIC fleet phase by phase, closes each durably.

The intent is durable before ``start`` is called; the close is one commit. Phase notes ride unsynced
beside the phase they announce: a lost one only repeats its effect with the same (switch_id, phase).
A node that is away is waited for: forward phases within their deadline, undoing without one,
because what it holds is its to say. Its device counts with its nameplate meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable

from edge_agent.core.curve import ModePoint
from edge_agent.core.site import NS_PER_S
from edge_agent.core.switching import (
    Answered,
    Ask,
    Begun,
    Expired,
    Stage,
    Switch,
    SwitchDevice,
    encode_switch,
    step,
)
from edge_agent.devices.ports import AsicAction, AsicFleet, OutcomeState
from edge_agent.ports import Clock, CommitBatch, NodeLinks, SwitchRow
from edge_agent.services.journal import Journal
from protocol.node import DeviceOutcome, DeviceStep, Phase, PhaseDo
from protocol.resource import Activity, DeviceKind

# The answer of a phase may come this much after the node's own deadline.
GRACE_S = 2.0
RECONNECT_POLL_S = 0.2
SWITCHES_MAX = 4_096


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
        self._queue: asyncio.Queue[Switch] = asyncio.Queue(SWITCHES_MAX)
        self.open: dict[str, Switch] = {}

    def start(self, switch: Switch) -> None:
        """Begin or resume a switch whose intent is durable."""
        self.open[switch.switch_id] = switch
        self._queue.put_nowait(switch)

    def room(self) -> int:
        """Give how many switches may be started now."""
        return SWITCHES_MAX - len(self.open)

    async def run(self) -> None:
        """Run until cancelled; what is then open is resumed after the next start."""
        async with asyncio.TaskGroup() as group:
            while True:
                switch = await self._queue.get()
                group.create_task(self._drive(switch), name=f"switch {switch.switch_id}")

    async def _drive(self, switch: Switch) -> None:
        switch, effects = step(switch, Begun(), self._now_ns())
        while switch.stage is not Stage.CLOSED:
            asks = [effect for effect in effects if isinstance(effect, Ask)]
            assert asks, "an open switch always asks for something"
            self.open[switch.switch_id] = switch
            outcomes = await self._phase(switch, asks[0])
            phase = asks[0].phase
            switch, effects = step(switch, Answered(phase, outcomes), self._now_ns())
            if not effects and switch.stage is not Stage.CLOSED:
                switch, effects = step(switch, Expired(phase), self._now_ns())
        await self._closed(switch)
        self.open.pop(switch.switch_id, None)

    async def _phase(self, switch: Switch, ask: Ask) -> tuple[DeviceOutcome, ...]:
        async with asyncio.TaskGroup() as group:
            if switch.spans:
                group.create_task(self._write_note(switch), name=f"note {switch.switch_id}")
            if switch.kind is DeviceKind.ASIC:
                tasks = self._ask_fleet(switch, ask, group)
            else:
                tasks = self._ask_nodes(switch, ask, group)
        return tuple(outcome for task in tasks for outcome in task.result())

    async def _write_note(self, switch: Switch) -> None:
        row = SwitchRow(switch_id=switch.switch_id, body=encode_switch(switch), closed=False)
        await self._journal.commit(CommitBatch(switches=(row,), sync=False))

    def _ask_nodes(
        self, switch: Switch, ask: Ask, group: asyncio.TaskGroup
    ) -> list[asyncio.Task[tuple[DeviceOutcome, ...]]]:
        by_node: dict[str, list[SwitchDevice]] = {}
        for device in ask.devices:
            by_node.setdefault(device.node_id or "", []).append(device)
        return [
            group.create_task(
                self._ask_node(switch, ask, node_id, tuple(devices)),
                name=f"{ask.phase.value} {switch.switch_id} {node_id}",
            )
            for node_id, devices in by_node.items()
        ]

    async def _ask_node(
        self, switch: Switch, ask: Ask, node_id: str, devices: tuple[SwitchDevice, ...]
    ) -> tuple[DeviceOutcome, ...]:
        request = PhaseDo(
            agent_epoch=self._agent_epoch,
            switch_id=switch.switch_id,
            phase=ask.phase,
            deadline_ms=max(int(ask.deadline_s * 1_000), 1),
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
        ends_ns = self._now_ns() + int(ask.deadline_s * NS_PER_S)
        while True:
            try:
                async with asyncio.timeout(ask.deadline_s + GRACE_S):
                    return (await self._links.do(node_id, request)).outcomes
            except TimeoutError:
                return ()
            except PermissionError:
                return ()  # refused for good, e.g. a newer agent owns the node
            except ConnectionError:
                while not self._links.connected(node_id):
                    if not undoing and self._now_ns() >= ends_ns:
                        return ()
                    await asyncio.sleep(RECONNECT_POLL_S)
            if not undoing and self._now_ns() >= ends_ns:
                return ()
            # A link that is up and still refuses must not be asked without a pause.
            await asyncio.sleep(RECONNECT_POLL_S)

    def _ask_fleet(
        self, switch: Switch, ask: Ask, group: asyncio.TaskGroup
    ) -> list[asyncio.Task[tuple[DeviceOutcome, ...]]]:
        if switch.mode is not None:
            return self._ask_modes(switch, ask, group)
        actions: dict[AsicAction, list[str]] = {}
        for device in ask.devices:
            entered = switch.to_activity if ask.phase is Phase.ACTIVATE else device.from_activity
            action = AsicAction.MINE if entered is Activity.MINE else AsicAction.CURTAIL
            actions.setdefault(action, []).append(device.device_id)
        return [
            group.create_task(
                self._ask_action(switch, ask, action, tuple(device_ids)),
                name=f"{ask.phase.value} {switch.switch_id} {action.value}",
            )
            for action, device_ids in actions.items()
        ]

    def _ask_modes(
        self, switch: Switch, ask: Ask, group: asyncio.TaskGroup
    ) -> list[asyncio.Task[tuple[DeviceOutcome, ...]]]:
        modes: dict[ModePoint, list[str]] = {}
        for device in ask.devices:
            mode = switch.mode if ask.phase is Phase.ACTIVATE else device.from_mode
            if mode is not None:
                modes.setdefault(mode, []).append(device.device_id)
        return [
            group.create_task(
                self._ask_action(switch, ask, mode, tuple(device_ids)),
                name=f"{ask.phase.value} {switch.switch_id} {mode.mode}",
            )
            for mode, device_ids in modes.items()
        ]

    async def _ask_action(
        self,
        switch: Switch,
        ask: Ask,
        action: AsicAction | ModePoint,
        device_ids: tuple[str, ...],
    ) -> tuple[DeviceOutcome, ...]:
        if ask.phase is Phase.QUARANTINE:
            return ()  # a miner that obeys nothing is made safe by hand; it counts as nameplate
        key = (switch.switch_id, ask.phase.value)
        try:
            async with asyncio.timeout(ask.deadline_s + GRACE_S):
                if isinstance(action, ModePoint):
                    asked = self._fleet.set_mode(*key, action, device_ids, ask.deadline_s)
                else:
                    asked = self._fleet.apply(*key, action, device_ids, ask.deadline_s)
                outcomes = await asked
        except (TimeoutError, ConnectionError, PermissionError):
            return ()
        return tuple(
            DeviceOutcome(
                device_id=row.device_id,
                status="done" if row.state is OutcomeState.CONFIRMED else row.state.value,
                code=row.code,
                detail=row.detail[:2_000],
            )
            for row in outcomes
        )

    def _now_ns(self) -> int:
        return self._clock.boottime_ns()
