"""What a miner can be told, as values, and the port of those who tell it.

A command is *commanded*, then *acknowledged*, then *confirmed by effect* - or refused, or unknown.
An answer is no evidence: `WriteResult` says what the miner said, `effects.py` what it then did.
"""

from typing import Final, Protocol

import msgspec

from firmware_bridges.base import WorkMode, WriteResult
from firmware_bridges.rows import POWER_W_MAX

PERCENT_MIN: Final = 1
PERCENT_MAX: Final = 100
POOL_CHARS_MAX: Final = 512


class Sleep(msgspec.Struct, frozen=True, tag="sleep"):
    """Stop hashing and draw as little as the firmware can (curtail)."""


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    """Hash again.

    Args:
        mode: The mode from before the sleep; `None` = the firmware knows it, or has one only.
    """

    mode: WorkMode | None = None


class SetMode(msgspec.Struct, frozen=True, tag="set_mode"):
    """Take another power mode: low, normal or high."""

    mode: WorkMode


class SetPowerLimit(msgspec.Struct, frozen=True, tag="set_power_limit"):
    """Draw at most so many watts, 1..100,000.

    Raises:
        ValueError: Outside that.
    """

    power_w: int

    def __post_init__(self) -> None:
        """Refuse what no miner can be told."""
        if not 0 < self.power_w <= POWER_W_MAX:
            raise ValueError(f"power_w: {self.power_w} is outside 1..{POWER_W_MAX:.0f}")


class SetPowerPercent(msgspec.Struct, frozen=True, tag="set_power_percent"):
    """Draw at most this share of the full power, 1..100.

    Raises:
        ValueError: Outside that.
    """

    percent: int

    def __post_init__(self) -> None:
        """Refuse what no miner can be told."""
        if not PERCENT_MIN <= self.percent <= PERCENT_MAX:
            raise ValueError(f"percent: {self.percent} is outside {PERCENT_MIN}..{PERCENT_MAX}")


class RestartMining(msgspec.Struct, frozen=True, tag="restart"):
    """Start the mining program anew."""


class Reboot(msgspec.Struct, frozen=True, tag="reboot"):
    """Reboot the control board."""


class Locate(msgspec.Struct, frozen=True, tag="locate"):
    """Let the locate light blink, or stop it."""

    on: bool


class PoolTarget(msgspec.Struct, frozen=True, kw_only=True):
    """One pool to mine for; the password is kept out of every printed form.

    Raises:
        ValueError: A text is over 512 characters, or has control characters in it.
    """

    url: str
    user: str
    password: str = ""

    def __post_init__(self) -> None:
        """Refuse what would break a request: a miner reads 4,095 bytes of it."""
        for name in ("url", "user", "password"):
            text = getattr(self, name)
            if len(text) > POOL_CHARS_MAX or (text and not text.isprintable()):
                raise ValueError(f"pool.{name}: over {POOL_CHARS_MAX} characters, or not printable")

    def __repr__(self) -> str:
        """Hide the password."""
        return f"PoolTarget(url={self.url!r}, user={self.user!r})"


class SetPools(msgspec.Struct, frozen=True, tag="set_pools"):
    """Mine for these pools, the first one first."""

    pools: tuple[PoolTarget, ...]


Command = (
    Sleep
    | Wake
    | SetMode
    | SetPowerLimit
    | SetPowerPercent
    | RestartMining
    | Reboot
    | Locate
    | SetPools
)


class MinerControl(Protocol):
    """The writes of one miner, whatever its firmware."""

    async def mode(self) -> WorkMode | None:
        """Read what it was told to do; `sleep` also where the firmware calls it pause or stop.

        Raises:
            BridgeError: It could not be read.
        """
        ...

    async def write(self, command: Command) -> WriteResult:
        """Send one command.

        Returns:
            What the miner said. Once the request may have reached it, silence is `unknown`, and
            the caller reads before any retry.

        Raises:
            BridgeUnsupportedError: This firmware has no such command; nothing was sent.
            BridgeError: Something had to be read first and could not be; nothing was written.
        """
        ...
