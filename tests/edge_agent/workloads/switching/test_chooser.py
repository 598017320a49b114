"""The chooser: the rules in order, with the reason for each strategy that was not taken."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from edge_agent.workloads.engine import EngineCapabilities, EngineSpec, Strategy
from edge_agent.workloads.switching.chooser import ORDER, Choice, Side, choose, side_of
from edge_agent.workloads.switching.latency import Book, Key, expected_s, observe, size_of
from edge_agent.workloads.switching.vram import Card, Claim

H100 = Card(gpu="0", vram_mib=81_559)
MINER = Side(claim=Claim(engine_id="miner", weights_mib=256), strategies=ORDER)
GB14 = Side(
    claim=Claim(engine_id="llm", weights_mib=14_336, kv_mib=8_192, mirror_mib=14_336),
    strategies=ORDER,
)
GB70 = Side(
    claim=Claim(engine_id="big", weights_mib=71_680, kv_mib=4_096, mirror_mib=71_680),
    strategies=ORDER,
)


def codes(choice: Choice) -> dict[Strategy, str]:
    return {row.strategy: row.code for row in choice.rejected}


def test_what_fits_together_stays_resident() -> None:
    choice = choose(H100, MINER, GB14, host_free_mib=0)
    assert choice.strategy is Strategy.RESIDENT_GATE
    assert set(codes(choice)) == set(ORDER) - {Strategy.RESIDENT_GATE}


def test_what_does_not_fit_together_is_swapped_through_pinned_memory() -> None:
    choice = choose(H100, GB14, GB70, host_free_mib=100_000)
    assert choice.strategy is Strategy.PINNED_SWAP
    # 1,024 + (71,680 + 4,096 + 1,229) + (14,336 + 8,192 + 1,229)
    detail = next(r.detail for r in choice.rejected if r.strategy is Strategy.RESIDENT_GATE)
    assert detail == "needs 101786 MiB of the card's 81559 MiB"


def test_without_host_memory_and_with_uvm_only_a_restart_is_left() -> None:
    choice = choose(H100, structs_with(GB14, traits={"uvm"}), GB70, host_free_mib=1_000)
    assert choice.strategy is Strategy.RESTART
    assert codes(choice) == {
        Strategy.RESIDENT_GATE: "vram",
        Strategy.PINNED_SWAP: "host_ram",
        Strategy.EXTERNAL_API: "vram",
        Strategy.CUDA_CHECKPOINT: "not_allowed",
    }


@pytest.mark.parametrize("trait", ["uvm", "nccl", "ipc", "mps", "mig"])
def test_a_driver_checkpoint_is_not_offered_to_what_it_does_not_bear(trait: str) -> None:
    only = (Strategy.CUDA_CHECKPOINT, Strategy.RESTART)
    leaving = Side(claim=GB14.claim, strategies=only)
    assert choose(H100, leaving, side(GB70, only), host_free_mib=50_000).strategy is only[0]
    entering = structs_with(side(GB70, only), traits={trait})
    assert choose(H100, leaving, entering, host_free_mib=50_000).strategy is Strategy.RESTART


def test_both_engines_must_offer_the_strategy() -> None:
    leaving = side(MINER, (Strategy.EXTERNAL_API, Strategy.RESTART))
    choice = choose(H100, leaving, GB14, host_free_mib=20_000)
    assert choice.strategy is Strategy.EXTERNAL_API
    assert codes(choice)[Strategy.RESIDENT_GATE] == "not_offered"
    nothing = choose(H100, side(MINER, ()), GB14, host_free_mib=20_000)
    assert nothing.strategy is None
    assert set(codes(nothing).values()) == {"not_offered"}


def test_an_api_that_frees_memory_makes_room_for_what_would_not_fit_beside() -> None:
    only = (Strategy.EXTERNAL_API,)
    leaving = Side(claim=GB14.claim, strategies=only, resident_mib=1_229)
    assert choose(H100, leaving, side(GB70, only), host_free_mib=20_000).strategy is only[0]
    unknown = Side(claim=GB14.claim, strategies=only)
    assert choose(H100, unknown, side(GB70, only), host_free_mib=20_000).strategy is None


def test_learnt_times_beat_the_order_only_when_all_are_known() -> None:
    times = {Strategy.RESIDENT_GATE: 0.9, Strategy.PINNED_SWAP: 0.3}
    both = (Strategy.RESIDENT_GATE, Strategy.PINNED_SWAP)
    leaving, entering = side(MINER, both), side(GB14, both)
    free = 20_000
    swapped = choose(H100, leaving, entering, host_free_mib=free, expected_s=times)
    assert swapped.strategy is Strategy.PINNED_SWAP
    assert codes(swapped) == {
        Strategy.RESIDENT_GATE: "dearer",
        Strategy.EXTERNAL_API: "not_offered",
        Strategy.CUDA_CHECKPOINT: "not_offered",
        Strategy.RESTART: "not_offered",
    }
    some = choose(
        H100, leaving, entering, host_free_mib=free, expected_s={Strategy.PINNED_SWAP: 0.3}
    )
    assert some.strategy is Strategy.RESIDENT_GATE


def test_an_engine_that_frees_nothing_counts_in_full_whatever_it_says_it_keeps() -> None:
    spec = EngineSpec(engine_id="e", gpu="0", vram_mib=14_336, mirror_mib=100)
    able = EngineCapabilities(
        strategies=(Strategy.EXTERNAL_API,), resident_mib=1_229, mirror_mib=14_336
    )
    assert side_of(spec, able).resident_mib is None
    frees = side_of(spec, structs.replace(able, releases_memory=True), mirror_pinned=True)
    assert (frees.resident_mib, frees.claim.mirror_mib) == (1_229, 14_336)
    assert frees.claim.mirror_pinned


def test_times_of_the_book_choose_among_what_fits() -> None:
    book = Book()
    for _ in range(200):
        book = observe(
            book, Key("host", "resident-gate", "mine-serve", size_of(14_336), "H100"), 2.0
        )
    times = expected_s(book, "host", "mine-serve", 14_336, "H100")
    assert set(times) == set(Strategy)
    choice = choose(H100, MINER, GB14, host_free_mib=50_000, expected_s=times)
    assert choice.strategy is Strategy.PINNED_SWAP  # 0.24 s by its prior, the gate 1.9 s as learnt


@settings(max_examples=60)
@given(
    st.integers(0, 90_000), st.integers(0, 90_000), st.integers(0, 90_000), st.integers(0, 9_000)
)
def test_every_strategy_is_chosen_or_rejected_with_a_reason(
    out_mib: int, in_mib: int, ram_mib: int, others_mib: int
) -> None:
    leaving = Side(
        claim=Claim(engine_id="a", weights_mib=out_mib, mirror_mib=out_mib), strategies=ORDER
    )
    entering = Side(
        claim=Claim(engine_id="b", weights_mib=in_mib, mirror_mib=in_mib), strategies=ORDER
    )
    choice = choose(H100, leaving, entering, host_free_mib=ram_mib, others_mib=others_mib)
    named = [row.strategy for row in choice.rejected]
    assert len(set(named)) == len(named)
    assert set(named) | ({choice.strategy} - {None}) == set(ORDER)
    if choice.strategy is not None:
        assert entering.whole_mib + others_mib + H100.reserve_mib <= H100.vram_mib


def side(of: Side, strategies: tuple[Strategy, ...]) -> Side:
    return Side(claim=of.claim, strategies=strategies)


def structs_with(of: Side, *, traits: set[str]) -> Side:
    return Side(claim=of.claim, strategies=of.strategies, traits=frozenset(traits))
