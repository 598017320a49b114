"""Energy from the cards' mJ counters: differences only, also over a reload of the driver. Pure.

A counter runs since the driver was loaded. When it is lower than before, the driver was loaded
anew: what it shows has run since, and what ran between the last reading and the reload is not
known and not billed. A difference that the card could not have drawn in the time is not counted
either: that is a reload that nobody saw, or another card.
"""

from msgspec import Struct, structs

from firmware_bridges.nvml.samples import GpuSample

NS_PER_S = 1_000_000_000
# Boards exceed their power limit for moments; a counter is read at the end of its own interval.
_HEADROOM = 1.25
_HEADROOM_S = 1.0
# No card draws as much; for one that does not tell its limit.
_ANY_CARD_W = 3_000.0


class EnergyMeter(Struct, frozen=True, kw_only=True):
    """What one card has drawn since we began to look.

    Args:
        total_mj: sum of the differences; never falls. counter_mj: last seen of the card's own.
        at_ns: when that was. resets: times the counter began anew.
        refused: differences that were not counted because no card could draw them.
    """

    total_mj: int = 0
    counter_mj: int | None = None
    at_ns: int | None = None
    resets: int = 0
    refused: int = 0


def metered(meter: EnergyMeter, sample: GpuSample) -> EnergyMeter:
    """Give the meter after one more sample; a sample without a counter changes nothing.

    Raises:
        ValueError: the sample is older than the one before.
    """
    counter_mj = sample.energy_mj
    if counter_mj is None:
        return meter
    if meter.counter_mj is None or meter.at_ns is None:
        return structs.replace(meter, counter_mj=counter_mj, at_ns=sample.at_ns)
    if sample.at_ns < meter.at_ns:
        raise ValueError(f"{sample.uuid}: a sample of {sample.at_ns} ns after {meter.at_ns} ns")
    began_anew = counter_mj < meter.counter_mj
    drawn_mj = counter_mj if began_anew else counter_mj - meter.counter_mj
    believed = _is_possible(drawn_mj, sample.at_ns - meter.at_ns, sample.info.power_w_max)
    return EnergyMeter(
        total_mj=meter.total_mj + (drawn_mj if believed else 0),
        counter_mj=counter_mj,
        at_ns=sample.at_ns,
        resets=meter.resets + began_anew,
        refused=meter.refused + (not believed),
    )


def _is_possible(drawn_mj: int, elapsed_ns: int, power_w_max: float | None) -> bool:
    most_mj = (
        (power_w_max or _ANY_CARD_W) * _HEADROOM * (elapsed_ns / NS_PER_S + _HEADROOM_S) * 1_000
    )
    return drawn_mj <= most_mj
