"""Identities: who made them, how long they live, and the derived ones.

Every id is a short string made by its writer and stored before it is sent. ``usage_id`` is derived
from what it names, so that a replay repeats it.
"""

from collections.abc import Callable
from datetime import datetime
from hashlib import blake2b
from typing import NewType

from protocol.units import to_ms

SiteId = NewType("SiteId", str)
NodeId = NewType("NodeId", str)
DeviceId = NewType("DeviceId", str)
CustomerId = NewType("CustomerId", str)
WorkloadId = NewType("WorkloadId", str)
LeaseId = NewType("LeaseId", str)
SwitchId = NewType("SwitchId", str)
InstanceId = NewType("InstanceId", str)
UsageId = NewType("UsageId", str)
StoreId = NewType("StoreId", str)
BootId = NewType("BootId", str)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class IdSource:
    """Makes time-ordered ids ``<prefix>-<10 characters of time><8 of randomness>``.

    Args:
        random_bytes: the injected source of randomness.
    """

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        """Keep the source; nothing is drawn yet."""
        self._random_bytes = random_bytes

    def new(self, prefix: str, now: datetime) -> str:
        """Make one id.

        Args:
            prefix: kind of the thing named, e.g. ``w`` for a workload.
            now: aware UTC time that orders it.
        """
        return f"{prefix}-{_base32(to_ms(now), 10)}{self.token()}"

    def secret(self, size: int) -> bytes:
        """Give random bytes for a secret.

        Args:
            size: how many, 16 or more.
        """
        return self._random_bytes(size)

    def token(self) -> str:
        """Make eight random characters (40 bits)."""
        return _base32(int.from_bytes(self._random_bytes(5), "big"), 8)


def lease_id_of(workload_id: WorkloadId, attempt: int) -> LeaseId:
    """Name the lease of attempt ``attempt`` (1..) of a workload: one lease per attempt."""
    return LeaseId(f"{workload_id}.{attempt}")


def usage_id_of(
    site_id: str, lease_id: str, attempt: int, device_id: str, instance_id: str, interval_no: int
) -> UsageId:
    """Derive the identity of one metered interval; equal inputs give the equal id for ever."""
    text = "\x1f".join((site_id, lease_id, str(attempt), device_id, instance_id, str(interval_no)))
    return UsageId(blake2b(text.encode(), digest_size=16).hexdigest())


def _base32(value: int, width: int) -> str:
    characters = []
    for _ in range(width):
        characters.append(_ALPHABET[value & 31])
        value >>= 5
    return "".join(reversed(characters))
