"""How the suite is run: who runs what, what is measured, and what is kept from run to run.

None of it changes what a test proves. All of it saves time, most of which a test spends in what is
not under test.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pkgutil
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import coverage
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

import nexus_gateway

# These wait most of their time, for processes or for a browser. They begin, each beside one of the
# largest files, so that others compute while they wait and nobody waits alone at the end.
WAITING = (
    "test_new_provider.py",
    "test_control_center.py",
    "test_workers.py",
    "test_drain.py",
    "test_server.py",
    "test_secrets.py",
    "test_reload.py",
    "test_traces_process.py",
)
# Coverage doubles the time of what it looks at: of a test with many cases it sees the first ones.
MEASURED_CASES = 6
_cases: Counter[object] = Counter()
# These share what takes long to make, and run in one process: the wheel, built and installed, and
# the official clients, imported.
TOGETHER = {
    "test_distributions.py": "test_new_provider.py",
    **dict.fromkeys(
        (
            "test_anthropic_client.py",
            "test_claude_code.py",
            "test_dialect_responses.py",
            "test_four_ways.py",
            "test_openai_client.py",
            "test_endpoints.py",
            "test_responses_client.py",
            "test_resume.py",
            "test_stream_usage.py",
        ),
        "test_anthropic_plugin.py",
    ),
}


def pytest_configure() -> None:
    """Set up this process and, by its environment, those that tests start."""
    # To read the 150 authorities of the world takes 25 ms, and each client of OpenAI's or
    # Anthropic's and each process would. No test asks the world: they read one, of nobody.
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("nobody.pem"))
    # What is compiled is kept: for the other workers, for the processes and for the next run.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # Read here, all modules are measured, though nothing is while tests are collected.
    for module in pkgutil.walk_packages(nexus_gateway.__path__, "nexus_gateway."):
        importlib.import_module(module.name)


@contextlib.contextmanager
def unmeasured() -> Iterator[None]:
    """Let coverage wait: whatever runs before its eyes takes twice as long."""
    measuring = []
    while (one := coverage.Coverage.current()) is not None:  # a worker has two, one in the other
        one.stop()
        measuring.append(one)
    try:
        yield
    finally:
        for one in reversed(measuring):
            one.start()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect unmeasured; what is there then stays to the end and is no garbage to look through."""
    gc.disable()
    try:
        with unmeasured():
            return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Measure nothing in the process that only hands tests out to the workers."""
    if not session.config.pluginmanager.hasplugin("dsession"):
        return (yield)
    with unmeasured():
        return (yield)


def _is_measured(item: pytest.Item) -> bool:
    """Return whether coverage looks: never at Hypothesis, which repeats what others run once."""
    function = getattr(item, "function", None)
    if item.get_closest_marker("unmeasured") or hasattr(function, "hypothesis"):
        return False
    _cases[function] += 1
    return _cases[function] <= MEASURED_CASES


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let coverage look away from what it has seen."""
    if _is_measured(item):
        return (yield)
    with unmeasured():
        return (yield)


def _file(nodeid: str) -> str:
    name = nodeid.split("::", 1)[0].rsplit("/", 1)[-1]
    return TOGETHER.get(name, name)


class Scheduling(LoadFileScheduling):
    """Hand out file by file, but those `TOGETHER` as one."""

    def _split_scope(self, nodeid: str) -> str:
        return _file(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """Take the place of xdist's own `--dist loadfile`."""
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files into the order in which workers take them; alone, one keeps the given one."""
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
