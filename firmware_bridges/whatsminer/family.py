"""WhatsMiner stock firmware as two families, by the API that its generation has."""

from typing import Final

from firmware_bridges.family import WEIGHT_LIKELY, WEIGHT_SURE, Family, Mark, Reads
from firmware_bridges.query import Wire, btminer_v3, cgminer
from firmware_bridges.whatsminer import decode, decode_v3
from firmware_bridges.whatsminer.control_v2 import WhatsminerV2Control
from firmware_bridges.whatsminer.control_v3 import WhatsminerV3Control
from firmware_bridges.whatsminer.sheets import SHEET_V2, SHEET_V3

_STATUS: Final = "get.miner.status"
_INFO: Final = "get.device.info"
_SETTING: Final = "get.miner.setting"

WHATSMINER_V2: Final = Family(
    name="whatsminer-v2",
    firmware="stock",
    make="MicroBT",
    marks=(
        Mark(text=b"whatsminer", weight=WEIGHT_SURE),
        Mark(text=b"btminer", weight=WEIGHT_SURE),
        Mark(text=b"bitmicro", weight=WEIGHT_SURE),
        Mark(text=b'"hs rt"', weight=WEIGHT_LIKELY),
        Mark(text=b'"factory ghs"', weight=WEIGHT_LIKELY),
        Mark(text=b'"fan speed in"', weight=WEIGHT_LIKELY),
        Mark(text=b'"upfreq complete"', weight=WEIGHT_LIKELY),
        Mark(text=b'"pcb sn"', weight=WEIGHT_LIKELY),
        Mark(text=b'mineroff"', weight=WEIGHT_SURE, key="status"),
        Mark(text=b'"fw_ver"', weight=WEIGHT_LIKELY, key="get_version"),
        Mark(text=b'"error_code"', weight=WEIGHT_LIKELY, key="get_error_code"),
    ),
    answers=decode.DECODERS,
    order=(
        "status",
        "get_error_code",
        "get_version",
        "summary",
        "get_miner_info",
        "edevs",
        "devs",
        "devdetails",
        "pools",
    ),
    reads=Reads(
        # Whether it sleeps is in `status` alone: `summary` goes away with the mining program.
        fast=(cgminer("summary"), cgminer("status")),
        slow=(
            cgminer("get_version"),
            cgminer("get_miner_info"),
            cgminer("get_error_code"),
            cgminer("edevs"),
            cgminer("devdetails"),
            cgminer("pools"),
        ),
    ),
    ports={Wire.CGMINER: 4028},
    control=WhatsminerV2Control,
    sheet=SHEET_V2,
)

WHATSMINER_V3: Final = Family(
    name="whatsminer-v3",
    firmware="stock",
    make="MicroBT",
    base="whatsminer-v2",
    marks=tuple(
        # The API v2 beside it says that it is a WhatsMiner, many times over.
        Mark(text=text, weight=10 * WEIGHT_SURE, key=key)
        for key, text in ((_STATUS, b'"msg"'), (_INFO, b'"msg"'), (_SETTING, b'"msg"'))
    ),
    documents={(Wire.BTMINER_V3, key): each for key, each in decode_v3.DECODERS.items()},
    order=(_INFO, _STATUS, _SETTING, *WHATSMINER_V2.order),
    reads=Reads(
        # Joined, because an idle miner refuses `pools` alone; whether its service runs is in the
        # device's information. Nothing of a state is asked slowly: it would outlive a change.
        fast=(btminer_v3(_STATUS, "summary+pools+edevs"), btminer_v3(_INFO)),
        slow=(btminer_v3(_SETTING),),
    ),
    ports={Wire.BTMINER_V3: 4433, Wire.CGMINER: 4028},
    control=WhatsminerV3Control,
    sheet=SHEET_V3,
)
