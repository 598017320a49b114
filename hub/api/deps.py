"""What the handlers need, and who calls them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from litestar.di import NamedDependency
from msgspec import Struct

from hub.core.authz import Role
from hub.live import LiveChannel
from hub.ports import Clock, Dispatcher, LongReads, Store
from hub.security.passwords import Passwords
from hub.security.rate_limit import TokenBuckets
from hub.security.tokens import TokenKeys
from protocol.ids import IdSource

CALLER = "hcp.caller"


class Limits(Struct, frozen=True, kw_only=True):
    """How much the API takes.

    Args:
        rate_per_s, burst: requests of one signed-in caller.
        anonymous_rate_per_s, anonymous_burst: requests of one address without a token.
        logins_per_min: log-ins tried on one account, and ten times that from one address.
    """

    body_bytes_max: int = 64 * 1024
    rate_per_s: float = 500.0
    burst: int = 1_000
    anonymous_rate_per_s: float = 50.0
    anonymous_burst: int = 200
    logins_per_min: int = 10


class Counts(Protocol):
    """Counts of what happened since the start."""

    def snapshot(self) -> tuple[tuple[str, int], ...]:
        """Read all counts, by name."""
        ...


@dataclass(frozen=True, slots=True)
class Deps:
    """Ports and settings of the API, made by the composition root."""

    store: Store
    live: LiveChannel
    dispatcher: Dispatcher
    clock: Clock
    ids: IdSource
    tokens: TokenKeys
    passwords: Passwords
    limits: Limits
    callers: TokenBuckets
    addresses: TokenBuckets
    logins: TokenBuckets
    login_addresses: TokenBuckets
    counts: Counts
    long_reads: LongReads


HubDeps = NamedDependency[Deps]


class Caller(Struct, frozen=True, kw_only=True):
    """Who makes a request; ``sub`` is empty for an anonymous one.

    Args:
        expires_at: when it must prove itself again.
        key_id: the API key that it showed; None: a log-in's token.
        use_is_news: this use of the key is to be kept.
    """

    role: Role
    sub: str = ""
    email: str = ""
    customer_id: str | None = None
    expires_at: datetime | None = None
    key_id: str | None = None
    use_is_news: bool = False

    @property
    def is_staff(self) -> bool:
        """Tell whether the caller sees every customer's rows."""
        return self.role in (Role.ADMIN, Role.OPERATOR)

    @property
    def scope_id(self) -> str | None:
        """Give the customer whose rows the caller sees; None: everybody's."""
        if self.is_staff:
            return None
        assert self.customer_id is not None
        return self.customer_id


ANONYMOUS = Caller(role=Role.ANONYMOUS)


def caller_of(scope: Any) -> Caller:  # noqa: ANN401 - ASGI scopes are untyped mappings
    """Give the caller that the front layer put into an ASGI scope."""
    caller = scope.get(CALLER, ANONYMOUS)
    assert isinstance(caller, Caller)
    return caller


def make_deps(  # noqa: PLR0913 - each port by its name
    *,
    store: Store,
    live: LiveChannel,
    dispatcher: Dispatcher,
    clock: Clock,
    ids: IdSource,
    tokens: TokenKeys,
    passwords: Passwords,
    limits: Limits,
    counts: Counts,
    long_reads: LongReads,
) -> Deps:
    """Put the parts together with fresh buckets."""
    per_s = limits.logins_per_min / 60
    return Deps(
        store=store,
        live=live,
        dispatcher=dispatcher,
        clock=clock,
        ids=ids,
        tokens=tokens,
        passwords=passwords,
        limits=limits,
        callers=TokenBuckets(limits.rate_per_s, limits.burst),
        addresses=TokenBuckets(limits.anonymous_rate_per_s, limits.anonymous_burst),
        logins=TokenBuckets(per_s, limits.logins_per_min),
        login_addresses=TokenBuckets(per_s * 10, limits.logins_per_min * 10),
        counts=counts,
        long_reads=long_reads,
    )
