"""Physics of one miner: hash rate, power, heat and energy, exact at any instant.

Nothing is stepped. Power and hash rate are courses, straight lines between knots, laid down once
when the mode changes; value and integral at any later time are closed forms. So a miner that nobody
asks costs nothing, energy is exact however seldom it is read, and the answer does not depend on who
asked before. Noise is a function of (seed, miner, channel, time) for the same reason.
"""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec

from simulators.asic_models import MODE_SHARE, MinerModel, Timing, WorkMode

AMBIENT_C = 25.0
# Rise over the inlet air at rated power, from recorded S21 answers: chip 59 C in, 73 C out.
RISE_C_INLET = 34.0
RISE_C_OUTLET = 48.0
# Where firmwares stop: chips beyond 100 C at the outlet, as a share of the rise at rated power.
RISE_OVERHEATED = 1.65
HASHES_PER_SHARE = 2.0**32 * 262_144
NOISE_BUCKET_NS = 5 * 10**9
RATE_NOISE = 0.01
LIMIT_EXPONENT = 0.8
POWER_NOISE = 0.005
_MASK = (1 << 64) - 1


class Course(msgspec.Struct, frozen=True):
    """A value over time: straight between its knots, constant before the first and after the last.

    Args:
        knots: Pairs of (time in ns, value), in order of time.
    """

    knots: tuple[tuple[int, float], ...]

    def at(self, now_ns: int) -> float:
        """Return the value at a time."""
        knots = self.knots
        if now_ns >= knots[-1][0]:
            return knots[-1][1]
        if now_ns <= knots[0][0]:
            return knots[0][1]
        for (from_ns, low), (to_ns, high) in pairwise(knots):
            if now_ns < to_ns:
                return low + (high - low) * (now_ns - from_ns) / (to_ns - from_ns)
        return knots[-1][1]

    def integral(self, from_ns: int, to_ns: int) -> float:
        """Return the integral over a span, in value x seconds."""
        cuts = [from_ns, *(t for t, _ in self.knots if from_ns < t < to_ns), to_ns]
        area = sum((self.at(a) + self.at(b)) * (b - a) for a, b in pairwise(cuts))
        return area / 2e9


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """How one change unfolds, in true seconds; a fleet's time scale divides them.

    Args:
        stop_s: For which it hashes on after it was told.
        fall_s: From its power to sleep power.
        boot_s: From the start to the first hash.
        rise_s: From sleep power to its new power, after the boot.
        warm_up_s: Seconds of full-rate hashing that a start costs.
        api_away_s, web_away_s: For which the mining program's API, and the web pages, are away.
    """

    stop_s: float
    fall_s: float
    boot_s: float
    rise_s: float
    warm_up_s: float
    api_away_s: float = 0.0
    web_away_s: float = 0.0

    def scaled(self, factor: float) -> Step:
        """Return the same step, `factor` times as fast."""
        return Step(**{name: getattr(self, name) / factor for name in self.__struct_fields__})


class MinerState(msgspec.Struct, frozen=True, kw_only=True):
    """What a miner does since its last change.

    Args:
        mode: The mode that the machine really follows.
        since_ns: Time of the last change.
        started_ns: Start of the mining program; None while it sleeps or is without power.
        api_back_ns: Until then port 4028 is away.
        web_back_ns: Until then the web pages are away too.
        energy_j: Energy drawn up to `since_ns`.
        share: Share of the mode's power that a limit leaves.
    """

    mode: WorkMode
    since_ns: int
    started_ns: int | None
    api_back_ns: int
    web_back_ns: int
    power_w: Course
    hashrate_ths: Course
    chip_rise: float
    energy_j: float
    share: float = 1.0


class MinerTraits(msgspec.Struct, frozen=True, kw_only=True):
    """What makes one miner differ from its nameplate: production spread, by seed.

    The power share is at most 1: a nameplate is the maker's upper bound, and caps are kept with it.
    """

    model: MinerModel
    timing: Timing
    seed: int
    index: int
    rate_share: float
    power_share: float

    def target(self, mode: WorkMode, share: float = 1.0) -> tuple[float, float]:
        """Return (hash rate in TH/s, power in W) that the miner settles at in a mode.

        Args:
            mode: Of work.
            share: Share of the mode's power that a limit leaves.
        """
        rate_share, power_share = MODE_SHARE[mode]
        # Less power is more efficient: 80 % of it keeps about 84 % of the rate (an assumption).
        rate_share, power_share = rate_share * share**LIMIT_EXPONENT, power_share * share
        if mode is WorkMode.SLEEP:
            return 0.0, self.model.power_w_asleep
        return (
            self.model.hashrate_ths * rate_share * self.rate_share,
            self.model.power_w * power_share * self.power_share,
        )


def traits(model: MinerModel, timing: Timing, seed: int, index: int) -> MinerTraits:
    """Return the traits of miner number `index` of a fleet."""
    return MinerTraits(
        model=model,
        timing=timing,
        seed=seed,
        index=index,
        rate_share=1.0 + 0.01 * noise(seed, index, "rate-spread", 0),
        power_share=1.0 - 0.01 * abs(noise(seed, index, "power-spread", 0)),
    )


def steady(who: MinerTraits, mode: WorkMode, now_ns: int, age_s: float) -> MinerState:
    """Return a miner that has been in `mode` for `age_s` seconds."""
    rate_ths, power_w = who.target(mode)
    return MinerState(
        mode=mode,
        since_ns=now_ns,
        started_ns=None if mode is WorkMode.SLEEP else now_ns - round(age_s * 1e9),
        api_back_ns=now_ns,
        web_back_ns=now_ns,
        power_w=Course(((now_ns, power_w),)),
        hashrate_ths=Course(((now_ns, rate_ths),)),
        chip_rise=power_w / who.model.power_w,
        energy_j=0.0,
    )


def reload_step(timing: Timing, *, reboot: bool = False) -> Step:
    """Return how Bitmain's stock firmware reloads its configuration, or reboots.

    A reboot stops hashing at once, and the web is away as well.
    """
    back_s = timing.boot_s if reboot else timing.reload_s
    step = Step(
        stop_s=0.0 if reboot else timing.stop_s,
        fall_s=timing.fall_s,
        boot_s=timing.boot_s,
        rise_s=timing.rise_s,
        warm_up_s=timing.warm_up_s,
        api_away_s=back_s,
        web_away_s=back_s if reboot else 0.0,
    )
    # A step is in true seconds, the timing of a fleet is scaled already.
    return step.scaled(1.0 / timing.factor)


def change(
    who: MinerTraits,
    state: MinerState,
    mode: WorkMode,
    now_ns: int,
    step: Step,
    *,
    share: float | None = None,
    hashing: bool = True,
) -> MinerState:
    """Return the state after the miner stops and goes into `mode`.

    The mining program restarts even when the mode stays the same.

    Args:
        step: How it unfolds.
        share: Share of the mode's power; `None` = as before.
        hashing: False when no pool is configured: the program runs, and finds no work.
    """
    step = step.scaled(who.timing.factor)
    share = state.share if share is None else share
    stop_ns = now_ns + round(step.stop_s * 1e9)
    down_ns = stop_ns + round(step.fall_s * 1e9)
    power_knots = [(now_ns, state.power_w.at(now_ns)), (stop_ns, state.power_w.at(stop_ns))]
    rate_knots = [
        (now_ns, state.hashrate_ths.at(now_ns)),
        (stop_ns, state.hashrate_ths.at(stop_ns)),
    ]
    power_knots.append((down_ns, who.model.power_w_asleep))
    rate_knots.append((down_ns, 0.0))
    rate_ths, power_w = who.target(mode, share)
    if mode is not WorkMode.SLEEP and hashing:
        up_ns = down_ns + round(step.boot_s * 1e9)
        lost_s = max(0.0, step.warm_up_s - step.boot_s)
        power_knots += [(up_ns, who.model.power_w_asleep)]
        power_knots += [(up_ns + round(step.rise_s * 1e9), power_w)]
        rate_knots += [(up_ns, 0.0), (up_ns + round(2 * lost_s * 1e9), rate_ths)]
    return MinerState(
        mode=mode,
        since_ns=now_ns,
        started_ns=None if mode is WorkMode.SLEEP else down_ns,
        api_back_ns=now_ns + round(step.api_away_s * 1e9),
        web_back_ns=max(state.web_back_ns, now_ns + round(step.web_away_s * 1e9)),
        power_w=Course(_in_order(power_knots)),
        hashrate_ths=Course(_in_order(rate_knots)),
        chip_rise=chip_rise(who, state, now_ns),
        energy_j=energy_j(state, now_ns),
        share=share,
    )


def trim(
    who: MinerTraits, state: MinerState, share: float, now_ns: int, over_s: float
) -> MinerState:
    """Return the state after the power goes to another share of the mode's, without a stop.

    Args:
        share: Share of the mode's power.
        over_s: True seconds until it is there.
    """
    there_ns = now_ns + round(over_s / who.timing.factor * 1e9)
    rate_ths, power_w = who.target(state.mode, share)
    return msgspec.structs.replace(
        state,
        since_ns=now_ns,
        power_w=Course(_in_order([(now_ns, state.power_w.at(now_ns)), (there_ns, power_w)])),
        hashrate_ths=Course(
            _in_order([(now_ns, state.hashrate_ths.at(now_ns)), (there_ns, rate_ths)])
        ),
        chip_rise=chip_rise(who, state, now_ns),
        energy_j=energy_j(state, now_ns),
        share=share,
    )


def cut_power(who: MinerTraits, state: MinerState, now_ns: int) -> MinerState:
    """Return the state after the mains failed; `change` brings it back."""
    never_ns = 2**62
    return MinerState(
        mode=state.mode,
        since_ns=now_ns,
        started_ns=None,
        api_back_ns=never_ns,
        web_back_ns=never_ns,
        power_w=Course(((now_ns, 0.0),)),
        hashrate_ths=Course(((now_ns, 0.0),)),
        chip_rise=chip_rise(who, state, now_ns),
        energy_j=energy_j(state, now_ns),
    )


def overheat(who: MinerTraits, state: MinerState, now_ns: int) -> MinerState:
    """Return the state after the firmware stopped hashing for heat, its mode unchanged."""
    step = Step(stop_s=0.0, fall_s=who.timing.fall_s, boot_s=0.0, rise_s=0.0, warm_up_s=0.0)
    stopped = change(who, state, state.mode, now_ns, step.scaled(1.0 / who.timing.factor),
                     hashing=False)  # fmt: skip
    return msgspec.structs.replace(
        stopped, chip_rise=RISE_OVERHEATED, started_ns=state.started_ns or now_ns
    )


def energy_j(state: MinerState, now_ns: int) -> float:
    """Return the true energy drawn since the fleet's start, in joules."""
    return state.energy_j + state.power_w.integral(state.since_ns, now_ns)


def chip_rise(who: MinerTraits, state: MinerState, now_ns: int) -> float:
    """Return the chips' rise over the inlet air, as a share of that at rated power."""
    settled = state.power_w.at(now_ns) / who.model.power_w
    age_s = max(0.0, (now_ns - state.since_ns) / 1e9)
    return settled + (state.chip_rise - settled) * math.exp(-age_s / who.timing.cooling_s)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the miner's own sensors say at one moment.

    Args:
        asleep: The mining program does not run.
        hashrate_ths_av: Mean since the program's start.
        hashrate_ths_30m: Mean of the last half hour, or since the start.
    """

    asleep: bool
    elapsed_s: int
    hashrate_ths: float
    hashrate_ths_av: float
    hashrate_ths_30m: float
    accepted: int
    power_w: float
    chip_c_inlet: float
    chip_c_outlet: float
    fan_rpm: int


def snapshot(who: MinerTraits, state: MinerState, now_ns: int) -> Snapshot:
    """Return the sensors' values: the truth, with the noise of the sensor."""
    bucket = now_ns // NOISE_BUCKET_NS
    rate_noise = 1.0 + RATE_NOISE * noise(who.seed, who.index, "rate", bucket)
    power_noise = 1.0 + POWER_NOISE * noise(who.seed, who.index, "power", bucket)
    started_ns = state.started_ns
    asleep = started_ns is None or now_ns < started_ns
    total = mean_30m = 0.0
    elapsed_ns = 0
    if started_ns is not None and not asleep:
        elapsed_ns = now_ns - started_ns
        total = state.hashrate_ths.integral(started_ns, now_ns)
        window_ns = min(elapsed_ns, 1800 * 10**9)
        window = state.hashrate_ths.integral(now_ns - window_ns, now_ns)
        mean_30m = window / max(window_ns / 1e9, 1.0)
    rise = chip_rise(who, state, now_ns)
    outlet_c = AMBIENT_C + RISE_C_OUTLET * rise
    return Snapshot(
        asleep=asleep,
        elapsed_s=elapsed_ns // 10**9,
        hashrate_ths=state.hashrate_ths.at(now_ns) * rate_noise,
        hashrate_ths_av=total / max(elapsed_ns / 1e9, 1.0),
        hashrate_ths_30m=mean_30m,
        accepted=int(total * 1e12 / HASHES_PER_SHARE),
        power_w=state.power_w.at(now_ns) * power_noise,
        chip_c_inlet=AMBIENT_C + RISE_C_INLET * rise,
        chip_c_outlet=outlet_c,
        fan_rpm=0 if rise < 0.05 else min(7000, round((1200 + 65 * (outlet_c - 15)) / 60) * 60),
    )


def noise(seed: int, index: int, channel: str, bucket: int) -> float:
    """Return a repeatable number of mean 0 and standard deviation 1, within +-3.5.

    The sum of four uniforms stands in for a Gaussian; the mixing is that of splitmix64 (Steele,
    Lea, Flood 2014), which needs no state.
    """
    key = seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 + bucket * 0x8CB92BA72F3D8DD7
    key += int.from_bytes(channel.encode()[:8], "little")
    z = key & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    z ^= z >> 31
    total = (z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48)
    # Four uniforms on 0..65535: mean 131070, variance 4 x 65536^2 / 12.
    return (total - 131_070) / 37_837.2


def _in_order(knots: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Drop knots that fall on the same instant as their successor, so that no span is empty."""
    kept = [a for a, b in pairwise(knots) if a[0] < b[0]]
    return (*kept, knots[-1])
