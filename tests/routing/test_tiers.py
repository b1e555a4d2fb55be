"""Tiers: a higher one is asked only if no instance of a lower one may serve."""

from __future__ import annotations

import random

import pytest
from clock import FakeClock
from fakes import HELLO, KEYS, make_instance, serving

from nexus_gateway.errors import ConfigError, NoCandidate
from nexus_gateway.provider import Outcome, Scope, Verdict
from nexus_gateway.routing.attempts import AttemptHistory
from nexus_gateway.routing.instance import Deployment
from nexus_gateway.routing.policies import Fastest, Policy, RoundRobin, Smart
from nexus_gateway.routing.pool import build_pool
from nexus_gateway.routing.scheduler import RoutingTarget, Scheduler, has_quota_left
from nexus_gateway.secret import Secret
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.wire.rate_limits import Quota

FAILED = Verdict(Outcome.FAILURE, "answered 500", 500, scope=Scope.ADDRESS)
STATES = 1_000


def policies() -> dict[str, Policy]:
    return {"smart": Smart(), "fastest": Fastest(), "round-robin": RoundRobin()}


def make_pool(clock: FakeClock, rng: random.Random) -> list[Deployment]:
    """Return deployments of up to three tiers, each in a random state."""
    pool = []
    for number in range(1, rng.choice((2, 4, 8, 12)) + 1):
        key = Secret(f"key-{number}")
        instance = make_instance(number=number, key=key, clock=clock, tier=rng.randint(1, 3))
        deployment = instance.default
        match rng.randrange(7):
            case 0:
                instance.disable()
            case 1:
                deployment.park(rng.uniform(1, 100))
            case 2:
                for _ in range(3):
                    deployment.breaker.failure(deployment.breaker.acquire())
            case 3:
                deployment.quotas.update([Quota("requests", 0, 100, 60.0)], 0)
            case 4:
                deployment.health.failure()
                instance.in_flight = rng.randrange(30)
        pool.append(deployment)
    return pool


def test_no_higher_tier_is_chosen_while_a_lower_one_may_serve() -> None:
    rng, higher = random.Random(19), 0
    for _ in range(STATES):
        clock = FakeClock()
        scheduler = Scheduler(clock, rng, policies())
        pool = make_pool(clock, rng)
        target, history = RoutingTarget(tuple(pool)), AttemptHistory()
        history.conversation = rng.choice((None, rng.getrandbits(32)))
        for _ in range(3):
            clock.advance(rng.choice((0, 0, 61)))
            able = [
                d.instance.tier
                for d in pool
                if target.admits(d) and has_quota_left(d) and not history.tried(d)
            ]
            try:
                attempt = scheduler.attempt(target, rng.choice([*scheduler.policies]), history)
            except NoCandidate:
                assert not able
                break
            tier = attempt.instance.tier
            assert tier == min(able, default=tier)
            higher += tier > 1
            attempt.end(FAILED)
    assert higher > STATES / 2


async def test_a_paid_key_answers_only_while_the_free_ones_are_limited(
    upstream: FakeUpstream,
) -> None:
    clock = FakeClock()
    instances = [
        make_instance(upstream, 1, clock),
        make_instance(upstream, 2, clock),
        make_instance(upstream, 3, clock, tier=2),
    ]
    async with serving(*instances, clock=clock) as gateway:
        for number in range(20):
            await gateway.chat({**HELLO, "user": f"user-{number}"})
        assert upstream.hits(KEYS[2]) == 0
        limited = Reply(status=429, headers={"Retry-After": "60"})
        upstream.defaults |= {KEYS[0]: limited, KEYS[1]: limited}
        for _ in range(3):
            status, _, headers = await gateway.chat()
            assert (status, headers["X-Nexus-Provider"]) == (200, instances[2].name)
        upstream.defaults.clear()
        clock.advance(61)
        for number in range(20):
            await gateway.chat({**HELLO, "user": f"user-{number}"})
        assert upstream.hits(KEYS[2]) == 3


def test_the_variable_is_the_providers_or_one_keys() -> None:
    env = {"GROQ_KEY_1": "gsk-1234567890", "GROQ_KEY_2": "gsk-2234567890", "GROQ_TIER_2": "2"}
    pool = build_pool(env, FakeClock())
    assert [i.tier for i in pool.instances] == [1, 2]
    assert [i.tier for i in build_pool({**env, "GROQ_TIER": "3"}, FakeClock()).instances] == [3, 2]


@pytest.mark.parametrize("text", ["0", "100", "free", "-1", "1.5"])
def test_a_wrong_tier_stops_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match="GROQ_TIER must be a whole number from 1 to 99"):
        build_pool({"GROQ_KEY_1": "gsk-1234567890", "GROQ_TIER": text}, FakeClock())


def test_a_reload_changes_the_tier() -> None:
    env = {"GROQ_KEY_1": "gsk-1234567890"}
    pool = build_pool(env, FakeClock())
    pool.replace_with(build_pool({**env, "GROQ_TIER": "2"}, FakeClock()))
    assert pool.instances[0].tier == 2
