"""Costs according to the installed price list."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import genai_prices
import pytest
from fakes import HELLO, Fake, make_instance, serving
from records import record, resumed
from waiting import until

from nexus_gateway.telemetry import pricing
from nexus_gateway.telemetry.pricing import Prices, Spent, spent_on
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.web.handlers.events import figures
from nexus_gateway.wire.usage import parse_usage

NOW_S = datetime(2026, 1, 15, 12, tzinfo=UTC).timestamp()


def used(prompt: int, completion: int = 0, cached: int = 0, written: int = 0) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    return {**usage, "prompt_tokens_details": details}


def cost(prices: Prices, provider: str, model: str, usage: Any, **more: Any) -> float | None:
    record_ = record(provider=provider, model=model, usage=usage, **{"ended_s": NOW_S, **more})
    return prices.cost_usd(record_)


def package_cost(provider: str, model: str, usage: Any) -> Decimal:
    tokens = parse_usage(usage)
    usage_ = genai_prices.Usage(
        input_tokens=tokens.prompt,
        cache_read_tokens=tokens.cached,
        cache_write_tokens=tokens.cache_written,
        output_tokens=tokens.completion,
    )
    at = datetime.fromtimestamp(NOW_S, UTC)
    return genai_prices.calc_price(
        usage_, model, provider_id=provider, genai_request_timestamp=at
    ).total_price


@pytest.mark.parametrize(
    ("provider", "model", "theirs"),
    [
        ("openai", "gpt-4o-mini", None),
        ("anthropic", "claude-sonnet-4-5", None),
        ("gemini", "gemini-2.5-pro", ("google", "gemini-2.5-pro")),
        ("xai", "grok-4.3", ("x-ai", "grok-4.3")),
        ("deepseek", "deepseek-v4-pro", None),
        ("fireworks", "accounts/fireworks/models/gpt-oss-120b", None),
        (
            *("groq", "llama-4-scout-17b-16e-instruct"),
            ("groq", "meta-llama/llama-4-scout-17b-16e-instruct"),
        ),
    ],
)
def test_a_cost_equals_that_of_the_package(
    provider: str, model: str, theirs: tuple[str, str] | None
) -> None:
    prices = Prices()
    large = used(900_000, 5000, 250_000, 9000)
    for usage in (used(1000), used(1000, 200, 300, 400), used(99_999, 1), large):
        cost_usd = cost(prices, provider, model, usage)
        expected = float(package_cost(*(theirs or (provider, model)), usage))
        assert cost_usd == pytest.approx(expected, abs=1e-12)
        assert cost_usd


def test_a_cache_saves_the_difference_to_a_prompt_that_is_all_new() -> None:
    prices = Prices()
    cached = record(
        provider="openai", model="gpt-4o", usage=used(1000, 50, cached=800), ended_s=NOW_S
    )
    fresh = package_cost("openai", "gpt-4o", used(1000, 50))
    saved = fresh - package_cost("openai", "gpt-4o", used(1000, 50, cached=800))
    assert prices.saved_usd(cached) == pytest.approx(float(saved))
    assert saved > 0
    for other in (
        record(provider="openai", model="gpt-4o", usage=used(1000, 50), ended_s=NOW_S),
        record(provider="openai", model="no-such", usage=used(9, 5, cached=8), ended_s=NOW_S),
        record(attempts=resumed(), usage=used(9, 5, cached=8), ended_s=NOW_S),
    ):
        assert prices.saved_usd(other) is None


def test_a_price_may_depend_on_the_length() -> None:
    arguments = ("openrouter", "qwen/qwen3-coder-flash", used(50_000, 10))
    assert cost(Prices(), *arguments) == pytest.approx(float(package_cost(*arguments)))


@pytest.mark.parametrize(
    ("provider", "model", "usage", "more"),
    [
        ("demo", "demo-1", used(10, 10), {}),
        ("local", "gpt-4o-mini", used(10, 10), {}),
        ("openai", "a-model-of-mine", used(10, 10), {}),
        ("openai", "", used(10, 10), {}),
        ("openai", "gpt-4o-mini", {}, {}),
        ("openai", "gpt-4o-mini", {"completion_tokens": 10}, {}),
        ("openai", "whisper-1", used(10, 10), {"endpoint": "transcriptions"}),
        (
            *("openai", "gpt-4o-mini"),
            {**used(10, 10), "prompt_tokens_details": {"audio_tokens": 5}},
            {},
        ),
    ],
)
def test_an_unknown_cost_is_not_guessed(
    provider: str, model: str, usage: Any, more: dict[str, Any]
) -> None:
    assert cost(Prices(), provider, model, usage, **more) is None


def test_embeddings_have_no_completion_cost() -> None:
    usage = {"prompt_tokens": 1_000, "total_tokens": 1_000}
    assert cost(Prices(), "openai", "text-embedding-3-small", usage) == pytest.approx(2e-5)


def test_a_bill_takes_precedence_over_the_list() -> None:
    usage, bill = used(10, 10), {"billed_usd": 0.125}
    assert cost(Prices(), "openrouter", "a/model:free", usage, **bill) == 0.125
    assert cost(Prices(), "openai", "a-model-of-mine", usage, **bill) is None
    assert cost(Prices(), "openrouter", "unknown/model", usage) is None


def test_a_resumed_answer_has_no_price() -> None:
    assert cost(Prices(), "openai", "gpt-4o-mini", used(10, 10)) is not None
    assert cost(Prices(), "openai", "gpt-4o-mini", used(10, 10), attempts=resumed()) is None
    assert (
        cost(Prices(), "openrouter", "a/b", used(10, 10), attempts=resumed(), billed_usd=0.1)
        is None
    )


def test_a_model_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = Prices()
    assert not prices.is_loaded
    cost(prices, "openai", "gpt-4o-mini", used(10, 10))
    assert prices.is_loaded
    monkeypatch.setattr(pricing, "_model", None)
    assert cost(prices, "openai", "gpt-4o-mini", used(20, 10))
    # After 15 minutes the price is looked up again.
    assert cost(prices, "openai", "gpt-4o-mini", used(20, 10), ended_s=NOW_S + 900) is None


def test_an_error_of_the_list_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **more: object) -> None:
        raise ArithmeticError("a fault")

    prices = Prices()
    monkeypatch.setattr("genai_prices.types.ModelInfo.calc_price", fail)
    for _ in range(3):
        assert cost(prices, "openai", "gpt-4o-mini", used(10, 10)) is None
    assert caplog.text.count("no price for gpt-4o-mini") == 1


def test_without_the_package_costs_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices.data_snapshot", None)
    assert cost(Prices(), "openai", "gpt-4o-mini", used(10, 10)) is None


def test_prices_need_no_network() -> None:
    code = """
import sys
from types import SimpleNamespace
from nexus_gateway.wire.usage import TokenUsage
from nexus_gateway.telemetry.pricing import Prices

def refuse(event, args):
    assert not event.startswith("socket."), event

sys.addaudithook(refuse)
fields = {"provider": "openai", "model": "gpt-4o-mini", "endpoint": "chat", "ended_s": 1e9}
print(Prices().cost_usd(SimpleNamespace(tokens=TokenUsage(10, completion=10), resumed=0, **fields)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert float(done.stdout or 0), done.stderr


async def test_the_page_shows_what_was_spent(upstream: FakeUpstream, tmp_path: Path) -> None:
    usage = {"include_usage": True}
    gpt = make_instance(upstream, provider=Fake, name="openai", model="gpt-4o-mini")
    ours = make_instance(upstream, provider=Fake, name="ours", model="ours-1")
    async with serving(gpt, ours, ledger=str(tmp_path / "ledger.sqlite3")) as served:
        feed = served.gateway.feed

        def spent() -> tuple[float | None, float | None]:
            values = figures(served.gateway, feed)
            return values["spentUsd"], values["priced"]

        async def spent_at(priced: float) -> float:
            await until(lambda: spent()[1] == priced)
            spent_usd = spent()[0]
            assert spent_usd is not None
            return spent_usd

        assert spent() == (0.0, None)
        body = {**HELLO, "stream": True, "stream_options": usage}
        await served.chat({**body, "model": "openai"})
        spent_usd = await spent_at(1.0)
        assert spent_usd > 0
        await served.chat({**body, "model": "ours"})
        assert await spent_at(0.5) == spent_usd, "a sum is always shown with its share"
        upstream.default = Reply(status=400)
        await served.chat({**body, "model": "openai"})
        await asyncio.to_thread(served.gateway.ledger.close)  # type: ignore[union-attr]
        assert spent() == (spent_usd, 0.5), "a rejected request costs nothing"
        assert figures(served.gateway, feed)["since"] == round(feed.since_s * 1000)


@pytest.mark.parametrize(
    ("numbers", "may_know", "spent"),
    [
        ((0.0, 0, 0), True, Spent(0.0, None)),
        ((0.0, 0, 0), False, Spent(None, None)),
        ((0.0, 0, 5), True, Spent(None, 0.0)),
        ((0.5, 3, 1), False, Spent(0.5, 0.75)),  # as the upstream billed
    ],
)
def test_zero_spending_is_shown_only_if_it_is_known(
    numbers: tuple[float, int, int], may_know: bool, spent: Spent
) -> None:
    assert spent_on(*numbers, may_know=may_know) == spent
