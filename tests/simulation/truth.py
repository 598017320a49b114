"""What the simulated GPU hosts really did, kept apart from anything that the platform says."""

from __future__ import annotations

from msgspec import Struct

from simulators.gpu_host import MeterView, TruthLine

MINUTE_NS = 60_000_000_000


class Gate(Struct, frozen=True):
    """One open gate."""

    site_id: str
    device_id: str
    lease_id: str
    instance_id: str


class Stay(Struct, frozen=True, kw_only=True):
    """Everything that one instance served.

    Args:
        loss_ms_max: how much may be missing at the hub, because the meter died unread.
        minutes: (epoch minute by the host's wall, whole milliseconds served in it).
    """

    site_id: str
    device_id: str
    lease_id: str
    attempt: int
    instance_id: str
    served_ms: int
    energy_j: int
    completed: bool
    loss_ms_max: int
    minutes: tuple[tuple[int, int], ...]

    @property
    def workload_id(self) -> str:
        """Name the workload of the lease."""
        return self.lease_id.rpartition(".")[0]


class Truth:
    """Gates as they open and shut, and what the meters came to."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, str], Gate] = {}
        self.stays: dict[tuple[str, str], Stay] = {}
        self.lines = 0
        self._opened_minute: dict[tuple[str, str], int] = {}

    def take(self, site_id: str, device_id: str, line: TruthLine) -> str | None:
        """Take a line; gives what is wrong with it."""
        key = (site_id, line.instance_id)
        self.lines += 1
        if line.t == "close":
            self.open.pop(key, None)
            return None
        if line.t == "mark":
            return None
        self._opened_minute.setdefault(key, line.wall_ns // MINUTE_NS)
        gate = Gate(site_id, device_id, line.lease_id, line.instance_id)
        others = [one for one in self.open.values() if one != gate]
        self.open[key] = gate
        workload_id = line.lease_id.rpartition(".")[0]
        for other in others:
            if (other.site_id, other.device_id) == (site_id, device_id):
                return f"{device_id} serves {other.instance_id} and {line.instance_id} at once"
            if other.lease_id != line.lease_id and other.lease_id.rpartition(".")[0] == workload_id:
                return f"{other.lease_id} and {line.lease_id} serve at once"
        return None

    def harvest(self, site_id: str, device_id: str, view: MeterView, *, loss_ms_max: int) -> None:
        """Keep what a meter came to, at the end of its host or of the run.

        Args:
            loss_ms_max: of this meter, if its host was killed.
        """
        key = (site_id, view.instance_id)
        if view.opened_ns is not None:
            self.stays[key] = Stay(
                site_id=site_id,
                device_id=device_id,
                lease_id=view.lease_id,
                attempt=view.attempt,
                instance_id=view.instance_id,
                served_ms=view.served_ns // 1_000_000,
                energy_j=view.energy_mj // 1_000,
                completed=view.completed,
                loss_ms_max=loss_ms_max,
                minutes=self._minutes(key, view),
            )
        if loss_ms_max:
            self.open.pop(key, None)

    def _minutes(self, key: tuple[str, str], view: MeterView) -> tuple[tuple[int, int], ...]:
        minute, before = self._opened_minute[key], 0
        found = []
        for mark in view.marks:
            found.append((minute, mark.served_ns // 1_000_000 - before))
            minute, before = mark.epoch_minute, mark.served_ns // 1_000_000
        found.append((minute, view.served_ns // 1_000_000 - before))
        return tuple(found)
