"""Strict reading of request bodies.

Litestar converts leniently (``"2"`` would pass for 2) and by way of floats, so bodies are decoded
here, straight from the bytes into their Struct.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from litestar import Request
from msgspec import Struct

from hub.api.problems import ApiProblem, field_error, make_problem_of
from hub.api.schemas import (
    ApiKeyRequest,
    KeyRequest,
    LoginRequest,
    OrderRequest,
    RouteRequest,
    WorkloadRequest,
)

T = TypeVar("T", bound=Struct)

LOGIN = msgspec.json.Decoder(LoginRequest)
WORKLOAD = msgspec.json.Decoder(WorkloadRequest)
KEY = msgspec.json.Decoder(KeyRequest)
API_KEY = msgspec.json.Decoder(ApiKeyRequest)
ORDER = msgspec.json.Decoder(OrderRequest)
ROUTE = msgspec.json.Decoder(RouteRequest)

# For the OpenAPI document.
BODIES: Mapping[tuple[str, str], type[Struct]] = MappingProxyType(
    {
        ("POST", "/api/v1/auth/login"): LoginRequest,
        ("POST", "/api/v1/api-keys"): ApiKeyRequest,
        ("POST", "/api/v1/workloads"): WorkloadRequest,
        ("POST", "/api/v1/workloads/{workload_id}/key"): KeyRequest,
        ("POST", "/api/v1/sites/{site_id}/orders"): OrderRequest,
        ("POST", "/api/v1/route"): RouteRequest,
    }
)


async def read_body(request: Request[Any, Any, Any], decoder: msgspec.json.Decoder[T]) -> T:
    """Read a body.

    Raises:
        ApiProblem: 400, naming the field when there is one.
    """
    body = await request.body()
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as exc:
        raise make_problem_of((field_error(str(exc)),)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ApiProblem(400, "bad_json", f"the body is not JSON: {exc}") from None
