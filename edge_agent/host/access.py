"""Who may use what is served: keys of leases, known here by their hashes alone.

The node says the whole table; this process keeps it, so that customers are let in with hub,
network, agent and node gone. A key is compared by its digest, in constant time, with every key of
its lease. What is refused passes no gate and is counted by reason only.
"""

import hmac
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from hashlib import sha256

from edge_agent.host.door import TurnedAwayError
from protocol.lease import AccessKey
from protocol.node import LeaseKeys

KEY_BYTES_MAX = 256
_SCHEME = b"bearer"


class Verdict(StrEnum):
    """What a key is worth; all but the first are reasons to refuse."""

    GOOD = "good"
    MISSING = "missing_api_key"
    WRONG = "invalid_api_key"
    NONE_SET = "no_api_key_set"


_SAID: dict[Verdict, tuple[int, str]] = {
    Verdict.MISSING: (401, "send the workload's key: Authorization: Bearer KEY"),
    Verdict.WRONG: (401, "this is not, or no longer, a key of this workload"),
    Verdict.NONE_SET: (403, "this workload has no key yet; its owner makes one at the hub"),
}


def judge(keys: tuple[AccessKey, ...], key: bytes | None, now: datetime) -> Verdict:
    """Judge what a client sent.

    Args:
        keys: of the lease. key: as sent; None: nothing was. now: aware UTC time.
    """
    if not keys:
        return Verdict.NONE_SET
    if key is None:
        return Verdict.MISSING
    digest = sha256(key).hexdigest()
    good = False
    for one in keys:
        same = hmac.compare_digest(one.sha256, digest)
        good |= same and (one.until is None or now < one.until)
    return Verdict.GOOD if good else Verdict.WRONG


def bearer_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Give the key of a request; None when it has none, two, or one that is too long."""
    sent = [value for name, value in headers if name == b"authorization"]
    if len(sent) != 1:
        return None
    scheme, _, key = sent[0].strip().partition(b" ")
    key = key.strip()
    good = scheme.lower() == _SCHEME and 0 < len(key) <= KEY_BYTES_MAX
    return key if good else None


class Access:
    """The table of keys.

    Args:
        required: whether a key is asked for at all.

    Attributes:
        refused: requests by reason.
    """

    def __init__(self, *, required: bool) -> None:
        self._required = required
        self._table: dict[str, tuple[AccessKey, ...]] | None = None
        self.refused: Counter[str] = Counter()

    def replace(self, table: Iterable[LeaseKeys]) -> None:
        """Take the whole table in place of the one before."""
        self._table = {row.lease_id: row.keys for row in table}

    def is_over(self, lease_id: str) -> bool:
        """Tell whether a lease is known to be held here no longer."""
        return self._table is not None and lease_id not in self._table

    def may_come(self, lease_id: str) -> bool:
        """Tell whether work of a lease that has no instance here may yet begin."""
        return self._required if self._table is None else lease_id in self._table

    def check(self, lease_id: str, key: bytes | None, now: datetime) -> None:
        """Let a request on, or not.

        Raises:
            TurnedAwayError: with why.
        """
        if not self._required:
            return
        if self._table is None or lease_id not in self._table:
            # The node says it before it opens a gate; who is early comes again.
            self.refused["keys_unknown"] += 1
            raise TurnedAwayError(503, "keys_unknown", "the keys are not known yet", retry_s=1)
        verdict = judge(self._table[lease_id], key, now)
        if verdict is not Verdict.GOOD:
            self.refused[verdict.value] += 1
            status, detail = _SAID[verdict]
            raise TurnedAwayError(status, verdict.value, detail)
