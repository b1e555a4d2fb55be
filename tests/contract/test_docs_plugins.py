"""The examples of docs/plugins.md run: providers pass the suite, the others work as described."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fakes import make_instance, serving

from nexus_gateway.provider import CHAT
from nexus_gateway.proxy.hook_runner import HOOKS
from nexus_gateway.routing.policies import POLICIES
from nexus_gateway.testing.conformance import InProcessConformance
from nexus_gateway.testing.upstream import FakeUpstream

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
NAMES: dict[str, Any] = {"__name__": __name__}
for _block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
    exec(compile(_block, "docs/plugins.md", "exec"), NAMES)

TestAcme = NAMES["TestAcme"]
TestParrot = NAMES["TestParrot"]
test_ids_of_other_providers_are_accepted = NAMES["test_ids_of_other_providers_are_accepted"]


class TestEcho(InProcessConformance):
    provider = NAMES["Echo"]


def test_all_attributes_and_methods_are_documented() -> None:
    from nexus_gateway.provider import Provider

    gateways_own = (
        *("adaptations_of_translated", "all_adaptations", "api_version"),
        *("serves_chat", "tool_names"),
    )
    for name in vars(Provider):
        if not name.startswith("_") and name not in gateways_own:
            assert re.search(rf"`{name}\b", TEXT), name


def test_the_groups_are_documented() -> None:
    for kind in (POLICIES, HOOKS):
        assert f"`{kind.group}`" in TEXT
    assert f"`{CHAT}`" in TEXT


def test_the_policy_chooses_the_least_busy() -> None:
    pair = [make_instance(), make_instance(number=2)]
    pair[0].in_flight = 3
    assert [*POLICIES.contract_errors(NAMES["LeastBusy"])] == []
    assert NAMES["LeastBusy"]().choose(pair, Random(1)) is pair[1]


BODIES = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/messages": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/responses": lambda text: {"input": text if isinstance(text, str) else text[0]["text"]},
}


@pytest.mark.parametrize("parts", [False, True], ids=["text", "parts"])
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("count", "status"), [(0, 200), (2, 200), (4, 403)])
async def test_the_hook_masks_and_rejects(
    upstream: FakeUpstream, path: str, count: int, status: int, parts: bool
) -> None:
    hook = NAMES["NoCards"]()
    text = "pay with " + "4111-1111-1111-1111 " * count
    content = BODIES[path]([{"type": "text", "text": text}] if parts else text)
    async with serving(make_instance(upstream), hooks={"no-cards": hook}) as served:
        body = {**content, "model": "auto", "max_tokens": 9, "stream": False}
        if path == "/v1/responses":
            del body["max_tokens"]
        assert (await served.post(path, body))[0] == status
    assert [*HOOKS.contract_errors(NAMES["NoCards"])] == []
    if status == 200:
        assert b"4111" not in upstream.requests[0].raw
        assert hook.tokens[""] > 0
