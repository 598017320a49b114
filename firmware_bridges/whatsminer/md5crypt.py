"""The `$1$` password hash of BSD and Linux (md5crypt), with which WhatsMiner v2 makes its keys.

Source: the algorithm of FreeBSD's crypt(3); checked against published hashes and `openssl passwd`.
"""

import hashlib
from typing import Final

SALT_CHARS_MAX: Final = 8
_ROUNDS: Final = 1_000
_DIGITS: Final = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# Which bytes of the digest make each group of four digits, the highest first.
_GROUPS: Final = ((0, 6, 12), (1, 7, 13), (2, 8, 14), (3, 9, 15), (4, 10, 5))
_LAST: Final = 11


def md5crypt(password: str, salt: str) -> str:
    """Hash a password.

    Args:
        password: Any text.
        salt: Without its mark; what follows the eighth character or a `$` does not count.

    Returns:
        `$1$salt$hash`.
    """
    key = password.encode()
    salt = salt.partition("$")[0][:SALT_CHARS_MAX]
    grain = salt.encode()
    digest = _first(key, grain)
    for number in range(_ROUNDS):
        digest = _round(number, key, grain, digest)
    return f"$1${salt}${_text(digest)}"


def hash_of(password: str, salt: str) -> str:
    """Give the hash part alone."""
    return md5crypt(password, salt).rpartition("$")[2]


def _first(key: bytes, grain: bytes) -> bytes:
    inner = _md5(key + grain + key)
    data = key + b"$1$" + grain + (inner * (len(key) // 16 + 1))[: len(key)]
    bits = len(key)
    while bits:
        data += b"\0" if bits & 1 else key[:1]
        bits >>= 1
    return _md5(data)


def _round(number: int, key: bytes, grain: bytes, digest: bytes) -> bytes:
    odd = number % 2 == 1
    data = key if odd else digest
    if number % 3:
        data += grain
    if number % 7:
        data += key
    return _md5(data + (digest if odd else key))


def _text(digest: bytes) -> str:
    numbers = [digest[a] << 16 | digest[b] << 8 | digest[c] for a, b, c in _GROUPS]
    return "".join(_digits(number, 4) for number in numbers) + _digits(digest[_LAST], 2)


def _digits(number: int, count: int) -> str:
    return "".join(_DIGITS[number >> 6 * place & 0x3F] for place in range(count))


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()
