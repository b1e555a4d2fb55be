"""GET /v1/providers: all that an operator needs, and no secret."""

from __future__ import annotations

import json
import time
from typing import Any

from fakes import KEYS, Other, Served, make_instance, serving

from nexus_gateway.hooks import Hook, HookRequest, HookResponse
from nexus_gateway.secret import Secret
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

ADMIN = {"Authorization": "Bearer the-admin-token"}


class Watch(Hook):
    async def before_answer(
        self, exchange: HookRequest, answering: HookResponse, answer: Any
    ) -> None:
        pass


async def overview(served: Served, **headers: str) -> tuple[int, dict[str, Any]]:
    async with served.session.get(served.url + "/v1/providers", headers=headers) as response:
        return response.status, await response.json()


async def test_it_has_all_that_an_operator_needs(upstream: FakeUpstream) -> None:
    upstream.script(
        Reply(
            headers={
                "x-ratelimit-remaining-requests": "7",
                "x-ratelimit-limit-requests": "100",
                "x-ratelimit-reset-requests": "90s",
            }
        )
    )
    upstream.defaults[KEYS[1]] = Reply(status=429, headers={"Retry-After": "30"})
    well = make_instance(upstream, origin="nexus-acme 1.2.3")
    limited = make_instance(upstream, 2, provider=Other, name="other")
    broken = make_instance(upstream, 3)
    for _ in range(3):
        broken.default.breaker.failure(broken.default.breaker.acquire())
    async with serving(well, limited, broken, hooks={"watch": Watch()}) as served:
        for _ in range(2):
            await served.chat(headers={"X-Routing-Mode": "round-robin"})
        status, body = await overview(served)
    assert status == 200
    one, two, three = body["providers"]

    assert (one["name"], one["circuitState"]) == ("Fake (Key #1)", "CLOSED")
    assert f"http://{one['host']}/v1" == upstream.base_url
    assert one["plugin"] == {
        "name": "fake",
        "distribution": "nexus-acme",
        "version": "1.2.3",
        "class": f"{type(well.provider).__module__}.Fake",
        "apiVersion": 1,
    }
    assert one["listedModels"][0] == {
        "id": "fake-large",
        "kind": "chat",
        "contextWindow": 1000,
        "images": True,
    }
    assert one["endpoints"] == ["chat"]
    (quota,) = one["quotas"]
    assert (quota["what"], quota["limit"]) == ("requests", 100)
    assert quota["remaining"] == 7 - (one["metrics"]["totalRequests"] - 1)
    assert 60_000 < quota["resetInMs"] <= 90_000
    assert 0 < one["health"]["score"] <= one["health"]["successRate"] == 1
    assert one["health"]["latencyMs"] > 0
    assert (one["inFlightHere"], one["inFlightElsewhere"], one["availableInMs"]) == (0, 0, 0)

    assert two["park"]["reason"] == "rate_limited"
    assert 25_000 < two["park"]["forMs"] <= 30_000
    assert 25 < two["park"]["until"] - time.time() <= 30
    assert three["circuit"]["state"] == "OPEN"
    assert 55_000 < three["circuit"]["nextProbeInMs"] <= 60_000

    assert body["policies"] == ["smart", "fastest", "round-robin"]
    assert body["hooks"] == {"watch": ["before_answer"]}
    assert body["settings"]["FIRST_TOKEN_TIMEOUT_MS"] == 8000


async def test_failures_in_a_row_are_counted_before_the_circuit_opens(
    upstream: FakeUpstream,
) -> None:
    upstream.default = Reply(status=500)
    async with serving(make_instance(upstream), max_attempts=1) as served:
        await served.chat()
        await served.chat()
        _, body = await overview(served)
    (one,) = body["providers"]
    assert one["circuit"] == {"state": "CLOSED", "nextProbeInMs": 0, "failuresInARow": 2}


async def test_it_is_an_admin_call_and_holds_no_secret(upstream: FakeUpstream) -> None:
    secrets = {
        "gateway_keys": (Secret("the-first-gateway-key"), Secret("the-second-gateway-key")),
        "admin_token": Secret("the-admin-token"),
        "otel_exporter_otlp_traces_endpoint": "https://user:the-password@collector:4318/x?k=the-k",
    }
    instance = make_instance(base_url="https://user:the-password@10.0.0.9:8443/the-path/v1")
    async with serving(instance, **secrets) as served:
        assert (await overview(served))[0] == 401
        caller = {"Authorization": "Bearer the-first-gateway-key"}
        assert (await overview(served, **caller))[0] == 401
        status, body = await overview(served, **ADMIN)
    assert status == 200
    assert body["providers"][0]["host"] == "10.0.0.9:8443"
    assert body["settings"]["GATEWAY_KEYS"] == 2
    assert body["settings"]["ADMIN_TOKEN"] is True
    assert body["settings"]["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "https://collector:4318"
    written = json.dumps(body)
    for word in ("the-", "user:", KEYS[0]):
        assert word not in written
