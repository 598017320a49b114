"""Log-in, tokens and everything that tries to pass for one."""

import base64
import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from joserfc import jws, jwt
from joserfc.jwk import OctKey, RSAKey

from tests.hub.api.harness import Hub

ME = "/api/v1/auth/me"


def _b64(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


async def _try(hub: Hub, token: str) -> str:
    answer = await hub.client.get(ME, headers={"Authorization": f"Bearer {token}"})
    if answer.status_code == 200:
        return "accepted"
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith("Bearer")
    return str(answer.json()["code"])


def _claims(hub: Hub, **change: object) -> dict[str, Any]:
    now = int(hub.clock.wall().timestamp())
    base = {
        "sub": "u-admin", "email": "admin@x.test", "role": "admin", "customer_id": None,
        "iat": now, "exp": now + 3_600, "iss": "https://hub.test",
    }  # fmt: skip
    return base | change


def _header(hub: Hub, **change: object) -> dict[str, Any]:
    kid = json.loads(hub.deps.tokens.jwks())["keys"][0]["kid"]
    return {"alg": "RS256", "kid": kid, "typ": "JWT"} | change


def _key(hub: Hub) -> RSAKey:
    key = hub.deps.tokens._signing
    assert isinstance(key, RSAKey)
    return key


def _signed(hub: Hub, claims: dict[str, Any]) -> str:
    header = _header(hub)
    return jws.serialize_compact(header, json.dumps(claims), _key(hub), algorithms=["RS256"])


async def test_log_in_gives_a_token_that_anybody_can_verify(hub: Hub) -> None:
    answer = await hub.client.post(
        "/api/v1/auth/login", json={"email": "C1@x.test", "password": "correct horse"}
    )
    assert answer.status_code == 200
    assert answer.json()["expires_in"] == 3_600
    token = answer.json()["access_token"]
    jwks = (await hub.client.get("/.well-known/jwks.json")).json()
    (public,) = jwks["keys"]
    assert set(public) == {"kty", "use", "alg", "kid", "n", "e"}
    key = RSAKey.import_key({"kty": "RSA", "n": public["n"], "e": public["e"]})
    assert public["kid"] == key.thumbprint()
    decoded = jwt.decode(token, key, algorithms=["RS256"])
    assert decoded.header["kid"] == public["kid"]
    assert set(decoded.claims) == {"sub", "email", "role", "customer_id", "iat", "exp", "iss"}
    assert decoded.claims["exp"] - decoded.claims["iat"] == 3_600
    assert (decoded.claims["role"], decoded.claims["customer_id"]) == ("customer", "c1")
    me = await hub.client.get(ME, headers={"Authorization": f"Bearer {token}"})
    assert me.json()["sub"] == "u-c1"


@pytest.mark.parametrize(
    "body", [{"email": "c1@x.test", "password": "no"}, {"email": "x@x.test", "password": "no"}]
)
async def test_a_wrong_log_in_says_no_more_than_that(hub: Hub, body: dict[str, str]) -> None:
    answer = await hub.client.post("/api/v1/auth/login", json=body)
    assert (answer.status_code, answer.json()["code"]) == (401, "wrong_login")


async def test_log_ins_on_one_account_are_limited(hub: Hub) -> None:
    codes = [
        (
            await hub.client.post(
                "/api/v1/auth/login", json={"email": "c1@x.test", "password": "no"}
            )
        ).status_code
        for _ in range(11)
    ]
    assert codes == [401] * 10 + [429]
    hub.clock.advance(hub.clock.wall() + timedelta(minutes=1))
    right = await hub.client.post(
        "/api/v1/auth/login", json={"email": "c1@x.test", "password": "correct horse"}
    )
    assert right.status_code == 200


async def test_forgeries_prove_nothing(hub: Hub) -> None:
    good = _signed(hub, _claims(hub))
    head, body, signature = good.split(".")
    public_pem = _key(hub).as_pem(private=False)
    foreign = RSAKey.generate_key(2048)
    unsigned = f"{_b64(_header(hub, alg='none'))}.{_b64(_claims(hub))}."
    hmac_key = OctKey.import_key(base64.b64encode(public_pem))
    swapped = jws.serialize_compact(
        {**_header(hub), "alg": "HS256"}, json.dumps(_claims(hub)), hmac_key, algorithms=["HS256"]
    )
    ours_by_name = jws.serialize_compact(
        _header(hub), json.dumps(_claims(hub)), foreign, algorithms=["RS256"]
    )
    foreign_kid = jws.serialize_compact(
        _header(hub, kid=foreign.thumbprint()), json.dumps(_claims(hub)), foreign,
        algorithms=["RS256"],
    )  # fmt: skip
    attacks = {
        "alg none": (unsigned, "token_foreign"),
        "alg none, signature kept": (f"{_b64({'alg': 'none', 'kid': 'x'})}.{body}.{signature}",
                                     "token_foreign"),
        "HS256 with the public key": (swapped, "token_foreign"),
        "foreign key under our kid": (ours_by_name, "token_forged"),
        "foreign kid": (foreign_kid, "token_foreign"),
        "jku": (f"{_b64(_header(hub, jku='https://evil.test'))}.{body}.{signature}",
                "token_malformed"),
        "jwk": (f"{_b64(_header(hub, jwk=foreign.as_dict(private=False)))}.{body}.{signature}",
                "token_malformed"),
        "crit": (f"{_b64(_header(hub, crit=['b64'], b64=False))}.{body}.{signature}",
                 "token_malformed"),
        "other claims": (f"{head}.{_b64(_claims(hub, sub='other'))}.{signature}", "token_forged"),
        "signature cut": (f"{head}.{body}.{signature[:-6]}", "token_forged"),
        "no signature": (f"{head}.{body}.", "token_forged"),
        "two parts": (f"{head}.{body}", "token_malformed"),
        "nonsense": ("a.b.c", "token_malformed"),
        "huge": (good + "A" * 5_000, "token_malformed"),
    }  # fmt: skip
    assert await _try(hub, good) == "accepted"
    found = {name: await _try(hub, token) for name, (token, _) in attacks.items()}
    assert found == {name: code for name, (_, code) in attacks.items()}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"iss": "https://other.test"}, "token_foreign"),
        ({"role": "root"}, "token_claims"),
        ({"role": "anonymous"}, "token_foreign"),
        ({"sub": 7}, "token_claims"),
        ({"exp": "never"}, "token_claims"),
    ],
)
async def test_wrong_claims_under_our_own_signature(
    hub: Hub, change: dict[str, Any], code: str
) -> None:
    assert await _try(hub, _signed(hub, _claims(hub, **change))) == code


async def test_every_claim_is_needed(hub: Hub) -> None:
    for name in ("sub", "email", "role", "customer_id", "iat", "exp", "iss"):
        claims = _claims(hub)
        del claims[name]
        assert await _try(hub, _signed(hub, claims)) == "token_claims"


async def test_a_token_ends_with_its_hour_even_when_it_is_remembered(hub: Hub) -> None:
    token = hub.token("c1")
    assert await _try(hub, token) == "accepted"
    hub.clock.advance(hub.clock.wall() + timedelta(seconds=3_599))
    assert await _try(hub, token) == "accepted"
    hub.clock.advance(hub.clock.wall() + timedelta(seconds=1))
    assert await _try(hub, token) == "token_expired"


async def test_a_token_from_the_future_waits(hub: Hub) -> None:
    later = int(hub.clock.wall().timestamp()) + 61
    assert await _try(hub, _signed(hub, _claims(hub, iat=later))) == "token_early"


async def test_basic_authentication_is_no_token(hub: Hub) -> None:
    answer = await hub.client.get(ME, headers={"Authorization": "Basic YTpi"})
    assert (answer.status_code, answer.json()["code"]) == (401, "token_scheme")


async def test_a_caller_over_its_rate_is_told_when_to_come_back(hub: Hub) -> None:
    headers = hub.headers("c1")
    answers = [await hub.client.get(ME, headers=headers) for _ in range(3)]
    left = [msgspec.convert(a.headers["ratelimit"], str) for a in answers]
    assert left == [f'"default";r={n};t=0' for n in (999, 998, 997)]
    hub.deps.callers._buckets["u-c1"] = (0.0, hub.clock.boottime_ns())
    answer = await hub.client.get(ME, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many")
    assert answer.headers["retry-after"] == "1"
