"""Every provider in `plugins/` passes the public conformance suite."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Any

import pytest

from nexus_gateway.provider import Account, InProcess
from nexus_gateway.secret import Secret
from nexus_gateway.testing.conformance import InProcessConformance, ProviderConformance
from nexus_gateway.testing.conformance.conversations import KEYS
from nexus_gateway.testing.gateway import instance_of
from nexus_gateway.testing.upstream import FakeUpstream

_POINTS = metadata.entry_points(group="nexus_gateway.providers")
for _point in _POINTS:
    if _point.value.startswith("nexus_gateway_plugins."):
        _cls = _point.load()
        _suite = InProcessConformance if issubclass(_cls, InProcess) else ProviderConformance
        globals()[f"Test{_cls.__name__}"] = type(
            f"Test{_cls.__name__}", (_suite,), {"provider": _cls}
        )


@pytest.fixture(autouse=True)
def fast_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = next(iter(_POINTS.select(name="demo"))).load()
    monkeypatch.setattr(sys.modules[demo.__module__], "WORD_S", 0.001)


class TestAzureWithVersion(ProviderConformance):
    """Azure with an API version, which changes its URLs."""

    provider = next(iter(_POINTS.select(name="azure"))).load()

    def instance(self, upstream: FakeUpstream, number: int) -> Any:
        options = {"API_VERSION": "2024-10-21"}
        account = Account(Secret(KEYS[number - 1]), upstream.base_url, options)
        return instance_of(self.provider, account=account, number=number, takes_images=True)
