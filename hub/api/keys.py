"""The route of a workload's key: its owner makes one, or another in its place.

The hub keeps the hash alone, as the edge does: what is shown is shown once, and a lost key is
replaced. The new hash goes out as the next generation of the lease that serves, if one does.
"""

import sqlite3
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Any

from litestar import Request, post
from litestar.params import FromPath

from hub.api.bodies import KEY, read_body
from hub.api.deps import HubDeps, caller_of
from hub.api.problems import ApiProblem
from hub.api.schemas import KeyAnswer
from hub.api.workloads import now_of, visible
from hub.core.leases import rotated, with_keys
from hub.core.workload_states import FINAL
from hub.store import leases, sync_tables, workloads
from protocol.ids import WorkloadId, lease_id_of
from protocol.lease import AccessKeys, LeaseState

KEY_PREFIX = "hcp_"
KEY_BYTES = 32


@post("/workloads/{workload_id:str}/key", status_code=201)
async def make_key(
    request: Request[Any, Any, Any], deps: HubDeps, workload_id: FromPath[str]
) -> KeyAnswer:
    """Make another key for a workload's model; the one before opens for ``grace_s`` more."""
    caller = caller_of(request.scope)
    data = await read_body(request, KEY)
    visible(deps, caller, workload_id)
    now = now_of(deps)
    api_key = None if data.key_sha256 is not None else new_key(deps.ids.secret(KEY_BYTES))
    digest = data.key_sha256 or sha256((api_key or "").encode()).hexdigest()

    def job(connection: sqlite3.Connection) -> tuple[AccessKeys, tuple[str, ...]]:
        row = workloads.get(connection, workload_id)
        if row.state in FINAL:
            raise ApiProblem(409, "has_ended", f"the workload is {row.state} already")
        keys = rotated(row.keys, digest, now, data.grace_s)
        workloads.set_keys(connection, workload_id, keys)
        held = leases.get(connection, lease_id_of(WorkloadId(workload_id), row.attempt))
        if held is not None and held.released_at is None and held.lease.state is LeaseState.RUN:
            epoch = sync_tables.meta(connection, "hub_epoch")
            leases.update(connection, with_keys(held.lease, hub_epoch=epoch, keys=keys))
            return keys, (held.lease.lease_id,)
        return keys, ()

    keys, changed = await deps.store.write(job)
    deps.dispatcher.publish(changed)
    return KeyAnswer(
        workload_id=workload_id,
        api_key=api_key,
        key_sha256=digest,
        previous_until=keys[1].until if len(keys) > 1 else None,
    )


def new_key(random: bytes, prefix: str = KEY_PREFIX) -> str:
    """Write random bytes as a key that a person can tell for what it is."""
    return prefix + urlsafe_b64encode(random).decode().rstrip("=")
