"""What a walk on one device will ask its host for next, so that the host goes on by itself.

The node carries out each phase as ever: its deadline, its evidence, its result. Only the acts of
the phases to follow are with the host already, and their answers on their way. A walk of several
devices asks for nothing ahead: none of them goes on before all have done a phase.
"""

from collections import deque
from collections.abc import Iterable

from edge_agent.node import phases
from edge_agent.node.executor import ActExecutor, calls_of
from edge_agent.node.memory import NodeMemory
from edge_agent.node.state import MeterState
from edge_agent.node.store import NodeChange
from edge_agent.workloads.ports import Order
from protocol.node import DeviceStep, Phase, PhaseDo


class Ahead:
    """The acts of one walk.

    Args:
        request: of one device and several phases. executor: of the acts.
        memory: knows which instances are registered.
    """

    def __init__(self, request: PhaseDo, executor: ActExecutor, memory: NodeMemory) -> None:
        self._executor = executor
        self._memory = memory
        self._left = deque(one.phase for one in request.walk)
        self._order: Order | None = None

    def begin(self, gpu: str, phase: Phase, step: DeviceStep, view: phases.DeviceView) -> bool:
        """Ask for the acts of a phase that begins and of those after it; False: that was done."""
        if self._order is not None:
            return False
        while self._left and self._left[0] is not phase:
            self._left.popleft()
        self._order = self._executor.order(gpu)
        self.go_on(gpu, step, view)
        return True

    def go_on(self, gpu: str, step: DeviceStep, view: phases.DeviceView) -> None:
        """Ask for what had to wait until its instance was registered.

        No host may know an instance that its node would not know of after a restart.
        """
        if self._order is None:
            return
        acts: list[phases.Act] = []
        while self._left:
            of_phase = phases.acts(self._left[0], step, view)
            if any(self._is_early(act) for act in of_phase):
                break
            acts += of_phase
            self._left.popleft()
        self._order.add(tuple(call for act in acts for call in calls_of(gpu, act)))

    def end(self) -> None:
        """Have the host begin with no more of it."""
        if self._order is not None:
            self._order.end()

    def _is_early(self, act: phases.Act) -> bool:
        return isinstance(act, phases.Prepare) and (act.work.instance_id not in self._memory.meters)


async def register(memory: NodeMemory, steps: Iterable[DeviceStep]) -> None:
    """Know every instance before its host does: no meter may run that nobody would read.

    Raises:
        StorageError: the disk.
    """
    meters = tuple(
        MeterState(device_id=step.device_id, work=step.work)
        for step in steps
        if step.work is not None and step.work.instance_id not in memory.meters
    )
    if meters:
        # Unsynced: it survives this process, and instances do not survive their host.
        await memory.commit(NodeChange(meters=meters), sync=False)
