"""The live page's data: timelines and feed; and the page's files."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from clock import FakeClock
from fakes import KEYS, make_instance, serving
from hypothesis import given
from hypothesis import strategies as st
from records import attempt, ended

from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.health import Health
from nexus_gateway.routing.pool import Pool
from nexus_gateway.telemetry.feed import AT_ONCE, EVERY_S, Feed
from nexus_gateway.telemetry.shared import MOST_REQUESTS as REQUESTS
from nexus_gateway.telemetry.snapshot import request_json
from nexus_gateway.telemetry.timeline import BUCKET_S, BUCKETS, Timelines
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.web.handlers.page import files

GOOD = attempt("Fake (Key #1)", "success", "", 200, 120.0)
BAD = attempt("Fake (Key #2)", "failure", "answered 502", 502, 9.0)
NOON = 1_800_000_000.0


def record(**more: object) -> RequestRecord:
    fields = {"ended_s": NOON, "asked_model": "auto", "caller": "", "attempts": (GOOD,)}
    times = {"first_ms": 130.0, "upstream_ms": 120.0, "total_ms": 400.0}
    usage = {"prompt_tokens": 7, "completion_tokens": 30}
    return ended(**{**fields, **times, "usage": usage, **more})


def test_a_request_is_counted_in_total_and_for_each_attempted_instance() -> None:
    lines = Timelines()
    lines.observe(record(attempts=(BAD, GOOD)))
    lines.observe(record(attempts=(BAD, BAD), instance=BAD.instance.name, status=503, usage={}))
    timelines = lines.as_json(NOON)
    number = NOON // BUCKET_S
    assert timelines[""] == [[number, 2, 1, 1, 30, 130]]
    assert timelines["Fake (Key #1)"] == [[number, 1, 0, 1, 30, 120]]
    assert timelines["Fake (Key #2)"] == [[number, 3, 3, 0, 0, None]]


@pytest.mark.parametrize(
    ("status", "outcome", "counts"),
    [
        (200, "success", 0),
        (400, "upstream_refused", 0),
        (499, "cancelled", 0),
        (200, "failure", 1),
        (429, "rate_limit_exceeded", 1),
        (503, "no_instance", 1),
    ],
)
def test_a_callers_mistake_is_not_an_error(status: int, outcome: str, counts: int) -> None:
    lines = Timelines()
    lines.observe(record(status=status, outcome=outcome))
    assert lines.as_json(NOON)[""][0][2] == counts


@given(st.lists(st.floats(0, 20_000), max_size=300))
def test_a_timeline_is_bounded_and_in_order(ends: list[float]) -> None:
    """At any wall-clock time and after any duration."""
    lines = Timelines()
    for end_s in ends:
        lines.observe(record(ended_s=NOON + end_s))
    for buckets in lines.as_json(0).values():
        numbers = [bucket[0] for bucket in buckets]
        assert len(numbers) <= BUCKETS
        assert numbers == sorted(set(numbers))


def test_old_buckets_are_dropped() -> None:
    lines = Timelines()
    for age in range(3 * BUCKETS):
        lines.observe(record(ended_s=NOON + age * BUCKET_S))
    now_s = NOON + 3 * BUCKETS * BUCKET_S
    assert len(lines.as_json(now_s - BUCKETS * BUCKET_S)[""]) == BUCKETS
    assert len(lines.as_json(now_s - BUCKET_S)[""]) == 1
    assert lines.as_json(now_s + 1) == {}


def test_the_rate_covers_the_last_seconds() -> None:
    lines = Timelines()
    for at_s in (0.1, 0.9, 1.2, 4.9, 5.0, 5.1):
        lines.observe(record(ended_s=NOON + at_s))
    assert lines.rate.at(NOON + 5.5) == pytest.approx(4 / 5)
    assert lines.rate.at(NOON + 6.0) == pytest.approx(4 / 5)
    assert lines.rate.at(NOON + 60) == 0


def test_the_feed_keeps_and_sends_a_bounded_number_of_requests() -> None:
    feed = Feed(Pool(instances=[]), FakeClock())
    for number in range(3 * REQUESTS):
        feed.observe(record(id=f"req-{number}"))
    ids = [request["id"] for request in feed.snapshot()["requests"]]
    assert ids == [f"req-{number}" for number in range(2 * REQUESTS, 3 * REQUESTS)]
    events = feed.since(0)
    assert [data["id"] for _, _, data in events] == ids[-AT_ONCE:]
    assert feed.since(events[-1][0]) == []


def test_failed_requests_are_kept_and_sent_besides_the_latest() -> None:
    """Among many successes a failure would be dropped within seconds."""
    feed = Feed(Pool(instances=[]), FakeClock())
    trouble = {"0": {"status": 503}, "1": {"attempts": (BAD, GOOD)}, "2": {"status": 429}}
    for number in range(3 * REQUESTS):
        feed.observe(record(id=str(number), **trouble.get(str(number), {})))
    ids = [request["id"] for request in feed.snapshot()["requests"]]
    last = [str(number) for number in range(2 * REQUESTS, 3 * REQUESTS)]
    assert ids == [*trouble, *last]
    assert [data["id"] for _, _, data in feed.since(0)] == [*trouble, *last[-AT_ONCE:]]
    assert [data["id"] for _, _, data in feed.since(2)] == ["2", *last[-AT_ONCE:]]
    assert [data["id"] for data in feed.unpublished()] == [*trouble, *last]
    assert feed.unpublished() == []
    other = Feed(Pool(instances=[]), FakeClock())
    other.merge([request_at(NOON + n, str(n)) for n in range(REQUESTS)])
    other.merge(feed.snapshot()["requests"])
    assert {*trouble} <= {request["id"] for request in other.snapshot()["requests"]}


def request_at(ended_s: float, id: str) -> dict[str, Any]:
    return request_json(record(id=id, ended_s=ended_s))


def test_requests_of_other_workers_are_sent_once_and_in_order() -> None:
    feed = Feed(Pool(instances=[]), FakeClock())
    feed.observe(record(id="second", ended_s=NOON + 2))
    before = feed.refresh()
    feed.merge([request_at(NOON + 1, "first"), request_at(NOON + 3, "third")])
    assert [data["id"] for _, _, data in feed.since(before)] == ["first", "third"]
    assert feed.since(feed.refresh()) == []
    ids = [request["id"] for request in feed.snapshot()["requests"]]
    assert ids == ["first", "second", "third"]
    assert [request["id"] for request in feed.unpublished()] == ["second"]
    assert feed.unpublished() == [], "neither again, nor what was merged"


def test_a_listener_that_missed_too_much_gets_a_snapshot() -> None:
    feed = Feed(Pool(instances=[]), FakeClock())
    feed.observe(record())
    id = feed.id_of(feed.refresh())
    for number in range(AT_ONCE - 1):
        feed.observe(record(id=f"req-{number}"))
    feed.merge([request_at(NOON, "elsewhere")])
    assert feed.number_of(id) == 1
    feed.observe(record())
    assert feed.number_of(id) is None


def test_the_snapshot_after_a_removed_instance_replaces_earlier_events() -> None:
    clock = FakeClock()
    kept, removed = make_instance(clock=clock), make_instance(number=2, clock=clock)
    feed = Feed(pool := Pool(instances=[kept, removed]), clock)
    first = feed.refresh()
    feed.observe(record(id="before"))
    pool.instances = [kept]
    clock.advance(EVERY_S)
    feed.refresh()
    feed.observe(record(id="after"))
    kept.default.park(30)
    clock.advance(EVERY_S)
    newest = feed.refresh()
    ((number, event, data),) = feed.since(first)
    assert (number, event) == (newest, "snapshot")
    assert [(one["name"], one["parkReason"]) for one in data["providers"]] == [
        (kept.name, "rate_limited")
    ]
    assert [request["id"] for request in data["requests"]] == ["before", "after"]
    assert feed.number_of(feed.id_of(number)) == number
    feed.observe(record(id="later"))
    ((_, event, data),) = feed.since(number)
    assert (event, data["id"]) == ("request", "later")


def test_a_change_is_sent_once_and_a_countdown_is_not_a_change() -> None:
    clock = FakeClock()
    instance = make_instance(clock=clock)
    feed = Feed(Pool(instances=[instance]), clock)
    first = feed.refresh()
    instance.default.park(30)
    assert feed.refresh() == first, "refreshed at most once per EVERY_S"
    clock.advance(EVERY_S)
    parked = feed.refresh()
    ((number, event, data),) = feed.since(first)
    assert (number, event, data["parkReason"]) == (parked, "instance", "rate_limited")
    clock.advance(5)
    assert feed.refresh() == parked
    clock.advance(30)
    assert feed.refresh() > parked
    ((_, _, data),) = feed.since(first)
    assert data["parkReason"] is None


def test_counts_of_other_workers_are_added_once_from_now_on() -> None:
    local, other = Timelines(), Timelines()
    shared: dict[str, float] = {}
    names = [GOOD.instance.name, BAD.instance.name]
    other.observe(record(ended_s=NOON - 3600))
    other.publish(shared)
    local.merge(shared, names, NOON)
    assert local.as_json(0) == {}, "earlier counts are not counted now"
    other.observe(record(ended_s=NOON, attempts=(BAD, GOOD), first_ms=330.0))
    for _ in range(2):
        other.publish(shared)
        local.merge(shared, names, NOON)
    local.observe(record())
    number = NOON // BUCKET_S
    assert local.as_json(NOON)[""] == [[number, 2, 0, 1, 60, 230]]
    assert local.as_json(NOON)[GOOD.instance.name] == [[number, 2, 0, 1, 60, 120]]
    assert local.as_json(NOON)[BAD.instance.name] == [[number, 1, 1, 0, 0, None]]
    assert local.rate.at(NOON + 1) == pytest.approx(2 / 5)
    published: dict[str, float] = {}
    local.publish(published)
    assert published == {
        "page requests ": 1,
        "page tokens ": 30,
        "page first_ms ": 130,
        "page firsts ": 1,
        f"page requests {GOOD.instance.name}": 1,
        f"page tokens {GOOD.instance.name}": 30,
        f"page first_ms {GOOD.instance.name}": 120,
        f"page firsts {GOOD.instance.name}": 1,
    }, "merged counts are not published again"


def test_a_percentile_for_display_needs_few_samples() -> None:
    health = Health(FakeClock())
    health.observe_first_token(300)
    assert health.first_token_ms(0.5) is None
    assert health.first_token_ms(0.5, of_at_least=1) == 300


async def test_listeners_receive_requests_and_figures(upstream: FakeUpstream) -> None:
    upstream.defaults[KEYS[0]] = Reply(status=502)
    secret = "a private question"
    body = {"messages": [{"role": "user", "content": secret}], "stream": True}
    received: dict[str, dict[str, Any]] = {}
    text = name = ""
    async with (
        serving(make_instance(upstream), make_instance(upstream, 2)) as served,
        served.session.get(served.url + "/v1/events") as response,
        asyncio.timeout(30),
    ):
        while not {"snapshot", "request", "instance", "gateway"} <= received.keys():
            text += (line := (await response.content.readline()).decode())
            if line.startswith("event: "):
                name = line[7:-1]
            elif line.startswith("data: "):
                received[name] = json.loads(line[6:])
                if name == "snapshot":
                    await served.chat(body, headers={"X-Routing-Mode": "round-robin"})
    attempts = received["request"]["attempts"]
    assert [(a["instance"], a["reason"]) for a in attempts] == [
        ("Fake (Key #1)", "answered 502"),
        ("Fake (Key #2)", ""),
    ]
    assert received["snapshot"]["gateway"]["workers"] == 1
    assert received["gateway"]["timelines"][""][0][1] == 1
    assert not any(word in text for word in (*KEYS, secret, "word by word"))


async def test_the_page_is_public_and_locked_down(upstream: FakeUpstream) -> None:
    assert {"index.html", "main.js", "style.css", "icon.svg"} <= files().keys()
    async with serving(make_instance(upstream), host="0.0.0.0") as served:
        for path in ("/", *(f"/static/{name}" for name in files())):
            async with served.session.get(served.url + path) as response:
                assert response.status == 200
                head = response.headers
            policy = head["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy
            assert head["X-Content-Type-Options"] == "nosniff"
            tag = {"If-None-Match": head["ETag"]}
            async with served.session.get(served.url + path, headers=tag) as response:
                assert (response.status, await response.read()) == (304, b"")
        for path in ("/static/", "/static/none.js", "/static/..%2f..%2fapp.py"):
            async with served.session.get(served.url + path) as response:
                assert response.status == 404, path


def test_the_page_has_no_other_host_and_no_inline_code() -> None:
    for name, file in files().items():
        text = file.body.decode().replace('"http://www.w3.org/2000/svg"', "")
        assert "http:" not in text, name
        assert "https:" not in text, name
        for unsafe in ("innerHTML", "insertAdjacentHTML", "eval(", " style=", " onclick="):
            assert unsafe not in text, (name, unsafe)
