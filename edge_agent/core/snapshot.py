"""Snapshot of the state: bytes for the store, a hash to compare replays, and the way back.

Columns are kept under device ids, so that a changed site file finds its devices again; what is new
starts unknown, what is gone is dropped. A snapshot of an older version is read; columns that it has
not got are made from those it has. One of a site where the agent sets no power modes has no columns
of steps.
"""

from hashlib import blake2b

import msgspec
import numpy as np
from msgspec import Struct, structs

from edge_agent.core.errors import JournalError
from edge_agent.core.facts import Instant, SwitchCost, SwitchCostReady
from edge_agent.core.held import HeldSwitch
from edge_agent.core.ready import Arrivals, Paid, PrepareEntry
from edge_agent.core.restart import ClassBelief
from edge_agent.core.site import ACTIVITIES, Site
from edge_agent.core.site_state import (
    LeaseEntry,
    MarketState,
    OrderEntry,
    Response,
    SiteState,
    SwitchEntry,
    new_state,
)
from protocol.lease import SitePolicy

SNAPSHOT_VERSION = 4
COLUMNS: tuple[tuple[str, str], ...] = (
    ("activity", "u1"),
    ("origin", "u1"),
    ("target", "u1"),
    ("since_ns", "<i8"),
    ("reachable", "?"),
    ("read_ns", "<i8"),
    ("power_w", "<f8"),
    ("hashrate_ths", "<f8"),
    ("temp_c", "<f8"),
    ("utilisation", "<f8"),
    ("mine_ths", "<f8"),
    ("mine_w", "<f8"),
    ("regret_usd", "<f8"),
    ("switch_no", "<i4"),
    ("lease_no", "<i4"),
    ("failures", "u1"),
    ("failed_ns", "<i8"),
    ("quarantine_ns", "<i8"),
    ("hold", "u1"),
    ("hold_until_ns", "<i8"),
    ("spent_ns", "<i8"),
    ("mode_since_ns", "<i8"),
    ("heard_ns", "<i8"),
    ("debt", "<f8"),
)
# Of a site where the agent sets power modes: behind the others, and before a digest of the names
# that the steps had: under other names they are unknown.
STEPS_VERSION = 5
STEP_COLUMNS: tuple[tuple[str, str], ...] = (
    ("step", "u1"),
    ("step_to", "u1"),
    ("step_since_ns", "<i8"),
    ("step_regret_usd", "<f8"),
    ("no_steps", "u1"),
    ("no_code", "u1"),
)
# How many columns each version has; a version only ever adds some at the end.
COLUMNS_OF = {
    1: len(COLUMNS) - 3,
    2: len(COLUMNS),
    3: len(COLUMNS),
    SNAPSHOT_VERSION: len(COLUMNS),
    STEPS_VERSION: len(COLUMNS) + len(STEP_COLUMNS) + 1,
}


class Snapshot(Struct, frozen=True, array_like=True):
    """Stored form of a state; what a later version added stands after the columns."""

    version: int
    device_ids: tuple[str, ...]
    rows: int
    instant: Instant
    suspect: bool
    owner: bool
    market: MarketState
    policy: SitePolicy | None
    leases: tuple[LeaseEntry, ...]
    switches: tuple[SwitchEntry, ...]
    next_no: int
    through_ms: int
    over_cap_ns: int
    ramp_left_w: float
    nodes_up: tuple[str, ...]
    columns: tuple[bytes, ...]
    orders: tuple[OrderEntry, ...] = ()
    responses: tuple[Response, ...] = ()
    switch_costs: tuple[SwitchCost | SwitchCostReady, ...] = ()
    restarts: tuple[ClassBelief, ...] = ()
    unheard: tuple[str, ...] = ()


class SnapshotReady(Snapshot, frozen=True, array_like=True):
    """Stored form of a state that holds engines ready, or has counted the leases that came."""

    prepares: tuple[PrepareEntry, ...] = ()
    arrivals: tuple[Arrivals, ...] = ()


class SnapshotPaid(SnapshotReady, frozen=True, array_like=True):
    """Stored form of a state that also keeps what leases pay."""

    paid: tuple[Paid, ...] = ()


class SnapshotHeld(SnapshotPaid, frozen=True, array_like=True):
    """Stored form of a state in which switches of a former life wait, or were turned back."""

    held: tuple[HeldSwitch, ...] = ()


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(SnapshotHeld)


def _same(kind: type[Struct]) -> tuple[str, ...]:
    own = ("version", "device_ids", "columns")
    return tuple(field.name for field in structs.fields(kind) if field.name not in own)


_SAME = {kind: _same(kind) for kind in (Snapshot, SnapshotReady, SnapshotPaid, SnapshotHeld)}


def encode_state(site: Site, state: SiteState) -> bytes:
    """Encode a state; equal states give equal bytes."""
    named = columns_of(site)
    columns = tuple(
        np.ascontiguousarray(getattr(state, name), dtype=dtype).tobytes() for name, dtype in named
    )
    version = SNAPSHOT_VERSION
    if site.steps is not None:
        version, columns = STEPS_VERSION, (*columns, _names_digest(site))
    # A state without them is stored, and hashed, as it was before there were any.
    ready = bool(state.prepares or state.arrivals)
    kind = SnapshotPaid if state.paid else SnapshotReady if ready else Snapshot
    kind = SnapshotHeld if state.held else kind
    values = {name: getattr(state, name) for name in _SAME[kind]}
    device_ids = tuple(device.device_id for device in site.devices)
    return _ENCODER.encode(kind(version=version, device_ids=device_ids, columns=columns, **values))


def columns_of(site: Site) -> tuple[tuple[str, str], ...]:
    """Give the columns that a snapshot of a site keeps."""
    return COLUMNS if site.steps is None else (*COLUMNS, *STEP_COLUMNS)


def decode_state(site: Site, data: bytes) -> SiteState:
    """Decode a state for the site as it is now.

    Raises:
        JournalError: the bytes are no snapshot of a known version.
    """
    try:
        body = _DECODER.decode(data)
    except (msgspec.DecodeError, ValueError) as exc:
        raise JournalError("bad_snapshot", str(exc)) from exc
    if body.version not in COLUMNS_OF:
        raise JournalError("snapshot_version", f"version {body.version} is not known")
    if len(body.columns) != COLUMNS_OF[body.version]:
        raise JournalError("bad_snapshot", f"{len(body.columns)} columns")
    state = new_state(site, body.instant)
    n = len(body.device_ids)
    pairs = [
        (old, at)
        for old, device_id in enumerate(body.device_ids)
        if (at := site.index_of(device_id)) is not None
    ]
    old_at = np.array([old for old, _ in pairs], dtype=np.int64)
    new_at = np.array([at for _, at in pairs], dtype=np.int64)
    columns: dict[str, np.ndarray] = {}
    named = (*COLUMNS, *STEP_COLUMNS) if _same_steps(site, body) else COLUMNS
    for (name, dtype), raw in zip(named, body.columns, strict=False):
        column = np.frombuffer(raw, dtype=dtype)
        if name == "spent_ns":
            column = column.reshape(n, ACTIVITIES)
        if len(column) != n:
            raise JournalError("bad_snapshot", f"{name}: {len(column)} rows for {n} devices")
        fresh = getattr(state, name).copy()
        fresh[new_at] = column[old_at]
        columns[name] = fresh
    if body.version == 1:
        # Nobody wrote down who was silent: the day of silence begins with the snapshot.
        columns["mode_since_ns"] = columns["since_ns"]
    values = {name: getattr(body, name) for name in _SAME[SnapshotHeld]}
    return structs.replace(state, **values, **columns)


def state_hash(site: Site, state: SiteState) -> bytes:
    """Give the blake2b-16 of the encoded state."""
    return blake2b(encode_state(site, state), digest_size=16).digest()


def _same_steps(site: Site, body: Snapshot) -> bool:
    return body.version >= STEPS_VERSION and body.columns[-1] == _names_digest(site)


def _names_digest(site: Site) -> bytes:
    names = () if site.steps is None else site.steps.names
    return blake2b(msgspec.msgpack.encode(names), digest_size=16).digest()
