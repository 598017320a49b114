"""The firmware families that this version knows, in one list."""

from collections.abc import Mapping
from typing import Final

from firmware_bridges.antminer.family import ANTMINER_STOCK
from firmware_bridges.antminer.forks import ANTMINER_FORK
from firmware_bridges.auradine.family import AURADINE
from firmware_bridges.avalon.family import AVALON
from firmware_bridges.bitaxe.family import BITAXE
from firmware_bridges.braiins.family import BRAIINS_API, BRAIINS_GRAPHQL, BRAIINS_REST
from firmware_bridges.cgminer.family import CGMINER
from firmware_bridges.epic.family import EPIC
from firmware_bridges.family import Family
from firmware_bridges.hiveon.family import HIVEON
from firmware_bridges.luxos.family import LUXOS
from firmware_bridges.mara.family import MARAFW
from firmware_bridges.mskminer.family import MSKMINER
from firmware_bridges.proto.family import PROTO
from firmware_bridges.scrypt.family import ELPHAPEX, HAMMER
from firmware_bridges.sealminer.family import SEALMINER
from firmware_bridges.vnish.family import VNISH
from firmware_bridges.whatsminer.family import WHATSMINER_V2, WHATSMINER_V3

# Where two are equally likely, the earlier one is taken; the plain cgminer API is the last resort.
FAMILIES: Final[tuple[Family, ...]] = (
    LUXOS,
    BRAIINS_REST,
    BRAIINS_GRAPHQL,
    BRAIINS_API,
    WHATSMINER_V3,
    WHATSMINER_V2,
    MARAFW,
    EPIC,
    AVALON,
    AURADINE,
    BITAXE,
    PROTO,
    SEALMINER,
    VNISH,
    HIVEON,
    MSKMINER,
    ELPHAPEX,
    HAMMER,
    ANTMINER_FORK,
    ANTMINER_STOCK,
    CGMINER,
)
FAMILY_OF: Final[Mapping[str, Family]] = {family.name: family for family in FAMILIES}
