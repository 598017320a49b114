"""The capability table of every firmware: lines for a terminal, values for JSON, a page of docs."""

from collections.abc import Iterator
from typing import Final

from firmware_bridges.families import FAMILIES
from firmware_bridges.family import Family
from firmware_bridges.sheet import Ability, Capability

_HEAD: Final = """\
# Firmware matrix

Made by `hcp-agent bridge list --markdown` from the capability tables in `firmware_bridges/`; a test
fails when this page is stale. *answer* is how long the firmware may take to answer, *effect* how
long until its readings show what it was told; the strongest evidence stands in the last column.
`from documents` = the wire format is documented and no recording was at hand.
"""


def overview() -> str:
    """Give the matrix as Markdown: one table of all firmwares, then one sheet for each."""
    names = [capability.value for capability in Capability]
    lines = [_HEAD, "| firmware | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for family in FAMILIES:
        cells = [_cell(family.sheet.ability(capability)) for capability in Capability]
        lines.append(f"| [{family.sheet.title}](#{family.name}) | " + " | ".join(cells) + " |")
    for family in FAMILIES:
        lines += ["", *_sheet(family)]
    return "\n".join(lines) + "\n"


def lines() -> Iterator[str]:
    """Give one line for each firmware and capability, for a terminal."""
    for family in FAMILIES:
        yield f"{family.name}  {family.sheet.title}; {family.sheet.wires}"
        for row in family.sheet.abilities:
            effect = "-" if row.effect_s is None else f"{row.effect_s:g} s"
            yield (
                f"    {row.capability.value:<14} answer {row.answer_s:>5g} s  effect {effect:>7}"
                f"  {row.evidence.value:<17} {row.how}"
            )


def table() -> list[dict[str, object]]:
    """Give the table for programs: one object for each firmware."""
    return [
        {
            "family": family.name,
            "title": family.sheet.title,
            "firmware": family.firmware,
            "steered": family.control is not None,
            "versions": family.sheet.versions,
            "wires": family.sheet.wires,
            "abilities": family.sheet.abilities,
            "captures": family.sheet.captures,
            "limits": family.sheet.limits,
            "source": family.sheet.source,
        }
        for family in FAMILIES
    ]


def _cell(row: Ability | None) -> str:
    if row is None:
        return "-"
    return f"{row.answer_s:g} s" if row.effect_s is None else f"{row.effect_s:g} s"


def _sheet(family: Family) -> Iterator[str]:
    sheet = family.sheet
    yield f'## <a id="{family.name}"></a>{sheet.title}'
    yield ""
    yield f"`{family.name}`; {sheet.wires}. Versions seen: {', '.join(sheet.versions)}."
    yield ""
    yield "| can | how | answer | effect | verified | note |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in sheet.abilities:
        effect = "-" if row.effect_s is None else f"{row.effect_s:g} s"
        cells = (row.capability.value, row.how, f"{row.answer_s:g} s", effect, row.evidence.value)
        yield "| " + " | ".join(_escaped(cell) for cell in (*cells, row.note or "-")) + " |"
    yield ""
    yield f"Recordings: {', '.join(sheet.captures) or 'none'}. Cases: {', '.join(sheet.cases)}."
    for limit in sheet.limits:
        yield f"- {limit}"
    yield ""
    yield f"Source: {sheet.source}."


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
