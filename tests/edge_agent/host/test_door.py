"""Doors: who is taken over by the next door of a lease, and who is not."""

from __future__ import annotations

from edge_agent.host.door import DoorLimits, Doors


async def test_the_next_door_takes_over_who_is_held_and_not_who_was_sent_out() -> None:
    doors = Doors(DoorLimits())
    first, second = doors.door("gpu0", "w1.1"), doors.door("gpu0", "w1.1")
    first.open()
    slow = first.admit()  # sent out, and its client has not taken the last of it yet
    first.cut("preempted")
    kept = first.admit()
    moved: list[str] = []
    kept.on_moved = lambda: moved.append("kept")
    slow.on_moved = lambda: moved.append("slow")
    kept.hold()
    second.take_over(first)
    assert moved == ["kept"]
    assert (first.inside, second.inside) == (1, 1)
    assert (slow.door, kept.door, kept.held) == (first, second, False)
    slow.leave()
    kept.leave()
    assert (first.inside, second.inside) == (0, 0)
