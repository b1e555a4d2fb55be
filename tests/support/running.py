"""How the suite runs: distribution over workers, coverage and caches.

This only saves time; it does not change what a test proves.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pkgutil
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import coverage
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

import nexus_gateway

# These take longest, and mostly wait for processes or a browser. They start first, each together
# with one of the largest files, so that the processor is never idle.
WAITING = (
    "test_new_provider.py",
    "test_chaos.py",
    "test_container.py",
    "test_control_center.py",
    "test_hung_worker.py",
    "test_workers.py",
    "test_descriptors.py",
    "test_stderr.py",
    "test_install.py",
    "test_drain.py",
    "test_site.py",
    "test_kept_content.py",
    "test_server.py",
    "test_secrets.py",
    "test_reload.py",
    "test_traces_process.py",
)
# Coverage doubles the time of a test; of a test with many cases only the first is measured.
_measured: set[object] = set()
# These share expensive work and run in one process: building and installing the wheel, and
# importing the official clients.
TOGETHER = {
    "test_distributions.py": "test_new_provider.py",
    **dict.fromkeys(
        (
            "test_adaptations.py",
            "test_anthropic_client.py",
            "test_claude_code.py",
            "test_client_habits.py",
            "test_codex.py",
            "test_dialect_responses.py",
            "test_four_ways.py",
            "test_openai_client.py",
            "test_endpoints.py",
            "test_response_store.py",
            "test_responses_client.py",
            "test_resume.py",
            "test_stream_usage.py",
        ),
        "test_anthropic_plugin.py",
    ),
}


def pytest_configure() -> None:
    """Set up this process and, by its environment, those that tests start."""
    # Reading the 150 public certificate authorities takes 25 ms per client and process. No test
    # connects to a public server, so a single unused authority is enough.
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("unused.pem"))
    # Keep bytecode for the other workers, for child processes and for the next run.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # Import all modules here so that they are measured: collection is not.
    for module in pkgutil.walk_packages(nexus_gateway.__path__, "nexus_gateway."):
        importlib.import_module(module.name)


@contextlib.contextmanager
def unmeasured() -> Iterator[None]:
    """Pause coverage, which doubles the time."""
    measuring = []
    while (one := coverage.Coverage.current()) is not None:  # a worker has two, nested
        one.stop()
        measuring.append(one)
    try:
        yield
    finally:
        for one in reversed(measuring):
            one.start()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without coverage, and exclude the collected objects from garbage collection."""
    gc.disable()
    try:
        with unmeasured():
            return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Measure nothing in the process that only distributes tests."""
    if not session.config.pluginmanager.hasplugin("dsession"):
        return (yield)
    with unmeasured():
        return (yield)


def _is_measured(item: pytest.Item) -> bool:
    """Return whether to measure; never with Hypothesis, which repeats lines that others run."""
    function = getattr(item, "function", None)
    if item.get_closest_marker("unmeasured") or hasattr(function, "hypothesis"):
        return False
    if function in _measured:
        return False
    _measured.add(function)
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Pause coverage for tests that need not be measured."""
    if _is_measured(item):
        return (yield)
    with unmeasured():
        return (yield)


def _file(nodeid: str) -> str:
    name = nodeid.split("::", 1)[0].rsplit("/", 1)[-1]
    return TOGETHER.get(name, name)


class Scheduling(LoadFileScheduling):
    """Distribute tests by file; files in `TOGETHER` count as one."""

    def _split_scope(self, nodeid: str) -> str:
        return _file(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """Replace xdist's `--dist loadfile`."""
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files for the workers; without workers the order is not changed."""
    if not hasattr(config, "workerinput"):
        return
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(_file(item.nodeid), []).append(item)
    waiting = [name for name in WAITING if name in files]
    others = sorted(set(files) - set(waiting), key=lambda name: (-len(files[name]), name))
    pairs = zip(waiting, others, strict=False)
    order = dict.fromkeys([*(name for pair in pairs for name in pair), *waiting, *others])
    items[:] = [item for name in order for item in files[name]]
