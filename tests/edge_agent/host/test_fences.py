"""What is remembered of fenced cards: as values, and in a file."""

from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from edge_agent.host.fences import (
    FENCES_MAX,
    Fence,
    FenceFile,
    fence_of,
    health_of,
    newest,
    unreadable,
)
from firmware_bridges.nvml.health import GpuHealth, released, remembered, unjudged

FENCE = Fence(card="GPU-1", since_s=100, boot_id="b1", xids=(79,))
HEALTHS = st.builds(
    GpuHealth,
    card=st.just("GPU-1"),
    at_ns=st.just(0),
    xids=st.lists(st.integers(0, 200), max_size=16, unique=True).map(tuple),
    new_uncorrected=st.booleans(),
    unavailable=st.booleans(),
    unreadable=st.booleans(),
    quarantined=st.booleans(),
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


CUT = b'{"v":1,"fences":[{"card":'


async def test_a_file_that_cannot_be_read_is_no_empty_one_and_is_kept_aside(
    tmp_path: Path,
) -> None:
    path = tmp_path / "fences.json"
    path.write_bytes(CUT)
    assert FenceFile(path).read() is None
    # A host that dies before it has written anything finds the same.
    assert FenceFile(path).read() is None
    await FenceFile(path).write({FENCE.card: FENCE})
    assert FenceFile(path).read() == (FENCE,)
    assert (tmp_path / "fences.unread").read_bytes() == CUT


def test_what_the_disk_does_not_give_is_not_known_either(tmp_path: Path) -> None:
    path = tmp_path / "fences.json"
    path.mkdir()
    assert FenceFile(path).read() is None


@given(st.binary(max_size=64))
def test_no_bytes_but_those_of_a_page_say_that_there_are_no_fences(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fences.json"
        path.write_bytes(data)
        found = FenceFile(path).read()
    try:
        page = msgspec.json.decode(data)
    except msgspec.DecodeError:
        page = None
    assert found is None or isinstance(page, dict)


def test_every_card_of_a_host_without_its_record_is_fenced_until_it_is_released() -> None:
    fences = unreadable(("GPU-1", "GPU-2"), "b1", 100)
    assert [one.card for one in fences] == ["GPU-1", "GPU-2"]
    for fence in fences:
        health = health_of(fence)
        assert remembered(health) == ("record-unreadable",)
        assert fence_of(fence, health, "b2", 200) is fence, "another boot ends nothing"
        assert fence_of(fence, released(health), "b2", 200) is None
