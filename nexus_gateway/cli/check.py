"""`nexus-gateway check`: one tiny request to every instance. Does its key work, and how fast?"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from nexus_gateway.cli.environment import WRONG_SETTINGS, environment
from nexus_gateway.cli.serve import configure
from nexus_gateway.cli.text import table
from nexus_gateway.dialects.chat import CHAT_COMPLETIONS
from nexus_gateway.dialects.embeddings import EMBEDDINGS
from nexus_gateway.routing.attempts import AttemptFailed, advice_on_model, is_unknown_model
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.pool import DEMO, Pool
from nexus_gateway.settings import Settings
from nexus_gateway.telemetry import log
from nexus_gateway.upstream.attempt import Upstream
from nexus_gateway.upstream.client import open_client
from nexus_gateway.upstream.failures import failure
from nexus_gateway.wire import json_codec

FAILED = 1
LONGEST_S = 10.0
CHAT = {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 1, "stream": True}
# An instance, the time to its first token in ms (None if it failed), and `ok` or the reason.
Result = tuple[Instance, float | None, str]


def check(arguments: argparse.Namespace) -> int:
    """Check every instance; return 1 if one fails."""
    settings, pool = configure(environment(arguments.env_file), demo=False)
    if all(i.provider_name == DEMO for i in pool.instances):
        print("nexus-gateway: there is no key to check: set one.", file=sys.stderr)
        return WRONG_SETTINGS
    log.configure("error", "text", [i.key for i in pool.instances])
    results = asyncio.run(probe_all(settings, pool))
    rows = [
        (i.name, i.model, *(("failed", "", reason) if ms is None else ("ok", f"{ms:.0f} ms", "")))
        for i, ms, reason in results
    ]
    print(table(("instance", "model", "result", "first token", "reason"), rows))
    return FAILED if any(ms is None for _, ms, _ in results) else 0


async def probe_all(settings: Settings, pool: Pool) -> list[Result]:
    """Send a request to every instance at once."""
    async with open_client(settings) as client:
        upstream = Upstream(client, settings)
        return list(await asyncio.gather(*(_probe(upstream, i) for i in pool.instances)))


async def _probe(upstream: Upstream, instance: Instance) -> Result:
    begun_s = time.monotonic()
    try:
        await (_chat if instance.provider.serves_chat else _embed)(upstream, instance)
    except AttemptFailed as failed:
        verdict = failed.verdict
        advice = f"; {advice_on_model(instance)}" if is_unknown_model(verdict) else ""
        return instance, None, verdict.reason + advice
    return instance, (time.monotonic() - begun_s) * 1000, "ok"


async def _chat(upstream: Upstream, instance: Instance) -> None:
    request = CHAT_COMPLETIONS.parse(json_codec.dumps(CHAT), {})
    stream = await upstream.stream(instance.default, request, LONGEST_S)
    await stream.close()


async def _embed(upstream: Upstream, instance: Instance) -> None:
    """Check an instance without chat; other endpoints would cost more than one token."""
    (deployment,) = instance.deployments_for(EMBEDDINGS.kind)
    request = EMBEDDINGS.parse(json_codec.dumps({"model": deployment.model, "input": "ping"}), {})
    if not request.can_pass_through(instance.provider.endpoints):
        raise failure("supports no endpoint that can be checked")
    await upstream.full(deployment, request, LONGEST_S)
