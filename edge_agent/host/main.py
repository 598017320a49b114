"""Composition root of ``hcp-agent host``: one TaskGroup, real clocks, sockets and log."""

import asyncio
import fcntl
import logging
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from edge_agent.addresses import split_tcp
from edge_agent.clock import SystemClock
from edge_agent.credentials import Credentials
from edge_agent.host.admin import Admin
from edge_agent.host.config import EngineConfig, GpuConfig, HostConfig
from edge_agent.host.gate_log import GateLine, GateLog
from edge_agent.host.http_server import HttpLimits, bind, serving
from edge_agent.host.ledger import HostClock, Ledger
from edge_agent.host.moves import Mover
from edge_agent.host.planner import BookFile, Planner, free_to_pin_mib
from edge_agent.host.proxy import Proxy
from edge_agent.host.saved_states import SavedStates
from edge_agent.host.sensors import Sensors
from edge_agent.host.server import HostServer
from edge_agent.host.service import HostService
from edge_agent.host.slot import FAREWELL_S
from edge_agent.notify import sd_notify, watchdog_period_s
from edge_agent.process_limits import calm_collector
from edge_agent.workloads.engine import Engine, EngineSpec

logger = logging.getLogger(__name__)

EngineFactory = Callable[[str, EngineSpec], Engine]

_ADMINS_MAX = 32
_DATA_DIR_MODE = 0o750


async def run_host(config: HostConfig, make_engine: EngineFactory, sensors: Sensors) -> None:
    """Serve one workload host until SIGTERM or SIGINT.

    Args:
        make_engine: gives the driver of an engine by its kind. sensors: of the cards.

    Raises:
        SettingsError: a driver or a credential is missing. OSError: an address or the disk.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with _only_one(config) as folder:
        log = GateLog(folder / "gates.jsonl")
        try:
            await _run(config, make_engine, sensors, log, stop)
        finally:
            log.close()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
            logger.info("host stopped: host_id=%s", config.host_id)


async def _run(
    config: HostConfig,
    make_engine: EngineFactory,
    sensors: Sensors,
    log: GateLog,
    stop: asyncio.Event,
) -> None:
    system = SystemClock()
    clock = HostClock(
        boottime_ns=system.boottime_ns, wall_ns=time.time_ns, boot_id=system.boot_id()
    )

    def write(lines: Iterable[GateLine]) -> None:
        log.write(*lines)

    ledger = Ledger(uuid.uuid4().hex, clock, write)
    folder = Path(config.data_dir)
    planner = Planner(BookFile(folder / "switch-times"), free_to_pin_mib)
    states = SavedStates(folder / "saved", boot_id=clock.boot_id, now_ns=clock.boottime_ns)
    movers = _movers(config, make_engine, states)
    states.tidy(mover.engine_id for mover in movers.values())
    service = HostService(config, movers, sensors, ledger, clock, planner, states)
    async with _listening(config, service):
        await _serve(service, HostServer(service, Path(config.socket)), stop)
    for slot in service.slots.values():
        slot.close()


def _movers(
    config: HostConfig, make_engine: EngineFactory, states: SavedStates
) -> dict[tuple[str, str], Mover]:
    credentials = Credentials(config.credentials_dir)

    def mover(gpu: GpuConfig, role: str, engine: EngineConfig) -> Mover:
        name = engine.token_credential
        spec = engine.spec(gpu, role, credentials.text(name) if name else "")
        limits = config.limits
        return Mover(
            make_engine(engine.kind, spec),
            engine.strategy,
            act_s=limits.act_s,
            grace_s=limits.grace_s,
            states=states,
        )

    return {
        (gpu.name, role): mover(gpu, role, engine)
        for gpu in config.gpus
        for role, engine in (("miner", gpu.miner), ("server", gpu.server))
        if engine is not None
    }


@asynccontextmanager
async def _listening(config: HostConfig, service: HostService) -> AsyncIterator[None]:
    proxy = Proxy(service.doors, service, config.proxy.request)
    customers = bind(*split_tcp(config.proxy.listen))
    admins = bind(*split_tcp(config.proxy.admin))
    async with (
        serving(proxy, customers, config.proxy.http, service.refused, FAREWELL_S),
        serving(Admin(service), admins, HttpLimits(connections_max=_ADMINS_MAX)),
    ):
        logger.info("proxy listens: %s admin: %s", customers.getsockname(), admins.getsockname())
        yield


class _StopHost(Exception):  # noqa: N818 - a request, no error
    """Unwinds the TaskGroup at a signal."""


async def _serve(service: HostService, server: HostServer, stop: asyncio.Event) -> None:
    listening = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(service.run(), name="host-service")
            group.create_task(server.run(listening.set), name="host-server")
            group.create_task(_notify(listening), name="notify")
            await stop.wait()
            sd_notify("STOPPING=1")
            await service.close_gates()
            raise _StopHost
    except* _StopHost:
        logger.info("asked to stop")


async def _notify(listening: asyncio.Event) -> None:
    """Say READY once the host listens, and feed the watchdog while the loop turns."""
    await listening.wait()
    sd_notify("READY=1")
    calm_collector()
    logger.info("host ready")
    period_s = watchdog_period_s()
    while period_s is not None:
        await asyncio.sleep(period_s)
        sd_notify("WATCHDOG=1")


@contextmanager
def _only_one(config: HostConfig) -> Iterator[Path]:
    """Hold the data folder: two hosts on one GPU would both think that it is theirs.

    Raises:
        BlockingIOError: another host holds it.
    """
    folder = Path(config.data_dir)
    folder.mkdir(mode=_DATA_DIR_MODE, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise BlockingIOError(f"another host holds {folder}") from exc
        yield folder
