import asyncio
from datetime import UTC, datetime

import msgspec
import pytest

from edge_agent.market.feeds import HttpFeed
from protocol.market import MarketTick

TICK = MarketTick(
    feed="sim",
    measured_at=datetime(2026, 1, 1, tzinfo=UTC),
    source_at=datetime(2026, 1, 1, tzinfo=UTC),
    price_usd_per_mwh=-12.5,
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


async def poll_once(answer: bytes, name: str = "") -> tuple[list[MarketTick], HttpFeed]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answered:
            polled.set()  # a second poll proves that the first answer was dealt with
        answered.append(True)
        writer.write(answer)
        writer.close()

    ticks: list[MarketTick] = []
    polled = asyncio.Event()
    answered: list[bool] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        feed = HttpFeed("127.0.0.1", port, offer=ticks.append, period_s=0.001, name=name)
        task = asyncio.create_task(feed.run())
        async with asyncio.timeout(5):
            await polled.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return ticks, feed


async def test_a_tick_is_read() -> None:
    ticks, _ = await poll_once(HEAD + msgspec.json.encode(TICK))
    assert ticks[0] == TICK


async def test_a_named_feed_keeps_its_ticks_apart_from_those_of_another() -> None:
    ticks, feed = await poll_once(HEAD + msgspec.json.encode(TICK), name="second")
    assert (ticks[0].feed, feed.status.name) == ("second", "second")
    assert ticks[0].price_usd_per_mwh == TICK.price_usd_per_mwh


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b'{"feed":"sim"',
        HEAD + msgspec.json.encode(TICK).replace(b"-12.5", b"1e9"),
        HEAD + msgspec.json.encode(TICK).replace(b"-12.5", b"NaN"),
        HEAD + b"<html>hello</html>",
        b"HTTP/1.1 503 Busy\r\n\r\n",
        b"",
    ],
)
async def test_nonsense_is_counted_and_gives_no_tick(answer: bytes) -> None:
    ticks, feed = await poll_once(answer)
    assert ticks == []
    assert feed.status.refused >= 1
    assert feed.status.last_error
