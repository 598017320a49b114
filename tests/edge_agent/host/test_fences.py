"""What is remembered of fenced cards: as values, and in a file."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from edge_agent.host.fences import FENCES_MAX, Fence, FenceFile, fence_of, health_of, newest
from firmware_bridges.nvml.health import GpuHealth, remembered, unjudged

FENCE = Fence(card="GPU-1", since_s=100, boot_id="b1", xids=(79,))
HEALTHS = st.builds(
    GpuHealth,
    card=st.just("GPU-1"),
    at_ns=st.just(0),
    xids=st.lists(st.integers(0, 200), max_size=16, unique=True).map(tuple),
    new_uncorrected=st.booleans(),
    unavailable=st.booleans(),
)


@given(HEALTHS)
def test_a_host_begins_with_all_that_the_one_before_it_remembered(health: GpuHealth) -> None:
    fence = fence_of(None, health, "b1", 5)
    if fence is None:
        assert remembered(health) == ()
    else:
        assert remembered(health_of(fence)) == remembered(health) != ()
        assert fence_of(fence, health_of(fence), "b2", 9) is fence, "nothing new is no change"


def test_since_is_of_the_first_finding_and_the_boot_of_the_newest_xid() -> None:
    worse = structs.replace(unjudged("GPU-1"), xids=(79, 48))
    assert fence_of(FENCE, worse, "b2", 200) == structs.replace(FENCE, xids=(79, 48), boot_id="b2")
    more = structs.replace(health_of(FENCE), new_uncorrected=True)
    assert fence_of(FENCE, more, "b2", 200) == structs.replace(FENCE, new_uncorrected=True)
    assert fence_of(FENCE, unjudged("GPU-1"), "b2", 200) is None


def test_of_too_many_fences_the_newest_are_kept() -> None:
    many = {
        f"GPU-{n:03}": structs.replace(FENCE, card=f"GPU-{n:03}", since_s=n)
        for n in range(FENCES_MAX + 9)
    }
    kept = newest(many)
    assert [one.since_s for one in kept] == list(range(9, FENCES_MAX + 9))


async def test_the_file_gives_what_was_written_last(tmp_path: Path) -> None:
    file = FenceFile(tmp_path / "fences.json")
    assert file.read() == ()
    await file.write({FENCE.card: FENCE})
    assert FenceFile(tmp_path / "fences.json").read() == (FENCE,)
    await file.write({})
    assert FenceFile(tmp_path / "fences.json").read() == ()


def test_a_file_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "fences.json"
    path.write_bytes(b'{"v":1,"fences":[{"card":')
    assert FenceFile(path).read() == ()
    assert not path.exists()
    assert (tmp_path / "fences.unread").read_bytes() == b'{"v":1,"fences":[{"card":'
