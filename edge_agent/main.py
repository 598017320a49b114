"""Composition root of ``hcp-agent run``: every part wired to its ports, in one TaskGroup."""

import asyncio
import logging
import random
import secrets
from datetime import datetime
from pathlib import Path

import numpy as np

from edge_agent.config import AgentConfig, Market, asic_addresses, build_site
from edge_agent.credentials import Credentials
from edge_agent.devices.fleet import AsicUnit, FleetSettings, MinerFleet
from edge_agent.devices.modes import StoredModes
from edge_agent.devices.poller import PollSettings
from edge_agent.devices.ports import AsicNameplate
from edge_agent.local_api.api import BufferView, HubLink, InputLine, LocalApi, StreamLine
from edge_agent.local_api.http import LocalServer
from edge_agent.local_api.miners import MinerDesk
from edge_agent.market.feeds import HttpFeed, ReplayFeed
from edge_agent.market.replay import ReplayMap
from edge_agent.market.series import load_market
from edge_agent.node.channel import Dialer, dial
from edge_agent.node.link import NodeAddress, NodeLinksClient
from edge_agent.node.tls import TlsDialer
from edge_agent.notify import Pulse, sd_notify, watchdog_period_s
from edge_agent.ports import Clock, CommitBatch
from edge_agent.process_limits import calm_collector, raise_file_limit
from edge_agent.services.agent import Agent, AgentPorts, Sample
from edge_agent.services.hub_words import HubWords
from edge_agent.services.node_sink import LateSink
from edge_agent.services.snapshots import SnapshotWriter
from edge_agent.services.telemetry import Telemetry, TelemetrySample
from edge_agent.services.uplink import Uplink
from edge_agent.storage.core_store import SqliteCoreStore
from edge_agent.storage.files import Ballast, RealFiles
from edge_agent.storage.hot import DuckHot
from edge_agent.storage.schema import MIGRATIONS
from edge_agent.storage.segments import SegmentLimits, SegmentStore
from edge_agent.storage.worker import ThreadedWorker
from edge_agent.storage.writer import ThreadedWriter
from edge_agent.transport.mqtt import AiomqttConnector, Endpoint
from edge_agent.transport.tls import client_context
from edge_agent.version import VERSION
from firmware_bridges.base import MinerAddress
from firmware_bridges.families import FAMILY_OF
from firmware_bridges.http.digest import Credentials as MinerLogin
from protocol.event import SiteLive, SwitchReport
from protocol.ids import IdSource
from protocol.telemetry import Metric
from protocol.units import to_ms

_log = logging.getLogger(__name__)

_FILES_PER_MINER = 2
_FILES_BASE = 1_024
_GIB = 1 << 30
_EVENTS_READ_MAX = 20_000
_ERROR_SHOWN_MAX = 300
# Steps as fine as the sensors: a watt, a hundredth of a TH/s, a tenth of a degree, a percent.
_METRICS = (
    Metric(name="activity_code", scale=1.0),
    Metric(name="power_w", scale=1.0),
    Metric(name="hashrate_ths", scale=0.01),
    Metric(name="temp_c", scale=0.1),
    Metric(name="utilisation", scale=0.01),
)


class _Stop(Exception):  # noqa: N818 - a request, no error
    """Unwinds the TaskGroup."""


class AgentProgram:
    """The agent of one site.

    Args:
        config: checked. clock: of this machine. jitter: for reconnects.
    """

    def __init__(self, config: AgentConfig, clock: Clock, jitter: random.Random) -> None:
        """Build what needs no disk and no network."""
        self._config = config
        self._clock = clock
        self._jitter = jitter
        self._ids = IdSource(secrets.token_bytes)
        self._data = Path(config.data_dir)
        self._credentials = Credentials(config.credentials_dir)
        self._site = build_site(config)
        self._ballast = Ballast(self._data / "ballast")
        writer = ThreadedWriter(
            self._data / "core.sqlite", MIGRATIONS, on_full=self._ballast.release
        )
        self._store = SqliteCoreStore(writer, clock, self._ids)
        self._files = ThreadedWorker("segments")
        self._snapshots = ThreadedWorker("snapshot")
        self._segments = SegmentStore(
            self._store,
            RealFiles(self._data / "segments"),
            RealFiles(self._data / "dead"),
            self._files,
            clock,
            SegmentLimits(cap_bytes=int(config.telemetry_cap_gib * _GIB)),
        )
        device_ids = [device.device_id for device in self._site.devices]
        self._hot_worker = ThreadedWorker("hot")
        self._hot = DuckHot(
            self._data,
            [metric.name for metric in _METRICS],
            device_ids,
            self._hot_worker,
        )
        self._telemetry = Telemetry(
            site_id=config.site_id,
            metrics=_METRICS,
            device_ids=device_ids,
            store=self._store,
            segments=self._segments,
            worker=self._files,
            hot=self._hot,
            clock=clock,
        )
        self._modes = StoredModes(self._keep_mode)
        self._fleet = self._make_fleet()
        self._uplink: Uplink | None = None
        self._words: HubWords | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Recover, then run everything until ``stop`` is set."""
        miners = len(asic_addresses(self._config))
        raise_file_limit(_FILES_BASE + _FILES_PER_MINER * miners)
        recovered = await self._store.recover()
        self._modes.restore(dict(recovered.asic_modes))
        await self._segments.open()
        await self._hot.open()
        sink = LateSink()
        links = NodeLinksClient(
            tuple(
                NodeAddress(node_id=row.node_id, address=row.address) for row in self._config.nodes
            ),
            site_id=self._config.site_id,
            agent_epoch=recovered.agent_epoch,
            sink=sink,
            hub_heard_age_ms=sink.hub_heard_age_ms,
            uniform=self._jitter.uniform,
            raise_epoch=self._store.raise_epoch,
            dialer=self._make_dialer(),
        )
        ports = AgentPorts(
            store=self._store,
            clock=self._clock,
            links=links,
            fleet=self._fleet,
            new_id=self._ids.new,
            on_live=self._on_live,
            on_sample=self._on_sample,
            backlog=self._backlog,
        )
        agent = Agent(self._site, ports, recovered, self._config.tick_s)
        sink.target = agent
        self._words = HubWords(
            agent, self._store, self._clock, act=self._fleet.act, begun=recovered.one_offs
        )
        self._uplink = self._make_uplink(self._words)
        try:
            await self._run_tasks(agent, links, stop)
        finally:
            await self._hot.close()
            await self._store.close()
            await self._hot_worker.close()
            await self._files.close()
            await self._snapshots.close()

    async def _run_tasks(self, agent: Agent, links: NodeLinksClient, stop: asyncio.Event) -> None:
        run_dir = Path(self._config.run_dir)
        sources = (self._config.market, *self._config.feeds)
        made = (self._make_feed(agent, source) for source in sources)
        feeds = tuple(feed for feed in made if feed is not None)
        miners = MinerDesk(
            asic_addresses(self._config),
            self._fleet,
            self._clock,
            lambda: self._ids.new("act", self._clock.wall()),
        )
        api = LocalApi(
            agent,
            self._clock,
            hub=self._hub_link,
            buffer=self._buffer,
            switches=lambda limit: self._switches(agent, limit),
            inputs=lambda: self._inputs(feeds),
            miners=miners,
            grid=agent.grid,
        )
        server = LocalServer(run_dir / "view.sock", run_dir / "ctl.sock", api.handle)
        snapshots = SnapshotWriter(run_dir / "snapshot.json", api.snapshot, self._snapshots)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(agent.run(), name="brain")
                group.create_task(links.run(), name="node-links")
                group.create_task(server.run(self._ready), name="local-api")
                group.create_task(snapshots.run(), name="snapshots")
                group.create_task(self._watchdog(agent), name="watchdog")
                group.create_task(self._telemetry.run(), name="telemetry")
                if self._uplink is not None and self._words is not None:
                    group.create_task(self._uplink.run(), name="uplink")
                    group.create_task(self._words.run(), name="one-off-commands")
                if self._config.asics:
                    group.create_task(miners.run(), name="miner-acts")
                    group.create_task(self._fleet.run(), name="asic-poller")
                    group.create_task(self._offer_asics(agent), name="asic-readings")
                for feed in feeds:
                    group.create_task(feed.run(), name=f"market-{feed.status.name}")
                await stop.wait()
                sd_notify("STOPPING=1")
                raise _Stop
        except* _Stop:
            _log.info("agent stops site_id=%s", self._config.site_id)

    def _ready(self) -> None:
        calm_collector()
        sd_notify("READY=1")
        _log.info("agent ready site_id=%s devices=%d", self._config.site_id, len(self._site))

    async def _offer_asics(self, agent: Agent) -> None:
        while True:
            agent.offer_asic(await self._fleet.next_batch())

    async def _watchdog(self, agent: Agent) -> None:
        """Feed systemd's watchdog only while decisions are being made."""
        period_s = watchdog_period_s()
        pulse = Pulse(self._clock.boottime_ns(), self._config.tick_s)
        while period_s is not None:
            if pulse.alive(agent.passes, self._clock.boottime_ns()):
                sd_notify("WATCHDOG=1")
            await asyncio.sleep(period_s)

    # --- parts ----------------------------------------------------------------------------

    def _make_fleet(self) -> MinerFleet:
        kinds = {row.class_name: row.model for row in self._site.classes}
        units = [
            AsicUnit(
                device_id=row.device_id,
                address=MinerAddress(
                    host=row.host,
                    cgminer_port=row.port,
                    web_port=row.web_port,
                    v3_port=row.v3_port,
                ),
                family=FAMILY_OF.get(row.kind),
                nameplate=AsicNameplate(
                    hashrate_ths=kinds[row.device_class].hashrate_ths,
                    power_w=kinds[row.device_class].mine_w,
                    sleep_power_w=kinds[row.device_class].curtailed_w,
                ),
                credentials=self._login(row.username, row.password_credential),
            )
            for row in asic_addresses(self._config)
        ]
        return MinerFleet(
            units,
            clock=self._clock,
            client_nonce=lambda: secrets.token_hex(8),
            settings=FleetSettings(poll=PollSettings(tick_s=self._config.tick_s)),
            modes=self._modes,
        )

    async def _keep_mode(self, device_id: str, mode: str) -> None:
        await self._store.commit(CommitBatch(asic_modes=((device_id, mode),)))

    def _login(self, username: str, credential: str) -> MinerLogin | None:
        if not credential:
            return None
        return MinerLogin(username, self._credentials.text(credential))

    def _make_dialer(self) -> Dialer:
        link = self._config.node_link
        if link is None:
            return dial
        ca, cert, key = map(self._credentials.path, (link.tls_ca, link.tls_cert, link.tls_key))
        context = client_context(ca, cert, key, section="node_link")
        return TlsDialer(context, {row.address: row.node_id for row in self._config.nodes})

    def _make_uplink(self, words: HubWords) -> Uplink | None:
        mqtt = self._config.mqtt
        if mqtt is None:
            return None
        tls = None
        if mqtt.tls_ca:
            names = (mqtt.tls_ca, mqtt.tls_cert, mqtt.tls_key)
            ca, cert, key = map(self._credentials.path, names)
            tls = client_context(ca, cert, key)
        return Uplink(
            connector=AiomqttConnector(Endpoint(host=mqtt.host, port=mqtt.port), tls),
            store=self._store,
            segments=self._segments,
            clock=self._clock,
            random=self._jitter.random,
            site_id=self._config.site_id,
            agent_version=VERSION,
            brain=words,
        )

    def _make_feed(self, agent: Agent, market: Market) -> ReplayFeed | HttpFeed | None:
        if market.kind == "http":
            return HttpFeed(
                market.host,
                market.port,
                offer=agent.offer_market,
                period_s=market.period_s,
                name=market.name,
            )
        if market.kind == "none":
            return None
        started = _instant(market.started_utc, self._clock.wall())
        mapping = ReplayMap(
            start_ms=to_ms(started),
            source_ms=to_ms(_instant(market.from_utc, started)),
            factor=market.factor,
        )
        return ReplayFeed(
            load_market(Path(market.directory)),
            mapping,
            clock=self._clock,
            offer=agent.offer_market,
            static_rates=market.gpu_rates,
            name=market.name or market.kind,
        )

    # --- what the local API asks ------------------------------------------------------------

    def _on_live(self, live: SiteLive) -> None:
        if self._uplink is not None:
            self._uplink.publish_live(live)

    def _on_sample(self, sample: Sample) -> None:
        columns = (
            sample.activity.astype(np.float64),
            sample.power_w,
            sample.hashrate_ths,
            sample.temp_c,
            sample.utilisation,
        )
        self._telemetry.offer(TelemetrySample(t_ms=to_ms(sample.at), columns=columns))

    def _backlog(self) -> int:
        return sum(head.next_seq - 1 - head.acked_wm for head in self._store.heads())

    def _hub_link(self) -> HubLink:
        if self._uplink is None:
            return HubLink(online=False, heard_age_s=None, backlog=self._backlog(), last_error="")
        status = self._uplink.status()
        heard = status.hub_heard_at
        age_s = None if heard is None else (self._clock.wall() - heard).total_seconds()
        return HubLink(
            online=status.connected and status.welcomed,
            heard_age_s=age_s,
            backlog=self._backlog(),
            last_error=status.last_error,
        )

    def _inputs(self, feeds: tuple[ReplayFeed | HttpFeed, ...]) -> tuple[InputLine, ...]:
        lines: list[InputLine] = []
        for place, feed in enumerate(feeds):
            said = feed.status
            lines.append(
                InputLine(
                    name="market" if place == 0 else f"market {said.name}",
                    taken=said.ticks,
                    refused=said.refused,
                    last_error=said.last_error[:_ERROR_SHOWN_MAX],
                )
            )
        if self._uplink is not None:
            hub = self._uplink.status()
            lines.append(
                InputLine(name="hub", taken=None, refused=hub.malformed, last_error=hub.last_error)
            )
        if self._config.asics:
            polled = self._fleet.counts()
            failed = ", ".join(f"{code} {count}" for code, count in polled.failed)
            refused = sum(count for _, count in polled.failed)
            lines.append(
                InputLine(name="asics", taken=polled.read, refused=refused, last_error=failed)
            )
        return tuple(lines)

    def _buffer(self) -> BufferView:
        now_ms = to_ms(self._clock.wall())
        return BufferView(
            v=1,
            streams=tuple(
                StreamLine(
                    stream=row.stream.value,
                    pending=row.unacked,
                    bytes=row.kept_bytes,
                    oldest_age_s=None
                    if row.oldest_unacked_at_ms is None
                    else (now_ms - row.oldest_unacked_at_ms) / 1_000,
                )
                for row in self._store.backlog()
            ),
            segment_bytes=self._segments.bytes_held,
            level=int(self._segments.level),
            dropped_segments=self._segments.dropped_segments,
        )

    def _switches(self, agent: Agent, limit: int) -> tuple[SwitchReport, ...]:
        """Give the newest switches: of this run, then those that the event log still holds."""
        found = {report.switch_id: report for report in reversed(agent.switches())}
        if len(found) < limit:
            for event in self._store.recent_events(_EVENTS_READ_MAX):
                if isinstance(event, SwitchReport):
                    found.setdefault(event.switch_id, event)
        return tuple(found.values())[:limit]


def _instant(text: str, otherwise: datetime) -> datetime:
    return datetime.fromisoformat(text) if text else otherwise
