"""Every error leaves as ``application/problem+json`` (RFC 9457): stable code, pointers."""

import logging
import re
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from msgspec import Struct

from hub.errors import (
    HubError,
    IllegalTransitionError,
    InvoiceError,
    NotFoundError,
    ReadTooLongError,
    StoreBusyError,
    StoreError,
)
from hub.security.errors import TokenError, TooManyPasswordsError

MEDIA_TYPE = "application/problem+json"
_LOG = logging.getLogger(__name__)
_AT = re.compile(r" - at `\$?\.?([^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `([^`]+)`")
_MISSING = re.compile(r"required field `([^`]+)`")
# Query parameters whose name is a word of Python or of Litestar.
_QUERY_NAMES = {"wanted": "state", "start": "from", "end": "to"}
_STATUS: tuple[tuple[type[HubError], int], ...] = (
    (TokenError, 401),
    (TooManyPasswordsError, 503),
    (StoreBusyError, 503),
    (ReadTooLongError, 422),
    (StoreError, 500),
    (NotFoundError, 404),
    (IllegalTransitionError, 409),
    (InvoiceError, 422),
)
_CODES = {
    400: "bad_request",
    401: "not_authenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "media_type",
}


class FieldError(Struct, frozen=True, kw_only=True):
    """One wrong field: JSON pointer (or ``?name`` for a query parameter) and what is wrong."""

    pointer: str
    detail: str


class Problem(Struct, frozen=True, kw_only=True):
    """RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: tuple[FieldError, ...] = ()


class ApiProblem(Exception):  # noqa: N818 - RFC 9457's word
    """An error that a handler answers on purpose."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: tuple[FieldError, ...] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.problem = make_problem(status, code, detail, errors)
        self.headers = headers or {}


def make_problem(
    status: int, code: str, detail: str, errors: tuple[FieldError, ...] = ()
) -> Problem:
    """Make the document of one problem."""
    return Problem(
        type=f"urn:hcp:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        errors=errors,
    )


def bad_field(pointer: str, detail: str, *, status: int = 400, code: str = "invalid") -> ApiProblem:
    """Make the answer to one wrong field."""
    error = FieldError(pointer=pointer, detail=detail)
    return ApiProblem(status, code, f"{pointer}: {detail}", errors=(error,))


def answer(problem: Problem, headers: dict[str, str] | None = None) -> Response[bytes]:
    """Make the response of a problem."""
    return Response(
        msgspec.json.encode(problem),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=headers or {},
    )


def handle(request: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    """Turn any exception of a handler, of routing or of decoding into a problem."""
    if isinstance(exc, ApiProblem):
        return answer(exc.problem, exc.headers)
    if isinstance(exc, ValidationException):
        return answer(_of_validation(exc))
    if isinstance(exc, HTTPException):
        return _of_http(exc)
    if isinstance(exc, HubError):
        return _of_hub(exc)
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    return answer(make_problem(500, "internal", "the hub could not answer; it has noted why"))


def _of_http(exc: HTTPException) -> Response[bytes]:
    status = exc.status_code
    if status >= 500:
        _LOG.error("failed", exc_info=exc)
        return answer(make_problem(500, "internal", "the hub could not answer; it has noted why"))
    headers = {k: v for k, v in (exc.headers or {}).items() if k.lower() != "content-type"}
    code = _CODES.get(status, "refused")
    return answer(make_problem(status, code, exc.detail or HTTPStatus(status).phrase), headers)


def _of_hub(exc: HubError) -> Response[bytes]:
    status = next((code for kind, code in _STATUS if isinstance(exc, kind)), 400)
    headers = {"Retry-After": "1"} if status == 503 else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status >= 500:
        _LOG.error("%s", exc)
        if status == 500:
            return answer(make_problem(500, exc.code, "the hub could not store it"))
    return answer(make_problem(status, exc.code, exc.detail), headers)


def field_error(message: str) -> FieldError:
    """Read msgspec's message on a wrong body into pointer and detail."""
    found = _AT.search(message)
    path = [] if not found else re.split(r"[.\[\]]+", found.group(1))
    if found:
        message = message[: found.start()]
    named = _UNKNOWN.search(message) or _MISSING.search(message)
    if named:
        path.append(named.group(1))
    return FieldError(pointer="".join(f"/{part}" for part in path if part), detail=message)


def make_problem_of(errors: tuple[FieldError, ...]) -> ApiProblem:
    """Make the answer to wrong fields."""
    detail = "; ".join(f"{error.pointer}: {error.detail}" for error in errors)
    return ApiProblem(400, "invalid", detail, errors=errors)


def _of_validation(exc: ValidationException) -> Problem:
    """Read what Litestar says of a wrong query, header or path parameter."""
    rows = exc.extra if isinstance(exc.extra, list) else []
    errors = tuple(_parameter_error(row) for row in rows if isinstance(row, dict))
    if not errors:
        return make_problem(400, "invalid", exc.detail)
    return make_problem_of(errors).problem


def _parameter_error(row: dict[str, Any]) -> FieldError:
    source = str(getattr(row.get("source"), "value", ""))
    prefix = {"query": "?", "header": "header ", "path": "path "}.get(source, "")
    name = str(row.get("key", ""))
    pointer = prefix + _QUERY_NAMES.get(name, name)
    return FieldError(pointer=pointer, detail=str(row.get("message", "invalid")))
