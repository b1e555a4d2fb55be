"""Why an instance was chosen: in the debug log, and in the response's headers for an admin."""

from __future__ import annotations

import json
import logging
import re
from random import Random

import pytest
from clock import FakeClock
from fakes import KEYS, Other, make_instance, serving
from records import add_ended, attempt

from nexus_gateway.errors import NoCandidate
from nexus_gateway.provider import Outcome, Verdict
from nexus_gateway.routing.attempts import AttemptHistory
from nexus_gateway.routing.explain import Decision
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.policies import Fastest, RoundRobin, Smart
from nexus_gateway.routing.scheduler import RoutingTarget, Scheduler
from nexus_gateway.secret import Secret
from nexus_gateway.telemetry.log import LineFormatter
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

EXPLAIN = {"X-Nexus-Explain": "true"}
FAILED = Verdict(Outcome.FAILURE, "answered 500")


class Pool:
    """A scheduler and instances with their own clock."""

    def __init__(self, size: int) -> None:
        self.clock = FakeClock()
        policies = {"smart": Smart(), "fastest": Fastest(), "round-robin": RoundRobin()}
        self.scheduler = Scheduler(self.clock, Random(1), policies)
        more = {"key": Secret("a-key"), "clock": self.clock}
        self.instances = [make_instance(number=n + 1, **more) for n in range(size)]

    def explain(self, history: AttemptHistory | None = None, images: bool = False) -> str:
        history = history or AttemptHistory()
        history.explanations = []
        try:
            target = RoutingTarget(tuple(i.default for i in self.instances), images=images)
            self.scheduler.attempt(target, "fastest", history)
        except NoCandidate:
            pass
        return history.explanations[-1]


def fail(instance: Instance, times: int) -> None:
    for _ in range(times):
        instance.default.breaker.failure(instance.default.breaker.acquire())


def test_a_higher_tier_is_named() -> None:
    pair = [make_instance(number=1).default, make_instance(number=2, tier=2).default]
    decision = Decision.capture("smart", pair, pair, pair[:1], AttemptHistory())
    assert decision.chosen(pair[0].label).endswith(f"excluded: {pair[1].label} tier 2")


def test_the_explanation_lists_candidates_and_excluded_instances() -> None:
    pool = Pool(6)
    slow, off, limited, broken, bad_key, best = pool.instances
    slow.health.observe_latency(2320, 8000)
    slow.in_flight = 2
    off.disable()
    limited.default.park(29.6)
    fail(broken, 3)
    pool.clock.advance(48)
    limited.default.park(29.6)
    bad_key.park_bad_key()
    best.health.observe_latency(600, 8000)
    assert pool.explain() == (
        "fastest: Fake (Key #6) 92.5% of 2; Fake (Key #1) 71.0% (2 in flight); "
        "excluded: Fake (Key #2) disabled, Fake (Key #3) rate limited 30s, "
        "Fake (Key #4) open 12s, Fake (Key #5) key refused 600s"
    )


def test_the_choice_is_the_same_with_and_without_an_explanation() -> None:
    chosen = []
    for explanations in (None, []):
        pool = Pool(5)
        for instance, share in zip(pool.instances, (1, 2, 3, 4, 5), strict=True):
            instance.health.observe_latency(share * 1000, 8000)
        target = RoutingTarget(tuple(i.default for i in pool.instances))
        names = []
        for _ in range(30):
            history = AttemptHistory(explanations=explanations)
            names.append(pool.scheduler.attempt(target, "smart", history).instance.name)
        chosen.append(names)
    assert chosen[0] == chosen[1]


def test_a_tried_instance_is_listed_with_its_reason() -> None:
    pool = Pool(2)
    history = AttemptHistory()
    add_ended(history, pool.instances[0], FAILED)
    assert pool.explain(history) == (
        "fastest: Fake (Key #2) 100.0% of 1; excluded: Fake (Key #1) tried (answered 500)"
    )


def test_a_retry_beyond_the_budget_avoids_instances_that_failed_recently() -> None:
    pool = Pool(3)
    history = AttemptHistory()
    add_ended(history, pool.instances[0], Verdict(Outcome.RATE_LIMITED, "answered 429"))
    fail(pool.instances[1], 1)
    for _ in range(20):
        pool.scheduler.retries.retry()
    assert pool.explain(history) == (
        "fastest: Fake (Key #3) 100.0% of 1; excluded: "
        "Fake (Key #1) tried (answered 429), Fake (Key #2) failed recently"
    )


def test_a_last_resort_and_no_candidate_are_explained() -> None:
    pool = Pool(1)
    fail(pool.instances[0], 3)
    probed = "probed early, as no other instance is left; excluded: Fake (Key #1) open 60s"
    assert pool.explain() == f"fastest: Fake (Key #1) {probed}"
    assert pool.explain() == "fastest: no candidate; excluded: Fake (Key #1) being probed"


def test_in_a_large_pool_some_instances_are_named_and_the_rest_counted() -> None:
    pool = Pool(40)
    for instance in pool.instances[20:]:
        instance.disable()
    explanation = pool.explain()
    assert "% of 20; " in explanation
    assert "; and 11 more; excluded: " in explanation
    assert explanation.endswith("Fake (Key #28) disabled, and 12 more")


def test_each_decision_is_logged_at_debug_and_none_at_info(caplog) -> None:
    pool = Pool(2)
    target = RoutingTarget(tuple(i.default for i in pool.instances))
    with caplog.at_level(logging.INFO, "nexus_gateway"):
        pool.scheduler.attempt(target, "smart", AttemptHistory())
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, "nexus_gateway"):
        pool.scheduler.attempt(target, "smart", AttemptHistory(id="req-7"))
        pool.scheduler.hedges._saved = 5.0
        history = AttemptHistory(id="req-7")
        history.running.append(attempt("Fake (Key #1)"))
        history.running[0].deployment = pool.instances[0].default
        pool.scheduler.hedge(target, "smart", history)
        for instance in pool.instances:
            instance.disable()
        with pytest.raises(NoCandidate):
            pool.scheduler.attempt(target, "smart", AttemptHistory())
    chosen, hedged, refused = caplog.records
    assert chosen.getMessage().startswith("attempt: smart: Fake (Key #")
    assert chosen.fields == {"id": "req-7", "attempt": 1}
    assert hedged.getMessage().startswith("hedge: smart: Fake (Key #2) 100.0%")
    assert "excluded: Fake (Key #1) being tried" in hedged.getMessage()
    assert refused.getMessage().startswith("no attempt: smart: no candidate; excluded: ")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.usefixtures("each_way")
async def test_the_header_explains_the_attempt_after_a_fail_over(
    upstream: FakeUpstream, stream: bool
) -> None:
    upstream.defaults[KEYS[0]] = Reply(status=500)
    one, two = make_instance(upstream), make_instance(upstream, 2, provider=Other, name="other")
    async with serving(one, two) as served:
        head = {**EXPLAIN, "X-Routing-Mode": "round-robin"}
        status, _, headers = await served.chat(stream=stream, headers=head)
        _, _, plain = await served.chat(stream=stream)
    assert status == 200
    assert headers["X-Nexus-Explain"] == (
        "round-robin: Other (Key #2) 100.0% of 1; excluded: Fake (Key #1) tried (answered 500)"
    )
    assert "X-Nexus-Explain" not in plain


@pytest.mark.usefixtures("each_way")
async def test_an_error_is_explained_and_the_header_is_safe(upstream: FakeUpstream) -> None:
    class Odd(Other):
        title = "Ödd\r\nX-Evil: 1" + "y" * 2000

    async with serving(make_instance(upstream, provider=Odd)) as served:
        served.instances[0].disable()
        status, _, headers = await served.chat(headers=EXPLAIN)
    assert status == 503
    assert headers["X-Nexus-Explain"].startswith("smart: no candidate; excluded: ?dd??X-Evil: 1")
    assert len(headers["X-Nexus-Explain"]) == 1000
    assert "X-Evil" not in headers


async def test_an_explanation_requires_the_admin_or_viewer_token(upstream: FakeUpstream) -> None:
    keys = {"gateway_keys": (Secret("caller-key"),), "admin_token": Secret("admin-token")}
    keys["viewer_token"] = Secret("viewer-token")
    caller = {"Authorization": "Bearer caller-key"}
    admin = {"Authorization": "Bearer admin-token", "x-api-key": "caller-key"}
    async with serving(make_instance(upstream), **keys) as served:
        status, body, headers = await served.chat(headers={**EXPLAIN, **caller})
        assert (status, "ADMIN_TOKEN" in body) == (401, True)
        assert "X-Nexus-Explain" not in headers
        assert not upstream.hits()
        assert (await served.chat(headers={**caller, "X-Nexus-Explain": "false"}))[0] == 200
        status, _, headers = await served.chat(headers={**EXPLAIN, **admin})
        assert status == 200
        assert re.fullmatch(r"smart: Fake \(Key #1\) [\d.]+% of 1", headers["X-Nexus-Explain"])
        looks = {"Authorization": "Bearer viewer-token", "x-api-key": "caller-key"}
        status, _, headers = await served.chat(headers={**EXPLAIN, **looks})
        assert (status, "X-Nexus-Explain" in headers) == (200, True)
        assert (await served.chat(headers={**EXPLAIN, "Authorization": "Bearer viewer-token"}))[
            0
        ] == 401
        status, body, _ = await served.chat(headers={**caller, "X-Nexus-Explain": "perhaps"})
        assert (status, "invalid_explain" in body) == (400, True)
    async with serving(make_instance(upstream), host="0.0.0.0") as served:
        status, body, _ = await served.chat(headers=EXPLAIN)
        assert (status, "admin_closed" in body) == (403, True)


@pytest.mark.parametrize("style", ["text", "json"])
async def test_a_requests_log_line_has_its_caller_instance_and_times(
    upstream: FakeUpstream, style: str, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.defaults[KEYS[0]] = Reply(status=500)
    keys = (Secret("a-caller"), Secret("another"))
    instances = make_instance(upstream), make_instance(upstream, 2)
    caplog.set_level(logging.INFO, "nexus_gateway")
    async with serving(*instances, gateway_keys=keys) as served:
        head = {"Authorization": "Bearer another", "X-Request-Id": "mine"}
        await served.chat(headers={**head, "X-Routing-Mode": "round-robin"})
    (record,) = [r for r in caplog.records if r.getMessage() == "chat"]
    line = LineFormatter(style, []).format(record)
    fields = json.loads(line) if style == "json" else dict(re.findall(r'(\w+)=("[^"]*"|\S+)', line))
    assert (fields["id"], fields["caller"]) == ("mine", "key-2")
    assert fields["instance"].strip('"') == "Fake (Key #2)"
    assert int(fields["attempts"]) == 2
    assert 0 <= int(fields["first_ms"]) <= int(fields["ms"])
    assert fields["outcome"] == "success"
