"""The node holds a first output against what it must be, of a real host and of a simulated one."""

from __future__ import annotations

from hashlib import sha256

import pytest

from edge_agent.node import phases
from edge_agent.node.errors import EvidenceError
from edge_agent.node.executor import ActExecutor
from edge_agent.node.keys import KeyDesk
from edge_agent.workloads.fake import FakeDriver
from edge_agent.workloads.ports import CanaryOutput, HostGpu, HostInfo, Mined


class _Driver(FakeDriver):
    """Says what the test has it say."""

    def __init__(self, said: CanaryOutput) -> None:
        self.said = said

    def info(self) -> HostInfo:
        gpus = (HostGpu(gpu="gpu0", model="H100"),)
        return HostInfo(host_id="h", process_id="p", boot_id="b", gpus=gpus)

    async def canary(self, gpu: str, instance_id: str, prompt: str) -> CanaryOutput:
        return self.said


RIGHT = sha256(b"four").hexdigest()
SIMULATED = sha256(b"canary:i1H100").hexdigest()


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (CanaryOutput(output="four", expected_sha256=RIGHT), True),
        (CanaryOutput(output="five", expected_sha256=RIGHT), False),
        (CanaryOutput(output="four", expected_sha256=""), False),
        (CanaryOutput(output=SIMULATED), True),
        (CanaryOutput(output="four"), False),
    ],
)
async def test_a_first_output_is_checked(said: CanaryOutput, right: bool) -> None:  # noqa: FBT001 - a case
    driver = _Driver(said)
    executor = ActExecutor(driver, KeyDesk(driver))
    if right:
        await executor.run("gpu0", phases.CheckCanary("i1"))
        return
    with pytest.raises(EvidenceError) as caught:
        await executor.run("gpu0", phases.CheckCanary("i1"))
    assert caught.value.reason == "canary_mismatch"


class _Counter(FakeDriver):
    """A miner whose counter the test sets; ``asked`` counts."""

    def __init__(self, *hashes: int) -> None:
        self.hashes = list(hashes)
        self.saved = [""] * len(hashes)
        self.asked = 0

    async def mine(self, gpu: str, *, on: bool) -> Mined:
        del gpu, on
        self.asked += 1
        return Mined(hashes=self.hashes.pop(0), saved=self.saved.pop(0))


@pytest.mark.parametrize(
    ("hashes", "looks"),
    [
        ((100, 100, 101, 102), 4),  # what it did since it stood is enough
        ((100, 100, 100, 100, 101), 5),  # it says that it works, and has done nothing yet
        ((100, 100, 7, 7, 8), 5),  # another process, which counts anew
    ],
)
async def test_a_miner_works_when_it_has_done_something_since_it_stood(
    hashes: tuple[int, ...], looks: int
) -> None:
    driver = _Counter(*hashes)
    executor = ActExecutor(driver, KeyDesk(driver))
    for act in (phases.MineOff(), phases.MineOn(), phases.CheckHashing()):
        await executor.run("gpu0", act)
    assert driver.asked == looks


async def test_what_became_of_a_saved_state_is_told_until_the_next_switch() -> None:
    driver = _Counter(100, 100, 1, 2)
    driver.saved = ["kept", "kept", "used", "used"]
    executor = ActExecutor(driver, KeyDesk(driver))
    await executor.run("gpu0", phases.MineOff())
    assert executor.saved("gpu0") == "kept"
    executor.begin("gpu0")
    assert executor.saved("gpu0") == ""
    await executor.run("gpu0", phases.MineOn())
    assert (executor.saved("gpu0"), executor.saved("gpu1")) == ("used", "")
