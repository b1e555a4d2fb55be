"""Keys and settings of providers, turned into instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
from plugin_points import Acme, Demo, Local, fit, point

from nexus_gateway.errors import ConfigError
from nexus_gateway.routing.pool import Pool, build_pool

ACME = (point("acme-x", Acme),)


def build(points: Sequence[object] = ACME, demo: bool = False, **env: str) -> Pool:
    return build_pool(env, lambda: 0.0, demo=demo, entry_points=points)


def keys(pool: Pool) -> list[tuple[str, str]]:
    return [(i.name, i.key.reveal()) for i in pool.instances]


def test_each_key_is_an_instance_and_keeps_its_number():
    pool = build(ACME_X_KEY_10="ten", ACME_X_KEY_2="two")

    assert keys(pool) == [("Acme (Key #2)", "two"), ("Acme (Key #10)", "ten")]
    assert pool.instance("Acme (Key #2)").key.reveal() == "two"
    assert pool.instance("Acme (Key #1)") is None
    assert pool.warnings == []


def test_one_provider_object_serves_all_its_keys():
    first, second = build(ACME_X_KEY_1="one", ACME_X_KEY_2="two").instances

    assert first.provider is second.provider


def test_the_api_key_is_the_first_key():
    assert keys(build(ACME_X_API_KEY="one")) == [("Acme (Key #1)", "one")]
    assert build(ACME_X_API_KEY="one", ACME_X_KEY_1="one").warnings == []


def test_if_both_are_set_the_numbered_key_wins_with_a_warning():
    pool = build(ACME_X_API_KEY="secret-a", ACME_X_KEY_1="secret-b")

    assert keys(pool) == [("Acme (Key #1)", "secret-b")]
    assert "ACME_X_API_KEY" in pool.warnings[0]
    assert "secret" not in pool.warnings[0]


@pytest.mark.proves("I-57")
def test_the_same_key_twice_is_used_once():
    pool = build(ACME_X_KEY_1="secret", ACME_X_KEY_2="secret")

    assert len(pool.instances) == 1
    assert "ACME_X_KEY_1" in pool.warnings[0]
    assert "ACME_X_KEY_2" in pool.warnings[0]
    assert "secret" not in pool.warnings[0]


@pytest.mark.proves("F56")
def test_the_same_key_with_different_models_is_one_instance_with_both():
    variables = {"ACME_X_KEY_1": "secret", "ACME_X_MODEL_1": "a"}
    variables |= {"ACME_X_KEY_2": "secret", "ACME_X_MODEL_2": "b"}
    pool = build(**variables)

    (instance,) = pool.instances
    assert (instance.name, instance.models) == ("Acme (Key #1)", ("a", "b"))
    assert pool.warnings == []
    assert [d.model for d in instance.own()] == ["a", "b"]


@pytest.mark.parametrize(
    ("variables", "models"),
    [
        ({"MODELS": "a, b,a,,"}, ("a", "b")),
        ({"MODELS_1": "a,b", "MODELS": "c"}, ("a", "b")),
        ({"MODEL_1": "a", "MODELS": "b,c"}, ("a",)),
        ({"MODELS_1": "a,b", "MODEL_1": "c"}, ("a", "b")),
        ({"MODEL": "a,b"}, ("a,b",)),
        ({"MODELS": " ", "MODEL": "a"}, ("a",)),
        ({}, ("acme-1",)),
    ],
)
def test_a_key_may_have_several_models(variables, models):
    pool = build(ACME_X_KEY_1="secret", **{f"ACME_X_{n}": text for n, text in variables.items()})

    assert pool.instances[0].models == models


def test_a_provider_may_have_its_own_limit_for_a_first_token():
    two = {"ACME_X_KEY_1": "one", "ACME_X_KEY_2": "two"}
    pool = build(**two, ACME_X_FIRST_TOKEN_TIMEOUT_MS="9000", ACME_X_FIRST_TOKEN_TIMEOUT_MS_2="70")
    assert [i.first_token_timeout_ms for i in pool.instances] == [9000, 70]
    assert build(**two).instances[0].first_token_timeout_ms is None
    with pytest.raises(ConfigError, match="ACME_X_FIRST_TOKEN_TIMEOUT_MS must be"):
        build(**two, ACME_X_FIRST_TOKEN_TIMEOUT_MS="soon")


@pytest.mark.parametrize("name", ["ACME_X_KEY", "ACME_X_KEYS", "ACME_X_API_KEY_1", "ACME_X_KEY_0"])
def test_a_misspelt_variable_is_reported(name):
    (warning,) = build(**{name: "secret"}).warnings

    assert name in warning.split()
    assert "secret" not in warning


def test_a_providers_settings_are_read():
    (instance,) = build(
        ACME_X_KEY_1="k", ACME_X_MODEL="m", ACME_X_BASE_URL="http://h:1/v1/", ACME_X_IMAGES="false"
    ).instances

    assert (instance.model, instance.account.base_url) == ("m", "http://h:1/v1")
    assert not instance.takes_images_with("m")


def test_a_providers_defaults_are_used():
    (instance,) = build(ACME_X_KEY_1="k", ACME_X_MODEL="", ACME_X_BASE_URL="").instances

    assert (instance.model, instance.account.base_url) == ("acme-1", "https://acme.example/v1")
    assert instance.takes_images_with("acme-1")


@pytest.mark.proves("I-57")
def test_all_wrong_values_are_reported_at_once_and_never_shown():
    wrong = {
        "ACME_X_KEY_1": "secret value",
        "ACME_X_KEY_2": " ",
        "ACME_X_KEY_3": "secret-value\n",
        "ACME_X_KEY_4": "good",
        "ACME_X_BASE_URL": "https://user:secret@acme.example",
        "ACME_X_IMAGES": "secretly",
    }
    with pytest.raises(ConfigError) as caught:
        build(**wrong)

    problems = caught.value.problems
    assert sorted(set(wrong) - {"ACME_X_KEY_4"}) == sorted(line.split()[0] for line in problems)
    assert "secret" not in str(caught.value)


class Placeless(Acme):
    base_url = default_model = ""
    options: ClassVar[dict[str, str]] = {"REGION": ""}


@pytest.mark.parametrize("quoted", ['"{}"', "'{}'", '"{}', "{}'", ' "{}" '])
@pytest.mark.parametrize(
    "wrong", ["KEY_1", "BASE_URL", "BASE_URL_1", "MODEL", "MODEL_1", "REGION", "REGION_1"]
)
def test_kept_quotes_are_named_in_one_line(quoted, wrong):
    values = {"KEY_1": "secret", "BASE_URL": "https://secret.example/v1", "MODEL": "secret"}
    values[wrong] = quoted.format(values.get(wrong, "https://secret.example"))
    with pytest.raises(ConfigError) as caught:
        build([point("acme-x", Placeless)], **{f"ACME_X_{n}": v for n, v in values.items()})

    (problem,) = caught.value.problems
    assert problem.startswith(f"ACME_X_{wrong} ")
    assert "quote" in problem
    assert "secret" not in problem


@pytest.mark.parametrize("variable", ["ACME_X_KEY_1", "ACME_X_API_KEY"])
@pytest.mark.parametrize("value", ["secret-a,secret-b", "secret-a,", ",secret-b"])
def test_several_keys_in_one_variable_are_named(variable, value):
    with pytest.raises(ConfigError, match=f"^{variable} contains a comma") as caught:
        build(**{variable: value})

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["acme.example", "ftp://acme.example", "https://", "http://[1", "https://h/?q=1"]
)
def test_a_base_url_is_a_plain_http_url(url):
    with pytest.raises(ConfigError, match=r"^ACME_X_BASE_URL "):
        build(ACME_X_KEY_1="k", ACME_X_BASE_URL=url)


def test_without_a_key_there_is_no_instance():
    pool = build(ACME_X_KEY_1="")

    assert pool.instances == []
    assert [p.name for p in pool.plugins] == ["acme-x"]


def test_a_provider_without_keys_has_one_instance():
    assert keys(build([point("local", Local)])) == [("Local", "")]


DEMO_AND_ACME = (point("demo", Demo), *ACME)


def test_the_demo_is_added_if_there_is_no_other_instance():
    assert [i.name for i in build(DEMO_AND_ACME).instances] == ["Demo"]


def test_the_demo_is_left_out_beside_others_unless_requested():
    demo_off = build(DEMO_AND_ACME, ACME_X_KEY_1="k")
    demo_on = build(DEMO_AND_ACME, demo=True, ACME_X_KEY_1="k")

    assert [i.name for i in demo_off.instances] == ["Acme (Key #1)"]
    assert [i.name for i in demo_on.instances] == ["Acme (Key #1)", "Demo"]


def test_a_provider_that_cannot_be_created_is_left_out():
    def fail(self: object) -> None:
        raise RuntimeError("secret")

    pool = build(
        [point("bad", fit(title="Bad", __init__=fail)), *ACME], BAD_KEY_1="k", ACME_X_KEY_1="k"
    )

    assert [i.name for i in pool.instances] == ["Acme (Key #1)"]
    assert [p.name for p in pool.plugins] == ["acme-x"]
    assert [p.name for p in pool.problems] == ["bad"]


def test_a_constructor_that_exits_is_left_out():
    def leave(self):
        raise SystemExit(3)

    pool = build_pool({"ACME_KEY_1": "k"}, float, entry_points=[point("acme", fit(__init__=leave))])

    assert pool.instances == []
    assert "SystemExit" in pool.problems[0].reason


class Server(Local):
    base_url = ""
    default_model = ""


class Resource(Acme):
    title = "Resource"
    base_url = ""
    options = {"API_VERSION": "1", "REGION": ""}


SERVER = (point("server", Server),)


def test_each_base_url_is_an_instance_with_its_own_model():
    pool = build(
        SERVER,
        SERVER_BASE_URL_1="http://one:1/v1",
        SERVER_BASE_URL_2="http://two:2/v1",
        SERVER_MODEL="shared",
        SERVER_MODEL_2="mine",
        SERVER_KEY_2="k",
        SERVER_IMAGES_2="true",
    )

    assert [(i.name, i.account.base_url, i.model, i.key.reveal()) for i in pool.instances] == [
        ("Local (URL #1)", "http://one:1/v1", "shared", ""),
        ("Local (URL #2)", "http://two:2/v1", "mine", "k"),
    ]
    assert [i.takes_images_with(i.model) for i in pool.instances] == [False, True]


def test_the_base_url_without_a_number_is_the_first():
    (instance,) = build(SERVER, SERVER_BASE_URL="http://one:1", SERVER_MODEL="m").instances

    assert (instance.name, instance.number) == ("Local (URL #1)", 1)


def test_without_a_base_url_there_is_no_instance():
    assert build(SERVER).instances == []


@pytest.mark.parametrize(
    ("env", "variable"),
    [
        ({"SERVER_BASE_URL_2": "http://two:2"}, "SERVER_MODEL"),
        ({"SERVER_KEY_1": "k", "SERVER_MODEL": "m"}, "SERVER_BASE_URL"),
        ({"SERVER_BASE_URL_1": "nowhere", "SERVER_MODEL": "m"}, "SERVER_BASE_URL_1"),
    ],
)
def test_a_setting_without_a_default_is_required(env, variable):
    with pytest.raises(ConfigError, match=f"^{variable} "):
        build(SERVER, **env)


def test_one_key_at_two_base_urls_is_two_instances():
    points = [point("resource", Resource)]
    urls = {"RESOURCE_BASE_URL_1": "http://one", "RESOURCE_BASE_URL_2": "http://two"}

    assert len(build(points, RESOURCE_KEY_1="k", RESOURCE_KEY_2="k", **urls).instances) == 2


def test_a_providers_own_variables_are_read():
    (first, second) = build(
        [point("resource", Resource)],
        RESOURCE_KEY_1="a",
        RESOURCE_KEY_2="b",
        RESOURCE_BASE_URL="http://one",
        RESOURCE_API_VERSION="2",
        RESOURCE_REGION_2="eu",
    ).instances

    assert first.account.options == {"API_VERSION": "2", "REGION": ""}
    assert second.account.options == {"API_VERSION": "2", "REGION": "eu"}


def test_only_configured_built_in_providers_are_loaded():
    unwanted = point("idle", AssertionError("it was loaded"), "nexus-ai-gateway")
    wanted = point("acme-x", Acme, "nexus-ai-gateway")
    pool = build([unwanted, wanted], ACME_X_KEY_1="k")

    assert (pool.idle, [p.name for p in pool.plugins], pool.problems) == (
        ["idle"],
        ["acme-x"],
        [],
    )


def test_the_name_of_a_provider_that_is_not_loaded_is_still_taken():
    unwanted = point("acme", AssertionError("it was loaded"), "nexus-ai-gateway")
    pool = build([unwanted, point("acme", Acme)], ACME_MODEL="m")

    assert "taken by acme of nexus-ai-gateway" in pool.problems[0].reason


def test_settings_without_effect_are_reported():
    idle = point("idle", AssertionError("it was loaded"), "nexus-ai-gateway")
    pool = build([idle], IDLE_KEY="secret", IDLE_APIKEY="secret", IDLE_MODEL_2="m", IDLE_KEY_1="")
    keyless = build([point("resource", Resource)], RESOURCE_BASE_URL="http://one")

    assert [line.split()[0] for line in pool.warnings] == [
        "IDLE_KEY",
        "IDLE_APIKEY",
        "IDLE_MODEL_2",
    ]
    assert "secret" not in str(pool.warnings)
    assert keyless.warnings == ["RESOURCE_BASE_URL is set, but RESOURCE_KEY_1 is not."]
