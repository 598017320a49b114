"""Orders: acts of one GPU that are carried out one after the other, with nobody asking between.

Theory of operation.
1. An order goes on for as long as each act is done as it was asked for. What it does not come to is
   answered ``not_begun``: its node asks for it alone, or for something else.
2. The last word counts: an act of the GPU that stands alone, or another order, ends the one that
   is under way after its present act. So does the loss of its connection.
3. An order may go on ``after`` the one before it on the same connection, for as long as nothing
   else came in between. An order of no acts ends the one before and does nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import Struct

from edge_agent.host import wire
from edge_agent.host.errors import RefusedError

ACTS = frozenset({"mine", "prepare", "activate", "canary", "gate", "stop"})
ACTS_MAX = 32
GPUS_MAX = 64

Key = tuple[int, int]


class _Chain:
    """Orders of a GPU that follow each other.

    Attributes:
        last: connection and number of the newest. done: whether it was carried out to its end.
    """

    def __init__(self, last: Key, done: asyncio.Future[bool]) -> None:
        self.last = last
        self.done = done


class Orders:
    """Every GPU's order that may go on.

    Args:
        answer: carries out one act and gives what is said of it; raises nothing of the world.
    """

    def __init__(self, answer: Callable[[wire.Act], Awaitable[Struct]]) -> None:
        self._answer = answer
        self._chains: dict[str, _Chain] = {}

    def interrupt(self, gpu: str) -> None:
        """End the order of a GPU after its present act."""
        self._chains.pop(gpu, None)

    async def carry_out(
        self, order: wire.Request, connection: int, tell: Callable[[Struct], Awaitable[bool]]
    ) -> None:
        """Carry out an order as far as it goes, and tell of each act.

        Args:
            tell: False: nobody is there any more.

        Raises:
            RefusedError: ``bad_request``: it is no order; nothing was done or ended.
        """
        acts = _checked(order)
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        before, chain = self._enter(order, connection, done)
        try:
            goes_on = chain is not None and (before is None or await before)
            last: Struct | None = None
            for act in acts:
                if not (goes_on and self._chains.get(order.gpu) is chain):
                    goes_on = False
                    await tell(wire.Refusal(act.id, "not_begun", "its order has ended"))
                    continue
                answer = await self._answer(act)
                listened = await tell(answer)
                goes_on = listened and done_as_asked(act, answer, last)
                last = answer
            done.set_result(goes_on)
        finally:
            if not done.done():
                done.set_result(False)
        await tell(wire.Done(order.id))

    def _enter(
        self, order: wire.Request, connection: int, done: asyncio.Future[bool]
    ) -> tuple[asyncio.Future[bool] | None, _Chain | None]:
        """Give what an order has to wait for, and its chain; no chain: what it follows is over."""
        key = (connection, order.id)
        if order.after is None:
            self._chains.pop(order.gpu, None)
            if len(self._chains) >= GPUS_MAX:  # none has so many: names that a node makes up
                self._chains.pop(next(iter(self._chains)))
            self._chains[order.gpu] = chain = _Chain(key, done)
            return None, chain
        found = self._chains.get(order.gpu)
        if found is None or found.last != (connection, order.after):
            return None, None
        before, found.last, found.done = found.done, key, done
        return before, found


def done_as_asked(act: wire.Act, answer: Struct, before: Struct | None) -> bool:
    """Tell whether what follows an act may begin.

    A gate that is not where it was asked to be is in nobody's way of being right; and of a miner
    that is asked twice to stop, the second count is the evidence of the first.

    Args:
        before: the answer to the act before it; None: it is the first.
    """
    match answer:
        case wire.Refusal():
            return False
        case wire.Gate(open=is_open):
            return act.op != "gate" or is_open is act.open
        case wire.Hashes(hashes=hashes) if act.on is False and isinstance(before, wire.Hashes):
            return hashes == before.hashes
        case _:
            return True


def _checked(order: wire.Request) -> tuple[wire.Act, ...]:
    acts = order.acts
    if acts is None or len(acts) > ACTS_MAX:
        raise RefusedError("bad_request", f"an order has at most {ACTS_MAX} acts")
    if any(act.op not in ACTS or act.gpu != order.gpu for act in acts):
        raise RefusedError("bad_request", f"an order has acts of its gpu {order.gpu!r} alone")
    return acts
