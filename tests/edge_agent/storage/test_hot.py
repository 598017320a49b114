"""The hot file: what went in comes out; a bad file costs history only."""

from pathlib import Path

import numpy as np
import pytest

from edge_agent.storage.hot import DuckHot, HotStore, HotTick, MemoryHot
from edge_agent.storage.worker import InlineWorker, ThreadedWorker

DEVICES = ("a-1", "a-2", "a-3")
METRICS = ("power_w", "temp_c")


def _tick(number: int) -> HotTick:
    power = np.array([number, np.nan, 0.1 * number])
    return HotTick(t_ms=1_000 * number, columns=(power, np.full(3, -1.5)))


def _same(found: list[HotTick], expected: list[HotTick]) -> None:
    assert [tick.t_ms for tick in found] == [tick.t_ms for tick in expected]
    for one, other in zip(found, expected, strict=True):
        for column, wanted in zip(one.columns, other.columns, strict=True):
            np.testing.assert_array_equal(column, wanted)


def _make(kind: str, folder: Path) -> HotStore:
    if kind == "memory":
        return MemoryHot(DEVICES)
    return DuckHot(folder, METRICS, DEVICES, ThreadedWorker("hot"))


@pytest.mark.parametrize("kind", ["duck", "memory"])
async def test_ticks_come_back_as_they_went_in(kind: str, tmp_path: Path) -> None:
    hot = _make(kind, tmp_path)
    await hot.open()
    for number in range(1, 6):
        await hot.append(_tick(number))
    _same(await hot.since(2_000, 100), [_tick(n) for n in (3, 4, 5)])
    _same(await hot.since(0, 2), [_tick(4), _tick(5)])
    rows = await hot.history("a-3", 1_000, 2)
    assert [(row.t_ms, float(row.columns[0][0])) for row in rows] == [(4_000, 0.4), (5_000, 0.5)]
    assert await hot.history("nobody", 0, 2) == []
    await hot.close()


async def test_reopened_file_goes_on(tmp_path: Path) -> None:
    for number in (1, 2):
        hot = DuckHot(tmp_path, METRICS, DEVICES, InlineWorker())
        await hot.open()
        await hot.append(_tick(number))
        await hot.close()
    hot = DuckHot(tmp_path, METRICS, DEVICES, InlineWorker())
    await hot.open()
    _same(await hot.since(0, 9), [_tick(1), _tick(2)])
    assert hot.failures == 0
    await hot.close()


async def test_damaged_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "hot.duckdb").write_bytes(b"this is no database" * 1_000)
    hot = DuckHot(tmp_path, METRICS, DEVICES, InlineWorker())
    await hot.open()
    await hot.append(_tick(1))
    _same(await hot.since(0, 9), [_tick(1)])
    assert hot.failures == 1
    assert (tmp_path / "hot.bad.duckdb").read_bytes().startswith(b"this is no")
    await hot.close()


async def test_other_devices_begin_another_file(tmp_path: Path) -> None:
    hot = DuckHot(tmp_path, METRICS, ("x",), InlineWorker())
    await hot.open()
    await hot.close()
    hot = DuckHot(tmp_path, METRICS, DEVICES, InlineWorker())
    await hot.open()
    await hot.append(_tick(1))
    _same(await hot.since(0, 9), [_tick(1)])
    assert (tmp_path / "hot.1.duckdb").exists()
    await hot.shrink()
    assert not (tmp_path / "hot.1.duckdb").exists()
    await hot.close()


async def test_rotation_bounds_the_file(tmp_path: Path) -> None:
    hot = DuckHot(tmp_path, METRICS, DEVICES, InlineWorker(), rotate_after_ms=3_000)
    await hot.open()
    for number in range(1, 6):
        await hot.append(_tick(number))
    _same(await hot.since(0, 9), [_tick(4), _tick(5)])
    assert (tmp_path / "hot.1.duckdb").exists()
    await hot.close()
