"""Rating and invoicing against a brute-force oracle that knows nothing of them."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.core.invoicing import (
    Invoice,
    Period,
    SiteThrough,
    close,
    content_hash_of,
    decode_invoice,
    encode_invoice,
)
from hub.core.rating import (
    ClassPrice,
    LineKind,
    MinuteUsage,
    RateCard,
    WorkloadTerms,
    amount_of,
    card_in_force,
    rate,
    total_of,
)
from hub.errors import InvoiceError

T0 = datetime(2026, 3, 1, tzinfo=UTC)
CLASSES = ("A100", "H100")
WORKLOADS = ("w1", "w2", "w3")


def _cents(price: Decimal, ms: int) -> int:
    """Round half up in whole numbers: no Decimal, no context."""
    exact = Fraction(price) * ms * 100 / 3_600_000
    return int(exact + Fraction(1, 2))


def _oracle(
    usage: list[MinuteUsage], cards: list[RateCard], terms: dict[str, WorkloadTerms]
) -> dict[tuple[str, str, int, str], tuple[int, int]]:
    """Rate minute by minute; gives (milliseconds, cents) per line."""
    sums: dict[tuple[str, str, int, str], int] = {}
    prices: dict[tuple[str, str, int, str], Decimal] = {}
    for row in usage:
        best: RateCard | None = None
        for card in cards:
            if card.effective_from > row.minute:
                continue
            if best is None or (card.effective_from, card.version) > (
                best.effective_from, best.version
            ):  # fmt: skip
                best = card
        assert best is not None
        price = {p.device_class: p.price_usd_per_h for p in best.prices}[row.device_class]
        kind, term = "usage", terms[row.workload_id]
        if term.cancel_accepted_at is not None and term.cancel_accepted_at < row.minute:
            kind, price = "credit_after_cancel", Decimal(0)
        elif term.max_price_usd_per_h is not None and term.max_price_usd_per_h < price:
            kind, price = "capped_at_max_price", term.max_price_usd_per_h
        key = (row.workload_id, row.device_class, best.version, kind)
        sums[key] = sums.get(key, 0) + row.active_ms
        prices[key] = price
    return {key: (ms, _cents(prices[key], ms)) for key, ms in sums.items()}


prices_st = st.decimals(0, 100, places=4, allow_nan=False, allow_infinity=False)
cards_st = st.lists(
    st.tuples(st.integers(1, 5), prices_st, prices_st), max_size=4
).map(
    lambda rows: [
        RateCard(
            version=n + 1,
            effective_from=T0 + timedelta(hours=hour),
            prices=tuple(
                ClassPrice(device_class=name, price_usd_per_h=price)
                for name, price in zip(CLASSES, pair, strict=True)
            ),
        )
        for n, (hour, *pair) in enumerate([(0, Decimal("1.5"), Decimal("2.25")), *rows])
    ]
)  # fmt: skip
usage_st = st.lists(
    st.builds(
        MinuteUsage,
        workload_id=st.sampled_from(WORKLOADS),
        device_class=st.sampled_from(CLASSES),
        minute=st.integers(0, 359).map(lambda n: T0 + timedelta(minutes=n)),
        active_ms=st.integers(0, 480_000),
    ),
    max_size=60,
)
terms_st = st.tuples(
    *(
        st.builds(
            WorkloadTerms,
            workload_id=st.just(name),
            max_price_usd_per_h=st.none() | prices_st,
            cancel_accepted_at=st.none()
            | st.integers(0, 21_600_000).map(lambda ms: T0 + timedelta(milliseconds=ms)),
        )
        for name in WORKLOADS
    )
).map(lambda rows: {row.workload_id: row for row in rows})


@given(usage=usage_st, cards=cards_st, terms=terms_st)
def test_lines_equal_the_oracle_and_conserve_every_millisecond(
    usage: list[MinuteUsage], cards: list[RateCard], terms: dict[str, WorkloadTerms]
) -> None:
    lines = rate(usage, cards, terms)
    got = {
        (line.workload_id, line.device_class, line.card_version, line.kind.value): (
            line.active_ms,
            int(line.amount_usd * 100),
        )
        for line in lines
    }
    assert got == _oracle(usage, cards, terms)
    assert len(got) == len(lines)
    assert sum(line.active_ms for line in lines) == sum(row.active_ms for row in usage)
    assert total_of(lines) == sum((line.amount_usd for line in lines), Decimal(0))


@given(usage=usage_st, cards=cards_st, terms=terms_st, seed=st.randoms())
def test_order_of_the_usage_changes_nothing(
    usage: list[MinuteUsage],
    cards: list[RateCard],
    terms: dict[str, WorkloadTerms],
    seed: "object",
) -> None:
    shuffled = sorted(usage, key=lambda _: seed.random())  # type: ignore[attr-defined]
    assert rate(shuffled, cards, terms) == rate(usage, cards, terms)


@given(price=prices_st, ms=st.integers(0, 10**13))
def test_one_amount_is_rounded_half_up(price: Decimal, ms: int) -> None:
    assert amount_of(price, ms) * 100 == _cents(price, ms)


def test_half_a_cent_goes_up() -> None:
    # 1 USD/h for 18 s = 0.005 USD
    assert amount_of(Decimal(1), 18_000) == Decimal("0.01")
    assert amount_of(Decimal(1), 17_999) == Decimal("0.00")


def test_the_price_changes_on_the_hour_and_splits_the_line() -> None:
    cards = [_card(1, 0, "1"), _card(2, 1, "2")]
    usage = [_minute(59, 60_000), _minute(60, 60_000)]
    lines = rate(usage, cards, {})
    assert [(line.card_version, line.amount_usd) for line in lines] == [
        (1, Decimal("0.02")),
        (2, Decimal("0.03")),
    ]


def test_of_two_cards_for_one_hour_the_newer_version_is_in_force() -> None:
    card = card_in_force([_card(2, 1, "2"), _card(1, 1, "1")], T0 + timedelta(hours=1))
    assert card is not None
    assert card.version == 2
    assert card_in_force([_card(1, 1, "1")], T0) is None


def test_the_minute_of_the_cancel_is_charged_and_the_next_is_shown_and_free() -> None:
    terms = {"w1": WorkloadTerms(workload_id="w1", cancel_accepted_at=T0 + timedelta(seconds=90))}
    lines = rate([_minute(1, 60_000), _minute(2, 60_000)], [_card(1, 0, "60")], terms)
    assert [(line.kind, line.active_ms, line.amount_usd) for line in lines] == [
        (LineKind.AFTER_CANCEL, 60_000, Decimal("0.00")),
        (LineKind.USAGE, 60_000, Decimal("1.00")),
    ]


def test_usage_without_a_price_is_refused_by_name() -> None:
    with pytest.raises(InvoiceError, match=r"no_price.*H200"):
        rate(
            [MinuteUsage(workload_id="w", device_class="H200", minute=T0, active_ms=1)],
            [_card(1, 0, "1")],
            {},
        )


def test_a_card_takes_effect_on_a_whole_utc_hour_only() -> None:
    with pytest.raises(ValueError, match="effective_from"):
        RateCard(version=1, effective_from=T0 + timedelta(minutes=30), prices=())


@given(usage=usage_st, cards=cards_st, terms=terms_st)
def test_an_invoice_adds_up_and_its_hash_covers_it(
    usage: list[MinuteUsage], cards: list[RateCard], terms: dict[str, WorkloadTerms]
) -> None:
    invoice = _close(usage, cards, terms)
    expected = _oracle(usage, cards, terms)
    assert int(invoice.total_usd * 100) == sum(cents for _, cents in expected.values())
    assert invoice.content_hash == content_hash_of(invoice)
    data = encode_invoice(invoice)
    assert encode_invoice(decode_invoice(data)) == data
    assert _close(usage, cards, terms) == invoice


def test_a_period_waits_for_its_sites_and_then_names_them() -> None:
    throughs = [
        SiteThrough(site_id="lubbock", through=T0 + timedelta(hours=6)),
        SiteThrough(site_id="fargo", through=T0 + timedelta(hours=5)),
        SiteThrough(site_id="houston", through=None),
    ]
    with pytest.raises(InvoiceError, match=r"period_open.*fargo, houston"):
        _close([], [], {}, throughs, T0 + timedelta(hours=29))
    invoice = _close([], [], {}, throughs, T0 + timedelta(hours=30))
    assert invoice.estimated
    assert invoice.missing_sites == ("fargo", "houston")
    complete = _close([], [], {}, throughs[:1], T0 + timedelta(hours=6))
    assert not complete.estimated


def test_a_period_cannot_close_before_its_end() -> None:
    with pytest.raises(InvoiceError, match="period_not_over"):
        _close([], [], {}, (), T0 + timedelta(hours=5))


def test_late_usage_names_the_period_it_is_of() -> None:
    late = MinuteUsage(
        workload_id="w1", device_class="H100", minute=T0 - timedelta(hours=2), active_ms=3_600_000,
        late_of=3,
    )  # fmt: skip
    period = Period(start=T0 - timedelta(hours=3), end=T0)
    invoice = close(
        number=4, customer_id="c", period=Period(start=T0, end=T0 + timedelta(hours=1)),
        usage=[late], cards=[_card(1, -24, "2")], terms={}, throughs=[], closed_periods={3: period},
        now=T0 + timedelta(hours=1),
    )  # fmt: skip
    assert invoice.lines[0].description == (
        "late usage of 2026-02-28T21:00Z..2026-03-01T00:00Z: w1 on H100"
    )
    assert invoice.total_usd == Decimal("2.00")


@pytest.mark.parametrize("shift", [timedelta(seconds=1), timedelta(microseconds=1)])
def test_a_period_is_of_whole_minutes(shift: timedelta) -> None:
    with pytest.raises(ValueError, match="start"):
        Period(start=T0 + shift, end=T0 + timedelta(hours=1))
    with pytest.raises(ValueError, match="after start"):
        Period(start=T0, end=T0)


def _close(
    usage: list[MinuteUsage],
    cards: list[RateCard],
    terms: dict[str, WorkloadTerms],
    throughs: "list[SiteThrough] | tuple[()]" = (),
    now: datetime = T0 + timedelta(hours=6),
) -> Invoice:
    return close(
        number=1, customer_id="c", period=Period(start=T0, end=T0 + timedelta(hours=6)),
        usage=usage, cards=cards, terms=terms, throughs=throughs, closed_periods={}, now=now,
    )  # fmt: skip


def _card(version: int, hour: int, price: str) -> RateCard:
    prices = (ClassPrice(device_class="H100", price_usd_per_h=Decimal(price)),)
    at = T0 + timedelta(hours=hour)
    return RateCard(version=version, effective_from=at, prices=prices)


def _minute(n: int, active_ms: int) -> MinuteUsage:
    return MinuteUsage(
        workload_id="w1", device_class="H100", minute=T0 + timedelta(minutes=n), active_ms=active_ms
    )
