"""The asyncio client of the cgminer API: one request per connection, one connection per miner."""

import asyncio
from collections.abc import Sequence
from typing import Final

from firmware_bridges.cgminer.codec import (
    Answer,
    decode_answers,
    encode_request,
    raise_for_status,
)
from firmware_bridges.transport import Deadlines, exchange

CGMINER_DEADLINES: Final = Deadlines(connect_s=1.5, answer_s=3.0)


class CgminerEndpoint:
    """One miner's cgminer API.

    The server behind it has a single thread: requests to one miner wait for each other here.

    Args:
        host: IP address.
        port: TCP port.
        in_flight: Bounds the open connections of the whole site; shared by its endpoints.
        deadlines: For each exchange.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        in_flight: asyncio.Semaphore,
        deadlines: Deadlines = CGMINER_DEADLINES,
    ) -> None:
        self.address = f"{host}:{port}"
        self._host = host
        self._port = port
        self._in_flight = in_flight
        self._deadlines = deadlines
        self._one = asyncio.Lock()

    async def ask(
        self, command: str, parameter: str | None = None, *, new_api: bool = False
    ) -> Answer:
        """Ask one command and return its answer.

        Raises:
            BridgeError: It could not be asked, did not answer, or answered with an error.
        """
        request = encode_request((command,), parameter, new_api=new_api)
        answers = await self._exchange(request, (command,))
        raise_for_status(answers[0], self.address)
        return answers[0]

    async def ask_joined(self, commands: Sequence[str]) -> tuple[Answer, ...]:
        """Ask several commands in one exchange; each answer carries its own status.

        Raises:
            BridgeError: It could not be asked or did not answer.
        """
        return await self._exchange(encode_request(commands), commands)

    async def _exchange(self, request: bytes, commands: Sequence[str]) -> tuple[Answer, ...]:
        async with self._one, self._in_flight:
            data = await exchange(
                self._host,
                self._port,
                request,
                is_complete=_ends_with_nul,
                deadlines=self._deadlines,
            )
        return decode_answers(data, commands, self.address)


def _ends_with_nul(buffer: bytearray, start: int) -> bool:
    return buffer.find(b"\0", start) >= 0
