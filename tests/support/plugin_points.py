"""Entry points that are not installed."""

from __future__ import annotations

from functools import cache
from importlib import metadata
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
    """An entry point that loads a given object, or raises it."""

    def load(self) -> Any:
        loaded = vars(self)["loaded"]
        if isinstance(loaded, BaseException):
            raise loaded
        return loaded


def point(name: str, loaded: object, distribution: str = "nexus-acme") -> EntryPoint:
    entry_point = Point(name, f"{distribution.replace('-', '_')}:Cls", "nexus_gateway.providers")
    vars(entry_point).update(loaded=loaded, dist=SimpleNamespace(name=distribution, version="0.1"))
    return entry_point


def fit(**attributes: object) -> type[Provider]:
    """Return a provider class that differs from Acme."""
    return type("Other", (Acme,), attributes)


@cache
def built_in(name: str) -> type[Provider]:
    """Return a provider of the gateway's own; to search all distributions takes 15 ms."""
    (point,) = metadata.entry_points(group="nexus_gateway.providers", name=name)
    provider: type[Provider] = point.load()
    return provider
