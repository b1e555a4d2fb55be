"""Entry points that were never installed."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

from nexus_gateway.provider import Model, Provider


class Acme(Provider):
    title = "Acme"
    base_url = "https://acme.example/v1/"
    default_model = "acme-1"
    models = (Model("acme-1", images=True), Model("acme-2"))


class Local(Provider):
    title = "Local"
    base_url = "http://127.0.0.1:11434/v1"
    default_model = "local-1"
    needs_key = False


class Demo(Local):
    title = "Demo"


class Point(EntryPoint):
    """An entry point that loads what it is given, or raises it."""

    def load(self) -> Any:
        found = vars(self)["found"]
        if isinstance(found, BaseException):
            raise found
        return found


def point(name: str, found: object, distribution: str = "nexus-acme") -> EntryPoint:
    made = Point(name, f"{distribution.replace('-', '_')}:Cls", "nexus_gateway.providers")
    vars(made).update(found=found, dist=SimpleNamespace(name=distribution, version="0.1"))
    return made


def fit(**attributes: object) -> type[Provider]:
    """Make a provider class that differs from Acme."""
    return type("Other", (Acme,), attributes)
