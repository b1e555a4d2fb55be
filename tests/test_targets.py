"""From what a caller calls the model to who may serve it."""

from __future__ import annotations

import pytest
from plugin_points import Acme, Local, point

from nexus_gateway.errors import NotFound
from nexus_gateway.pool import Pool, build_pool
from nexus_gateway.targets import resolve

ACME_1, ACME_2 = "Acme (Key #1)", "Acme (Key #2)"
EVERYBODY = [ACME_1, ACME_2, "Local"]


@pytest.fixture
def pool() -> Pool:
    env = {"ACME_KEY_1": "a", "ACME_KEY_2": "b"}
    return build_pool(env, lambda: 0.0, entry_points=[point("acme", Acme), point("local", Local)])


@pytest.mark.parametrize(
    ("model", "names", "asked"),
    [
        (None, EVERYBODY, None),
        ("", EVERYBODY, None),
        ("auto", EVERYBODY, None),
        ("nexus", EVERYBODY, None),
        ("acme-2", [ACME_1, ACME_2], "acme-2"),
        ("local-1", ["Local"], "local-1"),
        ("acme", [ACME_1, ACME_2], None),
        ("acme/some/model", [ACME_1, ACME_2], "some/model"),
        (ACME_2, [ACME_2], None),
        ("Local", ["Local"], None),
        ("gpt-4o", EVERYBODY, None),
        ("acme/", EVERYBODY, None),
        ("nobody/gpt-4o", EVERYBODY, None),
    ],
)
def test_a_model_finds_its_instances(pool, model, names, asked):
    target = resolve(pool.instances, model, images=True, strict=False)

    assert names == [i.name for i in target.instances]
    assert (asked, True) == (target.model, target.images)


@pytest.mark.parametrize("model", ["gpt-4o", "nobody/gpt-4o", "acme/"])
def test_strictly_an_unknown_model_is_not_found(pool, model):
    with pytest.raises(NotFound, match="acme-1") as caught:
        resolve(pool.instances, model, images=False, strict=True)

    assert (
        caught.value.code,
        caught.value.param,
        caught.value.status,
    ) == ("model_not_found", "model", 404)
