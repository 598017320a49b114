"""`telemetry`: points per second from the edge's sampler to the hub's commit, for a whole minute.

Durable segment -> mosquitto -> hub COMMIT -> ack -> trim, with the real agent's and hub's parts in
two processes and a real broker; the generator runs inside the measured time. Afterwards the hub's
own SELECT of count and sum must equal the generator's.
"""

import argparse
import asyncio
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from bench.figure import Figure, at_least, at_most
from edge_agent.clock import SystemClock
from edge_agent.core.sync_types import SyncLimits
from edge_agent.ports import MqttConnection, MqttConnector, Will
from edge_agent.services.telemetry import TICKS_PER_SEGMENT, Telemetry, TelemetrySample
from edge_agent.services.uplink import Uplink
from edge_agent.storage.core_store import SqliteCoreStore
from edge_agent.storage.files import RealFiles
from edge_agent.storage.schema import MIGRATIONS
from edge_agent.storage.segments import SegmentStore
from edge_agent.storage.worker import ThreadedWorker
from edge_agent.storage.writer import ThreadedWriter
from edge_agent.transport.mqtt import AiomqttConnector, Endpoint
from hub.clock import SystemClock as HubClock
from hub.metrics.adapters import ThreadedMetrics
from hub.metrics.database import MetricsDatabase
from hub.metrics.ports import Totals
from hub.services.back import HubBack
from hub.store import sites
from hub.store.database import connect, open_store
from hub.store.migrations import migrate
from hub.store.schema import MIGRATIONS as HUB_MIGRATIONS
from hub.transport.mqtt import AiomqttConnector as HubConnector
from hub.transport.mqtt import BrokerAddress
from protocol.ids import IdSource
from protocol.lease import Command, Lease, SitePolicy
from protocol.order import SiteOrders
from protocol.sync import LeaseHead
from protocol.telemetry import Floats, Metric
from protocol.units import to_ms

SITE = "bench"
DEVICES = 15_000
SECONDS = 60.0
SEED = 20_260_301
TARGET_POINTS_PER_S = 1e6
TARGET_BYTES_PER_POINT = 2.0
# Segments that may wait for the hub before the generator pauses: the rate is that of the commits.
_BACKLOG_MAX = 24
_TICK_MS = 5_000
_START_MS = 1_772_323_200_000

METRICS = (
    Metric(name="hashrate_ths", scale=0.01),
    Metric(name="power_w", scale=1.0),
    Metric(name="temp_chip_c", scale=1.0),
    Metric(name="temp_board_c", scale=1.0),
    Metric(name="temp_inlet_c", scale=0.5),
    Metric(name="fan_1_rpm", scale=30.0),
    Metric(name="fan_2_rpm", scale=30.0),
    Metric(name="voltage_v", scale=0.01),
    Metric(name="frequency_mhz", scale=1.0),
    Metric(name="errors_hw", scale=1.0),
)


class Plant:
    """Seeded device physics: slow drifts with noise, drawn anew each tick."""

    def __init__(self, devices: int) -> None:
        self._rng = np.random.default_rng(SEED)
        draw = self._rng.normal
        self._base = [
            draw(200, 4, devices),
            draw(3_500, 60, devices),
            draw(72, 4, devices),
            draw(61, 3, devices),
            draw(28, 2, devices),
            np.rint(draw(5_800, 200, devices) / 30) * 30,
            np.rint(draw(5_800, 200, devices) / 30) * 30,
            draw(13.4, 0.1, devices),
            np.rint(draw(525, 10, devices)),
            np.zeros(devices),
        ]
        self._noise = (2.0, 20.0, 0.7, 0.5, 0.2, 30.0, 30.0, 0.01, 0.0, 0.0)

    def tick(self) -> tuple[Floats, ...]:
        """Draw the next values; the last column counts errors and only grows."""
        devices = len(self._base[0])
        columns: list[Floats] = []
        for base, noise, metric in zip(self._base, self._noise, METRICS, strict=True):
            noisy = base
            if noise:
                noisy = base + noise * self._rng.standard_normal(devices, dtype=np.float32)
            columns.append(np.rint(noisy / metric.scale) * metric.scale)
        self._base[-1] = self._base[-1] + (self._rng.random(devices, dtype=np.float32) < 0.002)
        return tuple(columns)


class Tally:
    """Count and exact sum of what the generator made, in steps of each metric's scale."""

    def __init__(self) -> None:
        self.known = 0
        self.steps = [0] * len(METRICS)

    def add(self, columns: Sequence[Floats]) -> None:
        """Count one tick."""
        for number, (column, metric) in enumerate(zip(columns, METRICS, strict=True)):
            self.steps[number] += int(np.rint(column / metric.scale).sum())
        self.known += len(columns[0])


class _CountingConnection:
    """Counts the payload bytes of telemetry on their way out."""

    def __init__(self, inner: MqttConnection, counted: "CountingConnector") -> None:
        self._inner = inner
        self._counted = counted
        self.subscribe = inner.subscribe
        self.messages = inner.messages

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        if topic.endswith(("/tele", "/hist", "/schema")):
            self._counted.bytes_sent += len(payload)
        await self._inner.publish(topic, payload, qos=qos, retain=retain)


class CountingConnector:
    """Wraps a connector and counts what telemetry costs, envelopes and repeats included."""

    def __init__(self, inner: MqttConnector) -> None:
        self._inner = inner
        self.bytes_sent = 0

    @asynccontextmanager
    async def connect(
        self,
        *,
        client_id: str,
        clean_start: bool,
        session_expiry_s: int,
        receive_maximum: int,
        will: Will | None,
    ) -> AsyncIterator[MqttConnection]:
        """Connect through the wrapped connector."""
        async with self._inner.connect(
            client_id=client_id,
            clean_start=clean_start,
            session_expiry_s=session_expiry_s,
            receive_maximum=receive_maximum,
            will=will,
        ) as connection:
            yield _CountingConnection(connection, self)


class _NoBrain:
    """Takes what the hub says and does nothing: no device is switched here."""

    async def on_lease(self, lease: Lease) -> None: ...
    async def on_lease_cleared(self, lease_id: str) -> None: ...
    async def on_policy(self, policy: SitePolicy) -> None: ...
    async def on_orders(self, orders: SiteOrders) -> None: ...
    async def on_command(self, command: Command) -> None: ...
    async def on_hub_heard(self, hub_time: object) -> None: ...
    async def on_owner(self, owner: bool) -> None: ...  # noqa: FBT001 - the port's one fact
    async def on_manifest(self, leases: tuple[LeaseHead, ...]) -> None: ...


class _NoLive:
    """A live channel that nobody watches."""

    def publish(
        self, topic: str, customer_id: str | None, body: bytes, owner_body: bytes | None = None
    ) -> None:
        """Drop it."""


class Measured(Struct, frozen=True, kw_only=True):
    """What one run gave."""

    points: int
    took_s: float
    bytes_sent: int
    equal: bool
    segments: int
    edge_cpu_s: float


def run(seconds: float = SECONDS, devices: int = DEVICES) -> list[Figure]:
    """Measure in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="hcp-bench-") as folder:
        measured = asyncio.run(_measure(Path(folder), seconds, devices))
    conditions = {
        "devices": devices,
        "metrics": len(METRICS),
        "ticks_per_segment": TICKS_PER_SEGMENT,
        "seconds": round(measured.took_s, 1),
        "segments": measured.segments,
        "points": measured.points,
        "hub_select_equals_generator": measured.equal,
        "edge_cpu_share": round(measured.edge_cpu_s / measured.took_s, 2),
        "durability": "segment fsync + rename + dir fsync, core.sqlite FULL, DuckDB commit",
        "left_out": "hot.duckdb",
    }
    rate = measured.points / measured.took_s if measured.equal else 0.0
    return [
        at_least("telemetry rate", rate, "points/s", TARGET_POINTS_PER_S, conditions),
        at_most(
            "telemetry size",
            measured.bytes_sent / measured.points,
            "bytes/point",
            TARGET_BYTES_PER_POINT,
            conditions,
        ),
    ]


async def _measure(folder: Path, seconds: float, devices: int) -> Measured:
    port = _free_port()
    broker = await _start_broker(folder, port)
    hub = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.telemetry",
        "hub",
        str(folder),
        str(port),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds * 3 + 120):
            return await _measure_edge(folder, port, seconds, devices, hub)
    finally:
        for process in (hub, broker):
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _measure_edge(
    folder: Path, port: int, seconds: float, devices: int, hub: asyncio.subprocess.Process
) -> Measured:
    clock = SystemClock()
    store = SqliteCoreStore(
        ThreadedWriter(folder / "core.sqlite", MIGRATIONS), clock, IdSource(os.urandom)
    )
    await store.recover()
    worker = ThreadedWorker("bench-segments")
    segments = SegmentStore(
        store, RealFiles(folder / "segments"), RealFiles(folder / "dead"), worker, clock
    )
    await segments.open()
    connector = CountingConnector(AiomqttConnector(Endpoint(host="127.0.0.1", port=port)))
    uplink = Uplink(
        connector=connector,
        store=store,
        segments=segments,
        clock=clock,
        random=random.Random(SEED).random,
        site_id=SITE,
        agent_version="bench",
        brain=_NoBrain(),
        sync_limits=SyncLimits(hist_bytes_per_s=1 << 30, hist_burst_bytes=1 << 30),
    )
    telemetry = Telemetry(
        site_id=SITE,
        metrics=METRICS,
        device_ids=[f"asic-{number:05d}" for number in range(devices)],
        store=store,
        segments=segments,
        worker=ThreadedWorker("bench-encode"),
        hot=None,
        clock=clock,
    )
    tally = Tally()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(uplink.run()), group.create_task(telemetry.run())]
        while not uplink.status().welcomed:  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.05)
        began_s, cpu_s = time.monotonic(), time.process_time()
        await _generate(telemetry, segments, tally, began_s + seconds, devices)
        await _drain(segments)
        took_s = time.monotonic() - began_s
        cpu_s = time.process_time() - cpu_s
        totals = await _ask_totals(hub)
        for task in tasks:
            task.cancel()
    await store.close()
    return Measured(
        points=tally.known * len(METRICS),
        took_s=took_s,
        bytes_sent=connector.bytes_sent,
        equal=[(t.known, t.steps) for t in totals] == [(tally.known, s) for s in tally.steps],
        segments=telemetry.stats().segments,
        edge_cpu_s=cpu_s,
    )


async def _generate(
    telemetry: Telemetry, segments: SegmentStore, tally: Tally, until_s: float, devices: int
) -> None:
    """Offer whole segments' worth of ticks as fast as the hub commits them."""
    plant = Plant(devices)
    offered = 0

    async def offer() -> None:
        nonlocal offered
        offered += 1
        columns = await asyncio.to_thread(plant.tick)
        sample = TelemetrySample(t_ms=_START_MS + offered * _TICK_MS, columns=columns)
        while not telemetry.offer(sample):  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.002)
        await asyncio.to_thread(tally.add, columns)

    while time.monotonic() < until_s:
        for _ in range(TICKS_PER_SEGMENT):
            await offer()
        while len(segments.index()) > _BACKLOG_MAX:  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.002)
    # What is left in the ring is filled up to one more segment, so that nothing waits a minute.
    tick_points = devices * len(METRICS)
    while (waiting := offered - telemetry.stats().points_sealed // tick_points) > 0:
        if waiting < TICKS_PER_SEGMENT:
            await offer()
        await asyncio.sleep(0.02)


async def _drain(segments: SegmentStore) -> None:
    while segments.index():  # noqa: ASYNC110 - polled
        await asyncio.sleep(0.005)


async def _ask_totals(hub: asyncio.subprocess.Process) -> list[Totals]:
    assert hub.stdin is not None
    assert hub.stdout is not None
    hub.stdin.write(b"totals\n")
    await hub.stdin.drain()
    return msgspec.json.decode(await hub.stdout.readline(), type=list[Totals])


async def _start_broker(folder: Path, port: int) -> asyncio.subprocess.Process:
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise FileNotFoundError("mosquitto is not on PATH; ./dev provides it")
    conf = folder / "mosquitto.conf"
    conf.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
        "set_tcp_nodelay true\n"
        "max_inflight_messages 64\nmax_queued_messages 2000\nmessage_size_limit 1048576\n"
    )
    broker = await asyncio.create_subprocess_exec(
        program,
        "-c",
        str(conf),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            await writer.wait_closed()
            return broker


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def serve_hub(folder: Path, port: int) -> None:
    """Run the hub's half until it was asked for its totals."""
    clock = HubClock()
    path = folder / "hub.sqlite"
    connection = connect(path)
    migrate(connection, HUB_MIGRATIONS, to_ms(clock.wall()))
    sites.add(connection, SITE, name=SITE, hub_epoch=1, now=clock.wall())
    connection.close()
    store = open_store(path)
    metrics = ThreadedMetrics(MetricsDatabase(folder / "metrics.duckdb"))
    back = HubBack(
        store=store,
        connector=HubConnector(BrokerAddress(port=port)),
        metrics=metrics,
        live=_NoLive(),
        clock=clock,
        rng=random.Random(SEED),
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(back.run())
        await asyncio.to_thread(sys.stdin.readline)
        totals = [await metrics.totals(SITE, metric.name) for metric in METRICS]
        print(msgspec.json.encode(totals).decode(), flush=True)
        task.cancel()
    metrics.close()


def main() -> None:
    """Run the bench, or the hub's half of it for the bench itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--devices", type=int, default=DEVICES)
    roles = parser.add_subparsers(dest="role")
    hub = roles.add_parser("hub")
    hub.add_argument("folder", type=Path)
    hub.add_argument("port", type=int)
    args = parser.parse_args()
    if args.role == "hub":
        asyncio.run(serve_hub(args.folder, args.port))
        return
    for figure in run(args.seconds, args.devices):
        print(msgspec.json.encode(figure).decode())


if __name__ == "__main__":
    main()
