"""One tiny real request to every instance: does its key work, and how fast?"""

from __future__ import annotations

import asyncio
import time

from nexus_gateway import json_codec
from nexus_gateway.dialects.chat import CHAT_COMPLETIONS
from nexus_gateway.instance import Instance
from nexus_gateway.pool import Pool
from nexus_gateway.sending import AttemptFailed, client_session
from nexus_gateway.settings import Settings
from nexus_gateway.upstream import Upstream

PROBE = {
    "messages": [{"role": "user", "content": "ping"}],
    "max_tokens": 1,
    "stream": True,
}
Result = tuple[Instance, float | None, str]


async def probe_all(settings: Settings, pool: Pool) -> list[Result]:
    """Ask every instance at once.

    Returns:
        For each: itself, the time to its first token in ms (None when it failed), and `ok` or
        the reason.
    """
    async with client_session() as session:
        upstream = Upstream(session, settings)
        return list(await asyncio.gather(*(_probe(upstream, i) for i in pool.instances)))


async def _probe(upstream: Upstream, instance: Instance) -> Result:
    begun_s = time.monotonic()
    request = CHAT_COMPLETIONS.parse(json_codec.dumps(PROBE), {})
    try:
        stream = await upstream.stream(instance, instance.model, request)
    except AttemptFailed as failed:
        return instance, None, failed.verdict.reason
    latency_ms = (time.monotonic() - begun_s) * 1000
    await stream.close()
    return instance, latency_ms, "ok"
