"""Every provider in `plugins/` passes the public conformance suite."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Any

import pytest

from nexus_gateway.provider import Account, InProcess, Provider, Translator
from nexus_gateway.secret import Secret
from nexus_gateway.testing.conformance import InProcessConformance, ProviderConformance
from nexus_gateway.testing.conformance.conversations import KEYS
from nexus_gateway.testing.gateway import instance_of
from nexus_gateway.testing.upstream import FakeUpstream

# The gateway's own work for every plugin that leaves it the reading of answers, and of failures.
# OpenAI is the one that proves it.
ANSWERS = (
    *("test_unusual_framing", "test_finish_reason_length", "test_parallel_tool_calls"),
    *("test_concurrent_answers_do_not_mix", "test_no_first_content_in_time"),
    "test_failure_before_the_first_content",
    *("test_broken_stream_ends_with_an_error", "test_caller_disconnects", "test_recordings"),
)
FAILURES = (
    *("test_failure_fails_over", "test_rate_limit", "test_rejection_reaches_the_caller"),
    *("test_error_inside_a_200", "test_rejected_key"),
)


def _left_out(cls: type[Provider]) -> dict[str, None]:
    """Return the tests to leave out for a provider."""
    if cls.__name__ == "OpenAI" or issubclass(cls, InProcess | Translator):
        return {}
    return dict.fromkeys(
        (*ANSWERS, *(FAILURES if cls.read_failure is Provider.read_failure else ()))
    )


_POINTS = metadata.entry_points(group="nexus_gateway.providers")
for _point in _POINTS:
    if _point.value.startswith("nexus_gateway_plugins."):
        _cls = _point.load()
        _suite = InProcessConformance if issubclass(_cls, InProcess) else ProviderConformance
        globals()[f"Test{_cls.__name__}"] = type(
            f"Test{_cls.__name__}", (_suite,), {"provider": _cls, **_left_out(_cls)}
        )


@pytest.fixture(autouse=True)
def fast_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = next(iter(_POINTS.select(name="demo"))).load()
    monkeypatch.setattr(sys.modules[demo.__module__], "WORD_S", 0.001)


class TestAzureWithVersion(TestAzure):  # type: ignore[name-defined]  # noqa: F821
    """Azure with an API version, which changes its URLs."""

    def instance(self, upstream: FakeUpstream, number: int) -> Any:
        options = {"API_VERSION": "2024-10-21"}
        account = Account(Secret(KEYS[number - 1]), upstream.base_url, options)
        return instance_of(self.provider, account=account, number=number, takes_images=True)
