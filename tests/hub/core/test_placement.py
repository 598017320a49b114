"""Which site gets a workload."""

from hypothesis import given
from hypothesis import strategies as st

from hub.core.placement import (
    OpenLease,
    PlaceRequest,
    SiteOffer,
    best,
    free_after_reservations,
    rank,
    waiting_reason,
)

CLASSES = ("H100", "A100")


def lease(
    *, reported: bool = False, ending: bool = False, count: int = 1, priority: int = 6
) -> OpenLease:
    return OpenLease("H100", count, priority, reported, ending)


def offer(site_id: str, free: int = 4, **facts: object) -> SiteOffer:
    base: dict[str, object] = {
        "site_id": site_id,
        "online": True,
        "ready": True,
        "free": (("H100", free),),
        "total": (("H100", 8),),
    }
    return SiteOffer(**(base | facts))  # type: ignore[arg-type]


leases_drawn = st.builds(
    OpenLease, st.sampled_from(CLASSES), st.integers(1, 4), st.integers(1, 10), st.booleans(),
    st.booleans(),
)  # fmt: skip
offers_drawn = st.builds(
    lambda site, online, ready, free, extra, leases: SiteOffer(
        site_id=site,
        online=online,
        ready=ready,
        free=tuple(zip(CLASSES, free, strict=True)),
        total=tuple((name, n + extra) for name, n in zip(CLASSES, free, strict=True)),
        leases=tuple(leases),
    ),
    st.sampled_from(("lubbock", "houston", "fargo")),
    st.booleans(),
    st.booleans(),
    st.tuples(st.integers(0, 8), st.integers(0, 8)),
    st.integers(0, 8),
    st.lists(leases_drawn, max_size=4),
)
requests_drawn = st.builds(
    PlaceRequest,
    device_class=st.sampled_from(CLASSES),
    count=st.integers(1, 8),
    priority=st.integers(1, 10),
    site_id=st.sampled_from((None, "lubbock", "houston")),
    avoid=st.sampled_from(((), ("fargo",))),
)


@given(requests_drawn, st.lists(offers_drawn, max_size=3, unique_by=lambda row: row.site_id))
def test_chosen_site_can_take_the_work(request: PlaceRequest, sites: list[SiteOffer]) -> None:
    candidates = rank(request, sites)
    assert sorted(row.site_id for row in candidates) == sorted(row.site_id for row in sites)
    assert candidates == rank(request, sites[::-1])
    chosen = best(candidates)
    if chosen is None:
        assert waiting_reason(candidates)
        return
    site = next(row for row in sites if row.site_id == chosen.site_id)
    assert site.online
    assert site.ready
    assert site.site_id not in request.avoid
    assert request.site_id in {None, site.site_id}
    assert dict(site.total)[request.device_class] >= request.count
    lower = sum(
        row.count
        for row in site.leases
        if row.device_class == request.device_class and row.reported and not row.ending
    )
    assert free_after_reservations(site, request.device_class) + lower >= request.count
    assert chosen.score == sum(part.points for part in chosen.parts)


def test_promised_devices_are_not_free() -> None:
    site = offer(
        "lubbock", 4, leases=(lease(count=3), lease(count=9, reported=True), lease(ending=True))
    )
    assert free_after_reservations(site, "H100") == 1


def test_work_spreads_to_the_freest_site_and_ties_go_by_name() -> None:
    request = PlaceRequest(device_class="H100", count=1)
    assert [
        row.site_id for row in rank(request, [offer("b", 2), offer("a", 2), offer("c", 7)])
    ] == [
        "c",
        "a",
        "b",
    ]


def test_cheap_energy_decides_between_equals() -> None:
    request = PlaceRequest(device_class="H100", count=1)
    dear = offer("a", price_usd_per_mwh=90.0)
    cheap = offer("b", price_usd_per_mwh=-10.0)
    assert rank(request, [dear, cheap])[0].site_id == "b"


def test_only_a_higher_class_may_preempt_and_only_as_a_last_resort() -> None:
    full = offer("full", 0, leases=(lease(reported=True, priority=9, count=2),))
    roomy = offer("roomy", 1)
    first = PlaceRequest(device_class="H100", count=1, priority=1)
    assert [row.site_id for row in rank(first, [full, roomy])] == ["roomy", "full"]
    assert best(rank(first, [full])) is not None
    last = PlaceRequest(device_class="H100", count=1, priority=10)
    assert rank(last, [full])[0].reason_rejected == "no_capacity"


def test_each_no_has_its_reason() -> None:
    request = PlaceRequest(device_class="H100", count=1, site_id="wished", avoid=("wished",))
    reasons = {
        row.site_id: row.reason_rejected for row in rank(request, [offer("other"), offer("wished")])
    }
    assert reasons == {"other": "not_wished", "wished": "refused_recently"}
    any_site = PlaceRequest(device_class="H100", count=1)
    sites = [
        offer("off", online=False),
        offer("mute", ready=False),
        offer("small", total=(("A100", 8),)),
        offer("full", 0),
    ]
    assert {row.site_id: row.reason_rejected for row in rank(any_site, sites)} == {
        "off": "offline",
        "mute": "not_reported",
        "small": "no_such_class",
        "full": "no_capacity",
    }
    assert waiting_reason(rank(any_site, sites)) == "no_capacity"
