"""The firmwares that a simulated fleet can speak, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulators.asic_antminer import AntminerDialect
from simulators.asic_avalon import AvalonDialect
from simulators.asic_braiins import BraiinsDialect, GraphqlBraiinsDialect, OldBraiinsDialect
from simulators.asic_epic import EpicDialect
from simulators.asic_luxos import LuxosDialect
from simulators.asic_mara import MaraDialect
from simulators.asic_vnish import VnishDialect
from simulators.asic_whatsminer import WhatsminerDialect
from simulators.asic_whatsminer_v3 import WhatsminerV3Dialect

if TYPE_CHECKING:
    from simulators.asic_dialect import Dialect
    from simulators.asic_web import Login


def dialects(login: Login, seed: int) -> dict[str, Dialect]:
    """Make one dialect of each firmware for a fleet.

    Args:
        login: Of the web pages of firmwares whose login is a user and a password.
        seed: Of the secrets that a firmware makes (nonces, salts).
    """
    every: tuple[Dialect, ...] = (
        AntminerDialect(login, seed),
        BraiinsDialect(login, seed),
        OldBraiinsDialect(login, seed),
        GraphqlBraiinsDialect(login, seed),
        LuxosDialect(seed),
        AvalonDialect(),
        EpicDialect(),
        MaraDialect(login, seed),
        VnishDialect(seed),
        WhatsminerDialect(seed),
        WhatsminerDialect(seed, locked=True),
        WhatsminerV3Dialect(seed),
        WhatsminerV3Dialect(seed, locked=True),
    )
    return {dialect.name: dialect for dialect in every}
