"""What the helper is asked and what it answers: frozen values of bounded length and range. Pure.

Five settings and no more: power limit, locked clocks of GPU and memory with their resets, and
persistence. Nothing here names a file, a program, or a function of NVML.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, Struct

from protocol.codec import Message, encode, frame

# The longest message is an answer with its detail.
MESSAGE_BYTES_MAX: Final = 4_096

Uuid = Annotated[str, Meta(pattern=r"^GPU-[A-Za-z0-9-]{1,90}$")]
Watts = Annotated[float, Meta(ge=1.0, le=10_000.0)]
Megahertz = Annotated[int, Meta(ge=0, le=10_000)]
Detail = Annotated[str, Meta(max_length=500)]


class SetPowerLimit(Struct, frozen=True, kw_only=True, tag="power_limit"):
    """Limit a card's power."""

    uuid: Uuid
    power_w: Watts


class LockGpuClocks(Struct, frozen=True, kw_only=True, tag="lock_gpu_clocks"):
    """Keep the clocks of a GPU within a range."""

    uuid: Uuid
    mhz_min: Megahertz
    mhz_max: Megahertz


class LockMemoryClocks(Struct, frozen=True, kw_only=True, tag="lock_memory_clocks"):
    """Keep the clocks of a card's memory within a range."""

    uuid: Uuid
    mhz_min: Megahertz
    mhz_max: Megahertz


class ResetGpuClocks(Struct, frozen=True, kw_only=True, tag="reset_gpu_clocks"):
    """Let the clocks of a GPU go."""

    uuid: Uuid


class ResetMemoryClocks(Struct, frozen=True, kw_only=True, tag="reset_memory_clocks"):
    """Let the clocks of a card's memory go."""

    uuid: Uuid


class SetPersistence(Struct, frozen=True, kw_only=True, tag="persistence"):
    """Keep the driver loaded for a card that nobody uses, or not."""

    uuid: Uuid
    on: bool


Setting = (
    SetPowerLimit
    | LockGpuClocks
    | LockMemoryClocks
    | ResetGpuClocks
    | ResetMemoryClocks
    | SetPersistence
)


class Reason(StrEnum):
    """Why nothing was changed."""

    NOT_PERMITTED = "not_permitted"
    MALFORMED = "malformed"
    NOT_CONFIGURED = "not_configured"
    OUT_OF_BOUNDS = "out_of_bounds"
    CARD_REFUSED = "card_refused"
    CARD_UNKNOWN = "card_unknown"
    CARD_LOST = "card_lost"
    HELPER_LACKS_RIGHTS = "helper_lacks_rights"
    NOT_SUPPORTED = "not_supported"
    BUSY = "busy"


class Applied(Struct, frozen=True, kw_only=True, tag="applied"):
    """The card took the setting."""


class Refused(Struct, frozen=True, kw_only=True, tag="refused"):
    """Nothing was changed.

    Args:
        low: with high, the bounds, for a value outside them.
    """

    reason: Reason
    detail: Detail = ""
    low: float | None = None
    high: float | None = None


class Unconfirmed(Struct, frozen=True, kw_only=True, tag="unconfirmed"):
    """The call did not return, or failed in a way that does not tell: the setting is unknown."""

    detail: Detail = ""


Answer = Applied | Refused | Unconfirmed

SETTING: Final[Message[Setting]] = Message(Setting, MESSAGE_BYTES_MAX)
ANSWER: Final[Message[Answer]] = Message(Answer, MESSAGE_BYTES_MAX)
PREFIX_BYTES: Final = 4


def pack(message: Setting | Answer) -> bytes:
    """Write one message with its length (u32, big-endian) in front."""
    return frame(encode(message, MESSAGE_BYTES_MAX))
