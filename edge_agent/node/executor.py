"""Carries out acts on the workload driver and demands evidence of their effect."""

import asyncio
from hashlib import sha256

from edge_agent.node import phases
from edge_agent.node.errors import EvidenceError
from edge_agent.node.keys import KeyDesk
from edge_agent.workloads import calls
from edge_agent.workloads.errors import DriverRefusedError
from edge_agent.workloads.ports import HostCall, InstanceSpec, Moved, Order, WorkloadDriver
from protocol.node import LeaseWork

HOST_LOOK_S = 0.1
_HASH_LOOK_S_MIN = 0.002
_HASH_LOOK_S_MAX = 0.1


class ActExecutor:
    """Turns acts into driver calls; every wait is bounded by the driver and the phase's deadline.

    Args:
        driver: of the node's workload host. keys: told to the host before a gate opens.
    """

    def __init__(self, driver: WorkloadDriver, keys: KeyDesk) -> None:
        self._driver = driver
        self._keys = keys
        self._hashes: dict[str, int] = {}
        self._strategies: dict[str, str] = {}
        self._moved_mib: dict[str, int] = {}
        self._stood: dict[str, int] = {}
        self._saved: dict[str, str] = {}

    def host_up(self) -> bool:
        """Tell whether the workload host is there to be asked."""
        return self._driver.info() is not None

    def begin(self, gpu: str) -> None:
        """Forget how a GPU was switched before: another switch begins."""
        self._strategies.pop(gpu, None)
        self._moved_mib.pop(gpu, None)
        self._saved.pop(gpu, None)

    def take_moved(self, gpu: str) -> int | None:
        """Give the MiB that acts on a GPU moved since this was last asked; None: not told."""
        return self._moved_mib.pop(gpu, None)

    def strategy(self, gpu: str) -> str:
        """Give the way in which the host switched a GPU, or would; empty: not told."""
        if told := self._strategies.get(gpu):
            return told
        offered = self._driver.capabilities().strategies
        return offered[0].replace("_", "-") if len(offered) == 1 else ""

    def saved(self, gpu: str) -> str:
        """Give what became of its miner's saved state in this switch; empty: not told."""
        return self._saved.get(gpu, "")

    async def wait_for_host(self) -> None:
        """Wait until the workload host is there; the caller bounds the wait."""
        while not self.host_up():  # noqa: ASYNC110 - a driver has no event to wait for
            await asyncio.sleep(HOST_LOOK_S)

    def order(self, gpu: str) -> Order:
        """Begin to have acts of a GPU done ahead; see ``calls_of``."""
        return self._driver.order(gpu)

    async def run(self, gpu: str, act: phases.Act) -> None:
        """Carry out one act.

        Raises:
            DriverRefusedError: it did not happen. DriverUnavailableError: unknown.
            EvidenceError: its effect could not be seen.
        """
        match act:
            case phases.MineOn():
                now = await self._mine(gpu, on=True)
                # What it did since it stood still is evidence; a new process counts anew.
                self._hashes[gpu] = min(self._stood.pop(gpu, now), now)
            case phases.MineOff():
                await self._mine_off(gpu)
            case phases.Prepare(work):
                await self._driver.prepare(gpu, _spec(work))
            case phases.Activate(instance_id):
                self._told(gpu, await self._driver.activate(gpu, instance_id))
            case phases.CheckCanary(instance_id):
                await self._check_canary(gpu, instance_id)
            case phases.CheckHashing():
                await self._check_hashing(gpu)
            case phases.OpenGate(instance_id):
                await self._keys.tell()
                state = await self._driver.gate(gpu, instance_id, is_open=True)
                if not state.open and state.served_ns == 0:
                    raise EvidenceError("gate_shut", f"the gate of {instance_id} did not open")
            case phases.ShutGate(instance_id):
                await self._shut(gpu, instance_id)
            case phases.Stop(instance_id):
                try:
                    self._told(gpu, await self._driver.stop(gpu, instance_id))
                except DriverRefusedError as exc:
                    _accept_absence(exc)

    def _told(self, gpu: str, moved: Moved) -> None:
        if moved.strategy:
            self._strategies[gpu] = moved.strategy
            self._moved_mib[gpu] = self._moved_mib.get(gpu, 0) + moved.moved_mib

    async def _mine(self, gpu: str, *, on: bool) -> int:
        """Start or stop the miner; give its hash counter, and note what else is told."""
        mined = await self._driver.mine(gpu, on=on)
        if mined.saved:
            self._saved[gpu] = mined.saved
        return mined.hashes

    async def _mine_off(self, gpu: str) -> None:
        self._hashes.pop(gpu, None)
        stood = await self._mine(gpu, on=False)
        # An acknowledgement is no evidence: the counter itself must stand still.
        if await self._mine(gpu, on=False) != stood:
            raise EvidenceError("still_hashing", f"the hash counter of {gpu} moves on")
        self._stood[gpu] = stood

    async def _check_hashing(self, gpu: str) -> None:
        before = self._hashes.pop(gpu, None)
        if before is None:
            before = await self._mine(gpu, on=True)
        look_s = _HASH_LOOK_S_MIN
        while (now := await self._mine(gpu, on=True)) <= before:
            before = min(before, now)  # a new host process counts anew
            await asyncio.sleep(look_s)
            look_s = min(look_s * 2, _HASH_LOOK_S_MAX)

    async def _check_canary(self, gpu: str, instance_id: str) -> None:
        prompt = _prompt(instance_id)
        answer = await self._driver.canary(gpu, instance_id, prompt)
        if answer.expected_sha256 is not None:
            if sha256(answer.output.encode()).hexdigest() != answer.expected_sha256:
                raise EvidenceError("canary_mismatch", f"{instance_id} gave a wrong first output")
            return
        info = self._driver.info()
        models = {} if info is None else {one.gpu: one.model for one in info.gpus}
        model = models.get(gpu)
        if model is None:
            raise EvidenceError("no_model", f"the host does not name the model of {gpu}")
        if answer.output != sha256((prompt + model).encode()).hexdigest():
            raise EvidenceError("canary_mismatch", f"{instance_id} gave a wrong first output")

    async def _shut(self, gpu: str, instance_id: str) -> None:
        try:
            state = await self._driver.gate(gpu, instance_id, is_open=False)
        except DriverRefusedError as exc:
            _accept_absence(exc)
            return
        if state.open:
            raise EvidenceError("gate_open", f"the gate of {instance_id} did not shut")


def calls_of(gpu: str, act: phases.Act) -> tuple[HostCall, ...]:
    """Give what an act asks the host for first, whatever comes of it."""
    match act:
        case phases.MineOff():
            return (calls.mine(gpu, on=False), calls.mine(gpu, on=False))
        case phases.MineOn() | phases.CheckHashing():
            return (calls.mine(gpu, on=True),)
        case phases.Prepare(work):
            return (calls.prepare(gpu, _spec(work)),)
        case phases.Activate(instance_id):
            return (calls.activate(gpu, instance_id),)
        case phases.CheckCanary(instance_id):
            return (calls.canary(gpu, instance_id, _prompt(instance_id)),)
        case phases.OpenGate(instance_id):
            return (calls.gate(gpu, instance_id, is_open=True),)
        case phases.ShutGate(instance_id):
            return (calls.gate(gpu, instance_id, is_open=False),)
        case phases.Stop(instance_id):
            return (calls.stop(gpu, instance_id),)


def _spec(work: LeaseWork) -> InstanceSpec:
    return InstanceSpec(
        instance_id=work.instance_id,
        lease_id=work.lease_id,
        attempt=work.attempt,
        run_s=work.spec.run_s,
    )


def _prompt(instance_id: str) -> str:
    return f"canary:{instance_id}"


def _accept_absence(exc: DriverRefusedError) -> None:
    if exc.answer_code != "no_instance":
        raise exc
