"""Settings of pre-warming: ``[prewarm]`` of the agent's file."""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta, Struct

from edge_agent.core.prewarm_limits import PrewarmLimits
from protocol.node import PREPARE_MAX
from protocol.settings import Problem

_Share = Annotated[float, Meta(ge=0, le=1)]
_Seconds = Annotated[float, Meta(gt=0, le=86_400)]
_DEFAULT = PrewarmLimits()


class PrewarmRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be held ready for likely switches; the fields are those of ``PrewarmLimits``.

    Args:
        enabled: false switches all of it off.
    """

    enabled: bool = True
    per_node: Annotated[int, Meta(ge=1, le=PREPARE_MAX)] = 2
    start_chance: _Share = _DEFAULT.start_chance
    keep_chance: _Share = _DEFAULT.keep_chance
    horizon_s: _Seconds = _DEFAULT.horizon_s
    expire_s: _Seconds = _DEFAULT.expire_s
    rest_s: _Seconds = _DEFAULT.rest_s


def limits_of(row: PrewarmRow) -> PrewarmLimits | None:
    """Give the bounds that a site decides by; None: it is switched off."""
    if not row.enabled:
        return None
    return PrewarmLimits(
        per_node=row.per_node,
        start_chance=row.start_chance,
        keep_chance=row.keep_chance,
        horizon_s=row.horizon_s,
        expire_s=row.expire_s,
        rest_s=row.rest_s,
    )


def check_prewarm(row: PrewarmRow) -> Iterator[Problem]:
    """Give what is wrong with the settings."""
    if row.keep_chance > row.start_chance:
        yield Problem(
            path="prewarm.keep_chance", detail="is above start_chance: nothing would stay"
        )
