"""Hands on to the workload host who may use what it serves.

The table is desired state: the agent says it whole with each beat, the host is told it whole when
it has not got it. A node that was just started and has heard no agent says nothing, so the host
goes on with what it was told before.
"""

import asyncio
import logging

from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
from edge_agent.workloads.ports import WorkloadDriver
from protocol.node import LeaseKeys

logger = logging.getLogger(__name__)


class KeyDesk:
    """The table, and what the host has of it."""

    def __init__(self, driver: WorkloadDriver) -> None:
        self._driver = driver
        self._wanted: tuple[LeaseKeys, ...] | None = None
        self._given: tuple[str, tuple[LeaseKeys, ...]] | None = None
        self._one = asyncio.Lock()
        self._failed = False

    def take(self, table: tuple[LeaseKeys, ...] | None) -> bool:
        """Take the agent's word; tells whether the host must be told."""
        if table is None or table == self._wanted:
            return False
        self._wanted = table
        return True

    @property
    def due(self) -> bool:
        """Tell whether the host is there, does not know, and is not being told."""
        return self._untold() is not None and not self._one.locked()

    async def tell(self) -> None:
        """Tell the host unless it knows; one that cannot be told now is told within a second."""
        async with self._one:
            untold = self._untold()
            if untold is None:
                return
            process_id, wanted = untold
            try:
                await self._driver.keys(wanted)
            except (DriverRefusedError, DriverUnavailableError) as exc:
                if not self._failed:
                    logger.warning("the workload host did not take the keys: %s", exc)
                self._failed = True
                return
            self._given, self._failed = (process_id, wanted), False

    def _untold(self) -> tuple[str, tuple[LeaseKeys, ...]] | None:
        info, wanted = self._driver.info(), self._wanted
        if info is None or wanted is None or self._given == (info.process_id, wanted):
            return None
        return info.process_id, wanted
