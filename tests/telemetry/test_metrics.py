"""The counts, and what /metrics returns."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fakes import HELLO, KEYS, Fake, make_instance, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from records import attempt as attempt_of
from records import ended, resumed
from scraping import Samples, sample, samples_of, scrape

from nexus_gateway import errors
from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.secret import Secret
from nexus_gateway.telemetry.metrics import definitions
from nexus_gateway.telemetry.metrics.counting import BATCH, OUTCOMES, REASONS, Counting
from nexus_gateway.telemetry.metrics.counts import Counts
from nexus_gateway.telemetry.metrics.exposition import render
from nexus_gateway.testing.gateway import Served
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.web import gateway

ONE, TWO = "Fake (Key #1)", "Fake (Key #2)"
LABELS = st.text(st.characters(codec="utf-8"), max_size=4)
# Drawn floats are almost never a bucket's bound; these are.
TIMES = st.floats(0, 1e4) | st.sampled_from(definitions.FIRST_TOKEN_S)


def record(**changes: object) -> RequestRecord:
    """Return a successful stream of the first instance."""
    attempt = attempt_of(ONE, "success", "", 200, 300.0)
    fields = {"id": "an-id", "ended_s": 0.0, "attempts": (attempt,)}
    times = {"first_ms": 304.0, "upstream_ms": 300.0, "total_ms": 1304.0}
    usage = {"prompt_tokens": 9, "completion_tokens": 101}
    return ended(**{**fields, **times, "usage": usage, **changes})


def counted(*records: RequestRecord) -> Samples:
    counting = Counting([make_instance(number=1), make_instance(number=2)])
    for one in records:
        counting.observe(one)
    return samples_of(render(counting.counts, {}, "")[0].decode())


@settings(max_examples=20)  # the library is slow to set up
@given(st.lists(st.tuples(LABELS, TIMES)), st.lists(st.tuples(LABELS, st.integers(1, 9))))
def test_numbers_are_those_of_prometheus_client(
    times: list[tuple[str, float]], calls: list[tuple[str, int]]
) -> None:
    ours, theirs = Counts(), CollectorRegistry()
    histogram = Histogram(
        definitions.OVERHEAD.name,
        "x",
        definitions.OVERHEAD.labels,
        buckets=definitions.OVERHEAD.buckets,
        registry=theirs,
    )
    counter = Counter(definitions.RESUMPTIONS.name, "x", registry=theirs)
    for label, took_s in times:
        ours.observe(definitions.OVERHEAD, (label,), [took_s])
        histogram.labels(label).observe(took_s)
    for _, number in calls:
        ours.add(definitions.RESUMPTIONS, amount=number)
        counter.inc(number)
    samples = samples_of(render(ours, {}, "")[0].decode())
    for family in theirs.collect():
        for known in family.samples:
            if not known.name.endswith("_created"):
                assert sample(samples, known.name, **known.labels) == pytest.approx(known.value)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), LABELS, TIMES)))
def test_several_workers_count_the_same_as_one(
    seen: list[tuple[int, str, float]],
) -> None:
    alone, workers = Counts(), [Counts() for _ in range(3)]
    for worker, label, took_s in seen:
        for counts in (alone, workers[worker]):
            counts.observe(definitions.OVERHEAD, (label,), [took_s])
            counts.add(definitions.CALLER_REQUESTS, (label, "2xx"))
    together = workers[0].copy()
    for other in workers[1:]:
        together.add_shared(other.shared())
    assert together.numbers.keys() == alone.numbers.keys()
    for key, numbers in alone.numbers.items():
        assert together.numbers[key] == pytest.approx(numbers)


def test_the_names_between_workers_stay_as_other_versions_know_them() -> None:
    counts = Counts()
    counts.add(definitions.HEDGED, amount=2)
    counts.observe(definitions.OVERHEAD, ("chat",), [0.0007])
    assert counts.shared() == {
        'metrics ["nexus_hedged_requests_total"]\t0': 2,
        'metrics ["nexus_overhead_seconds", "chat"]\t1': 1,
        'metrics ["nexus_overhead_seconds", "chat"]\t14': 0.0007,
    }


def test_metrics_of_another_version_are_left_out() -> None:
    counts, other = Counts(), Counts()
    other.add(definitions.HEDGED, ("with", "labels"))
    shared = {name.replace("hedged", "unknown"): 1.0 for name in other.shared()}
    shared |= other.shared() | {"Groq requests": 3.0}
    shared[f'metrics ["{definitions.OVERHEAD.name}", "chat"]\t99'] = 1.0
    counts.add_shared(shared)
    assert counts.numbers == {
        (definitions.OVERHEAD.name, "chat"): [0] * (len(definitions.OVERHEAD_S) + 2)
    }


def test_a_successful_request_is_counted_everywhere() -> None:
    samples = counted(record())
    labels = {"provider": "fake", "provider_instance": ONE}
    served = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "fake",
        "gen_ai_request_model": "fake-large",
    }
    assert sample(samples, "nexus_attempts_total", **labels, outcome="success") == 1
    assert sample(samples, "nexus_caller_requests_total", caller="key-2", status="2xx") == 1
    assert (
        sample(samples, "nexus_caller_tokens_total", caller="key-2", gen_ai_token_type="input") == 9
    )
    assert sample(samples, "nexus_tokens_total", **labels, gen_ai_token_type="output") == 101
    total_s = sample(samples, f"{definitions.REQUEST_DURATION.name}_sum", **served, error_type="")
    assert total_s == pytest.approx(1.304)
    assert sample(samples, f"{definitions.FIRST_TOKEN.name}_sum", **served) == pytest.approx(0.304)
    assert sample(samples, f"{definitions.OUTPUT_TOKEN.name}_sum", **served) == pytest.approx(0.01)
    assert sample(samples, f"{definitions.OVERHEAD.name}_sum", endpoint="chat") == pytest.approx(
        0.004
    )
    asked = {k: v for k, v in served.items() if "model" not in k} | {"provider_instance": ONE}
    took_s = sample(samples, f"{definitions.ATTEMPT_DURATION.name}_sum", **asked, error_type="")
    assert took_s == pytest.approx(1.3)
    assert sample(samples, f"{definitions.FIRST_CHUNK.name}_sum", **asked) == pytest.approx(0.3)


MS = st.floats(0, 1e6)
ATTEMPTS = st.builds(
    attempt_of,
    instance=st.sampled_from([ONE, TWO]),
    provider=st.just("fake"),
    outcome=st.sampled_from(["success", "failure", "cancelled"]),
    reason=st.sampled_from(["", "answered 500", "broke"]),
    status=st.sampled_from([0, 200, 500]),
    duration_ms=st.just(0.0) | MS,
)
RECORDS = st.builds(
    record,
    endpoint=st.sampled_from(["chat", "messages", "embeddings"]),
    stream=st.booleans(),
    caller=st.sampled_from(["", "key-1"]),
    instance=st.sampled_from(["", ONE, TWO]),
    model=st.sampled_from(["fake-large", "unknown"]),
    attempts=st.just(record().attempts) | st.lists(ATTEMPTS, max_size=3).map(tuple),
    hedged=st.booleans(),
    status=st.sampled_from([200, 499, 503]),
    outcome=st.sampled_from(["success", "failure", "unknown"]),
    first_ms=MS,
    upstream_ms=MS,
    total_ms=MS,
    usage=st.dictionaries(
        st.sampled_from(["prompt_tokens", "completion_tokens"]), st.integers(0, 10**6)
    ),
)


@settings(max_examples=100)
@given(st.lists(RECORDS, max_size=5), st.lists(st.tuples(MS, MS, MS), min_size=1, max_size=3))
def test_a_batch_counts_like_single_requests(
    records: list[RequestRecord], times: list[tuple[float, float, float]]
) -> None:
    batched, alone = (Counting([make_instance()]) for _ in range(2))
    for one in records:
        for first_ms, upstream_ms, total_ms in times:
            changed = {"first_ms": first_ms, "upstream_ms": upstream_ms, "total_ms": total_ms}
            for counting in (batched, alone):
                counting.observe(one._replace(**changed))
            alone.fold()
    assert batched.counts.numbers.keys() == alone.counts.numbers.keys(), "no series of 0 either"
    for key, numbers in alone.counts.numbers.items():
        assert batched.counts.numbers[key] == pytest.approx(numbers)


def test_each_request_counts_once_whenever_its_batch_is_full_or_read() -> None:
    counting = Counting([make_instance()])
    key = (definitions.REQUESTS.name, "chat", "2xx", "success")
    for number in range(1, 2 * BATCH + 2):
        counting.observe(record())
        if number % 100 == 0:
            assert counting.counts.numbers[key] == [number]
    for _ in range(2):
        assert counting.counts.numbers[key] == [2 * BATCH + 1]


def test_a_full_batch_is_counted_at_once() -> None:
    counting = Counting([make_instance()])
    for _ in range(BATCH):
        assert not counting._counts.numbers
        counting.observe(record())
    assert counting._counts.numbers[(definitions.REQUESTS.name, "chat", "2xx", "success")] == [
        BATCH
    ]


def test_reasoning_tokens_are_not_in_the_time_per_token() -> None:
    thought = {"completion_tokens": 1101, "completion_tokens_details": {"reasoning_tokens": 1000}}
    for one in (record(usage=thought), record(usage=thought, hedged=True)):
        samples = counted(one)
        (pace_s,) = [
            v for (name, _), v in samples.items() if name == f"{definitions.OUTPUT_TOKEN.name}_sum"
        ]
        assert pace_s == pytest.approx(0.01)


def test_the_cost_of_fail_over_is_not_overhead() -> None:
    failed = attempt_of(TWO, "rate_limited", "answered 429", 429, 200.0)
    samples = counted(record(attempts=(failed, *record().attempts), first_ms=700.0))
    labels = {"provider": "fake", "provider_instance": TWO, "outcome": "rate_limited"}
    assert sample(samples, "nexus_failovers_total", **labels) == 1
    assert sample(samples, f"{definitions.OVERHEAD.name}_count", endpoint="chat") is None
    assert sample(
        samples, f"{definitions.FAILOVER_DELAY.name}_sum", endpoint="chat"
    ) == pytest.approx(0.4)


def test_a_second_attempt_at_the_same_instance_is_not_a_fail_over() -> None:
    failed = attempt_of(ONE, "failure", "answered 500", 500, 200.0)
    samples = counted(record(attempts=(failed, *record().attempts)))
    assert not [name for name, _ in samples if name == "nexus_failovers_total"]


def test_a_broken_answer_has_a_first_content_and_lasts_until_the_break() -> None:
    broken = attempt_of(ONE, "failure", "broke in the middle", 200, 900.0)
    samples = counted(record(attempts=(broken,), outcome="failure"))
    named = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "fake"}
    asked = {**named, "provider_instance": ONE}
    took = sample(
        samples, f"{definitions.ATTEMPT_DURATION.name}_sum", **asked, error_type="failure"
    )
    assert took == pytest.approx(0.9)
    assert sample(samples, f"{definitions.FIRST_CHUNK.name}_sum", **asked) == pytest.approx(0.3)


@pytest.mark.parametrize("changes", [{"attempts": resumed()}, {"hedged": True}])
def test_overhead_is_not_recorded_for_hedged_and_resumed_requests(
    changes: dict[str, object],
) -> None:
    names = {name for name, _ in counted(record(**changes))}
    assert not names & {
        f"{definitions.OVERHEAD.name}_count",
        f"{definitions.FAILOVER_DELAY.name}_count",
    }
    assert (f"{definitions.FIRST_TOKEN.name}_count" in names) is ("hedged" in changes)


def test_labels_are_bounded() -> None:
    strange = [
        record(model=f"a-model-{n}", outcome=f"an_outcome_{n}", usage={"prompt_tokens": 2**n})
        for n in range(99)
    ]
    samples = counted(*strange)
    models = {v for _, labels in samples for k, v in labels if k == "gen_ai_request_model"}
    assert models == {"other"}
    outcomes = {v for name, labels in samples for k, v in labels if k == "outcome"}
    assert outcomes == {"other", "success"}
    assert len(samples) < 200


def test_every_error_is_a_known_outcome() -> None:
    source = Path(errors.__file__).parent
    written = "".join(path.read_text() for path in source.rglob("*.py"))
    codes = set(re.findall(r'\bcode="(\w+)"', written))
    codes |= set(
        re.findall(r'^    (?:code|kind) = "(\w+)"', Path(errors.__file__).read_text(), re.M)
    )
    # Types that always have a code; and broken streams, which are failures.
    elsewhere = {"authentication_error", "permission_error"}
    elsewhere |= {"upstream_stream_error", "upstream_idle_timeout", "stream_timeout"}
    assert codes - elsewhere - OUTCOMES - REASONS == set()
    assert codes >= REASONS


@pytest.fixture
async def served(upstream: FakeUpstream) -> object:
    upstream.defaults[KEYS[0]] = Reply(status=429, headers={"retry-after": "60"})
    async with serving(make_instance(upstream), make_instance(upstream, 2)) as served:
        for _ in range(3):
            await served.chat(headers={"X-Routing-Mode": "round-robin"})
        # Limits are counted for each model: this one is limited at the first key as well.
        body = {**HELLO, "model": "fake/an-invented-\nmodel"}
        await served.chat(body, headers={"X-Routing-Mode": "round-robin"})
        yield served


async def test_a_scrape_returns_everything(served: Served) -> None:
    samples = await scrape(served)
    one, two = ({"provider": "fake", "provider_instance": name} for name in (ONE, TWO))
    assert sample(samples, "nexus_attempts_total", **one, outcome="rate_limited") == 2
    assert sample(samples, "nexus_attempts_total", **one, outcome="failure") == 0
    assert sample(samples, "nexus_attempts_total", **two, outcome="success") == 4
    assert sample(samples, "nexus_failovers_total", **one, outcome="rate_limited") == 2
    assert sample(samples, "nexus_instance_available", **one) == 0
    assert sample(samples, "nexus_instance_parked", **one, reason="rate_limited") == 1
    assert sample(samples, "nexus_instance_circuit_state", **two, state="closed") == 1
    assert sample(samples, "nexus_instance_circuit_state", **two, state="open") == 0
    assert sample(samples, "nexus_model_instances", model="fake-small") == 2
    assert sample(samples, "nexus_model_instances_available", model="fake-small") == 2
    assert sample(samples, "nexus_workers") == 1
    assert sample(samples, "nexus_retries_denied_total") == 0
    assert (sample(samples, "process_cpu_seconds_total") or 0) > 0
    assert "invented" not in str(samples)


async def test_both_formats_have_the_same_samples(served: Served) -> None:
    url, head = served.url + "/metrics", {"Accept": "application/openmetrics-text;version=9"}
    async with served.session.get(url, headers=head) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        theirs = samples_of(await answer.text(), parse_openmetrics)
    plain = await scrape(served)
    changing = {"process_cpu_seconds_total", "process_resident_memory_bytes"}
    changing |= {"process_virtual_memory_bytes", "process_open_fds"}
    changing |= {"nexus_instance_parked_seconds", "nexus_instance_health_score"}
    changing |= {"nexus_instance_success_ratio"}
    for (name, labels), value in plain.items():
        assert (name, labels) in theirs
        assert name in changing or theirs[(name, labels)] == value
    known = {family.name for family in definitions.FAMILIES}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name, _ in plain} <= known


async def test_the_rest_of_a_rate_limit_is_exposed_if_it_is_known(
    upstream: FakeUpstream,
) -> None:
    left = {"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "25"}
    upstream.default = Reply(headers=left)
    async with serving(make_instance(upstream)) as served:
        labels = {"provider": "fake", "provider_instance": ONE}
        assert sample(await scrape(served), "nexus_instance_quota_left_ratio", **labels) is None
        await served.chat()
        assert sample(await scrape(served), "nexus_instance_quota_left_ratio", **labels) == 0.25


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH")
async def test_promtool_reports_nothing(served: Served) -> None:
    async with served.session.get(served.url + "/metrics") as answer:
        text = await answer.read()
    check = ["promtool", "check", "metrics"]
    done = await asyncio.to_thread(subprocess.run, check, input=text, capture_output=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


async def test_only_admins_and_viewers_may_scrape() -> None:
    keys = (Secret("a-caller"),)
    tokens = {"admin_token": Secret("the-token"), "viewer_token": Secret("the-viewer")}
    async with serving(make_instance(), gateway_keys=keys, **tokens) as served:
        opens = {"a-caller": 401, "": 401, "the-token": 200, "the-viewer": 200}
        for token, status in opens.items():
            head = {"Authorization": f"Bearer {token}"} if token else {}
            async with served.session.get(served.url + "/metrics", headers=head) as answer:
                assert answer.status == status
                assert ("nexus" in await answer.text()) is (status == 200)


@pytest.mark.parametrize(
    ("installed", "wanted", "status", "message"),
    [
        (False, True, 501, "pip install '.[metrics]'"),
        (False, False, 404, "METRICS=true"),
        (True, False, 404, "METRICS=true"),
    ],
)
async def test_nothing_is_counted_if_metrics_are_off_or_not_installed(
    installed: bool, wanted: bool, status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "is_installed", lambda: installed)
    async with serving(make_instance(provider=Fake), metrics=wanted) as served:
        assert not any("metrics" in str(o) for o in served.gateway.recorder.observers)
        assert not any("metrics" in str(s) for s in served.gateway.contributors)
        async with served.session.get(served.url + "/metrics") as answer:
            assert answer.status == status
            assert message in (await answer.json())["error"]["message"]
