"""Put the routes, the guard, the error handler and the front layer together."""

from litestar import Litestar, Router
from litestar.di import Provide
from litestar.types import ControllerRouterHandler

from hub.api import auth, live, openapi, problems, reports, workloads
from hub.api.deps import Deps
from hub.api.front import Front
from hub.api.guard import guard
from hub.web import pages


def build_routes(deps: Deps) -> Litestar:
    """Make the Litestar application, without the front layer."""

    async def provide_deps() -> Deps:
        return deps

    api = Router(
        path="/api/v1",
        route_handlers=[
            auth.login,
            auth.read_me,
            workloads.submit,
            workloads.list_workloads,
            workloads.read_workload,
            workloads.cancel,
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
    documented: list[ControllerRouterHandler] = [api, auth.read_jwks]
    return Litestar(
        route_handlers=[
            *documented,
            openapi.schema_route(documented),
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
    return Front(build_routes(deps), deps)  # type: ignore[arg-type]
