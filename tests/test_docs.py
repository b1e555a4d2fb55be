"""What the docs say of variables, routes and versions is what the code has."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from nexus_gateway import __version__, json_codec
from nexus_gateway.answer import Answer, fold
from nexus_gateway.app import ROUTES
from nexus_gateway.provider import Call, Provider, Translator
from nexus_gateway.secret import Secret
from nexus_gateway.settings import VARIABLES, Settings
from nexus_gateway.sse import Event

ROOT = Path(__file__).resolve().parent.parent


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [variable.name for variable in VARIABLES])
def test_a_variable_is_documented(name: str) -> None:
    assert re.search(rf"^#? ?{name}=", text(".env.example"), re.MULTILINE)
    assert f"`{name}`" in text("README.md")


@pytest.mark.parametrize("name", [v.name for v in VARIABLES if v.default])
def test_the_readme_has_the_default(name: str) -> None:
    default = next(v.default for v in VARIABLES if v.name == name)
    assert re.search(rf"^\| `{name}` \| `{re.escape(default)}` \|", text("README.md"), re.MULTILINE)


@pytest.mark.parametrize("part", ["KEY_1", "API_KEY", "MODEL", "BASE_URL", "IMAGES"])
def test_a_providers_variables_are_documented(part: str) -> None:
    assert f"GROQ_{part}" in text("README.md")


def test_env_example_knows_no_other_variable() -> None:
    known = {variable.name for variable in VARIABLES}
    providers = r"[A-Z][A-Z0-9]*_(?:KEY_\d+|API_KEY|MODEL|BASE_URL|IMAGES)"
    for name in re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=", text(".env.example"), re.MULTILINE):
        assert name in known or re.fullmatch(providers, name), name


def test_env_example_as_it_stands_is_the_default() -> None:
    lines = re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=(.*)$", text(".env.example"), re.MULTILINE)
    known = {variable.name: variable.default for variable in VARIABLES}
    assert {n: v for n, v in lines if n in known and known[n] and v.strip() != known[n]} == {}
    assert Settings.from_env({}) == Settings()


@pytest.mark.parametrize("path", [path for _, path, *_ in ROUTES])
def test_a_route_is_documented(path: str) -> None:
    assert re.sub(r"\{(\w+)[^}]*\}", r"{\1}", path) in text("README.md")


def test_versions_agree() -> None:
    assert metadata.version("nexus-gateway") == __version__
    assert __version__ in text("README.md")
    assert __version__ in text("CHANGELOG.md")


def example(kind: type[Provider]) -> type[Any]:
    """Run the README's example of a kind of provider and return its class."""
    blocks = re.findall(r"```python\n(.*?)```", text("README.md"), re.DOTALL)
    source = next(block for block in blocks if f"class Acme({kind.__name__})" in block)
    names: dict[str, Any] = {"__name__": "nexus_acme"}
    exec(source, names)
    found: type[Any] = names["Acme"]
    return found


def test_the_example_of_a_provider_runs() -> None:
    acme = example(Provider)
    assert issubclass(acme, Provider)
    assert acme.models[0].id == acme.default_model


async def test_the_example_of_a_translator_runs() -> None:
    async def events() -> AsyncIterator[Event]:
        yield Event("word", '{"text": "Hello"}')
        yield Event("word", '{"text": " you"}')
        yield Event("end", '{"tokens_in": 1, "tokens_out": 2}')

    acme = example(Translator)()
    call = Call({"model": "m", "messages": [], "stream": True}, Secret("k" * 8), acme.base_url)
    request = acme.encode(call)
    assert request.url == "https://api.acme.example/v2/generate"
    assert request.headers["Authorization"] == "Bearer " + "k" * 8
    assert json_codec.loads(request.body)["engine"] == "m"
    whole = fold([c async for c in acme.stream(events(), Answer("chatcmpl-1", 1, "m"))])
    assert whole["choices"][0]["message"]["content"] == "Hello you"
    assert whole["usage"]["total_tokens"] == 3
