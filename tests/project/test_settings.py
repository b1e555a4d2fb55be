"""Settings: their defaults, their values and their errors."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from dotenv import dotenv_values

from nexus_gateway.errors import ConfigError
from nexus_gateway.settings import VARIABLES, Settings

ENV_EXAMPLE = Path(__file__).parents[2] / ".env.example"


def problems(**env: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        Settings.from_env(env)
    return caught.value.problems


def test_unset_variables_have_their_defaults():
    assert Settings() == Settings.from_env({})


def test_an_empty_value_is_unset():
    assert Settings() == Settings.from_env({v.name: "" for v in VARIABLES})


def test_every_field_has_a_variable_with_its_default():
    assert [f.name for f in fields(Settings)] == [v.name.lower() for v in VARIABLES]
    assert Settings() == Settings.from_env({v.name: v.default for v in VARIABLES})


def test_the_example_file_has_every_variable_with_its_default():
    written = ENV_EXAMPLE.read_text()

    assert Settings() == Settings.from_env(
        {k: v or "" for k, v in dotenv_values(ENV_EXAMPLE).items()}
    )
    for variable in VARIABLES:
        assert f"\n{variable.name}={variable.default}\n" in written or (
            not variable.default and f"\n# {variable.name}=\n" in written
        )


def test_values_are_parsed():
    settings = Settings.from_env(
        {"PORT": " 8080 ", "STRICT_MODELS": "Yes", "LOG_LEVEL": "DEBUG", "KEEPALIVE_MS": "0"}
    )

    assert settings == replace(
        Settings(), port=8080, strict_models=True, log_level="debug", keepalive_ms=0
    )


@pytest.mark.proves("I-57", "S-06")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "abc"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "٣٠٠٠"),
        ("PORT", "3e3"),
        ("FIRST_TOKEN_TIMEOUT_MS", "0"),
        ("IDLE_TIMEOUT_MS", "-5"),
        ("RESPONSE_TIMEOUT_MS", "1000000000"),
        ("SHUTDOWN_TIMEOUT_MS", "9" * 5000),
        ("MAX_ATTEMPTS", "0"),
        ("MAX_BODY_MB", "0"),
        ("STRICT_MODELS", "maybe"),
        ("RESPONSE_MODEL", "both"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("HOST", "two hosts"),
        ("CORS_ORIGIN", "https://a.example, https://b.example"),
        ("CORS_ORIGIN", "https://a.example/path"),
        ("CORS_ORIGIN", "a.example"),
        ("LEDGER", "ledger-file.db"),
        ("RESPONSE_STORE", "redis://somewhere"),
        ("RESPONSE_STORE", "sqlite:///:memory:"),
        ("RESPONSE_STORE_MB", "0"),
        ("RESPONSE_STORE_TTL_MS", "2592000001"),
        ("ADMIN_TOKEN", "   "),
        ("ADMIN_TOKEN", "secret-value\r\n"),
        ("ADMIN_TOKEN", "secret-välue"),
        ("ADMIN_TOKEN", "secret value"),
        ("VIEWER_TOKEN", "secret value"),
        ("GATEWAY_KEYS", "good-key,secret value"),
        ("GATEWAY_KEYS", "  "),
        ("GATEWAY_KEYS", '"one-secret,other-secret"'),
        ("GATEWAY_KEYS", "one-secret,'other-secret',third-secret"),
        ("ADMIN_TOKEN", '"secret-value"'),
        ("ADMIN_TOKEN", "one-secret,other-secret"),
        ("VIEWER_TOKEN", "'secret-value'"),
        ("PORT", '"3000"'),
        ("HOST", "'0.0.0.0'"),
        ("LEDGER", '"sqlite:///ledger.sqlite3"'),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", 'http://collector.example:4318"'),
    ],
)
def test_an_error_names_the_variable_and_hides_the_value(name, value):
    (problem,) = problems(**{name: value})

    assert problem.startswith(name)
    assert "\n" not in problem
    assert len(value.strip()) < 3 or value.strip() not in problem


def test_all_errors_are_reported_together():
    messages = problems(PORT="abc", LOG_LEVEL="loud", ADMIN_TOKEN=" ")

    assert [line.split()[0] for line in messages] == ["PORT", "ADMIN_TOKEN", "LOG_LEVEL"]


@pytest.mark.proves("S-23")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("VIEWER_TOKEN", "ADMIN_TOKEN"),
        ("VIEWER_TOKEN", "GATEWAY_KEYS"),
        ("ADMIN_TOKEN", "GATEWAY_KEYS"),
    ],
)
def test_two_credentials_cannot_have_the_same_value(first, second):
    value = "a-good-key,same-value" if second == "GATEWAY_KEYS" else "same-value"
    (problem,) = problems(**{first: "same-value", second: value})

    assert problem == f"{first} and {second} have the same value; each needs its own."


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Memory", "memory"),
        ("OFF", ""),
        ("sqlite:///kept.db", "kept.db"),
        ("sqlite:////var/kept.db", "/var/kept.db"),
        ("sqlite:///memory", "./memory"),
    ],
)
def test_a_response_store_is_a_word_or_a_file(text, value):
    assert Settings.from_env({"RESPONSE_STORE": text}).response_store == value


def test_the_ledger_and_the_response_store_cannot_share_a_file():
    same = "sqlite:///same.db"

    assert problems(LEDGER=same, RESPONSE_STORE=same)[0].startswith("LEDGER and RESPONSE_STORE")


def test_different_credentials_are_accepted():
    settings = Settings.from_env(
        {"VIEWER_TOKEN": "looks", "ADMIN_TOKEN": "switches", "GATEWAY_KEYS": "asks,asks"}
    )

    assert [secret.reveal() for secret in settings.secrets] == ["switches", "looks", "asks", "asks"]
    assert "looks" not in repr(settings)


def test_keys_are_separated_by_commas():
    settings = Settings.from_env({"GATEWAY_KEYS": "one-key, other-key"})

    assert [key.reveal() for key in settings.gateway_keys] == ["one-key", "other-key"]
    assert "one-key" not in repr(settings)


@pytest.mark.parametrize("origin", ["*", "https://a.example", "http://localhost:5173"])
def test_one_cors_origin_is_accepted(origin):
    assert origin == Settings.from_env({"CORS_ORIGIN": origin}).cors_origin


@pytest.mark.parametrize("origin", ["https://::::99999", "https://a.example/path", "ftp://a", "a"])
def test_a_cors_origin_must_be_valid(origin):
    with pytest.raises(ConfigError, match="CORS_ORIGIN"):
        Settings.from_env({"CORS_ORIGIN": origin})
    assert Settings.from_env({"CORS_ORIGIN": "http://[::1]:5173"}).cors_origin
