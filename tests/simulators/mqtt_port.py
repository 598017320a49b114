"""The MQTT port as the services declare it, and what the tests do with a connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from simulators.broker import WillLike


class Inbound(Protocol):
    topic: str
    payload: bytes
    retain: bool

    async def ack(self) -> None: ...


class Connection(Protocol):
    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None: ...

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None: ...

    def messages(self) -> AsyncIterator[Inbound]: ...


class Connector(Protocol):
    """The port as the services declare it: SimLink must have its shape."""

    def connect(
        self,
        *,
        client_id: str,
        clean_start: bool,
        session_expiry_s: int,
        receive_maximum: int,
        will: WillLike | None,
    ) -> AbstractAsyncContextManager[Connection]: ...


class Will(msgspec.Struct, frozen=True, kw_only=True):
    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    delay_s: int = 0


def join(
    connector: Connector,
    client_id: str,
    *,
    clean_start: bool = False,
    expiry_s: int = 3600,
    receive_maximum: int = 16,
    will: Will | None = None,
) -> AbstractAsyncContextManager[Connection]:
    return connector.connect(
        client_id=client_id,
        clean_start=clean_start,
        session_expiry_s=expiry_s,
        receive_maximum=receive_maximum,
        will=will,
    )


async def take(
    connection: Connection, count: int, *, ack: bool = True, within_s: float = 5
) -> list[tuple[str, bytes]]:
    """Take messages until there are enough or none comes for a while."""
    taken: list[tuple[str, bytes]] = []
    messages = connection.messages()
    with contextlib.suppress(TimeoutError):
        while len(taken) < count:
            async with asyncio.timeout(within_s):
                message = await anext(messages)
            taken.append((message.topic, message.payload))
            if ack:
                await message.ack()
    return taken
