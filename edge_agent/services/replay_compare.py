"""Where a replay differs from the journal: acts and states, by device, column and both values."""

from datetime import datetime
from typing import Any, Literal

import numpy as np
from msgspec import Struct, structs

from edge_agent.core import facts as f
from edge_agent.core.errors import JournalError
from edge_agent.core.plan import Intent, Plan
from edge_agent.core.prepares import prepare_acts
from edge_agent.core.resuming import resume_acts
from edge_agent.core.site import Site
from edge_agent.core.site_state import SiteState
from edge_agent.core.snapshot import columns_of, decode_state
from edge_agent.services.lease_events import tell

_SHOWN_CHARS_MAX = 200


class Difference(Struct, frozen=True, kw_only=True):
    """One difference between the journal and its replay.

    Args:
        kind: what differs: a ``decision``, an ``act`` that came of one, the ``state`` at a
            snapshot; or a ``row`` or ``snapshot`` that was changed, a ``gap`` in the rows.
        journalled, replayed: both values; None is unknown.
    """

    kind: Literal["decision", "act", "state", "row", "snapshot", "gap"]
    at: datetime | None
    seq: int
    device_id: str | None
    column: str
    journalled: str | float | None
    replayed: str | float | None
    detail: str = ""


def act_difference(
    site: Site, entered: SiteState, made: Plan, row: f.TickRow, seq: int
) -> Difference | None:
    """Compare the acts of a row with those that follow from the plan.

    The agent starts the first intents of a plan, as many as it has room for.
    """
    leases = tell(entered, made.leases, row.instant.wall, 0).facts
    told = [*resume_acts(made), *(_bare(fact) for fact in leases)]
    told += prepare_acts(site, entered, made)
    acts = [fact for fact in row.acts if not isinstance(fact, f.SwitchOpened)]
    opened = [fact for fact in row.acts if isinstance(fact, f.SwitchOpened)]

    def found(device_id: str | None, column: str, was: object, now: object) -> Difference:
        return Difference(
            kind="act", at=row.instant.wall, seq=seq, device_id=device_id, column=column,
            journalled=_shown(was), replayed=_shown(now),
        )  # fmt: skip

    for number in range(max(len(told), len(acts))):
        was = _bare(acts[number]) if number < len(acts) else None
        now = told[number] if number < len(told) else None
        if was != now:
            return found(None, f"act {number + 1}", was, now)
    for number, fact in enumerate(opened):
        if number >= len(made.intents):
            return found(_first(fact.device_ids), "switch", fact.to_activity.value, None)
        wrong = _switch_column(site, fact, made.intents[number])
        if wrong is not None:
            return found(*wrong)
    return None


def state_difference(
    site: Site, state: SiteState, body: bytes, otherwise: Difference
) -> Difference:
    """Name the first column and device by which a state differs from a snapshot.

    Args:
        otherwise: given back, with what could be named, when no column differs.
    """
    try:
        kept = decode_state(site, body)
    except JournalError:
        return otherwise
    for name, dtype in columns_of(site):
        was, now = (np.ascontiguousarray(getattr(row, name), dtype=dtype) for row in (kept, state))
        rows = len(site)
        raw = (was.view("u1").reshape(rows, -1), now.view("u1").reshape(rows, -1)) if rows else None
        at = np.flatnonzero((raw[0] != raw[1]).any(axis=1)) if raw is not None else np.zeros(0)
        if len(at):
            first = int(at[0])
            return structs.replace(
                otherwise, device_id=site.devices[first].device_id, column=name,
                journalled=_shown(was[first].tolist()), replayed=_shown(now[first].tolist()),
            )  # fmt: skip
    for name in (row.name for row in structs.fields(SiteState)):
        was, now = getattr(kept, name), getattr(state, name)
        if not isinstance(now, np.ndarray) and was != now:
            return structs.replace(
                otherwise, column=name, journalled=_shown(was), replayed=_shown(now)
            )
    return otherwise


def _switch_column(
    site: Site, fact: f.SwitchOpened, intent: Intent
) -> tuple[str | None, str, object, object] | None:
    wanted = tuple(site.devices[int(at)].device_id for at in intent.indices)
    if fact.device_ids != wanted:
        was, now = set(fact.device_ids), set(wanted)
        odd = next((key for key in (*fact.device_ids, *wanted) if (key in was) != (key in now)), "")
        return (
            odd or _first(wanted), "switch",
            intent.to_activity.value if odd in was else None,
            intent.to_activity.value if odd in now else None,
        )  # fmt: skip
    for column, was_value, now_value in (
        ("target", fact.to_activity.value, intent.to_activity.value),
        ("mode", fact.mode, intent.mode),
        ("reason", fact.reason, intent.reason.name.lower()),
        ("lease_id", fact.lease_id, intent.lease_id),
    ):
        if was_value != now_value:
            return _first(wanted), column, was_value, now_value
    return None


def _bare(fact: f.Fact) -> f.Fact:
    """Leave out of an act what the plan does not decide."""
    return structs.replace(fact, final_usage_seq=0) if isinstance(fact, f.LeaseClosed) else fact


def _first(device_ids: tuple[str, ...]) -> str | None:
    return device_ids[0] if device_ids else None


def _shown(value: Any) -> str | float | None:  # noqa: ANN401 - a value of any column
    if value is None or isinstance(value, (str, int, float)):
        return value if value == value else None  # noqa: PLR0124 - NaN is unknown
    return str(value)[:_SHOWN_CHARS_MAX]
