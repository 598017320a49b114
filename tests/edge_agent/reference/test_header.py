"""Blocks of the real chain, and a second construction that shares no code with the first."""

import hashlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.reference.errors import StratumError
from edge_agent.reference.header import (
    bits_target,
    double_sha256,
    header_hash,
    header_prefix,
    meets,
    merkle_root,
    share_target,
)
from edge_agent.reference.stratum import (
    Session,
    Share,
    decode_line,
    job_prefix,
    read_difficulty,
    read_extranonce,
    read_job,
    read_session,
    submit_params,
)

GENESIS_COINBASE = (
    "01000000010000000000000000000000000000000000000000000000000000000000000000ffffffff4d04ffff00"
    "1d0104455468652054696d65732030332f4a616e2f32303039204368616e63656c6c6f72206f6e206272696e6b20"
    "6f66207365636f6e64206261696c6f757420666f722062616e6b73ffffffff0100f2052a01000000434104678afd"
    "b0fe5548271967f1a67130b7105cd6a828e03909a67962e0ea1f61deb649f6bc3f4cef38c4f35504e51ec112de5c"
    "384df7ba0b8d578a4c702b6bf11d5fac00000000"
)
GENESIS_HASH = "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"
# Block 100,000: the first transaction's id and the other three, as block explorers show them.
BLOCK_100000_TXIDS = (
    "8c14f0db3df150123e6f3dbbf30f8b955a8249b62ac1d1ff16284aefa3d06d87",
    "fff2525b8931402dd09222c50775608f75787bd2b87e56995a7bdd30f79702c4",
    "6359f0868171b1d194cbee1af2f16ea598ae8fad666d9b012c8ed2b79a236ec4",
    "e9a66845e05d5abc0ad04ec80f774a7e585c6e8db975962d069a522137b80c1d",
)
BLOCK_100000_ROOT = "f3e94742aca4b5ef85488dc37c06c3282295ffec960994b2c0d5ac2a25a95766"
BLOCK_100000_HASH = "000000000003ba27aa200b1cecaad478d2b00432346c3f1f3986da1afd33e506"


def shown(digest: bytes) -> str:
    return digest[::-1].hex()


def internal(text: str) -> bytes:
    return bytes.fromhex(text)[::-1]


def test_the_genesis_block_is_found_from_its_job() -> None:
    coinbase = bytes.fromhex(GENESIS_COINBASE)
    # The message of a pool whose extranonces lie inside the headline.
    job = read_job(
        [
            "genesis",
            "00" * 32,
            coinbase[:60].hex(),
            coinbase[68:].hex(),
            [],
            "00000001",
            "1d00ffff",
            "495fab29",
            True,
        ]
    )
    session = Session(extranonce1=coinbase[60:64], extranonce2_bytes=4)
    digest = header_hash(job_prefix(job, session, coinbase[64:68]), 2083236893)
    assert shown(digest) == GENESIS_HASH
    assert meets(digest, bits_target(job.nbits))
    share = Share(job=job, session=session, extranonce2=coinbase[64:68], nonce=2083236893)
    assert submit_params(share, "w") == ["w", "genesis", coinbase[64:68].hex(), "495fab29",
                                         "7c2bac1d"]  # fmt: skip


def test_a_later_block_has_its_root_and_its_hash() -> None:
    first, *rest = [internal(txid) for txid in BLOCK_100000_TXIDS]
    branch = [rest[0], double_sha256(rest[1] + rest[2])]
    root = first
    for sibling in branch:
        root = double_sha256(root + sibling)
    assert shown(root) == BLOCK_100000_ROOT
    previous = internal("000000000002d01c1fccc21636b607dfd930d31d01c3a62104612a1719011250")
    prefix = header_prefix(1, previous, root, 1293623863, 0x1B04864C)
    digest = header_hash(prefix, 274148111)
    assert shown(digest) == BLOCK_100000_HASH
    assert meets(digest, bits_target(0x1B04864C))
    assert not meets(header_hash(prefix, 274148112), bits_target(0x1B04864C))


def test_a_coinbase_is_hashed_before_it_is_folded() -> None:
    root = merkle_root(bytes.fromhex(GENESIS_COINBASE), [])
    assert shown(root) == "4a5e1e4baab89f3a32518a88c31bc87f618f76673e2cc77ab2127b7afdeda33b"


@given(
    st.integers(0, 2**32 - 1),
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=80),
    st.binary(max_size=80),
    st.lists(st.binary(min_size=32, max_size=32), max_size=5),
    st.binary(min_size=1, max_size=8),
    st.binary(max_size=8),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)
def test_a_header_equals_one_built_from_the_numbers(  # noqa: PLR0917
    version: int,
    previous: bytes,
    coinbase1: bytes,
    coinbase2: bytes,
    branch: list[bytes],
    extranonce2: bytes,
    extranonce1: bytes,
    ntime: int,
    nbits: int,
    nonce: int,
) -> None:
    # What the protocol sends, from the block as numbers: the previous hash is shown as one number,
    # and sent as its eight words from the lowest up.
    number = int.from_bytes(previous, "big")
    words = [f"{number >> (32 * index) & 0xFFFFFFFF:08x}" for index in range(8)]
    job = read_job(
        [
            "j",
            "".join(words),
            coinbase1.hex(),
            coinbase2.hex(),
            [item.hex() for item in branch],
            f"{version:08x}",
            f"{nbits:08x}",
            f"{ntime:08x}",
            False,
        ]
    )
    session = Session(extranonce1=extranonce1, extranonce2_bytes=len(extranonce2))
    # Independent: the header as one little-endian number, built from the highest field down.
    digest = hashlib.new("sha256", coinbase1 + extranonce1 + extranonce2 + coinbase2).digest()
    folded = hashlib.new("sha256", digest).digest()
    for item in branch:
        pair = hashlib.new("sha256", folded + item)
        folded = hashlib.new("sha256", pair.digest()).digest()
    value = nonce
    value = value << 32 | nbits
    value = value << 32 | ntime
    value = value << 256 | int.from_bytes(folded, "little")
    value = value << 256 | number
    value = value << 32 | version
    once = hashlib.new("sha256", value.to_bytes(80, "little")).digest()
    expected = hashlib.new("sha256", once).digest()
    assert header_hash(job_prefix(job, session, extranonce2), nonce) == expected


@given(st.floats(1e-9, 1e15))
def test_a_share_target_is_the_largest_that_is_hard_enough(difficulty: float) -> None:
    target = share_target(Fraction(difficulty))
    hardest = 0xFFFF * 2**208
    if target < 2**256 - 1:
        assert Fraction(target) * Fraction(difficulty) <= hardest
        assert Fraction(target + 1) * Fraction(difficulty) > hardest
    else:
        assert Fraction(hardest, 2**256 - 1) >= Fraction(difficulty)


def test_compact_targets_are_those_of_the_documentation() -> None:
    assert bits_target(0x1D00FFFF) == 0xFFFF << 208
    assert bits_target(0x1B0404CB) == 0x0404CB << 192
    assert bits_target(0x01003456) == 0
    assert bits_target(0x02008000) == 0x80
    assert bits_target(0x05009234) == 0x92340000
    assert share_target(Fraction(1)) == bits_target(0x1D00FFFF)


GOOD_JOB: list[object] = [
    "j", "00" * 32, "01", "02", ["00" * 32], "20000000", "1d00ffff", "495fab29", True,
]  # fmt: skip


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, ""),
        (0, 7),
        (0, "x" * 500),
        (1, "00" * 31),
        (1, None),
        (2, "0"),
        (3, "zz"),
        (4, "00"),
        (4, ["00"]),
        (4, ["00" * 32] * 65),
        (5, "2000000"),
        (6, 5),
        (7, "495fab2900"),
    ],
)
def test_a_damaged_job_is_refused(at: int, value: object) -> None:
    params = list(GOOD_JOB)
    params[at] = value
    with pytest.raises(StratumError):
        read_job(params)
    with pytest.raises(StratumError):
        read_job(params[:8])


@pytest.mark.parametrize("value", [0, -1, True, "1", None, 1e300, 1e-30, [1]])
def test_a_difficulty_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(StratumError):
        read_difficulty([value])


def test_a_subscription_is_read_and_its_session_named() -> None:
    answer = [[["mining.set_difficulty", "d1"], ["mining.notify", "s1"]], "08000002", 4]
    assert read_session(answer) == Session(
        extranonce1=bytes.fromhex("08000002"), extranonce2_bytes=4, session_id="s1"
    )
    for wrong in (None, [], [None, "zz", 4], [None, "00", 0], [None, "00", 99], [None, "00", True]):
        with pytest.raises(StratumError):
            read_session(wrong)
    with pytest.raises(StratumError):
        read_extranonce(["00" * 17, 4], "")


@given(st.binary(max_size=200))
def test_no_line_breaks_the_reader(line: bytes) -> None:
    try:
        decode_line(line)
    except StratumError as error:
        assert error.code == "stratum"


def test_a_megabyte_of_brackets_is_refused() -> None:
    with pytest.raises(StratumError):
        decode_line(b'{"params":' + b"[" * 1_000_000)
