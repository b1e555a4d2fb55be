"""The HTTP client: a request is sent, the answer's head awaited, every failure put in our words.

The only user of the client. Nothing here chooses an instance or knows of another attempt.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp

from nexus_gateway import __version__
from nexus_gateway.classify import Outcome, Verdict, classify, read_error
from nexus_gateway.errors import GatewayError
from nexus_gateway.instance import Instance
from nexus_gateway.provider import HttpRequest
from nexus_gateway.receiving import read_up_to, release

logger = logging.getLogger("nexus_gateway")

CONNECT_TIMEOUT_S = 3.0
KEEP_CONNECTION_S = 30.0
READ_BUFFER = 256 * 1024
LARGE_BODY = 512 * 1024
LONGEST_ERROR = 64 * 1024


class AttemptFailed(Exception):
    """An attempt that brought no answer.

    Args:
        verdict: why, and what it means.
    """

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


def failure(reason: str) -> AttemptFailed:
    """Make a failure that is the instance's."""
    return AttemptFailed(Verdict(Outcome.FAILURE, reason))


@asynccontextmanager
async def client_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Open the HTTP client that all attempts share.

    No limit on connections (a stream holds one for minutes), no total timeout (streams are
    bounded by silence, not by length), no cookies, no proxies from the environment.
    """
    connector = aiohttp.TCPConnector(
        limit=0, ttl_dns_cache=300, keepalive_timeout=KEEP_CONNECTION_S
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"nexus-gateway/{__version__}", "Accept-Encoding": "identity"},
        read_bufsize=READ_BUFFER,
        trust_env=False,
    ) as session:
        yield session


async def send(
    session: aiohttp.ClientSession, instance: Instance, http: HttpRequest
) -> aiohttp.ClientResponse:
    """Send a request and wait for the answer's head.

    Raises:
        AttemptFailed: anything but a 2xx came, or nothing.
        GatewayError: the caller's own body could not be read to its end.
    """
    body = http.body
    # In one piece a large body would be copied, and block the loop, all at once.
    data = io.BytesIO(body) if isinstance(body, bytes) and len(body) > LARGE_BODY else body
    try:
        response = await session.post(
            http.url, data=data, headers=http.headers, allow_redirects=False
        )
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if isinstance(error.__cause__, GatewayError):
            raise error.__cause__ from error
        raise failure(_connection_reason(error)) from error
    except TypeError as error:
        logger.exception("the plugin %s made a request that cannot be sent", instance.plugin)
        raise failure("the provider's plugin failed") from error
    if 200 <= response.status < 300:
        return response
    try:
        said = await read_up_to(response, LONGEST_ERROR)
    except (aiohttp.ClientError, OSError, ValueError):
        said = b""
    finally:
        response.close()
    raise AttemptFailed(_judge(instance, response, said))


async def read_whole(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read an answer in one piece, and give the connection back.

    Raises:
        AttemptFailed: it was cut off, or is larger than the limit in bytes.
    """
    read = False
    try:
        body = await read_up_to(response, limit)
        read = len(body) < limit
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise failure("cut its answer off") from error
    finally:
        await release(response, whole=read)
    if not read:
        raise failure("sent too large an answer")
    return body


def _judge(instance: Instance, response: aiohttp.ClientResponse, body: bytes) -> Verdict:
    """Let the provider judge first, then the table."""
    try:
        verdict = instance.provider.read_failure(response.status, response.headers, body)
        if not isinstance(verdict, Verdict | None):
            raise TypeError("read_failure returned something that is no verdict")
    except Exception:
        logger.exception("the plugin %s failed to read a failure", instance.plugin)
        verdict = None
    if verdict is None:
        return classify(response.status, response.headers, body, time.time())
    if verdict.outcome is Outcome.REFUSED and verdict.error is None:
        status = verdict.status or response.status
        return replace(verdict, status=status, error=read_error(body))
    return verdict


def _connection_reason(error: Exception) -> str:
    """Say what went wrong below HTTP, in our words: an exception's own may hold a URL."""
    kinds: list[tuple[type[Exception], str]] = [
        (aiohttp.ClientConnectorDNSError, "its host name was not found"),
        (aiohttp.ClientSSLError, "TLS failed"),
        (aiohttp.ConnectionTimeoutError, "could not be reached in time"),
        (aiohttp.ClientConnectorError, "refused the connection"),
        (aiohttp.ServerDisconnectedError, "closed the connection"),
        (aiohttp.ClientOSError, "reset the connection"),
        (aiohttp.InvalidURL, "its base URL is not valid"),
    ]
    return next((words for kind, words in kinds if isinstance(error, kind)), "broke HTTP's rules")
