"""The role table against the router, and problems as the only form of an error."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from litestar.routes import HTTPRoute, WebSocketRoute

from hub.api.front import Front
from hub.core.authz import ROUTES, Access, Decision, Role, access_of, decide
from tests.hub.api.harness import Hub

BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/api/v1/workloads"): {"name": "n", "device_class": "H100"},
    ("POST", "/api/v1/workloads/{workload_id}/key"): {},
    ("POST", "/api/v1/sites/{site_id}/orders"): {
        "limit_mw": 1,
        "due_at": "2026-03-01T13:00:00Z",
        "until_at": "2026-03-01T14:00:00Z",
    },
    ("POST", "/api/v1/api-keys"): {"name": "ci"},
    ("POST", "/api/v1/route"): {"device_class": "H100"},
    ("POST", "/api/v1/auth/login"): {"email": "no@x.test", "password": "wrong"},
}


def _served(front: Front) -> set[tuple[str, str]]:
    found = set()
    for route in front.app.routes:  # type: ignore[attr-defined]
        if isinstance(route, WebSocketRoute):
            found.add(("WEBSOCKET", route.path_format))
        elif isinstance(route, HTTPRoute):
            methods = {str(method) for method in route.methods} - {"OPTIONS"}
            found |= {(method, route.path_format) for method in methods}
    return found


async def test_every_route_has_its_row_and_every_row_its_route(hub: Hub) -> None:
    assert _served(hub.front) == set(ROUTES)


@pytest.mark.parametrize("role", list(Role))
async def test_each_role_gets_what_its_row_says(hub: Hub, role: Role) -> None:
    name = {Role.ADMIN: "admin", Role.OPERATOR: "op", Role.CUSTOMER: "c1"}.get(role, "anonymous")
    wrong = []
    for (method, path), row in sorted(ROUTES.items()):
        if method == "WEBSOCKET":
            continue
        filled = path.replace("{workload_id}", "w-none").replace("{number}", "99999")
        filled = filled.replace("{site_id}", "nowhere").replace("{order_id}", "o-none")
        filled = filled.replace("{key_id}", "k-none")
        answer = await hub.client.request(
            method, filled.replace("{name}", "app.js"), json=BODIES.get((method, path)),
            headers=hub.headers(name, Idempotency_Key="k"),
        )  # fmt: skip
        refused = answer.status_code in (401, 403) and answer.json()["code"] in (
            "not_authenticated",
            "forbidden",
        )
        if refused != (row[role] is Access.NO):
            wrong.append((method, path, answer.status_code))
        if refused:
            assert answer.status_code == (401 if role is Role.ANONYMOUS else 403)
    assert wrong == []


def test_the_table_says_what_was_promised() -> None:
    for path in ("resources", "revenue", "switches", "sites/{site_id}/orders"):
        assert access_of(Role.CUSTOMER, "GET", f"/api/v1/{path}") is Access.NO
    for path in ("workloads", "usage", "invoices"):
        assert access_of(Role.CUSTOMER, "GET", f"/api/v1/{path}") is Access.OWN
    anonymous = {route for route, row in ROUTES.items() if row[Role.ANONYMOUS] is not Access.NO}
    assert {path for _, path in anonymous} == {
        "/", "/static/{name}", "/schema", "/api/v1/schema", "/api/v1/health",
        "/.well-known/jwks.json", "/api/v1/.well-known/jwks.json", "/api/v1/auth/login",
        "/api/v1/live",
    }  # fmt: skip
    assert decide(Role.ADMIN, "GET", "/api/v1/unheard-of") is Decision.FORBID


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/api/v1/nowhere", 404),
        ("PUT", "/api/v1/health", 405),
        ("PATCH", "/api/v1/workloads", 405),
        ("GET", "/api/v1/workloads", 401),
        ("GET", "/static/passwd", 404),
        ("GET", "/api/v1/invoices/abc", 404),
    ],
)
async def test_every_error_is_a_problem(hub: Hub, method: str, path: str, status: int) -> None:
    answer = await hub.client.request(method, path)
    _assert_problem(answer, status)


async def test_an_error_of_ours_is_a_problem_that_tells_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(hub.deps.store, "read", broken)
    answer = await hub.client.get("/api/v1/health")
    _assert_problem(answer, 500)
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text


async def test_a_foreign_media_type_or_size_is_refused(hub: Hub) -> None:
    headers = hub.headers("c1", Idempotency_Key="k", Content_Type="text/plain")
    _assert_problem(await hub.client.post("/api/v1/workloads", content=b"{}", headers=headers), 415)
    headers = hub.headers("c1", Idempotency_Key="k", Content_Type="application/json")
    big = b" " * 70_000
    _assert_problem(await hub.client.post("/api/v1/workloads", content=big, headers=headers), 413)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 2_000

    answer = await hub.client.post("/api/v1/workloads", content=chunks(), headers=headers)
    _assert_problem(answer, 413)


async def test_the_document_describes_every_route_and_every_error(hub: Hub) -> None:
    document = (await hub.client.get("/schema")).json()
    assert document["openapi"].startswith("3.1")
    described = {
        (method.upper(), path) for path, row in document["paths"].items() for method in row
    }
    undocumented = {"/", "/static/{name}", "/schema", "/api/v1/schema"}
    assert described == {
        (method, path)
        for method, path in ROUTES
        if path not in undocumented and method != "WEBSOCKET"
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert list(response["content"]) == ["application/problem+json"]
            needs_token = ROUTES[(method.upper(), path)][Role.ANONYMOUS] is Access.NO
            assert ("security" in operation) == needs_token
            assert "deps" not in [row["name"] for row in operation.get("parameters", [])]


async def test_money_is_a_string_in_the_document(hub: Hub) -> None:
    schemas = (await hub.client.get("/schema")).json()["components"]["schemas"]
    for name, schema in schemas.items():
        for field, kind in schema.get("properties", {}).items():
            if field.endswith("_usd"):
                assert kind.get("type") == "string", (name, field)


async def test_answers_carry_safe_headers_and_the_request_id(hub: Hub) -> None:
    answer = await hub.client.get("/api/v1/health", headers={"X-Request-Id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    odd = await hub.client.get("/api/v1/health", headers={"X-Request-Id": "a b<script>"})
    assert odd.headers["x-request-id"] != "a b<script>"


async def test_the_page_is_ours_alone_and_under_a_strict_policy(hub: Hub) -> None:
    page = await hub.client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in page.text
    assert "style=" not in page.text
    for asset, media in (
        ("app.js", "text/javascript"),
        ("common.js", "text/javascript"),
        ("forms.js", "text/javascript"),
        ("keys.js", "text/javascript"),
        ("orders.js", "text/javascript"),
        ("style.css", "text/css"),
        ("icon.svg", "image/svg+xml"),
    ):
        answer = await hub.client.get(f"/static/{asset}")
        assert answer.headers["content-type"].startswith(media)
        assert "http://" not in answer.text.replace("http://www.w3.org/", "")
        assert "https://" not in answer.text
        assert f"/static/{asset}" in page.text


def _assert_problem(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["type"] == f"urn:hcp:problem:{body['code']}"
    assert set(body) == {"type", "title", "status", "detail", "code", "errors"}
