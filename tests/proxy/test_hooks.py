"""Hooks: what they see, what they change, and how a request ends when they fail."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from fakes import HELLO, make_instance, serving
from plugin_points import point

from nexus_gateway.discovery import load
from nexus_gateway.hooks import Hook, HookRequest, HookResponse, HookResult, Rejected
from nexus_gateway.provider import API_VERSION
from nexus_gateway.proxy.hook_runner import HOOKS
from nexus_gateway.secret import Secret
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
MESSAGES = {"model": "auto", "max_tokens": 9, **HELLO}


class Recorder(Hook):
    """Records all its calls."""

    def __init__(self) -> None:
        self.exchanges: list[HookRequest] = []
        self.answers: list[HookResponse] = []
        self.used: list[HookResult] = []
        self.ended = asyncio.Event()

    async def before_routing(self, exchange: HookRequest) -> None:
        exchange.notes["seen"] = True
        self.exchanges.append(exchange)

    async def before_answer(self, exchange: HookRequest, answer: HookResponse) -> None:
        assert exchange.notes["seen"]
        self.answers.append(answer)

    async def at_end(self, exchange: HookRequest, used: HookResult) -> None:
        self.used.append(used)
        self.ended.set()


class Redactor(Hook):
    async def before_routing(self, exchange: HookRequest) -> Mapping[str, Any] | None:
        if exchange.body is None:
            return None
        text = json.dumps(exchange.body).replace("4111-1111", "****")
        changed: Mapping[str, Any] = json.loads(text)
        return changed

    async def before_answer(self, exchange: HookRequest, answer: HookResponse) -> Any:
        return None if answer.body is None else {**answer.body, "checked": True}


class Guard(Hook):
    async def before_routing(self, exchange: HookRequest) -> None:
        if "bomb" in json.dumps(exchange.body):
            raise Rejected("We do not talk about this.", code="blocked", param="messages")


class LateGuard(Hook):
    async def before_answer(self, exchange: HookRequest, answer: HookResponse) -> None:
        raise Rejected("Not from that model.", status=451)


def failing(fault: str, *, open: bool) -> Hook:
    class Failing(Hook):
        deadline_s = 0.05
        fail_open = open

        async def fail(self) -> None:
            if "hang" in fault:
                await asyncio.Event().wait()
            raise RuntimeError("a secret of the hook")

        async def before_routing(self, exchange: HookRequest) -> Any:
            if fault == "invalid":
                return {"messages": "no messages"}
            if "answer" not in fault:
                await self.fail()
            return None

        async def before_answer(self, exchange: HookRequest, answer: HookResponse) -> None:
            if "answer" in fault:
                await self.fail()

    return Failing()


@both
async def test_a_hook_sees_a_request_from_start_to_end(
    upstream: FakeUpstream, stream: bool
) -> None:
    recorder = Recorder()
    keys = (Secret("caller-one"), Secret("caller-two"))
    async with serving(
        make_instance(upstream), hooks={"recorder": recorder}, gateway_keys=keys
    ) as served:
        head = {"Authorization": "Bearer caller-two", "X-Request-Id": "mine"}
        status, text, _ = await served.chat({**HELLO, "stream": stream}, headers=head)
        await asyncio.wait_for(recorder.ended.wait(), 30)
    assert status == 200
    (exchange,), (answer,), (used,) = recorder.exchanges, recorder.answers, recorder.used
    assert (exchange.id, exchange.dialect, exchange.caller) == ("mine", "chat", "key-2")
    assert exchange.body == exchange.own == {**HELLO, "stream": stream}
    assert (answer.instance, answer.attempts) == ("Fake (Key #1)", 1)
    assert answer.body == (None if stream else json.loads(text))
    assert (used.status, used.outcome, used.provider) == (200, "success", "fake")
    assert used.usage["completion_tokens"] > 0
    assert 0 < used.first_ms <= used.total_ms


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", HELLO),
        ("/v1/messages", MESSAGES),
        ("/v1/responses", {"model": "auto", "input": "4111-1111"}),
    ],
)
async def test_a_redactor_works_in_every_dialect(
    upstream: FakeUpstream, path: str, body: dict[str, Any]
) -> None:
    secret = json.loads(json.dumps(body).replace("Hello!", "4111-1111"))
    async with serving(make_instance(upstream), hooks={"redactor": Redactor()}) as served:
        status, text, _ = await served.post(path, {**secret, "stream": False})
    assert (status, json.loads(text)["checked"]) == (200, True)
    (received,) = upstream.requests
    assert b"4111" not in received.raw
    assert received.body["messages"][-1] == {"role": "user", "content": "****"}


@both
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_rejection_reaches_the_caller_and_no_upstream(
    upstream: FakeUpstream, path: str, stream: bool
) -> None:
    recorder = Recorder()
    body = {**MESSAGES, "stream": stream, "messages": [{"role": "user", "content": "a bomb"}]}
    async with serving(
        make_instance(upstream), hooks={"guard": Guard(), "recorder": recorder}
    ) as served:
        status, text, _ = await served.post(path, body)
        await asyncio.wait_for(recorder.ended.wait(), 30)
    error = json.loads(text)["error"]
    assert (status, error["message"], error["code"]) == (
        403,
        "We do not talk about this.",
        "blocked",
    )
    assert upstream.hits() == 0
    assert (recorder.exchanges, recorder.used[0].outcome) == ([], "blocked")


@both
async def test_a_response_can_be_rejected_before_its_first_byte(
    upstream: FakeUpstream, stream: bool
) -> None:
    instance = make_instance(upstream)
    upstream.default = Reply(text="word " * 50, delay_s=0.01)
    async with serving(instance, hooks={"late": LateGuard()}) as served:
        status, text, headers = await served.chat(stream=stream)
    assert (status, json.loads(text)["error"]["message"]) == (451, "Not from that model.")
    assert headers["Content-Type"].startswith("application/json")
    assert (instance.in_flight, instance.health.success_rate()) == (0, 1.0)


@both
@pytest.mark.parametrize("fault", ["raise", "hang", "invalid", "raise answer", "hang answer"])
async def test_a_failing_hook_ends_the_request(
    upstream: FakeUpstream, fault: str, stream: bool
) -> None:
    instance = make_instance(upstream)
    async with serving(instance, hooks={"bad": failing(fault, open=False)}) as served:
        status, text, _ = await served.chat(stream=stream)
    assert (status, json.loads(text)["error"]["code"]) == (500, "hook_failed")
    assert "secret" not in text
    assert "Traceback" not in text
    assert instance.in_flight == 0


BADLY = [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()]


class Badly(Hook):
    fail_open = True

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def before_routing(self, exchange: HookRequest) -> None:
        raise self.error

    async def before_answer(self, exchange: HookRequest, answer: HookResponse) -> None:
        raise self.error

    async def at_end(self, exchange: HookRequest, used: HookResult) -> None:
        raise self.error


@both
@pytest.mark.parametrize("error", BADLY, ids=repr)
async def test_nothing_that_a_hook_raises_ends_the_gateway(
    upstream: FakeUpstream, error: BaseException, stream: bool
) -> None:
    async with serving(make_instance(upstream), hooks={"badly": Badly(error)}) as served:
        for _ in range(2):
            assert (await served.chat(stream=stream))[0] == 200


@pytest.mark.parametrize(
    "returned", [[], "x", 5, {}, {"messages": []}, {**HELLO, "model": 5}, {"x": {1, 2}}], ids=repr
)
async def test_an_invalid_body_from_a_hook_is_a_failure_of_the_hook(
    upstream: FakeUpstream, returned: Any
) -> None:
    class Odd(Hook):
        async def before_routing(self, exchange: HookRequest) -> Any:
            return returned

    async with serving(make_instance(upstream), hooks={"odd": Odd()}) as served:
        status, text, _ = await served.chat(stream=False)
    assert (status, json.loads(text)["error"]["code"]) == (500, "hook_failed")


async def test_a_hook_without_async_fails(upstream: FakeUpstream) -> None:
    class Plain(Hook):
        def before_routing(self, exchange: HookRequest) -> None:  # type: ignore[override]
            raise RuntimeError("a secret of the hook")

    async with serving(make_instance(upstream), hooks={"plain": Plain()}) as served:
        status, text, _ = await served.chat(stream=False)
    assert (status, json.loads(text)["error"]["code"]) == (500, "hook_failed")


@both
@pytest.mark.parametrize("fault", ["raise", "hang", "invalid", "raise answer", "hang answer"])
async def test_a_hook_that_fails_open_is_skipped(
    upstream: FakeUpstream, fault: str, stream: bool
) -> None:
    async with serving(
        make_instance(upstream), hooks={"bad": failing(fault, open=True), "good": Redactor()}
    ) as served:
        status, text, _ = await served.chat(stream=stream)
    assert status == 200
    assert stream or json.loads(text)["checked"]


class Slow(Hook):
    def __init__(self, fault: str) -> None:
        self.fault = fault

    async def at_end(self, exchange: HookRequest, used: HookResult) -> None:
        if self.fault == "raise":
            raise RuntimeError("a secret of the hook")
        await asyncio.sleep(0.9)


@pytest.mark.parametrize("fault", ["raise", "slow"])
async def test_the_caller_does_not_wait_for_the_end_hooks(
    upstream: FakeUpstream, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_instance(upstream), hooks={"slow": Slow(fault)}) as served:
        async with asyncio.timeout(0.8):
            assert (await served.chat())[0] == 200
    assert ("failed at the end" in caplog.text) == (fault == "raise")


async def test_a_hook_may_change_the_model(upstream: FakeUpstream) -> None:
    class Thrifty(Hook):
        async def before_routing(self, exchange: HookRequest) -> Mapping[str, Any]:
            assert exchange.body is not None
            return {**exchange.body, "model": "fake-small"}

    async with serving(make_instance(upstream), hooks={"thrifty": Thrifty()}) as served:
        await served.chat({**HELLO, "model": "fake-large"})
        await served.post("/v1/messages", {**MESSAGES, "model": "fake-large"})
    assert [r.body["model"] for r in upstream.requests] == ["fake-small"] * 2


async def test_a_body_that_is_no_chat_is_passed_unchanged(upstream: FakeUpstream) -> None:
    from nexus_gateway.provider import Model, Provider

    class Embedder(Provider):
        title = "Embedder"
        base_url = "http://127.0.0.1:9"
        default_model = "e"
        models = (Model("e", kind="embeddings"),)
        endpoints = {"embeddings": "/embeddings"}

    body = {"model": "e", "input": "4111-1111"}
    async with serving(
        make_instance(upstream, provider=Embedder, name="embedder"), hooks={"r": Redactor()}
    ) as served:
        status, text, _ = await served.post("/v1/embeddings", body)
    assert (status, json.loads(text)["checked"]) == (200, True)
    assert upstream.requests[0].body == {"model": "e", "input": "****"}


def test_hooks_are_sorted_by_name_and_broken_ones_reported() -> None:
    class Old(Hook):
        api_version = API_VERSION + 1

    class Unmade(Hook):
        def __init__(self) -> None:
            raise RuntimeError

    class Hasty(Hook):
        deadline_s = 0

    hooks, discovery = load(
        HOOKS,
        [
            point("b", Recorder),
            point("a", Guard),
            point("old", Old),
            point("gone", ImportError("gone")),
            point("unmade", Unmade),
            point("hasty", Hasty),
            point("odd", dict),
        ],
    )
    assert list(hooks) == ["a", "b"]
    reasons = {p.name: p.reason for p in discovery.problems}
    assert set(reasons) == {"old", "gone", "unmade", "hasty", "odd"}
    assert "version" in reasons["old"]
    assert all(str(p).startswith(f"hook {p.name} (nexus-acme 0.1") for p in discovery.problems)


@both
async def test_without_hooks_none_of_their_code_runs(upstream: FakeUpstream, stream: bool) -> None:
    called: set[str] = set()

    def note(frame: Any, event: str, argument: object) -> None:
        if event == "call":
            called.add(frame.f_globals.get("__name__", ""))

    async with serving(make_instance(upstream)) as served:
        sys.setprofile(note)
        try:
            assert (await served.chat(stream=stream))[0] == 200
        finally:
            sys.setprofile(None)
    assert "nexus_gateway.web.endpoint" in called
    assert not {name for name in called if name.startswith("nexus_gateway") and "hook" in name}
