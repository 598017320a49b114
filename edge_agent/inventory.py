"""The inventory of a site's miners: a CSV file with a head, one miner a line.

Columns: `address` is needed; `device_id`, `kind`, `port`, `web_port`, `v3_port`, `rack`, `row` and
`customer` (who hosts it here) may follow in any order. Any other column is refused.
"""

import csv
import io
import ipaddress
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from protocol.units import Ident

INVENTORY_BYTES_MAX = 16 << 20
LINES_MAX = 65_536
Label = Annotated[str, Meta(max_length=64)]
_Port = Annotated[int, Meta(ge=1, le=65_535)]


class InventoryError(ValueError):
    """The file is no inventory; the message says which line."""


class MinerLine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One miner; what is left out is that of the row of the configuration.

    Args:
        address: IPv4.
        device_id: of the site. kind: firmware family, or ``auto``.
        port, web_port, v3_port: where they differ from the firmware's own.
        rack, row, customer: labels.
    """

    address: str
    device_id: Ident | None = None
    kind: str = ""
    port: _Port | None = None
    web_port: _Port | None = None
    v3_port: _Port | None = None
    rack: Label = ""
    row: Label = ""
    customer: Label = ""

    def __post_init__(self) -> None:
        """Refuse what is no IPv4 address."""
        ipaddress.IPv4Address(self.address)


def read_inventory(path: Path) -> tuple[MinerLine, ...]:
    """Read an inventory.

    Raises:
        InventoryError: It cannot be read.
    """
    try:
        if path.stat().st_size > INVENTORY_BYTES_MAX:
            raise InventoryError(f"larger than {INVENTORY_BYTES_MAX} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise InventoryError(str(exc)) from exc
    return parse_inventory(text)


def parse_inventory(text: str) -> tuple[MinerLine, ...]:
    """Parse the text of an inventory.

    Raises:
        InventoryError: A column is not known, a line is wrong, or there are too many.
    """
    reader = csv.reader(io.StringIO(text), strict=True)
    lines: list[MinerLine] = []
    try:
        head = [name.strip() for name in next(reader, [])]
        unknown = sorted(set(head) - set(MinerLine.__struct_fields__))
        if unknown or "address" not in head or len(set(head)) != len(head):
            known = ", ".join(MinerLine.__struct_fields__)
            raise InventoryError(f"head: {', '.join(head) or 'is empty'}; columns are {known}")
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append(_line(head, cells, reader.line_num))
            if len(lines) > LINES_MAX:
                raise InventoryError(f"more than {LINES_MAX} miners")
    except csv.Error as exc:
        raise InventoryError(f"line {reader.line_num}: {exc}") from exc
    return tuple(lines)


def _line(head: list[str], cells: list[str], number: int) -> MinerLine:
    if len(cells) != len(head):
        raise InventoryError(f"line {number}: {len(cells)} cells, the head has {len(head)}")
    given = {name: cell.strip() for name, cell in zip(head, cells, strict=True) if cell.strip()}
    try:
        return msgspec.convert(given, MinerLine, strict=False)
    except (msgspec.ValidationError, ValueError) as exc:
        raise InventoryError(f"line {number}: {exc}") from exc
