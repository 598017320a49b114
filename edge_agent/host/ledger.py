"""Every instance of this host with its meter: pages, the log of the gates, and retention.

Everything is settled to one instant: now, or, while an engine behind an open gate is silent, the
last evidence that it lives. A page is of that instant too, so that the node never says that all up
to an instant was told while a silent engine may still turn out to have served before it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct

from edge_agent.host.errors import RefusedError
from edge_agent.host.gate_log import GateLine
from edge_agent.host.meter import MINUTE_NS, GateMeter
from edge_agent.host.sensors import EnergyReading
from edge_agent.host.tokens import StreamCounter
from edge_agent.workloads.ports import GateState, InstanceSpec, Meter, MeterPage, Moved

# How many ended instances stay readable; each is well under a kilobyte with few marks.
ENDED_MAX = 4_096
UNWRITTEN_MAX = 4_096
ENDED_NS_MAX = 24 * 3_600 * 1_000_000_000


class Tally:
    """What the proxy counted of one instance.

    Attributes:
        uncounted: answers without a usage field, whose tokens are known from chunks or not at all.
        tokens_in, tokens_out: of answers that are over; ``so_far`` has those under way too.
    """

    def __init__(self) -> None:
        self._streams: set[StreamCounter] = set()
        self.requests = 0
        self.failed = 0
        self.tokens_in = 0
        self.tokens_out = 0
        self.uncounted = 0

    def follow(self, stream: StreamCounter) -> None:
        """Count a stream's tokens from now on."""
        self._streams.add(stream)

    def leave(self, stream: StreamCounter) -> None:
        """Take what a stream gained while it was followed, if it is."""
        if stream not in self._streams:
            return
        self._streams.remove(stream)
        gained_in, gained_out = stream.take()
        self.tokens_in += gained_in
        self.tokens_out += gained_out

    def so_far(self) -> tuple[int, int]:
        """Give the tokens in and out with what streams under way gained."""
        gained = [stream.gained() for stream in self._streams]
        tokens_in = self.tokens_in + sum(one for one, _ in gained)
        return tokens_in, self.tokens_out + sum(one for _, one in gained)


class HostClock(Struct, frozen=True):
    """Time of this machine as functions, so that a test can turn it."""

    boottime_ns: Callable[[], int]
    wall_ns: Callable[[], int]
    boot_id: str


class Instance:
    """One instance of served work on a GPU.

    Attributes:
        engine_ns: last sign of life of its engine. seen_ns: last evidence that it could serve:
            its engine lived, and its card was well.
        moved: how its engine last came onto the GPU, or left it.
        reason: why its gate shut with nobody asking; empty: it did not.
    """

    def __init__(self, gpu: str, model: str, spec: InstanceSpec) -> None:
        self.gpu = gpu
        self.model = model
        self.spec = spec
        self.meter = GateMeter(None if spec.run_s is None else spec.run_s * 1_000_000_000)
        self.tally = Tally()
        self.active = False
        self.ended_ns: int | None = None
        self.engine_ns = 0
        self.seen_ns = 0
        self.reading: EnergyReading | None = None
        self.reason = ""
        self.moved = Moved()

    @property
    def instance_id(self) -> str:
        """Give its name."""
        return self.spec.instance_id

    @property
    def serving(self) -> bool:
        """Tell whether its gate is open as far as is settled."""
        return self.meter.open


class Ledger:
    """Instances and meters of one host process.

    Args:
        process_id: new at each start. log: receives lines before anybody is told.
    """

    def __init__(
        self, process_id: str, clock: HostClock, log: Callable[[Iterable[GateLine]], None]
    ) -> None:
        self.process_id = process_id
        self._clock = clock
        self._log = log
        self._instances: dict[str, Instance] = {}
        self._looked_ns = 0
        self._newest: dict[str, str] = {}
        self._unwritten: deque[GateLine] = deque(maxlen=UNWRITTEN_MAX)
        self._anchor_ns = clock.wall_ns() - clock.boottime_ns()
        self._minute = (self._anchor_ns + clock.boottime_ns()) // MINUTE_NS

    @property
    def anchor_ns(self) -> int:
        """Give wall minus boottime; it moves at a minute cut only."""
        return self._anchor_ns

    def all(self) -> Iterator[Instance]:
        """Give every instance that is still readable, oldest first."""
        return iter(self._instances.values())

    def find(self, instance_id: str) -> Instance | None:
        """Give an instance by its name."""
        return self._instances.get(instance_id)

    def of_lease(self, lease_id: str) -> Instance | None:
        """Give the newest instance of a lease."""
        return self._instances.get(self._newest.get(lease_id, ""))

    def on_gpu(self, gpu: str, instance_id: str) -> Instance:
        """Give an instance of a GPU.

        Raises:
            RefusedError: there is none of that name, or it is on another GPU.
        """
        found = self._instances.get(instance_id)
        if found is None or found.gpu != gpu:
            raise RefusedError("no_instance", instance_id)
        return found

    def add(self, instance: Instance) -> None:
        """Take a new instance, and forget what has been over for long."""
        self._instances[instance.instance_id] = instance
        self._newest[instance.spec.lease_id] = instance.instance_id
        now_ns = self._clock.boottime_ns()
        if len(self._instances) <= ENDED_MAX and now_ns - self._looked_ns < MINUTE_NS:
            return
        self._looked_ns = now_ns
        ended = [one for one in self._instances.values() if one.ended_ns is not None]
        excess = len(ended) - ENDED_MAX
        for place, one in enumerate(ended):
            if place < excess or now_ns - (one.ended_ns or 0) > ENDED_NS_MAX:
                del self._instances[one.instance_id]
                if self._newest.get(one.spec.lease_id) == one.instance_id:
                    del self._newest[one.spec.lease_id]

    def open_gate(self, instance: Instance) -> GateState:
        """Open a gate now; the first act counts.

        Raises:
            OSError: it is not in the log, so it did not open.
        """
        if instance.meter.opened_ns is None:
            now_ns = self.settle()
            self._flush()
            # The log comes first: a disk that is full opens no gate.
            self._log([self._line("open", instance, now_ns)])
            instance.seen_ns = now_ns
            instance.meter.open_gate(now_ns, instance.reading)
        return self.state(instance)

    def shut_gate(self, instance: Instance) -> GateState:
        """Shut a gate at the last evidence that its engine lives; the first act counts.

        Raises:
            OSError: it is shut, and not in the log yet: asked again, it is tried again.
        """
        self.settle()
        if instance.meter.open:
            instance.meter.shut_gate(instance.seen_ns, self._anchor_ns, instance.reading)
            self._unwritten.append(self._line("close", instance, instance.meter.seen_ns))
        self._flush()
        return self.state(instance)

    def settle(self) -> int:
        """Settle all meters; give the instant for which they speak. Nothing is written here."""
        serving = [one for one in self._instances.values() if one.meter.open]
        now_ns = min([self._clock.boottime_ns(), *(one.seen_ns for one in serving)])
        minute_passed = (self._anchor_ns + now_ns) // MINUTE_NS
        for one in serving:
            one.meter.settle(one.seen_ns, self._anchor_ns, one.reading)
            if not one.meter.open:
                self._unwritten.append(self._line("close", one, one.meter.seen_ns))
        if minute_passed != self._minute:
            self._anchor_ns = self._clock.wall_ns() - self._clock.boottime_ns()
        self._minute = (self._anchor_ns + now_ns) // MINUTE_NS
        return now_ns

    def page(self, since_minute: int | None) -> MeterPage:
        """Give every meter with its marks after a minute; it stands in the log first.

        Raises:
            OSError: the log.
        """
        now_ns = self.settle()
        self._flush()
        rows = self._instances.values()
        self._log([self._line("mark", one, one.meter.seen_ns) for one in rows if one.meter.open])
        after = -1 if since_minute is None else since_minute
        return MeterPage(
            process_id=self.process_id,
            now_ns=now_ns,
            wall_anchor_ns=self._anchor_ns,
            meters=tuple(_row(one, after) for one in rows),
        )

    def state(self, instance: Instance) -> GateState:
        """Give the gate and the counters as far as they are settled."""
        meter = instance.meter
        at_ns = meter.opened_ns if meter.open else meter.closed_ns
        return GateState(
            at_ns=self._clock.boottime_ns() if at_ns is None else at_ns,
            served_ns=meter.served_ns,
            energy_mj=meter.energy_mj,
            open=meter.open,
        )

    def _flush(self) -> None:
        """Write what is not in the log yet.

        Raises:
            OSError: the disk; it is kept, and whoever asked is told nothing.
        """
        self._log(tuple(self._unwritten))
        self._unwritten.clear()

    def _line(self, what: str, one: Instance, at_ns: int) -> GateLine:
        tokens_in, tokens_out = one.tally.so_far()
        return GateLine(
            t=what,
            process_id=self.process_id,
            boot_id=self._clock.boot_id,
            gpu=one.gpu,
            model=one.model,
            instance_id=one.instance_id,
            lease_id=one.spec.lease_id,
            attempt=one.spec.attempt,
            at_ns=at_ns,
            wall_ns=self._anchor_ns + at_ns,
            served_ns=one.meter.served_ns,
            energy_mj=one.meter.energy_mj,
            energy_measured=one.reading is not None,
            requests=one.tally.requests,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
        )


def _row(one: Instance, after_minute: int) -> Meter:
    meter = one.meter
    return Meter(
        gpu=one.gpu,
        instance_id=one.instance_id,
        lease_id=one.spec.lease_id,
        attempt=one.spec.attempt,
        open=meter.open,
        completed=meter.completed,
        opened_ns=meter.opened_ns,
        closed_ns=meter.closed_ns,
        served_ns=meter.served_ns,
        energy_mj=meter.energy_mj,
        marks=tuple(mark for mark in meter.marks if mark.epoch_minute > after_minute),
        reason=one.reason,
    )
