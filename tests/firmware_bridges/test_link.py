"""The link to a miner against miners that hang, drip, flood, break off and lie."""

import asyncio

import pytest

from firmware_bridges.cgminer.codec import Answer, decode_answers, raise_for_status
from firmware_bridges.errors import (
    BridgeError,
    BridgeGarbledError,
    BridgeRefusedError,
    BridgeTimeoutError,
    BridgeUnreachableError,
    BridgeUnsupportedError,
)
from firmware_bridges.link import MinerLink
from firmware_bridges.query import Wire, cgminer
from firmware_bridges.transport import Deadlines
from tests.firmware_bridges.wire import Handler, serving

SUMMARY = b'{"STATUS":[{"STATUS":"S","Code":11}],"SUMMARY":[{"Elapsed":60}],"id":1}\0'
QUICK = Deadlines(connect_s=0.5, answer_s=0.2)


class Endpoint:
    """The cgminer API of one miner through a link."""

    def __init__(self, port: int, in_flight: asyncio.Semaphore, deadlines: Deadlines) -> None:
        self._at = f"127.0.0.1:{port}"
        self._link = MinerLink(
            "127.0.0.1",
            {Wire.CGMINER: port},
            in_flight=in_flight,
            client_nonce=lambda: "c0ffee",
            deadlines={Wire.CGMINER: deadlines},
        )

    async def ask(self, command: str) -> Answer:
        body = await self._link.ask(cgminer(command))
        answer = decode_answers(body, (command,), self._at)[0]
        raise_for_status(answer, self._at)
        return answer


def endpoint(port: int, in_flight: int = 8, deadlines: Deadlines = QUICK) -> Endpoint:
    return Endpoint(port, asyncio.Semaphore(in_flight), deadlines)


async def test_the_request_comes_in_one_piece_and_the_nul_ends_the_answer() -> None:
    received: list[bytes] = []

    async def keeps_open(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(4_095))
        writer.write(SUMMARY[:20])
        await asyncio.sleep(0.01)
        writer.write(SUMMARY[20:])
        await asyncio.sleep(10)

    async with serving(keeps_open) as port:
        answer = await endpoint(port).ask("summary")
    assert received == [b'{"command":"summary"}']
    assert answer.section("SUMMARY") == ({"Elapsed": 60},)


async def test_an_answer_without_nul_ends_with_the_connection() -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4_095)
        writer.write(SUMMARY[:-1])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with serving(closes) as port:
        answer = await endpoint(port).ask("summary")
    assert answer.section("SUMMARY") == ({"Elapsed": 60},)


async def hangs(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(10)


async def drips(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b" ")
        await asyncio.sleep(0.01)


async def floods(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


async def babbles(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\xff\xfe{]\0")
    await asyncio.sleep(10)


async def breaks_off(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read(4_095)


async def refuses(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b'{"STATUS":[{"STATUS":"E","Code":14,"Msg":"Invalid command"}],"id":1}\0')
    await asyncio.sleep(10)


@pytest.mark.parametrize(
    ("miner", "error"),
    [
        (hangs, BridgeTimeoutError),
        (drips, BridgeTimeoutError),
        (floods, BridgeGarbledError),
        (babbles, BridgeGarbledError),
        (breaks_off, BridgeUnreachableError),
        (refuses, BridgeUnsupportedError),
    ],
)
async def test_a_bad_miner_costs_its_own_deadline_and_one_clear_error(
    miner: Handler, error: type[BridgeError]
) -> None:
    async with serving(miner) as port, asyncio.timeout(2):
        with pytest.raises(error) as caught:
            await endpoint(port).ask("summary")
    assert caught.value.code == error.code
    assert caught.value.address == f"127.0.0.1:{port}"


async def test_nobody_there_is_refused_and_not_sent() -> None:
    async with serving(hangs) as port:
        pass
    with pytest.raises(BridgeRefusedError) as caught:
        await endpoint(port).ask("summary")
    assert not caught.value.sent


class Counter:
    """A miner that counts its open connections."""

    def __init__(self) -> None:
        self.open = self.most = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        await reader.read(4_095)
        await asyncio.sleep(0.01)
        self.open -= 1
        writer.write(SUMMARY)
        await writer.drain()


async def test_one_miner_gets_one_connection_at_a_time() -> None:
    miner = Counter()
    async with serving(miner.serve) as port:
        one = endpoint(port, deadlines=Deadlines(connect_s=1, answer_s=2))
        answers = await asyncio.gather(*(one.ask("summary") for _ in range(5)))
    assert len(answers) == 5
    assert miner.most == 1


async def test_the_site_limit_bounds_all_miners_together() -> None:
    miner = Counter()
    async with serving(miner.serve) as port:
        shared = asyncio.Semaphore(3)
        all_of_them = [Endpoint(port, shared, Deadlines(connect_s=1, answer_s=2)) for _ in range(9)]
        await asyncio.gather(*(one.ask("summary") for one in all_of_them))
    assert 1 < miner.most <= 3
