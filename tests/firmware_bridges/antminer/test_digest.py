"""Digest authentication against the example of RFC 2617, section 3.5."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridges.http.digest import (
    Challenge,
    Credentials,
    authorization,
    decode_challenge,
)

# RFC 2617, section 3.5.
HEADER = (
    'Digest realm="testrealm@host.com", qop="auth,auth-int", '
    'nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", opaque="5ccc069c403ebaf9f0171e9517f40e41"'
)


def test_the_example_of_the_rfc() -> None:
    challenge = decode_challenge(HEADER)
    assert challenge is not None
    header = authorization(
        challenge,
        Credentials("Mufasa", "Circle Of Life"),
        method="GET",
        uri="/dir/index.html",
        nonce_count=1,
        client_nonce="0a4f113b",
    )
    assert header.startswith("Digest ")
    for part in (
        'username="Mufasa"',
        'realm="testrealm@host.com"',
        'uri="/dir/index.html"',
        "qop=auth",
        "nc=00000001",
        'cnonce="0a4f113b"',
        'response="6629fae49393a05397450978507c4ef1"',
        'opaque="5ccc069c403ebaf9f0171e9517f40e41"',
    ):
        assert part in header


def test_the_challenge_of_an_antminer() -> None:
    challenge = decode_challenge(
        'Digest realm="antMiner Configuration", nonce="a:b=c", algorithm=MD5, qop="auth"'
    )
    assert challenge == Challenge(
        realm="antMiner Configuration", nonce="a:b=c", qop="auth", opaque=None
    )


def test_a_server_without_qop_gets_the_old_form() -> None:
    challenge = decode_challenge('Digest realm="r", nonce="n"')
    assert challenge is not None
    header = authorization(
        challenge, Credentials("u", "p"), method="GET", uri="/", nonce_count=1, client_nonce="c"
    )
    assert "nc=" not in header


@pytest.mark.parametrize(
    "header",
    [
        "",
        'Basic realm="x"',
        'Digest realm="x"',
        'Digest nonce="x"',
        'Digest realm="x", nonce="y", algorithm=SHA-256',
        'Digest realm="x", nonce="y", qop="auth-int"',
    ],
)
def test_what_cannot_be_answered_is_no_challenge(header: str) -> None:
    assert decode_challenge(header) is None


@given(st.text(max_size=80))
def test_any_header_is_a_challenge_or_none(text: str) -> None:
    challenge = decode_challenge("Digest " + text)
    assert challenge is None or challenge.qop in (None, "auth")


def test_a_password_is_never_printed() -> None:
    assert "secret" not in repr(Credentials("root", "secret"))
