"""From the `model` of a request to the instances that may serve it."""

from __future__ import annotations

import json

import pytest
from plugin_points import Acme, Local, fit, point

from nexus_gateway.dialects.base import Request
from nexus_gateway.dialects.embeddings import EMBEDDINGS
from nexus_gateway.dialects.messages import MESSAGES
from nexus_gateway.errors import InvalidRequest, NotFound
from nexus_gateway.provider import Model
from nexus_gateway.routing.pool import Pool, build_pool
from nexus_gateway.routing.resolver import resolve_model, resolve_target

ACME_1, ACME_2 = "Acme (Key #1)", "Acme (Key #2)"
ALL = [ACME_1, ACME_2, "Local"]


@pytest.fixture
def pool() -> Pool:
    env = {"ACME_KEY_1": "a", "ACME_KEY_2": "b"}
    return build_pool(env, lambda: 0.0, entry_points=[point("acme", Acme), point("local", Local)])


@pytest.mark.parametrize(
    ("model", "names", "upstream_model"),
    [
        (None, ALL, None),
        ("", ALL, None),
        ("auto", ALL, None),
        ("nexus", ALL, None),
        ("acme-2", [ACME_1, ACME_2], "acme-2"),
        ("local-1", ["Local"], "local-1"),
        ("acme", [ACME_1, ACME_2], None),
        ("acme/some/model", [ACME_1, ACME_2], "some/model"),
        (ACME_2, [ACME_2], None),
        ("ACME", [ACME_1, ACME_2], None),
        ("Acme/some/Model", [ACME_1, ACME_2], "some/Model"),
        (ACME_2.lower(), [ACME_2], None),
        ("Local", ["Local"], None),
        ("gpt-4o", ALL, None),
        ("acme/", ALL, None),
        ("unknown/gpt-4o", ALL, None),
    ],
)
def test_a_model_resolves_to_its_instances(pool, model, names, upstream_model):
    target = resolve_model(pool.instances, model, images=True, strict=False)

    assert names == [i.name for i in target.deployments]
    assert (upstream_model, True) == (target.model, target.images)


GROQ, OPENAI, OPENROUTER = "Groq (Key #1)", "OpenAI (Key #1)", "OpenRouter (Key #1)"


@pytest.mark.parametrize(
    ("model", "name", "upstream_model"),
    [
        ("groq/compound", GROQ, "groq/compound"),
        ("Groq/compound", GROQ, "groq/compound"),
        ("groq/openai/gpt-oss-20b", GROQ, "openai/gpt-oss-20b"),
        ("groq/llama-3.3-70b-versatile", GROQ, "llama-3.3-70b-versatile"),
        ("openai/gpt-oss-120b", GROQ, "openai/gpt-oss-120b"),
        ("openai/gpt-6-luna", OPENAI, "gpt-6-luna"),
        ("openai/gpt-5.1", OPENAI, "gpt-5.1"),
        ("openrouter/auto", OPENROUTER, "openrouter/auto"),
        ("openrouter/openrouter/auto", OPENROUTER, "openrouter/auto"),
        ("openrouter/fusion", OPENROUTER, "openrouter/fusion"),
        ("openrouter/deepseek/deepseek-chat", OPENROUTER, "deepseek/deepseek-chat"),
        ("openrouter/openai/gpt-oss-120b", OPENROUTER, "openai/gpt-oss-120b"),
    ],
)
def test_an_id_that_begins_with_its_providers_name(model, name, upstream_model):
    env = {f"{provider}_KEY_1": "a" for provider in ("GROQ", "OPENAI", "OPENROUTER")}
    target = resolve_model(build_pool(env, lambda: 0.0).instances, model, False, strict=True)

    assert ([name], upstream_model) == ([i.name for i in target.deployments], target.model)


@pytest.mark.parametrize(
    ("listed", "upstream_model"),
    [
        (("llama-9",), "llama-9"),
        (("acme/llama-9",), "acme/llama-9"),
        (("llama-9", "acme/llama-9"), "acme/llama-9"),
        (("vendor/other",), "acme/llama-9"),
        (("vendor/other", "plain"), "llama-9"),
        ((), "llama-9"),
    ],
)
@pytest.mark.parametrize("model", ["acme/llama-9", "Acme/llama-9"])
def test_the_lists_decide_whether_a_providers_name_is_part_of_an_id(model, listed, upstream_model):
    cls = fit(title="Acme", models=tuple(map(Model, listed)), default_model="vendor/default")
    env = {"ACME_KEY_1": "a", "ACME_KEY_2": "b"}
    pool = build_pool(env, lambda: 0.0, entry_points=[point("acme", cls)])

    assert resolve_model(pool.instances, model, False, strict=True).model == upstream_model


def test_a_configured_model_counts_as_listed():
    env = {"ACME_KEY_1": "a", "ACME_MODEL": "llama-9"}
    cls = fit(title="Acme", models=(Model("vendor/other"),))
    pool = build_pool(env, lambda: 0.0, entry_points=[point("acme", cls)])

    assert resolve_model(pool.instances, "acme/llama-9", False, strict=True).model == "llama-9"


@pytest.mark.parametrize("model", ["gpt-4o", "unknown/gpt-4o", "acme/"])
def test_in_strict_mode_an_unknown_model_is_not_found(pool, model):
    with pytest.raises(NotFound, match="acme-1") as caught:
        resolve_model(pool.instances, model, images=False, strict=True)

    assert (
        caught.value.code,
        caught.value.param,
        caught.value.status,
    ) == ("model_not_found", "model", 404)


class Embedder(Acme):
    title = "Embedder"
    default_model = "e-chat"
    models = (Model("e-chat"), Model("e-1", kind="embeddings"), Model("e-2", kind="embeddings"))
    endpoints = {"chat": "/chat/completions", "embeddings": "/embeddings"}


class Anything(Embedder):
    title = "Anything"
    default_model = "any-chat"
    models = ()


@pytest.fixture
def kinds() -> Pool:
    env = {"EMBEDDER_KEY_1": "a", "ANYTHING_KEY_1": "b", "ACME_KEY_1": "c"}
    classes = {"embedder": Embedder, "anything": Anything, "acme": Acme}
    return build_pool(env, lambda: 0.0, entry_points=[point(n, c) for n, c in classes.items()])


def embeddings(model: str) -> Request:
    return EMBEDDINGS.parse(json.dumps({"model": model, "input": "x"}).encode(), {})


@pytest.mark.parametrize(
    ("model", "names", "upstream_model"),
    [
        ("e-2", ["Embedder"], "e-2"),
        ("embedder", ["Embedder"], "e-1"),
        ("embedder/e-9", ["Embedder"], "e-9"),
        ("anything", ["Anything"], "any-chat"),
        ("unlisted", ["Anything"], "unlisted"),
        ("e-chat", ["Anything"], "e-chat"),
    ],
)
def test_an_embedding_model_is_never_replaced(kinds, model, names, upstream_model):
    target = resolve_target(kinds, embeddings(model), strict=False)

    assert [f"{name} (Key #1)" for name in names] == [i.name for i in target.deployments]
    assert [upstream_model] * len(names) == [d.model for d in target.deployments]


@pytest.mark.parametrize("model", ["acme", "acme/e-1", "Acme (Key #1)"])
def test_a_named_provider_without_the_endpoint_is_reported(kinds, model):
    with pytest.raises(NotFound, match="supports embeddings") as caught:
        resolve_target(kinds, embeddings(model), strict=False)

    assert caught.value.code == "endpoint_not_offered"


@pytest.mark.parametrize("model", ["auto", "acme", "claude-x"])
def test_a_request_that_no_instance_can_translate_is_invalid(kinds, model):
    tool = {"type": "web_search_20250305", "name": "web_search"}
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "tools": [tool]}
    request = MESSAGES.parse(json.dumps(body).encode(), {})
    with pytest.raises(InvalidRequest) as caught:
        resolve_target(kinds, request, strict=False)

    assert caught.value.param == "tools[0].type"


@pytest.mark.parametrize(
    ("model", "chosen_by_us"), [("unlisted", True), ("e-2", False), ("embedder", True)]
)
def test_a_guessed_model_is_marked_as_chosen_by_us(kinds, model, chosen_by_us):
    assert resolve_target(kinds, embeddings(model), strict=False).chosen_by_us == chosen_by_us


def test_in_strict_mode_only_models_of_the_kind_are_named(kinds):
    with pytest.raises(NotFound) as caught:
        resolve_target(kinds, embeddings("unlisted"), strict=True)

    assert "e-1" in caught.value.message
    assert "auto" not in caught.value.message
