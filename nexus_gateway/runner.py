"""aiohttp's runner, with our own words for what is not HTTP.

What its parser refuses never becomes a request of the application: no middleware sees it, and
aiohttp answers with a page of its own that names its version and quotes what came. Here such a
caller gets an error in OpenAI's shape like any other.
"""

from __future__ import annotations

import secrets

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from nexus_gateway.errors import GatewayError, InternalError, InvalidRequest


class _Connection(web.RequestHandler):
    """A caller's connection."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be read or served; aiohttp has its say in the log alone."""
        super().handle_error(request, status, exc, message)
        id = f"req-{secrets.token_hex(12)}"
        error = _unreadable(exc) if status < 500 else InternalError(id)
        answer = web.json_response(error.body(), status=status)
        # aiohttp would name itself and its version where nobody is named.
        answer.headers.update({"X-Request-Id": id, "Server": "nexus-gateway"})
        answer.force_close()
        return answer


def _unreadable(error: BaseException | None) -> GatewayError:
    if isinstance(error, LineTooLong):
        return InvalidRequest("A line of the request's head is too long.", code="head_too_long")
    return InvalidRequest("The request breaks HTTP's rules and was not read.", code="not_http")


class _Server(web.Server):
    """Makes connections."""

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """An application's runner."""

    __slots__ = ()

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )
