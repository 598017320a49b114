"""What the answers of every WhatsMiner API share: names of models, error codes, words. Pure."""

import re
from collections.abc import Iterator
from typing import Final

from firmware_bridges.base import MinerState, WorkMode
from firmware_bridges.rows import Row, as_text

PROCESS_DOWN: Final = "btminer process is down"
# Within this time after its start a miner without a rate still looks for its frequencies: runs of
# up to half an hour are recorded (Hash Stable Cost Seconds 1538).
RUN_UP_S_MAX: Final = 1_800
MODES: Final = {"low": WorkMode.LOW, "normal": WorkMode.NORMAL, "high": WorkMode.HIGH}

# Series, then the variant that names boards and chips: M21SV20, M30S++_VH40, M53HVH10.
_MODEL: Final = re.compile(
    r"(?:whatsminer[ _-]?)?(M\d{1,3}[A-Z]{0,2}?\+{0,2})[ _-]?(V[A-Z0-9]{1,8})?\Z", re.IGNORECASE
)
_VERSION: Final = re.compile(r"\d+(?:\.\d+)+")
_CODE: Final = re.compile(r"\d{1,9}\Z")
_TIME: Final = re.compile(r"\d{4}-\d{1,2}-\d{1,2}\b")
_HEAT: Final = re.compile(r"heat|temp", re.IGNORECASE)
_CODE_NAMES: Final = ("code", "error_code", "error-code")


def model_of(text: str | None) -> str | None:
    """Give a model's full name, `WhatsMiner M50S VH50`; one of another form as it stands."""
    if text is None:
        return None
    match = _MODEL.match(text)
    if match is None:
        return text if "whatsminer" in text.lower() else f"WhatsMiner {text}"
    series, variant = match.groups()
    return " ".join(("WhatsMiner", series.upper(), *((variant.upper(),) if variant else ())))


def api_version_of(text: str | None) -> str | None:
    """Give the number in `whatsminer v1.4.0`."""
    match = None if text is None else _VERSION.search(text)
    return None if match is None else match.group()


def firmware_version_of(text: str | None) -> str | None:
    """Give a version without the quotes that some builds send with it."""
    return None if text is None else text.strip("'\" ") or None


def mode_of(value: object) -> WorkMode | None:
    """Give a power mode by its word, in any case."""
    text = as_text(value)
    return None if text is None else MODES.get(text.lower())


def truth_of(value: object) -> bool | None:
    """Give a flag that comes as a boolean or as its word; `None` = neither."""
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None


def state_off(reason: str | None) -> MinerState:
    """Tell why a miner is off: it was told to, unless it names heat."""
    heat = reason is not None and _HEAT.search(reason) is not None
    return MinerState.OVERHEATED if heat else MinerState.ASLEEP


def ramping_state(rate_ths: float | None, uptime_s: int | None) -> MinerState | None:
    """Judge a miner that says that its frequencies are not settled yet."""
    if rate_ths is None:
        return None
    if rate_ths > 0:
        return MinerState.TUNING
    # One that finds none for longer has no work, or is broken: no rate, and nothing more is known.
    return MinerState.STARTING if uptime_s is not None and uptime_s <= RUN_UP_S_MAX else None


def error_codes_of(value: object) -> tuple[int | str, ...]:
    """Read error codes in any of the shapes in which the builds send them.

    Numbers; texts of numbers; objects {code: time} with or without a reason; a list in which code
    and time take turns, which is how a list shaped like an object comes out of some clients; one
    text. Texts that are no number and no time are kept as they are.
    """
    return tuple(dict.fromkeys(_codes(value)))


def _codes(value: object) -> Iterator[int | str]:
    if isinstance(value, dict):
        yield from _codes_of_row(value)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from _codes_of_row(item)
            else:
                yield from _code(item)
    else:
        yield from _code(value)


def _codes_of_row(row: Row) -> Iterator[int | str]:
    named = next((row[name] for name in _CODE_NAMES if name in row), None)
    if named is not None:
        yield from _code(named)
        return
    for key in row:
        if _CODE.match(key):
            yield from _code(key)


def _code(value: object) -> Iterator[int | str]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        if value == int(value) and 0 < value < 10**9:
            yield int(value)
        return
    text = as_text(value)
    if text is None or _TIME.match(text):
        return
    if _CODE.match(text) is None:
        yield text
    elif int(text):
        yield int(text)
