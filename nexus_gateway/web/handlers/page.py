"""GET /: the Control Center's page and its few files.

The page holds no data and is public; it requests what it shows by admin calls. A strict policy
lets it load, run and call nothing but this gateway.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

from aiohttp import web

from nexus_gateway.errors import NotFound

_FOLDER = Path(__file__).parents[1] / "static"
_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "json": "application/json",
    "svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class File:
    body: bytes
    content_type: str
    tag: str  # changes with the body


@cache
def files() -> dict[str, File]:
    """Read the page's files, by name, once.

    A name in a request is looked up here and never becomes a path.
    """
    by_name = {}
    for path in _FOLDER.iterdir():
        if content_type := _TYPES.get(path.suffix[1:]):
            body = path.read_bytes()
            tag = blake2b(body, digest_size=8).hexdigest()
            by_name[path.name] = File(body, content_type, tag)
    return by_name


async def page(request: web.Request) -> web.StreamResponse:
    return _answer(request, "index.html")


async def static(request: web.Request) -> web.StreamResponse:
    return _answer(request, request.match_info["name"])


def _answer(request: web.Request, name: str) -> web.StreamResponse:
    file = files().get(name)
    if file is None:
        raise NotFound(f"The page has no file {name!r}.", code="unknown_path")
    headers = {**_HEADERS, "ETag": f'"{file.tag}"'}
    if any(tag.value == file.tag for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    kind = file.content_type
    return web.Response(body=file.body, content_type=kind, charset="utf-8", headers=headers)
