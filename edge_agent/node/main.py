"""Composition root of ``hcp-agent node``: one TaskGroup, real clocks, sockets and store."""

import asyncio
import logging
import os
import random
import signal
import ssl
from pathlib import Path

from edge_agent.clock import SystemClock
from edge_agent.credentials import Credentials
from edge_agent.node.config import NodeConfig
from edge_agent.node.server import NodeServer
from edge_agent.node.service import NodeService
from edge_agent.node.store import MIGRATIONS, NodeStore
from edge_agent.notify import sd_notify, watchdog_period_s
from edge_agent.process_limits import calm_collector
from edge_agent.storage.writer import ThreadedWriter
from edge_agent.transport.tls import server_context
from edge_agent.workloads.host_driver import HostDriver

logger = logging.getLogger(__name__)

_DATA_DIR_MODE = 0o750


async def run_node(config: NodeConfig) -> None:
    """Serve one node until SIGTERM or SIGINT.

    Raises:
        NodeStoreError: the data folder belongs to another node. StorageError: the disk.
        SettingsError: its certificate cannot be used.
    """
    store = NodeStore(ThreadedWriter(_store_path(config), MIGRATIONS))
    jitter = random.Random(os.urandom(16))
    driver = HostDriver(
        config.driver.socket, uniform=jitter.uniform, timeout_s=config.driver.timeout_s
    )
    service = NodeService(config, driver, store, SystemClock())
    await service.start()
    server = NodeServer(service, config.listen, _tls(config))
    stop, listening = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await _serve(driver, service, server, listening, stop)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        await store.close()
        logger.info("node stopped: node_id=%s", config.node_id)


def _tls(config: NodeConfig) -> ssl.SSLContext | None:
    if config.tls is None:
        return None
    credentials = Credentials(config.credentials_dir)
    names = (config.tls.tls_ca, config.tls.tls_cert, config.tls.tls_key)
    ca, cert, key = map(credentials.path, names)
    return server_context(ca, cert, key, section="tls")


def _store_path(config: NodeConfig) -> Path:
    folder = Path(config.data_dir)
    folder.mkdir(mode=_DATA_DIR_MODE, parents=True, exist_ok=True)
    return folder / "node.sqlite"


class _StopNode(Exception):  # noqa: N818 - a request, no error
    """Unwinds the TaskGroup at a signal."""


async def _serve(
    driver: HostDriver,
    service: NodeService,
    server: NodeServer,
    listening: asyncio.Event,
    stop: asyncio.Event,
) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(driver.run(), name="workload-driver")
            group.create_task(service.run(), name="node-service")
            group.create_task(server.run(listening), name="node-server")
            group.create_task(_notify(listening), name="notify")
            await stop.wait()
            sd_notify("STOPPING=1")
            raise _StopNode
    except* _StopNode:
        logger.info("asked to stop")


async def _notify(listening: asyncio.Event) -> None:
    """Say READY once the node listens, and feed the watchdog while the loop turns."""
    await listening.wait()
    sd_notify("READY=1")
    calm_collector()
    logger.info("node ready")
    period_s = watchdog_period_s()
    while period_s is not None:
        await asyncio.sleep(period_s)
        sd_notify("WATCHDOG=1")
