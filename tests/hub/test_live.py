"""Live fan-out: a stalled client costs the others nothing, itself its oldest messages."""

import asyncio
import json

from hub.live import QUEUE_MAX, RESYNC, LiveChannel, LiveClient

ALL = frozenset({"workload", "site"})


class _Socket:
    """A peer whose buffer is full until it is opened."""

    def __init__(self, *, stalled: bool = False) -> None:
        self.got: list[str] = []
        self.writable = asyncio.Event()
        self.tasks: set[object] = set()
        if not stalled:
            self.writable.set()

    async def send(self, text: str) -> None:
        await self.writable.wait()
        self.tasks.add(asyncio.current_task())
        self.got.append(text)


def _client(socket: _Socket, customer: str | None = None) -> LiveClient:
    return LiveClient(socket.send, customer_id=customer, staff=customer is None, topics=ALL)


async def test_a_client_that_keeps_up_gets_it_within_publish() -> None:
    channel, socket = LiveChannel(), _Socket()
    channel.join(_client(socket))
    channel.publish("site", None, b'{"a":1}')
    assert [json.loads(text) for text in socket.got] == [{"topic": "site", "a": 1}]


async def test_customers_see_their_own_and_nothing_for_staff_alone() -> None:
    channel, own, staff = LiveChannel(), _Socket(), _Socket()
    channel.join(_client(own, "c1"))
    channel.join(_client(staff))
    channel.publish("workload", "c1", b'{"n":1}')
    channel.publish("workload", "c2", b'{"n":2}')
    channel.publish("site", None, b'{"n":3}')
    channel.publish("switch", "c1", b'{"n":4}')  # nobody asked for it
    assert [json.loads(text)["n"] for text in own.got] == [1]
    assert [json.loads(text)["n"] for text in staff.got] == [1, 2, 3]


async def test_what_is_for_the_owner_alone_is_sent_to_no_one_else() -> None:
    channel, own, other, staff = LiveChannel(), _Socket(), _Socket(), _Socket()
    channel.join(_client(own, "c1"))
    channel.join(_client(other, "c2"))
    channel.join(_client(staff))
    channel.publish("workload", "c1", b'{"url":null}', b'{"url":"http://x"}')
    assert [json.loads(text)["url"] for text in own.got] == ["http://x"]
    assert [json.loads(text)["url"] for text in staff.got] == [None]
    assert other.got == []


async def test_a_stalled_client_delays_nobody_and_gets_everything_in_order_later() -> None:
    channel, stalled, quick = LiveChannel(), _Socket(stalled=True), _Socket()
    slow = _client(stalled)
    channel.join(slow)
    channel.join(_client(quick))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(slow.drain(), name="drain")
        for n in range(100):
            channel.publish("site", None, b'{"n":%d}' % n)
        assert len(quick.got) == 100
        assert stalled.got == []
        await asyncio.sleep(0)
        stalled.writable.set()
        for _ in range(10):
            await asyncio.sleep(0)
        channel.publish("site", None, b'{"n":100}')
        task.cancel()
    assert [json.loads(text)["n"] for text in stalled.got] == list(range(101))
    assert slow.dropped == 0


async def test_a_full_queue_drops_the_oldest_and_says_resync() -> None:
    channel, stalled = LiveChannel(), _Socket(stalled=True)
    slow = _client(stalled)
    channel.join(slow)
    total = QUEUE_MAX + 51
    async with asyncio.TaskGroup() as group:
        task = group.create_task(slow.drain(), name="drain")
        for n in range(total):
            channel.publish("site", None, b'{"n":%d}' % n)
        stalled.writable.set()
        await asyncio.sleep(0.01)
        task.cancel()
    assert stalled.got[1] == RESYNC
    numbers = [json.loads(text)["n"] for text in stalled.got if text != RESYNC]
    assert numbers == [0, *range(total - QUEUE_MAX, total)]
    assert slow.dropped == total - 1 - QUEUE_MAX


async def test_a_broken_client_ends_alone() -> None:
    async def broken(_: str) -> None:
        raise ConnectionResetError

    channel, good = LiveChannel(), _Socket()
    bad = LiveClient(broken, customer_id=None, staff=True, topics=ALL)
    channel.join(bad)
    channel.join(_client(good))
    channel.publish("site", None, b"{}")
    channel.publish("site", None, b"{}")
    assert bad.gone
    assert len(good.got) == 2


async def test_cancelling_a_blocked_client_leaves_nothing_behind() -> None:
    channel, stalled = LiveChannel(), _Socket(stalled=True)
    slow = _client(stalled)
    number = channel.join(slow)
    assert number is not None
    task = asyncio.ensure_future(slow.drain())
    channel.publish("site", None, b"{}")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    channel.leave(number)
    assert slow.gone
    assert channel.clients == 0


async def test_the_channel_takes_no_more_than_its_limit() -> None:
    channel = LiveChannel(clients_max=1)
    assert channel.join(_client(_Socket())) is not None
    assert channel.join(_client(_Socket())) is None
