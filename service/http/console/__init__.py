"""Serve the console: one page, which can run no scripts but its own and reach no other host."""

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

_FOLDER = files(__package__)
_TYPES = {
    "index.html": "text/html",
    "console.css": "text/css",
    "console.js": "text/javascript",
    "citations.js": "text/javascript",
}
# Everything that is not named is forbidden: https://developer.mozilla.org/docs/Web/HTTP/Guides/CSP
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def build_console_router() -> APIRouter:
    """Build the routes of the page and its files. They hold no secrets: the page needs a key for what it shows."""
    router = APIRouter(include_in_schema=False)
    contents = {name: (_FOLDER / name).read_bytes() for name in _TYPES}

    def answer(name: str) -> Response:
        return Response(contents[name], media_type=_TYPES[name], headers=_HEADERS)

    @router.get("/console")
    async def page() -> Response:
        return answer("index.html")

    @router.get("/console/console.css")
    async def style() -> Response:
        return answer("console.css")

    @router.get("/console/console.js")
    async def script() -> Response:
        return answer("console.js")

    @router.get("/console/citations.js")
    async def citations() -> Response:
        return answer("citations.js")

    return router
