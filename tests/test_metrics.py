"""What is counted, and what /metrics says of it."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import HELLO, KEYS, Fake, make_instance, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse
from records import ended

from nexus_gateway import errors
from nexus_gateway.handlers import metrics
from nexus_gateway.metrics import families as f
from nexus_gateway.metrics.counting import OUTCOMES, REASONS, Counting, is_usual
from nexus_gateway.metrics.counts import Counts, observe
from nexus_gateway.metrics.exposition import render
from nexus_gateway.record import AttemptRecord, RequestRecord
from nexus_gateway.secret import Secret
from nexus_gateway.testing import FakeUpstream, Reply, Served

ONE, TWO = "Fake (Key #1)", "Fake (Key #2)"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
LABELS = st.text(st.characters(codec="utf-8"), max_size=4)
# As they come: hardly ever on a bound, unless they are put there.
TIMES = st.floats(0, 1e4) | st.sampled_from(f.FIRST_TOKEN_S)


def samples_of(text: str, read: object = parse) -> Samples:
    assert callable(read)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in read(text)
        for sample in family.samples
    }


def sample(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


async def scrape(served: Served, **headers: str) -> Samples:
    async with served.session.get(served.url + "/metrics", headers=headers) as answer:
        text = await answer.text()
        assert answer.status == 200, text
        return samples_of(text)


def record(**changes: object) -> RequestRecord:
    """Return a stream that the first instance answered well."""
    attempt = AttemptRecord(ONE, "fake", "success", "", 200, 300.0)
    own = {"id": "an-id", "ended_s": 0.0, "attempts": (attempt,)}
    times = {"first_ms": 304.0, "upstream_ms": 300.0, "total_ms": 1304.0}
    usage = {"prompt_tokens": 9, "completion_tokens": 101}
    return ended(**{**own, **times, "usage": usage, **changes})


def counted(*records: RequestRecord) -> Samples:
    counting = Counting([make_instance(number=1), make_instance(number=2)])
    for one in records:
        counting(one)
    return samples_of(render(counting.counts, {}, "")[0].decode())


@settings(max_examples=20)  # the library is slow to set up
@given(st.lists(st.tuples(LABELS, TIMES)), st.lists(st.tuples(LABELS, st.integers(1, 9))))
def test_it_adds_up_as_the_library_does(
    times: list[tuple[str, float]], calls: list[tuple[str, int]]
) -> None:
    ours, theirs = Counts(), CollectorRegistry()
    histogram = Histogram(
        f.OVERHEAD.name, "x", f.OVERHEAD.labels, buckets=f.OVERHEAD.buckets, registry=theirs
    )
    counter = Counter(f.RESUMPTIONS.name, "x", registry=theirs)
    for label, took_s in times:
        observe(ours.of((f.OVERHEAD.name, label)), f.OVERHEAD.buckets, took_s)
        histogram.labels(label).observe(took_s)
    for _, number in calls:
        ours.add((f.RESUMPTIONS.name,), number)
        counter.inc(number)
    found = samples_of(render(ours, {}, "")[0].decode())
    for family in theirs.collect():
        for known in family.samples:
            if not known.name.endswith("_created"):
                assert sample(found, known.name, **known.labels) == pytest.approx(known.value)


@given(st.lists(st.tuples(st.integers(0, 2), LABELS, TIMES)))
def test_what_several_workers_counted_is_what_one_would_have(
    seen: list[tuple[int, str, float]],
) -> None:
    alone, workers = Counts(), [Counts() for _ in range(3)]
    for worker, label, took_s in seen:
        for counts in (alone, workers[worker]):
            observe(counts.of((f.OVERHEAD.name, label)), f.OVERHEAD.buckets, took_s)
            counts.add((f.CALLER_REQUESTS.name, label, "2xx"))
    together = workers[0].copy()
    for other in workers[1:]:
        together.add_shared(other.shared())
    assert together.numbers.keys() == alone.numbers.keys()
    for key, numbers in alone.numbers.items():
        assert together.numbers[key] == pytest.approx(numbers)


def test_what_another_version_counted_is_left_out() -> None:
    counts, other = Counts(), Counts()
    other.add((f.HEDGED.name, "with", "labels"))
    said = {name.replace("hedged", "unheard"): 1.0 for name in other.shared()}
    said |= other.shared() | {"Groq requests": 3.0}
    said[f'metrics ["{f.OVERHEAD.name}", "chat"]\t99'] = 1.0
    counts.add_shared(said)
    assert counts.numbers == {(f.OVERHEAD.name, "chat"): [0] * (len(f.OVERHEAD_S) + 2)}


def test_a_request_that_went_well() -> None:
    found = counted(record())
    who = {"provider": "fake", "provider_instance": ONE}
    served = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "fake",
        "gen_ai_request_model": "fake-large",
    }
    assert sample(found, "nexus_attempts_total", **who, outcome="success") == 1
    assert sample(found, "nexus_caller_requests_total", caller="key-2", status="2xx") == 1
    assert (
        sample(found, "nexus_caller_tokens_total", caller="key-2", gen_ai_token_type="input") == 9
    )
    assert sample(found, "nexus_tokens_total", **who, gen_ai_token_type="output") == 101
    total_s = sample(found, f"{f.REQUEST_DURATION.name}_sum", **served, error_type="")
    assert total_s == pytest.approx(1.304)
    assert sample(found, f"{f.FIRST_TOKEN.name}_sum", **served) == pytest.approx(0.304)
    assert sample(found, f"{f.OUTPUT_TOKEN.name}_sum", **served) == pytest.approx(0.01)
    assert sample(found, f"{f.OVERHEAD.name}_sum", endpoint="chat") == pytest.approx(0.004)
    asked = {k: v for k, v in served.items() if "model" not in k} | {"provider_instance": ONE}
    took_s = sample(found, f"{f.ATTEMPT_DURATION.name}_sum", **asked, error_type="")
    assert took_s == pytest.approx(1.3)
    assert sample(found, f"{f.FIRST_CHUNK.name}_sum", **asked) == pytest.approx(0.3)


MS = st.floats(0, 1e6)


@given(
    st.builds(
        record,
        endpoint=st.sampled_from(["chat", "messages", "embeddings"]),
        stream=st.booleans(),
        caller=st.sampled_from(["", "key-1"]),
        model=st.sampled_from(["fake-large", "strange"]),
        first_ms=MS,
        upstream_ms=MS,
        total_ms=MS,
        usage=st.dictionaries(
            st.sampled_from(["prompt_tokens", "completion_tokens"]), st.integers(0, 10**6)
        ),
    )
)
def test_the_usual_request_counts_like_any_other(one: RequestRecord) -> None:
    quick, slow = (Counting([make_instance()]) for _ in range(2))
    assert is_usual(one)
    for _ in range(2):
        quick(one)
        slow.count(one, slow._served(one, slow._model(one)))
    found, known = quick.counts.numbers, slow.counts.numbers
    assert found.keys() == known.keys(), "a series of 0 is one as well"
    for key, numbers in known.items():
        assert found[key] == pytest.approx(numbers)


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "failure"},
        {"status": 499},
        {"hedged": True},
        {"resumed": 1},
        {"attempts": ()},
        {"attempts": record().attempts * 2},
    ],
)
def test_what_is_not_usual(changes: dict[str, object]) -> None:
    assert not is_usual(record(attempts=record().attempts)._replace(**changes))


def test_thinking_is_in_no_tokens_pace() -> None:
    thought = {"completion_tokens": 1101, "completion_tokens_details": {"reasoning_tokens": 1000}}
    usual, other = record(usage=thought), record(usage=thought, hedged=True)
    assert (is_usual(usual), is_usual(other)) == (True, False)
    for one in (usual, other):
        found = counted(one)
        (told,) = [v for (name, _), v in found.items() if name == f"{f.OUTPUT_TOKEN.name}_sum"]
        assert told == pytest.approx(0.01)


def test_what_fail_over_costs_is_not_the_gateways_overhead() -> None:
    failed = AttemptRecord(TWO, "fake", "rate_limited", "answered 429", 429, 200.0)
    found = counted(record(attempts=(failed, *record().attempts), first_ms=700.0))
    labels = {"provider": "fake", "provider_instance": TWO, "outcome": "rate_limited"}
    assert sample(found, "nexus_failovers_total", **labels) == 1
    assert sample(found, f"{f.OVERHEAD.name}_count", endpoint="chat") is None
    assert sample(found, f"{f.FAILOVER_DELAY.name}_sum", endpoint="chat") == pytest.approx(0.4)


def test_a_second_attempt_at_the_same_instance_is_no_fail_over() -> None:
    failed = AttemptRecord(ONE, "fake", "failure", "answered 500", 500, 200.0)
    found = counted(record(attempts=(failed, *record().attempts)))
    assert not [name for name, _ in found if name == "nexus_failovers_total"]


def test_an_answer_that_broke_had_its_first_content_and_took_till_the_break() -> None:
    broken = AttemptRecord(ONE, "fake", "failure", "broke in the middle", 200, 900.0)
    found = counted(record(attempts=(broken,), outcome="failure"))
    named = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "fake"}
    asked = {**named, "provider_instance": ONE}
    took = sample(found, f"{f.ATTEMPT_DURATION.name}_sum", **asked, error_type="failure")
    assert took == pytest.approx(0.9)
    assert sample(found, f"{f.FIRST_CHUNK.name}_sum", **asked) == pytest.approx(0.3)


@pytest.mark.parametrize("changes", [{"resumed": 1}, {"hedged": True}])
def test_where_the_time_is_nobodys_it_is_not_told(changes: dict[str, object]) -> None:
    names = {name for name, _ in counted(record(**changes))}
    assert not names & {f"{f.OVERHEAD.name}_count", f"{f.FAILOVER_DELAY.name}_count"}
    assert (f"{f.FIRST_TOKEN.name}_count" in names) is ("hedged" in changes)


def test_labels_are_bounded() -> None:
    strange = [
        record(model=f"a-model-{n}", outcome=f"an_outcome_{n}", usage={"prompt_tokens": 2**n})
        for n in range(99)
    ]
    found = counted(*strange)
    models = {v for _, labels in found for k, v in labels if k == "gen_ai_request_model"}
    assert models == {"other"}
    outcomes = {v for name, labels in found for k, v in labels if k == "outcome"}
    assert outcomes == {"other", "success"}
    assert len(found) < 200


def test_every_error_is_a_known_outcome() -> None:
    source = Path(errors.__file__).parent
    written = "".join(path.read_text() for path in source.rglob("*.py"))
    codes = set(re.findall(r'\bcode="(\w+)"', written))
    codes |= set(
        re.findall(r'^    (?:code|kind) = "(\w+)"', Path(errors.__file__).read_text(), re.M)
    )
    # Types that always come with a code; and streams that break are failures.
    elsewhere = {"authentication_error", "permission_error"}
    elsewhere |= {"upstream_stream_error", "upstream_idle_timeout"}
    assert codes - elsewhere - OUTCOMES - REASONS == set()
    assert codes >= REASONS


@pytest.fixture
async def served(upstream: FakeUpstream) -> object:
    upstream.defaults[KEYS[0]] = Reply(status=429, headers={"retry-after": "60"})
    async with serving(make_instance(upstream), make_instance(upstream, 2)) as served:
        for _ in range(3):
            await served.chat(headers={"X-Routing-Mode": "round-robin"})
        await served.chat({**HELLO, "model": "fake/never-heard-of-\nit"})
        yield served


async def test_a_scrape_tells_all(served: Served) -> None:
    found = await scrape(served)
    one, two = ({"provider": "fake", "provider_instance": name} for name in (ONE, TWO))
    assert sample(found, "nexus_attempts_total", **one, outcome="rate_limited") == 1
    assert sample(found, "nexus_attempts_total", **one, outcome="failure") == 0
    assert sample(found, "nexus_attempts_total", **two, outcome="success") == 4
    assert sample(found, "nexus_failovers_total", **one, outcome="rate_limited") == 1
    assert sample(found, "nexus_instance_available", **one) == 0
    assert sample(found, "nexus_instance_parked", **one, reason="rate_limited") == 1
    assert sample(found, "nexus_instance_circuit_state", **two, state="closed") == 1
    assert sample(found, "nexus_instance_circuit_state", **two, state="open") == 0
    assert sample(found, "nexus_model_instances", model="fake-small") == 2
    assert sample(found, "nexus_model_instances_available", model="fake-small") == 1
    assert sample(found, "nexus_workers") == 1
    assert sample(found, "nexus_retries_denied_total") == 0
    assert (sample(found, "process_cpu_seconds_total") or 0) > 0
    assert "heard" not in str(found)


async def test_both_formats_say_the_same(served: Served) -> None:
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
    known = {family.name for family in f.FAMILIES}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name, _ in plain} <= known


async def test_what_is_left_of_a_rate_limit_is_told_where_it_is_known(
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
async def test_promtool_finds_nothing(served: Served) -> None:
    async with served.session.get(served.url + "/metrics") as answer:
        text = await answer.read()
    check = ["promtool", "check", "metrics"]
    done = await asyncio.to_thread(subprocess.run, check, input=text, capture_output=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


async def test_it_is_an_admin_call_that_a_viewer_may_make() -> None:
    keys = (Secret("a-caller"),)
    tokens = {"admin_token": Secret("the-token"), "viewer_token": Secret("the-scrapers")}
    async with serving(make_instance(), gateway_keys=keys, **tokens) as served:
        opens = {"a-caller": 401, "": 401, "the-token": 200, "the-scrapers": 200}
        for token, status in opens.items():
            head = {"Authorization": f"Bearer {token}"} if token else {}
            async with served.session.get(served.url + "/metrics", headers=head) as answer:
                assert answer.status == status
                assert ("nexus" in await answer.text()) is (status == 200)


@pytest.mark.parametrize(
    ("installed", "wanted", "status", "told"),
    [
        (False, True, 501, "pip install '.[metrics]'"),
        (False, False, 404, "METRICS=true"),
        (True, False, 404, "METRICS=true"),
    ],
)
async def test_without_it_nothing_is_counted(
    installed: bool, wanted: bool, status: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "is_installed", lambda: installed)
    async with serving(make_instance(provider=Fake), metrics=wanted) as served:
        assert not any("metrics" in str(o) for o in served.gateway.observers)
        assert not any("metrics" in str(s) for s in served.gateway.shares)
        async with served.session.get(served.url + "/metrics") as answer:
            assert answer.status == status
            assert told in (await answer.json())["error"]["message"]
