"""The quality sheet of a firmware, as data: what it can do, how fast, and where that was seen."""

from enum import StrEnum

import msgspec


class Capability(StrEnum):
    """One thing that a miner can be asked or told."""

    READ = "read"
    SLEEP = "sleep"
    WAKE = "wake"
    POWER_MODE = "power mode"
    POWER_LIMIT = "power limit"
    POWER_PERCENT = "power percent"
    RESTART = "restart"
    REBOOT = "reboot"
    LOCATE = "locate"
    POOLS = "pools"


class Evidence(StrEnum):
    """Where a row was verified, the strongest first."""

    HARDWARE = "hardware"
    CAPTURE = "recorded answers"
    SIMULATOR = "simulator"
    DOCUMENTS = "from documents"


class Ability(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the capability table.

    Args:
        capability: What.
        how: What goes over the wire, in the firmware's own words.
        answer_s: Within this time it answers.
        effect_s: Within this time the effect shows in its readings; `None` = it has none to see.
        evidence: Where that was verified.
        note: A limit or a trap.
    """

    capability: Capability
    how: str
    answer_s: float
    effect_s: float | None
    evidence: Evidence
    note: str = ""


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """The sheet of one firmware.

    Args:
        title: Its name for a person.
        versions: Versions that the decoders have seen.
        wires: Wires and ports, in words.
        abilities: The capability table.
        captures: Recordings that its decoders are tested with.
        cases: Conformance cases: test files that cover it.
        limits: What is known not to work, or not known.
        source: Where its facts come from.
    """

    title: str
    versions: tuple[str, ...]
    wires: str
    abilities: tuple[Ability, ...]
    captures: tuple[str, ...]
    cases: tuple[str, ...]
    limits: tuple[str, ...]
    source: str

    def ability(self, capability: Capability) -> Ability | None:
        """Give one row; `None` = this firmware cannot do it."""
        return next((row for row in self.abilities if row.capability is capability), None)
