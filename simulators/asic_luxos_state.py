"""What LuxOS keeps of one miner: session, profiles, curtailment; and how its changes unfold."""

from __future__ import annotations

import hashlib

import msgspec

from simulators.asic_dialect import Unit
from simulators.asic_models import WorkMode
from simulators.asic_physics import LIMIT_EXPONENT, Step
from simulators.asic_pools import Pools

SESSION_LIFE_S = 60
STEP_MIN = -12
STEP_MAX = 2
STEP_SHARE = 0.05

# True seconds. Sleeping switches boards and supply off; waking and another profile ramp the boards
# as a start does.
SLEEP = Step(stop_s=3.0, fall_s=8.0, boot_s=0.0, rise_s=0.0, warm_up_s=0.0)
WAKE = Step(stop_s=0.0, fall_s=0.0, boot_s=60.0, rise_s=40.0, warm_up_s=200.0)
RAMP = Step(stop_s=2.0, fall_s=4.0, boot_s=30.0, rise_s=40.0, warm_up_s=120.0)
RESET = Step(stop_s=0.0, fall_s=3.0, boot_s=60.0, rise_s=40.0, warm_up_s=200.0, api_away_s=15.0)
BOOT = msgspec.structs.replace(RESET, boot_s=110.0, api_away_s=90.0, web_away_s=90.0)


class Profile(msgspec.Struct, frozen=True):
    """One profile: a step of frequency above or below the normal one."""

    name: str
    step: int
    frequency_mhz: int
    power_w: int
    hashrate_ths: float

    @property
    def share(self) -> float:
        """Give the share of the normal profile's power."""
        return share_of(self.step)


class Memory:
    """What the firmware keeps of one miner.

    Args:
        pools: Its pools.
        unit: The miner.
        secret: Seed of its sessions.
    """

    __slots__ = (
        "_secret", "_session", "_session_ns", "_sessions", "is_atm_on", "is_curtailed", "pools",
        "profile", "red_led", "started_ns",
    )  # fmt: skip

    def __init__(self, pools: Pools, unit: Unit, secret: int) -> None:
        self.pools = pools
        self.is_curtailed = unit.mode is WorkMode.SLEEP
        self.is_atm_on = True
        self.red_led = "auto"
        self.profile = next(p for p in profiles_of(unit) if p.step == 0)
        self.started_ns = unit.state.started_ns or unit.now_ns
        self._secret = secret
        self._sessions = 0
        self._session = ""
        self._session_ns = 0

    def session(self, unit: Unit) -> str:
        """Give the session in force; it ends a minute after its last use."""
        if unit.now_ns - self._session_ns > SESSION_LIFE_S * 10**9:
            self._session = ""
        return self._session

    def log_on(self, unit: Unit) -> str | None:
        """Begin a session; `None` while there is one."""
        if self.session(unit):
            return None
        self._sessions += 1
        seed = f"{self._secret} {unit.who.index} {self._sessions}"
        self._session = hashlib.sha256(seed.encode()).hexdigest()[:8]
        self._session_ns = unit.now_ns
        return self._session

    def holds(self, unit: Unit, session: str) -> bool:
        """Tell whether this is the session in force, and renew it."""
        if not session or session != self.session(unit):
            return False
        self._session_ns = unit.now_ns
        return True

    def log_off(self) -> None:
        """End the session."""
        self._session = ""

    def curtail(self, unit: Unit, *, asleep: bool) -> None:
        """Go to sleep, or wake into the profile in force."""
        if asleep != self.is_curtailed:
            self.is_curtailed = asleep
            self.work(unit, SLEEP if asleep else WAKE)

    def take(self, unit: Unit, profile: Profile) -> None:
        """Take another profile; asleep it counts from the next waking on."""
        self.profile = profile
        self.work(unit, RAMP)

    def work(self, unit: Unit, step: Step) -> None:
        """Go on as configured, by way of a step; curtailment outlives a reboot."""
        if step in (RESET, BOOT):
            self.started_ns = unit.now_ns
            self.log_off()
        mode = WorkMode.SLEEP if self.is_curtailed else WorkMode.NORMAL
        if mode is WorkMode.SLEEP and unit.mode is WorkMode.SLEEP:
            step = msgspec.structs.replace(step, stop_s=0.0, fall_s=0.0)
        unit.change(mode, step, share=self.profile.share, hashing=bool(self.pools.rows))

    def uptime_s(self, unit: Unit) -> int:
        """Give the seconds for which the mining program runs."""
        return max(0, unit.now_ns - self.started_ns) // 10**9


def memory_of(unit: Unit) -> Memory:
    """Give what the firmware keeps of a miner."""
    assert isinstance(unit.memory, Memory)
    return unit.memory


def share_of(step: int) -> float:
    """Give the share of the normal profile's power that a step draws."""
    return 1.0 + STEP_SHARE * step


def profiles_of(unit: Unit) -> tuple[Profile, ...]:
    """Give the profiles of a machine, the lowest first; the normal one is called `default`."""
    model = unit.who.model
    return tuple(
        Profile(
            "default" if step == 0 else f"{model.frequency_mhz + 25 * step}MHz",
            step,
            model.frequency_mhz + 25 * step,
            round(model.power_w * share_of(step)),
            round(model.hashrate_ths * share_of(step) ** LIMIT_EXPONENT, 1),
        )
        for step in range(STEP_MIN, STEP_MAX + 1)
    )
