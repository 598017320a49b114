"""HTTP digest authentication, MD5 with qop=auth; no I/O. Source: RFC 2617 sections 3.2 and 3.5."""

import hashlib
import re
from typing import Final

import msgspec

_PARAMETER: Final = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class Credentials(msgspec.Struct, frozen=True):
    """Account of a miner's web pages; the password is kept out of every printed form."""

    user: str
    password: str

    def __repr__(self) -> str:
        """Hide the password."""
        return f"Credentials(user={self.user!r})"


# What the maker ships; public, and changed by careful owners.
FACTORY_CREDENTIALS: Final = Credentials("root", "root")


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """What a server asks for in WWW-Authenticate."""

    realm: str
    nonce: str
    qop: str | None
    opaque: str | None


def decode_challenge(header: str) -> Challenge | None:
    """Decode one WWW-Authenticate header; `None` when it asks for something other than this."""
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() != "digest":
        return None
    values = {
        found.group(1).lower(): found.group(2) if found.group(2) is not None else found.group(3)
        for found in _PARAMETER.finditer(rest)
    }
    offered = [word.strip() for word in values.get("qop", "").split(",")]
    algorithm = values.get("algorithm", "MD5").upper()
    wrong_qop = "qop" in values and "auth" not in offered
    if "realm" not in values or "nonce" not in values or algorithm != "MD5" or wrong_qop:
        return None
    return Challenge(
        realm=values["realm"],
        nonce=values["nonce"],
        qop="auth" if "qop" in values else None,
        opaque=values.get("opaque"),
    )


def authorization(
    challenge: Challenge,
    credentials: Credentials,
    *,
    method: str,
    uri: str,
    nonce_count: int,
    client_nonce: str,
) -> str:
    """Give the Authorization header that answers a challenge.

    Args:
        challenge: Of the server.
        credentials: User and password.
        method: HTTP method of the request.
        uri: Its path.
        nonce_count: How often this nonce has now been used, from 1.
        client_nonce: Fresh random text.
    """
    secret = _md5(f"{credentials.user}:{challenge.realm}:{credentials.password}")
    request = _md5(f"{method}:{uri}")
    count = f"{nonce_count:08x}"
    if challenge.qop is None:
        answer = _md5(f"{secret}:{challenge.nonce}:{request}")
    else:
        middle = f"{challenge.nonce}:{count}:{client_nonce}:{challenge.qop}"
        answer = _md5(f"{secret}:{middle}:{request}")
    parts = [
        f'username="{credentials.user}"',
        f'realm="{challenge.realm}"',
        f'nonce="{challenge.nonce}"',
        f'uri="{uri}"',
        f'response="{answer}"',
    ]
    if challenge.qop is not None:
        parts += [f"qop={challenge.qop}", f"nc={count}", f'cnonce="{client_nonce}"']
    if challenge.opaque is not None:
        parts.append(f'opaque="{challenge.opaque}"')
    return "Digest " + ", ".join(parts)


def _md5(text: str) -> str:
    # The miner's firmware fixes the algorithm; the RFC knows no stronger one that it speaks.
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
