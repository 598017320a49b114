"""Stratum V1 as bytes and values: lines, jobs, and the header that a job makes.

Source: en.bitcoin.it/wiki/Stratum_mining_protocol; slush's stratum-mining documentation. Numbers
of a job are big-endian hex, its previous hash is eight words of four bytes each turned around.
"""

import binascii
import json
from fractions import Fraction
from typing import Any

import msgspec
from msgspec import Struct

from edge_agent.reference.errors import StratumError
from edge_agent.reference.header import header_prefix, merkle_root, share_target

LINE_BYTES_MAX = 256 * 1_024
_BRANCH_MAX = 64
_COINBASE_BYTES_MAX = 64 * 1_024
_JOB_ID_MAX = 128
_EXTRANONCE_BYTES_MAX = 16
_DIFFICULTY_RANGE = (1e-12, 1e18)


class Line(Struct, frozen=True, kw_only=True):
    """One line of a pool: an answer (``method`` empty), a request or a notice."""

    id: int | str | None = None
    method: str | None = None
    params: Any = None
    result: Any = None
    error: Any = None


class Session(Struct, frozen=True, kw_only=True):
    """What a pool gave this connection: what comes between the halves of a coinbase."""

    extranonce1: bytes
    extranonce2_bytes: int
    session_id: str = ""


class Job(Struct, frozen=True, kw_only=True):
    """One job; ``previous`` and ``branch`` in internal byte order, ``ntime`` as given."""

    job_id: str
    previous: bytes
    coinbase1: bytes
    coinbase2: bytes
    branch: tuple[bytes, ...]
    version: int
    nbits: int
    ntime: int
    clean: bool


class Share(Struct, frozen=True, kw_only=True):
    """A nonce that was found and verified."""

    job: Job
    session: Session
    extranonce2: bytes
    nonce: int


_decoder = msgspec.json.Decoder(Line)


def decode_line(line: bytes) -> Line:
    """Read one line.

    Raises:
        StratumError: it is no JSON object of the protocol.
    """
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise StratumError(f"not a Stratum line: {str(exc)[:120]}") from exc


def encode_request(number: int, method: str, params: list[object]) -> bytes:
    """Make the line of a request."""
    return json.dumps({"id": number, "method": method, "params": params}).encode() + b"\n"


def read_session(result: object) -> Session:
    """Read the answer to ``mining.subscribe``: [[[method, id], ...], extranonce1, size].

    Raises:
        StratumError: something else was answered.
    """
    items = _items(result, 3, "subscribe")
    session_id = ""
    if isinstance(items[0], list):
        for pair in items[0]:
            if isinstance(pair, list) and pair[:1] == ["mining.notify"] and len(pair) > 1:
                session_id = str(pair[1])[:_JOB_ID_MAX]
    return read_extranonce(items[1:3], session_id)


def read_extranonce(params: object, session_id: str) -> Session:
    """Read [extranonce1, size]: a part of the subscription, or ``mining.set_extranonce``.

    Raises:
        StratumError: it is not of that form, or leaves no room to search in.
    """
    items = _items(params, 2, "extranonce")
    size = items[1]
    if type(size) is not int or not 1 <= size <= _EXTRANONCE_BYTES_MAX:
        raise StratumError(f"extranonce2 size {str(size)[:40]} is not 1..{_EXTRANONCE_BYTES_MAX}")
    extranonce1 = _hex(items[0], "extranonce1", most=_EXTRANONCE_BYTES_MAX)
    return Session(extranonce1=extranonce1, extranonce2_bytes=size, session_id=session_id)


def read_difficulty(params: object) -> int:
    """Read ``mining.set_difficulty`` as the target of a share.

    Raises:
        StratumError: it is no number, or outside what any pool sets.
    """
    value = _items(params, 1, "set_difficulty")[0]
    low, high = _DIFFICULTY_RANGE
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise StratumError(f"difficulty {str(value)[:40]}")
    return share_target(Fraction(value))


def read_job(params: object) -> Job:
    """Read ``mining.notify``.

    Raises:
        StratumError: a field is missing, not hex, or of another size.
    """
    items = _items(params, 9, "notify")
    job_id, branch = items[0], items[4]
    if not isinstance(job_id, str) or not 0 < len(job_id) <= _JOB_ID_MAX:
        raise StratumError("notify: job id")
    if not isinstance(branch, list) or len(branch) > _BRANCH_MAX:
        raise StratumError("notify: merkle branch")
    return Job(
        job_id=job_id,
        previous=turn_words(_hex(items[1], "previous hash", exactly=32)),
        coinbase1=_hex(items[2], "coinbase1", most=_COINBASE_BYTES_MAX),
        coinbase2=_hex(items[3], "coinbase2", most=_COINBASE_BYTES_MAX),
        branch=tuple(_hex(item, "merkle branch", exactly=32) for item in branch),
        version=_number(items[5], "version"),
        nbits=_number(items[6], "nbits"),
        ntime=_number(items[7], "ntime"),
        clean=items[8] is True,
    )


def job_prefix(job: Job, session: Session, extranonce2: bytes) -> bytes:
    """Give the 76 bytes of the header before its nonce."""
    assert len(extranonce2) == session.extranonce2_bytes
    coinbase = job.coinbase1 + session.extranonce1 + extranonce2 + job.coinbase2
    root = merkle_root(coinbase, job.branch)
    return header_prefix(job.version, job.previous, root, job.ntime, job.nbits)


def submit_params(share: Share, user: str) -> list[object]:
    """Give the parameters of ``mining.submit``; numbers big-endian, as in the job."""
    return [
        user,
        share.job.job_id,
        share.extranonce2.hex(),
        f"{share.job.ntime:08x}",
        f"{share.nonce:08x}",
    ]


def turn_words(data: bytes) -> bytes:
    """Turn each word of four bytes around."""
    return b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))


def _items(value: object, least: int, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) < least:
        raise StratumError(f"{what}: want {least} items")
    return value


def _hex(value: object, what: str, *, exactly: int | None = None, most: int = 32) -> bytes:
    try:
        data = binascii.unhexlify(value) if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        data = None
    if data is None or len(data) > most or (exactly is not None and len(data) != exactly):
        raise StratumError(f"{what}: {str(value)[:40]!r}")
    return data


def _number(value: object, what: str) -> int:
    return int.from_bytes(_hex(value, what, exactly=4), "big")
