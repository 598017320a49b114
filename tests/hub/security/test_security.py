"""Keys on disk, passwords and buckets."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.errors import ConfigError
from hub.security.passwords import Argon2Passwords
from hub.security.rate_limit import TokenBuckets
from hub.security.tokens import load_keys

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_the_first_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    (first,) = load_keys(folder, NOW)
    (again,) = load_keys(folder, NOW)
    assert first.thumbprint() == again.thumbprint()
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="key_exposed"):
        load_keys(folder, NOW)


def test_a_file_that_is_no_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "20260301T000000Z.pem"
    path.write_text("-----BEGIN NOTHING-----")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="key_unreadable"):
        load_keys(tmp_path, NOW)


async def test_argon2_checks_and_knows_nobody() -> None:
    passwords = Argon2Passwords()
    stored = await passwords.hash("correct horse")
    assert stored.startswith("$argon2id$")
    assert await passwords.verify(stored, "correct horse")
    assert not await passwords.verify(stored, "battery staple")
    assert not await passwords.verify(None, "nobody's password")
    assert not await passwords.verify("not a hash", "x")
    passwords.close()


@given(
    rate=st.integers(1, 1_000),
    burst=st.integers(1, 50),
    gaps_ms=st.lists(st.integers(0, 2_000), min_size=1, max_size=80),
)
def test_a_bucket_lets_through_its_burst_and_then_its_rate(
    rate: int, burst: int, gaps_ms: list[int]
) -> None:
    buckets = TokenBuckets(float(rate), burst)
    now_ms, passed = 0, 0
    for gap_ms in gaps_ms:
        now_ms += gap_ms
        allowance = buckets.take("c", now_ms * 1_000_000)
        passed += allowance.allowed
        assert passed <= burst + now_ms * rate / 1_000 + 1e-6
        assert allowance.allowed == (allowance.retry_after_s == 0)
        if not allowance.allowed:
            later_ns = now_ms * 1_000_000 + allowance.retry_after_s * 10**9
            probe = TokenBuckets(float(rate), burst)
            probe._buckets = buckets._buckets.copy()
            assert probe.take("c", later_ns).allowed


def test_only_so_many_callers_are_remembered() -> None:
    buckets = TokenBuckets(1.0, 1, callers_max=3)
    for caller in "abcd":
        assert buckets.take(caller, 0).allowed
    assert not buckets.take("d", 0).allowed
    assert buckets.take("a", 0).allowed  # forgotten, so full again
