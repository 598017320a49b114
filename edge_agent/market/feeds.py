"""The live ends of the market: a replayed directory, and a source polled over HTTP.

A feed gives ticks to a callback and keeps count of what it refused. When its source is silent or
talks nonsense it gives nothing: the last tick ages, and the decision holds, then falls back.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.market.errors import FeedError
from edge_agent.market.replay import ReplayMap, next_change, tick_at
from edge_agent.market.series import MarketData
from edge_agent.ports import Clock
from protocol.market import GpuRate, MarketTick

_log = logging.getLogger(__name__)

ANSWER_BYTES_MAX = 256 * 1_024
# A replay also repeats the unchanged tick now and then, so that a restart of its reader sees it.
_REPEAT_S = 5.0


class FeedStatus(Struct, kw_only=True):
    """Counters of one feed."""

    name: str
    ticks: int = 0
    refused: int = 0
    last_error: str = ""


class ReplayFeed:
    """Replays a directory of prices.

    Args:
        data: the series, read before. mapping: of time. offer: takes each tick.
        static_rates: GPU rates where the directory has none. name: of the feed.
    """

    def __init__(
        self,
        data: MarketData,
        mapping: ReplayMap,
        *,
        clock: Clock,
        offer: Callable[[MarketTick], None],
        static_rates: tuple[GpuRate, ...],
        name: str = "csv",
    ) -> None:
        self._data = data
        self._mapping = mapping
        self._clock = clock
        self._offer = offer
        self._rates = static_rates
        self.status = FeedStatus(name=name)

    async def run(self) -> None:
        """Give a tick at each change of price, until cancelled or until the data end."""
        while True:
            now = self._clock.wall()
            self._tell()
            change = next_change(self._data, self._mapping, now)
            wait_s = _REPEAT_S
            if change is not None:
                wait_s = min(wait_s, (change - now) / timedelta(seconds=1))
            await asyncio.sleep(max(0.001, wait_s))

    def _tell(self) -> None:
        try:
            tick = tick_at(
                self._data,
                self._mapping,
                self._clock.wall(),
                feed=self.status.name,
                static_rates=self._rates,
            )
        except ValueError as exc:  # a value that no market can say
            self.status.refused += 1
            self.status.last_error = str(exc)
            _log.warning("market value refused feed=%s error=%s", self.status.name, exc)
            return
        if tick is not None:
            self.status.ticks += 1
            self._offer(tick)


class HttpFeed:
    """Polls ``GET /tick`` of a source that answers one JSON tick.

    Args:
        host, port: where the source listens. period_s: between two polls.
        name: under which its ticks are kept; empty takes the name in them.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        offer: Callable[[MarketTick], None],
        period_s: float = 1.0,
        name: str = "",
    ) -> None:
        self._host = host
        self._port = port
        self._offer = offer
        self._period_s = period_s
        self._decoder = msgspec.json.Decoder(MarketTick)
        self._name = name
        self.status = FeedStatus(name=name or "http")

    async def run(self) -> None:
        """Poll until cancelled; say once when the source goes away and once when it is back."""
        away = False
        while True:
            try:
                async with asyncio.timeout(3.0):
                    tick = await self._poll()
            except (OSError, TimeoutError, FeedError) as exc:
                self.status.refused += 1
                self.status.last_error = str(exc) or type(exc).__name__
                if not away:
                    _log.warning("market source away error=%s", self.status.last_error)
                away = True
            else:
                if away:
                    _log.info("market source back")
                away = False
                self.status.ticks += 1
                self._offer(tick)
            await asyncio.sleep(self._period_s)

    async def _poll(self) -> MarketTick:
        reader, writer = await asyncio.open_connection(
            self._host, self._port, limit=ANSWER_BYTES_MAX
        )
        try:
            request = f"GET /tick HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n\r\n"
            writer.write(request.encode())
            await writer.drain()
            answer = await reader.read(ANSWER_BYTES_MAX)
            while len(answer) < ANSWER_BYTES_MAX and (more := await reader.read(ANSWER_BYTES_MAX)):
                answer += more
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
            raise FeedError("bad_status", head[:60].decode("latin-1"))
        try:
            tick = self._decoder.decode(body)
            return replace(tick, feed=self._name) if self._name else tick
        except (msgspec.MsgspecError, ValueError) as exc:
            raise FeedError("bad_tick", str(exc)) from exc
