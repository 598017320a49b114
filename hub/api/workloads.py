"""Routes of workloads: submit, list, read, cancel."""

import sqlite3
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.params import (
    FromPath,
    FromQuery,
    HeaderParameter,
    QueryParameter,
)

from hub.api.bodies import WORKLOAD, read_body
from hub.api.deps import Caller, Deps, HubDeps, caller_of
from hub.api.problems import ApiProblem, bad_field
from hub.api.schemas import WorkloadPage, WorkloadRequest, WorkloadView, workload_view
from hub.core import live
from hub.core.authz import Role, may_see
from hub.core.workload_states import CANCELLABLE, SERVING, WorkloadState
from hub.store import leases, rate_cards, users, workloads
from hub.store.users import StoredAnswer
from hub.store.workloads import Transition, WorkloadRow
from protocol.ids import LeaseId, WorkloadId, lease_id_of
from protocol.lease import AccessKey
from protocol.units import from_ms, parse_usd, to_ms

IDEMPOTENCY_KEY_MAX = 255
_CANCELLED = frozenset({WorkloadState.CANCELLING, WorkloadState.CANCELLED})

_Outcome = tuple[StoredAnswer, Transition | None]


@post("/workloads", status_code=202)
async def submit(
    request: Request[Any, Any, Any],
    deps: HubDeps,
    idempotency_key: Annotated[str | None, HeaderParameter(name="Idempotency-Key")] = None,
) -> Response[WorkloadView]:
    """Submit a workload; the answer is durable, and the same key gives the same answer again."""
    caller = caller_of(request.scope)
    data = await read_body(request, WORKLOAD)
    _check_key(idempotency_key)
    assert idempotency_key is not None
    digest = blake2b(msgspec.json.encode(data), digest_size=16).digest()
    now = now_of(deps)
    try:
        row = _new_row(deps, caller, data, now)
    except ApiProblem:
        # Time and prices go on: what was answered when it was new is answered again.
        earlier = users.find_answer(deps.store, caller.sub, idempotency_key)
        if earlier is None:
            raise
        return _answer(earlier, digest, replayed=True)
    answer = StoredAnswer(
        request_digest=digest,
        status=202,
        location=f"/api/v1/workloads/{row.workload_id}",
        body=msgspec.json.encode(workload_view(row)),
    )
    stored, step = await deps.store.write(_submitting(caller, idempotency_key, row, answer))
    if step is not None:
        publish(deps, step)
        deps.dispatcher.wake()
    return _answer(stored, digest, replayed=step is None)


def _answer(stored: StoredAnswer, digest: bytes, *, replayed: bool) -> Response[WorkloadView]:
    """Give a stored answer to a request of this digest.

    Raises:
        ApiProblem: 422, its key was used with another body.
    """
    if stored.request_digest != digest:
        raise ApiProblem(
            422, "idempotency_mismatch", "this Idempotency-Key was used with another body"
        )
    headers = {"Location": stored.location}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    body: Any = stored.body  # encoded before the commit; the annotation is for the schema
    return Response(body, status_code=stored.status, media_type="application/json", headers=headers)


@get("/workloads")
async def list_workloads(
    request: Request[Any, Any, Any],
    deps: HubDeps,
    wanted: Annotated[WorkloadState | None, QueryParameter(name="state")] = None,
    live_only: FromQuery[bool] = False,  # noqa: FBT002 - a query parameter
    limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, QueryParameter(max_length=200)] = None,
) -> WorkloadPage:
    """List workloads, newest first; a customer's own only."""
    caller = caller_of(request.scope)
    rows = workloads.page(
        deps.store,
        customer_id=caller.scope_id,
        state=wanted,
        before=None if cursor is None else read_cursor(cursor),
        limit=limit + 1,
        live_only=live_only,
    )
    following = make_cursor(rows[limit - 1].workload_id) if len(rows) > limit else None
    urls = _endpoints(deps, caller, rows[:limit])
    items = tuple(
        workload_view(row, endpoint_url=urls.get(row.workload_id)) for row in rows[:limit]
    )
    return WorkloadPage(items=items, next=following)


@get("/workloads/{workload_id:str}")
async def read_workload(
    request: Request[Any, Any, Any], deps: HubDeps, workload_id: FromPath[str]
) -> WorkloadView:
    """Read one workload with its history."""
    caller = caller_of(request.scope)
    row = visible(deps, caller, workload_id)
    history = workloads.transitions_of(deps.store, workload_id)
    urls = _endpoints(deps, caller, (row,))
    return workload_view(row, history, endpoint_url=urls.get(workload_id))


@delete("/workloads/{workload_id:str}", status_code=202)
async def cancel(
    request: Request[Any, Any, Any], deps: HubDeps, workload_id: FromPath[str]
) -> WorkloadView:
    """Cancel a workload: from now on it costs nothing more than the minute it is in."""
    caller = caller_of(request.scope)
    visible(deps, caller, workload_id)
    now = now_of(deps)

    def job(connection: sqlite3.Connection) -> tuple[WorkloadRow, Transition | None]:
        row = workloads.get(connection, workload_id)
        if row.state in _CANCELLED:
            return row, None
        if row.state not in CANCELLABLE:
            raise ApiProblem(409, "has_ended", f"the workload is {row.state} already")
        step = workloads.transition(
            connection,
            workload_id,
            WorkloadState.CANCELLING,
            reason="cancelled_by_user",
            actor=f"user:{caller.sub}",
            at=now,
            cancel_accepted_at=now,
        )
        return workloads.get(connection, workload_id), step

    row, step = await deps.store.write(job)
    if step is not None:
        publish(deps, step)
        deps.dispatcher.wake()
    return workload_view(row)


def publish(deps: Deps, step: Transition) -> None:
    """Tell the live channel of a committed transition."""
    body = live.LiveWorkload(
        workload_id=step.workload_id,
        customer_id=step.customer_id,
        from_state=step.from_state,
        state=step.to_state,
        reason=step.reason,
        at=step.at,
        attempt=step.attempt,
        site_id=step.site_id,
        seq=step.seq,
    )
    deps.live.publish(live.WORKLOAD, step.customer_id, live.encode(body))


def make_cursor(position: str) -> str:
    """Wrap the position of a page's last row, so that nobody builds on its form."""
    return urlsafe_b64encode(position.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> str:
    """Unwrap a cursor.

    Raises:
        ApiProblem: it is not one of ours.
    """
    try:
        return urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except ValueError as exc:
        raise bad_field("?cursor", "not a cursor of this API") from exc


def _submitting(
    caller: Caller, key: str, row: WorkloadRow, answer: StoredAnswer
) -> Callable[[sqlite3.Connection], _Outcome]:
    def job(connection: sqlite3.Connection) -> _Outcome:
        stored = users.stored_answer(connection, caller.sub, key)
        if stored is not None:
            return stored, None
        users.store_answer(connection, caller.sub, key, answer, to_ms(row.created_at))
        return answer, workloads.insert_workload(connection, row, f"user:{caller.sub}")

    return job


def _check_key(key: str | None) -> None:
    if key is None:
        raise bad_field("header Idempotency-Key", "is required", code="idempotency_key_missing")
    if not (1 <= len(key) <= IDEMPOTENCY_KEY_MAX and key.isascii() and key.isprintable()):
        raise bad_field("header Idempotency-Key", "must be 1 to 255 printable ASCII characters")


def _new_row(deps: Deps, caller: Caller, data: WorkloadRequest, now: datetime) -> WorkloadRow:
    price = data.max_price_usd_per_h
    if rate_cards.read_price(deps.store, data.device_class, now) is None:
        raise bad_field(
            "/device_class", f"{data.device_class} is not offered", status=422, code="no_such_class"
        )
    # Whole milliseconds, as stored: what is answered now is what is read later.
    expires_at = None if data.expires_at is None else from_ms(to_ms(data.expires_at))
    if expires_at is not None and expires_at <= now:
        raise bad_field("/expires_at", "must lie in the future")
    return WorkloadRow(
        workload_id=deps.ids.new("w", now),
        customer_id=_customer_of(caller, data.customer_id),
        name=data.name,
        device_class=data.device_class,
        count=data.count,
        priority=data.priority,
        spec=data.spec.to_spec(),
        state=WorkloadState.QUEUED,
        created_at=now,
        updated_at=now,
        site_id=data.site_id,
        on_partition=data.on_partition,
        lapse_after_s=data.lapse_after_s,
        max_price_usd_per_h=None if price is None else parse_usd("max_price_usd_per_h", price),
        expires_at=expires_at,
        keys=() if data.key_sha256 is None else (AccessKey(sha256=data.key_sha256),),
    )


def _customer_of(caller: Caller, wanted: str | None) -> str:
    if caller.role is Role.CUSTOMER:
        assert caller.customer_id is not None
        if wanted not in (None, caller.customer_id):
            raise bad_field("/customer_id", "only an administrator may set it", status=403)
        return caller.customer_id
    if wanted is None:
        raise bad_field("/customer_id", "is required of an administrator")
    return wanted


def visible(deps: Deps, caller: Caller, workload_id: str) -> WorkloadRow:
    """Read a workload that the caller may see.

    Raises:
        ApiProblem: 404, also for one that belongs to somebody else.
    """
    row = workloads.find(deps.store, workload_id)
    if row is None or not may_see(caller.role, caller.customer_id, row.customer_id):
        raise ApiProblem(404, "no_workload", "there is no such workload")
    return row


def _endpoints(deps: Deps, caller: Caller, rows: Sequence[WorkloadRow]) -> dict[str, str]:
    """Give by workload where its model listens, for the owner of those that serve."""
    if caller.role is not Role.CUSTOMER:
        return {}
    serving = {
        lease_id_of(WorkloadId(row.workload_id), row.attempt): row.workload_id
        for row in rows
        if row.state in SERVING
    }
    found = leases.endpoints_of(deps.store, tuple(serving)) if serving else {}
    return {serving[LeaseId(lease_id)]: url for lease_id, url in found.items()}


def now_of(deps: Deps) -> datetime:
    """Give the present time."""
    # Whole milliseconds, as stored: what is answered now is what is read later.
    return from_ms(to_ms(deps.clock.wall()))
