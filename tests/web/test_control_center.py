"""The page in a real browser: what it shows, what it does, and what it must never do.

`make browser` installs Chromium and axe-core. Without them these tests are skipped, except in CI.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import page_states
import pytest
import pytest_asyncio
from clock import FakeClock
from fakes import HELLO, KEYS, Fake, make_instance, serving
from processes import process
from records import ended

from nexus_gateway.secret import Secret
from nexus_gateway.telemetry.snapshot import request_json
from nexus_gateway.testing.gateway import Served
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.web.handlers import events

playwright = pytest.importorskip("playwright.async_api")
expect = playwright.expect

# The shell has no window to draw: a page takes a third of the processor time.
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium") or ""
AXE = Path(__file__).parents[2] / ".venv" / "axe" / "package" / "axe.min.js"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        not CHROMIUM and not os.environ.get("CI"), reason="there is no chromium: make browser"
    ),
]
SOON_MS = 2000
ROUND_ROBIN = {"X-Routing-Mode": "round-robin"}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1360, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1360, "height": 900}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}
RECORD_VIOLATIONS = """
window.violations = [];
addEventListener("securitypolicyviolation", (e) => violations.push(e.violatedDirective));
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    assert CHROMIUM, "there is no chromium: make browser"
    async with playwright.async_playwright() as play:
        started = await play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        await started.close()


@dataclass
class Opened:
    """The page in a tab, with its errors and requests."""

    page: Any
    errors: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)

    def row(self, name: str) -> Any:
        return self.page.locator("#instances > li").filter(has_text=name)

    @property
    def requests(self) -> Any:
        return self.page.locator("#requests > details")

    async def is_live(self, within_ms: float = 5000) -> None:
        await expect(self.page.locator("#link-text")).to_have_text("Live", timeout=within_ms)


@contextlib.asynccontextmanager
async def opened(browser: Any, url: str, **look: Any) -> AsyncIterator[Opened]:
    context = await browser.new_context(**look)
    page = await context.new_page()
    tab = Opened(page)
    page.on("console", lambda line: line.type == "error" and tab.errors.append(line.text))
    page.on("pageerror", lambda error: tab.errors.append(str(error)))
    page.on("request", lambda request: tab.urls.append(request.url))
    await page.add_init_script(RECORD_VIOLATIONS)
    try:
        await page.goto(url)
        yield tab
    finally:
        await context.close()


@contextlib.asynccontextmanager
async def two_instances(**settings: Any) -> AsyncIterator[tuple[Served, FakeUpstream]]:
    async with FakeUpstream() as upstream:
        instances = make_instance(upstream), make_instance(upstream, 2)
        async with serving(*instances, **settings) as served:
            yield served, upstream


async def test_the_page_loads_without_errors(browser: Any) -> None:
    async with two_instances() as (served, _):
        await served.chat(headers=ROUND_ROBIN)
        await served.chat(headers=ROUND_ROBIN)
        async with opened(browser, served.url) as tab:
            await tab.is_live()
            await expect(tab.page.locator("#verdict")).to_have_text("Both instances are serving.")
            await expect(tab.page).to_have_title("● All serving – Nexus Gateway")
            await expect(tab.requests).to_have_count(2)
            assert tab.errors == []
            assert {urlsplit(url).netloc for url in tab.urls} == {urlsplit(served.url).netloc}
            assert await tab.page.evaluate("violations") == []


async def test_an_injected_script_does_not_run(browser: Any) -> None:
    async with two_instances() as (served, _), opened(browser, served.url) as tab:
        await tab.page.evaluate(
            """() => {
                const script = document.createElement("script");
                script.textContent = "window.ran = true";
                document.body.append(script);
                const image = document.createElement("img");
                image.setAttribute("onerror", "window.ran = true");
                image.src = "data:,";
                document.body.append(image);
            }"""
        )
        await tab.page.wait_for_function("violations.length >= 2", timeout=SOON_MS)
        assert await tab.page.evaluate("window.ran") is None


async def test_a_fault_shows_at_once(browser: Any) -> None:
    async with two_instances() as (served, upstream), opened(browser, served.url) as tab:
        await served.chat(headers=ROUND_ROBIN)
        await served.chat(headers=ROUND_ROBIN)
        row = tab.row("Fake (Key #1)")
        await expect(row.locator(".word")).to_have_text("Serving")
        await expect(row.locator(".ttft .n")).to_contain_text("ms /")
        upstream.defaults[KEYS[0]] = Reply(status=503, error={"message": "On fire."})
        for _ in range(6):
            await served.chat(headers=ROUND_ROBIN)
        await expect(row.locator(".word")).to_have_text("Circuit open", timeout=SOON_MS)
        await expect(row.locator(".reason")).to_contain_text("503", timeout=SOON_MS)
        await expect(tab.page.locator("#verdict")).to_have_text(
            "1 of 2 instances is serving.", timeout=SOON_MS
        )
        await expect(row.locator(".until")).to_contain_text("probe in")
        await expect(tab.page.locator("#reasons")).to_contain_text("Fake (Key #1): circuit open")
        await expect(tab.page.locator(".tile.failovers .value")).to_have_text("3")


async def test_a_request_opens_to_show_its_attempts(browser: Any) -> None:
    async with two_instances() as (served, upstream), opened(browser, served.url) as tab:
        upstream.defaults[KEYS[0]] = Reply(status=503)
        await served.chat(headers=ROUND_ROBIN)
        await tab.page.get_by_role("button", name="Failed over").click()
        await expect(tab.requests).to_have_count(1)
        await tab.page.locator("summary.request").press("Enter")
        attempts = tab.page.locator(".attempts-made li")
        await expect(attempts).to_have_count(2)
        await expect(attempts.nth(0)).to_contain_text("Fake (Key #1)")
        await expect(attempts.nth(0)).to_contain_text("answered 503")
        await expect(attempts.nth(1)).to_contain_text("answered")
        pause = tab.page.locator("#pause")
        await served.chat()
        await expect(pause).to_have_text("Resume (1 new)")
        await expect(tab.requests).to_have_count(1)
        await tab.page.locator("summary.request").press("Enter")
        await tab.page.get_by_role("button", name="All", exact=True).click()
        await expect(tab.requests).to_have_count(2)
        await tab.page.locator("details.moved").hover()
        await served.chat()
        await expect(pause).to_have_text("Pause (1 new)")
        await expect(tab.requests).to_have_count(2)
        await tab.page.get_by_role("button", name="Errors").click()
        await expect(tab.requests).to_have_count(0)
        await expect(tab.page.locator("#no-requests")).to_be_visible()
        await tab.page.get_by_role("button", name="All", exact=True).click()
        await expect(tab.requests).to_have_count(3)


async def test_a_late_request_from_another_worker_is_sorted_by_its_end(browser: Any) -> None:
    async with two_instances() as (served, _), opened(browser, served.url) as tab:
        await tab.is_live()
        feed = served.gateway.feed
        for at_s, model in ((20, "third"), (10, "first")):
            feed.observe(ended(ended_s=float(at_s), asked_model=model))
            await expect(tab.requests.filter(has_text=model)).to_have_count(1)
        late = ((15, "second"), (30, "fourth"))
        feed.merge([request_json(ended(ended_s=float(s), asked_model=m)) for s, m in late])
        models = tab.requests.locator(".model")
        await expect(models).to_have_text(["fourth", "third", "second", "first"])
        await tab.page.reload()
        await expect(models).to_have_text(["fourth", "third", "second", "first"])


async def test_the_models_of_a_key_are_folded_below_it(browser: Any) -> None:
    async with FakeUpstream() as upstream:
        instance = make_instance(upstream, model="big", other_models=("small",))
        async with serving(instance) as served, opened(browser, served.url) as tab:
            instance.on("big").park(3600)
            await served.chat()
            row = tab.row("Fake (Key #1)")
            await expect(row.locator(".model")).to_have_text("small")
            await row.get_by_text("2 models").click()
            await expect(row.locator(".models p").first).to_contain_text(
                "big: Rate limited, back in "
            )
            await expect(row.locator(".models p").nth(1)).to_have_text("small: Serving")
            assert tab.errors == []


async def test_the_switch_stops_traffic(browser: Any) -> None:
    async with two_instances() as (served, upstream), opened(browser, served.url) as tab:
        switch = tab.page.get_by_role("switch", name="Fake (Key #1)")
        await switch.press("Space")
        await expect(switch).to_have_attribute("aria-checked", "false")
        await expect(tab.row("Fake (Key #1)").locator(".word")).to_have_text("Off")
        for _ in range(4):
            await served.chat(headers=ROUND_ROBIN)
        assert (upstream.hits(KEYS[0]), upstream.hits(KEYS[1])) == (0, 4)
        await switch.click()
        await expect(switch).to_have_attribute("aria-checked", "true")
        await served.chat(headers=ROUND_ROBIN)
        await served.chat(headers=ROUND_ROBIN)
        assert upstream.hits(KEYS[0]) == 1


async def test_the_admin_token_is_requested_once(browser: Any) -> None:
    token = "an-admin-token"
    async with (
        two_instances(admin_token=Secret(token)) as (served, _),
        opened(browser, served.url) as tab,
    ):
        dialog = tab.page.get_by_role("dialog")
        tries = {
            "a-wrong-token": "",
            "schlüssel": "Not accepted. This call needs the ADMIN_TOKEN",
            token: "A token contains only ASCII letters",
        }
        for offered, problem in tries.items():
            await expect(tab.page.locator("#ask-problem")).to_contain_text(problem)
            await dialog.get_by_label("Token").fill(offered)
            await dialog.get_by_role("button", name="Continue").click()
        await tab.is_live()
        await tab.page.get_by_role("switch", name="Fake (Key #1)").click()
        await expect(tab.row("Fake (Key #1)").locator(".word")).to_have_text("Off")
        await tab.page.reload()
        await tab.is_live()
        await expect(dialog).not_to_be_visible()
        assert await tab.page.evaluate("document.cookie + Object.keys(localStorage)") == ""
        assert not any("token" in url for url in tab.urls)


async def test_a_viewer_needs_the_admin_token_to_switch(browser: Any) -> None:
    tokens = {"admin_token": Secret("an-admin"), "viewer_token": Secret("a-viewer")}
    async with two_instances(**tokens) as (served, _), opened(browser, served.url) as tab:
        dialog, switch = tab.page.get_by_role("dialog"), tab.page.get_by_role("switch").first

        async def enter(token: str, title: str) -> None:
            await expect(dialog.get_by_role("heading")).to_have_text(title)
            await dialog.get_by_label("Token").fill(token)
            await dialog.get_by_role("button", name="Continue").click()

        await enter("a-viewer", "Viewer or admin token")
        await tab.is_live()
        await switch.click()
        await expect(dialog.get_by_role("heading")).to_have_text("Admin token")
        await dialog.get_by_role("button", name="Cancel").click()
        await expect(dialog).not_to_be_visible()
        await expect(switch).to_be_enabled()
        await expect(tab.page.locator("#notice-text")).not_to_be_visible()
        await expect(switch).to_have_attribute("aria-checked", "true")
        assert served.instances[0].enabled

        await switch.click()
        await enter("a-wrong-one", "Admin token")
        await enter("an-admin", "Admin token")
        await expect(switch).to_have_attribute("aria-checked", "false")
        assert not served.instances[0].enabled
        await expect(tab.page.locator("#notice-text")).not_to_be_visible()
        await tab.page.reload()
        await tab.is_live()
        await switch.click()
        await expect(switch).to_have_attribute("aria-checked", "true")
        await expect(dialog).not_to_be_visible()


async def test_the_page_reconnects_after_a_restart(browser: Any, tmp_path: Path) -> None:
    async with process(tmp_path) as first:
        context = opened(browser, first.url)
        tab = await context.__aenter__()
        await tab.is_live()
        first.signal(signal.SIGTERM)
        await first.exit_code()
    try:
        await expect(tab.page.locator("#link-text")).to_contain_text("Disconnected since")
        port = str(urlsplit(first.url).port)
        async with process(tmp_path, "--port", port):
            await tab.is_live()
            await expect(tab.page.locator("#verdict")).to_have_text("The only instance is ready.")
    finally:
        await context.__aexit__(None, None, None)


class Marked(Fake):
    title = "<img src=x onerror=alert(1)>"
    default_model = "<b>bold</b>"


async def test_markup_in_names_is_text(browser: Any) -> None:
    model = "<script>window.ran = true</script>"
    async with FakeUpstream() as upstream, serving(make_instance(upstream, provider=Marked)) as it:
        upstream.default = Reply(status=500, error={"message": "<i>no</i>"})
        await it.chat({**HELLO, "model": model, "stream": True})
        async with opened(browser, it.url) as tab:
            await expect(tab.page.locator("#instances h3")).to_have_text(f"{Marked.title} (Key #1)")
            await expect(tab.page.locator("#instances .model")).to_have_text("<b>bold</b>")
            await expect(tab.page.locator("summary .model")).to_have_text(model)
            await tab.page.locator("summary.request").click()
            await expect(tab.page.locator(".attempts-made .by").first).to_contain_text("<img")
            marks = "main img, main b, main i, main script"
            await expect(tab.page.locator(marks)).to_have_count(0)
            assert await tab.page.evaluate("[window.ran, violations.length]") == [None, 0]


async def test_a_prompt_is_streamed_through_a_routing_mode(browser: Any) -> None:
    async with two_instances() as (served, upstream), opened(browser, served.url) as tab:
        await tab.is_live()
        page = tab.page
        await page.get_by_label("Prompt").fill("Are you there?")
        await page.get_by_label("Routing mode").select_option("round-robin")
        await page.get_by_label("Model").select_option("Fake (Key #2)")
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("#answer")).to_have_text(Reply().text)
        await expect(page.locator("#answered")).to_contain_text("Fake (Key #2) answered: first")
        sent = upstream.requests[0].body
        assert sent["messages"] == [{"role": "user", "content": "Are you there?"}]
        await expect(tab.requests).to_have_count(1)
        assert "Are you there" not in await page.locator("#requests").inner_text()
        upstream.default = Reply(text="on and on " * 100, delay_s=0.05)
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("#answer")).to_contain_text("on and")
        await page.get_by_role("button", name="Stop").click()
        await expect(page.locator("#answered")).to_have_text("Stopped.")
        assert await upstream.requests[-1].gone()


async def serious_findings(page: Any) -> list[Any]:
    """Return the serious findings of axe-core; skip the test if it is not installed."""
    if not AXE.exists() and not os.environ.get("CI"):
        pytest.skip("there is no axe-core: make browser")
    await page.evaluate(AXE.read_text(encoding="utf-8"))
    report = await page.evaluate("axe.run()")
    return [
        (v["id"], [n["html"][:200] for n in v["nodes"]])
        for v in report["violations"]
        if v["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("look", LOOKS)
async def test_the_page_is_accessible(browser: Any, look: str, tmp_path: Path) -> None:
    """No serious finding of axe-core, nothing wider than the screen, and a screenshot."""
    async with two_instances() as (served, upstream):
        upstream.defaults[KEYS[0]] = Reply(status=429, headers={"Retry-After": "60"})
        for _ in range(3):
            await served.chat(headers=ROUND_ROBIN)
        async with opened(browser, served.url, **LOOKS[look]) as tab:
            await tab.is_live()
            await tab.requests.last.locator("summary.request").click()
            await expect(tab.page.locator(".attempts-made li").first).to_be_visible()
            assert await serious_findings(tab.page) == []
            assert await tab.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
            picture = await tab.page.screenshot(path=tmp_path / f"{look}.png")
            assert picture.startswith(b"\x89PNG")


async def evaluate(browser: Any, url: str, body: str, data: Any) -> Any:
    """Run `body` with the functions of states.js as `s` and with `data`; return its result."""
    script = f"""async (text) => {{
        const s = await import("/static/states.js");
        const data = JSON.parse(text);
        const result = (() => {{ {body} }})();
        return JSON.stringify(result);
    }}"""
    async with opened(browser, url) as tab:
        # As text: passed as an object it takes ten times as long.
        return json.loads(await tab.page.evaluate(script, json.dumps(data)))


async def test_every_state_has_its_word(browser: Any) -> None:
    cells = list(page_states.cells())
    data = [page_states.instance(**cell) for cell in cells]
    body = (
        "return data.map((i) => s.stateOf(i)).map(({ word, kind, group }) => [word, kind, group])"
    )
    async with two_instances() as (served, _):
        states = await evaluate(browser, served.url, body, data)
    wrong = [
        (cell, state, page_states.expected_state(cell))
        for cell, state in zip(cells, states, strict=True)
        if tuple(state) != page_states.expected_state(cell)
    ]
    assert wrong == []


async def test_headline_reasons_and_rows_agree(browser: Any) -> None:
    cases = [[page_states.instance(**cell) for cell in all] for all, *_ in page_states.HEADLINES]
    beside = [page_states.instance(**cell) for cell, *_ in page_states.ROW_TEXTS]
    slow, shut, half = page_states.SLOW, page_states.OPEN_CIRCUIT, page_states.HALF_OPEN
    troubled = [slow, {"success": 75.0}, {}, half, {**shut, "success": 50.0}, shut]
    order = [
        page_states.instance(name, **cell) for name, cell in zip("ABCDEF", troubled, strict=True)
    ]
    never = page_states.instance(**page_states.READY, latency_ms=None)
    older = page_states.instance()  # from a gateway that does not send `judged`
    del older["metrics"]["judged"]
    body = """
        const now = (i) => ({ ...i, state: s.stateOf(i, 2000) });
        const row = (i) => [i.state.until, s.rowReasonOf(i, i.state), s.problemsOf([i])];
        const headline = ({ kind, text, short }) => [kind, text, short];
        return [
            data.beside.map(now).map(row),
            data.cases.map((all) => headline(s.headlineOf(all.map(now), "healthy"))),
            headline(s.headlineOf(data.order.map(now), "draining")),
            s.problemsOf(data.order.map(now)),
            [data.never, data.older].map((i) => Object.values(s.figuresOf(i))),
        ];
    """
    data = {"beside": beside, "cases": cases, "order": order, "never": never, "older": older}
    async with two_instances() as (served, _):
        result = await evaluate(browser, served.url, body, data)
    rows, headlines, draining, problems, figures = result
    assert rows == [list(texts) for _, *texts in page_states.ROW_TEXTS]
    assert headlines == [list(texts) for _, *texts in page_states.HEADLINES]
    assert draining == ["wait", "The gateway is shutting down.", "Shutting down"]
    # The worst first; of two in the same state, the one with the lower health.
    assert problems == "E: circuit open  ·  F: circuit open  ·  and 3 more"
    assert figures == [["–", "–", "–"], ["90.0%", "100.0%", "10.0%"]]


async def test_an_instance_counts_as_serving_only_after_a_success(browser: Any) -> None:
    clock = FakeClock()
    async with FakeUpstream() as upstream:
        instances = [make_instance(upstream, number, clock) for number in (1, 2)]
        async with serving(*instances, clock=clock) as it, opened(browser, it.url) as tab:
            row, headline = tab.row("Fake (Key #1)"), tab.page.locator("#verdict")
            await expect(headline).to_have_text("Both instances are ready.")
            await expect(tab.page).to_have_title("○ All ready – Nexus Gateway")
            await expect(row.locator(".now")).to_have_text("Readyno requests yet")
            for cell in ("health", "success", "wait"):
                await expect(row.locator(f".{cell} dd")).to_have_text("–")
            upstream.default = Reply(status=500)
            for _ in range(3):
                await it.chat(headers=ROUND_ROBIN)
            await expect(headline).to_have_text(
                "No instance is serving; 2 are awaiting a probe.", timeout=SOON_MS
            )
            await expect(tab.page).to_have_title("✕ None serving – Nexus Gateway")
            # A request that fails everywhere is held against none.
            await expect(row.locator(".now")).to_have_text("Unprovenawaiting a probe")
            await expect(row.locator(".success dd")).to_have_text("–")
            await expect(row.locator(".wait dd")).to_have_text("–")  # no answer has started yet
            drawn = tab.page.locator(".sparkline .served[d^=M]")
            await expect(row.locator(".sparkline .failed")).to_have_attribute("d", re.compile("M"))
            await expect(drawn).to_have_count(0)
            upstream.default = Reply()
            await it.chat()
            await expect(drawn).to_have_count(2)  # the instance that answered, and the total
            assert tab.errors == []


MINUTE, DAY = 60, 86_400
SPAN = ("in the last 15 min", "in the last 15 minutes")
ALL_KNOWN = {"spentUsd": 12.0, "priced": 1.0}
# The gateway's figures, its uptime in seconds, and the text of the cost tile.
COSTS: list[tuple[dict[str, Any], int, str]] = [
    ({"spentUsd": None, "priced": None}, DAY, "–no ledger or prices"),
    ({"spentUsd": None, "priced": 0.0}, DAY, "–no price known"),
    ({"spentUsd": 0.0, "priced": None}, MINUTE, "$0.00since HH:MM"),
    ({"spentUsd": 1.5, "priced": 0.5719}, DAY, "$1.5000for 57% of requests"),
    ({"spentUsd": 1.5, "priced": 0.9999}, DAY, "$1.5000for 99% of requests"),
    (ALL_KNOWN, MINUTE, "$12.00since HH:MM"),
    (ALL_KNOWN, 2 * DAY, "$12.00since D MMM"),
]


async def test_a_figure_shows_what_it_covers(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = events.figures
    now: dict[str, Any] = {"known": ALL_KNOWN, "up_s": 0}

    def figures(gateway: Any, feed: Any) -> dict[str, Any]:
        values = real(gateway, feed)
        return {**values, "since": values["at"] - now["up_s"] * 1000, **now["known"]}

    def matching(text: str) -> re.Pattern[str]:
        pattern = re.escape(text).replace("HH:MM", r"\d\d:\d\d").replace(r"D\ MMM", r"\d+ \w{3,4}")
        return re.compile(f"^{pattern}$")

    monkeypatch.setattr(events, "figures", figures)
    async with two_instances() as (served, _), opened(browser, served.url) as tab:
        more, activity = tab.page.locator(".tile.rate .more"), tab.page.locator("#reasons")
        for known, up_s, cost in COSTS:
            now.update(known=known, up_s=up_s)
            await tab.page.reload()
            await expect(tab.page.locator(".tile.cost dd")).to_have_text(matching(cost))
            short, long = ("since HH:MM",) * 2 if up_s < 15 * MINUTE else SPAN
            await expect(more).to_have_text(matching(f"0 {short}"))
            await expect(activity).to_have_text(matching(f"No requests {long}."))


async def test_a_key_with_both_rights_is_requested_once(browser: Any) -> None:
    key = "one-gateway-key"
    async with (
        two_instances(gateway_keys=(Secret(key),)) as (served, _),
        opened(browser, served.url) as tab,
    ):
        dialog, send = tab.page.get_by_role("dialog"), tab.page.get_by_role("button", name="Send")
        for offered in ("schlüssel", key):
            await dialog.get_by_label("Token").fill(offered)
            await dialog.get_by_role("button", name="Continue").click()
        await tab.is_live()
        await send.click()
        await expect(tab.page.locator("#answered")).to_contain_text("answered: first token after")
        await tab.page.get_by_role("switch").first.click()
        await expect(tab.row("Fake (Key #1)").locator(".word")).to_have_text("Off")
        await expect(dialog).not_to_be_visible()


async def test_entering_another_key_does_not_count_as_latency(browser: Any) -> None:
    settings = {"admin_token": Secret("an-admin"), "gateway_keys": (Secret("a-caller"),)}
    async with two_instances(**settings) as (served, _), opened(browser, served.url) as tab:
        dialog, problem = tab.page.get_by_role("dialog"), tab.page.locator("#ask-problem")

        async def enter(token: str) -> None:
            await dialog.get_by_label("Token").fill(token)
            await dialog.get_by_role("button", name="Continue").click()

        await enter("an-admin")
        await tab.is_live()
        await tab.page.get_by_role("button", name="Send").click()
        await expect(dialog.get_by_role("heading")).to_have_text("Gateway key")
        await expect(problem).to_have_text("")  # a token entered for another purpose is no error
        await enter("wrong")
        await expect(problem).to_contain_text("Not accepted. This call needs a valid gateway key")
        await tab.page.evaluate(
            "const now = performance.now; performance.now = () => now.call(performance) + 6e5"
        )
        await enter("a-caller")
        status = tab.page.locator("#answered")
        await expect(status).to_contain_text("Fake (Key #")
        await expect(status).not_to_contain_text("min")
        assert (
            await tab.page.evaluate("sessionStorage.getItem('nexus-gateway.viewer')") == "an-admin"
        )


@pytest.mark.parametrize("look", LOOKS)
async def test_a_locked_page_is_accessible(browser: Any, look: str) -> None:
    async with (
        two_instances(admin_token=Secret("a-token")) as (served, _),
        opened(browser, served.url, **LOOKS[look]) as tab,
    ):
        await tab.page.get_by_role("button", name="Cancel").click()
        await expect(tab.page.locator("#verdict")).to_have_text("Locked.")
        await expect(tab.page).to_have_title("○ Locked – Nexus Gateway")
        notice = tab.page.locator("#notice-text")
        await expect(notice).to_have_text("Enter a token to view this gateway.")
        await expect(tab.page.locator("#no-requests")).not_to_be_visible()
        assert await serious_findings(tab.page) == []


async def test_a_page_without_access_shows_why(browser: Any) -> None:
    async with two_instances(host="0.0.0.0") as (served, _), opened(browser, served.url) as tab:
        await expect(tab.page.locator("#verdict")).to_have_text("Access denied.")
        await expect(tab.page.locator("#notice-text")).to_contain_text("Set ADMIN_TOKEN")
        await expect(tab.page.locator("#no-requests")).not_to_be_visible()


async def test_a_row_in_use_neither_moves_nor_disappears(browser: Any) -> None:
    """With a row open, the keyboard focus in the list, and 200 newer requests."""
    async with two_instances() as (served, _):
        feed = served.gateway.feed
        feed.observe(ended(ended_s=1.5, asked_model="broke", outcome="failure"))
        for at_s in range(1, 200):
            feed.observe(ended(ended_s=float(at_s), asked_model=f"at-{at_s}"))
        async with opened(browser, served.url) as tab:
            models, pause = tab.requests.locator(".model"), tab.page.locator("#pause")
            await expect(tab.requests).to_have_count(200)
            await tab.requests.last.locator("summary.request").press("Enter")
            await expect(pause).to_have_text("Resume")
            await pause.click()
            for at_s in range(200, 210):
                feed.observe(ended(ended_s=float(at_s), asked_model=f"at-{at_s}"))
            await expect(models.first).to_have_text("at-209")
            await expect(tab.requests).to_have_count(201)
            await expect(tab.requests.last).to_have_attribute("open", "")
            await expect(models.last).to_have_text("at-1")

            await tab.page.get_by_role("button", name="Errors").click()
            await expect(models).to_have_text(["broke"])
            await tab.page.get_by_role("button", name="All", exact=True).click()
            await tab.page.get_by_role("switch").last.focus()
            await tab.page.keyboard.press("Tab")
            await expect(tab.page.get_by_label("Prompt")).to_be_focused()
            second = tab.requests.nth(1).locator("summary")
            await tab.requests.first.locator("summary").focus()
            await tab.page.keyboard.press("Tab")
            await expect(second).to_be_focused()
            feed.observe(ended(ended_s=300.0, asked_model="newest"))
            await expect(pause).to_have_text("Pause (1 new)")
            await expect(second).to_be_focused()
            await expect(models.first).to_have_text("at-209")
            await pause.focus()
            await expect(models.first).to_have_text("newest")


async def test_a_request_that_another_worker_repeats_is_not_new(browser: Any) -> None:
    """After a reconnect another worker sends requests, some of which the page has already."""
    async with two_instances() as (served, _), opened(browser, served.url) as tab:
        await tab.is_live()
        feed, pause = served.gateway.feed, tab.page.locator("#pause")
        first, second, third = (
            request_json(ended(ended_s=at_s, asked_model=f"at-{at_s:.0f}"))
            for at_s in (1.0, 2.0, 3.0)
        )
        feed.merge([first])
        await expect(tab.requests).to_have_count(1)
        await pause.click()
        feed.merge([first, second, second])
        feed.merge([third])
        await expect(pause).to_have_text("Resume (2 new)")
        await pause.click()
        await expect(tab.requests.locator(".model")).to_have_text(["at-3", "at-2", "at-1"])


async def test_a_row_has_text_for_all_it_shows(browser: Any) -> None:
    async with two_instances() as (served, _), opened(browser, served.url) as tab:
        await tab.is_live()
        feed = served.gateway.feed
        none = {"attempts": (), "instance": "", "outcome": "no_candidate"}
        requests = [
            request_json(ended(ended_s=1.0, outcome="failure")),
            {**request_json(ended(ended_s=2.0, asked_model="moved")), "failedOver": True},
            {**request_json(ended(ended_s=3.0, status=503, **none)), "firstMs": None},
        ]
        why = "smart: no candidate; excluded: Fake (Key #1) key refused 397s"
        feed.merge([*requests[:2], {**requests[2], "why": why, "failed": True}])
        await expect(tab.requests).to_have_count(3)
        rows = [" ".join(text.split()) for text in await tab.requests.all_text_contents()]
        expected = (
            ("503 failed fake", "no instance0 attempts –"),
            ("200 failed over moved", ")1 attempt 5 ms"),
            ("200 failed fake", ")1 attempt 5 ms"),
        )
        for row, words in zip(rows, expected, strict=True):
            assert all(word in row for word in words), row
        await tab.requests.first.locator("summary.request").click()
        exclusions = tab.page.locator(".attempts-made li")
        await expect(exclusions).to_have_text(
            "No instance was tried. Excluded: Fake (Key #1) key refused 397s"
        )
        assert (await exclusions.bounding_box())["height"] < 60
        await tab.page.get_by_role("button", name="Failed over").click()
        await expect(tab.requests.locator(".model")).to_have_text(["moved"])


class Long(Fake):
    title = "Fireworks and More"
    default_model = "hf.co/an-owner/Coder-480B-A35B-Instruct-1M-GGUF:UD-Q4_K_XL-rather-long"


WIDTHS = (320, 360, 390, 430, 520, 640, 700, 759, 760, 761, 785, 820, 860, 900, 940, 1000)
WIDTHS += (1001, 1060, 1120, 1121, 1180, 1190, 1219, 1240, 1260, 1261, 1280, 1360, 1920, 2560)
# Elements that stick out of their panel, and texts that overflow their cell.
OVERFLOWS = """() => {
    const write = (where, text) => {
        for (const node of document.querySelectorAll(where)) node.textContent = text;
    };
    write(".tile.cost .value", "$12,345.67");
    write(".tile.tokens .value", "99,999");
    write(".cell.ttft span", "999 ms / 9.99 s");
    write(".cell.speed span", "1,234.5");
    const strays = [];
    if (document.scrollingElement.scrollWidth > innerWidth) strays.push("the page");
    const beyond = (inner, outer) => inner.left < outer.left - 1 || inner.right > outer.right + 1;
    for (const panel of document.querySelectorAll(".panel, .tiles, .bar, .title, .verdict")) {
        const edge = panel.getBoundingClientRect();
        for (const node of panel.querySelectorAll(":not(.unseen, option)")) {
            const box = node.getBoundingClientRect();
            if (box.width && node.closest("dt") === null && beyond(box, edge)) {
                strays.push(`${node.tagName}.${node.className} out of its panel`);
            }
        }
    }
    const places = ".tile dt, .tile dd, .cell dd, .columns > span, summary > :not(.cut), .button";
    for (const place of document.querySelectorAll(places)) {
        const edge = place.getBoundingClientRect();
        const texts = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) {
            if (texts.currentNode.parentElement.closest(".unseen")) continue;
            const range = document.createRange();
            range.selectNodeContents(texts.currentNode);
            for (const box of range.getClientRects()) {
                if (beyond(box, edge)) strays.push(`${place.className}: ${texts.currentNode.data}`);
            }
        }
    }
    return strays;
}"""


async def test_the_page_fits_every_screen_and_unfolds_on_a_narrow_one(browser: Any) -> None:
    async with FakeUpstream() as upstream:
        upstream.defaults[KEYS[1]] = Reply(status=429, headers={"Retry-After": "60"})
        both = [make_instance(upstream, number, provider=Long) for number in (1, 2)]
        async with serving(*both) as served:
            feed = served.gateway.feed
            for at_s in range(120):
                feed.observe(ended(ended_s=float(at_s), asked_model=Long.default_model))
            await served.chat({**HELLO, "model": "fake-large"}, headers=ROUND_ROBIN)
            await served.chat({**HELLO, "model": "fake-large"}, headers=ROUND_ROBIN)
            async with opened(browser, served.url, reduced_motion="reduce") as tab:
                await tab.is_live()
                page, details = tab.page, tab.page.locator("#requests > details")
                await tab.requests.first.locator("summary.request").click()
                for width in WIDTHS:
                    await page.set_viewport_size({"width": width, "height": 900})
                    assert await page.evaluate(OVERFLOWS) == [], width
                knob = "getComputedStyle(document.querySelector('.switch'), '::after')"
                assert await page.evaluate(f"{knob}.transitionDuration") == "0s"

                await page.set_viewport_size({"width": 390, "height": 844})
                await expect(details).to_have_count(50)
                more = page.locator("#more-requests")
                await more.press("Enter")
                await expect(details.nth(50).locator("summary")).to_be_focused()
                await more.press("Enter")
                await expect(more).not_to_be_visible()
                await expect(details).to_have_count(122)
                success = page.locator(".cell.success").first
                await expect(success).not_to_be_visible()
                unfold = page.get_by_role("button", name="More of Fireworks and More (Key #1)")
                await unfold.press("Enter")
                await expect(success).to_be_visible()
                less = page.get_by_role("button", name="Less of", expanded=True)
                await expect(less).to_have_count(1)
                assert await page.evaluate(OVERFLOWS) == []
                assert await page.evaluate("violations") == []


async def test_the_page_shows_how_a_client_is_connected(browser: Any) -> None:
    async with two_instances() as (served, _), opened(browser, served.url) as tab:
        settings = tab.page.locator("#settings pre")
        assert not await settings.count()
        await tab.page.get_by_text("Connect a client").click()
        await expect(settings.first).to_contain_text(f'"ANTHROPIC_BASE_URL": "{served.url}"')
        await tab.page.get_by_label("Client", exact=True).select_option("Codex")
        await expect(settings.first).to_contain_text(f'base_url = "{served.url}/v1"')
        await tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await tab.page.locator("#settings button").first.click()
        await expect(tab.page.locator("#settings button").first).to_have_text("Copied")
        copied = await tab.page.evaluate("navigator.clipboard.readText()")
        assert copied == await settings.first.inner_text()
        assert tab.errors == []
