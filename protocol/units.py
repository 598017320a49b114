"""Checked field types and the only unit conversions.

msgspec accepts "NaN" as a Decimal, a naive datetime and a foreign offset, so each money or time
field of a wire Struct is checked in its ``__post_init__`` with the functions here.
"""

import math
import re
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

UtcDatetime = Annotated[datetime, Meta(tz=True)]
# What the stores of both ends hold; MessagePack's integers go on to twice that.
INT_MAX = 2**63 - 1
Count = Annotated[int, Meta(ge=0, le=INT_MAX)]
Positive = Annotated[int, Meta(ge=1, le=INT_MAX)]
# Of a pattern's "$" alone Python would let a line's end follow: it may not.
Ident = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,126}$(?!\n)")]
SiteName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$(?!\n)")]
Text = Annotated[str, Meta(max_length=2_000)]
Digest = Annotated[bytes, Meta(min_length=16, max_length=16)]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MS_MIN = (datetime.min.replace(tzinfo=UTC) - EPOCH) // _MILLISECOND
_MS_MAX = (datetime.max.replace(tzinfo=UTC) - EPOCH) // _MILLISECOND
URL_CHARS_MAX = 500
# Leaves room for what is added to a base.
BASE_URL_CHARS_MAX = 300
CENT = Decimal("0.01")
# Nine places and fifteen digits before them hold any amount of a site; more is an attack or a bug.
_USD_EXPONENT_MIN = -9
_USD_LIMIT = Decimal(10) ** 15
_PLAIN = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def check_utc(field: str, value: datetime) -> None:
    """Refuse a naive time or one with an offset other than zero.

    Raises:
        ValueError: naming the field.
    """
    if value.tzinfo is None or value.utcoffset() != timedelta(0):
        msg = f"{field} must be an aware UTC time"
        raise ValueError(msg)


def check_usd(field: str, value: Decimal) -> None:
    """Refuse NaN, infinities, more than nine places and absurd amounts.

    Raises:
        ValueError: naming the field.
    """
    if not value.is_finite():
        msg = f"{field} must be a finite amount"
        raise ValueError(msg)
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < _USD_EXPONENT_MIN or abs(value) >= _USD_LIMIT:
        msg = f"{field} must have at most 9 places and be below 10^15"
        raise ValueError(msg)


def check_base_url(field: str, value: str, chars_max: int = BASE_URL_CHARS_MAX) -> None:
    """Refuse what is no address to which a path can be added.

    Args:
        chars_max: longest one.

    Raises:
        ValueError: naming the field.
    """
    msg = f"{field} must be http(s)://HOST[:PORT][/PATH], without a slash at its end"
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as exc:
        raise ValueError(msg) from exc
    plain = value.isascii() and value.isprintable() and not any(mark in value for mark in ' "<>?#@')
    whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and port != 0
    if not (plain and whole) or value.endswith("/") or len(value) > chars_max:
        raise ValueError(msg)


def check_finite(field: str, value: float | None) -> None:
    """Refuse NaN and infinities in a measured value; None stays unknown.

    Raises:
        ValueError: naming the field.
    """
    if value is not None and not math.isfinite(value):
        msg = f"{field} must be finite"
        raise ValueError(msg)


def parse_usd(field: str, text: str) -> Decimal:
    """Read an amount from text; floats never become money.

    Digits as people write them only: ``Decimal`` would take 1_0 for ten, too.

    Raises:
        ValueError: naming the field.
    """
    if _PLAIN.fullmatch(text) is None:
        msg = f"{field} must be a decimal number"
        raise ValueError(msg)
    value = Decimal(text)
    check_usd(field, value)
    return value


def usd_text(value: Decimal) -> str:
    """Write an amount as it is read: digits, and no exponent however small it is."""
    return format(value, "f")


def round_to_cent(amount_usd: Decimal) -> Decimal:
    """Quantise an invoice line; the one place where money is rounded (half up, as invoices do)."""
    return amount_usd.quantize(CENT, rounding=ROUND_HALF_UP)


def to_ms(at: datetime) -> int:
    """Give the whole milliseconds since 1970 of an aware time (floor).

    An offset can put a time outside the years 1..9999 of UTC, where none can be read back: it
    counts as the nearest one inside.
    """
    return min(max((at - EPOCH) // _MILLISECOND, _MS_MIN), _MS_MAX)


def from_ms(at_ms: int) -> datetime:
    """Give the aware UTC time of whole milliseconds since 1970."""
    return EPOCH + timedelta(milliseconds=at_ms)


def minute_floor(at: datetime) -> datetime:
    """Give the start of the UTC minute that holds ``at``."""
    return at.replace(second=0, microsecond=0)
