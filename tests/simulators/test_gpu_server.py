import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest

from simulators.errors import SettingError
from simulators.gpu_command import parse_gpus
from simulators.gpu_host import GpuHost, TruthLine
from simulators.gpu_server import GpuServer


class ManualClock:
    def __init__(self) -> None:
        self.ns = 5_000_000_000

    def boottime_ns(self) -> int:
        return self.ns

    def wall_ns(self) -> int:
        return 1_767_000_000_000_000_000 + self.ns

    def boot_id(self) -> str:
        return "boot-1"


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._id = reader, writer, 0

    async def ask(self, op: str, **fields: object) -> dict[str, Any]:
        self._id += 1
        self._writer.write(json.dumps({"id": self._id, "op": op, **fields}).encode() + b"\n")
        async with asyncio.timeout(5):
            answer: dict[str, Any] = json.loads(await self._reader.readline())
        assert answer.pop("id") == self._id
        return answer

    async def order(self, *acts: dict[str, object], **fields: object) -> list[dict[str, Any]]:
        """Send an order on gpu0; return the answers of its acts, and its own."""
        number, self._id = self._id + 1, self._id + 1 + len(acts)
        numbered = [
            {"id": number + place, "gpu": "gpu0", **act} for place, act in enumerate(acts, 1)
        ]
        order = {"id": number, "op": "order", "gpu": "gpu0", "acts": numbered, **fields}
        self._writer.write(json.dumps(order).encode() + b"\n")
        answers: list[dict[str, Any]] = []
        async with asyncio.timeout(5):
            while not answers or answers[-1]["id"] != number:
                answers.append(json.loads(await self._reader.readline()))
        return answers

    async def raw(self, line: bytes) -> dict[str, Any]:
        self._writer.write(line)
        async with asyncio.timeout(5):
            answer: dict[str, Any] = json.loads(await self._reader.readline())
        return answer


@asynccontextmanager
async def serving(
    tmp_path: Path, clock: ManualClock, truth: list[TruthLine]
) -> AsyncIterator[Client]:
    host = GpuHost(
        "host-1",
        [("gpu0", "H100"), ("gpu1", "A100")],
        clock=clock,
        rng=Random(1),
        truth=truth.append,
        process_id="p-1",
    )
    ready = asyncio.Event()
    path = tmp_path / "gpu.sock"
    task = asyncio.create_task(GpuServer(host, Random(2), 0.0).run(path, ready.set))
    async with asyncio.timeout(5):
        await ready.wait()
        reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def start_work(client: Client, instance: str = "i-1", run_s: int | None = None) -> None:
    assert "error" not in await client.ask("mine", gpu="gpu0", on=False)
    fields = {"gpu": "gpu0", "instance_id": instance}
    await client.ask("prepare", **fields, lease_id="w-1.1", attempt=1, run_s=run_s)
    assert "error" not in await client.ask("activate", **fields)


async def test_hello_names_the_devices(tmp_path: Path) -> None:
    async with serving(tmp_path, ManualClock(), []) as client:
        hello = await client.ask("hello")
    assert hello["process_id"] == "p-1"
    assert hello["gpus"] == [
        {"gpu": "gpu0", "model": "H100"},
        {"gpu": "gpu1", "model": "A100"},
    ]


async def test_a_stopped_miner_stops_hashing(tmp_path: Path) -> None:
    clock = ManualClock()
    async with serving(tmp_path, clock, []) as client:
        await client.ask("mine", gpu="gpu0", on=True)
        clock.ns += 2_000_000_000
        stopped = await client.ask("mine", gpu="gpu0", on=False)
        clock.ns += 2_000_000_000
        later = await client.ask("mine", gpu="gpu0", on=False)
    assert stopped["hashes"] == later["hashes"] == 2_000_000


async def test_work_is_metered_between_the_gates_and_told_as_truth(tmp_path: Path) -> None:
    clock, truth = ManualClock(), list[TruthLine]()
    async with serving(tmp_path, clock, truth) as client:
        await start_work(client)
        said = await client.ask("canary", gpu="gpu0", instance_id="i-1", prompt="abc")
        opened = await client.ask("gate", gpu="gpu0", instance_id="i-1", open=True)
        clock.ns += 90_000_000_000
        meters = (await client.ask("meters", since_minute=None))["meters"]
        shut = await client.ask("gate", gpu="gpu0", instance_id="i-1", open=False)
        clock.ns += 1_000_000_000
        again = await client.ask("gate", gpu="gpu0", instance_id="i-1", open=False)
    assert said["output"] == sha256(b"abcH100").hexdigest()
    assert meters[0]["served_ns"] == 90_000_000_000
    assert 1 <= len(meters[0]["marks"]) <= 2
    assert shut == again
    assert shut["at_ns"] - opened["at_ns"] == shut["served_ns"] == 90_000_000_000
    assert [line.t for line in truth if line.t != "mark"] == ["open", "close"]
    assert truth[-1].served_ns == 90_000_000_000


async def test_nobody_is_told_more_than_the_truth_holds(tmp_path: Path) -> None:
    clock, truth = ManualClock(), list[TruthLine]()
    async with serving(tmp_path, clock, truth) as client:
        await start_work(client)
        await client.ask("gate", gpu="gpu0", instance_id="i-1", open=True)
        clock.ns += 300_000_000
        told = (await client.ask("meters", since_minute=None))["meters"][0]["served_ns"]
        # A kill right after the answer must find it in the truth.
        assert truth[-1].served_ns == told == 300_000_000


@pytest.mark.parametrize(
    ("op", "fields", "code"),
    [
        ("mine", {"gpu": "gpu9", "on": True}, "no_gpu"),
        ("activate", {"gpu": "gpu0", "instance_id": "i-9"}, "no_instance"),
        ("gate", {"gpu": "gpu0", "instance_id": "i-9", "open": True}, "no_instance"),
        ("mine", {"gpu": "gpu0"}, "bad_request"),
        ("dance", {"gpu": "gpu0"}, "bad_request"),
    ],
)
async def test_wrong_requests_are_answered_with_a_code(
    tmp_path: Path, op: str, fields: dict[str, object], code: str
) -> None:
    async with serving(tmp_path, ManualClock(), []) as client:
        assert (await client.ask(op, **fields))["error"] == code


async def test_mining_and_serving_exclude_each_other(tmp_path: Path) -> None:
    async with serving(tmp_path, ManualClock(), []) as client:
        await client.ask("mine", gpu="gpu0", on=True)
        fields = {"gpu": "gpu0", "instance_id": "i-1"}
        await client.ask("prepare", **fields, lease_id="w-1.1", attempt=1)
        assert (await client.ask("activate", **fields))["error"] == "busy"
        await client.ask("mine", gpu="gpu0", on=False)
        assert "error" not in await client.ask("activate", **fields)
        assert (await client.ask("mine", gpu="gpu0", on=True))["error"] == "busy"


async def test_asked_work_completes_by_itself(tmp_path: Path) -> None:
    clock, truth = ManualClock(), list[TruthLine]()
    async with serving(tmp_path, clock, truth) as client:
        await start_work(client, run_s=30)
        await client.ask("gate", gpu="gpu0", instance_id="i-1", open=True)
        clock.ns += 45_000_000_000
        meter = (await client.ask("meters", since_minute=None))["meters"][0]
    assert (meter["completed"], meter["open"]) == (True, False)
    assert meter["served_ns"] == meter["closed_ns"] - meter["opened_ns"] == 30_000_000_000
    assert truth[-1].t == "close"


async def test_a_lost_gpu_ends_its_work_and_says_so(tmp_path: Path) -> None:
    clock, truth = ManualClock(), list[TruthLine]()
    async with serving(tmp_path, clock, truth) as client:
        await start_work(client)
        await client.ask("gate", gpu="gpu0", instance_id="i-1", open=True)
        clock.ns += 1_000_000_000
        await client.ask("fault", gpu="gpu0", kind="lost", value=1)
        assert (await client.ask("mine", gpu="gpu0", on=True))["error"] == "gpu_lost"
        gpus = (await client.ask("sample"))["gpus"]
        await client.ask("fault", gpu="gpu0", kind="lost", value=0)
        assert "error" not in await client.ask("mine", gpu="gpu0", on=True)
    assert [gpu["healthy"] for gpu in gpus] == [False, True]
    assert truth[-1].served_ns == 1_000_000_000


async def test_garbage_is_refused_and_the_connection_lives(tmp_path: Path) -> None:
    async with serving(tmp_path, ManualClock(), []) as client:
        assert (await client.raw(b"{nonsense\n"))["error"] == "bad_request"
        assert (await client.ask("hello"))["host_id"] == "host-1"


def test_gpu_lists_are_read_and_refused_by_name() -> None:
    assert parse_gpus("H100:1,A100:1") == [("gpu0", "H100"), ("gpu1", "A100")]
    for text in ("S21:1", "H100:0", "H100", "H900:2"):
        with pytest.raises(SettingError, match="gpus"):
            parse_gpus(text)


async def test_an_order_is_done_in_turn_until_an_act_is_refused(tmp_path: Path) -> None:
    work = {"instance_id": "i-1", "lease_id": "w-1.1", "attempt": 1}
    async with serving(tmp_path, ManualClock(), []) as client:
        await client.ask("mine", gpu="gpu0", on=True)
        stop = {"op": "mine", "on": False}
        enter = [{"op": op, **work} for op in ("prepare", "activate")]
        twice = [await client.order(stop, stop, *enter) for _ in range(2)]
        assert not any("error" in answer for answers in twice for answer in answers)
        assert twice[0][0]["hashes"] == twice[0][1]["hashes"] == twice[1][0]["hashes"]
        ended = await client.order({"op": "mine", "on": True}, {"op": "gate", "open": True, **work})
        assert [one.get("error") for one in ended] == ["busy", "not_begun", None]
        assert not (await client.ask("meters", since_minute=None))["meters"][0]["open"]


@pytest.mark.parametrize("between", ["nothing", "an act", "an order", "another gpu's act"])
async def test_an_order_goes_on_after_the_one_before_it_alone(tmp_path: Path, between: str) -> None:
    stop = {"op": "mine", "on": False}
    async with serving(tmp_path, ManualClock(), []) as client:
        first = (await client.order(stop))[-1]["id"]
        match between:
            case "an act":
                await client.ask("mine", gpu="gpu0", on=False)
            case "an order":
                await client.order()
            case "another gpu's act":
                await client.ask("mine", gpu="gpu1", on=False)
        told = await client.order(stop, after=first)
    goes_on = between in ("nothing", "another gpu's act")
    assert told[0].get("error") == (None if goes_on else "not_begun")


@pytest.mark.parametrize("act", [{"op": "meters"}, {"op": "mine", "gpu": "gpu1", "on": True}])
async def test_what_is_no_order_is_refused(tmp_path: Path, act: dict[str, object]) -> None:
    async with serving(tmp_path, ManualClock(), []) as client:
        assert [one["error"] for one in await client.order(act)] == ["bad_request"]
        assert (await client.ask("mine", gpu="gpu1", on=False))["hashes"] == 0
