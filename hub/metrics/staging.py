"""Judge and decode telemetry batches before they are written, for the database and the fake."""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from hub.core.sync import Verdict
from hub.metrics.ledger import StoreLedger, TeleAnswer, TeleBatch, nack_of
from protocol.errors import DecodeError
from protocol.sync import NackCode, Record
from protocol.telemetry import (
    ColumnBatch,
    DeviceList,
    SchemaItem,
    TelemetrySchema,
    decode_batch,
    decode_header,
)

_NACK_BY_ERROR = {
    "too_large": NackCode.TOO_LARGE,
    "unknown_version": NackCode.UNKNOWN_VERSION,
}


class Decoded(Struct, frozen=True, kw_only=True, eq=False):
    """One record that is to be written."""

    store_id: str
    record: Record
    batch: ColumnBatch
    schema: TelemetrySchema
    devices: DeviceList


class Schemas:
    """Schemas and device lists by digest."""

    def __init__(self) -> None:
        self._items: dict[bytes, SchemaItem] = {}

    def add(self, digest: bytes, item: SchemaItem) -> None:
        """Make one known."""
        self._items[digest] = item

    def decode(self, site_id: str, record: Record) -> tuple[ColumnBatch, SchemaItem, SchemaItem]:
        """Read a record's columns.

        Raises:
            DecodeError: ``need_schema``, ``forbidden``, or as ``decode_batch``.
        """
        schema_digest, devices_digest = decode_header(record.body)
        schema, devices = self._items.get(schema_digest), self._items.get(devices_digest)
        if not isinstance(schema, TelemetrySchema) or not isinstance(devices, DeviceList):
            raise DecodeError("need_schema", "schema or device list is not known here")
        batch = decode_batch(record.body, schema)
        if batch.site_id != site_id:
            raise DecodeError("forbidden", f"batch of {batch.site_id}", "site_id")
        if any(column.shape[0] != len(devices.device_ids) for column in batch.columns):
            raise DecodeError("shape", "device count differs from the device list", "devices")
        return batch, schema, devices


class Staged:
    """Verdicts on a group of batches, and what of them is to be written."""

    def __init__(self) -> None:
        self.rows: list[Decoded] = []
        self._answers: list[tuple[str, list[tuple[int, NackCode]], list[int], int]] = []
        self._digests: dict[tuple[str, int], bytes] = {}

    def stage(
        self,
        batches: Sequence[TeleBatch],
        ledgers: Mapping[str, StoreLedger],
        schemas: Schemas,
        digest_at: Callable[[str, int], bytes | None],
    ) -> None:
        """Judge every record.

        Args:
            batches: in the order of the answers. ledgers: by store_id.
            schemas: what is known. digest_at: looks a committed digest up that left the memory.
        """
        for batch in batches:
            self._stage_batch(batch, ledgers[batch.store_id], schemas, digest_at)

    def answers(self, ledgers: Mapping[str, StoreLedger]) -> tuple[TeleAnswer, ...]:
        """Give the answers, true once ``rows`` are committed and noted."""
        return tuple(
            TeleAnswer(
                known=ledgers[store_id].known,
                nack=tuple(nack),
                conflicts=tuple(conflicts),
                points=points,
            )
            for store_id, nack, conflicts, points in self._answers
        )

    def note(self, ledgers: Mapping[str, StoreLedger]) -> None:
        """Note in memory what has been committed."""
        for row in self.rows:
            ledgers[row.store_id].add(row.record.seq, row.record.digest)

    def _stage_batch(
        self,
        batch: TeleBatch,
        ledger: StoreLedger,
        schemas: Schemas,
        digest_at: Callable[[str, int], bytes | None],
    ) -> None:
        nack: list[tuple[int, NackCode]] = []
        conflicts: list[int] = []
        points = 0
        for record in batch.records:
            verdict = self._judge(batch.store_id, record, ledger, digest_at)
            code = nack_of(verdict)
            if verdict is Verdict.TAKE:
                code, added = self._decode(batch, record, schemas)
                points += added
            elif verdict is Verdict.CONFLICT:
                conflicts.append(record.seq)
            if code is not None:
                nack.append((record.seq, code))
        self._answers.append((batch.store_id, nack, conflicts, points))

    def _judge(
        self,
        store_id: str,
        record: Record,
        ledger: StoreLedger,
        digest_at: Callable[[str, int], bytes | None],
    ) -> Verdict:
        staged = self._digests.get((store_id, record.seq))
        if staged is not None:
            return Verdict.DUPLICATE if staged == record.digest else Verdict.CONFLICT
        known = ledger.digest(record.seq)
        if known is None and ledger.known.holds(record.seq):
            known = digest_at(store_id, record.seq)
        return ledger.judge(record, known)

    def _decode(
        self, batch: TeleBatch, record: Record, schemas: Schemas
    ) -> tuple[NackCode | None, int]:
        try:
            columns, schema, devices = schemas.decode(batch.site_id, record)
        except DecodeError as exc:
            if exc.code in NackCode._value2member_map_:
                return NackCode(exc.code), 0
            return _NACK_BY_ERROR.get(exc.code, NackCode.MALFORMED), 0
        assert isinstance(schema, TelemetrySchema)
        assert isinstance(devices, DeviceList)
        self._digests[batch.store_id, record.seq] = record.digest
        self.rows.append(
            Decoded(
                store_id=batch.store_id,
                record=record,
                batch=columns,
                schema=schema,
                devices=devices,
            )
        )
        return None, columns.points
