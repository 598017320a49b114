from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec, topics, units
from protocol.event import LeaseRunning
from protocol.ids import IdSource, lease_id_of, usage_id_of
from protocol.lease import workload_class
from protocol.resource import ACTIVITY_CODES, CATALOG, Activity
from protocol.sync import Lane, LeaseHead, manifest_digest_of
from protocol.units import BASE_URL_CHARS_MAX, check_base_url

SITE = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)


@given(site=SITE, lane=st.sampled_from(list(Lane)))
def test_an_up_topic_parses_to_what_it_was_built_from(site: str, lane: Lane) -> None:
    assert topics.parse_up(topics.up(site, lane)) == topics.UpTopic(site, lane)


@given(site=SITE.filter(lambda name: name not in topics.RESERVED_SITES))
def test_a_state_topic_parses_to_its_site(site: str) -> None:
    assert topics.parse_state(topics.site_state(site)) == site


@pytest.mark.parametrize("topic", ["", "hcp/v1/hub/state", "a/b", "hcp/v2/x/state"])
def test_foreign_topics_are_no_site_state(topic: str) -> None:
    assert topics.parse_state(topic) is None
    assert topics.parse_up(topic) is None
    assert topics.parse_down_lease(topic) is None


def test_lease_topics_parse_to_the_lease() -> None:
    assert topics.parse_down_lease(topics.down_lease("fargo", "w-1.2")) == "w-1.2"


def test_the_edge_subscribes_to_no_overlapping_filters() -> None:
    own = [text for text, _ in topics.edge_subscriptions("fargo")]
    assert own == ["hcp/v1/fargo/down/#", "hcp/v1/hub/state", "hcp/v1/hub/heartbeat"]


def test_ids_order_by_time_and_differ() -> None:
    draws = iter(range(1, 100))
    source = IdSource(lambda size: next(draws).to_bytes(size, "big"))
    early = source.new("w", datetime(2026, 1, 1, tzinfo=UTC))
    late = source.new("w", datetime(2026, 1, 2, tzinfo=UTC))
    assert early < late
    assert source.new("w", datetime(2026, 1, 2, tzinfo=UTC)) != late


def test_usage_ids_repeat_for_equal_input_and_differ_else() -> None:
    first = usage_id_of("s", "l", 1, "d", "i", 0)
    assert usage_id_of("s", "l", 1, "d", "i", 0) == first
    assert usage_id_of("s", "l", 1, "d", "i", 1) != first
    assert usage_id_of("s", "l1", 1, "d", "i", 0) != usage_id_of("s", "l", 11, "d", "i", 0)


def test_a_lease_is_named_by_workload_and_attempt() -> None:
    assert lease_id_of("w-1", 2) == "w-1.2"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("amount", "cents"),
    [("0.005", "0.01"), ("0.004999999", "0.00"), ("-0.005", "-0.01"), ("2.675", "2.68")],
)
def test_invoice_lines_round_half_up(amount: str, cents: str) -> None:
    assert units.round_to_cent(Decimal(amount)) == Decimal(cents)


@pytest.mark.parametrize(
    "text", ["", "abc", "NaN", "Infinity", "1e400", "0.0000000001", "1_0", " 1", "1\n", "٣", "1e-9"]
)
def test_no_money_from_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="price"):
        units.parse_usd("price", text)


@given(st.decimals(min_value=0, max_value=10**14, places=9))
def test_an_amount_is_written_as_it_is_read(amount: Decimal) -> None:
    assert units.parse_usd("price", units.usd_text(amount)) == amount


@given(st.integers(0, 4_000_000_000_000))
def test_milliseconds_come_back(at_ms: int) -> None:
    assert units.to_ms(units.from_ms(at_ms)) == at_ms


def test_the_manifest_digest_does_not_depend_on_order() -> None:
    one, two = LeaseHead("a", 1, 1), LeaseHead("b", 1, 4)
    assert manifest_digest_of((one, two)) == manifest_digest_of((two, one))
    assert manifest_digest_of((one,)) != manifest_digest_of((two,))


def test_priorities_fall_into_the_four_classes() -> None:
    names = [workload_class(priority) for priority in range(1, 11)]
    assert names == ["P1"] * 2 + ["P2"] * 3 + ["P3"] * 3 + ["P4"] * 2


def test_every_activity_has_one_code() -> None:
    assert sorted(ACTIVITY_CODES) == sorted(Activity)
    assert len(set(ACTIVITY_CODES)) == len(ACTIVITY_CODES)


def test_nameplates_are_ordered_as_physics_wants() -> None:
    for model in CATALOG:
        assert (
            model.curtailed_w <= model.idle_w <= model.mine_w <= max(model.inrush_w, model.mine_w)
        )


def test_the_longest_address_of_a_proxy_still_carries_its_leases() -> None:
    base = "https://h/" + "x" * (BASE_URL_CHARS_MAX - 10)
    check_base_url("base", base)
    with pytest.raises(ValueError, match="base must be http"):
        check_base_url("base", base + "x")
    lease_id = "w" * 127  # the longest identifier
    running = LeaseRunning(
        lease_id=lease_id, attempt=1, at=datetime(2026, 1, 1, tzinfo=UTC), instances=(),
        endpoint_url=f"{base}/l/{lease_id}/v1",
    )  # fmt: skip
    assert codec.EVENT_ITEM.decode(codec.encode(running)) == running


OFFSETS = st.integers(-1_439, 1_439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(at=st.datetimes(timezones=OFFSETS))
def test_every_instant_that_can_be_written_is_kept_as_one_that_can_be_read(at: datetime) -> None:
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    kept = units.from_ms(units.to_ms(at))
    if first <= at <= last:
        assert timedelta(0) <= at - kept < timedelta(milliseconds=1)
    else:
        assert kept in {first, last.replace(microsecond=999_000)}
