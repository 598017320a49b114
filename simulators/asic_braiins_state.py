"""What Braiins OS keeps of one miner, and how its changes unfold."""

from __future__ import annotations

from simulators.asic_dialect import Unit
from simulators.asic_models import WorkMode
from simulators.asic_physics import Step
from simulators.asic_pools import Pools

STOPPED = 1
NORMAL = 2
PAUSED = 3
TUNER_STABLE = 2
TUNER_TUNING = 3

# True seconds. A pause switches the boards off at once; resuming ramps them without a boot.
PAUSE = Step(stop_s=1.0, fall_s=3.0, boot_s=0.0, rise_s=0.0, warm_up_s=0.0)
RESUME = Step(stop_s=0.0, fall_s=0.0, boot_s=20.0, rise_s=15.0, warm_up_s=60.0)
RESTART = Step(stop_s=1.0, fall_s=3.0, boot_s=60.0, rise_s=20.0, warm_up_s=120.0)
BOOT = Step(
    stop_s=0.0, fall_s=2.0, boot_s=90.0, rise_s=20.0, warm_up_s=150.0, api_away_s=60.0,
    web_away_s=45.0,
)  # fmt: skip
TUNE_S = 240.0
TARGET_SHARE_MIN = 0.3
TARGET_SHARE_MAX = 1.2


class Memory:
    """What the firmware keeps of one miner.

    Args:
        pools: Its pools.
        unit: The miner.
    """

    __slots__ = ("blinking", "pools", "started_ns", "status", "target_w", "tokens", "tuned_ns")

    def __init__(self, pools: Pools, unit: Unit) -> None:
        self.pools = pools
        self.status = PAUSED if unit.mode is WorkMode.SLEEP else NORMAL
        self.target_w = round(unit.who.model.power_w)
        self.blinking = False
        self.tokens: dict[str, int] = {}
        self.tuned_ns = unit.now_ns
        self.started_ns = unit.state.started_ns or unit.now_ns

    def pause(self, unit: Unit) -> bool:
        """Pause; give whether it was so already."""
        was = self.status == PAUSED
        if not was and self.status == NORMAL:
            self.status = PAUSED
            unit.change(WorkMode.SLEEP, PAUSE)
        return was

    def resume(self, unit: Unit) -> bool:
        """Resume; give whether it mined already. A stopped program is not started by it."""
        was = self.status == NORMAL
        if self.status == PAUSED:
            self._work(unit, RESUME)
        return was

    def stop(self, unit: Unit) -> bool:
        """Stop the mining program; give whether it was stopped."""
        was, self.status = self.status == STOPPED, STOPPED
        if not was:
            unit.change(WorkMode.SLEEP, PAUSE)
        return was

    def start(self, unit: Unit) -> bool:
        """Start the mining program; give whether it ran."""
        was = self.status != STOPPED
        if not was:
            self.started_ns = unit.now_ns
            self._work(unit, RESTART)
        return was

    def restart(self, unit: Unit) -> bool:
        """Start the mining program anew; give whether it ran."""
        was = self.status != STOPPED
        self.started_ns = unit.now_ns
        self._work(unit, RESTART)
        return was

    def boot(self, unit: Unit) -> None:
        """Reboot the control board; tokens and a pause do not outlive it."""
        self.tokens.clear()
        self.started_ns = unit.now_ns
        self._work(unit, BOOT)

    def aim(self, unit: Unit, target_w: int) -> None:
        """Follow another power target; the tuner needs minutes."""
        self.target_w = target_w
        self.tuned_ns = unit.now_ns + round(TUNE_S / unit.who.timing.factor * 1e9)
        unit.trim(target_w / unit.who.model.power_w, TUNE_S)

    def tuner_state(self, unit: Unit) -> int:
        """Give the tuner's state, by the vendor's number."""
        return TUNER_TUNING if unit.now_ns < self.tuned_ns else TUNER_STABLE

    def uptime_s(self, unit: Unit) -> int:
        """Give the seconds for which the mining program runs; 0 = it does not."""
        if self.status == STOPPED:
            return 0
        return max(0, unit.now_ns - self.started_ns) // 10**9

    def _work(self, unit: Unit, step: Step) -> None:
        self.status = NORMAL
        unit.change(WorkMode.NORMAL, step, hashing=bool(self.pools.rows))


def memory_of(unit: Unit) -> Memory:
    """Give what the firmware keeps of a miner."""
    assert isinstance(unit.memory, Memory)
    return unit.memory


def limits_w(unit: Unit) -> tuple[int, int]:
    """Give the least and the greatest power target."""
    full_w = unit.who.model.power_w
    return round(full_w * TARGET_SHARE_MIN), round(full_w * TARGET_SHARE_MAX)
