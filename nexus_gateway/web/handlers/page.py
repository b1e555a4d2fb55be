"""GET /: the Control Center, and the few files that it is made of.

The page holds no data and is public; what it shows it asks for by admin calls. A strict policy
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
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_TYPES[".svg"] = "image/svg+xml"
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class File:
    """A file of the page.

    Args:
        body: what is in it.
        content_type: of what kind that is.
        tag: changes with it.
    """

    body: bytes
    content_type: str
    tag: str


@cache
def files() -> dict[str, File]:
    """Read the page's files, by name, when it is opened for the first time.

    There are no others: a name from outside is looked up here and never becomes a path.
    """
    found = {}
    for path in _FOLDER.iterdir():
        kind = _TYPES.get(path.suffix)
        if kind is not None:
            body = path.read_bytes()
            found[path.name] = File(body, kind, blake2b(body, digest_size=8).hexdigest())
    return found


async def page(request: web.Request) -> web.StreamResponse:
    """Answer with the page, or one of its files.

    Raises:
        NotFound: it has no such file.
    """
    name = request.match_info.get("name", "index.html")
    file = files().get(name)
    if file is None:
        raise NotFound(f"The page has no file {name!r}.", code="unknown_path")
    headers = {**_HEADERS, "ETag": f'"{file.tag}"'}
    if any(tag.value == file.tag for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.Response(
        body=file.body, content_type=file.content_type, charset="utf-8", headers=headers
    )
