"""md5crypt and the tokens, against what others published or compute."""

import base64
import shutil
import subprocess

import pytest

from firmware_bridges.whatsminer.cipher import (
    digest_v3,
    open_v2,
    seal_v2,
    seal_v3,
    token_v2,
    token_v3,
)
from firmware_bridges.whatsminer.md5crypt import hash_of, md5crypt

# Source: the test vectors of glibc's and passlib's md5crypt.
PUBLISHED = [
    ("Hello world!", "$1$saltstri$YMyguxXMBpd2TEZ.vS/3q1"),
    ("", "$1$dOHYPKoP$tnxS1T8Q6VVn3kpV8cN6o."),
    (" ", "$1$m/5ee7ol$bZn0kIBFipq39e.KDXX8I0"),
    ("test", "$1$ec6XvcoW$ghEtNK2U1MC5l.Dwgi3020"),
    ("Compl3X AlphaNu3meric", "$1$nX1e7EeI$ljQn72ZUgt6Wxd9hfvHdV0"),
    ("4lpHa N|_|M3r1K W/ Cur5Es: #$%(*)(*%#", "$1$jQS7o98J$V6iTcr71CGgwW2laf17pi1"),
]


@pytest.mark.parametrize(("password", "published"), PUBLISHED)
def test_md5crypt_is_the_published_one(password: str, published: str) -> None:
    salt = published.split("$")[2]
    assert md5crypt(password, salt) == published
    assert hash_of(password, salt) == published.split("$")[3]


def test_only_eight_characters_of_the_salt_count() -> None:
    assert md5crypt("Hello world!", "saltstring") == PUBLISHED[0][1]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
@pytest.mark.parametrize(("password", "salt"), [("admin", "BQ5hoXV9"), ("p" * 63, "a"), ("€", "z")])
def test_md5crypt_agrees_with_openssl(password: str, salt: str) -> None:
    command = ["openssl", "passwd", "-1", "-salt", salt, password]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert md5crypt(password, salt) == said.stdout.strip()


def test_what_is_sealed_for_v2_is_whole_blocks_and_opens_again() -> None:
    token = token_v2("admin", "BQ5hoXV9", "jbzkfQls", "5626")
    for body in (b"x", b"sixteen bytes ok", b'{"cmd":"power_off"}'):
        sealed = seal_v2(token.key, body)
        assert len(sealed) % 4 == 0
        assert open_v2(token.key, sealed) == body
    assert repr(token) == "TokenV2()"


@pytest.mark.parametrize("sealed", ["%%%", "YWJj", "a"])
def test_what_was_not_sealed_does_not_open(sealed: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        open_v2(bytes(32), sealed)


def test_aes_is_aes_256() -> None:
    # Source: FIPS 197, appendix C.3.
    key = bytes(range(32))
    plain = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert base64.b64decode(seal_v2(key, plain)).hex() == "8ea2b7ca516745bfeafc49904b496089"
    # A whole block is followed by a block of padding.
    assert len(seal_v3(key, plain)) == 44


def test_the_token_of_v3_is_eight_characters_of_the_digest() -> None:
    # Source: a vector that a public client of the API tests itself with.
    digest = digest_v3("set.miner.service", "super", "Abc123xy", 1_759_800_000)
    assert token_v3(digest) == "Cg2iuKaj"
