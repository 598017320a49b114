"""One miner, whatever its firmware: read with its family's decoders, written by its control."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from firmware_bridges.base import (
    Failure,
    Kept,
    MinerAddress,
    Partial,
    ReadDetail,
    Reading,
    WorkMode,
    WriteResult,
    keep,
)
from firmware_bridges.commands import Command, MinerControl, Sleep, Wake
from firmware_bridges.errors import BridgeError, BridgeUnsupportedError
from firmware_bridges.family import ControlContext, Family
from firmware_bridges.http.digest import Credentials
from firmware_bridges.link import MinerLink
from firmware_bridges.query import Asker, Query, Wire
from firmware_bridges.recognise import decode_query, read_partials
from firmware_bridges.sheet import Capability

# What changes from one moment to the next: of an older answer it would be told as of now.
_OF_THE_MOMENT: Final = frozenset(
    {
        "hashrate_ths",
        "hashrate_avg_ths",
        "power_w",
        "uptime_s",
        "state",
        "chip_temp_c_max",
        "board_temp_c_max",
        "inlet_temp_c",
        "fans_rpm",
    }
)
_NONE: Final[frozenset[str]] = frozenset()


class MinerBridge:
    """Reads and controls one miner.

    What a full reading found out is kept: identity, pools and limits stand in the fast readings
    that follow, also while the miner sleeps and tells them no more. Rates, powers, temperatures
    and states are not: they stand in the reading of their own moment only.

    Args:
        family: Of its firmware.
        asker: To the miner.
        host: Its address, for readings and errors.
        control: Of its family; `None` = read-only.
    """

    __slots__ = ("_asker", "_control", "_host", "_kept", "_unknown", "family")

    def __init__(
        self, family: Family, asker: Asker, host: str, *, control: MinerControl | None = None
    ) -> None:
        self.family = family
        self._asker = asker
        self._host = host
        self._control = control
        self._kept: tuple[Kept, ...] = ()
        self._unknown = _NONE

    async def read(self, detail: ReadDetail) -> Reading:
        """Read the miner; what does not answer costs its own fields only.

        Args:
            detail: `fast` asks what changes, `full` everything.

        Raises:
            BridgeError: Nothing answered; the first failure is raised.
        """
        reads = self.family.reads
        if reads is None:
            raise BridgeUnsupportedError(self._host, f"{self.family.name}: recordings only")
        partials: list[Partial] = []
        failed: list[Failure] = []
        silent: dict[Wire, BridgeError] = {}
        first = await self._gather(reads.fast, partials, failed, silent)
        slow: list[Partial] = []
        if detail is ReadDetail.FULL:
            self._unknown = _NONE
            await self._gather(reads.slow, slow, failed, silent)
        if not partials and not slow and first is not None:
            raise first
        told = {part.source for part in slow}
        older = tuple(part for part in self._kept if part.source not in told)
        if slow:
            self._kept = (*(keep(part, _OF_THE_MOMENT) for part in slow), *older)
        return read_partials(self.family, self._host, [*partials, *slow, *older], failed)

    @property
    def family_name(self) -> str:
        """Name the firmware family."""
        return self.family.name

    def effect_s(self, capability: Capability) -> float | None:
        """Give the time within which the effect of a command shows; `None` = not known."""
        row = self.family.sheet.ability(capability)
        return None if row is None else row.effect_s

    async def mode(self) -> WorkMode | None:
        """Read what it was told to do; `None` = not said.

        Raises:
            BridgeError: It could not be read, or the family is read-only.
        """
        return await self._steered().mode()

    async def set_mode(self, mode: WorkMode) -> WriteResult:
        """Put it to sleep, or wake it into a mode.

        Raises:
            BridgeError: Nothing was written.
        """
        return await self.write(Sleep() if mode is WorkMode.SLEEP else Wake(mode=mode))

    async def write(self, command: Command) -> WriteResult:
        """Send one command; what follows is seen by reading.

        Raises:
            BridgeError: Nothing was written.
        """
        return await self._steered().write(command)

    def _steered(self) -> MinerControl:
        if self._control is None:
            raise BridgeUnsupportedError(self._host, f"{self.family.name}: read-only")
        return self._control

    async def _gather(
        self,
        queries: Sequence[Query],
        partials: list[Partial],
        failed: list[Failure],
        silent: dict[Wire, BridgeError],
    ) -> BridgeError | None:
        """Ask some queries in turn; give the first failure."""
        first: BridgeError | None = None
        for query in queries:
            if query.key in self._unknown:
                continue
            if query.wire in silent:
                # One deadline for each wire is enough: a hung miner costs no more than that.
                failed.append(Failure(query.key, silent[query.wire].code))
                continue
            try:
                body = await self._asker.ask(query)
            except BridgeError as exc:
                first = first or exc
                failed.append(Failure(query.key, exc.code))
                if isinstance(exc, BridgeUnsupportedError):
                    self._unknown |= {query.key}
                if exc.is_silence:
                    silent[query.wire] = exc
                continue
            for source, outcome in decode_query(self.family, query, body, self._host):
                if isinstance(outcome, Partial):
                    partials.append(outcome)
                else:
                    first = first or outcome
                    failed.append(Failure(source, outcome.code))
        return first


def bridge_of(
    family: Family,
    address: MinerAddress,
    *,
    credentials: Credentials | None,
    in_flight: asyncio.Semaphore,
    client_nonce: Callable[[], str],
    wall_s: Callable[[], float],
) -> MinerBridge:
    """Make the bridge to one miner over real links.

    Args:
        family: Of its firmware.
        address: Where it listens.
        credentials: Of the owner; `None` = the factory's.
        in_flight: Bounds the open connections of the whole site.
        client_nonce: Fresh random text, for digests, salts and sessions.
        wall_s: Unix seconds, for the commands that carry a time.
    """
    ports = _ports_of(tuple((wire, address.port_for(port)) for wire, port in family.ports.items()))
    link = MinerLink(
        address.host,
        ports,
        in_flight=in_flight,
        client_nonce=client_nonce,
        auth=family.auth,
        credentials=credentials,
    )
    context = ControlContext(
        asker=link,
        credentials=credentials,
        address=address.host,
        wall_s=wall_s,
        random_text=client_nonce,
    )
    control = None if family.control is None else family.control(context)
    return MinerBridge(family, link, address.host, control=control)


@lru_cache(maxsize=1_024)
def _ports_of(pairs: tuple[tuple[Wire, int], ...]) -> Mapping[Wire, int]:
    """Give the one mapping that all miners with these ports share."""
    return dict(pairs)
