"""The modules that `serve` imports before it listens."""

from __future__ import annotations

import subprocess
import sys

import pytest

UNNEEDED = {
    "genai_prices",
    "hypothesis",
    "nexus_gateway.testing",
    "openai",
    "opentelemetry",
    "prometheus_client",
    "pydantic",
    "pytest",
    "rich",
    "setuptools",
    "sqlite3",
    "watchfiles",
}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.proves("S-09")
def test_serve_imports_no_unneeded_module() -> None:
    loaded = loaded_by("import nexus_gateway.cli.serve, nexus_gateway.server")
    assert not UNNEEDED & loaded
    assert not {m for m in loaded if m.startswith("nexus_gateway_plugins")}


def test_help_imports_no_server() -> None:
    assert "aiohttp" not in loaded_by("import nexus_gateway.cli")
