"""Passwords: argon2id off the loop, in a bounded executor, because one takes 0.1 s."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Protocol, TypeVar

from argon2 import PasswordHasher, exceptions

from hub.security.errors import TooManyPasswordsError

T = TypeVar("T")

WORKERS = 2
WAITING_MAX = 32
CHECK_S = 10.0


class Passwords(Protocol):
    """Hashes and checks passwords."""

    async def hash(self, password: str) -> str:
        """Give the stored form of a password."""
        ...

    async def verify(self, stored: str | None, password: str) -> bool:
        """Check a password; None (no such user) costs as much time and is always False."""
        ...


class Argon2Passwords:
    """The real one (argon2id with the library's defaults: RFC 9106, low memory)."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="hub-argon2")
        self._waiting = 0
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        """Give the stored form of a password."""
        return await self._run(self._hasher.hash, password)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Check a password; None costs as much time and is always False.

        Raises:
            TooManyPasswordsError: too many wait already.
        """
        if self._nobody is None:
            self._nobody = await self._run(self._hasher.hash, "nobody's password")
        matches = await self._run(self._check, stored or self._nobody, password)
        return matches and stored is not None

    def close(self) -> None:
        """Stop the workers."""
        self._pool.shutdown(cancel_futures=True)

    def _check(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (exceptions.VerificationError, exceptions.InvalidHashError):
            return False

    async def _run(self, function: Callable[..., T], *args: str) -> T:
        if self._waiting >= WAITING_MAX:
            raise TooManyPasswordsError("login_busy", "too many logins at once; try again")
        self._waiting += 1
        try:
            async with asyncio.timeout(CHECK_S):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._pool, function, *args)
        except TimeoutError as exc:
            raise TooManyPasswordsError("login_busy", "too many logins at once") from exc
        finally:
            self._waiting -= 1


class FakePasswords:
    """For tests and simulations only: quick, no threads, no security."""

    async def hash(self, password: str) -> str:
        """Give a plain digest."""
        return sha256(password.encode()).hexdigest()

    async def verify(self, stored: str | None, password: str) -> bool:
        """Compare digests."""
        return stored is not None and stored == await self.hash(password)
