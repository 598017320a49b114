"""Readings: what they change hangs neither on their order nor on whose they come with."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.site import CURTAILED, MINE, UNKNOWN, Site
from edge_agent.core.site_state import SiteState
from edge_agent.core.snapshot import encode_state
from edge_agent.core.state_facts import apply
from tests.edge_agent.core.mode_plant import ModePlant, mode_site
from tests.edge_agent.core.plant import Plant, make_site, tick


def started(*, modes: bool) -> tuple[Site, SiteState]:
    """Give a site some of whose devices are in the middle of a switch."""
    plant: Plant = ModePlant(mode_site(5, 3, cap_w=2e4)) if modes else make_plant()
    plant.settle(5.0, tick(60.0, 5.0), plant.readings())
    plant.step(5.0, tick(3_000.0, 10.0), plant.readings())
    plant.step(900.0, tick(3_000.0, 910.0), plant.readings())
    return plant.site, plant.state


def make_plant() -> Plant:
    return Plant(make_site(5, 3))


def drawn(site: Site, rng: np.random.Generator) -> f.ReadingColumns:
    """Draw a reading of every device, some of them strange."""
    n = len(site)
    strange = np.array([np.nan, 0.0, 50.0, 2_000.0, 4_500.0])
    return f.ReadingColumns(
        np.arange(n, dtype=np.int32),
        rng.choice(np.array([UNKNOWN, MINE, CURTAILED], dtype=np.uint8), n),
        rng.integers(0, 2, n).astype(np.uint8),
        rng.choice(strange, n),
        rng.choice(np.array([np.nan, 0.0, 20.0, 130.0, 230.0]), n),
        rng.uniform(20.0, 90.0, n),
        rng.uniform(0.0, 1.0, n),
        rng.integers(0, 3, n).astype(np.uint8),
    )


def part(columns: f.ReadingColumns, at: np.ndarray) -> f.ReadingColumns:
    return f.ReadingColumns(
        *(getattr(columns, name)[at] for name in f.ReadingColumns.__struct_fields__)
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), modes=st.booleans())
def test_the_same_readings_in_another_order_and_in_parts_make_the_same_state(
    seed: int, *, modes: bool
) -> None:
    rng = np.random.default_rng(seed)
    site, state = started(modes=modes)
    columns = drawn(site, rng)
    whole = apply(site, state, f.pack_readings(site.digest, columns))
    mixed = rng.permutation(len(site))
    other = apply(site, state, f.pack_readings(site.digest, part(columns, mixed)))
    assert encode_state(site, other) == encode_state(site, whole)
    cut = int(rng.integers(0, len(site) + 1))
    for at in (mixed[:cut], mixed[cut:]):
        state = apply(site, state, f.pack_readings(site.digest, part(columns, at)))
    # What was learnt of responses stands in the order in which it was learnt.
    state = replace(state, responses=whole.responses)
    assert encode_state(site, state) == encode_state(site, whole)


def test_readings_leave_the_state_before_them_as_it_was() -> None:
    site, state = started(modes=True)
    before = encode_state(site, state)
    apply(site, state, f.pack_readings(site.digest, drawn(site, np.random.default_rng(1))))
    assert encode_state(site, state) == before
