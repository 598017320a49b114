"""The helper as a process, behind its socket: who may ask, what is set, and what a hang does."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from firmware_bridges.nvml.control.client import ControlClient
from firmware_bridges.nvml.control.messages import (
    ANSWER,
    LockGpuClocks,
    LockMemoryClocks,
    Reason,
    Refused,
    ResetGpuClocks,
    ResetMemoryClocks,
    SetPersistence,
    SetPowerLimit,
    pack,
)
from firmware_bridges.nvml.control.program import EXIT_GONE, EXIT_STUCK, EXIT_USAGE
from firmware_bridges.nvml.errors import ControlRefusedError, ControlUnknownError
from tests.fakes.nvml import FakeNvml

DEADLINE_S = 20.0
CARDS = """
[[card]]
card = "*"
persistence = true
power_w = 600
power_w_min = 300
power_w_max = 650
gpu_mhz_min = 210
gpu_mhz_max = 1980
memory_mhz_min = 0
memory_mhz_max = 5000
"""


class Helper:
    """A running helper."""

    def __init__(self, process: asyncio.subprocess.Process, socket: Path) -> None:
        self.process = process
        self.socket = socket
        self.client = ControlClient(socket)

    async def exit_code(self) -> int:
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()


@asynccontextmanager
async def helper(
    fake: FakeNvml, folder: Path, *, cards: str = CARDS, users: str = "", call_s: float = 5.0
) -> AsyncIterator[Helper]:
    socket, config = folder / "control.sock", folder / "gpu-control.toml"
    config.write_text(
        f'socket = "{socket}"\nusers = ["{users or os.geteuid()}"]\ncall_s = {call_s}\n{cards}'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "firmware_bridges.nvml.control.program", "--config", str(config),
        env=fake.environment(), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            # until it listens, or ends
            while (line := await process.stdout.readline()) and b"listening" not in line:
                pass
        yield Helper(process, socket)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def setting_allowed(fake: FakeNvml) -> FakeNvml:
    fake.state.setters_allowed = 1
    return fake


async def test_limits_and_persistence_are_set_again_at_start(
    setting_allowed: FakeNvml, tmp_path: Path
) -> None:
    async with helper(setting_allowed, tmp_path):
        cards = [setting_allowed.gpu(index) for index in range(4)]
        assert [(card.limit_mw, card.persistence) for card in cards] == [(600_000, 1)] * 4


async def test_the_five_settings_reach_the_card(setting_allowed: FakeNvml, tmp_path: Path) -> None:
    card, uuid = setting_allowed.gpu(1), setting_allowed.uuid(1)
    async with helper(setting_allowed, tmp_path) as running:
        apply = running.client.apply
        await apply(SetPowerLimit(uuid=uuid, power_w=450.5))
        assert card.limit_mw == 450_500
        await apply(LockGpuClocks(uuid=uuid, mhz_min=1_200, mhz_max=1_500))
        assert list(card.locked_gpu_mhz) == [1_200, 1_500]
        await apply(LockMemoryClocks(uuid=uuid, mhz_min=2_000, mhz_max=2_619))
        assert list(card.locked_memory_mhz) == [2_000, 2_619]
        await apply(ResetGpuClocks(uuid=uuid))
        await apply(ResetMemoryClocks(uuid=uuid))
        assert [*card.locked_gpu_mhz, *card.locked_memory_mhz] == [0, 0, 0, 0]
        await apply(SetPersistence(uuid=uuid, on=False))
        assert card.persistence == 0
        # the other cards are as they were
        assert setting_allowed.gpu(0).limit_mw == 600_000


@pytest.mark.parametrize("power_w", [299.0, 651.0, 9_999.0])
async def test_no_limit_outside_the_bounds_reaches_a_card(
    setting_allowed: FakeNvml, tmp_path: Path, power_w: float
) -> None:
    async with helper(setting_allowed, tmp_path) as running:
        with pytest.raises(ControlRefusedError) as refused:
            await running.client.apply(SetPowerLimit(uuid=setting_allowed.uuid(0), power_w=power_w))
        assert refused.value.reason == Reason.OUT_OF_BOUNDS
        assert setting_allowed.gpu(0).limit_mw == 600_000


async def test_the_cards_own_range_binds_where_the_file_is_wider(
    setting_allowed: FakeNvml, tmp_path: Path
) -> None:
    async with helper(setting_allowed, tmp_path) as running:
        with pytest.raises(ControlRefusedError) as refused:
            await running.client.apply(
                LockMemoryClocks(uuid=setting_allowed.uuid(0), mhz_min=0, mhz_max=3_000)
            )
        assert refused.value.reason == Reason.OUT_OF_BOUNDS
        assert "2619" in refused.value.detail


async def test_a_caller_who_is_not_named_is_refused(
    setting_allowed: FakeNvml, tmp_path: Path
) -> None:
    async with helper(setting_allowed, tmp_path, users=str(os.geteuid() + 1)) as running:
        with pytest.raises(ControlRefusedError) as refused:
            await running.client.apply(SetPowerLimit(uuid=setting_allowed.uuid(0), power_w=400.0))
        assert refused.value.reason == Reason.NOT_PERMITTED
        assert setting_allowed.gpu(0).limit_mw == 600_000


async def test_a_helper_without_rights_says_so(fake: FakeNvml, tmp_path: Path) -> None:
    async with helper(fake, tmp_path) as running:
        with pytest.raises(ControlRefusedError) as refused:
            await running.client.apply(SetPowerLimit(uuid=fake.uuid(0), power_w=400.0))
        assert refused.value.reason == Reason.HELPER_LACKS_RIGHTS
        assert fake.gpu(0).limit_mw == 700_000


async def test_a_card_that_is_unknown_or_lost_is_refused(
    setting_allowed: FakeNvml, tmp_path: Path
) -> None:
    async with helper(setting_allowed, tmp_path) as running:
        setting_allowed.gpu(2).lost = 1
        for uuid, reason in (
            ("GPU-none", Reason.CARD_UNKNOWN),
            (setting_allowed.uuid(2), Reason.CARD_LOST),
        ):
            with pytest.raises(ControlRefusedError) as refused:
                await running.client.apply(ResetGpuClocks(uuid=uuid))
            assert refused.value.reason == reason


async def test_an_error_that_does_not_tell_leaves_the_setting_unknown(
    setting_allowed: FakeNvml, tmp_path: Path
) -> None:
    async with helper(setting_allowed, tmp_path) as running:
        setting_allowed.force("nvmlDeviceSetPowerManagementLimit", 999)
        with pytest.raises(ControlUnknownError):
            await running.client.apply(SetPowerLimit(uuid=setting_allowed.uuid(0), power_w=400.0))


async def test_a_call_that_hangs_is_unknown_and_ends_the_helper(
    setting_allowed: FakeNvml, tmp_path: Path
) -> None:
    async with helper(setting_allowed, tmp_path, call_s=0.2) as running:
        setting_allowed.gpu(0).hang = 1
        with pytest.raises(ControlUnknownError):
            await running.client.apply(SetPowerLimit(uuid=setting_allowed.uuid(0), power_w=400.0))
        assert await running.exit_code() == EXIT_STUCK


async def test_no_more_than_a_few_may_wait_for_their_turn(
    setting_allowed: FakeNvml, tmp_path: Path
) -> None:
    async with helper(setting_allowed, tmp_path, call_s=10.0) as running:
        setting_allowed.gpu(0).hang = 1
        reset = ResetGpuClocks(uuid=setting_allowed.uuid(0))

        async def reason() -> str:
            try:
                await running.client.apply(reset)
            except ControlRefusedError as exc:
                return exc.reason
            return "applied"

        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            asked = [group.create_task(reason()) for _ in range(11)]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result() for task in asked if task.done()].count(Reason.BUSY) > 0
            setting_allowed.gpu(0).hang = 0
        told = [task.result() for task in asked]
        # whoever came after the hang ended was served at once
        assert told.count("applied") >= 8
        assert set(told) == {"applied", Reason.BUSY}


async def test_no_other_spelling_of_a_card_gets_round_its_own_bounds(
    setting_allowed: FakeNvml, tmp_path: Path
) -> None:
    setting_allowed.gpu(1).uuid = b"GPU-abcdef00-0000-4000-8000-000000000001"
    uuid = setting_allowed.uuid(1)
    narrow = f'[[card]]\ncard = "{uuid}"\npower_w_min = 300\npower_w_max = 400\n'
    async with helper(setting_allowed, tmp_path, cards=narrow + CARDS) as running:
        other = SetPowerLimit(uuid=uuid.replace("abcdef", "ABCDEF"), power_w=600.0)
        with pytest.raises(ControlRefusedError) as refused:
            await running.client.apply(other)
        assert refused.value.reason == Reason.OUT_OF_BOUNDS
        assert setting_allowed.gpu(1).limit_mw == 700_000


async def test_the_cards_own_least_limit_can_be_set(
    setting_allowed: FakeNvml, tmp_path: Path
) -> None:
    # 512.3 * 1,000 is 512,299.99999999994 in floating point
    setting_allowed.gpu(0).limit_min_mw = 512_300
    async with helper(setting_allowed, tmp_path) as running:
        await running.client.apply(SetPowerLimit(uuid=setting_allowed.uuid(0), power_w=512.3))
        assert setting_allowed.gpu(0).limit_mw == 512_300


async def test_a_driver_that_goes_away_ends_the_helper(
    setting_allowed: FakeNvml, tmp_path: Path
) -> None:
    async with helper(setting_allowed, tmp_path) as running:
        setting_allowed.force("nvmlDeviceGetHandleByUUID", 1)
        with pytest.raises(ControlUnknownError):
            await running.client.apply(ResetGpuClocks(uuid=setting_allowed.uuid(0)))
        assert await running.exit_code() == EXIT_STUCK


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x00\x00\x00\x03abc", Reason.MALFORMED),
        (b"\xff\xff\xff\xff", Reason.MALFORMED),
        (b"\x00\x00\x00\x00", Reason.MALFORMED),
        (pack(SetPowerLimit(uuid="GPU-1", power_w=0.1)), Reason.MALFORMED),
        (b"GET / HTTP/1.1\r\n\r\n", Reason.MALFORMED),
    ],
)
async def test_nonsense_is_refused_and_the_connection_closed(
    setting_allowed: FakeNvml, tmp_path: Path, sent: bytes, reason: Reason
) -> None:
    async with helper(setting_allowed, tmp_path) as running:
        reader, writer = await asyncio.open_unix_connection(running.socket)
        writer.write(sent)
        async with asyncio.timeout(DEADLINE_S):
            got = await reader.read()
        writer.close()
        answer = ANSWER.decode(got[4:])
        assert isinstance(answer, Refused)
        assert answer.reason is reason
        # the next caller is served
        await running.client.apply(ResetGpuClocks(uuid=setting_allowed.uuid(0)))


async def test_the_socket_is_for_its_group_alone(setting_allowed: FakeNvml, tmp_path: Path) -> None:
    async with helper(setting_allowed, tmp_path) as running:
        assert running.socket.stat().st_mode & 0o777 == 0o660


async def test_a_helper_that_is_told_to_stop_does_even_while_a_call_hangs(
    setting_allowed: FakeNvml, tmp_path: Path
) -> None:
    async with helper(setting_allowed, tmp_path) as running:
        setting_allowed.gpu(0).hang = 1
        with pytest.raises(ControlUnknownError):
            await ControlClient(running.socket, answer_s=0.1).apply(
                ResetGpuClocks(uuid=setting_allowed.uuid(0))
            )
        running.process.terminate()
        assert await running.exit_code() == 0


async def test_without_a_helper_nothing_is_set(tmp_path: Path) -> None:
    with pytest.raises(ControlRefusedError) as refused:
        await ControlClient(tmp_path / "none.sock").apply(ResetGpuClocks(uuid="GPU-1"))
    assert refused.value.reason == "away"


async def test_a_helper_that_does_not_answer_leaves_it_unknown(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_unix_server(mute, tmp_path / "mute.sock")
    async with server:
        with pytest.raises(ControlUnknownError):
            await ControlClient(tmp_path / "mute.sock", answer_s=0.05).apply(
                ResetGpuClocks(uuid="GPU-1")
            )
        await ended.wait()


@pytest.mark.parametrize(
    ("cards", "users", "environment", "code"),
    [
        ("[[card]]\ncard = 1", "", {}, EXIT_USAGE),
        (CARDS, "nobody-of-this-name", {}, EXIT_USAGE),
        (CARDS, "", {"HCP_NVML_STATE": "/nowhere"}, EXIT_GONE),
    ],
)
async def test_a_helper_that_cannot_serve_ends_at_once(
    fake: FakeNvml,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cards: str,
    users: str,
    environment: dict[str, str],
    code: int,
) -> None:
    monkeypatch.setattr(fake, "environment", lambda: {**FakeNvml.environment(fake), **environment})
    async with helper(fake, tmp_path, cards=cards, users=users) as running:
        assert await running.exit_code() == code


@pytest.mark.parametrize("member", ["hang_all", "hang"])
async def test_a_call_that_hangs_at_the_start_ends_the_helper(
    setting_allowed: FakeNvml, tmp_path: Path, member: str
) -> None:
    where = setting_allowed.state if member == "hang_all" else setting_allowed.gpu(1)
    setattr(where, member, 1)
    async with helper(setting_allowed, tmp_path, call_s=0.1) as running:
        assert await running.exit_code() == EXIT_STUCK
