"""The miner's side of a pool: one connection at a time, opened again whenever it ends.

A pool is the world: each wait has a limit, a line that is no Stratum ends the connection, and what
a pool asks of the miner (``client.reconnect``) never leads to another host than the one configured.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable

from msgspec import Struct

from edge_agent.reference.errors import OptionError, StratumError
from edge_agent.reference.header import DIFFICULTY_1_TARGET
from edge_agent.reference.stratum import (
    LINE_BYTES_MAX,
    Job,
    Line,
    Session,
    Share,
    decode_line,
    encode_request,
    read_difficulty,
    read_extranonce,
    read_job,
    read_session,
    submit_params,
)
from edge_agent.tasks import first_error

_log = logging.getLogger(__name__)

AGENT = "hcp-reference/1"
CONNECT_S = 10.0
ANSWER_S = 10.0
SILENCE_S = 300.0
SHARES_WAITING_MAX = 256
BACKOFF_S = (0.2, 30.0)


class PoolAddress(Struct, frozen=True):
    """Where a pool listens."""

    host: str
    port: int


class PoolCounts(Struct, kw_only=True):
    """What became of shares and connections since the start."""

    accepted: int = 0
    rejected: int = 0
    dropped: int = 0
    """Found too late, or never answered."""
    connections: int = 0
    faults: int = 0
    """Connections that ended because the pool broke the protocol, or was silent."""
    last_fault: str = ""


class PoolClient:
    """Keeps a connection to a pool.

    Args:
        on_job: is told each new job, with the session and the target of a share it belongs to.
        session_id: of an earlier run, so that the pool may give the same search space again.
    """

    def __init__(
        self,
        address: PoolAddress,
        user: str,
        password: str,
        on_job: Callable[[Job, Session, int], None],
        *,
        session_id: str = "",
        rng: random.Random | None = None,
    ) -> None:
        self.address = address
        self.counts = PoolCounts()
        self.online = False
        self.offline_since_s = time.monotonic()
        self._user = user
        self._password = password
        self._on_job = on_job
        self._session_id = session_id
        self._session: Session | None = None
        self._target = DIFFICULTY_1_TARGET
        self._early_job: Job | None = None
        self._shares: asyncio.Queue[Share] = asyncio.Queue(SHARES_WAITING_MAX)
        self._asked: dict[int, asyncio.Future[Line]] = {}
        self._number = 0
        self._rng = rng or random.Random()

    def submit(self, share: Share) -> None:
        """Hand in a verified share, now or after the next connect."""
        try:
            self._shares.put_nowait(share)
        except asyncio.QueueFull:
            self.counts.dropped += 1

    async def run(self) -> None:
        """Connect, serve, and connect again, until cancelled."""
        wait_s = BACKOFF_S[0]
        while True:
            accepted = self.counts.accepted
            try:
                error = await self._connection()
            except OSError as exc:  # it could not be opened
                error = exc
            if isinstance(error, StratumError | TimeoutError):
                self._fault(error)
            else:
                _log.info("pool lost error=%s", error)
            self._offline()
            if self.counts.accepted > accepted:  # it is a pool, and it works
                wait_s = BACKOFF_S[0]
            await asyncio.sleep(wait_s * self._rng.uniform(0.5, 1.0))
            wait_s = min(BACKOFF_S[1], 2 * wait_s)

    def _fault(self, error: Exception) -> None:
        self.counts.faults += 1
        self.counts.last_fault = f"{type(error).__name__}: {error}"[:200]
        _log.warning("pool fault error=%s", self.counts.last_fault)

    def _offline(self) -> None:
        if self.online:
            self.online, self.offline_since_s = False, time.monotonic()
        self._session, self._early_job = None, None
        self._target = DIFFICULTY_1_TARGET
        for future in self._asked.values():
            future.cancel()
        self._asked.clear()

    async def _connection(self) -> Exception:
        """Connect, and serve until it ends; give why it did.

        Raises:
            OSError: it could not be opened.
        """
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(
                self.address.host, self.address.port, limit=LINE_BYTES_MAX
            )
        self.counts.connections += 1
        try:
            return await first_error(
                {"pool-read": self._read(reader), "pool-talk": self._talk(writer)},
                StratumError,
                OSError,
                EOFError,
            )
        finally:
            writer.transport.abort()

    async def _talk(self, writer: asyncio.StreamWriter) -> None:
        """Introduce this miner, then hand in shares."""
        await self._ask(writer, "mining.subscribe", self._subscription())
        answer = await self._ask(writer, "mining.authorize", [self._user, self._password])
        if answer.result is not True:
            raise StratumError(f"not authorized: {str(answer.error)[:100]}")
        self.online = True
        while True:
            share = await self._shares.get()
            session = self._session
            if session is None or share.session.extranonce1 != session.extranonce1:
                self.counts.dropped += 1
                continue
            try:
                answer = await self._ask(writer, "mining.submit", submit_params(share, self._user))
            except BaseException:
                self.counts.dropped += 1
                raise
            if answer.result is True:
                self.counts.accepted += 1
            else:
                self.counts.rejected += 1

    def _subscription(self) -> list[object]:
        return [AGENT, self._session_id] if self._session_id else [AGENT]

    async def _ask(self, writer: asyncio.StreamWriter, method: str, params: list[object]) -> Line:
        self._number += 1
        number = self._number
        self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(ANSWER_S):
                writer.write(encode_request(number, method, params))
                await writer.drain()
                return await self._asked[number]
        except TimeoutError as exc:
            raise TimeoutError(f"{method} was not answered") from exc
        finally:
            self._asked.pop(number, None)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            async with asyncio.timeout(SILENCE_S):
                try:
                    raw = await reader.readline()
                except ValueError as exc:
                    raise StratumError(f"a line beyond {LINE_BYTES_MAX} bytes") from exc
            if not raw:
                raise EOFError("the pool ended the connection")
            if raw.strip():
                self._take(decode_line(raw))

    def _take(self, line: Line) -> None:
        """Act on a line at once: what follows it may depend on it.

        Raises:
            StratumError: it is no line of the protocol, or asks for another connection.
        """
        match line.method:
            case None:
                self._take_answer(line)
            case "mining.set_difficulty":
                self._target = read_difficulty(line.params)
            case "mining.set_extranonce" if self._session is not None:
                self._session = read_extranonce(line.params, self._session.session_id)
            case "mining.notify":
                self._take_job(read_job(line.params))
            case "client.reconnect":
                raise StratumError("the pool asks to connect again")
            case method:
                _log.debug("pool notice ignored method=%.40s", method)

    def _take_answer(self, line: Line) -> None:
        future = self._asked.get(line.id) if isinstance(line.id, int) else None
        if future is None or future.done():
            raise StratumError(f"an answer to no question, id {str(line.id)[:20]}")
        if self._session is None:
            if line.error is not None:
                raise StratumError(f"subscription refused: {str(line.error)[:100]}")
            self._session = read_session(line.result)
            self._session_id = self._session.session_id
            if self._early_job is not None:
                self._take_job(self._early_job)
        future.set_result(line)

    def _take_job(self, job: Job) -> None:
        if self._session is None:
            self._early_job = job
        else:
            self._on_job(job, self._session, self._target)


def parse_pool(text: str) -> PoolAddress:
    """Read ``stratum+tcp://host:port`` or ``host:port``.

    Raises:
        OptionError: it is neither.
    """
    host, colon, port = text.removeprefix("stratum+tcp://").rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise OptionError(f"pool {text!r}: want stratum+tcp://HOST:PORT")
    return PoolAddress(host.removeprefix("[").removesuffix("]"), int(port))
