"""``[[feeders]]`` of the site file: which devices hang on which feeder.

A device is named by its id, its class, its rack or its node; it hangs on one feeder at most.
"""

import difflib
from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta, Struct

from edge_agent.core.site import Device, Feeder
from protocol.settings import Problem
from protocol.units import Ident

FEEDERS_MAX = 256
_Names = Annotated[tuple[str, ...], Meta(max_length=65_536)]


class FeederRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One feeder.

    Args:
        power_cap_w: at its meter, PUE included.
        devices, classes, racks, nodes: what hangs on it, by name; together.
    """

    name: Ident
    power_cap_w: Annotated[float, Meta(gt=0, lt=1e10)]
    devices: _Names = ()
    classes: _Names = ()
    racks: _Names = ()
    nodes: _Names = ()


class Place(Struct, frozen=True):
    """A device and where it stands; a GPU has a node, a miner may have a rack."""

    device: Device
    rack: str = ""


def feeders_of(rows: tuple[FeederRow, ...]) -> tuple[Feeder, ...]:
    """Give the feeders of the site."""
    return tuple(Feeder(name=row.name, power_cap_w=row.power_cap_w) for row in rows)


def names_of(rows: tuple[FeederRow, ...], places: tuple[Place, ...]) -> list[str]:
    """Give the feeder of each device; empty for one that hangs on none."""
    known = [_lookup(row) for row in rows]
    found = []
    for place in places:
        keys = _keys(place)
        found.append(
            next((row.name for row, own in zip(rows, known, strict=True) if own & keys), "")
        )
    return found


def check_feeders(rows: tuple[FeederRow, ...], places: tuple[Place, ...]) -> Iterator[Problem]:
    """Name what is wrong: a name that nothing has, a feeder twice or empty, a device on two."""
    known: dict[str, set[str]] = {
        "devices": set(),
        "classes": set(),
        "racks": set(),
        "nodes": set(),
    }
    for place in places:
        for kind, name in _keys(place):
            known[kind].add(name)
    names: set[str] = set()
    for at, row in enumerate(rows):
        if row.name in names:
            yield Problem(path=f"feeders[{at}].name", detail=f"{row.name} is there twice")
        names.add(row.name)
        if not _lookup(row):
            detail = "nothing hangs on it: give devices, classes, racks or nodes"
            yield Problem(path=f"feeders[{at}]", detail=detail)
        for kind, name in sorted(_lookup(row)):
            if name not in known[kind]:
                near = difflib.get_close_matches(name, sorted(known[kind]), n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                detail = f"no {_ONE[kind]} {name}{hint}"
                yield Problem(path=f"feeders[{at}].{kind}", detail=detail)
    yield from _on_two(rows, places)


_ONE = {"devices": "device", "classes": "class", "racks": "rack", "nodes": "node"}


def _on_two(rows: tuple[FeederRow, ...], places: tuple[Place, ...]) -> Iterator[Problem]:
    lookups = [_lookup(row) for row in rows]
    for place in places:
        keys = _keys(place)
        own = [at for at, lookup in enumerate(lookups) if lookup & keys]
        if len(own) > 1:
            first, second = rows[own[0]].name, rows[own[1]].name
            detail = f"{place.device.device_id} hangs on {first} already"
            yield Problem(path=f"feeders[{own[1]}]", detail=f"{second}: {detail}")
            return


def _lookup(row: FeederRow) -> frozenset[tuple[str, str]]:
    return frozenset(
        (kind, name)
        for kind, names in (
            ("devices", row.devices),
            ("classes", row.classes),
            ("racks", row.racks),
            ("nodes", row.nodes),
        )
        for name in names
    )


def _keys(place: Place) -> frozenset[tuple[str, str]]:
    device = place.device
    keys = {("devices", device.device_id), ("classes", device.device_class)}
    if place.rack:
        keys.add(("racks", place.rack))
    if device.node_id is not None:
        keys.add(("nodes", device.node_id))
    return frozenset(keys)
