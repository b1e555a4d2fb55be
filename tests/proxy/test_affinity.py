"""Conversations over real sockets: they stay with their key, move with a reason, and return."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any
from zlib import crc32

import pytest
from fakes import make_instance, serving

from nexus_gateway.routing.instance import Instance
from nexus_gateway.secret import Secret
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.testing.wire import Received

CONVERSATIONS, TURNS = 30, 8


class CachedPrefixes:
    """Counts the messages that each key has seen before, as a prompt cache does."""

    def __init__(self) -> None:
        self.hits = self.misses = 0
        self.keys: defaultdict[str, list[str]] = defaultdict(list)
        self._seen: defaultdict[str, set[str]] = defaultdict(set)

    def __call__(self, received: Received) -> Reply | None:
        messages, seen, prefix = received.body["messages"], self._seen[received.key], ""
        for message in messages:
            prefix = f"{crc32((prefix + message['content']).encode())} "
            self.hits += prefix in seen
            self.misses += prefix not in seen
            seen.add(prefix)
        self.keys[messages[0]["content"]].append(received.key)
        return None


def turn(conversation: int, number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Question {conversation}"}]
    for n in range(number):
        messages += [
            {"role": "assistant", "content": f"Answer {n}"},
            {"role": "user", "content": f"And {n}?"},
        ]
    return {"model": "auto", "messages": messages}


def keyed(upstream: FakeUpstream, count: int) -> list[Instance]:
    return [make_instance(upstream, n, key=Secret(f"sk-affinity-{n}")) for n in range(1, count + 1)]


async def test_eight_keys_use_their_caches_as_well_as_one(upstream: FakeUpstream) -> None:
    cache = upstream.choose = CachedPrefixes()
    async with serving(*keyed(upstream, 8)) as gateway:
        for number in range(TURNS):
            for conversation in range(CONVERSATIONS):
                status, _, headers = await gateway.chat(turn(conversation, number))
                assert (status, headers["X-Nexus-Affinity"]) == (200, "hit")
    assert len({key for keys in cache.keys.values() for key in keys}) == 8
    # With one key all messages hit but the two that each turn adds.
    added = CONVERSATIONS * (1 + 2 * (TURNS - 1))
    assert cache.hits >= 0.95 * (cache.hits + cache.misses - added)


async def test_a_key_that_is_off_moves_only_its_conversations_and_they_return(
    upstream: FakeUpstream,
) -> None:
    cache = upstream.choose = CachedPrefixes()
    async with serving(*keyed(upstream, 4)) as gateway:
        off = gateway.instances[2]
        for number in range(3):
            for conversation in range(40):
                status, _, _ = await gateway.chat(turn(conversation, number))
                assert status == 200
            off.disable() if number == 0 else off.enable()
    key = off.key.reveal()
    for first, second, third in cache.keys.values():
        assert first == third
        assert (first == second) == (first != key)
    assert Counter(first for first, _, _ in cache.keys.values())[key] >= 2


async def test_a_conversation_that_fails_over_says_so(upstream: FakeUpstream) -> None:
    async with serving(*keyed(upstream, 2)) as gateway:
        _, _, headers = await gateway.chat(turn(1, 0))
        assert headers["X-Nexus-Affinity"] == "hit"
        home = headers["X-Nexus-Provider"]
        upstream.script(Reply(status=500))
        _, _, headers = await gateway.chat(turn(1, 1))
        assert headers["X-Nexus-Affinity"] == "moved"
        assert headers["X-Nexus-Provider"] != home
        _, _, headers = await gateway.chat(turn(1, 2))
        assert headers["X-Nexus-Affinity"] in ("hit", "moved")


@pytest.mark.parametrize(
    ("path", "body", "session"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "{n}"}]}, "s-1"),
        (
            "/v1/messages",  # as Claude Code names its sessions
            {
                "model": "claude-sonnet-4-5",
                "max_tokens": 100,
                "metadata": {"user_id": "user_1_account__session_2"},
                "messages": [{"role": "user", "content": "{n}"}],
            },
            "",
        ),
        (
            "/v1/responses",  # as Codex does
            {"model": "gpt-5", "prompt_cache_key": "0199-thread", "input": "{n}", "store": False},
            "",
        ),
    ],
    ids=["session", "claude-code", "codex"],
)
async def test_a_named_conversation_stays_whatever_its_texts_are(
    upstream: FakeUpstream, path: str, body: dict[str, Any], session: str
) -> None:
    async with serving(*keyed(upstream, 6)) as gateway:
        for number in range(12):
            text = json.dumps(body).replace("{n}", f"question {number}")
            status, answer, _ = await gateway.post(
                path, text.encode(), headers={"X-Session-Id": session}
            )
            assert status == 200, answer
    assert len({received.key for received in upstream.requests}) == 1


async def test_affinity_can_be_turned_off(upstream: FakeUpstream) -> None:
    async with serving(*keyed(upstream, 4), affinity=False) as gateway:
        for _ in range(40):
            _, _, headers = await gateway.chat(turn(1, 0))
            assert headers["X-Nexus-Affinity"] == "none"
    assert len({received.key for received in upstream.requests}) == 4
