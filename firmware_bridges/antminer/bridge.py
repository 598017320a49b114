"""One stock Antminer: reads through the cgminer API, identity and control through web pages."""

import asyncio
from collections.abc import Callable

from firmware_bridges.antminer.decode import decode_stats, decode_web_summary
from firmware_bridges.antminer.facts import STOCK, StockFacts
from firmware_bridges.antminer.web import AntminerWeb
from firmware_bridges.base import (
    Failure,
    MinerAddress,
    Partial,
    ReadDetail,
    Reading,
    WorkMode,
    WriteResult,
    merge,
)
from firmware_bridges.cgminer.client import CgminerEndpoint
from firmware_bridges.cgminer.decode import decode_pools, decode_version
from firmware_bridges.errors import (
    BridgeError,
    BridgeRefusedError,
    BridgeTimeoutError,
    BridgeUnreachableError,
)
from firmware_bridges.http.digest import FACTORY_CREDENTIALS, Credentials


class AntminerBridge:
    """Reads and controls one miner with Bitmain stock firmware.

    Args:
        address: Where it listens.
        in_flight: Bounds the open connections of the whole site.
        client_nonce: Fresh random text for digest authentication.
        credentials: Of its web pages.
        facts: Of its firmware.
    """

    def __init__(
        self,
        address: MinerAddress,
        *,
        in_flight: asyncio.Semaphore,
        client_nonce: Callable[[], str],
        credentials: Credentials = FACTORY_CREDENTIALS,
        facts: StockFacts = STOCK,
    ) -> None:
        self._host = address.host
        self._facts = facts
        self._rpc = CgminerEndpoint(
            address.host, address.cgminer_port, in_flight=in_flight, deadlines=facts.rpc
        )
        self._web = AntminerWeb(
            address.host,
            address.web_port,
            credentials=credentials,
            facts=facts,
            in_flight=in_flight,
            client_nonce=client_nonce,
        )

    async def read(self, detail: ReadDetail) -> Reading:
        """Read the miner; what does not answer costs its own fields only.

        Args:
            detail: `fast` is one exchange (`stats` holds rate, power, temperatures and fans);
                `full` adds version, summary, pools, identity and alarms.

        Raises:
            BridgeError: Nothing answered; the first failure is raised.
        """
        rpc, web = self._rpc.address, self._web.address
        asked = [("stats", rpc, self._stats)]
        if detail is ReadDetail.FULL:
            asked += [
                ("summary", rpc, self._summary),
                ("get_system_info.cgi", web, self._identity),
                ("version", rpc, self._version),
                ("pools", rpc, self._pools),
                ("summary.cgi", web, self._alarms),
            ]
        partials: list[Partial] = []
        failed: list[Failure] = []
        silent: dict[str, BridgeError] = {}
        first: BridgeError | None = None
        for source, wire, ask in asked:
            if wire in silent:
                # One deadline per wire is enough: a hung miner costs no more than that.
                failed.append(Failure(source, silent[wire].code))
                continue
            try:
                partials.append(await ask())
            except BridgeError as exc:
                failed.append(Failure(source, exc.code))
                first = first or exc
                if _is_silence(exc):
                    silent[wire] = exc
        if not partials and first is not None:
            raise first
        return merge(self._host, partials, failed)

    async def mode(self) -> WorkMode | None:
        """Read the configured mode; `None` = not said.

        Raises:
            BridgeError: It could not be read.
        """
        return (await self._web.configuration()).mode

    async def set_mode(self, mode: WorkMode) -> WriteResult:
        """Write a mode; what follows is seen by reading.

        Raises:
            BridgeError: The configuration could not be read, so nothing was written.
        """
        return await self._web.set_mode(await self._web.configuration(), mode)

    async def locate(self, *, on: bool) -> WriteResult:
        """Let the fault light blink, or stop it."""
        return await self._web.locate(on=on)

    async def reboot(self) -> WriteResult:
        """Reboot the miner."""
        return await self._web.reboot()

    async def _stats(self) -> Partial:
        return decode_stats(await self._rpc.ask("stats", new_api=self._facts.new_api))

    async def _summary(self) -> Partial:
        return decode_web_summary(await self._rpc.ask("summary"))

    async def _version(self) -> Partial:
        return decode_version(await self._rpc.ask("version"))

    async def _pools(self) -> Partial:
        return decode_pools(await self._rpc.ask("pools"))

    async def _identity(self) -> Partial:
        return await self._web.page("get_system_info.cgi")

    async def _alarms(self) -> Partial:
        return await self._web.page("summary.cgi")


def _is_silence(error: BridgeError) -> bool:
    """Tell a wire that does not answer from one that answers badly."""
    if isinstance(error, BridgeTimeoutError | BridgeUnreachableError):
        return True
    return isinstance(error, BridgeRefusedError) and not error.sent
