"""The doors of served instances: who may pass, who waits, and who is sent out.

Theory of operation. A request passes while its instance's door is open. While it is shut and may
still open (a switch is under way), the request waits for a second at most, in a queue of bounded
length, and is then told to come again. A door is cordoned before it shuts: nobody enters, and who
is inside may finish until the drain's deadline. Who is then still inside is cut, with a reason, or
(``keep``) held: nothing more reaches the client until a door of the same lease opens on the same
GPU, for a time, and not after its lease or its client is gone. Every wait ends by an event or a
deadline; nobody is forgotten.
"""

import asyncio
from collections.abc import Callable
from enum import Enum, auto

from msgspec import Struct

from edge_agent.host.errors import HostError


class DoorState(Enum):
    """What a door lets through."""

    SHUT = auto()
    OPEN = auto()
    CORDONED = auto()
    ENDED = auto()


class TurnedAwayError(HostError):
    """A request that may not pass.

    Args:
        status: of HTTP. reason: stable code. retry_s: when to come again; None: never.
        allow: methods that are, where this one is not.
    """

    code = "turned_away"

    def __init__(
        self, status: int, reason: str, detail: str, retry_s: int | None = None, allow: str = ""
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.status = status
        self.reason = reason
        self.detail = detail
        self.retry_s = retry_s
        self.allow = allow


class DoorLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of all doors.

    Args:
        hold_s: longest wait before a shut door. waiting_max: requests that wait, over all doors.
        inside_max: requests inside one door. keep_s: longest time that a kept request is held.
    """

    hold_s: float = 1.0
    keep_s: float = 60.0
    waiting_max: int = 256
    inside_max: int = 256


class Passage:
    """One request inside a door.

    Args:
        keep_s: longest time that it is held.

    Attributes:
        on_held: called when it is held. on_moved: called when another door has taken it in.
    """

    def __init__(self, door: "Door", keep_s: float) -> None:
        self.door = door
        self._keep_s = keep_s
        self.cut_reason: str | None = None
        self._on_cut: Callable[[str], None] | None = None
        self.on_held: Callable[[], None] | None = None
        self.on_moved: Callable[[], None] | None = None
        self._flowing: asyncio.Event | None = None

    def on_cut(self, call: Callable[[str], None] | None) -> None:
        """Have a function called when this request is cut; at once if it already was."""
        self._on_cut = call
        if self.cut_reason is not None and call is not None:
            call(self.cut_reason)

    def cut(self, reason: str) -> None:
        """Send it out."""
        if self.cut_reason is None:
            self.cut_reason = reason
            self.flow()
            if self._on_cut is not None:
                self._on_cut(reason)

    def hold(self) -> None:
        """Let nothing more through."""
        if self._flowing is None:
            self._flowing = asyncio.Event()
            if self.on_held is not None:
                self.on_held()

    @property
    def held(self) -> bool:
        """Tell whether nothing more is let through."""
        return self._flowing is not None

    def flow(self) -> None:
        """Let it go on."""
        if self._flowing is not None:
            self._flowing.set()
            self._flowing = None

    async def flowing(self) -> None:
        """Wait while it is held; who is cut is no longer held."""
        while self._flowing is not None:
            try:
                async with asyncio.timeout(self._keep_s):
                    await self._flowing.wait()
            except TimeoutError:
                self.cut("no gate of its lease opened in time")

    def leave(self) -> None:
        """Be outside."""
        self.door.left(self)


class Door:
    """The door of one instance.

    Args:
        changed: called when somebody who waits may be able to enter, or must go.
        keep_s: longest time that a request is held inside.
    """

    def __init__(self, gpu: str, lease_id: str, changed: Callable[[], None], keep_s: float) -> None:
        self.gpu = gpu
        self.lease_id = lease_id
        self._keep_s = keep_s
        self._changed = changed
        self._inside: set[Passage] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.state = DoorState.SHUT

    @property
    def inside(self) -> int:
        """Give how many requests are inside."""
        return len(self._inside)

    def admit(self) -> Passage:
        """Let one in; the door is open."""
        assert self.state is DoorState.OPEN
        passage = Passage(self, self._keep_s)
        self._inside.add(passage)
        self._empty.clear()
        return passage

    def left(self, passage: Passage) -> None:
        """Note that one went out."""
        self._inside.discard(passage)
        if not self._inside:
            self._empty.set()

    def open(self) -> None:
        """Let requests in; a door opens once."""
        if self.state is DoorState.SHUT:
            self.state = DoorState.OPEN
            self._changed()

    def cordon(self) -> None:
        """Let nobody in any more."""
        if self.state in {DoorState.SHUT, DoorState.OPEN}:
            self.state = DoorState.CORDONED

    async def drained(self, limit_s: float) -> int:
        """Wait until nobody is inside, for a time; give how many are left."""
        try:
            async with asyncio.timeout(limit_s):
                await self._empty.wait()
        except TimeoutError:
            return self.inside
        return 0

    def hold(self) -> None:
        """Hold who is inside."""
        for passage in self._inside:
            passage.hold()

    def release_held(self, reason: str) -> None:
        """Send out who is held; who may still finish in a drain is not."""
        for passage in [one for one in self._inside if one.held]:
            passage.cut(reason)

    def take_over(self, other: "Door") -> None:
        """Take in who is held inside another door of the same lease; who was sent out is not."""
        for passage in [one for one in other._inside if one.held]:  # noqa: SLF001 - of the same class
            other.left(passage)
            passage.door = self
            self._inside.add(passage)
            self._empty.clear()
            if passage.on_moved is not None:
                passage.on_moved()
            passage.flow()

    def cut(self, reason: str) -> None:
        """Send everybody out."""
        for passage in list(self._inside):
            passage.cut(reason)

    def end(self, reason: str) -> None:
        """Be shut for good, with nobody inside."""
        self.state = DoorState.ENDED
        self.cut(reason)
        self._changed()


class Doors:
    """All doors, and the queue before them."""

    def __init__(self, limits: DoorLimits) -> None:
        self._limits = limits
        self._waiters: set[asyncio.Future[None]] = set()
        self._closed = False
        self.turned_away = 0

    @property
    def waiting(self) -> int:
        """Give how many requests wait."""
        return len(self._waiters)

    def door(self, gpu: str, lease_id: str) -> Door:
        """Make a door of this house."""
        return Door(gpu, lease_id, self._wake, self._limits.keep_s)

    def close(self) -> None:
        """Let nobody in or wait any more: this process ends."""
        self._closed = True
        self._wake()

    async def enter(self, find: Callable[[], Door]) -> Passage:
        """Enter the door that ``find`` gives, waiting for it to open.

        Raises:
            TurnedAwayError: of ``find``, or the door did not open in time, or is full.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._limits.hold_s
        while True:
            if self._closed:
                raise self._away("host_restarts", "the host of this work restarts")
            door = find()
            if door.state is DoorState.OPEN:
                if door.inside >= self._limits.inside_max:
                    raise self._away("busy", f"{door.inside} requests are under way")
                return door.admit()
            left_s = until_s - loop.time()
            if left_s <= 0.0:
                raise self._away("gate_shut", "a switch is under way")
            if len(self._waiters) >= self._limits.waiting_max:
                raise self._away("busy", f"{len(self._waiters)} requests wait")
            await self._wait(left_s)

    async def _wait(self, limit_s: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=limit_s)
        finally:
            self._waiters.discard(waiter)

    def _away(self, reason: str, detail: str) -> TurnedAwayError:
        self.turned_away += 1
        return TurnedAwayError(503, reason, detail, retry_s=1)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
