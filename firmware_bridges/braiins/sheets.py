"""The quality sheets of Braiins OS: one for each wire that a generation has."""

from typing import Final

from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

_CASES: Final = (
    "tests/firmware_bridges/braiins",
    "tests/simulators/test_asic_braiins.py",
)
# Pausing lets the program run and takes the boards off: seconds. Coming back is a start of the
# boards without a boot, and the tuner needs minutes to reach a new target. The times bound what
# the simulator does, which follows the vendor's description; no machine was measured.
_PAUSE_EFFECT_S: Final = 15.0
_RESUME_EFFECT_S: Final = 180.0
_TUNE_EFFECT_S: Final = 600.0

_API_ABILITIES: Final = (
    Ability(
        capability=Capability.SLEEP,
        how="pause",
        answer_s=5.0,
        effect_s=_PAUSE_EFFECT_S,
        evidence=Evidence.SIMULATOR,
        note="releases of 2021 obey on X17 machines only",
    ),
    Ability(
        capability=Capability.WAKE,
        how="resume",
        answer_s=5.0,
        effect_s=_RESUME_EFFECT_S,
        evidence=Evidence.SIMULATOR,
    ),
    Ability(
        capability=Capability.POOLS,
        how="addpool, switchpool, removepool",
        answer_s=5.0,
        effect_s=60.0,
        evidence=Evidence.SIMULATOR,
        note="lost when the mining program restarts, says the vendor",
    ),
)

API_SHEET: Final = Sheet(
    title="Braiins OS+ (cgminer API, up to 25.05)",
    versions=("from documents",),
    wires="cgminer API on TCP 4028, joined commands",
    abilities=(
        Ability(
            capability=Capability.READ,
            how="summary+temps+fans+tunerstatus; slowly version+devdetails+devs+pools",
            answer_s=3.0,
            effect_s=None,
            evidence=Evidence.DOCUMENTS,
        ),
        *_API_ABILITIES,
    ),
    captures=(),
    cases=_CASES,
    limits=(
        "neither the firmware's version nor the MAC is told on this wire",
        "a pause is seen in the words of its tuner alone, and not on every release",
    ),
    source="the vendor's API documents; API-README of cgminer 4.11.1",
)

GRAPHQL_SHEET: Final = Sheet(
    title="Braiins OS+ (GraphQL, 21.09 to 25.05)",
    versions=("22.08-plus", "25.03-plus"),
    wires="GraphQL on TCP 80, cgminer API on TCP 4028 (control, model)",
    abilities=(
        Ability(
            capability=Capability.READ,
            how="POST /graphql with the members of boards, system, power and fans",
            answer_s=5.0,
            effect_s=None,
            evidence=Evidence.CAPTURE,
        ),
        *_API_ABILITIES,
    ),
    captures=("braiins-gql-21.09", "braiins-gql-25.03"),
    cases=_CASES,
    limits=(
        "the model is not told by the queries recorded; `devdetails` on 4028 tells it",
        "the MAC is on a page of luci, behind a login that is not made",
        "GraphQL itself is only read: its mutations differ from release to release",
    ),
    source="recorded answers of 22.08 and 25.03; the vendor's API documents",
)

REST_SHEET: Final = Sheet(
    title="Braiins OS+ (REST, 25.07 and later)",
    versions=("25.07-plus", "26.04 from documents"),
    wires="REST with a token on TCP 80",
    abilities=(
        Ability(
            capability=Capability.READ,
            how="GET miner/stats, miner/hw/hashboards, cooling/state; slowly miner/details, "
            "performance/tuner-state, pools/, miner/errors, version/, network/",
            answer_s=5.0,
            effect_s=None,
            evidence=Evidence.CAPTURE,
        ),
        Ability(
            capability=Capability.SLEEP,
            how="PUT actions/pause",
            answer_s=5.0,
            effect_s=_PAUSE_EFFECT_S,
            evidence=Evidence.SIMULATOR,
            note="the mining program stays up",
        ),
        Ability(
            capability=Capability.WAKE,
            how="PUT actions/resume, or actions/start when the program is stopped",
            answer_s=5.0,
            effect_s=_RESUME_EFFECT_S,
            evidence=Evidence.SIMULATOR,
            note="comes back with its former target",
        ),
        Ability(
            capability=Capability.POWER_LIMIT,
            how='PUT performance/power-target {"watt":N}',
            answer_s=5.0,
            effect_s=_TUNE_EFFECT_S,
            evidence=Evidence.SIMULATOR,
            note="the tuner takes minutes; outside its constraints it is refused",
        ),
        Ability(
            capability=Capability.POWER_PERCENT,
            how="GET configuration/constraints, PUT performance/power-target with the share of the "
            "default target",
            answer_s=5.0,
            effect_s=_TUNE_EFFECT_S,
            evidence=Evidence.SIMULATOR,
        ),
        Ability(
            capability=Capability.RESTART,
            how="PUT actions/restart",
            answer_s=10.0,
            effect_s=_RESUME_EFFECT_S,
            evidence=Evidence.SIMULATOR,
        ),
        Ability(
            capability=Capability.REBOOT,
            how="PUT actions/reboot",
            answer_s=10.0,
            effect_s=300.0,
            evidence=Evidence.SIMULATOR,
        ),
        Ability(
            capability=Capability.LOCATE,
            how="PUT actions/locate true|false",
            answer_s=5.0,
            effect_s=10.0,
            evidence=Evidence.SIMULATOR,
        ),
        Ability(
            capability=Capability.POOLS,
            how="PUT pools/batch with one group",
            answer_s=5.0,
            effect_s=60.0,
            evidence=Evidence.SIMULATOR,
            note="replaces every group",
        ),
    ),
    captures=("braiins-rest-25.07",),
    cases=_CASES,
    limits=("power is the firmware's estimate",),
    source="recorded answers of 25.07; the vendor's OpenAPI documents of 25.07 and 26.04",
)
