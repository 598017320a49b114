"""Waiting for an event or an instant, whichever comes first."""

import asyncio


async def set_or_until(event: asyncio.Event, at_s: float) -> None:
    """Return when the event is set, by anybody or by the coming of an instant of the loop's clock.

    Nobody is cancelled when the time is up, as under ``asyncio.timeout``: that costs more, and in
    Python 3.11 a task group may lose a real cancellation that falls into the same turn.
    """
    timer = asyncio.get_running_loop().call_at(at_s, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
