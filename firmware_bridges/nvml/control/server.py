"""The helper's socket: who is calling, what they ask, and never more than one call into NVML.

The kernel says who the caller is (SO_PEERCRED). A call that does not return leaves its setting
unknown and its thread stuck: the helper says so to the caller and ends, and whoever started it
starts it anew.
"""

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from firmware_bridges.nvml.control.messages import (
    MESSAGE_BYTES_MAX,
    PREFIX_BYTES,
    SETTING,
    Answer,
    Reason,
    Refused,
    Setting,
    Unconfirmed,
    pack,
)
from firmware_bridges.nvml.errors import NvmlGoneError
from protocol.errors import DecodeError

logger = logging.getLogger(__name__)

Apply = Callable[[Setting], Answer]

REQUEST_S: Final = 10.0
SEND_S: Final = 2.0
WAITING_MAX: Final = 8
# pid, uid, gid: struct ucred of unix(7)
_CREDENTIALS: Final = struct.Struct("=3i")
# After these nothing that the caller sends is read.
_ENDING: Final = frozenset({Reason.MALFORMED, Reason.NOT_PERMITTED})


class ControlServer:
    """Takes settings from those who may ask.

    Args:
        apply: carries one out, blocking. uids: who may ask. call_s: how long it may take.
    """

    def __init__(self, apply: Apply, uids: Collection[int], call_s: float) -> None:
        self._apply = apply
        self._uids = frozenset(uids)
        self._call_s = call_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nvml-control")
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._hangs = False
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self, path: Path, listening: Callable[[], None] = lambda: None) -> str:
        """Serve until a call hangs or the driver is gone; give the reason.

        Args:
            path: of the socket. listening: called when requests are taken.
        """
        server = await asyncio.start_unix_server(
            self._converse, sock=bound(path), limit=MESSAGE_BYTES_MAX
        )
        try:
            listening()
            return await self._failed
        finally:
            server.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after the other."""
        uid = _uid_of(writer)
        try:
            while True:
                async with asyncio.timeout(REQUEST_S):
                    body = await _read(reader)
                answer = await self._answer(uid, body)
                writer.write(pack(answer))
                async with asyncio.timeout(SEND_S):
                    await writer.drain()
                if isinstance(answer, Unconfirmed):
                    return
                if isinstance(answer, Refused) and answer.reason in _ENDING:
                    return
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            return
        finally:
            writer.close()
            if self._hangs and not self._failed.done():
                self._failed.set_result("a call hangs")

    async def _answer(self, uid: int | None, body: bytes | None) -> Answer:
        if uid not in self._uids:
            logger.warning("uid=%s may set nothing", uid)
            return Refused(reason=Reason.NOT_PERMITTED, detail=f"uid {uid}")
        if body is None:
            return Refused(reason=Reason.MALFORMED, detail="over the limit")
        try:
            setting = SETTING.decode(body)
        except DecodeError as exc:
            return Refused(reason=Reason.MALFORMED, detail=str(exc)[:500])
        if self._waiting >= WAITING_MAX:
            return Refused(reason=Reason.BUSY, detail=f"{WAITING_MAX} requests wait")
        self._waiting += 1
        try:
            async with self._turn:
                answer = await self._apply_in_time(setting)
        finally:
            self._waiting -= 1
        logger.info("uid=%s asks %s: %s", uid, setting, answer)
        return answer

    async def _apply_in_time(self, setting: Setting) -> Answer:
        if self._hangs:
            return Refused(reason=Reason.BUSY, detail="an earlier call hangs")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._call_s):
                return await loop.run_in_executor(self._thread, self._apply, setting)
        except TimeoutError:
            self._hangs = True
            return Unconfirmed(detail=f"the call did not return in {self._call_s:g} s")
        except NvmlGoneError as exc:
            if not self._failed.done():
                self._failed.set_result(str(exc))
            return Unconfirmed(detail=str(exc))


async def _read(reader: asyncio.StreamReader) -> bytes | None:
    """Read one request; None for one that announces too much."""
    prefix = await reader.readexactly(PREFIX_BYTES)
    size = int.from_bytes(prefix, "big")
    if not 0 < size <= MESSAGE_BYTES_MAX:
        return None
    return await reader.readexactly(size)


def _uid_of(writer: asyncio.StreamWriter) -> int | None:
    """Ask the kernel who called."""
    peer = writer.get_extra_info("socket")
    if peer is None:
        return None
    told = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(told)
    # pid 0: the kernel does not know (another pid namespace) but the uid still holds
    return int(uid) if pid >= 0 else None


def bound(path: Path) -> socket.socket:
    """Make the socket's file, in place of one that an earlier helper left; its group may use it.

    Raises:
        OSError: the folder is not there, or not ours.
    """
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    made.settimeout(0)
    made.bind(str(path))
    # nobody can connect before it listens
    path.chmod(0o660)
    return made


def end_now(code: int) -> None:
    """End the process, whatever its thread hangs in."""
    logging.shutdown()
    os._exit(code)
