"""A request is sent, the answer's head awaited, every failure put in our words.

Nothing here chooses an instance or knows of another attempt.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

import aiohttp

from nexus_gateway.classify import Outcome, Verdict, classify, read_error
from nexus_gateway.client import NO_MORE, Client
from nexus_gateway.descriptors import exhausted
from nexus_gateway.errors import GatewayError, Overloaded
from nexus_gateway.instance import Instance
from nexus_gateway.provider import HttpRequest
from nexus_gateway.receiving import HttpAnswer, read_up_to

logger = logging.getLogger("nexus_gateway")

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


async def send(
    client: Client, instance: Instance, http: HttpRequest, more: Mapping[str, str] = NO_MORE
) -> HttpAnswer:
    """Send a request, with more headers of this attempt's, and wait for the answer's head.

    Raises:
        AttemptFailed: anything but a 2xx came, or nothing.
        GatewayError: the caller's own body could not be read to its end, or this process has no
            file descriptor for it.
    """
    asked = instance.total_requests
    try:
        response = await client.post(http, more)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if isinstance(error.__cause__, GatewayError):
            raise error.__cause__ from error
        if exhausted(error):
            raise Overloaded from error
        raise failure(_connection_reason(error)) from error
    except TypeError as error:
        logger.exception("the plugin %s made a request that cannot be sent", instance.plugin)
        raise failure("the provider's plugin failed") from error
    _note_quotas(instance, response.headers, asked)
    if 200 <= response.status < 300:
        return response
    try:
        said = await read_up_to(response, LONGEST_ERROR)
    except (aiohttp.ClientError, OSError, ValueError):
        said = b""
    finally:
        response.close()
    raise AttemptFailed(_judge(instance, response, said))


async def read_whole(response: HttpAnswer, limit: int) -> bytes:
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
        await response.finish(whole=read)
    if not read:
        raise failure("sent too large an answer")
    return body


def _note_quotas(instance: Instance, headers: Mapping[str, str], asked: int) -> None:
    """Let the instance know what its upstream says of its rate limits."""
    try:
        instance.quotas.note(instance.provider.read_quotas(headers, time.time()), asked)
    except Exception:
        logger.exception("the plugin %s failed to read its quotas", instance.plugin)


def _judge(instance: Instance, response: HttpAnswer, body: bytes) -> Verdict:
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
