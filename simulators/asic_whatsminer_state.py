"""What a WhatsMiner keeps of itself, whichever API it speaks, and how its changes unfold."""

from __future__ import annotations

import hashlib

from simulators.asic_dialect import Unit
from simulators.asic_models import MODE_SHARE, WorkMode
from simulators.asic_physics import Step
from simulators.asic_pools import Pool

LIMIT_NONE_W = 99_999
POOLS_MAX = 3
TOKENS_MAX = 32
TOKEN_LIFE_S = 30 * 60
# Share of the settled rate from which the firmware calls its rate stable.
STABLE_SHARE = 0.95
TRIM_S = 2.0
MODES = {"low": WorkMode.LOW, "normal": WorkMode.NORMAL, "high": WorkMode.HIGH}
MODE_NAMES = {mode: name for name, mode in MODES.items()}

# True seconds. btminer restarts by itself and runs its frequencies up for minutes.
STOP = Step(stop_s=2.0, fall_s=8.0, boot_s=0.0, rise_s=0.0, warm_up_s=0.0)
START = Step(stop_s=0.0, fall_s=0.0, boot_s=90.0, rise_s=60.0, warm_up_s=400.0)
RESTART = Step(stop_s=1.0, fall_s=4.0, boot_s=90.0, rise_s=60.0, warm_up_s=400.0)
REBOOT = Step(stop_s=0.0, fall_s=2.0, boot_s=160.0, rise_s=60.0, warm_up_s=470.0, api_away_s=60.0)


class Token:
    """One token that `get_token` gave out."""

    __slots__ = ("key", "sign", "until_s")

    def __init__(self, key: bytes, sign: str, until_s: int) -> None:
        self.key = key
        self.sign = sign
        self.until_s = until_s


class Memory:
    """The configuration of one miner, and the tokens that are out.

    Args:
        unit: The miner.
    """

    __slots__ = (
        "booted_ns",
        "given",
        "led",
        "limit_w",
        "mode",
        "off",
        "percent",
        "pools",
        "tokens",
    )

    def __init__(self, unit: Unit) -> None:
        self.off = unit.mode is WorkMode.SLEEP
        self.mode = WorkMode.NORMAL if self.off else unit.mode
        self.limit_w = LIMIT_NONE_W
        self.percent = 100
        self.led = "auto"
        self.pools = [
            Pool("stratum+tcp://pool.example.com:3333", f"site.{unit.who.index:05d}", "x")
        ]
        self.tokens: list[Token] = []
        self.given = 0
        self.booted_ns = unit.state.started_ns or unit.now_ns

    def share(self, unit: Unit) -> float:
        """Return the share of the mode's power that limit and percent leave."""
        rated_w = unit.who.model.power_w * MODE_SHARE[self.mode][1]
        return min(1.0, self.percent / 100, self.limit_w / rated_w)

    def work(self, unit: Unit, step: Step) -> None:
        """Go on as configured, by way of a step."""
        if step is REBOOT:
            self.booted_ns = unit.now_ns
            self.tokens.clear()
        mode = WorkMode.SLEEP if self.off else self.mode
        unit.change(mode, step, share=self.share(unit), hashing=bool(self.pools))

    def switch(self, unit: Unit, *, off: bool) -> None:
        """Stop or start the mining service; what is so already stays so."""
        if off != self.off:
            self.off = off
            self.work(unit, STOP if off else START)

    def take_mode(self, unit: Unit, mode: WorkMode) -> None:
        """Take a power mode; a running btminer restarts when it is another one."""
        if mode is not self.mode:
            self.mode = mode
            self._restart(unit)

    def take_limit(self, unit: Unit, limit_w: int) -> None:
        """Take a power limit, which restarts btminer."""
        self.limit_w = limit_w
        self._restart(unit)

    def take_percent(self, unit: Unit, percent: int) -> None:
        """Take a share of the power, within seconds and without a restart."""
        self.percent = percent
        if not self.off:
            unit.trim(self.share(unit), TRIM_S)

    def take_pools(self, unit: Unit, pools: list[Pool]) -> None:
        """Take other pools, which restarts btminer."""
        self.pools = pools
        self._restart(unit)

    def restart(self, unit: Unit) -> None:
        """Restart btminer; one that is off starts."""
        self.off = False
        self._restart(unit)

    def uptime_s(self, unit: Unit) -> int:
        """Return the seconds since the control board booted."""
        return max(0, unit.now_ns - self.booted_ns) // 10**9

    def is_stable(self, unit: Unit) -> bool:
        """Tell whether the rate is what the settings give."""
        wanted_ths, _ = unit.who.target(self.mode, self.share(unit))
        return unit.seen().hashrate_ths >= STABLE_SHARE * wanted_ths

    def _restart(self, unit: Unit) -> None:
        if not self.off:
            self.work(unit, RESTART)


def memory_of(unit: Unit) -> Memory:
    """Return what the firmware keeps of a miner."""
    assert isinstance(unit.memory, Memory)
    return unit.memory


def salt_of(unit: Unit, secret: int, what: str) -> str:
    """Return eight characters that a client cannot guess and a second run repeats."""
    seed = f"{secret} {unit.who.index} {what}"
    return hashlib.sha256(seed.encode()).hexdigest()[:8]


def whole(text: object, low: int, high: int) -> int | None:
    """Read a text of digits within limits; None where it is something else."""
    if not (isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 6):
        return None
    return int(text) if low <= int(text) <= high else None
