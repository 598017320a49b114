"""Telemetry in DuckDB: exact, once, and alive after a crash."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.core.sync import SeqSet
from hub.metrics.adapters import MemoryMetrics, ThreadedMetrics
from hub.metrics.database import MetricsDatabase
from hub.metrics.ledger import TeleBatch
from hub.metrics.ports import Metrics
from protocol.sync import NackCode, Record, digest_of
from protocol.telemetry import (
    ColumnBatch,
    DeviceList,
    Metric,
    TelemetrySchema,
    encode_batch,
    encode_schema_item,
)

SCHEMA = TelemetrySchema(
    metrics=(Metric(name="power_w", scale=1.0), Metric(name="temp_c", scale=0.1))
)
DEVICES = DeviceList(device_ids=("a", "b", "c"))
SCHEMA_DIGEST = digest_of(encode_schema_item(SCHEMA))
DEVICES_DIGEST = digest_of(encode_schema_item(DEVICES))
REPOSITORY = Path(__file__).parents[3]


def columns(seq: int, ticks: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seq)
    power = rng.integers(3_000, 3_600, (3, ticks)).astype(np.float64)
    temp = rng.integers(400, 900, (3, ticks)) * 0.1
    temp[1, 0] = np.nan
    return power, temp


def record(seq: int, *, site_id: str = "lubbock", salt: int = 0) -> Record:
    body = encode_batch(
        ColumnBatch(
            site_id=site_id,
            schema_digest=SCHEMA_DIGEST,
            devices_digest=DEVICES_DIGEST,
            t_ms=np.arange(4, dtype=np.int64) * 5_000 + seq * 60_000,
            columns=columns(seq + salt),
        ),
        SCHEMA,
    )
    return Record(seq, digest_of(body), body)


def batch(*records: Record, store_id: str = "s1", site_id: str = "lubbock") -> TeleBatch:
    return TeleBatch(site_id=site_id, store_id=store_id, records=records)


@pytest.fixture(params=["duckdb", "memory"])
def metrics(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Metrics]:
    port: Metrics = (
        MemoryMetrics()
        if request.param == "memory"
        else ThreadedMetrics(MetricsDatabase(tmp_path / "metrics.duckdb"))
    )
    port.add_schema(SCHEMA_DIGEST, SCHEMA)
    port.add_schema(DEVICES_DIGEST, DEVICES)
    yield port
    port.close()


async def test_stored_values_equal_the_sent_ones(metrics: Metrics) -> None:
    answers = await metrics.commit([batch(record(1), record(2)), batch(record(3))])
    assert [answer.points for answer in answers] == [48, 24]
    assert answers[-1].known == SeqSet(3)
    power = np.concatenate([columns(seq)[0].ravel() for seq in (1, 2, 3)])
    temp = np.concatenate([columns(seq)[1].ravel() for seq in (1, 2, 3)])
    got = await metrics.totals("lubbock", "power_w")
    assert (got.known, got.steps) == (36, int(power.sum()))
    got = await metrics.totals("lubbock", "temp_c")
    assert got.known == int(np.count_nonzero(~np.isnan(temp)))
    assert got.steps == int(np.rint(np.nansum(temp) * 10))
    assert (await metrics.totals("houston", "power_w")).known == 0
    latest = await metrics.latest("lubbock", "power_w")
    assert [(row.device_id, row.value) for row in latest] == list(
        zip("abc", columns(3)[0][:, -1], strict=True)
    )


async def test_doubles_are_dropped_and_contradictions_named(metrics: Metrics) -> None:
    await metrics.commit([batch(record(1))])
    again, within = await metrics.commit([batch(record(1)), batch(record(3), record(3))])
    assert (again.points, within.points) == (0, 24)
    assert within.known == SeqSet(1, ((3, 3),))
    (conflict,) = await metrics.commit([batch(record(1, salt=7), record(2))])
    assert conflict.conflicts == (1,)
    assert conflict.known == SeqSet(3)
    assert (await metrics.totals("lubbock", "power_w")).known == 36


async def test_what_cannot_be_read_is_nacked_by_code(metrics: Metrics) -> None:
    unknown = encode_batch(
        ColumnBatch(
            site_id="lubbock",
            schema_digest=b"?" * 16,
            devices_digest=DEVICES_DIGEST,
            t_ms=np.zeros(1, dtype=np.int64),
            columns=columns(1, 1),
        ),
        SCHEMA,
    )
    (answer,) = await metrics.commit(
        [
            batch(
                Record(1, digest_of(unknown), unknown),
                Record(2, digest_of(b"junk"), b"junk"),
                Record(3, b"!" * 16, record(3).body),
                record(4, site_id="houston"),
                record(5),
            )
        ]
    )
    assert answer.nack == (
        (1, NackCode.NEED_SCHEMA),
        (2, NackCode.MALFORMED),
        (3, NackCode.BAD_HASH),
        (4, NackCode.FORBIDDEN),
    )
    assert answer.known == SeqSet(0, ((5, 5),))


async def test_a_gap_lets_the_watermark_pass(metrics: Metrics) -> None:
    await metrics.commit([batch(record(1), record(4))])
    metrics.pass_gap("s1", 2, 3)
    assert metrics.known("s1") == SeqSet(4)
    assert metrics.last_digest("s1") == record(4).digest


@given(st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=4), max_size=8))
async def test_any_order_and_repetition_stores_each_batch_once(groups: list[list[int]]) -> None:
    metrics = MemoryMetrics()
    metrics.add_schema(SCHEMA_DIGEST, SCHEMA)
    metrics.add_schema(DEVICES_DIGEST, DEVICES)
    for group in groups:
        await metrics.commit([batch(*(record(seq) for seq in group))])
    sent = {seq for group in groups for seq in group}
    assert sorted(row.record.seq for row in metrics.rows) == sorted(sent)
    assert {seq for seq in range(1, 9) if metrics.known("s1").holds(seq)} == sent


def test_ledger_survives_a_reopen(tmp_path: Path) -> None:
    path = tmp_path / "metrics.duckdb"
    database = MetricsDatabase(path)
    database.add_schema(SCHEMA_DIGEST, SCHEMA)
    database.add_schema(DEVICES_DIGEST, DEVICES)
    database.commit([batch(record(1), record(2), record(5)), batch(record(1), store_id="s2")])
    database.close()
    database = MetricsDatabase(path)
    assert database.known("s1") == SeqSet(2, ((5, 5),))
    assert database.known("s2") == SeqSet(1)
    assert database.last_digest("s1") == record(5).digest
    database.add_schema(SCHEMA_DIGEST, SCHEMA)
    database.add_schema(DEVICES_DIGEST, DEVICES)
    (answer,) = database.commit([batch(record(2), record(1, salt=3))])
    assert (answer.points, answer.conflicts) == (0, (1,))
    assert database.totals("lubbock", "power_w").known == 48
    database.close()


def test_unreadable_file_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.duckdb"
    path.write_bytes(b"no database" * 1_000)
    database = MetricsDatabase(path)
    assert database.quarantined == tmp_path / "metrics.bad-1"
    assert database.quarantined.read_bytes().startswith(b"no database")
    assert database.known("s1") == SeqSet()
    database.close()


CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
import importlib.util
spec = importlib.util.spec_from_file_location("helpers", sys.argv[3])
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
from hub.metrics.database import MetricsDatabase
database = MetricsDatabase(helpers.Path(sys.argv[1]))
database.add_schema(helpers.SCHEMA_DIGEST, helpers.SCHEMA)
database.add_schema(helpers.DEVICES_DIGEST, helpers.DEVICES)
seq = database.known("s1").wm
while True:
    seq += 1
    database.commit([helpers.batch(helpers.record(seq))])
    print(seq, flush=True)
"""


def test_kill_during_commits_loses_nothing_acked_and_splits_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.duckdb"
    acked = 0
    for more in (15, 40):
        command = [sys.executable, "-c", CHILD, str(path), str(REPOSITORY), __file__]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for _ in range(more):
                acked = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().split()
            acked = int(rest[-1]) if rest else acked
    database = MetricsDatabase(path)
    known = database.known("s1")
    assert database.quarantined is None
    assert known.ranges == ()
    assert known.wm in {acked, acked + 1}
    totals = database.totals("lubbock", "power_w")
    assert totals.known == known.wm * 12
    assert totals.steps == sum(int(columns(seq)[0].sum()) for seq in range(1, known.wm + 1))
    database.close()
