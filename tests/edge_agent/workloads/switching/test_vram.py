"""The VRAM planner: never over the card, monotone, and the same in any order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.workloads.switching.vram import Card, Claim, Fit, NoFit, layout

SIZES = st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 20_000)), min_size=1, max_size=6)


def claims_of(sizes: list[tuple[int, int]]) -> list[Claim]:
    return [
        Claim(engine_id=f"e{at}", weights_mib=weights, kv_mib=kv, mirror_mib=weights)
        for at, (weights, kv) in enumerate(sizes)
    ]


def test_a_miner_and_14_gb_of_weights_stay_together_on_80_gb() -> None:
    card = Card(gpu="0", vram_mib=81_559)
    claims = [
        Claim(engine_id="miner", weights_mib=256),
        Claim(engine_id="llm", weights_mib=14_336, kv_mib=8_192, mirror_mib=14_336),
    ]
    # 1,024 reserve + 2 x 1,229 contexts + 256 + 22,528
    assert layout(card, claims, "llm", 0) == Fit(
        resident=("llm", "miner"), leave=(), used_mib=26_266, free_mib=55_293, mirror_mib=0
    )


def test_what_must_leave_is_named_with_the_host_memory_that_it_takes() -> None:
    card = Card(gpu="0", vram_mib=24_576)
    claims = [
        Claim(engine_id="a", weights_mib=14_336, mirror_mib=14_336),
        Claim(engine_id="b", weights_mib=12_000, mirror_mib=12_000),
    ]
    found = layout(card, claims, "b", 20_000)
    assert isinstance(found, Fit)
    assert (found.leave, found.mirror_mib) == (("a",), 14_336)
    assert layout(card, claims, "b", 14_335) == NoFit(
        code="host_ram",
        need_mib=14_336,
        have_mib=14_335,
        detail="the mirrors of a need 14336 MiB of host memory; free: 14335 MiB",
    )
    unknown = layout(card, claims, "b", None)
    assert isinstance(unknown, NoFit)
    assert unknown.code == "host_ram"


def test_a_mirror_that_is_pinned_already_takes_no_more() -> None:
    card = Card(gpu="0", vram_mib=24_576)
    claims = [
        Claim(engine_id="a", weights_mib=14_336, mirror_mib=14_336, mirror_pinned=True),
        Claim(engine_id="b", weights_mib=12_000),
    ]
    assert isinstance(layout(card, claims, "b", 0), Fit)


def test_an_engine_larger_than_the_card_is_refused_with_numbers() -> None:
    found = layout(
        Card(gpu="0", vram_mib=24_576), [Claim(engine_id="a", weights_mib=70_000)], "a", 0
    )
    assert isinstance(found, NoFit)
    assert (found.code, found.need_mib, found.have_mib) == ("vram", 72_253, 24_576)
    stranger = layout(Card(gpu="0", vram_mib=24_576), [], "a", 0)
    assert isinstance(stranger, NoFit)
    assert stranger.code == "unknown_engine"
    negative = layout(
        Card(gpu="0", vram_mib=24_576), [Claim(engine_id="a", weights_mib=-1)], "a", 0
    )
    assert isinstance(negative, NoFit)
    assert negative.code == "bad_claim"


@settings(max_examples=100)
@given(SIZES, st.integers(2_000, 200_000), st.integers(0, 100_000))
def test_a_layout_is_never_over_the_card_nor_over_host_memory(
    sizes: list[tuple[int, int]], vram_mib: int, host_mib: int
) -> None:
    card, claims = Card(gpu="0", vram_mib=vram_mib), claims_of(sizes)
    found = layout(card, claims, "e0", host_mib)
    if isinstance(found, NoFit):
        assert found.need_mib > found.have_mib
        return
    assert "e0" in found.resident
    assert sorted(found.resident + found.leave) == [one.engine_id for one in claims]
    taken = sum(one.active_mib for one in claims if one.engine_id in found.resident)
    contexts = sum(one.context_mib for one in claims)
    assert found.used_mib == taken + contexts + card.reserve_mib <= vram_mib
    assert found.free_mib == vram_mib - found.used_mib
    assert found.mirror_mib <= host_mib


@settings(max_examples=100)
@given(
    SIZES, st.integers(2_000, 200_000), st.integers(0, 50_000), st.randoms(use_true_random=False)
)
def test_a_larger_card_keeps_more_and_the_order_of_claims_means_nothing(
    sizes: list[tuple[int, int]], vram_mib: int, more_mib: int, random: object
) -> None:
    claims = claims_of(sizes)
    small = layout(Card(gpu="0", vram_mib=vram_mib), claims, "e0", 10**9)
    large = layout(Card(gpu="0", vram_mib=vram_mib + more_mib), claims, "e0", 10**9)
    if isinstance(small, Fit):
        assert isinstance(large, Fit)
        assert set(small.resident) <= set(large.resident)
    shuffled = list(claims)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert layout(Card(gpu="0", vram_mib=vram_mib), shuffled, "e0", 10**9) == small
