"""The page at ``/`` and its assets: our own files only, under a strict content security policy."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from hub.version import VERSION

_HERE = Path(__file__).parent
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ASSETS: dict[str, tuple[bytes, str]] = {
    name: ((_HERE / "static" / name).read_bytes(), media)
    for name, media in (
        ("app.js", "text/javascript"),
        ("common.js", "text/javascript"),
        ("forms.js", "text/javascript"),
        ("keys.js", "text/javascript"),
        ("orders.js", "text/javascript"),
        ("style.css", "text/css"),
        ("icon.svg", "image/svg+xml"),
    )
}
_PAGE = (
    Environment(
        loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined
    )
    .get_template("index.html")
    .render(version=VERSION)
    .encode()
)


@get("/", include_in_schema=False)
async def read_page() -> Response[bytes]:
    """Serve the page; it holds no data, so anybody may have it."""
    return Response(
        _PAGE,
        media_type="text/html",
        headers={"Content-Security-Policy": CSP, "Cache-Control": "no-cache"},
    )


@get("/static/{name:str}", include_in_schema=False)
async def read_asset(name: FromPath[str]) -> Response[bytes]:
    """Serve one file of the page."""
    found = _ASSETS.get(name)
    if found is None:
        raise NotFoundException("there is no such file")
    return Response(found[0], media_type=found[1], headers={"Cache-Control": "no-cache"})
