"""Counters of miners that count no hashes: they grow with work, and with nothing else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from edge_agent.clock import SystemClock
from edge_agent.workloads.engine import Engine, EngineSpec, HashSample
from edge_agent.workloads.engines.base import EnginePorts
from edge_agent.workloads.engines.catalogue import EngineKind, engine_of
from edge_agent.workloads.engines.process import group_for
from edge_agent.workloads.engines.xmrig import RATE_S
from firmware_bridges.transport import Deadlines, IsComplete
from simulators.virtual_loop import run
from tests.edge_agent.workloads.engines.rigs import python

RATE_HS = 100.0


class Xmrig:
    """An XMRig whose pool credits nothing yet. Source: xmrig doc/api/1/summary.json."""

    def __init__(self) -> None:
        self.paused = False
        self.rate_hs: float | None = RATE_HS

    async def carry(
        self, host: str, port: int, request: bytes, *, is_complete: IsComplete, deadlines: Deadlines
    ) -> bytes:
        del host, port, is_complete, deadlines
        await asyncio.sleep(0)
        body: dict[str, object] = {"result": {"status": "OK"}}
        if b"/json_rpc" in request:
            self.paused = b'"pause"' in request
        else:
            results = {"shares_good": 0, "shares_total": 0, "hashes_total": 0}
            rates = {"total": [self.rate_hs, None, None]}
            body = {"paused": self.paused, "hashrate": rates, "results": results}
        data = json.dumps(body).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


async def _hashes(engine: Engine) -> int | None:
    sample = await engine.sample()
    assert isinstance(sample, HashSample)
    return sample.hashes


def test_xmrig_is_seen_to_work_before_its_pool_credits_a_share() -> None:
    async def main() -> None:
        miner = Xmrig()
        spec = EngineSpec(engine_id="m", gpu="g", url="http://127.0.0.1:1", vram_mib=1)
        ports = EnginePorts(clock=SystemClock(), exchange=miner.carry)
        engine = engine_of(EngineKind.XMRIG, spec, ports)
        assert await _hashes(engine) == 0
        await asyncio.sleep(RATE_S - 1.0)
        assert await _hashes(engine) == 0, "its average may tell of the time before"
        await asyncio.sleep(3.0)
        assert await _hashes(engine) == 2 * RATE_HS
        await engine.prepare(5.0)  # paused, and its average lags by up to 10 s
        before = await _hashes(engine)
        await asyncio.sleep(5.0)
        assert await _hashes(engine) == before
        await engine.resume(5.0)
        await asyncio.sleep(RATE_S - 1.0)
        assert await _hashes(engine) == before
        miner.rate_hs = None  # it said that it goes on, and does nothing
        await asyncio.sleep(RATE_S)
        assert await _hashes(engine) == before

    run(main())


async def test_a_program_without_an_api_counts_its_processor_time(tmp_path: Path) -> None:
    clock = SystemClock()
    spec = EngineSpec(engine_id="m", gpu="g", argv=python("-c", "while True: pass"))
    program = group_for(spec, folder=tmp_path, boot_id=clock.boot_id())
    engine = engine_of(EngineKind.PROCESS, spec, EnginePorts(clock=clock, program=program))
    try:
        await engine.resume(10.0)
        first = await _hashes(engine)
        assert first is not None
        async with asyncio.timeout(30.0):
            while (await _hashes(engine) or 0) <= first:  # noqa: ASYNC110 - a counter gives no event
                await asyncio.sleep(0.01)
    finally:
        await engine.kill()
    assert await _hashes(engine) is None
