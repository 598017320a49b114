"""Facts: everything that may change a decision, as journalled; one ``TickRow`` per pass.

A row is (instant, facts, acts, what was decided). Replay applies the facts, plans, compares, and
applies the acts (with the ids that were drawn), so state and plan come out the same, byte for byte.
"""

from datetime import datetime
from enum import StrEnum

import msgspec
import numpy as np
from msgspec import Struct

from edge_agent.core.decided import Decided
from edge_agent.core.errors import JournalError
from edge_agent.core.site import CodeColumn, FloatColumn, IndexColumn
from protocol.event import ReleaseOutcome
from protocol.lease import Lease, SitePolicy
from protocol.market import MarketTick
from protocol.node import NodeDevice, NodeEvent, Prepared
from protocol.resource import Activity

ROW_VERSION = 1


class Booted(Struct, frozen=True, array_like=True, tag="boot"):
    """The agent started: under a new boot_id the time before is one interval ``unknown``."""

    agent_epoch: int


class MarketSeen(Struct, frozen=True, array_like=True, tag="market"):
    """A market tick arrived; fields that it leaves out keep their last value and age."""

    tick: MarketTick


class LeaseSeen(Struct, frozen=True, array_like=True, tag="lease"):
    """Desired state of a lease arrived."""

    lease: Lease


class ManifestSeen(Struct, frozen=True, array_like=True, tag="manifest"):
    """The hub named the leases that the site should know; work of any other lease is ended."""

    lease_ids: tuple[str, ...]


class PolicySeen(Struct, frozen=True, array_like=True, tag="policy"):
    """Desired state of the site arrived."""

    policy: SitePolicy


class NodeAdopted(Struct, frozen=True, array_like=True, tag="node"):
    """A node said what it holds; its word beats the agent's belief."""

    node_id: str
    devices: tuple[NodeDevice, ...]


class NodeLost(Struct, frozen=True, array_like=True, tag="node_lost"):
    """The link to a node is down; intervals stay open, power counts as nameplate."""

    node_id: str


class NodeSaid(Struct, frozen=True, array_like=True, tag="node_event"):
    """A workload or device of a node changed by itself."""

    node_id: str
    event: NodeEvent


class ReadingsSeen(Struct, frozen=True, array_like=True, tag="readings"):
    """Device readings that left their deadband, as little-endian columns; NaN is unknown.

    Args:
        site_digest: indices mean devices of the site with this digest only.
        index: int32. activity: uint8 column codes (0 unknown). reachable: uint8.
        power_w, hashrate_ths, temp_c, utilisation: float32.
        step: uint8, the power step that the miner tells (0: it tells none); empty: nobody does.
    """

    site_digest: bytes
    index: bytes
    activity: bytes
    reachable: bytes
    power_w: bytes
    hashrate_ths: bytes
    temp_c: bytes
    utilisation: bytes
    step: bytes = b""


class HoldMode(StrEnum):
    """What an operator asks of a device."""

    NONE = "none"
    DRAIN = "drain"
    MINE = "mine"
    SERVE = "serve"


class OperatorHeld(Struct, frozen=True, array_like=True, tag="hold"):
    """An operator drains or holds a device until ``until_ns`` (boottime; None: until released)."""

    device_id: str
    mode: HoldMode
    until_ns: int | None
    reason: str


class GridOrder(Struct, frozen=True, array_like=True):
    """Curtail the whole site to ``limit_w`` at its meter by ``due_ms``, until ``until_ms``.

    Times are wall milliseconds: a grid knows no other clock.
    """

    order_id: str
    limit_w: float
    due_ms: int
    until_ms: int
    by: str = ""


class OrderSeen(Struct, frozen=True, array_like=True, tag="order"):
    """The grid (or an operator for it) ordered less load."""

    order: GridOrder


class OrderCancelled(Struct, frozen=True, array_like=True, tag="order_cancelled"):
    """An order was taken back."""

    order_id: str
    by: str


class SwitchOpened(Struct, frozen=True, array_like=True, tag="switch_opened"):
    """A switch began: its devices are switching and count for both sides' power.

    ``mode``: the power mode that running miners are to take; they go on mining. Empty: a switch
    between activities.
    """

    switch_id: str
    device_ids: tuple[str, ...]
    to_activity: Activity
    reason: str
    lease_id: str | None = None
    instances: tuple[str, ...] = ()
    mode: str = ""


class SwitchClosed(Struct, frozen=True, array_like=True, tag="switch_closed"):
    """A switch ended.

    ``outcomes`` per device: ``committed``, ``rolled_back`` or ``quarantined``; of a change of power
    mode also ``refused``. ``opened``: instances whose gate may have opened, so that their meters
    must be closed. ``mode``: as in ``SwitchOpened``. ``codes``: per device why it was not done;
    empty: nothing to tell.
    """

    switch_id: str
    device_ids: tuple[str, ...]
    outcomes: tuple[str, ...]
    took_us: int
    opened: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    mode: str = ""


class SwitchHeld(Struct, frozen=True, array_like=True, tag="switch_held"):
    """A starting agent found these open: they may raise power, and wait until the site is read."""

    switch_ids: tuple[str, ...]


class SwitchResumed(Struct, frozen=True, array_like=True, tag="switch_resumed"):
    """One that waited is carried on, or turned back: what it draws does not fit."""

    switch_id: str
    forward: bool


class LeaseTaken(Struct, frozen=True, array_like=True, tag="lease_taken"):
    """The edge reserved devices for a lease."""

    lease_id: str
    device_ids: tuple[str, ...]


class LeaseEnding(Struct, frozen=True, array_like=True, tag="lease_ending"):
    """The edge began to end a lease, with this outcome to report when all is closed."""

    lease_id: str
    outcome: ReleaseOutcome
    detail: str


class LeaseClosed(Struct, frozen=True, array_like=True, tag="lease_closed"):
    """A lease is over: refused, or released after its last usage."""

    lease_id: str
    refused: bool
    final_usage_seq: int


class LeaseCleared(Struct, frozen=True, array_like=True, tag="lease_cleared"):
    """The hub cleared the retained topic of a released lease."""

    lease_id: str


class LeaseReplaced(Struct, frozen=True, array_like=True, tag="lease_replaced"):
    """A device that a lease lost is replaced by another."""

    lease_id: str
    old_device_id: str
    new_device_id: str


class MetersPassed(Struct, frozen=True, array_like=True, tag="meters"):
    """Metering went on: instances whose meter opened or closed, and the minute told as through."""

    opened: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    through_ms: int | None = None


class ClockSuspected(Struct, frozen=True, array_like=True, tag="clock"):
    """The host's clock is off by more than 2 s from the hub's (or is good again)."""

    suspect: bool


class OwnerSeen(Struct, frozen=True, array_like=True, tag="owner"):
    """The hub said whether this store owns the site; one that does not writes to no device."""

    owner: bool


class SwitchCost(Struct, frozen=True, array_like=True, tag="switch_cost"):
    """What a switch of a class's devices was learnt to cost; stands in place of its constant.

    Args:
        seconds: expected from intent to effect, failed tries paid for. samples: real switches
            behind it, old ones count less. energy_wh: of one device meanwhile; None: unknown.
        learnt: what the learner goes on from after a restart; opaque to the decision.
    """

    device_class: str
    from_activity: Activity
    to_activity: Activity
    seconds: float
    samples: float
    energy_wh: float | None = None
    learnt: bytes = b""

    @property
    def ready(self) -> bool:
        """Tell whether it is of switches to what had been made ready before."""
        return False


class SwitchCostReady(SwitchCost, frozen=True, array_like=True, tag="switch_cost_ready"):
    """The same of switches to what had been made ready before; a fact of its own for old rows."""

    @property
    def ready(self) -> bool:
        """Tell whether it is of switches to what had been made ready before."""
        return True


class PrepareOutcome(StrEnum):
    """How holding an engine ready ended; the stored words stay."""

    USED = "used"
    # The switch came before the engine was ready.
    LATE = "late"
    TURNED = "turned"
    EXPIRED = "expired"
    REFUSED = "refused"
    FAILED = "failed"
    # The device is gone, out of use, or in other hands; or the engine was ready and no longer is.
    LOST = "lost"
    # It is ready anyway, and nothing need be held.
    STANDING = "standing"
    # The power is wanted elsewhere.
    POWER = "power"


class PrepareAsked(Struct, frozen=True, array_like=True, tag="prepare_asked"):
    """The edge asked a node to hold an engine ready for what a device will likely enter."""

    device_id: str
    enters: Activity
    chance: float
    within_s: float
    why: str


class PrepareEnded(Struct, frozen=True, array_like=True, tag="prepare_ended"):
    """What was held ready, or asked for, is so no longer; ``ready``: it had come so far."""

    device_id: str
    outcome: PrepareOutcome
    ready: bool
    detail: str = ""


class PrepareSaid(Struct, frozen=True, array_like=True, tag="prepare_said"):
    """A node said how everything stands that it was asked to hold ready."""

    node_id: str
    rows: tuple[Prepared, ...]


Fact = (
    Booted
    | OwnerSeen
    | MarketSeen
    | LeaseSeen
    | ManifestSeen
    | PolicySeen
    | NodeAdopted
    | NodeLost
    | NodeSaid
    | ReadingsSeen
    | OperatorHeld
    | OrderSeen
    | OrderCancelled
    | SwitchOpened
    | SwitchClosed
    | SwitchHeld
    | SwitchResumed
    | LeaseTaken
    | LeaseEnding
    | LeaseClosed
    | LeaseCleared
    | LeaseReplaced
    | MetersPassed
    | ClockSuspected
    | SwitchCost
    | SwitchCostReady
    | PrepareAsked
    | PrepareEnded
    | PrepareSaid
)


class Instant(Struct, frozen=True, array_like=True):
    """When a pass ran: boottime in ``boot_id``, wall stamp, and when the hub was last heard.

    ``hub_heard_ns`` is boottime; -1 is never in this boot.
    """

    boot_id: str
    now_ns: int
    wall: datetime
    hub_heard_ns: int = -1


class TickRow(Struct, frozen=True, array_like=True):
    """One journal row; ``planned`` tells whether a plan was made between facts and acts.

    ``decided`` stands in rows with a plan, but for those of an agent that did not yet keep it.
    """

    version: int
    instant: Instant
    planned: bool
    facts: tuple[Fact, ...]
    acts: tuple[Fact, ...] = ()
    decided: Decided | None = None


class ReadingColumns(Struct, frozen=True, eq=False):
    """``ReadingsSeen`` unpacked."""

    index: IndexColumn
    activity: CodeColumn
    reachable: CodeColumn
    power_w: FloatColumn
    hashrate_ths: FloatColumn
    temp_c: FloatColumn
    utilisation: FloatColumn
    step: CodeColumn | None = None


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(TickRow)


def encode_row(row: TickRow) -> bytes:
    """Encode one journal row."""
    return _ENCODER.encode(row)


def decode_row(data: bytes) -> TickRow:
    """Decode one journal row.

    Raises:
        JournalError: the bytes are no row, or one of a version that this code does not know.
    """
    try:
        row = _DECODER.decode(data)
    except (msgspec.DecodeError, ValueError) as exc:
        raise JournalError("bad_row", str(exc)) from exc
    if row.version != ROW_VERSION:
        raise JournalError("row_version", f"row version {row.version} is not {ROW_VERSION}")
    return row


def pack_readings(site_digest: bytes, columns: ReadingColumns) -> ReadingsSeen:
    """Pack columns into a fact; float32 is what the decision then uses, also live."""
    return ReadingsSeen(
        site_digest,
        columns.index.astype("<i4").tobytes(),
        columns.activity.astype("u1").tobytes(),
        columns.reachable.astype("u1").tobytes(),
        columns.power_w.astype("<f4").tobytes(),
        columns.hashrate_ths.astype("<f4").tobytes(),
        columns.temp_c.astype("<f4").tobytes(),
        columns.utilisation.astype("<f4").tobytes(),
        b"" if columns.step is None else columns.step.astype("u1").tobytes(),
    )


def unpack_readings(fact: ReadingsSeen) -> ReadingColumns:
    """Unpack a fact's columns.

    Raises:
        JournalError: the columns differ in length.
    """
    index = np.frombuffer(fact.index, dtype="<i4")
    power_w, hashrate_ths, temp_c, utilisation = (
        np.frombuffer(column, dtype="<f4").astype(np.float64)
        for column in (fact.power_w, fact.hashrate_ths, fact.temp_c, fact.utilisation)
    )
    columns = ReadingColumns(
        index,
        np.frombuffer(fact.activity, dtype="u1"),
        np.frombuffer(fact.reachable, dtype="u1"),
        power_w,
        hashrate_ths,
        temp_c,
        utilisation,
        np.frombuffer(fact.step, dtype="u1") if fact.step else None,
    )
    for column in (
        columns.activity,
        columns.reachable,
        columns.power_w,
        columns.temp_c,
        columns.step,
    ):
        if column is not None and len(column) != len(index):
            raise JournalError("bad_columns", "readings: columns differ in length")
    return columns
