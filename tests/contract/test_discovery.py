"""Plugins found, loaded, and left out individually."""

from __future__ import annotations

import pytest
from plugin_points import Acme, fit, point

from nexus_gateway.discovery import PROVIDERS, discover
from nexus_gateway.provider import KnownFields, Model, Translator


def reason(name: str, plugin: object) -> str:
    discovery = discover(PROVIDERS, [point(name, plugin)])
    assert discovery.plugins == []
    (problem,) = discovery.problems
    assert (name, "nexus-acme", "0.1") == (problem.name, problem.distribution, problem.version)
    return problem.reason


def test_a_plugin_is_found_with_its_distribution_and_entry_point():
    discovery = discover(PROVIDERS, [point("acme", Acme)])
    (plugin,) = discovery.plugins

    assert ("acme", Acme, "nexus-acme", "0.1") == (
        plugin.name,
        plugin.cls,
        plugin.distribution,
        plugin.version,
    )
    assert plugin.entry_point == "nexus_acme:Cls"
    assert discovery.problems == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("no module acme\nmore"), "ImportError: no module acme"),
        (SystemExit(3), "SystemExit"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_plugin_that_fails_to_load_is_reported_in_one_line(error, message):
    (problem,) = discover(PROVIDERS, [point("acme", error)]).problems

    assert message in str(problem)
    assert "\n" not in str(problem)
    assert problem.reason == f"it failed to load: {type(error).__name__}"


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (object(), "not a subclass"),
        (dict, "not a subclass"),
        (fit(api_version=2), "version"),
        (fit(title=""), "title"),
        (fit(base_url=None), "base_url"),
        (fit(default_model=7), "default_model"),
        (type("Half", (Acme, Translator), {}), "encode"),
        (fit(models=Model("acme-1")), "comma"),
        (fit(successors="acme-2"), "comma"),
        (fit(successors=(Model("acme-2"),)), "successors"),
        (fit(adaptations=KnownFields()), "comma"),
        (fit(adaptations=(str.lower,)), "tuple of adaptations"),
        (fit(models=(Model("acme-1", kind="embedding"),)), "kind"),
        (fit(models=(Model("acme-e", kind="embeddings"),)), "needs 'embeddings'"),
        (fit(endpoints={"embedding": "/e"}), "'embedding' is not known"),
        (fit(endpoints={"chat": "chat/completions"}), "begins with /"),
        (fit(endpoints=5), "breaks the contract"),
        (fit(options={"MODEL": ""}), "'MODEL'"),
        (fit(options={"KEY_1": ""}), "'KEY_1'"),
        (fit(options={"region": ""}), "'region'"),
    ],
)
def test_a_plugin_that_breaks_the_contract_is_left_out(plugin, message):
    assert message in reason("acme", plugin)


@pytest.mark.parametrize("name", ["Acme", "ac me", "ac.me", ""])
def test_a_name_has_plain_letters(name):
    assert "name" in reason(name, Acme)


def test_one_bad_plugin_does_not_affect_the_others():
    discovery = discover(PROVIDERS, [point("bad", ImportError("gone")), point("acme", Acme)])

    assert [p.name for p in discovery.plugins] == ["acme"]
    assert [p.name for p in discovery.problems] == ["bad"]


@pytest.mark.parametrize(
    ("rivals", "winner"),
    [(["a-first", "nexus-ai-gateway"], "nexus-ai-gateway"), (["b-last", "a-first"], "a-first")],
)
def test_of_two_plugins_with_one_name_the_built_in_or_first_one_is_kept(rivals, winner):
    discovery = discover(
        PROVIDERS, [point("acme", fit(title=rival), distribution=rival) for rival in rivals]
    )

    assert [winner] == [p.distribution for p in discovery.plugins]
    assert [r for r in rivals if r != winner] == [p.distribution for p in discovery.problems]


def test_of_two_plugins_with_one_title_the_second_is_left_out():
    discovery = discover(PROVIDERS, [point("acme", Acme), point("other", fit())])

    assert [p.name for p in discovery.plugins] == ["acme"]
    assert "title" in discovery.problems[0].reason


def test_of_two_names_with_the_same_variables_the_second_is_left_out():
    points = [point("acme-x", Acme), point("acme_x", fit(title="Two"), "nexus-second")]
    discovery = discover(PROVIDERS, points)
    (plugin,), (problem,) = discovery.plugins, discovery.problems

    assert (plugin.name, problem.name) == ("acme-x", "acme_x")
    for name in ("auto", "nexus", "response"):
        assert "reserved" in reason(name, Acme)
    assert "models" in reason("acme", fit(models=("acme-1",)))
    (problem,) = discover(PROVIDERS, [point("acme", ImportError("\x1b[31mred"))]).problems
    assert "\x1b" not in str(problem)
