"""From exchanges to one reading: which family speaks, and what its answers say. Pure.

Nothing but the answers is looked at. Each answer is decoded by itself, with the decoders of the
family that the marks of all answers name; where that family has none, those of its base, then the
plain cgminer ones. An unknown machine therefore still gives a reading.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from firmware_bridges.base import Failure, Kept, Partial, Reading, merge
from firmware_bridges.cgminer.codec import Answer, decode_answers, raise_for_status
from firmware_bridges.document import read_json
from firmware_bridges.errors import BridgeError, BridgeGarbledError, BridgeUnsupportedError
from firmware_bridges.families import FAMILIES, FAMILY_OF
from firmware_bridges.family import WEIGHT_SURE, Family
from firmware_bridges.identity import named
from firmware_bridges.plausible import checked
from firmware_bridges.query import Exchange, Query, Wire, keys_of

# Counts, maxima and lists: where the end of the answer is lost, so may be some of their items.
_OF_A_WHOLE_LIST: Final = (
    "chip_temp_c_max",
    "board_temp_c_max",
    "inlet_temp_c",
    "fans_rpm",
    "fan_count",
    "board_count",
    "chips_total",
    "pools",
    "error_codes",
    "power_profiles",
)
_LAST_RESORT: Final = FAMILY_OF["cgminer"]


class Decoded(msgspec.Struct, frozen=True, kw_only=True):
    """One machine.

    Args:
        family: That spoke.
        reading: What it said.
        missing: Keys that a full reading of this family asks for and that gave nothing.
    """

    family: Family
    reading: Reading
    missing: tuple[str, ...]


def recognise(exchanges: Sequence[Exchange]) -> Family:
    """Name the family that the answers speak for; the plain cgminer API when none does."""
    lowered = _lowered(exchanges)
    best, best_score = _LAST_RESORT, 0
    for family in FAMILIES:
        found = _score(family, lowered)
        if found > best_score:
            best, best_score = family, found
    return best


def score(family: Family, exchanges: Sequence[Exchange]) -> int:
    """Give how much the answers speak for a family: the weights of its marks in them."""
    return _score(family, _lowered(exchanges))


def _lowered(exchanges: Sequence[Exchange]) -> list[tuple[str, bytes]]:
    return [(exchange.query.key, exchange.body.lower()) for exchange in exchanges]


def _score(family: Family, lowered: Sequence[tuple[str, bytes]]) -> int:
    return sum(
        mark.weight
        for mark in family.marks
        if any(mark.key in (None, key) and mark.text in body for key, body in lowered)
    )


def decode_exchanges(exchanges: Sequence[Exchange], address: str) -> Decoded:
    """Decode what a machine answered, whatever it is.

    Args:
        exchanges: Queries with the bytes that came back, in any order.
        address: Host of the miner, for the reading and its failures.
    """
    family = recognise(exchanges)
    partials: list[Partial] = []
    failed: list[Failure] = []
    for exchange in exchanges:
        for source, outcome in decode_query(family, exchange.query, exchange.body, address):
            if isinstance(outcome, Partial):
                partials.append(outcome)
            else:
                failed.append(Failure(source, outcome.code))
    cut = any("truncated" in partial.repairs for partial in partials) or any(
        failure.code == BridgeGarbledError.code for failure in failed
    )
    sure = not cut or score(family, exchanges) >= WEIGHT_SURE
    reading = read_partials(family, address, partials, failed, sure=sure)
    return Decoded(family=family, reading=reading, missing=_missing(family, reading))


def read_partials(
    family: Family,
    address: str,
    partials: Sequence[Partial | Kept],
    failed: Sequence[Failure],
    *,
    sure: bool = True,
) -> Reading:
    """Merge partials in the family's order of trust, and check what came out.

    Args:
        family: Whose order and names are used.
        address: Host of the miner.
        partials: Decoded answers, and those kept from before. failed: answers that did not come.
        sure: The family is no guess; see `named`.
    """
    order = family.order
    ordered = sorted(
        partials, key=lambda part: order.index(part.source) if part.source in order else len(order)
    )
    return checked(named(merge(address, ordered, failed), family, sure=sure))


def decode_query(
    family: Family, query: Query, body: bytes, address: str
) -> list[tuple[str, Partial | BridgeError]]:
    """Decode the answer to one query: (key, what it says or why it says nothing) for each part.

    Args:
        family: Whose decoders are used.
        query: As it was asked; a joined one has a part for each command.
        body: The answer.
        address: For the errors.
    """
    try:
        if query.wire is not Wire.CGMINER:
            return [(query.key, _decode_document(family, query, body, address))]
        answers = decode_answers(body, query.commands, address)
    except BridgeError as exc:
        return [(command, exc) for command in query.commands]
    parts: list[tuple[str, Partial | BridgeError]] = []
    for answer in answers:
        try:
            parts.append((answer.command, _decode_answer(family, answer, address)))
        except BridgeError as exc:
            parts.append((answer.command, exc))
    return parts


def _decode_answer(family: Family, answer: Answer, address: str) -> Partial:
    raise_for_status(answer, address)
    for each in _line(family):
        if (decode := each.answers.get(answer.command)) is not None:
            return _as_read(decode(answer), answer.repairs, truncated=answer.truncated)
    raise BridgeUnsupportedError(address, f"{answer.command}: no decoder", sent=True)


def _decode_document(family: Family, query: Query, body: bytes, address: str) -> Partial:
    document = read_json(body, address, query.key)
    for each in _line(family):
        if (decode := each.documents.get((query.wire, query.key))) is not None:
            return _as_read(decode(document), document.repairs, truncated=document.truncated)
    raise BridgeUnsupportedError(address, f"{query.key}: no decoder", sent=True)


def _line(family: Family) -> Iterator[Family]:
    """Give a family, those that it is based on, and the plain cgminer one."""
    each: Family | None = family
    while each is not None:
        yield each
        each = None if each.base is None else FAMILY_OF[each.base]
    yield _LAST_RESORT


def _as_read(partial: Partial, repairs: tuple[str, ...], *, truncated: bool) -> Partial:
    """Note the repairs; of an answer that was cut, take out what is made of a whole list."""
    if not repairs and not truncated:
        return partial
    if not truncated:
        return msgspec.structs.replace(partial, repairs=repairs)
    lost = dict.fromkeys(_OF_A_WHOLE_LIST)
    return msgspec.structs.replace(partial, repairs=(*repairs, "truncated"), **lost)


def _missing(family: Family, reading: Reading) -> tuple[str, ...]:
    wanted = () if family.reads is None else keys_of((*family.reads.fast, *family.reads.slow))
    lost = tuple(failure.source for failure in reading.failed)
    return tuple(key for key in dict.fromkeys((*wanted, *lost)) if key not in reading.answered)
