"""The API of an engine on this machine: one request at a time, JSON, and no trust in a 200.

What an answer means for the act: a refusal says that it did not happen; silence, a cut answer, and
the error page of a gateway in between leave it unknown.
"""

import ipaddress
import re
from typing import Final, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec

from edge_agent.workloads.engine_time import engine_acts
from edge_agent.workloads.engines.evidence import Deadline
from edge_agent.workloads.errors import (
    DriverRefusedError,
    DriverUnavailableError,
    NobodyListensError,
    Refusal,
)
from firmware_bridges.errors import BridgeError, BridgeRefusedError
from firmware_bridges.http.wire import (
    HttpFormatError,
    HttpResponse,
    decode_response,
    encode_request,
    is_complete,
)
from firmware_bridges.transport import Deadlines, IsComplete, exchange

T = TypeVar("T")

CONNECT_S: Final = 1.0
DETAIL_CHARS_MAX: Final = 200

_UNSUPPORTED: Final = frozenset({404, 405, 501})
_GATEWAY: Final = frozenset({502, 504})
_MEMORY_SHORT: Final = re.compile(
    r"out of memory|outofmemory|\boom\b|cannot allocate", re.IGNORECASE
)


class Exchange(Protocol):
    """Carries one request to an address and gives its answer; raises ``BridgeError``."""

    async def __call__(
        self, host: str, port: int, request: bytes, *, is_complete: IsComplete, deadlines: Deadlines
    ) -> bytes:
        """Give what came until the answer was whole or the peer closed."""
        ...


class EngineHttp:
    """Client of one engine.

    Args:
        url: Base address, such as ``http://127.0.0.1:8000``; plain, as it stays on it.
        token: Bearer token; empty = none. carry: over sockets, or what stands in for them.

    Raises:
        DriverRefusedError: The address is none, or of another machine.
    """

    def __init__(self, url: str, token: str = "", carry: Exchange = exchange) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port or 80
        except ValueError:
            port = 0
        host = parts.hostname or ""
        # the token goes over it in the clear, and these APIs let anybody do anything
        if parts.scheme != "http" or not port or not _is_loopback(host) or not _is_header(token):
            detail = f"no address of an API on this machine: {url!r}"
            raise DriverRefusedError(Refusal.BAD_REQUEST, detail)
        self._carry = carry
        self._host = host
        self._port = port
        self._base = parts.path.rstrip("/")
        self._proof = ("Authorization", f"Bearer {token}") if token else None
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def get(self, path: str, kind: type[T], deadline: Deadline) -> T:
        """Read a JSON document.

        Raises:
            WorkloadError: It was refused, or not answered.
        """
        response = await self.ask("GET", path, None, deadline)
        return self._decoded(response, path, kind)

    async def post(self, path: str, body: object, kind: type[T], deadline: Deadline) -> T:
        """Act, and read the JSON answer.

        Raises:
            WorkloadError: It was refused, or not answered.
        """
        with engine_acts():
            response = await self.ask("POST", path, msgspec.json.encode(body), deadline)
        return self._decoded(response, path, kind)

    async def act(self, path: str, deadline: Deadline, body: object = None) -> None:
        """Act; the body of the answer says nothing that would be believed.

        Raises:
            WorkloadError: It was refused, or not answered.
        """
        content = b"" if body is None else msgspec.json.encode(body)
        with engine_acts():
            await self.ask("POST", path, content, deadline)

    async def ask(
        self, method: str, path: str, body: bytes | None, deadline: Deadline
    ) -> HttpResponse:
        """Send one request and give its answer of 2xx that is no page.

        Raises:
            DriverRefusedError: Another answer.
            NobodyListensError: The connection was refused.
            DriverUnavailableError: None, or no whole one in time.
        """
        request = encode_request(
            method, self._base + path, self.address, proof=self._proof, body=body, keep=True
        )
        left_s = deadline.left_s()
        deadlines = Deadlines(connect_s=min(CONNECT_S, left_s), answer_s=left_s)
        where = f"{method} {self._base}{path}"
        try:
            data = await self._carry(
                self._host, self._port, request, is_complete=is_complete, deadlines=deadlines
            )
            response = decode_response(data)
        except BridgeRefusedError as exc:
            raise NobodyListensError(f"{where}: {exc.detail}") from exc
        except BridgeError as exc:
            raise DriverUnavailableError(f"{where}: {exc.detail}") from exc
        except HttpFormatError as exc:
            raise DriverUnavailableError(f"{where}: {exc}") from exc
        _check(response, where)
        return response

    def _decoded(self, response: HttpResponse, path: str, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(response.body, type=kind)
        except (msgspec.MsgspecError, RecursionError) as exc:
            detail = f"{self._base}{path}: {exc}; it said {_words(response.body)}"
            raise DriverRefusedError(Refusal.NOT_API, detail) from exc


def _check(response: HttpResponse, where: str) -> None:
    """Raise for everything but an answer of 2xx that is no page."""
    status = response.status
    is_page = "html" in (response.header("content-type") or "") or response.body.lstrip()[
        :9
    ].lower().startswith((b"<!doctype", b"<html"))
    if status in _GATEWAY:
        raise DriverUnavailableError(f"{where}: a gateway answered {status} for it")
    if 200 <= status < 300:
        if is_page:
            raise DriverRefusedError(Refusal.NOT_API, f"{where}: an HTML page, no JSON")
        return
    said = "an HTML page" if is_page else _words(response.body)
    raise DriverRefusedError(_code(status, response.body), f"{where}: HTTP {status}: {said}")


def _code(status: int, body: bytes) -> Refusal:
    if status in (401, 403):
        return Refusal.DENIED
    if status in _UNSUPPORTED:
        return Refusal.UNSUPPORTED
    if status in (409, 429, 503):
        return Refusal.BUSY
    if status < 500:
        return Refusal.BAD_REQUEST
    short = _MEMORY_SHORT.search(body[:4_096].decode("utf-8", "replace"))
    return Refusal.OUT_OF_MEMORY if short else Refusal.ENGINE_ERROR


def _words(body: bytes) -> str:
    text = " ".join(body[: 4 * DETAIL_CHARS_MAX].decode("utf-8", "replace").split())
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return printable[:DETAIL_CHARS_MAX] or "nothing"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_header(token: str) -> bool:
    return token.isascii() and (not token or token.isprintable())
