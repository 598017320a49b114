"""What models are built for, in TH/s; used to find unit traps only.

The figure is that of the strongest variant sold under the name: a check by a factor of five needs
no more. Machines of other algorithms are in hashes (or solutions) of theirs, so that a rate under
a wrong unit is found out with them too. Source: the makers' data sheets.
"""

import re
from functools import lru_cache
from typing import Final

# Longest names first: `s19 xp hyd` is looked for before `s19 xp` before `s19`.
_RATED_THS: Final = (
    ("antminer s23 hyd", 580.0), ("antminer s23", 318.0),
    ("antminer s21 xp hyd", 473.0), ("antminer s21e xp hyd", 860.0), ("antminer s21 xp", 270.0),
    ("antminer s21+ hyd", 395.0), ("antminer s21+", 235.0), ("antminer s21 pro+", 245.0),
    ("antminer s21 pro", 245.0), ("antminer s21 hyd", 335.0), ("antminer s21 imm", 301.0),
    ("antminer s21", 216.0), ("antminer t21", 190.0),
    ("antminer s19 xp hyd", 257.0), ("antminer s19 xp+ hyd", 293.0), ("antminer s19 xp", 151.0),
    ("antminer s19 pro+ hyd", 198.0), ("antminer s19 pro hyd", 184.0), ("antminer s19 hyd", 158.0),
    ("antminer s19 pro+", 120.0), ("antminer s19 pro", 117.0), ("antminer s19j pro+", 122.0),
    ("antminer s19j pro", 120.0), ("antminer s19j xp", 151.0), ("antminer s19k pro", 136.0),
    ("antminer s19j", 96.0), ("antminer s19i", 90.0), ("antminer s19a pro", 110.0),
    ("antminer s19a", 96.0), ("antminer s19", 110.0), ("antminer t19", 88.0),
    ("antminer s17", 73.0), ("antminer t17", 64.0), ("antminer s15", 28.0),
    ("antminer s9", 16.0), ("antminer t9", 13.0),
    ("antminer l3", 0.001), ("antminer l7", 0.0095), ("antminer l9", 0.017),
    ("antminer l11", 0.035), ("antminer d9", 1.77), ("antminer k7", 63.5), ("antminer ks3", 9.4),
    ("antminer ks5", 21.0), ("antminer ks7", 40.0), ("antminer s11", 21.0), ("antminer t15", 23.0),
    ("antminer d3", 0.0193), ("antminer d5", 0.119), ("antminer d7", 1.3), ("antminer e3", 0.0002),
    ("antminer e9", 0.0037), ("antminer e11", 0.009), ("antminer k5", 1.2), ("antminer hs3", 9.0),
    ("antminer al1", 16.6), ("antminer a3", 0.82), ("antminer x5", 2.2e-7), ("antminer z9", 4.2e-8),
    ("antminer z11", 1.4e-7), ("antminer z15", 8.6e-7),
    ("hammer d10", 0.005), ("dg1", 0.0144), ("dg2", 0.0205), ("dg home", 0.003),
    ("whatsminer m20", 75.0), ("whatsminer m21", 62.0), ("whatsminer m30s++", 118.0),
    ("whatsminer m30", 118.0), ("whatsminer m31", 90.0), ("whatsminer m32", 74.0),
    ("whatsminer m33", 262.0), ("whatsminer m36", 180.0), ("whatsminer m39", 110.0),
    ("whatsminer m50", 162.0), ("whatsminer m53", 330.0), ("whatsminer m56", 254.0),
    ("whatsminer m59", 180.0), ("whatsminer m60", 226.0), ("whatsminer m61", 226.0),
    ("whatsminer m63", 478.0), ("whatsminer m64", 318.0), ("whatsminer m65", 478.0),
    ("whatsminer m66", 356.0), ("whatsminer m67", 478.0), ("whatsminer m70", 258.0),
    ("whatsminer m73", 600.0), ("whatsminer m76", 500.0), ("whatsminer m78", 540.0),
    ("whatsminer m79", 1350.0),
    ("avalon a15", 221.0), ("avalonminer 15", 221.0), ("avalon 15", 221.0),
    ("avalonminer 14", 170.0), ("avalon 14", 170.0), ("avalonminer 13", 150.0),
    ("avalon 13", 150.0), ("avalonminer 12", 95.0), ("avalonminer 11", 90.0),
    ("avalonminer 10", 50.0), ("avalon home q", 90.0), ("avalon q", 90.0),
    ("avalon mini 3", 40.0), ("avalon mini3", 40.0),
    ("avalon nano 3", 6.0), ("avalon nano3", 6.0),
    ("teraflux at1500", 180.0), ("teraflux ah", 600.0), ("teraflux at2", 300.0),
    ("proto rig", 900.0),
    ("sealminer a3", 700.0), ("sealminer a2", 460.0), ("sealminer a1", 120.0),
    ("bitaxe", 2.0), ("nerdqaxe", 6.0),
)  # fmt: skip
_SPACES: Final = re.compile(r"[\s_-]+")
_BY_LENGTH: Final = tuple(sorted(_RATED_THS, key=lambda row: -len(row[0])))


@lru_cache(maxsize=1_024)
def nameplate_ths(model: str | None) -> float | None:
    """Give the rate that a model is built for, TH/s; `None` = not in the list."""
    if model is None:
        return None
    name = _SPACES.sub(" ", model.strip().lower())
    return next((rated for known, rated in _BY_LENGTH if name.startswith(known)), None)
