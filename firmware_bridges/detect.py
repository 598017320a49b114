"""Which firmware a machine has, from its first answers.

Every wire is asked at once, each with what its families answer without or with the factory's login:
a silent wire costs its own deadline only. The first queries of the families are data (`Reads`), so
that a new family is looked for without a line of code here.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from firmware_bridges.base import MinerAddress, Reading
from firmware_bridges.cgminer.codec import decode_answers
from firmware_bridges.errors import BridgeError
from firmware_bridges.families import FAMILIES
from firmware_bridges.family import Family
from firmware_bridges.http.digest import Credentials
from firmware_bridges.link import MinerLink
from firmware_bridges.query import Exchange, Query, Wire, cgminer
from firmware_bridges.recognise import Decoded, decode_exchanges, score
from firmware_bridges.transport import Deadlines

PROBE: Final = Deadlines(connect_s=1.5, answer_s=3.0)
# What every descendant of cgminer answers, or refuses by a name that tells it too.
_API: Final = (
    cgminer("version"),
    cgminer("summary"),
    cgminer("stats"),
    cgminer("get_version"),
    cgminer("devdetails"),
)
SURE: Final = 100


class Detected(msgspec.Struct, frozen=True, kw_only=True):
    """What was found at an address.

    Args:
        decoded: Family and reading, from the answers alone.
        exchanges: All that was asked and answered.
        refused: `key: reason` of what was not answered.
    """

    decoded: Decoded
    exchanges: tuple[Exchange, ...]
    refused: tuple[str, ...]

    @property
    def reading(self) -> Reading:
        """Give the reading."""
        return self.decoded.reading


class Prober:
    """Asks unknown machines.

    Args:
        in_flight: Bounds the open connections of all probes together.
        client_nonce: Fresh random text for digests.
        credentials: Of the owner; `None` = each family's factory login.
        families: To look for.
    """

    def __init__(
        self,
        *,
        in_flight: asyncio.Semaphore,
        client_nonce: Callable[[], str],
        credentials: Credentials | None = None,
        families: Iterable[Family] = FAMILIES,
    ) -> None:
        self._in_flight = in_flight
        self._client_nonce = client_nonce
        self._credentials = credentials
        self._families = tuple(families)

    async def detect(self, address: MinerAddress) -> Detected | None:
        """Ask one address; `None` = nothing there speaks as a miner."""
        found: list[Exchange] = []
        refused: list[str] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(self._api(address, found, refused), name="probe-api")
            for family in self._by_web():
                name = f"probe-{family.name}"
                group.create_task(self._web(family, address, found, refused), name=name)
        if not any(_says_something(exchange, address.host) for exchange in found):
            return None
        return Detected(
            decoded=decode_exchanges(found, address.host),
            exchanges=tuple(found),
            refused=tuple(refused),
        )

    async def read(self, address: MinerAddress, family: Family) -> Detected | None:
        """Ask everything that a full reading of a family asks."""
        found: list[Exchange] = []
        refused: list[str] = []
        if family.reads is not None:
            link = self._link(family, address)
            queries = (*family.reads.fast, *family.reads.slow)
            await _ask_all(link, queries, found, refused)
        if not found:
            return None
        return Detected(
            decoded=decode_exchanges(found, address.host),
            exchanges=tuple(found),
            refused=tuple(refused),
        )

    def _by_web(self) -> list[Family]:
        """Give the families that are known by another wire than the cgminer API."""
        return [
            family
            for family in self._families
            if family.reads is not None
            and any(query.wire is not Wire.CGMINER for query in family.reads.fast)
        ]

    async def _api(self, address: MinerAddress, found: list[Exchange], refused: list[str]) -> None:
        link = MinerLink(
            address.host,
            {Wire.CGMINER: address.port_for(4028)},
            in_flight=self._in_flight,
            client_nonce=self._client_nonce,
        )
        await _ask_all(link, _API, found, refused, until=self._is_sure)

    async def _web(
        self, family: Family, address: MinerAddress, found: list[Exchange], refused: list[str]
    ) -> None:
        assert family.reads is not None
        first = next(q for q in family.reads.fast if q.wire is not Wire.CGMINER)
        await _ask_all(self._link(family, address), (first,), found, refused)

    def _is_sure(self, found: list[Exchange]) -> bool:
        return any(score(family, found) >= SURE for family in self._families)

    def _link(self, family: Family, address: MinerAddress) -> MinerLink:
        return MinerLink(
            address.host,
            {wire: address.port_for(port) for wire, port in family.ports.items()},
            in_flight=self._in_flight,
            client_nonce=self._client_nonce,
            auth=family.auth,
            credentials=self._credentials,
        )


async def _ask_all(
    link: MinerLink,
    queries: Iterable[Query],
    found: list[Exchange],
    refused: list[str],
    until: Callable[[list[Exchange]], bool] = lambda _: False,
) -> None:
    """Ask in turn until enough is known, or the wire is silent."""
    silent: set[Wire] = set()
    for query in queries:
        if query.wire in silent:
            continue
        try:
            found.append(Exchange(query=query, body=await link.ask(query, PROBE)))
        except BridgeError as exc:
            refused.append(f"{query.key}: {exc.detail}")
            if exc.is_silence:
                silent.add(query.wire)
        if until(found):
            return


def _says_something(exchange: Exchange, host: str) -> bool:
    """Tell an answer from an error page or another service's greeting."""
    if exchange.query.wire is not Wire.CGMINER:
        return exchange.body.lstrip()[:1] in (b"{", b"[")
    try:
        answers = decode_answers(exchange.body, exchange.query.commands, host)
    except BridgeError:
        return False
    return any(answer.status or answer.sections for answer in answers)
