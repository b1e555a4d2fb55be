"""Fake providers and their instances."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from nexus_gateway.provider import Account, Model, Provider
from nexus_gateway.routing.instance import Instance
from nexus_gateway.secret import Secret
from nexus_gateway.testing import FakeUpstream, Served, serving
from nexus_gateway.testing.gateway import HELLO, instance_of

__all__ = ["HELLO", "KEYS", "Fake", "Other", "Served", "make_instance", "serving"]

KEYS = ("key-one-secret", "key-two-secret", "key-three-secret")


class Fake(Provider):
    title = "Fake"
    base_url = "http://127.0.0.1:9/v1"
    default_model = "fake-large"
    models = (Model("fake-large", 1000, True), Model("fake-small", 100))


class Other(Fake):
    title = "Other"
    default_model = "other-text"
    models = (Model("other-text", 100),)


def make_instance(
    upstream: FakeUpstream | str = "",
    number: int = 1,
    clock: Callable[[], float] = time.monotonic,
    provider: type[Provider] = Fake,
    name: str = "fake",
    **more: Any,
) -> Instance:
    url = upstream if isinstance(upstream, str) else upstream.base_url
    key = more.pop("key", None) or Secret(KEYS[number - 1] if provider.needs_key else "")
    account = Account(key, more.pop("base_url", "") or url or provider.base_url)
    return instance_of(
        provider, number=number, name=name, clock=clock, **{"account": account, **more}
    )
