"""The admin listener: /metrics for Prometheus, /status for a person, /healthz for a probe."""

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import msgspec
from msgspec import Struct

from edge_agent.host.ledger import Instance
from edge_agent.host.metrics import Labels, family
from edge_agent.host.service import HostService
from edge_agent.host.slot import Slot
from protocol.node import GpuFence

# Of the newest instances alone: a page of metrics stays readable.
INSTANCES_MAX = 256
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_JSON = b"application/json"


class InstanceStatus(Struct, frozen=True, kw_only=True):
    """One instance as /status gives it."""

    instance_id: str
    lease_id: str
    gate_open: bool
    completed: bool
    served_ns: int
    energy_mj: int
    energy_measured: bool
    in_flight: int
    requests: int
    failed: int
    tokens_in: int
    tokens_out: int
    uncounted: int


class GpuStatus(Struct, frozen=True, kw_only=True):
    """One GPU as /status gives it."""

    gpu: str
    model: str
    mining: bool | None
    server_ready: bool | None
    miner_strategy: str | None
    server_strategy: str | None
    prepared: str | None
    healthy: bool | None
    held: bool | None
    reason: str
    fence: GpuFence | None
    instance: InstanceStatus | None


class Status(Struct, frozen=True, kw_only=True):
    """What /status gives; ``v`` is the version of this shape."""

    v: int = 1
    host_id: str
    process_id: str
    waiting: int
    turned_away: int
    unauthorised: int
    gpus: tuple[GpuStatus, ...]


class Admin:
    """The ASGI application of the admin listener."""

    def __init__(self, service: HostService) -> None:
        self._service = service

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        del receive
        pages: dict[tuple[str, str], Callable[[], tuple[bytes, bytes]]] = {
            ("GET", "/healthz"): lambda: (_TEXT, b"ok\n"),
            ("GET", "/metrics"): lambda: (_TEXT, metrics_text(self._service).encode()),
            ("GET", "/status"): lambda: (_JSON, msgspec.json.encode(status_of(self._service))),
        }
        page = pages.get((scope["method"], scope["path"]))
        kind, body = (_TEXT, b"no such page\n") if page is None else page()
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        code = 404 if page is None else 200
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def status_of(service: HostService) -> Status:
    """Give the host at a glance."""
    return Status(
        host_id=service.config.host_id,
        process_id=service.ledger.process_id,
        waiting=service.doors.waiting,
        turned_away=service.doors.turned_away,
        unauthorised=service.access.refused.total(),
        gpus=tuple(_gpu_status(service, slot) for slot in service.slots.values()),
    )


def _gpu_status(service: HostService, slot: Slot) -> GpuStatus:
    ready = service.prewarmer.ready(slot.name)
    return GpuStatus(
        gpu=slot.name,
        model=slot.config.model,
        mining=slot.mining,
        server_ready=slot.server_ready,
        miner_strategy=None if slot.miner is None else slot.miner.strategy.value,
        server_strategy=None if slot.server is None else slot.server.strategy.value,
        prepared=None if ready is None else f"{ready.enters.value} {ready.stage.value}",
        healthy=None if slot.facts is None else slot.facts.healthy,
        held=None if slot.facts is None else slot.facts.held,
        reason="" if slot.facts is None else slot.facts.reason,
        fence=None if slot.facts is None else slot.facts.fence,
        instance=None if slot.instance is None else _instance_status(slot, slot.instance),
    )


def _instance_status(slot: Slot, one: Instance) -> InstanceStatus:
    door = slot.doors.get(one.instance_id)
    return InstanceStatus(
        instance_id=one.instance_id,
        lease_id=one.spec.lease_id,
        gate_open=one.meter.open,
        completed=one.meter.completed,
        served_ns=one.meter.served_ns,
        energy_mj=one.meter.energy_mj,
        energy_measured=one.reading is not None,
        in_flight=0 if door is None else door.inside,
        requests=one.tally.requests,
        failed=one.tally.failed,
        tokens_in=one.tally.tokens_in,
        tokens_out=one.tally.tokens_out,
        uncounted=one.tally.uncounted,
    )


def metrics_text(service: HostService) -> str:
    """Give all metrics in Prometheus text form."""
    lines = [*_proxy_metrics(service), *_gpu_metrics(service), *service.times.lines()]
    return "\n".join(lines) + "\n" + service.card_metrics()


def _proxy_metrics(service: HostService) -> Iterator[str]:
    none: Labels = {}
    yield from family(
        "hcp_host_requests_waiting",
        "gauge",
        "requests before a shut gate",
        [(none, service.doors.waiting)],
    )
    yield from family(
        "hcp_host_requests_turned_away_total",
        "counter",
        "requests told to come again",
        [(none, service.doors.turned_away)],
    )
    yield from family(
        "hcp_host_requests_unauthorised_total",
        "counter",
        "requests without a key of their lease, by reason",
        [({"reason": name}, count) for name, count in sorted(service.access.refused.items())],
    )
    yield from family(
        "hcp_host_requests_refused_total",
        "counter",
        "requests that passed no gate, by reason, those of the two counters above among them",
        [({"reason": name}, count) for name, count in sorted(service.refused.items())],
    )
    rows = list(service.ledger.all())[-INSTANCES_MAX:]
    for name, text, field in (
        ("requests", "requests let in", "requests"),
        (
            "requests_failed",
            "requests that ended with an error, the engine's own (5xx) too",
            "failed",
        ),
        ("tokens_in", "tokens of prompts, as the engine named them", "tokens_in"),
        (
            "tokens_out",
            "tokens given, as the engine named them or events of a stream",
            "tokens_out",
        ),
        ("answers_uncounted", "answers whose tokens the engine did not name", "uncounted"),
    ):
        samples = [(_labels(one), float(getattr(one.tally, field))) for one in rows]
        yield from family(f"hcp_host_{name}_total", "counter", text, samples)


def _gpu_metrics(service: HostService) -> Iterator[str]:
    slots = list(service.slots.values())
    held = [(slot, slot.instance) for slot in slots if slot.instance is not None]
    yield from family(
        "hcp_host_gate_open",
        "gauge",
        "1 while the gate is open",
        [(_labels(one), int(one.meter.open)) for _, one in held],
    )
    yield from family(
        "hcp_host_in_flight",
        "gauge",
        "requests inside the gate",
        [
            (_labels(one), slot.doors[one.instance_id].inside)
            for slot, one in held
            if one.instance_id in slot.doors
        ],
    )
    yield from family(
        "hcp_host_served_seconds_total",
        "counter",
        "time served, as billed",
        [(_labels(one), one.meter.served_ns / 1e9) for _, one in held],
    )
    yield from family(
        "hcp_host_energy_joules_total",
        "counter",
        "energy while serving, measured by the card",
        [(_labels(one), one.meter.energy_mj / 1e3) for _, one in held if one.reading is not None],
    )
    yield from family(
        "hcp_host_energy_estimate_joules",
        "counter",
        "energy guessed from power where the card has no counter; never billed",
        [({"gpu": name}, joules) for name, joules in service.watch.estimate.joules.items()],
    )
    yield from family(
        "hcp_host_prewarm_total",
        "counter",
        "engines made ready before they were wanted, by what became of it",
        [
            ({"gpu": gpu, "outcome": outcome}, count)
            for (gpu, outcome), count in sorted(service.prewarmer.counts.items())
        ],
    )
    saved = {} if service.states is None else service.states.counts
    yield from family(
        "hcp_host_saved_states_total",
        "counter",
        "states of ended engines, kept or lost, and why they were not given again",
        [({"outcome": word}, count) for word, count in sorted(saved.items())],
    )
    yield from family(
        "hcp_host_mining",
        "gauge",
        "1 while the miner is at work; left out when unknown",
        [({"gpu": slot.name}, slot.mining) for slot in slots],
    )


def _labels(one: Instance) -> Labels:
    return {"gpu": one.gpu, "instance": one.instance_id, "lease": one.spec.lease_id}
