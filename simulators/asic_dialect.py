"""How one firmware talks, apart from what the miner does: the seam between fleet and firmware.

The fleet owns the miners, their physics, their faults and the clock; a dialect turns the bytes of
one request into an outcome and moves the miner through its `Unit`. A dialect keeps what a firmware
remembers (configuration, tokens, sessions) in `Unit.memory`, one object for each miner, and holds
nothing itself. What is asked on a wire that a firmware does not have is reset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from simulators import asic_physics
from simulators.asic_faults import Action, Fault, FaultKind
from simulators.asic_models import WorkMode

if TYPE_CHECKING:
    from simulators.asic_physics import MinerState, MinerTraits, Snapshot, Step
    from simulators.http_wire import HttpRequest


class Outcome(msgspec.Struct, frozen=True):
    """The reaction to a request: after `delay_s`, do `action` with `payload`."""

    action: Action
    payload: bytes = b""
    delay_s: float = 0.0


RESET = Outcome(Action.RESET)


def answer(payload: bytes, delay_s: float = 0.0) -> Outcome:
    """Answer with some bytes, at once or later."""
    return Outcome(Action.ANSWER, payload, delay_s)


class Unit:
    """One miner as its firmware sees it.

    Args:
        who: What it is.
        state: What it does.
        address: Its IP address.
        now_ns: Monotonic nanoseconds. wall_s: Unix seconds.
    """

    __slots__ = ("_now_ns", "_wall_s", "address", "fault", "memory", "state", "who")

    def __init__(
        self,
        who: MinerTraits,
        state: MinerState,
        address: str,
        *,
        now_ns: Callable[[], int],
        wall_s: Callable[[], float],
    ) -> None:
        self.who = who
        self.state = state
        self.address = address
        self.fault: Fault | None = None
        self.memory: object = None
        self._now_ns = now_ns
        self._wall_s = wall_s

    @property
    def now_ns(self) -> int:
        """Give the monotonic time."""
        return self._now_ns()

    @property
    def wall_s(self) -> int:
        """Give the miner's own clock, Unix seconds."""
        return int(self._wall_s())

    @property
    def mac(self) -> str:
        """Give its MAC, made from seed and index; the 02 marks it as made up."""
        number = 0x02 << 40 | (self.who.seed & 0xFFFF) << 24 | self.who.index
        return ":".join(f"{byte:02X}" for byte in number.to_bytes(6, "big"))

    @property
    def serial(self) -> str:
        """Give its serial number, made from seed and index."""
        return f"SIM{self.who.seed & 0xFFFF:04X}{self.who.index:010d}"

    @property
    def mode(self) -> WorkMode:
        """Give the mode that the machine really follows."""
        return self.state.mode

    @property
    def is_lying(self) -> bool:
        """Tell whether it acknowledges and does not follow."""
        return self.fault is not None and self.fault.kind is FaultKind.LYING

    @property
    def is_hot(self) -> bool:
        """Tell whether it stopped for heat."""
        return self.fault is not None and self.fault.kind is FaultKind.HOT

    @property
    def is_api_away(self) -> bool:
        """Tell whether the mining program's API is away."""
        return self.now_ns < self.state.api_back_ns

    def seen(self) -> Snapshot:
        """Read its sensors."""
        return asic_physics.snapshot(self.who, self.state, self.now_ns)

    def change(
        self,
        mode: WorkMode,
        step: Step,
        *,
        share: float | None = None,
        hashing: bool = True,
        at_ns: int | None = None,
    ) -> None:
        """Go into a mode, by stopping and starting; a lying miner only says that it does.

        Args:
            mode: To follow.
            step: How the change unfolds, in true seconds; the fleet's time scale is applied.
            share: Share of the mode's power from then on; `None` = as before.
            hashing: False when there is nothing to work on.
            at_ns: When it began, for what was scheduled; `None` = now.
        """
        if not self.is_lying:
            began_ns = self.now_ns if at_ns is None else at_ns
            self.state = asic_physics.change(
                self.who, self.state, mode, began_ns, step, share=share, hashing=hashing
            )

    def trim(self, share: float, over_s: float) -> None:
        """Go to another share of the mode's power without a stop; a lying miner only says so."""
        if not self.is_lying:
            self.state = asic_physics.trim(self.who, self.state, share, self.now_ns, over_s)


class Dialect(Protocol):
    """One firmware.

    `speaks_http_on_api` says that the port of the cgminer API carries HTTP (ePIC): its requests
    then come to `web`.
    """

    name: str
    speaks_http_on_api: bool

    def begin(self, unit: Unit) -> object:
        """Make what the firmware remembers of a new miner."""
        ...

    def restart(self, unit: Unit) -> None:
        """Start anew after the mains came back, into what the configuration says."""
        ...

    def api(self, unit: Unit, data: bytes) -> Outcome:
        """React to the first bytes received on the cgminer port."""
        ...

    def web(self, unit: Unit, request: HttpRequest) -> Outcome:
        """React to one web request; the payload is the whole response."""
        ...

    def frame(self, unit: Unit, data: bytes) -> Outcome:
        """React to one length-prefixed message (WhatsMiner v3), without its length; so answered."""
        ...


class OneWire:
    """Base of dialects: resets what comes on a wire that the firmware does not have."""

    speaks_http_on_api = False

    def api(self, unit: Unit, data: bytes) -> Outcome:
        """Reset."""
        return RESET

    def web(self, unit: Unit, request: HttpRequest) -> Outcome:
        """Reset."""
        return RESET

    def frame(self, unit: Unit, data: bytes) -> Outcome:
        """Reset."""
        return RESET
