"""A reload on SIGHUP applies new settings while requests run."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import pty
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from clock import FakeClock
from fakes import HELLO, KEYS, Other, Served, make_instance, serving
from processes import process
from waiting import until

from nexus_gateway.cli import serve
from nexus_gateway.discovery import PluginProblem
from nexus_gateway.errors import ConfigError
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.pool import Pool
from nexus_gateway.secret import Secret
from nexus_gateway.server.reload import FIXED, LoadedConfig, Reload, changed, keep_fixed
from nexus_gateway.settings import Settings
from nexus_gateway.telemetry import log
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

SLOW = Reply(text="a b c d e f", delay_s=0.04)
NEW_KEY = "key-four-secret"


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, list[str]]]:
    """Record how logging would be configured, without changing it."""
    calls: list[tuple[str, str, list[str]]] = []
    monkeypatch.setattr(
        log,
        "configure",
        lambda level, style, secrets: calls.append((level, style, [s.reveal() for s in secrets])),
    )
    return calls


async def reload(gateway: Served, *instances: Instance, **settings: Any) -> bool:
    fresh = LoadedConfig(Settings(**settings), Pool(list(instances)))
    return await Reload(gateway.gateway, lambda: fresh).once()


async def streams_opened(upstream: FakeUpstream, count: int = 1) -> None:
    await until(lambda: upstream.open >= count)


def fail(instance: Instance) -> None:
    for _ in range(3):
        instance.default.breaker.failure(instance.default.breaker.acquire())


@pytest.mark.proves("I-54", "I-04")
def test_unchanged_instances_keep_their_state_except_a_refused_key() -> None:
    clock = FakeClock()
    instances = [make_instance(number=n, clock=clock) for n in (1, 2, 3)]
    first, second, third = instances
    first.default.park(30)
    first.park_bad_key()
    first.health.failure()
    fail(second)
    third.disable()
    third.total_requests = 7
    pool = Pool(list(instances))
    reloaded = [make_instance(number=n, clock=clock, model="fake-small") for n in (1, 2, 3)]
    changes = pool.replace_with(Pool(reloaded))
    assert pool.instances == instances
    assert changes.kept == [i.name for i in instances]
    assert not [*changes.added, *changes.removed, *changes.replaced]
    limited, failing = first.on("fake-large"), second.on("fake-large")
    assert (limited.park_reason(), limited.parked_for_s()) == ("rate_limited", 30)
    assert first.health.success_rate() < 1
    assert failing.breaker.state() is State.OPEN
    assert first.default.is_available, "another model has its own limits"
    assert (third.enabled, third.total_requests) == (False, 7)
    assert {i.model for i in instances} == {"fake-small"}
    assert not first.takes_images_with("fake-small")


@pytest.mark.proves("I-54")
@pytest.mark.parametrize(
    "different", [{"key": Secret(NEW_KEY)}, {"base_url": "http://127.0.0.1:8/v1"}]
)
def test_another_key_or_address_resets_the_state_but_not_the_toggle(
    different: dict[str, Any],
) -> None:
    clock = FakeClock()
    old = make_instance(clock=clock)
    old.default.park(30)
    fail(old)
    old.disable()
    new = make_instance(clock=clock, **different)
    pool = Pool([old])
    changes = pool.replace_with(Pool([new]))
    assert pool.instances == [new]
    assert changes.replaced == [new.name]
    assert not [*changes.added, *changes.removed, *changes.kept]
    assert (new.default.park_reason(), new.default.breaker.state()) == (None, State.CLOSED)
    assert not new.enabled
    new.enable()
    assert not old.enabled


def test_the_same_key_with_another_number_is_another_instance() -> None:
    one, two = make_instance(), make_instance(number=2, key=Secret(KEYS[0]))
    pool = Pool([one])
    changes = pool.replace_with(Pool([two]))
    assert (changes.added, changes.removed) == ([two.name], [one.name])
    assert changes.as_fields()["kept"] is None


@pytest.mark.proves("I-54")
async def test_a_removed_instance_finishes_its_streams_and_gets_no_new_one(
    upstream: FakeUpstream, each_way: str
) -> None:
    upstream.default = SLOW
    one, two = make_instance(upstream), make_instance(upstream, 2)
    async with serving(one, two) as gateway:
        others = [{**HELLO, "user": f"user {n}"} for n in range(20)]  # other conversations
        streams = [asyncio.create_task(gateway.chat(body)) for body in others[:8]]
        await streams_opened(upstream, 8)
        assert one.in_flight
        assert two.in_flight
        new = make_instance(upstream, 3)
        assert await reload(gateway, make_instance(upstream, 2), new)
        assert [p["name"] for p in (await gateway.health())["providers"]] == [two.name, new.name]
        hits = upstream.hits(KEYS[0])
        later = await asyncio.gather(*[gateway.chat(body) for body in others[8:]])
        for status, text, _ in [*await asyncio.gather(*streams), *later]:
            assert (status, text.count("data: "), text[-8:]) == (200, 9, "[DONE]\n\n")
        assert upstream.hits(KEYS[0]) == hits
        assert upstream.hits(KEYS[2])
        assert not any(i.in_flight for i in (one, two, new))
        # The removed instance recorded its results.
        assert one.health.success_rate() == 1
        assert gateway.instances == [two, new]


@pytest.mark.proves("I-54")
async def test_a_request_is_retried_with_a_key_that_was_replaced_meanwhile(
    upstream: FakeUpstream,
) -> None:
    # Without the reload the only key would be retried.
    upstream.defaults[KEYS[0]] = Reply(status=500, head_delay_s=0.3)
    async with serving(make_instance(upstream)) as gateway:
        asked = asyncio.create_task(gateway.chat())
        await streams_opened(upstream)
        await reload(gateway, make_instance(upstream, key=Secret(NEW_KEY)))
        assert (await asked)[0] == 200
        assert (upstream.hits(KEYS[0]), upstream.hits(NEW_KEY)) == (1, 1)


async def test_a_queued_request_is_served_by_a_replaced_key(
    upstream: FakeUpstream,
) -> None:
    waiting = {"queue_timeout_ms": 20_000}
    parked = make_instance(upstream)
    async with serving(parked, **waiting) as gateway:
        parked.default.park(10)
        asked = asyncio.create_task(gateway.chat())
        await until(lambda: gateway.gateway.drain.in_flight)
        await reload(gateway, make_instance(upstream, key=Secret(NEW_KEY)), **waiting)
        assert (await asyncio.wait_for(asked, 30))[0] == 200
        assert (upstream.hits(KEYS[0]), upstream.hits(NEW_KEY)) == (0, 1)


async def test_a_failure_without_another_candidate_is_still_an_error(
    upstream: FakeUpstream,
) -> None:
    upstream.default = Reply(status=500)
    async with serving(make_instance(upstream), max_attempts=1) as gateway:
        assert (await gateway.chat())[0] == 503
        upstream.default = Reply(status=500, head_delay_s=0.3)
        asked = asyncio.create_task(gateway.chat())
        await streams_opened(upstream)
        await reload(gateway, make_instance(upstream, 2), max_attempts=1)
        assert (await asked)[0] == 503
        assert upstream.hits() == 3


async def test_new_settings_apply_at_once_but_not_to_running_requests(
    upstream: FakeUpstream,
) -> None:
    upstream.script(Reply(first_delay_s=0.6))
    async with serving(make_instance(upstream)) as gateway:
        patient = asyncio.create_task(gateway.chat())
        await streams_opened(upstream)
        await reload(
            gateway,
            make_instance(upstream),
            response_timeout_ms=100,
            gateway_keys=(Secret("caller-secret"),),
            cors_origin="https://chat.example.org",
            max_attempts=1,
            strict_models=True,
        )
        assert (await gateway.chat())[0] == 401
        headers = {"Authorization": "Bearer caller-secret", "Origin": "https://chat.example.org"}
        status, _, answered = await gateway.chat(headers=headers)
        assert (status, answered["Vary"]) == (200, "Origin")
        unknown = {**HELLO, "model": "no-such-model"}
        assert (await gateway.chat(unknown, headers=headers))[0] == 404
        upstream.script(Reply(first_delay_s=1))
        status, text, _ = await gateway.chat(headers=headers)
        assert status == 503
        assert "no first token in" in text
        assert (await patient)[0] == 200


async def test_models_and_events_follow_a_reload(upstream: FakeUpstream) -> None:
    async with (
        serving(make_instance(upstream), make_instance(upstream, 2)) as gateway,
        gateway.session.get(gateway.url + "/v1/events") as events,
    ):

        async def event() -> tuple[str, dict[str, Any]]:
            lines = b""
            while not lines.endswith(b"\n\n"):
                lines += await events.content.readline()
            fields = dict(line.split(": ", 1) for line in lines.decode().strip().split("\n"))
            return fields["event"], json.loads(fields["data"])

        kind, data = await event()
        assert (kind, len(data["providers"])) == ("snapshot", 2)
        await reload(gateway, make_instance(upstream, 2), make_instance(provider=Other, name="o"))
        kind, data = await event()
        names = [p["name"] for p in data["providers"]]
        assert (kind, names) == ("snapshot", ["Fake (Key #2)", "Other (Key #1)"])
        async with gateway.session.get(gateway.url + "/v1/models") as models:
            instances_of = {m["id"]: m["instances"] for m in (await models.json())["data"]}
        assert instances_of["fake-large"] == ["Fake (Key #2)"]
        assert instances_of["other-text"] == ["Other (Key #1)"]
        # A listener whose token is no longer valid is disconnected.
        await reload(gateway, make_instance(upstream, 2), admin_token=Secret("admin-token"))
        await asyncio.wait_for(events.content.read(), 30)


async def test_a_viewer_token_can_be_replaced(upstream: FakeUpstream) -> None:
    tokens = {"admin_token": Secret("admin-token"), "viewer_token": Secret("viewer-one")}

    async def status_with(token: str) -> int:
        head = {"Authorization": f"Bearer {token}"}
        async with gateway.session.get(gateway.url + "/metrics", headers=head) as answer:
            return answer.status

    async with serving(make_instance(upstream), **tokens) as gateway:
        assert [await status_with(t) for t in ("viewer-one", "viewer-two")] == [200, 401]
        head = {"Authorization": "Bearer viewer-one"}
        async with gateway.session.get(gateway.url + "/v1/events", headers=head) as events:
            tokens["viewer_token"] = Secret("viewer-two")
            await reload(gateway, make_instance(upstream), **tokens)
            await asyncio.wait_for(events.content.read(), 30)
        assert [await status_with(t) for t in ("viewer-one", "viewer-two")] == [401, 200]
        await reload(gateway, make_instance(upstream), admin_token=tokens["admin_token"])
        assert [await status_with(t) for t in ("viewer-two", "admin-token")] == [401, 200]


@pytest.mark.proves("I-54")
async def test_wrong_settings_change_nothing(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(error: Exception) -> Callable[[], LoadedConfig]:
        def read() -> LoadedConfig:
            raise error

        return read

    async with serving(make_instance(upstream)) as gateway:
        before = (gateway.gateway.settings, gateway.gateway.relay, gateway.instances[0])
        wrong = ConfigError(["PORT must be a number.", "GROQ_KEY_2 is blank."])
        assert not await Reload(gateway.gateway, refuse(wrong)).once()
        assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [*wrong.problems]
        assert not await Reload(gateway.gateway, refuse(RuntimeError("odd"))).once()
        assert before == (
            gateway.gateway.settings,
            gateway.gateway.relay,
            gateway.instances[0],
        )
        assert (await gateway.chat())[0] == 200


async def test_changes_are_logged_by_name_and_every_key_stays_masked(
    upstream: FakeUpstream,
    caplog: pytest.LogCaptureFixture,
    configured: list[tuple[str, str, list[str]]],
) -> None:
    caplog.set_level(logging.INFO, "nexus_gateway")
    async with serving(
        make_instance(upstream), make_instance(upstream, 2), admin_token=Secret("admin-one")
    ) as gateway:
        problem = PluginProblem("provider", "bad", "nexus-bad", "1", "bad:Bad", "it failed to load")
        fresh = LoadedConfig(
            Settings(log_level="debug", log_format="json", admin_token=Secret("admin-two")),
            Pool(
                [make_instance(upstream, key=Secret(NEW_KEY)), make_instance(upstream, 3)],
                problems=[problem],
                warnings=["GROQ_KEYS is not read"],
            ),
            late=("PORT", "the hook meter"),
        )
        reload_ = Reload(gateway.gateway, lambda: fresh)
        await reload_.once()
        await reload_.once()
    fields = vars(caplog.records[0])["fields"]
    assert fields == {
        "added": "Fake (Key #3)",
        "removed": "Fake (Key #2)",
        "replaced": "Fake (Key #1)",
        "kept": None,
        "settings": "ADMIN_TOKEN, LOG_LEVEL, LOG_FORMAT",
    }
    warnings_logged = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    late = "PORT, the hook meter: changed, but read at the start only"
    assert warnings_logged == ["GROQ_KEYS is not read", f"left out: {problem}", late, late]
    assert vars(caplog.records[-2])["fields"]["kept"] == "Fake (Key #1), Fake (Key #3)"
    level, style, secrets = configured[-1]
    assert (level, style) == ("debug", "json")
    assert {*KEYS, NEW_KEY, "admin-one", "admin-two"} <= set(secrets)
    assert len(secrets) == len(set(secrets))
    assert not any(key in caplog.text for key in (*KEYS, NEW_KEY, "admin"))


async def test_removing_the_keys_of_an_open_gateway_is_warned_about(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    locked = {"host": "0.0.0.0", "gateway_keys": (Secret("caller-secret"),)}
    async with serving(make_instance(upstream), **locked) as gateway:
        await reload(gateway, make_instance(upstream), **locked)
        assert not caplog.records
        await reload(gateway, make_instance(upstream), host="0.0.0.0")
        await reload(gateway, make_instance(upstream), host="0.0.0.0")
    (warning,) = caplog.messages
    assert warning == "0.0.0.0 is open to others and GATEWAY_KEYS is not set"


async def test_signals_during_a_reload_cause_one_more(upstream: FakeUpstream) -> None:
    loop, reads, go_on = asyncio.get_running_loop(), [], asyncio.Event()
    pool = Pool([make_instance(upstream)])

    def read() -> LoadedConfig:
        reads.append(len(reads))
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(10)
        return LoadedConfig(Settings(), pool)

    async with serving(*pool.instances) as gateway:
        reload_ = Reload(gateway.gateway, read)
        working = asyncio.create_task(reload_.run())
        reload_.request()
        await until(lambda: reads)
        for _ in range(5):
            reload_.request()
        assert (await gateway.chat())[0] == 200  # requests do not wait for the reload
        go_on.set()
        await until(lambda: len(reads) >= 2)
        await asyncio.sleep(0.05)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    assert reads == [0, 1]


def test_fixed_settings_keep_their_values() -> None:
    running = Settings(port=4000, gateway_keys=(Secret("caller-one"),))
    new = Settings(port=5000, host="0.0.0.0", max_attempts=2, gateway_keys=(Secret("caller-two"),))
    settings, late = keep_fixed(new, running)
    assert late == ("HOST", "PORT")
    assert set(late) <= set(FIXED)
    assert (settings.host, settings.port, settings.max_attempts) == ("127.0.0.1", 4000, 2)
    assert changed(settings, running) == ["MAX_ATTEMPTS", "GATEWAY_KEYS"]
    assert not changed(running, Settings(port=4000, gateway_keys=(Secret("caller-one"),)))


def arguments(env_file: Path, **more: Any) -> argparse.Namespace:
    flags = {"host": None, "port": None, "workers": None, "log_level": None, "demo": False}
    return argparse.Namespace(env_file=str(env_file), **{**flags, **more})


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.endswith(("_KEY", "_BASE_URL", "PORT", "HOST", "WEB_CONCURRENCY")):
            monkeypatch.delenv(name)
    file = tmp_path / "settings.env"
    file.write_text("GROQ_KEY_1=gsk-one-secret\nPORT=4000\n")
    return file


def test_flags_override_the_file_that_is_read_again(env_file: Path) -> None:
    flags = arguments(env_file, host="127.0.0.2")
    ready = serve.prepare(flags)
    problem = PluginProblem("policy", "odd", "nexus-odd", "1", "odd:Odd", "it failed to load")
    ready.pool.problems.append(problem)
    env_file.write_text("GROQ_KEY_1=gsk-one-secret\nCEREBRAS_KEY_1=csk-secret\nPORT=5000\n")
    fresh = serve.reread(flags, ready)
    assert [i.name for i in fresh.pool.instances] == ["Cerebras (Key #1)", "Groq (Key #1)"]
    assert (fresh.settings.host, fresh.settings.port) == ("127.0.0.2", 4000)
    assert fresh.late[:1] == ("PORT",)
    assert problem in fresh.pool.problems


@pytest.mark.proves("I-54", "I-57")
@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "no provider has a key any more"),
        ("GROQ_KEY_1=two words-secret\nPORT=abc", "GROQ_KEY_1 contains a space"),
        ("OPENAI_KEY_1=a-secret\nOPENAI_BASE_URL=http://localhost:4000/v1\nPORT=1", "own address"),
        (None, "there is no file"),
    ],
)
def test_an_error_in_the_file_is_reported_without_its_value(
    env_file: Path, written: str | None, message: str
) -> None:
    ready = serve.prepare(arguments(env_file))
    env_file.unlink() if written is None else env_file.write_text(written)
    with pytest.raises(ConfigError, match=message) as raised:
        serve.reread(arguments(env_file), ready)
    assert "secret" not in str(raised.value)
    assert ("PORT must" in str(raised.value)) == ("abc" in (written or ""))


def test_plugin_changes_that_need_a_restart_are_named(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = serve.prepare(arguments(env_file))
    assert serve.reread(arguments(env_file), ready).late == ()
    del ready.plugins["policy_by_name"]["fastest"]  # type: ignore[attr-defined]
    ready.plugins["hooks"]["meter"] = object()  # type: ignore[index]
    monkeypatch.setattr("nexus_gateway.discovery.Plugin.origin", "nexus-ai-gateway 9.9")
    ready.pool.plugins.clear()
    late = serve.reread(arguments(env_file), ready).late
    assert late == ("the policy fastest", "the hook meter")


def write(folder: Path, upstream: FakeUpstream, **keys: str) -> None:
    settings = {"GROQ_BASE_URL": upstream.base_url, **keys}
    (folder / ".env").write_text("".join(f"{k}={v}\n" for k, v in settings.items()))


async def logged(log: list[str], text: str, times: int = 1) -> None:
    await until(lambda: "".join(log).count(text) >= times)


@pytest.mark.proves("I-54")
async def test_sighup_replaces_a_key_while_a_stream_runs(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.default = Reply(text="a b c d e f g h", delay_s=0.3)
    write(tmp_path, upstream, GROQ_KEY_1=KEYS[0])
    async with process(tmp_path) as gateway, aiohttp.ClientSession() as session:

        async def stream() -> str:
            async with session.post(gateway.url + "/v1/chat/completions", json=HELLO) as answer:
                return await answer.text()

        running = asyncio.create_task(stream())
        await streams_opened(upstream)
        write(tmp_path, upstream, GROQ_KEY_1="blank and wrong")
        gateway.signal(signal.SIGHUP)
        await logged(gateway.log, "reload failed")
        write(tmp_path, upstream, GROQ_KEY_1=NEW_KEY, WEB_CONCURRENCY="2")
        gateway.signal(signal.SIGHUP)
        await logged(gateway.log, "WEB_CONCURRENCY: changed, but read at the start only")
        after = asyncio.create_task(stream())
        await until(lambda: upstream.hits(NEW_KEY) == 1)
        gateway.signal(signal.SIGTERM)
        await logged(gateway.log, "draining")
        gateway.signal(signal.SIGHUP)
        assert all(text.endswith("[DONE]\n\n") for text in await asyncio.gather(running, after))
        assert await gateway.exit_code() == 0
    text = "".join(gateway.log)
    assert "reload failed, keeping the old settings: GROQ_KEY_1 contains a space" in text
    assert 'reloaded  replaced="Groq (Key #1)"' in text
    assert text.count("reloaded") == 1
    assert not any(key in text for key in (*KEYS, NEW_KEY, "blank and wrong"))


@pytest.mark.proves("I-53")
async def test_a_closed_terminal_ends_the_gateway(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    async with process(tmp_path, stdin=theirs) as gateway:
        gateway.signal(signal.SIGHUP)
        await logged(gateway.log, "reloaded")
        os.close(theirs)
        os.close(ours)
        gateway.signal(signal.SIGHUP)
        assert await gateway.exit_code() == 0
