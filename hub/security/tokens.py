"""Access tokens: JWT signed with RS256, keys named by their RFC 7638 thumbprint.

The algorithm is pinned and the key is chosen by ``kid`` among our own public keys only: nothing
that a token says of itself (``alg``, ``jku``, ``jwk``, ``x5u``) is believed. Claims are read by a
strict decoder. A verified token is remembered, because to verify costs 50 us and the API serves
thousands a second; its expiry is checked at each use.
"""

import os
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey
from msgspec import Struct

from hub.core.authz import Role
from hub.errors import ConfigError
from hub.security.errors import TokenError

ALGORITHM = "RS256"
KEY_BITS = 2_048
LIFETIME_S = 3_600
# A clock of ours on another machine may be this far ahead.
SKEW_S = 60
TOKEN_BYTES_MAX = 4_096
REMEMBERED_MAX = 10_000


class Claims(Struct, frozen=True, kw_only=True):
    """What a token says of its bearer; ``iat`` and ``exp`` are seconds since 1970."""

    sub: str
    email: str
    role: Role
    customer_id: str | None
    iat: int
    exp: int
    iss: str


class _Header(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    alg: str
    kid: str
    typ: str = "JWT"


_HEADER = msgspec.json.Decoder(_Header)
_CLAIMS = msgspec.json.Decoder(Claims)


class TokenKeys:
    """Signs with the newest key and verifies with every one of them.

    Args:
        keys: RSA private keys, newest first; at least one.
        issuer: the ``iss`` that is written and required.
    """

    def __init__(self, keys: Sequence[RSAKey], issuer: str) -> None:
        assert keys
        self._issuer = issuer
        self._signing = keys[0]
        self._keys = {key.thumbprint(): key for key in keys}
        self._remembered: OrderedDict[str, Claims] = OrderedDict()

    def sign(
        self, *, sub: str, email: str, role: Role, customer_id: str | None, now: datetime
    ) -> str:
        """Make a token that is good for an hour."""
        issued = int(now.timestamp())
        claims = Claims(
            sub=sub,
            email=email,
            role=role,
            customer_id=customer_id,
            iat=issued,
            exp=issued + LIFETIME_S,
            iss=self._issuer,
        )
        header = {"alg": ALGORITHM, "kid": self._signing.thumbprint(), "typ": "JWT"}
        return jws.serialize_compact(
            header, msgspec.json.encode(claims), self._signing, algorithms=[ALGORITHM]
        )

    def verify(self, token: str, now: datetime) -> Claims:
        """Read the claims of a token that we signed and that is good at ``now``.

        Raises:
            TokenError: with a code that says what is wrong, and no more.
        """
        seconds = now.timestamp()
        claims = self._remembered.get(token)
        if claims is None:
            claims = self._verify_new(token)
            self._remembered[token] = claims
            if len(self._remembered) > REMEMBERED_MAX:
                self._remembered.popitem(last=False)
        if claims.exp <= seconds:
            raise TokenError("token_expired", "the token has expired")
        if claims.iat > seconds + SKEW_S:
            raise TokenError("token_early", "the token is from the future")
        return claims

    def jwks(self) -> bytes:
        """Encode the public keys as a JWK set (RFC 7517)."""
        keys = [
            {
                "kty": "RSA",
                "use": "sig",
                "alg": ALGORITHM,
                "kid": kid,
                "n": str(public["n"]),
                "e": str(public["e"]),
            }
            for kid, public in (
                (kid, key.as_dict(private=False)) for kid, key in self._keys.items()
            )
        ]
        return msgspec.json.encode({"keys": keys})

    def _verify_new(self, token: str) -> Claims:
        if len(token) > TOKEN_BYTES_MAX or token.count(".") != 2:
            raise TokenError("token_malformed", "the token is not a compact JWT")
        header = _read_header(token)
        key = self._keys.get(header.kid)
        if header.alg != ALGORITHM or key is None:
            raise TokenError("token_foreign", "the token was not made by this hub")
        try:
            signed = jws.deserialize_compact(token, key, algorithms=[ALGORITHM])
        except (JoseError, ValueError) as exc:
            raise TokenError("token_forged", "the token's signature is wrong") from exc
        try:
            claims = _CLAIMS.decode(signed.payload)
        except msgspec.DecodeError as exc:
            raise TokenError("token_claims", "the token lacks claims") from exc
        if claims.iss != self._issuer or claims.role is Role.ANONYMOUS:
            raise TokenError("token_foreign", "the token was not made by this hub")
        return claims


def _read_header(token: str) -> _Header:
    segment = token.split(".", 1)[0]
    try:
        return _HEADER.decode(urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except (ValueError, msgspec.DecodeError) as exc:
        raise TokenError("token_malformed", "the token's header cannot be read") from exc


def load_keys(folder: Path, now: datetime) -> tuple[RSAKey, ...]:
    """Read the signing keys of a folder, newest name first; make one if there is none.

    Args:
        folder: holds ``<UTC time>.pem`` files, readable by the hub's user alone.
        now: names a new key.

    Raises:
        ConfigError: a key can be read by others, or is none.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths = sorted(folder.glob("*.pem"), reverse=True)
    if not paths:
        paths = [_make_key(folder, now)]
    keys = []
    for path in paths:
        if path.stat().st_mode & 0o077:
            raise ConfigError("key_exposed", f"{path} must be readable by its owner alone (0600)")
        try:
            keys.append(RSAKey.import_key(path.read_bytes()))
        except (JoseError, ValueError, TypeError) as exc:
            raise ConfigError("key_unreadable", f"{path} is not an RSA private key") from exc
    return tuple(keys)


def _make_key(folder: Path, now: datetime) -> Path:
    path = folder / f"{now:%Y%m%dT%H%M%SZ}.pem"
    pem = RSAKey.generate_key(KEY_BITS).as_pem(private=True)
    partial = path.with_suffix(".new")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    return path
