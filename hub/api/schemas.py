"""Bodies of requests and answers; money is a decimal string in both directions."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

from hub.core.api_keys import DAYS_MAX, KeyState
from hub.core.rating import LineKind
from hub.core.workload_states import WorkloadState
from hub.store.api_keys import ApiKeyRow
from hub.store.workloads import Transition, WorkloadRow
from protocol.event import ClassReport
from protocol.lease import OnPartition, Priority, Sha256, WorkloadSpec
from protocol.order import LIMIT_MW_MAX, OrderId
from protocol.units import Ident, SiteName, usd_text

Amount = Annotated[str, Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$(?!\n)")]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Arg = Annotated[str, Meta(max_length=2_000)]
AwareTime = Annotated[datetime, Meta(tz=True)]
Devices = Annotated[int, Meta(ge=1, le=4_096)]
LapseAfter = Annotated[int, Meta(ge=30, le=86_400)]
Grace = Annotated[int, Meta(ge=0, le=86_400)]
RunSeconds = Annotated[int, Meta(ge=1, le=31_536_000)]
EmailText = Annotated[str, Meta(min_length=3, max_length=254, pattern=r"^[^@\s]+@[^@\s]+$(?!\n)")]
Password = Annotated[str, Meta(min_length=1, max_length=1_024)]


class LoginRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who wants a token."""

    email: EmailText
    password: Password


class LoginAnswer(Struct, frozen=True, kw_only=True):
    """A token; ``expires_in`` in seconds."""

    access_token: str
    token_type: str
    expires_in: int


class MeAnswer(Struct, frozen=True, kw_only=True):
    """Who the token says you are."""

    sub: str
    email: str
    role: str
    customer_id: str | None


class SpecRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to run: the driver and its options; ``run_s`` ends it after that much served time."""

    driver: Ident = "simulated"
    image: Arg = ""
    args: Annotated[tuple[Arg, ...], Meta(max_length=64)] = ()
    run_s: RunSeconds | None = None

    def to_spec(self) -> WorkloadSpec:
        """Give the same as the wire's struct."""
        return WorkloadSpec(driver=self.driver, image=self.image, args=self.args, run_s=self.run_s)


class WorkloadRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A workload to run.

    Args:
        device_class: e.g. ``H100``. count: devices, all of them or none.
        priority: 1 (first) to 10. site_id: the only site wished for, or none.
        max_price_usd_per_h: highest price per device-hour, as a decimal string.
        expires_at: given up when it does not run by then.
        key_sha256: hex digest of the key that its model is to ask for; none: made later, by
            ``POST /workloads/{id}/key``.
        customer_id: for administrators only: on whose behalf.
    """

    name: Name
    device_class: Ident
    count: Devices = 1
    priority: Priority = 5
    site_id: SiteName | None = None
    spec: SpecRequest = SpecRequest()
    on_partition: OnPartition = OnPartition.STAY
    lapse_after_s: LapseAfter = 300
    max_price_usd_per_h: Amount | None = None
    expires_at: AwareTime | None = None
    customer_id: Ident | None = None
    key_sha256: Sha256 | None = None


class KeyRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another key for a workload's model.

    Args:
        grace_s: for how long the key before still opens; 0: it is revoked at once.
        key_sha256: hex digest of a key that the caller made; none: the hub makes one.
    """

    grace_s: Grace = 0
    key_sha256: Sha256 | None = None


class KeyAnswer(Struct, frozen=True, kw_only=True):
    """A new key.

    Args:
        api_key: shown here and never again; null where the caller made it.
        previous_until: until when the key before opens; null: it does not.
    """

    workload_id: str
    api_key: str | None
    key_sha256: str
    previous_until: datetime | None


class ApiKeyRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An API key to make.

    Args:
        name: for people, to tell keys apart. expires_in_days: 1 to 365.
    """

    name: Annotated[str, Meta(min_length=1, max_length=80)]
    expires_in_days: Annotated[int, Meta(ge=1, le=DAYS_MAX)] = 90


class ApiKeyView(Struct, frozen=True, kw_only=True):
    """An API key of the caller.

    Args:
        prefix: how the key begins. last_used_at: to the minute; null: never.
    """

    key_id: str
    name: str
    prefix: str
    state: KeyState
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, row: ApiKeyRow, now: datetime) -> "ApiKeyView":
        """Show a stored key as it stands at ``now``."""
        return cls(
            key_id=row.key_id,
            name=row.name,
            prefix=row.prefix,
            state=row.state(now),
            created_at=row.created_at,
            expires_at=row.expires_at,
            last_used_at=row.last_used_at,
            revoked_at=row.revoked_at,
        )


class ApiKeysAnswer(Struct, frozen=True, kw_only=True):
    """API keys, the newest first; ``may_change``: the caller may make and revoke them."""

    items: tuple[ApiKeyView, ...]
    may_change: bool


class NewApiKeyAnswer(Struct, frozen=True, kw_only=True):
    """A new API key; ``api_key`` is shown here and never again."""

    api_key: str
    key: ApiKeyView


class WorkloadKeyView(Struct, frozen=True, kw_only=True):
    """A key of a workload's model, by its hash; ``until``: when it ceases to open, null: never."""

    sha256: str
    until: datetime | None


class TransitionView(Struct, frozen=True, kw_only=True):
    """One step of a workload; ``why`` is for a person, empty where the reason says it all."""

    seq: int
    from_state: WorkloadState | None
    to_state: WorkloadState
    reason: str
    actor: str
    at: datetime
    why: str = ""


class WorkloadView(Struct, frozen=True, kw_only=True):
    """A workload as its owner sees it.

    Args:
        placed_site_id: where its newest attempt went.
        endpoint_url: base of its model's OpenAI-compatible API (``.../v1``), told to its owner
            alone while it serves or a switch is under way; null: it has none, or none is known.
        keys: hashes of the keys that its model asks for, the newest first; none: it lets nobody in.
    """

    workload_id: str
    customer_id: str
    name: str
    device_class: str
    count: int
    priority: int
    state: WorkloadState
    reason: str
    attempt: int
    site_id: str | None
    placed_site_id: str | None
    spec: WorkloadSpec
    on_partition: OnPartition
    lapse_after_s: int
    max_price_usd_per_h: str | None
    expires_at: datetime | None
    created_at: datetime
    updated_at: datetime
    running_at: datetime | None
    cancel_accepted_at: datetime | None
    ended_at: datetime | None
    endpoint_url: str | None = None
    keys: tuple[WorkloadKeyView, ...] = ()
    history: tuple[TransitionView, ...] = ()


class WorkloadPage(Struct, frozen=True, kw_only=True):
    """Workloads, newest first; ``next`` is the cursor of the following page."""

    items: tuple[WorkloadView, ...]
    next: str | None


class OrderRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A grid order: the site's load at or under ``limit_mw`` from ``due_at`` to ``until_at``.

    Args:
        limit_mw: at the site's meter. order_id: the grid's own id of it; none: the hub makes one.
        reason: kept with the order.
    """

    limit_mw: Annotated[float, Meta(ge=0, lt=LIMIT_MW_MAX)]
    due_at: AwareTime
    until_at: AwareTime
    order_id: OrderId | None = None
    reason: Annotated[str, Meta(max_length=120)] = ""


class OrderView(Struct, frozen=True, kw_only=True):
    """A grid order and what became of it; null is unknown or not yet.

    Args:
        status: ``sent`` until the site has spoken, then ``refused`` (see ``why``), ``waiting``,
            ``shedding``, ``holding``, ``met``, ``missed`` or ``cancelled``; ``forgotten`` when the
            site never spoke of it.
        given_here: the hub gave it; false: the site has it from somebody else.
        promised_mw: what can be reached by the deadline with 99 %, as known when it came.
        load_mw: newest confirmed load while it bound. worst_mw: most above the limit between
            deadline and end. over_s: time above it, then.
    """

    order_id: str
    site_id: str
    given_here: bool
    given_by: str
    given_at: datetime
    cancelled_at: datetime | None
    limit_mw: float | None
    due_at: datetime | None
    until_at: datetime | None
    status: str
    reported_at: datetime | None
    promised_mw: float | None
    load_mw: float | None
    worst_mw: float | None
    over_s: float | None
    reached_at: datetime | None
    missed_at: datetime | None
    ended_at: datetime | None
    why: str


class OrdersAnswer(Struct, frozen=True, kw_only=True):
    """Orders of a site, the newest first."""

    orders: tuple[OrderView, ...]


class RouteRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A workload that is not submitted: where would it go, and at what price?"""

    device_class: Ident
    count: Devices = 1
    priority: Priority = 5
    site_id: SiteName | None = None
    max_price_usd_per_h: Amount | None = None


class PartView(Struct, frozen=True, kw_only=True):
    """One summand of a score."""

    name: str
    points: float


class CandidateView(Struct, frozen=True, kw_only=True):
    """One site, judged; ``reason_rejected`` is null for one that can take the work."""

    site_id: str
    score: float
    parts: tuple[PartView, ...]
    reason_rejected: str | None


class RouteAnswer(Struct, frozen=True, kw_only=True):
    """The site that would be chosen (null: it would wait, for ``reason``), and the price now."""

    site_id: str | None
    reason: str
    price_usd_per_h: str | None
    total_usd_per_h: str | None
    card_version: int | None
    candidates: tuple[CandidateView, ...]


class SiteView(Struct, frozen=True, kw_only=True):
    """One site; null is unknown."""

    site_id: str
    name: str
    online: bool
    last_seen: datetime | None
    reported_at: datetime | None
    through: datetime | None
    power_w: float | None
    power_cap_w: float | None
    classes: tuple[ClassReport, ...]


class ResourcesAnswer(Struct, frozen=True, kw_only=True):
    """All sites."""

    sites: tuple[SiteView, ...]


class SwitchView(Struct, frozen=True, kw_only=True):
    """One finished switch; ``took_us`` in microseconds."""

    site_id: str
    switch_id: str
    device_class: str
    from_activity: str
    to_activity: str
    devices: int
    committed: int
    rolled_back: int
    quarantined: int
    took_us: int
    reason: str
    at: datetime


class SwitchesAnswer(Struct, frozen=True, kw_only=True):
    """The newest switches, newest first."""

    switches: tuple[SwitchView, ...]


class UsageLine(Struct, frozen=True, kw_only=True):
    """Served time of one workload and class at one price; amounts are rated, not invoiced."""

    workload_id: str
    workload_name: str
    device_class: str
    kind: LineKind
    card_version: int
    price_usd_per_h: str
    active_ms: int
    energy_j: int
    amount_usd: str


class UsageAnswer(Struct, frozen=True, kw_only=True):
    """Usage that starts within [from, to)."""

    start: datetime
    end: datetime
    lines: tuple[UsageLine, ...]
    active_ms: int
    total_usd: str


class SiteRevenue(Struct, frozen=True, kw_only=True):
    """What one site's served time is worth."""

    site_id: str
    active_ms: int
    total_usd: str


class RevenueAnswer(Struct, frozen=True, kw_only=True):
    """Rated usage of all customers within [from, to), by site, and what was invoiced so far."""

    start: datetime
    end: datetime
    sites: tuple[SiteRevenue, ...]
    total_usd: str
    invoiced_usd: str


class PeriodView(Struct, frozen=True, kw_only=True):
    """start <= t < end, whole UTC minutes."""

    start: datetime
    end: datetime


class InvoiceLineView(Struct, frozen=True, kw_only=True):
    """One line; ``late_of`` is the number of the invoice whose period the usage was late for."""

    description: str
    workload_id: str
    device_class: str
    kind: LineKind
    card_version: int
    price_usd_per_h: str
    active_ms: int
    energy_j: int
    amount_usd: str
    late_of: int | None = None


class InvoiceView(Struct, frozen=True, kw_only=True):
    """An immutable invoice."""

    invoice_id: str
    number: int
    customer_id: str
    period: PeriodView
    closed_at: datetime
    currency: str
    lines: tuple[InvoiceLineView, ...]
    total_usd: str
    estimated: bool
    missing_sites: tuple[str, ...]
    content_hash: str


class InvoicePage(Struct, frozen=True, kw_only=True):
    """Invoices, newest first."""

    items: tuple[InvoiceView, ...]
    next: str | None


class CountView(Struct, frozen=True, kw_only=True):
    """One counter since the start of this hub process."""

    name: str
    count: int


class SummaryAnswer(Struct, frozen=True, kw_only=True):
    """What came in: telemetry points since the start, usage rows for ever, and every counter."""

    points_ingested: int
    usage_rows: int
    live_clients: int
    counters: tuple[CountView, ...]


class HealthAnswer(Struct, frozen=True, kw_only=True):
    """``ok`` when the store answers."""

    status: str
    version: str


def workload_view(
    row: WorkloadRow, history: tuple[Transition, ...] = (), *, endpoint_url: str | None = None
) -> WorkloadView:
    """Show a stored workload; ``endpoint_url`` is for its owner alone."""
    price = row.max_price_usd_per_h
    return WorkloadView(
        workload_id=row.workload_id,
        customer_id=row.customer_id,
        name=row.name,
        device_class=row.device_class,
        count=row.count,
        priority=row.priority,
        state=row.state,
        reason=row.reason,
        attempt=row.attempt,
        site_id=row.site_id,
        placed_site_id=row.placed_site_id,
        spec=row.spec,
        on_partition=row.on_partition,
        lapse_after_s=row.lapse_after_s,
        max_price_usd_per_h=None if price is None else usd_text(price),
        expires_at=row.expires_at,
        created_at=row.created_at,
        updated_at=row.updated_at,
        running_at=row.running_at,
        cancel_accepted_at=row.cancel_accepted_at,
        ended_at=row.ended_at,
        endpoint_url=endpoint_url,
        keys=tuple(WorkloadKeyView(sha256=key.sha256, until=key.until) for key in row.keys),
        history=tuple(
            TransitionView(
                seq=step.seq,
                from_state=step.from_state,
                to_state=step.to_state,
                reason=step.reason,
                actor=step.actor,
                at=step.at,
                why=step.detail.get("why", ""),
            )
            for step in history
        ),
    )
