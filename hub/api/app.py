"""Put the routes, the guard, the error handler and the front layer together."""

from functools import cache

import msgspec
from litestar import Litestar, Router
from litestar.di import Provide
from litestar.types import ControllerRouterHandler

from hub.api import api_keys, auth, keys, live, openapi, orders, problems, reports, workloads
from hub.api.deps import Deps
from hub.api.front import Front
from hub.api.guard import guard
from hub.web import pages


def _documented() -> list[ControllerRouterHandler]:
    """Make the routes that the OpenAPI document describes."""
    api = Router(
        path="/api/v1",
        route_handlers=[
            auth.login,
            auth.read_me,
            api_keys.list_api_keys,
            api_keys.make_api_key,
            api_keys.revoke_api_key,
            workloads.submit,
            workloads.list_workloads,
            workloads.read_workload,
            workloads.cancel,
            keys.make_key,
            orders.give_order,
            orders.list_orders,
            orders.cancel_order,
            reports.quote,
            reports.list_resources,
            reports.list_switches,
            reports.read_summary,
            reports.read_usage,
            reports.read_revenue,
            reports.list_invoices,
            reports.read_invoice,
            reports.read_health,
            live.live,
        ],
    )
    return [api, auth.read_jwks]


@cache
def _encoded_document() -> bytes:
    # The same for every application of this process, and 0.1 s of work.
    return msgspec.json.encode(openapi.document(_documented()))


def build_routes(deps: Deps) -> Litestar:
    """Make the Litestar application, without the front layer."""

    async def provide_deps() -> Deps:
        return deps

    return Litestar(
        route_handlers=[
            *_documented(),
            openapi.schema_route(_encoded_document()),
            pages.read_page,
            pages.read_asset,
        ],
        dependencies={"deps": Provide(provide_deps)},
        guards=[guard],
        exception_handlers={Exception: problems.handle},
        openapi_config=None,
        request_max_body_size=deps.limits.body_bytes_max,
        debug=False,
        logging_config=None,
    )


def build_app(deps: Deps) -> Front:
    """Make the whole ASGI application; ``.app`` is the Litestar application inside."""
    return Front(build_routes(deps), deps)
