"""What the live channel says: one Struct per topic, sent with its ``topic`` as the first field."""

from datetime import datetime
from decimal import Decimal
from typing import Final

import msgspec
from msgspec import Struct

from protocol.event import ClassReport

WORKLOAD: Final = "workload"
SITE: Final = "site"
SWITCH: Final = "switch"
INVOICE: Final = "invoice"
TOPICS: Final = (WORKLOAD, SITE, SWITCH, INVOICE)


class LiveWorkload(Struct, frozen=True, kw_only=True):
    """A workload changed state; ``endpoint_url`` stands in what its owner is sent alone."""

    workload_id: str
    customer_id: str
    from_state: str | None
    state: str
    reason: str
    at: datetime
    attempt: int
    site_id: str | None = None
    seq: int = 0
    endpoint_url: str | None = None


class LiveSite(Struct, frozen=True, kw_only=True):
    """A site as it stands; None is unknown."""

    site_id: str
    online: bool
    at: datetime
    power_w: float | None = None
    power_cap_w: float | None = None
    price_usd_per_mwh: float | None = None
    earning_usd_per_h: float | None = None
    hashrate_ths: float | None = None
    classes: tuple[ClassReport, ...] = ()
    backlog_records: int = 0


class LiveSwitch(Struct, frozen=True, kw_only=True):
    """A switch of 1..n devices of one class has ended."""

    site_id: str
    switch_id: str
    device_class: str
    from_activity: str
    to_activity: str
    devices: int
    committed: int
    rolled_back: int
    quarantined: int
    at: datetime
    took_us: int
    reason: str


class LiveInvoice(Struct, frozen=True, kw_only=True):
    """An invoice was made."""

    invoice_id: str
    number: int
    customer_id: str
    total_usd: Decimal
    at: datetime


def encode(body: LiveWorkload | LiveSite | LiveSwitch | LiveInvoice) -> bytes:
    """Encode a live message as a JSON object, without its topic."""
    return msgspec.json.encode(body)
