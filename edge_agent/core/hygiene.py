"""Which of the values that feeds tell may be believed, and what a wrong one can cost.

Every feed's last value of each input is kept with a verdict. Two feeds that agree confirm each
other. A price beyond what the market's history makes plausible, or one that another feed
contradicts, is a *claim*: the claims are weighed, and the one whose expected loss is least is
acted on. The loss of acting on ``q`` while ``p`` is true is, for each class with break-even
``b`` between the two, ``|p - b|`` times its megawatts.

The bound: when one of n claims is true, its weight is at least ``1 / e`` of the sum, and so the
loss per hour is at most ``e`` times the lesser of the margin forgone at the cheapest claim and the
loss at the dearest one (``worst_usd_per_h``). A single feed that is wrong within the plausible
range cannot be told from a market; only its bounds limit it.
"""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core.site import NS_PER_S, Limits
from edge_agent.core.site_state import MarketState, Told, Usual

PRICE = "price_usd_per_mwh"
# Mean and spread of about a day of quarter hours; before the eighth nothing is implausible.
_DAY_INTERVALS = 96
_HISTORY_MIN = 8
_SPREADS = 8.0
_SPREAD_LEAST_USD = 5.0
_CLIP_SPREADS = 4.0
# A value that has not moved for so many intervals while another feed moved is stuck.
STUCK_INTERVALS = 8
# Real spikes are common (1.9 % of quarter hours above 100 USD/MWh), broken feeds are not.
SPIKE_REAL = 0.9
_WEIGHT_IMPLAUSIBLE = 0.5
_WEIGHT_STUCK = 0.5
# What a claim weighs at least against the heaviest one.
WEIGHT_MIN = 1.0 / 9.0
TOLD_MAX = 64
OK, HELD, ACTED, REFUSED, OUTVOTED, BEHIND = "ok", "held", "acted", "refused", "outvoted", "behind"


class Check(Struct, frozen=True):
    """When a coin value is too far from the last one: ``was / factor`` .. ``was * factor + plus``.

    Args:
        agree: share by which two feeds may differ. values: new ones that confirm it without a
            second feed.
    """

    factor: float
    plus: float
    agree: float
    values: int


# The difficulty moves by a factor of four at most (consensus rule), the subsidy halves.
COIN_CHECKS: dict[str, Check] = {
    "btc_price_usd": Check(1.25, 0.0, 0.02, 24),
    "difficulty": Check(4.0, 0.0, 0.001, 24),
    "subsidy_btc": Check(2.0, 0.0, 0.001, 24),
    "fees_btc": Check(1e9, 3.0, 0.2, 24),
}


class Step(Struct, frozen=True):
    """One class on the site's curve: mining pays below ``break_even_usd_per_mwh``."""

    break_even_usd_per_mwh: float
    mw: float


class Claim(Struct, frozen=True):
    """A price that may be true, with its weight; ``feed`` is empty for the last one taken."""

    feed: str
    price: float
    weight: float


class Choice(Struct, frozen=True):
    """The claim acted on; losses in USD per hour, expected and at most if another one is true."""

    claim: Claim
    expected_usd_per_h: float
    worst_usd_per_h: float


def loss_usd_per_h(curve: Sequence[Step], acted: float, true: float) -> float:
    """Give what deciding by one price costs per hour while another is true."""
    loss = 0.0
    for step in curve:
        level = step.break_even_usd_per_mwh
        if (acted > level) != (true > level):
            loss += abs(true - level) * step.mw
    return loss


def choose(curve: Sequence[Step], claims: Sequence[Claim]) -> Choice:
    """Give the claim with the least expected loss; of equals the heaviest, then the first."""
    heaviest = max(row.weight for row in claims)
    weights = [max(row.weight, heaviest * WEIGHT_MIN) for row in claims]
    total = 0.0
    for weight in weights:
        total += weight
    best: tuple[float, float, int] | None = None
    for at, row in enumerate(claims):
        expected = 0.0
        for weight, other in zip(weights, claims, strict=True):
            expected += weight / total * loss_usd_per_h(curve, row.price, other.price)
        key = (expected, -weights[at], at)
        best = key if best is None or key < best else best
    assert best is not None, "there is a claim"
    chosen = claims[best[2]]
    worst = max(loss_usd_per_h(curve, chosen.price, other.price) for other in claims)
    return Choice(chosen, best[0], worst)


def bound_usd_per_h(curve: Sequence[Step], prices: Sequence[float]) -> float:
    """Give the most that acting on a choice among these prices can lose per hour."""
    cheapest, dearest = min(prices), max(prices)
    forgone = loss_usd_per_h(curve, float("inf"), cheapest)
    burnt = loss_usd_per_h(curve, -float("inf"), dearest)
    return ((len(prices) - 1) / WEIGHT_MIN + 1.0) * min(forgone, burnt)


def band(limits: Limits, usual: Usual | None) -> tuple[float, float]:
    """Give the range that the market's history makes plausible; without history that of the law."""
    if usual is None or usual.seen < _HISTORY_MIN:
        return limits.price_bounds_usd_per_mwh
    width = max(limits.near_usd_per_mwh, _SPREADS * usual.spread_usd_per_mwh)
    return usual.level_usd_per_mwh - width, usual.level_usd_per_mwh + width


def is_plausible(limits: Limits, usual: Usual | None, price: float) -> bool:
    """Tell whether the market's history makes a price plausible."""
    low, high = band(limits, usual)
    return low <= price <= high


def learn(usual: Usual | None, price: float) -> Usual:
    """Move level and spread on by one interval; a spike counts as a few spreads only."""
    if usual is None:
        return Usual(price, 0.0, 1)
    spread = usual.spread_usd_per_mwh
    away = price - usual.level_usd_per_mwh
    if usual.seen >= _HISTORY_MIN:
        most = _CLIP_SPREADS * max(spread, _SPREAD_LEAST_USD)
        away = min(max(away, -most), most)
    seen = min(usual.seen + 1, _DAY_INTERVALS)
    return Usual(
        usual.level_usd_per_mwh + away / seen,
        spread + (abs(away) - spread) / seen,
        seen,
    )


def agree(limits: Limits, one: float, other: float) -> bool:
    """Tell whether two prices are the same within the tolerance."""
    wide = max(abs(one), abs(other)) * limits.agree_share
    return abs(one - other) <= max(limits.agree_usd_per_mwh, wide)


def doubt(limits: Limits, market: MarketState, now_ns: int) -> str | None:
    """Say with numbers why the price is in doubt; None while it is not."""
    for row in market.told:
        fresh = now_ns - row.as_of_ns <= limits.price_stale_s * NS_PER_S
        if row.name == PRICE and fresh and row.verdict in (HELD, ACTED, OUTVOTED, REFUSED):
            return f"{row.feed}: {row.reason}"
    return None


def told_of(market: MarketState, name: str, feed: str) -> Told | None:
    """Give what a feed last told of an input."""
    for row in market.told:
        if row.name == name and row.feed == feed:
            return row
    return None


def put_told(market: MarketState, row: Told) -> tuple[Told, ...]:
    """Give the table with one row new or replaced; the oldest of too many goes."""
    others = [old for old in market.told if old.name != row.name or old.feed != row.feed]
    return (*others, row)[-TOLD_MAX:]


def next_told(before: Told | None, new: Told, *, same_thing: bool) -> Told:
    """Count on: intervals at one value, and new values that stand for the same thing."""
    if before is None:
        return new
    fresh = new.source_ms > before.source_ms
    same = before.same + fresh if new.value == before.value else 0
    run = before.run + fresh if same_thing else 1
    return replace(new, same=same, run=run)


def judge_coin(limits: Limits, market: MarketState, row: Told, now_ns: int) -> Told:
    """Judge a coin value: taken, or held until a second feed or enough new values confirm it."""
    held = getattr(market, row.name)
    check = COIN_CHECKS[row.name]
    before = told_of(market, row.name, row.feed)
    near = before is not None and _within(before.value, row.value, check.agree)
    row = next_told(before, row, same_thing=near)
    if held is None or now_ns - held.as_of_ns > limits.coin_stale_s * NS_PER_S:
        return replace(row, verdict=OK, reason="nothing fresh to compare with")
    low, high = held.value / check.factor, held.value * check.factor + check.plus
    if low <= row.value <= high:
        return replace(row, verdict=OK, reason="near the last value")
    for other in _others(market, row, limits.coin_stale_s, now_ns):
        if _within(other.value, row.value, check.agree):
            return replace(row, verdict=OK, reason=f"confirmed by {other.feed}")
    if row.run >= check.values:
        return replace(row, verdict=OK, reason=f"told {row.run} times")
    reason = (
        f"{row.value:g} is beyond {low:g}..{high:g}: waits for a second feed "
        f"or {check.values - row.run} more values"
    )
    return replace(row, verdict=HELD, reason=reason)


def _within(one: float, other: float, share: float) -> bool:
    return abs(one - other) <= share * max(abs(one), abs(other))


def _others(market: MarketState, row: Told, stale_s: float, now_ns: int) -> list[Told]:
    """Give what other feeds tell of the same input, as far as fresh and legal."""
    return [
        other
        for other in market.told
        if other.name == row.name
        and other.feed != row.feed
        and other.verdict != REFUSED
        and now_ns - other.as_of_ns <= stale_s * NS_PER_S
    ]


class Verdicts(Struct, frozen=True):
    """Outcome for the price: the table, what to take (None: keep the old), and what is at risk."""

    told: tuple[Told, ...]
    taken: Told | None
    at_risk_usd_per_h: float


def judge_price(
    limits: Limits,
    market: MarketState,
    row: Told,
    curve: Sequence[Step],
    interval_ms: int,
    now_ns: int,
) -> Verdicts:
    """Judge a price that a feed has just told, together with what the others tell."""
    before = told_of(market, PRICE, row.feed)
    low, high = band(limits, market.usual)
    near = before is not None and (
        agree(limits, before.value, row.value)
        or min(before.value, row.value) > high
        or max(before.value, row.value) < low
    )
    row = next_told(before, row, same_thing=near)
    floor, ceiling = limits.price_bounds_usd_per_mwh
    if not floor <= row.value <= ceiling:
        reason = f"{row.value:g} is outside the market's {floor:g}..{ceiling:g}"
        refused = replace(row, verdict=REFUSED, reason=reason)
        return Verdicts(put_told(market, refused), None, market.at_risk_usd_per_h)
    others = _others(market, row, limits.price_stale_s, now_ns)
    newest = max([row.source_ms // interval_ms, *(one.source_ms // interval_ms for one in others)])
    rivals = [one for one in others if one.source_ms // interval_ms == newest]
    if row.source_ms // interval_ms < newest:
        behind = replace(row, verdict=BEHIND, reason="speaks of an earlier interval")
        return Verdicts(put_told(market, behind), None, market.at_risk_usd_per_h)
    friends = [one for one in rivals if agree(limits, one.value, row.value)]
    strangers = [one for one in rivals if not agree(limits, one.value, row.value)]
    if friends and len(friends) + 1 > len(strangers):
        return _confirmed(market, row, friends, strangers)
    if strangers:
        return _weighed(limits, market, row, rivals, curve)
    return _alone(limits, market, row, curve, now_ns)


def _confirmed(
    market: MarketState, row: Told, friends: list[Told], strangers: list[Told]
) -> Verdicts:
    row = replace(row, verdict=OK, reason=f"confirmed by {friends[0].feed}")
    for other in strangers:
        reason = f"{other.value:g} against {row.value:g} of {len(friends) + 1} feeds"
        lost = replace(other, verdict=OUTVOTED, reason=reason)
        market = replace(market, told=put_told(market, lost))
    for other in friends:
        kept = replace(other, verdict=OK, reason=f"confirmed by {row.feed}")
        market = replace(market, told=put_told(market, kept))
    return Verdicts(put_told(market, row), row, 0.0)


def _weighed(
    limits: Limits,
    market: MarketState,
    row: Told,
    rivals: list[Told],
    curve: Sequence[Step],
) -> Verdicts:
    """Choose among feeds that contradict each other about the same interval."""
    rows = sorted([row, *rivals], key=lambda one: one.feed)
    claims = [Claim(one.feed, one.value, _weight(limits, market.usual, one)) for one in rows]
    choice = choose(curve, claims)
    said = ", ".join(f"{one.feed} {one.price:g}" for one in claims)
    for one in rows:
        taken = one.feed == choice.claim.feed
        reason = (
            f"feeds disagree ({said}): {choice.claim.price:g} is acted on, expected loss "
            f"{choice.expected_usd_per_h:.2f}, at most {choice.worst_usd_per_h:.2f} USD/h"
        )
        judged = replace(one, verdict=ACTED if taken else OUTVOTED, reason=reason)
        market = replace(market, told=put_told(market, judged))
    taken_row = next(one for one in rows if one.feed == choice.claim.feed)
    return Verdicts(market.told, taken_row, choice.worst_usd_per_h)


def _weight(limits: Limits, usual: Usual | None, row: Told) -> float:
    known = is_plausible(limits, usual, row.value) or row.run >= limits.confirm_values
    weight = 1.0 if known else _WEIGHT_IMPLAUSIBLE
    return weight * (_WEIGHT_STUCK if row.same >= STUCK_INTERVALS else 1.0)


def _alone(
    limits: Limits, market: MarketState, row: Told, curve: Sequence[Step], now_ns: int
) -> Verdicts:
    """Judge a price that no other feed speaks to."""
    held = market.price_usd_per_mwh
    low, high = band(limits, market.usual)
    sound = ""
    if held is None or now_ns - held.as_of_ns > limits.price_stale_s * NS_PER_S:
        sound = "nothing fresh to compare with"
    elif low <= row.value <= high or agree(limits, held.value, row.value):
        sound = "plausible by the market's history"
    elif row.run >= limits.confirm_values:
        sound = f"has stood for {row.run} intervals"
    if sound or held is None:
        row = replace(row, verdict=OK, reason=sound)
        return Verdicts(put_told(market, row), row, 0.0)
    real = Claim(row.feed, row.value, SPIKE_REAL)
    choice = choose(curve, [real, Claim("", held.value, 1.0 - SPIKE_REAL)])
    acted = choice.claim.feed == row.feed
    verdict = "acted on at once" if acted else f"held, {held.value:g} stands"
    reason = (
        f"{row.value:g} is beyond the usual {low:.0f}..{high:.0f} and not confirmed: {verdict}; "
        f"expected loss {choice.expected_usd_per_h:.2f}, at most "
        f"{choice.worst_usd_per_h:.2f} USD/h"
    )
    row = replace(row, verdict=ACTED if acted else HELD, reason=reason)
    return Verdicts(put_told(market, row), row if acted else None, choice.worst_usd_per_h)
