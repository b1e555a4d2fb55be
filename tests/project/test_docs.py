"""The docs match the code: variables, routes, providers, versions; and links are valid."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexus_gateway import __version__
from nexus_gateway.provider import Provider
from nexus_gateway.settings import VARIABLES, Settings
from nexus_gateway.web.app import ROUTES

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
TEXTS = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    *(f"docs/{p}" for p in PAGES),
]
POINTS = [
    point
    for point in metadata.entry_points(group="nexus_gateway.providers")
    if point.value.startswith("nexus_gateway_plugins.")
]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section() -> str:
    """Return the part of the configuration page that lists the gateway's variables."""
    return (
        text("docs/configuration.md").partition("\n## Gateway variables\n")[2].partition("\n## ")[0]
    )


def test_the_table_of_variables_is_the_settings() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`([^`]*)`)? ?\| \S", section(), re.MULTILINE)
    assert sorted(rows) == sorted((v.name, v.default) for v in VARIABLES)


@pytest.mark.parametrize(
    "part",
    [
        *("KEY_1", "API_KEY", "MODEL", "MODELS", "BASE_URL", "IMAGES", "FIRST_TOKEN_TIMEOUT_MS"),
    ],
)
def test_a_providers_variables_are_documented(part: str) -> None:
    assert f"GROQ_{part}" in text("docs/configuration.md")


def test_env_example_has_only_known_variables() -> None:
    known = {variable.name for variable in VARIABLES}
    of_one = "MODELS?|BASE_URL|IMAGES|FIRST_TOKEN_TIMEOUT_MS|TIER"
    providers = rf"[A-Z][A-Z0-9]*_(?:KEY_\d+|API_KEY|API_VERSION|(?:{of_one})(?:_\d+)?)"
    for name in re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=", text(".env.example"), re.MULTILINE):
        assert name in known or re.fullmatch(providers, name), name


def test_env_example_has_the_defaults() -> None:
    lines = re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=(.*)$", text(".env.example"), re.MULTILINE)
    known = {variable.name: variable.default for variable in VARIABLES}
    assert {n: v for n, v in lines if n in known and known[n] and v.strip() != known[n]} == {}
    assert Settings.from_env({}) == Settings()


def test_the_table_of_endpoints_is_the_routes() -> None:
    table = text("docs/api.md").partition("\n## ")[0]
    routes = {(r.method, re.sub(r"\{(\w+)[^}]*\}", r"{\1}", r.path)) for r in ROUTES}
    assert set(re.findall(r"`([A-Z]+) (/[^`]*)`", table)) == routes


def test_versions_agree() -> None:
    assert metadata.version("nexus-ai-gateway") == __version__
    assert __version__ in text("README.md")
    assert __version__ in text("CHANGELOG.md")


def test_the_tested_pythons_are_the_declared_ones() -> None:
    workflow = yaml.safe_load(text(".github/workflows/test.yml"))
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    declared = text("setup.cfg")
    assert re.findall(r"Python :: (3\.\d+)$", declared, re.MULTILINE) == tested
    assert f"python_requires = >={tested[0]}\n" in declared
    assert f"Python {tested[0]} or newer" in text("README.md")


def example(kind: type[Provider]) -> type[Any]:
    """Run the README's example of a kind of provider and return its class."""
    blocks = re.findall(r"```python\n(.*?)```", text("README.md"), re.DOTALL)
    source = next(block for block in blocks if f"class Acme({kind.__name__})" in block)
    names: dict[str, Any] = {"__name__": "nexus_acme"}
    exec(source, names)
    acme: type[Any] = names["Acme"]
    return acme


def test_the_example_provider_runs() -> None:
    acme = example(Provider)
    assert issubclass(acme, Provider)
    assert acme.models[0].id == acme.default_model


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_the_table_describes_each_provider(point: metadata.EntryPoint) -> None:
    cls: type[Provider] = point.load()
    if point.name == "demo":
        return
    known = {m.id: m for m in cls.models}.get(cls.default_model)
    model = f"`{cls.default_model}`" if known else f"set `{point.name.upper()}_MODEL`"
    size = f"{known.context:,} | {'yes' if known.images else 'no'}" if known else " | "
    kinds = ("embeddings", "completions", "transcriptions", "messages", "responses")
    offers = ", ".join(kind for kind in kinds if kind in cls.endpoints)
    assert f"| {cls.title} | {model} | {size} | {offers} |" in text("README.md")
    assert f"{point.name.upper()}_" in text(".env.example")


def test_the_readme_is_short() -> None:
    assert len(text("README.md").splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES)
def test_the_readme_links_every_page(page: str) -> None:
    assert f"](docs/{page})" in text("README.md")


def test_the_readme_mentions_the_ledger_and_how_to_disable_it() -> None:
    assert "SQLite" in text("README.md")
    assert "`LEDGER=off`" in text("README.md")


def anchors(name: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub builds them."""
    prose = re.sub(r"```.*?```", "", text(name), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_links_are_valid(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text(name)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(str(target.relative_to(ROOT))), link
