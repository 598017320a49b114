"""What a committed job leaves to be done: messages to send, leases to publish, who to wake."""

from collections import Counter
from collections.abc import Iterator

from msgspec import Struct, structs

from hub.core import live
from hub.store.sync_tables import AlarmRow, GapRow
from hub.store.workloads import Transition
from protocol.event import SwitchReport
from protocol.telemetry import SchemaItem


class LiveMessage(Struct, frozen=True):
    """One message for the live channel; ``owner_body`` is what its owner is sent, if another."""

    topic: str
    customer_id: str | None
    body: bytes
    owner_body: bytes | None = None


class Effects:
    """Filled inside a write job, carried out after its commit; a job that fails leaves nothing."""

    def __init__(self) -> None:
        self.live: list[LiveMessage] = []
        self.lease_ids: list[str] = []
        self.alarms: list[AlarmRow] = []
        self.gaps: list[GapRow] = []
        self.schemas: list[tuple[bytes, SchemaItem]] = []
        self.counts: Counter[str] = Counter()
        self.wake = False
        self.orders = False

    def transition(self, step: Transition, endpoint_url: str | None = None) -> None:
        """Tell the live channel of a workload's step, and placement when it may matter there.

        Args:
            endpoint_url: where its work listens, for its owner alone.
        """
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
        owner_body = None
        if endpoint_url is not None:
            owner_body = live.encode(structs.replace(body, endpoint_url=endpoint_url))
        encoded = live.encode(body)
        self.live.append(LiveMessage(live.WORKLOAD, step.customer_id, encoded, owner_body))
        self.wake = True

    def switch(self, site_id: str, report: SwitchReport) -> None:
        """Tell staff of a finished switch."""
        body = live.LiveSwitch(
            site_id=site_id,
            switch_id=report.switch_id,
            device_class=report.device_class,
            from_activity=report.from_activity,
            to_activity=report.to_activity,
            devices=report.devices,
            committed=report.committed,
            rolled_back=report.rolled_back,
            quarantined=report.quarantined,
            at=report.at,
            took_us=report.took_us,
            reason=report.reason,
        )
        self.live.append(LiveMessage(live.SWITCH, None, live.encode(body)))

    def alarm(self, row: AlarmRow) -> None:
        """Note an alarm that was stored."""
        self.alarms.append(row)
        self.counts[f"alarm_{row.code}"] += 1

    def take(self, other: "Effects") -> None:
        """Add what another step of the same job left."""
        self.live += other.live
        self.lease_ids += other.lease_ids
        self.alarms += other.alarms
        self.gaps += other.gaps
        self.schemas += other.schemas
        self.counts.update(other.counts)
        self.wake = self.wake or other.wake
        self.orders = self.orders or other.orders

    def counted(self) -> Iterator[tuple[str, int]]:
        """Give the counts by name."""
        return iter(sorted(self.counts.items()))
