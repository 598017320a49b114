"""The asyncio client of a stock Antminer's web pages: identity, configuration, sleep and wake."""

import asyncio
import re
from collections.abc import Callable
from typing import Final

import msgspec

from firmware_bridges.antminer.decode import decode_page, mode_of, with_mode
from firmware_bridges.antminer.facts import StockFacts
from firmware_bridges.base import Partial, WorkMode, WriteResult, WriteState
from firmware_bridges.errors import (
    BridgeAuthError,
    BridgeError,
    BridgeGarbledError,
    BridgeRefusedError,
    BridgeUnsupportedError,
)
from firmware_bridges.http.digest import (
    Challenge,
    Credentials,
    authorization,
    decode_challenge,
)
from firmware_bridges.http.wire import (
    HttpFormatError,
    HttpResponse,
    decode_response,
    encode_request,
    is_complete,
)
from firmware_bridges.transport import Deadlines, exchange

_PAGES: Final = "/cgi-bin/"
_SUCCESS: Final = "success"
_CODE_CHARS_MAX: Final = 32
# blink.cgi answers with these instead of "success"; on and off.
_BLINK_CODES: Final = frozenset({"B000", "B100"})
_CODE: Final = re.compile(r"[A-Za-z0-9_.-]+")


class MinerConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration as read: its bytes, kept whole for writing back, and its mode."""

    body: bytes
    mode: WorkMode | None


class AntminerWeb:
    """One miner's web pages, one connection at a time.

    Args:
        host: IP address.
        port: TCP port.
        credentials: Of the web pages.
        facts: Deadlines of this firmware.
        in_flight: Bounds the open connections of the whole site; shared by its clients.
        client_nonce: Gives fresh random text for digest authentication.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        credentials: Credentials,
        facts: StockFacts,
        in_flight: asyncio.Semaphore,
        client_nonce: Callable[[], str],
    ) -> None:
        self.address = f"{host}:{port}"
        self._host = host
        self._port = port
        self._credentials = credentials
        self._facts = facts
        self._in_flight = in_flight
        self._client_nonce = client_nonce
        self._one = asyncio.Lock()
        self._challenge: Challenge | None = None
        self._nonce_count = 0

    async def page(self, name: str) -> Partial:
        """Read one page and decode it.

        Args:
            name: `stats.cgi`, `summary.cgi` or `get_system_info.cgi`.

        Raises:
            BridgeError: It could not be read or understood.
        """
        response = await self._request("GET", name, None, self._facts.page)
        return decode_page(response.body, name, self.address)

    async def configuration(self) -> MinerConfiguration:
        """Read the configuration.

        Raises:
            BridgeError: It could not be read or understood.
        """
        response = await self._request("GET", "get_miner_conf.cgi", None, self._facts.page)
        try:
            row = msgspec.json.decode(response.body, type=dict[str, object])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise BridgeGarbledError(self.address, f"get_miner_conf.cgi: {exc}") from exc
        return MinerConfiguration(body=response.body, mode=mode_of(row))

    async def set_mode(self, configuration: MinerConfiguration, mode: WorkMode) -> WriteResult:
        """Write the configuration back with another mode; the miner reloads.

        Args:
            configuration: As just read; everything but the mode is kept.
            mode: The new one.

        Returns:
            What the miner said. Once the request may have reached it, silence is `unknown`.
        """
        try:
            body = with_mode(configuration.body, mode, self.address)
        except BridgeGarbledError as exc:
            return WriteResult(state=WriteState.REFUSED, code=exc.code, detail=exc.detail)
        return await self._write("set_miner_conf.cgi", body, self._facts.configure)

    async def locate(self, *, on: bool) -> WriteResult:
        """Let the fault light blink, or stop it."""
        body = b'{"blink":"true"}' if on else b'{"blink":"false"}'
        return await self._write("blink.cgi", body, self._facts.page)

    async def reboot(self) -> WriteResult:
        """Reboot the miner; it drops the link, so `unknown` is the usual result."""
        return await self._write("reboot.cgi", b"", self._facts.page)

    async def _write(self, name: str, body: bytes, deadlines: Deadlines) -> WriteResult:
        try:
            response = await self._request("POST", name, body, deadlines)
        except (BridgeAuthError, BridgeRefusedError, BridgeUnsupportedError) as exc:
            return WriteResult(state=WriteState.REFUSED, code=exc.code, detail=exc.detail)
        except BridgeError as exc:
            state = WriteState.UNKNOWN if exc.sent else WriteState.REFUSED
            return WriteResult(state=state, code=exc.code, detail=exc.detail)
        return judge_write(response.body)

    async def _request(
        self, method: str, name: str, body: bytes | None, deadlines: Deadlines
    ) -> HttpResponse:
        """Ask one page; the nonce of the last challenge is tried first, a new one once."""
        async with self._one, self._in_flight:
            response = await self._attempt(method, name, body, deadlines)
            if response.status == 401:
                self._challenge = _challenge_of(response)
                self._nonce_count = 0
                if self._challenge is None:
                    raise BridgeAuthError(self.address, f"{name}: no digest challenge of MD5 auth")
                response = await self._attempt(method, name, body, deadlines)
        return self._checked(response, name)

    async def _attempt(
        self, method: str, name: str, body: bytes | None, deadlines: Deadlines
    ) -> HttpResponse:
        path = _PAGES + name
        request = encode_request(
            method,
            path,
            self.address,
            authorization=self._authorization(method, path),
            body=body,
        )
        data = await exchange(
            self._host, self._port, request, is_complete=is_complete, deadlines=deadlines
        )
        try:
            return decode_response(data)
        except HttpFormatError as exc:
            raise BridgeGarbledError(self.address, f"{name}: {exc}", sent=True) from exc

    def _authorization(self, method: str, path: str) -> str | None:
        if self._challenge is None:
            return None
        self._nonce_count += 1
        return authorization(
            self._challenge,
            self._credentials,
            method=method,
            uri=path,
            nonce_count=self._nonce_count,
            client_nonce=self._client_nonce(),
        )

    def _checked(self, response: HttpResponse, name: str) -> HttpResponse:
        """Turn an HTTP error into ours; the body of an error page is never read as an answer."""
        status = response.status
        if 200 <= status < 300:
            return response
        detail = f"{name}: HTTP {status}"
        if status in (401, 403):
            self._challenge = None
            raise BridgeAuthError(self.address, detail, sent=True)
        if status in (404, 405, 501):
            raise BridgeUnsupportedError(self.address, detail, sent=True)
        if status < 500:
            raise BridgeRefusedError(self.address, detail, sent=True)
        raise BridgeGarbledError(self.address, detail, sent=True)


def judge_write(body: bytes) -> WriteResult:
    """Judge what a page said to a write; what cannot be understood is `unknown`."""
    try:
        row = msgspec.json.decode(body.rstrip(b"\0"), type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return WriteResult(
            state=WriteState.UNKNOWN, code=BridgeGarbledError.code, detail="answer is no object"
        )
    code = _code(row.get("code"))
    stats = row.get("stats")
    detail = str(row.get("msg", ""))[:_CODE_CHARS_MAX]
    if stats == _SUCCESS or code in _BLINK_CODES:
        return WriteResult(state=WriteState.ACKNOWLEDGED, code=code, detail=detail)
    if isinstance(stats, str):
        return WriteResult(state=WriteState.REFUSED, code=code, detail=f"{stats}: {detail}")
    return WriteResult(state=WriteState.UNKNOWN, code=code, detail="answer names no result")


def _code(value: object) -> str:
    found = _CODE.match(value) if isinstance(value, str) else None
    return found.group()[:_CODE_CHARS_MAX] if found else ""


def _challenge_of(response: HttpResponse) -> Challenge | None:
    for name, value in response.headers:
        if name == "www-authenticate" and (challenge := decode_challenge(value)) is not None:
            return challenge
    return None
