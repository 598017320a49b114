"""Pre-warming: worth it by chance, saving and cost; only what fits; one engine per card."""

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.workloads.switching.prewarm import Candidate, Prewarm, prewarm
from edge_agent.workloads.switching.vram import Card, Claim

H100 = Card(gpu="0", vram_mib=81_559)
MINER = Claim(engine_id="miner", weights_mib=256)
LLM = Candidate(
    claim=Claim(engine_id="llm", weights_mib=14_336, kv_mib=4_096, mirror_mib=14_336),
    probability=0.5,
    within_s=900.0,
    why="outlook share 0.50",
    cold_s=40.0,
    warm_s=0.03,
    earns_usd_per_h=2.0,
    prepare_wh=10.0,
    hold_w=5.0,
)
PRICE = 50e-6  # 50 USD/MWh


def asked(*candidates: Candidate, held: tuple[Claim, ...] = (), free_mib: int = 0) -> Prewarm:
    return prewarm(H100, MINER, held, candidates, host_free_mib=free_mib, energy_usd_per_wh=PRICE)


def code(*candidates: Candidate, free_mib: int = 0) -> str:
    made = asked(*candidates, free_mib=free_mib)
    assert made.intent is None
    return made.not_prepared[0].code


def test_a_likely_start_that_would_be_cold_is_prepared_with_its_numbers() -> None:
    made = asked(LLM)
    assert made.intent is not None
    assert made.intent.resident
    assert abs(made.intent.saving_usd - 0.5 * 39.97 / 3_600.0 * 2.0) < 1e-9
    assert abs(made.intent.cost_usd - (10.0 + 5.0 * 0.25) * PRICE) < 1e-9
    assert made.intent.reason == "outlook share 0.50: 0.50 x 40.0 s saved"


def test_what_is_unlikely_or_dearer_than_its_saving_is_not() -> None:
    assert code(replace(LLM, probability=0.01)) == "unlikely"
    assert code(replace(LLM, probability=float("nan"))) == "unlikely"
    assert code(replace(LLM, cold_s=0.05)) == "dearer"
    assert code(replace(LLM, tax_usd_per_h=1.0)) == "dearer"
    assert code(replace(LLM, earns_usd_per_h=0.0, prepare_wh=0.0, hold_w=0.0)) == "dearer"


def test_what_has_no_room_on_the_card_goes_into_its_mirror_or_nowhere() -> None:
    claim = replace(LLM.claim, weights_mib=78_000, mirror_mib=78_000)
    large = replace(LLM, claim=claim)
    made = asked(large, free_mib=100_000)
    assert made.intent is not None
    assert not made.intent.resident
    assert code(large, free_mib=10_000) == "host_ram"


def test_an_engine_that_is_held_already_is_not_pushed_out() -> None:
    held = Claim(engine_id="held", weights_mib=70_000, mirror_mib=70_000)
    made = asked(LLM, held=(held,), free_mib=200_000)
    assert made.intent is None
    assert made.not_prepared[0].code == "vram"
    assert asked(LLM, held=(LLM.claim,)) == Prewarm(intent=None, not_prepared=())


def test_the_one_that_saves_most_is_prepared_and_the_other_named() -> None:
    other = replace(LLM, claim=replace(LLM.claim, engine_id="other"), probability=0.9)
    made = asked(LLM, other)
    assert made.intent is not None
    assert made.intent.engine_id == "other"
    assert [(row.engine_id, row.code) for row in made.not_prepared] == [("llm", "another")]


@settings(max_examples=60)
@given(st.floats(0.0, 1.0), st.floats(0.0, 100.0), st.floats(0.0, 100.0), st.floats(0.0, 10.0))
def test_an_intent_always_saves_more_than_it_costs(
    probability: float, cold_s: float, warm_s: float, earns: float
) -> None:
    one = replace(LLM, probability=probability, cold_s=cold_s, warm_s=warm_s, earns_usd_per_h=earns)
    made = asked(one).intent
    if made is not None:
        assert made.saving_usd > made.cost_usd >= 0.0
        assert cold_s > warm_s
    # A better chance never takes an intent away.
    surer = asked(replace(one, probability=1.0)).intent
    assert surer is not None or made is None
