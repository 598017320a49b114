"""The password hash that WhatsMiners make their keys of: md5-crypt, as Unix systems store it.

Source: the algorithm published with FreeBSD 2.0 (`$1$`); checked against `openssl passwd -1`.
"""

from __future__ import annotations

import hashlib

_ALPHABET = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ORDER = ((0, 6, 12), (1, 7, 13), (2, 8, 14), (3, 9, 15), (4, 10, 5))


def md5crypt(password: str, salt: str) -> str:
    """Return the hash part of `$1$salt$hash`; a salt is cut to eight characters."""
    secret, grain = password.encode(), salt.encode()[:8]
    inner = _md5(secret + grain + secret)
    text = secret + b"$1$" + grain + (inner * (len(secret) // 16 + 1))[: len(secret)]
    left = len(secret)
    while left:
        text += b"\0" if left & 1 else secret[:1]
        left >>= 1
    digest = _md5(text)
    for turn in range(1000):
        odd = turn % 2 == 1
        body = secret if odd else digest
        body += (grain if turn % 3 else b"") + (secret if turn % 7 else b"")
        digest = _md5(body + (digest if odd else secret))
    groups = [_letters(digest[a] << 16 | digest[b] << 8 | digest[c], 4) for a, b, c in _ORDER]
    return "".join(groups) + _letters(digest[11], 2)


def _letters(value: int, count: int) -> str:
    return "".join(_ALPHABET[value >> 6 * place & 63] for place in range(count))


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()
