"""Makes docs/control-center.png: a gateway under load, with fake upstreams, some of which fail.

The load is real and lasts seconds; the 15 minutes before it are generated.

    python docs/screenshot.py [--folder DIR]

Needs the extra `test` and Debian's chromium. With a folder it writes other views there: dark,
narrow, and with an open request.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nexus_gateway_plugins.anthropic import Anthropic
from nexus_gateway_plugins.cerebras import Cerebras
from nexus_gateway_plugins.gemini import Gemini
from nexus_gateway_plugins.groq import Groq
from playwright.async_api import Browser, async_playwright

from nexus_gateway.provider import Outcome, Verdict
from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.attempts import Attempt
from nexus_gateway.telemetry.ledger_writer import LedgerWriter
from nexus_gateway.telemetry.pricing import Spent
from nexus_gateway.testing.gateway import HELLO, Served, instance_of, serving
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.wire.usage import TokenUsage

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
PNG = Path(__file__).with_name("control-center.png")
LOAD_S = 9.0
SIZE = {"width": 1360, "height": 900}
MODELS = ("auto", "auto", "auto", "groq", "gemini-3.8-flash", "claude-sonnet-5-5")
LONGER = "One word after the other, as they come, so that there is something to count. " * 3


def replies() -> dict[str, Reply]:
    """Return the reply of each key's upstream: fast, slow, rate limited and broken."""
    quota = {"x-ratelimit-limit-requests": "1000", "x-ratelimit-remaining-requests": "620"}
    quick = Reply(text=LONGER, first_delay_s=0.12, delay_s=0.004, headers=quota)
    return {
        "groq-1": quick,
        "groq-2": Reply(status=429, headers={"Retry-After": "97"}),
        "gemini-1": replace(quick, first_delay_s=0.4, delay_s=0.008, headers={}),
        "cerebras-1": Reply(status=502, error={"message": "upstream connect error"}),
        "claude-1": replace(quick, first_delay_s=0.7, delay_s=0.012, headers={}),
    }


@contextlib.asynccontextmanager
async def gateway() -> AsyncIterator[Served]:
    """Serve five instances of well-known providers, with a fake upstream."""
    async with FakeUpstream() as upstream:
        upstream.defaults.update(replies())
        url = upstream.base_url
        instances = [
            instance_of(Groq, url, key="groq-1", number=1),
            instance_of(Groq, url, key="groq-2", number=2),
            instance_of(Gemini, url, key="gemini-1"),
            instance_of(Cerebras, url, key="cerebras-1"),
            instance_of(Anthropic, url, key="claude-1"),
        ]
        async with serving(*instances) as served:
            yield served


class FixedCost(LedgerWriter):
    """A ledger whose cost is always the same."""

    def spent(self, elsewhere: Mapping[str, float]) -> Spent:
        """Return the cost, and the share of requests with a known price."""
        return Spent(3.7264, 0.94)


def fill_timelines(served: Served) -> None:
    """Record 15 minutes of generated requests."""
    rng = random.Random(5)
    feed = served.gateway.feed
    served.gateway.ledger = FixedCost("")
    now_s = time.time()
    feed.since_s = now_s - 3600
    for age_s in range(895, 12, -1):
        for _ in range(rng.choice((0, 1, 1, 2)) + (age_s < 500) + (rng.random() < 0.002) * 12):
            feed.observe(past_request(served, rng, now_s - age_s, age_s))


def past_attempt(
    served: Served, name: str, outcome: Outcome, reason: str, duration_ms: float
) -> Attempt:
    """Return an attempt that has ended, without a trace in its instance."""
    attempt = object.__new__(Attempt)
    instance = served.gateway.pool.instance(name)
    assert instance is not None
    attempt.instance, attempt.model, attempt.usage = instance, "", {}
    attempt.started_s, attempt.ended_s = 0.0, duration_ms / 1000
    attempt.first_content_s = None if reason else attempt.ended_s
    attempt.verdict = Verdict(outcome, reason, 502 if reason else 0)
    return attempt


def past_request(served: Served, rng: random.Random, ended_s: float, age_s: int) -> RequestRecord:
    """Return the record of a request that ended `age_s` ago."""
    names = ("Groq (Key #1)", "Groq (Key #2)", "Gemini (Key #1)", "Anthropic (Key #1)")
    name = rng.choices(names, (5, 3 if age_s > 90 else 0, 3, 2))[0]
    first_ms = rng.gauss(400, 90)
    attempts = [past_attempt(served, name, Outcome.SUCCESS, "", first_ms)]
    if age_s < 240 and rng.random() < 0.12:
        broken = "Cerebras (Key #1)"
        attempts.insert(0, past_attempt(served, broken, Outcome.FAILURE, "answered 502", 31.0))
    tokens = TokenUsage(12, completion=rng.randint(40, 300))
    return RequestRecord(
        id=f"req-{rng.getrandbits(48):012x}",
        trace_id="",
        ended_s=ended_s,
        endpoint="chat",
        asked_model=rng.choice(MODELS),
        stream=True,
        policy="smart",
        caller="",
        instance=name,
        provider="",
        model="",
        attempts=tuple(attempts),
        begun=len(attempts),
        hedged=False,
        status=200,
        outcome="success",
        first_ms=first_ms,
        upstream_ms=first_ms,
        total_ms=first_ms * 3,
        tokens=tokens,
        billed_usd=None,
    )


async def load(served: Served, seconds: float) -> None:
    """Send requests at random times, as several callers would."""
    rng = random.Random(3)
    requests: list[asyncio.Task[object]] = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        body = {**HELLO, "model": rng.choice(MODELS), "stream": True}
        head = {"X-Routing-Mode": rng.choice(("smart", "round-robin"))}
        requests.append(asyncio.create_task(served.chat(body, headers=head)))
        await asyncio.sleep(rng.uniform(0.05, 0.4))
    await asyncio.gather(*requests[:-3])


async def take(browser: Browser, url: str, path: Path, opened: bool = False, **view: Any) -> None:
    """Take one screenshot of the page."""
    page = await browser.new_page(**{"viewport": SIZE, **view})
    await page.goto(url)
    await page.wait_for_selector("[data-state=live]")
    if opened:
        await page.locator("details.moved summary").first.click()
    await page.wait_for_timeout(1200)
    await page.screenshot(path=path)
    await page.close()


async def main(folder: Path | None) -> None:
    """Take the README's screenshot, or with a folder the other views."""
    async with gateway() as served, async_playwright() as play:
        fill_timelines(served)
        browser = await play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        loading = asyncio.create_task(load(served, LOAD_S))
        await asyncio.sleep(LOAD_S - 2.5)
        if folder is None:
            await take(browser, served.url, PNG, device_scale_factor=1.5)
        else:
            narrow = {"width": 390, "height": 2100}
            await take(browser, served.url, folder / "light.png")
            await take(browser, served.url, folder / "dark.png", opened=True, color_scheme="dark")
            await take(browser, served.url, folder / "narrow.png", viewport=narrow)
            between = {"width": 900, "height": 900}
            await take(browser, served.url, folder / "tablet.png", viewport=between)
        await loading
        await browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    asyncio.run(main(parser.parse_args().folder))
