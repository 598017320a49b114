"""How WhatsMiners hide what they are told: AES-256-ECB and tokens, as they want them. Pure.

ECB and MD5 are the firmware's choice: they keep passwords off the wire, and little more.
"""

import base64
import hashlib
from typing import Final

import msgspec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from firmware_bridges.whatsminer.md5crypt import hash_of

_BLOCK_BYTES: Final = 16
_TOKEN_CHARS: Final = 8


class TokenV2(msgspec.Struct, frozen=True, kw_only=True):
    """What encrypts and signs writes of API v2; kept out of every printed form.

    Args:
        key: Of the cipher.
        sign: Goes with each command.
    """

    key: bytes
    sign: str

    def __repr__(self) -> str:
        """Hide both."""
        return "TokenV2()"


def token_v2(password: str, salt: str, new_salt: str, time: str) -> TokenV2:
    """Make the token of API v2 from what `get_token` gave."""
    text = hash_of(password, salt)
    key = hashlib.sha256(text.encode()).digest()
    return TokenV2(key=key, sign=hash_of(text + time, new_salt))


def seal_v2(key: bytes, body: bytes) -> str:
    """Encrypt a request of API v2: zeros up to the block, then base64."""
    padded = body + bytes(-len(body) % _BLOCK_BYTES)
    return base64.b64encode(_encrypt(key, padded)).decode()


def open_v2(key: bytes, sealed: str) -> bytes:
    """Decrypt an answer of API v2; what does not decrypt to anything gives noise.

    Raises:
        ValueError: It is no base64 of whole blocks.
    """
    # Some builds break the text into lines.
    raw = base64.b64decode("".join(sealed.split()), validate=True)
    decryptor = _cipher(key).decryptor()
    return (decryptor.update(raw) + decryptor.finalize()).rstrip(b"\0")


def digest_v3(command: str, password: str, salt: str, ts: int) -> bytes:
    """Give the digest that signs one command of API v3, and encrypts its secret parameters."""
    return hashlib.sha256(f"{command}{password}{salt}{ts}".encode()).digest()


def token_v3(digest: bytes) -> str:
    """Give the token that a digest makes."""
    return base64.b64encode(digest).decode()[:_TOKEN_CHARS]


def seal_v3(digest: bytes, body: bytes) -> str:
    """Encrypt a parameter of API v3: PKCS7 padding, then base64."""
    missing = _BLOCK_BYTES - len(body) % _BLOCK_BYTES
    return base64.b64encode(_encrypt(digest, body + bytes([missing]) * missing)).decode()


def _encrypt(key: bytes, padded: bytes) -> bytes:
    encryptor = _cipher(key).encryptor()
    return encryptor.update(padded) + encryptor.finalize()


def _cipher(key: bytes) -> Cipher[modes.ECB]:
    return Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - the firmware knows no other
