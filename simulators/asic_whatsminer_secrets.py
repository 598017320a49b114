"""The secrets of a simulated WhatsMiner: crypt's `$1$` hash, AES-256-ECB and the tokens of v2, v3.

Written from the algorithm of FreeBSD's crypt(3) and the vendor's API documents, apart from any
client, so that a client's misreading is not repeated here.
"""

from __future__ import annotations

import base64
import hashlib

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

BLOCK = 16
_ALPHABET = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def crypt_md5(secret: bytes, salt: bytes) -> str:
    """Return the last part of crypt(3)'s `$1$salt$...`."""
    salt = salt[:8]
    mixed = hashlib.md5(secret + salt + secret, usedforsecurity=False).digest()
    state = hashlib.md5(secret + b"$1$" + salt, usedforsecurity=False)
    left = len(secret)
    while left > 0:
        state.update(mixed[: min(left, 16)])
        left -= 16
    length = len(secret)
    while length:
        state.update(b"\0" if length % 2 else secret[:1])
        length //= 2
    final = state.digest()
    for turn in range(1000):
        state = hashlib.md5(usedforsecurity=False)
        state.update(secret if turn & 1 else final)
        if turn % 3:
            state.update(salt)
        if turn % 7:
            state.update(secret)
        state.update(final if turn & 1 else secret)
        final = state.digest()
    return _crypt_text(final)


def _crypt_text(final: bytes) -> str:
    text = []
    for at in range(5):
        third = 5 if at == 4 else 12 + at
        value = (final[at] << 16) + (final[6 + at] << 8) + final[third]
        text += [_ALPHABET[(value >> shift) & 63] for shift in (0, 6, 12, 18)]
    text += [_ALPHABET[final[11] & 63], _ALPHABET[final[11] >> 6]]
    return "".join(text)


def v2_keys(password: str, salt: str, new_salt: str, stamp: str) -> tuple[bytes, str]:
    """Return (AES key, signature) that belong to what `get_token` gave out."""
    first = crypt_md5(password.encode(), salt.encode())
    second = crypt_md5((first + stamp).encode(), new_salt.encode())
    return hashlib.sha256(first.encode()).digest(), second


def v3_digest(command: str, password: str, salt: str, stamp: int) -> bytes:
    """Return the digest whose base64 begins with the token of one command."""
    return hashlib.sha256((command + password + salt + str(stamp)).encode()).digest()


def v3_token(digest: bytes) -> str:
    """Return the token: the first eight characters of the digest's base64."""
    return base64.b64encode(digest)[:8].decode()


def encrypt_zeros(key: bytes, plain: bytes) -> str:
    """Encrypt a v2 message: zeros fill its last block."""
    while len(plain) % BLOCK:
        plain += b"\0"
    return base64.b64encode(_ecb(key).encryptor().update(plain)).decode()


def decrypt_zeros(key: bytes, text: str) -> bytes | None:
    """Decrypt a v2 message; None where it is no base64 of whole blocks."""
    blocks = _blocks(text)
    return None if blocks is None else _ecb(key).decryptor().update(blocks).rstrip(b"\0")


def decrypt_counted(key: bytes, text: str) -> bytes | None:
    """Decrypt a v3 parameter, whose padding says how long it is; None where it does not."""
    blocks = _blocks(text)
    plain = b"" if blocks is None else _ecb(key).decryptor().update(blocks)
    count = plain[-1] if plain else 0
    return plain[:-count] if 0 < count <= BLOCK and plain.endswith(bytes([count]) * count) else None


def _blocks(text: str) -> bytes | None:
    try:
        blocks = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return blocks if blocks and len(blocks) % BLOCK == 0 else None


def _ecb(key: bytes) -> Cipher[modes.ECB]:
    return Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - as the real machine does
