"""The asyncio client of a miner's web server: one request a connection, however it logs on.

Digest: the nonce of the last challenge is tried first, a new one once. Token: one login, whose
token serves until it is refused; then one login more. The body of an error page is never an answer.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from firmware_bridges.document import read_json
from firmware_bridges.errors import (
    BridgeAuthError,
    BridgeGarbledError,
    BridgeRefusedError,
    BridgeUnsupportedError,
)
from firmware_bridges.family import AuthKind, WebAuth
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
from firmware_bridges.query import Query
from firmware_bridges.transport import Deadlines, exchange

TOKEN_CHARS_MAX: Final = 4_096

_DENIED: Final = frozenset({401, 403})
_NOT_THERE: Final = frozenset({404, 405, 501})


class WebClient:
    """One web server of one miner; requests to it wait for each other.

    Args:
        host: IP address.
        port: TCP port.
        auth: How it knows its clients.
        credentials: Of the owner; `None` = the factory's.
        in_flight: Bounds the open connections of the whole site; shared by its clients.
        client_nonce: Gives fresh random text for digest authentication.
    """

    __slots__ = (
        "_auth",
        "_challenge",
        "_client_nonce",
        "_credentials",
        "_host",
        "_in_flight",
        "_nonce_count",
        "_one",
        "_port",
        "_token",
        "address",
    )

    def __init__(
        self,
        host: str,
        port: int,
        *,
        auth: WebAuth,
        credentials: Credentials | None,
        in_flight: asyncio.Semaphore,
        client_nonce: Callable[[], str],
    ) -> None:
        self.address = f"{host}:{port}"
        self._host = host
        self._port = port
        self._auth = auth
        self._credentials = credentials or auth.factory
        self._in_flight = in_flight
        self._client_nonce = client_nonce
        self._one = asyncio.Lock()
        self._challenge: Challenge | None = None
        self._nonce_count = 0
        self._token: str | None = None

    async def ask(self, query: Query, deadlines: Deadlines) -> bytes:
        """Send one request and give the body of its answer.

        Raises:
            BridgeError: It was not answered, or with an error.
        """
        async with self._one, self._in_flight:
            if self._auth.kind is AuthKind.TOKEN and self._token is None:
                await self._log_on(deadlines)
            response = await self._attempt(query, deadlines)
            if response.status in _DENIED and await self._prove_anew(response, deadlines):
                response = await self._attempt(query, deadlines)
        return self._checked(response, query.key)

    async def _prove_anew(self, refused: HttpResponse, deadlines: Deadlines) -> bool:
        """Get a new nonce or token; False where this server has no such thing."""
        if self._auth.kind is AuthKind.TOKEN:
            await self._log_on(deadlines)
            return True
        if self._auth.kind is not AuthKind.DIGEST or refused.status != 401:
            return False
        self._challenge = _challenge_of(refused)
        self._nonce_count = 0
        if self._challenge is None:
            raise BridgeAuthError(self.address, "no digest challenge of MD5 auth")
        return True

    async def _log_on(self, deadlines: Deadlines) -> None:
        """Fetch a token.

        Raises:
            BridgeAuthError: There are no credentials, or the server gives no token for them.
        """
        self._token = None
        login, token_of = self._auth.login, self._auth.token_of
        if login is None or token_of is None or self._credentials is None:
            raise BridgeAuthError(self.address, "no credentials to log on with")
        query = login(self._credentials)
        response = await self._attempt(query, deadlines)
        if response.status in _DENIED or response.status == 400:
            raise BridgeAuthError(self.address, f"{query.key}: HTTP {response.status}")
        body = self._checked(response, query.key)
        token = token_of(read_json(body, self.address, query.key))
        if token is None or len(token) > TOKEN_CHARS_MAX or not token.isprintable():
            raise BridgeAuthError(self.address, f"{query.key}: no token in the answer")
        self._token = token

    async def _attempt(self, query: Query, deadlines: Deadlines) -> HttpResponse:
        has_body = query.method not in ("GET", "HEAD")
        request = encode_request(
            query.method,
            query.path,
            self.address,
            proof=self._proof(query),
            body=query.payload if has_body or query.payload else None,
        )
        data = await exchange(
            self._host, self._port, request, is_complete=is_complete, deadlines=deadlines
        )
        try:
            return decode_response(data)
        except HttpFormatError as exc:
            raise BridgeGarbledError(self.address, f"{query.key}: {exc}", sent=True) from exc

    def _proof(self, query: Query) -> tuple[str, str] | None:
        """Give the header that says who asks."""
        if self._token is not None:
            return self._auth.header, self._auth.prefix + self._token
        if self._challenge is None or self._credentials is None:
            return None
        self._nonce_count += 1
        answer = authorization(
            self._challenge,
            self._credentials,
            method=query.method,
            uri=query.path,
            nonce_count=self._nonce_count,
            client_nonce=self._client_nonce(),
        )
        return "Authorization", answer

    def _checked(self, response: HttpResponse, key: str) -> bytes:
        status = response.status
        if 200 <= status < 300:
            return response.body
        detail = f"{key}: HTTP {status}"
        if status in _DENIED:
            self._challenge = self._token = None
            raise BridgeAuthError(self.address, detail, sent=True)
        if status in _NOT_THERE:
            raise BridgeUnsupportedError(self.address, detail, sent=True)
        if status < 500:
            raise BridgeRefusedError(self.address, detail, sent=True)
        raise BridgeGarbledError(self.address, detail, sent=True)


def _challenge_of(response: HttpResponse) -> Challenge | None:
    for name, value in response.headers:
        if name == "www-authenticate" and (challenge := decode_challenge(value)) is not None:
            return challenge
    return None
