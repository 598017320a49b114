"""The routes of the local API: what `hcp-agent` reads and asks for."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

import msgspec
from msgspec import Struct

from edge_agent.core.errors import ActError
from edge_agent.core.explain import Explanation
from edge_agent.local_api.grid import Grid, GridRoutes
from edge_agent.local_api.http import LocalError, LocalRequest, PlainText
from edge_agent.local_api.miners import MinerDesk
from edge_agent.ports import Clock
from edge_agent.services.fence_words import Released
from edge_agent.services.grid_desk import MarketView, OrderLines, PowerReport
from edge_agent.services.state_report import DeviceLine, PlanView, Status, TimeLine
from edge_agent.version import VERSION
from protocol.event import SwitchReport

_T = TypeVar("_T", bound=Struct)

VIEW_VERSION = 1
SWITCHES_MAX = 100_000


class Brain(Protocol):
    """What the local API needs of the agent's brain."""

    def status(self) -> Status:
        """Give the site's status."""
        ...

    def devices(self) -> tuple[DeviceLine, ...]:
        """Give every device."""
        ...

    def device_time(self, device_id: str) -> TimeLine:
        """Give the ledger of a device's time."""
        ...

    def ledger_ns(self) -> int:
        """Give the boottime up to which the ledgers count."""
        ...

    def why(self, device_id: str) -> Explanation:
        """Explain what a device does."""
        ...

    def plan(self) -> PlanView:
        """Give what would be done now."""
        ...

    def metrics(self) -> str:
        """Give metrics in the text form of Prometheus."""
        ...

    async def drain(self, device_id: str, for_s: float | None, reason: str) -> None:
        """Take a device out of use."""
        ...

    async def undrain(self, device_id: str) -> Released | None:
        """Give a device back to use; gives what comes of the fence of its GPU, so far."""
        ...

    def released(self, device_id: str) -> Released | None:
        """Give what came of the last word on the fence of a device."""
        ...


class HubLink(Struct, frozen=True, kw_only=True):
    """The link to the hub as a technician sees it."""

    online: bool
    heard_age_s: float | None
    backlog: int
    last_error: str


class StreamLine(Struct, frozen=True, kw_only=True):
    """What the hub has not taken of one stream."""

    stream: str
    pending: int
    bytes: int
    oldest_age_s: float | None


class BufferView(Struct, frozen=True, kw_only=True):
    """The answer to ``buffer show``; ``level`` 0 is normal, 5 is nothing more to give way."""

    v: int
    streams: tuple[StreamLine, ...]
    segment_bytes: int
    level: int
    dropped_segments: int


class InputLine(Struct, frozen=True, kw_only=True):
    """What one source has said since the start: taken, refused, and why the last was refused."""

    name: str
    taken: int | None
    refused: int
    last_error: str


class SiteStatus(Struct, frozen=True, kw_only=True):
    """The answer to ``status``: the brain's view, and what the process knows beside it."""

    v: int
    version: str
    up_s: float
    hub: HubLink
    site: Status
    inputs: tuple[InputLine, ...] = ()


class SwitchLines(Struct, frozen=True, kw_only=True):
    """The answer to ``switches``, newest first."""

    v: int
    items: tuple[SwitchReport, ...]


class DeviceItem(Struct, frozen=True, kw_only=True):
    """One device, with the ledger of its time in nanoseconds by activity when asked for."""

    device: DeviceLine
    time_ns: dict[str, int] = {}


class DeviceLines(Struct, frozen=True, kw_only=True):
    """The answer to ``devices``; ``now_ns`` is the boottime up to which ledgers count."""

    v: int
    now_ns: int
    items: tuple[DeviceItem, ...]


class Snapshot(Struct, frozen=True, kw_only=True):
    """What stays readable when the agent is down."""

    v: int
    at: datetime
    status: SiteStatus
    buffer: BufferView
    switches: SwitchLines
    plan: PlanView
    devices: DeviceLines
    market: MarketView | None = None
    power: PowerReport | None = None
    orders: OrderLines | None = None


class DrainBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which devices to drain, for how long (None: until undrained), and why."""

    pattern: str
    for_s: float | None = None
    reason: str = ""


class UndrainBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which devices to give back."""

    pattern: str


class Acted(Struct, frozen=True, kw_only=True):
    """The devices that an act reached, and what comes of the fences of those that have one."""

    v: int
    devices: tuple[str, ...]
    releases: tuple[Released, ...] = ()


class LocalApi:
    """Answers requests.

    Args:
        hub: gives the state of the hub link. buffer: of the outbox. switches: newest first.
        inputs: counts of what the sources said. miners: shows and tells them.
        grid: the desk of market, power and orders.
    """

    def __init__(
        self,
        brain: Brain,
        clock: Clock,
        *,
        hub: Callable[[], HubLink],
        buffer: Callable[[], BufferView],
        switches: Callable[[int], tuple[SwitchReport, ...]],
        inputs: Callable[[], tuple[InputLine, ...]] = tuple,
        miners: MinerDesk | None = None,
        grid: Grid | None = None,
    ) -> None:
        """Keep the sources; the start of the process is now."""
        self._brain = brain
        self._clock = clock
        self._hub = hub
        self._buffer = buffer
        self._switches = switches
        self._inputs = inputs
        self._grid = grid
        self._started_ns = clock.boottime_ns()
        self._reads: dict[str, Callable[[LocalRequest], object]] = {
            "/v1/status": lambda _: self.status(),
            "/v1/devices": self._devices,
            "/v1/why": self._why,
            "/v1/plan": lambda _: self._brain.plan(),
            "/v1/switches": self._switch_lines,
            "/v1/releases": self._released,
            "/v1/buffer": lambda _: self._buffer(),
            "/metrics": lambda _: PlainText(self._brain.metrics()),
        }
        self._acts: dict[str, Callable[[LocalRequest], Awaitable[object]]] = {
            "/v1/drain": self._drain,
            "/v1/undrain": self._undrain,
        }
        if miners is not None:
            self._reads |= {"/v1/miners": miners.lines, "/v1/acts": miners.acted}
            self._acts["/v1/acts"] = miners.act
        if grid is not None:
            routes = GridRoutes(grid, clock)
            self._reads |= routes.reads
            self._acts |= routes.acts

    async def handle(self, request: LocalRequest) -> object:
        """Answer one request.

        Raises:
            LocalError: 400, 403, 404 or 409 with a stable code.
        """
        try:
            if request.method == "GET" and request.path in self._reads:
                return self._reads[request.path](request)
            if request.method == "POST" and request.path in self._acts:
                if not request.writable:
                    raise LocalError(403, "not_allowed", "acts go to the control socket")
                return await self._acts[request.path](request)
        except ActError as exc:
            status = 404 if exc.code in ("no_device", "no_order") else 409
            raise LocalError(status, exc.code, str(exc)) from exc
        raise LocalError(404, "not_found", f"no {request.method} {request.path[:100]}")

    def status(self) -> SiteStatus:
        """Give the answer to ``status``."""
        return SiteStatus(
            v=VIEW_VERSION,
            version=VERSION,
            up_s=(self._clock.boottime_ns() - self._started_ns) / 1e9,
            hub=self._hub(),
            site=self._brain.status(),
            inputs=self._inputs(),
        )

    def snapshot(self) -> Snapshot:
        """Give everything that stays readable when the agent is down."""
        return Snapshot(
            v=VIEW_VERSION,
            at=self._clock.wall(),
            status=self.status(),
            buffer=self._buffer(),
            switches=SwitchLines(v=VIEW_VERSION, items=self._switches(50)),
            plan=self._brain.plan(),
            devices=self._lines("*", with_times=False),
            market=None if self._grid is None else self._grid.market(),
            power=None if self._grid is None else self._grid.power(),
            orders=None if self._grid is None else self._grid.orders(),
        )

    def _devices(self, request: LocalRequest) -> DeviceLines:
        pattern = request.query.get("pattern", "*")
        return self._lines(pattern, with_times=request.query.get("times") == "1")

    def _lines(self, pattern: str, *, with_times: bool) -> DeviceLines:
        items = [
            DeviceItem(device=line, time_ns=self._time_ns(line.device_id) if with_times else {})
            for line in self._brain.devices()
            if fnmatchcase(line.device_id, pattern)
        ]
        return DeviceLines(v=VIEW_VERSION, now_ns=self._brain.ledger_ns(), items=tuple(items))

    def _time_ns(self, device_id: str) -> dict[str, int]:
        times = self._brain.device_time(device_id).times
        return {row.activity.value: row.spent_ns for row in times}

    def _why(self, request: LocalRequest) -> Explanation:
        device_id = request.query.get("device")
        if not device_id:
            raise LocalError(400, "bad_request", "device: is missing")
        return self._brain.why(device_id)

    def _switch_lines(self, request: LocalRequest) -> SwitchLines:
        text = request.query.get("limit", "20")
        if not text.isdecimal() or not 1 <= int(text) <= SWITCHES_MAX:
            raise LocalError(400, "bad_request", f"limit: must be within 1..{SWITCHES_MAX}")
        return SwitchLines(v=VIEW_VERSION, items=self._switches(int(text)))

    async def _drain(self, request: LocalRequest) -> Acted:
        body = _body(request, DrainBody)
        who = f"{body.reason} (uid {request.peer.uid})".strip()
        reached = self._matching(body.pattern)
        for device_id in reached:
            await self._brain.drain(device_id, body.for_s, who)
        return Acted(v=VIEW_VERSION, devices=reached)

    async def _undrain(self, request: LocalRequest) -> Acted:
        reached = self._matching(_body(request, UndrainBody).pattern)
        rows = [await self._brain.undrain(device_id) for device_id in reached]
        releases = tuple(row for row in rows if row is not None)
        return Acted(v=VIEW_VERSION, devices=reached, releases=releases)

    def _released(self, request: LocalRequest) -> Acted:
        """Tell what came of the fences of devices that were given back."""
        reached = self._matching(request.query.get("pattern", "*"))
        rows = (self._brain.released(device_id) for device_id in reached)
        releases = tuple(row for row in rows if row is not None)
        return Acted(v=VIEW_VERSION, devices=reached, releases=releases)

    def _matching(self, pattern: str) -> tuple[str, ...]:
        lines = self._brain.devices()
        return tuple(row.device_id for row in lines if fnmatchcase(row.device_id, pattern))


def _body(request: LocalRequest, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(request.body, type=kind)
    except msgspec.MsgspecError as exc:
        raise LocalError(400, "bad_request", str(exc)) from exc
