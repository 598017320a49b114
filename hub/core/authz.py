"""Who may do what: one table, route x role; a route that is not in it is refused to everybody.

``own`` means that the handler shows the caller's own rows only, and answers 404 for foreign ids.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Role(StrEnum):
    """Roles of callers; anonymous is a caller without a token."""

    ADMIN = "admin"
    OPERATOR = "operator"
    CUSTOMER = "customer"
    ANONYMOUS = "anonymous"


class Access(StrEnum):
    """What a role may see through a route."""

    NO = "no"
    OWN = "own"
    ALL = "all"


class Decision(StrEnum):
    """Outcome for one request."""

    ALLOW = "allow"
    AUTHENTICATE = "authenticate"
    FORBID = "forbid"


_ALL, _OWN, _NO = Access.ALL, Access.OWN, Access.NO
_EVERYBODY = (_ALL, _ALL, _ALL, _ALL)
_SIGNED_IN = (_ALL, _ALL, _OWN, _NO)
_STAFF = (_ALL, _ALL, _NO, _NO)

_ROLES = (Role.ADMIN, Role.OPERATOR, Role.CUSTOMER, Role.ANONYMOUS)
# (method, path template): admin, operator, customer, anonymous
_TABLE: dict[tuple[str, str], tuple[Access, Access, Access, Access]] = {
    ("GET", "/"): _EVERYBODY,
    ("GET", "/static/{name}"): _EVERYBODY,
    ("GET", "/schema"): _EVERYBODY,
    ("GET", "/.well-known/jwks.json"): _EVERYBODY,
    ("GET", "/api/v1/.well-known/jwks.json"): _EVERYBODY,
    ("GET", "/api/v1/health"): _EVERYBODY,
    ("GET", "/api/v1/schema"): _EVERYBODY,
    ("POST", "/api/v1/auth/login"): _EVERYBODY,
    ("GET", "/api/v1/auth/me"): _SIGNED_IN,
    # A key acts for its user: everybody has those of their own, and nobody sees another's.
    ("GET", "/api/v1/api-keys"): (_OWN, _OWN, _OWN, _NO),
    ("POST", "/api/v1/api-keys"): (_OWN, _OWN, _OWN, _NO),
    ("DELETE", "/api/v1/api-keys/{key_id}"): (_OWN, _OWN, _OWN, _NO),
    ("POST", "/api/v1/workloads"): (_ALL, _NO, _OWN, _NO),
    ("GET", "/api/v1/workloads"): _SIGNED_IN,
    ("GET", "/api/v1/workloads/{workload_id}"): _SIGNED_IN,
    ("DELETE", "/api/v1/workloads/{workload_id}"): _SIGNED_IN,
    # A key opens a customer's model: nobody else makes one, staff neither.
    ("POST", "/api/v1/workloads/{workload_id}/key"): (_NO, _NO, _OWN, _NO),
    ("POST", "/api/v1/route"): _SIGNED_IN,
    ("GET", "/api/v1/resources"): _STAFF,
    ("POST", "/api/v1/sites/{site_id}/orders"): _STAFF,
    ("GET", "/api/v1/sites/{site_id}/orders"): _STAFF,
    ("DELETE", "/api/v1/sites/{site_id}/orders/{order_id}"): _STAFF,
    ("GET", "/api/v1/switches"): _STAFF,
    ("GET", "/api/v1/revenue"): _STAFF,
    ("GET", "/api/v1/metrics/summary"): _STAFF,
    ("GET", "/api/v1/usage"): _SIGNED_IN,
    ("GET", "/api/v1/invoices"): _SIGNED_IN,
    ("GET", "/api/v1/invoices/{number}"): _SIGNED_IN,
    # The socket asks for its token itself: a browser cannot set headers on it.
    ("WEBSOCKET", "/api/v1/live"): _EVERYBODY,
}  # fmt: skip

ROUTES: Mapping[tuple[str, str], Mapping[Role, Access]] = MappingProxyType(
    {route: MappingProxyType(dict(zip(_ROLES, row, strict=True))) for route, row in _TABLE.items()}
)


def access_of(role: Role, method: str, path: str) -> Access:
    """Give what a role may see through a route; an unknown route gives nothing."""
    row = ROUTES.get((method, path))
    return Access.NO if row is None else row[role]


def decide(role: Role, method: str, path: str) -> Decision:
    """Decide one request.

    Args:
        role: of the caller. method: in capitals. path: template as in the table.
    """
    if access_of(role, method, path) is not Access.NO:
        return Decision.ALLOW
    return Decision.AUTHENTICATE if role is Role.ANONYMOUS else Decision.FORBID


def may_see(role: Role, own_customer_id: str | None, customer_id: str) -> bool:
    """Tell whether a caller may see a row of ``customer_id``."""
    if role in (Role.ADMIN, Role.OPERATOR):
        return True
    return role is Role.CUSTOMER and own_customer_id == customer_id
