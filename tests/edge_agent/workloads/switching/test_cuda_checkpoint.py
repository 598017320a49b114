"""The driver checkpoint client through the real ctypes path, on a stand-in of libcuda.so.1.

No GPU was at hand: these tests prove the client against the documented state machine, not against
a driver.
"""

import asyncio
import ctypes
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.gpu import arena
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
from edge_agent.workloads.switching.cuda_checkpoint import (
    NOT_READY,
    NOT_SUPPORTED,
    CudaCheckpointer,
    ProcessState,
)
from edge_agent.workloads.switching.cuda_child import LockArgs
from tests.edge_agent.workloads.switching.fake_cuda import FakeCuda, build

PID = 4_242
OUT_OF_MEMORY, UNKNOWN_ERROR = 2, 999


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(tmp_path)
    monkeypatch.setenv("HCP_FAKE_CUDA", str(fake.path))
    fake.add(PID)
    return fake


@pytest.fixture
async def client(library: Path, cuda: FakeCuda) -> AsyncIterator[CudaCheckpointer]:
    assert cuda.inits == 0
    made = CudaCheckpointer(str(library))
    yield made
    await made.close()


async def test_a_process_goes_and_comes_by_one_child(
    client: CudaCheckpointer, cuda: FakeCuda
) -> None:
    for _ in range(3):
        out = await client.suspend(PID, 5.0)
        assert cuda.get(PID, "state") == ProcessState.CHECKPOINTED
        assert out.idle_ns is not None
        assert out.idle_ns >= out.acked_ns
        back = await client.resume(PID, 5.0)
        assert await client.state(PID, 5.0) is ProcessState.RUNNING
        assert back.evidence == "driver says running"
    assert (client.starts, cuda.inits, client.version) == (1, 1, 12_080)


async def test_asking_again_is_the_same_as_asking_once(
    client: CudaCheckpointer, cuda: FakeCuda
) -> None:
    await client.suspend(PID, 5.0)
    await client.suspend(PID, 5.0)
    await client.resume(PID, 5.0)
    await client.resume(PID, 5.0)
    cuda.set(PID, state=ProcessState.LOCKED)  # an earlier one was cut off between its steps
    await client.suspend(PID, 5.0)
    assert cuda.get(PID, "state") == ProcessState.CHECKPOINTED


async def test_a_lock_that_times_out_leaves_the_process_running(
    client: CudaCheckpointer, cuda: FakeCuda
) -> None:
    cuda.set(PID, busy_ms=10_000)
    with pytest.raises(DriverRefusedError) as caught:
        await client.suspend(PID, 5.0, lock_s=0.02)
    assert caught.value.answer_code == "lock_timeout"
    assert cuda.get(PID, "state") == ProcessState.RUNNING
    cuda.set(PID, busy_ms=1)
    await client.suspend(PID, 5.0, lock_s=0.5)


async def test_a_checkpoint_that_fails_lets_the_process_run_on(
    client: CudaCheckpointer, cuda: FakeCuda
) -> None:
    cuda.set(PID, checkpoint_code=OUT_OF_MEMORY)
    with pytest.raises(DriverRefusedError) as caught:
        await client.suspend(PID, 5.0)
    assert caught.value.answer_code == "checkpoint_failed"
    assert cuda.get(PID, "state") == ProcessState.RUNNING


async def test_what_a_driver_cannot_do_at_all_has_a_code_of_its_own(
    client: CudaCheckpointer, cuda: FakeCuda
) -> None:
    cuda.set(PID, checkpoint_code=801)  # CUDA_ERROR_NOT_SUPPORTED
    with pytest.raises(DriverRefusedError) as refused:
        await client.suspend(PID, 5.0)
    assert refused.value.answer_code == "not_supported"
    assert await client.state(PID, 5.0) is ProcessState.RUNNING


@pytest.mark.parametrize("where", ["checkpoint_code", "restore_code"])
async def test_a_failure_that_loses_the_process_is_said_as_such(
    client: CudaCheckpointer, cuda: FakeCuda, where: str
) -> None:
    if where == "restore_code":
        await client.suspend(PID, 5.0)
    cuda.set(PID, **{where: UNKNOWN_ERROR, "lose": 1})
    for _ in range(2):
        with pytest.raises(DriverRefusedError) as caught:
            await (client.resume if where == "restore_code" else client.suspend)(PID, 5.0)
        assert caught.value.answer_code == "process_lost"
    assert await client.state(PID, 5.0) is ProcessState.FAILED


async def test_a_restore_into_a_full_gpu_may_be_tried_again(
    client: CudaCheckpointer, cuda: FakeCuda
) -> None:
    await client.suspend(PID, 5.0)
    cuda.set(PID, restore_code=OUT_OF_MEMORY)
    with pytest.raises(DriverRefusedError) as caught:
        await client.resume(PID, 5.0)
    assert caught.value.answer_code == "restore_failed"
    assert cuda.get(PID, "state") == ProcessState.CHECKPOINTED
    cuda.set(PID, restore_code=0)
    await client.resume(PID, 5.0)
    assert cuda.get(PID, "state") == ProcessState.RUNNING


async def test_a_hanging_driver_is_cut_off_and_asked_by_a_new_child(
    client: CudaCheckpointer, cuda: FakeCuda
) -> None:
    await client.state(PID, 5.0)
    cuda.set(PID, hang_ms=60_000)
    with pytest.raises(DriverUnavailableError):
        await client.suspend(PID, 0.1)
    cuda.set(PID, hang_ms=0)
    await client.suspend(PID, 5.0)
    assert client.starts == 2


async def test_a_child_that_no_signal_ends_is_left_behind(
    client: CudaCheckpointer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await client.state(PID, 5.0)
    child = client._child
    assert child is not None
    monkeypatch.setattr("edge_agent.workloads.switching.cuda_checkpoint.GONE_S", 0.05)
    with monkeypatch.context() as stuck:  # as one that waits in the kernel's driver
        stuck.setattr(child, "kill", lambda: None)
        async with asyncio.timeout(5.0):
            await client.close()
    assert "hangs in the driver" in caplog.text
    child.kill()
    await child.wait()


async def test_a_killed_child_is_unavailable_once_and_then_replaced(
    client: CudaCheckpointer, cuda: FakeCuda
) -> None:
    await client.state(PID, 5.0)
    child = client._child
    assert child is not None
    child.kill()
    await child.wait()
    with pytest.raises(DriverUnavailableError):
        await client.state(PID, 5.0)
    assert await client.state(PID, 5.0) is ProcessState.RUNNING
    assert cuda.inits == 2


async def test_a_process_left_locked_is_let_run(client: CudaCheckpointer, cuda: FakeCuda) -> None:
    cuda.set(PID, state=ProcessState.LOCKED)
    await client.resume(PID, 5.0)
    assert cuda.get(PID, "state") == ProcessState.RUNNING


async def test_unknown_processes_and_states_are_refused(
    client: CudaCheckpointer, cuda: FakeCuda
) -> None:
    with pytest.raises(DriverRefusedError) as caught:
        await client.suspend(1, 5.0)
    assert caught.value.answer_code == "no_process"
    cuda.set(PID, state=9)
    with pytest.raises(DriverRefusedError) as caught:
        await client.suspend(PID, 5.0)
    assert caught.value.answer_code == "bad_state"


async def test_calls_of_several_tasks_go_one_after_another(
    client: CudaCheckpointer, cuda: FakeCuda
) -> None:
    cuda.add(PID + 1)
    async with asyncio.TaskGroup() as group:
        for pid in (PID, PID + 1):
            group.create_task(client.suspend(pid, 5.0), name=f"suspend {pid}")
    assert [cuda.get(pid, "state") for pid in (PID, PID + 1)] == [ProcessState.CHECKPOINTED] * 2
    assert client.starts == 1


async def test_an_old_driver_a_missing_one_and_a_refused_start_are_told_apart(
    tmp_path: Path, cuda: FakeCuda, library: Path
) -> None:
    (tmp_path / "old").mkdir()
    old = build(tmp_path / "old", "-DOLD_DRIVER")
    cases = [
        (str(old), 0, "no_checkpoint_api"),
        (str(tmp_path / "none.so"), 0, "no_driver"),
        (str(library), 100, "cuda_init"),
    ]
    for path, init_code, code in cases:
        cuda.refuse_init(init_code)
        client = CudaCheckpointer(path)
        with pytest.raises(DriverRefusedError) as caught:
            await client.suspend(PID, 5.0)
        assert caught.value.answer_code == code
        await client.close()


# --- against the header of CUDA, where it is installed -------------------------------------------

_ASK = r"""
#include <cuda.h>
#include <stddef.h>
#include <stdio.h>
#define SIZE(t) printf("%zu ", sizeof(t))
#define PLACE(t, f) printf("%zu ", offsetof(t, f))
int main(void) {
    SIZE(CUcheckpointLockArgs); PLACE(CUcheckpointLockArgs, reserved0);
    PLACE(CUcheckpointLockArgs, reserved1);
    SIZE(CUmemAllocationProp); PLACE(CUmemAllocationProp, location);
    PLACE(CUmemAllocationProp, win32HandleMetaData); PLACE(CUmemAllocationProp, allocFlags);
    SIZE(CUmemAccessDesc); PLACE(CUmemAccessDesc, flags);
    printf("%d %d %d %d ", CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_LOCATION_TYPE_DEVICE,
           CU_MEM_ACCESS_FLAGS_PROT_READWRITE, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    printf("%d %d %d %d ", CU_PROCESS_STATE_RUNNING, CU_PROCESS_STATE_LOCKED,
           CU_PROCESS_STATE_CHECKPOINTED, CU_PROCESS_STATE_FAILED);
    printf("%d %d", CUDA_ERROR_NOT_READY, CUDA_ERROR_NOT_SUPPORTED);
    return 0;
}
"""


def test_structures_and_numbers_are_those_of_the_header(tmp_path: Path) -> None:
    compiler, header = shutil.which("cc"), Path("/usr/local/cuda/include/cuda.h")
    if compiler is None or not header.exists():
        pytest.skip("no C compiler, or no cuda.h of 12.8 or later in /usr/local/cuda/include")
    source, program = tmp_path / "ask.c", tmp_path / "ask"
    source.write_text(_ASK)
    build_ = [compiler, f"-I{header.parent}", "-o", str(program), str(source)]
    subprocess.run(build_, check=True, timeout=60)
    done = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=60)
    properties, access = arena._Properties, arena._Access
    assert [int(word) for word in done.stdout.split()] == [
        *(ctypes.sizeof(LockArgs), LockArgs.reserved0.offset, LockArgs.reserved1.offset),
        *(ctypes.sizeof(properties), properties.location.offset, properties.win32.offset),
        *(properties.flags.offset, ctypes.sizeof(access), access.flags.offset),
        *(arena._PINNED, arena._DEVICE, arena._READ_WRITE, arena._MINIMUM),
        *ProcessState,
        *(NOT_READY, NOT_SUPPORTED),
    ]
