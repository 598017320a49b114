"""How engines of one GPU make way for each other: by size, by what was learnt, by the config."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.host.layout import LEARNT_MIN, Layout, Party, key_of, lay_out
from edge_agent.workloads.engine import EngineCapabilities, EngineSpec, Strategy
from edge_agent.workloads.switching.latency import Book, observe
from edge_agent.workloads.switching.vram import CONTEXT_MIB, RESERVE_MIB, Card

SMALL, LARGE = 16_384, 81_559
RAM_MIB = 200_000
MINER = Party(
    kind="reference-miner",
    spec=EngineSpec(engine_id="miner", gpu="gpu0", vram_mib=2_000),
    capabilities=EngineCapabilities(
        strategies=(Strategy.RESIDENT_GATE, Strategy.RESTART), resident_mib=2_000
    ),
)
SERVER = Party(
    kind="reference-server",
    spec=EngineSpec(engine_id="server", gpu="gpu0", vram_mib=13_000, mirror_mib=12_000),
    capabilities=EngineCapabilities(
        strategies=(Strategy.RESIDENT_GATE, Strategy.PINNED_SWAP, Strategy.RESTART),
        resident_mib=CONTEXT_MIB,
        releases_memory=True,
    ),
)


def plan(
    vram_mib: int | None = LARGE,
    miner: Party | None = MINER,
    server: Party | None = SERVER,
    *,
    ram_mib: int | None = RAM_MIB,
    book: Book = Book(),  # noqa: B008 - frozen
) -> Layout:
    card = None if vram_mib is None else Card(gpu="gpu0", vram_mib=vram_mib)
    return lay_out(card, "H100", miner, server, host_free_mib=ram_mib, book=book)


def seen(party: Party, strategy: Strategy, seconds: float, book: Book) -> Book:
    for _ in range(2 * int(LEARNT_MIN)):
        book = observe(book, key_of(party, strategy, "H100"), seconds)
    return book


def test_a_large_card_keeps_both_and_a_small_one_has_each_leave() -> None:
    large = plan()
    assert (large.miner, large.server) == (Strategy.RESIDENT_GATE, Strategy.RESIDENT_GATE)
    assert large.together is True
    small = plan(SMALL)
    assert (small.miner, small.server) == (Strategy.RESTART, Strategy.PINNED_SWAP)
    assert small.together is False
    assert small.no_fit == ""
    # 2,000 + 13,000 + two contexts + the reserve
    assert large.allowed_mib == 15_000 + 2 * CONTEXT_MIB + RESERVE_MIB


def test_without_host_memory_nothing_is_swapped_out() -> None:
    assert plan(SMALL, ram_mib=11_999).server is Strategy.RESTART
    assert plan(SMALL, ram_mib=12_000).server is Strategy.PINNED_SWAP
    assert plan(SMALL, ram_mib=None).server is Strategy.RESTART


def test_what_the_config_names_wins() -> None:
    fixed = replace(SERVER, fixed=Strategy.RESTART)
    assert plan(server=fixed).server is Strategy.RESTART
    assert "by the config" in plan(server=fixed).reason


def test_a_server_that_is_too_large_is_said_not_to_fit() -> None:
    huge = replace(SERVER, spec=replace(SERVER.spec, vram_mib=90_000))
    for miner in (MINER, None):
        assert "81559" in plan(miner=miner, server=huge).no_fit
    stays = replace(
        MINER,
        spec=replace(MINER.spec, vram_mib=70_000),
        capabilities=replace(MINER.capabilities, strategies=(Strategy.RESIDENT_GATE,)),
    )
    assert "resident-gate needs" in plan(miner=stays).no_fit


def test_unknown_sizes_plan_nothing() -> None:
    unsized = replace(MINER, spec=replace(MINER.spec, vram_mib=0))
    for found in (plan(None), plan(miner=unsized)):
        assert found == Layout(miner=Strategy.RESIDENT_GATE, server=Strategy.RESIDENT_GATE)
    assert plan(None, None, None) == Layout()


def test_a_way_that_was_seen_to_be_slow_gives_way_to_a_faster_one() -> None:
    slow = seen(SERVER, Strategy.RESIDENT_GATE, 30.0, Book())
    # published: 12,000 MiB at 52,500 MiB/s there and back; twice that is far below 30 s
    assert plan(book=slow).server is Strategy.PINNED_SWAP
    quick = seen(SERVER, Strategy.RESIDENT_GATE, 0.005, Book())
    assert plan(book=quick).server is Strategy.RESIDENT_GATE
    disappointing = seen(SERVER, Strategy.PINNED_SWAP, 60.0, slow)
    assert plan(book=disappointing).server is Strategy.RESIDENT_GATE
    # a few switches are no lesson
    once = observe(Book(), key_of(SERVER, Strategy.RESIDENT_GATE, "H100"), 30.0)
    assert plan(book=once).server is Strategy.RESIDENT_GATE


@given(
    st.integers(1_000, 200_000),
    st.integers(1, 100_000),
    st.integers(1, 100_000),
    st.one_of(st.none(), st.integers(0, 200_000)),
)
def test_whoever_stays_beside_the_other_fits(
    vram_mib: int, miner_mib: int, server_mib: int, ram_mib: int | None
) -> None:
    miner = replace(MINER, spec=replace(MINER.spec, vram_mib=miner_mib))
    server = replace(SERVER, spec=replace(SERVER.spec, vram_mib=server_mib, mirror_mib=server_mib))
    found = plan(max(vram_mib, RESERVE_MIB), miner, server, ram_mib=ram_mib)
    assert found.miner in miner.capabilities.strategies
    assert found.server in server.capabilities.strategies
    whole = miner_mib + server_mib + 2 * CONTEXT_MIB + RESERVE_MIB
    fits = whole <= max(vram_mib, RESERVE_MIB)
    assert found.together is fits
    assert (found.miner is Strategy.RESIDENT_GATE and not found.no_fit) == fits
    if found.server is Strategy.PINNED_SWAP:
        assert ram_mib is not None
        assert ram_mib >= server_mib
