"""The log: its formats, and what it never contains."""

from __future__ import annotations

import io
import json
import logging
import re
import time

import pytest
from aiohttp.http_exceptions import BadHttpMessage

from nexus_gateway.proxy.record import MAX_WHY
from nexus_gateway.secret import Secret
from nexus_gateway.telemetry.log import MAX_VALUE, configure


@pytest.fixture(autouse=True)
def restored_loggers(monkeypatch):
    root, ours = logging.getLogger(), logging.getLogger("nexus_gateway")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


class Stderr:
    """All that was written to stderr so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys) -> Stderr:
    return Stderr(capsys)


def info(message: str, *args: object, **fields: object) -> None:
    logging.getLogger("nexus_gateway").info(message, *args, extra={"fields": fields})


def test_a_text_entry_is_one_line_with_fields(stderr):
    configure("info", "text", [])
    info("chat", id="req-1", status=200, why="no first token")

    assert re.fullmatch(r"\d\d:\d\d:\d\d info +chat +.*\n", stderr.getvalue())
    assert 'id=req-1 status=200 why="no first token"' in stderr.getvalue()


def test_a_json_entry_is_one_object_per_line(stderr):
    configure("info", "json", [])
    info("chat", id="req-1", status=200)

    entry = json.loads(stderr.getvalue())
    assert tuple(entry[k] for k in ("level", "message", "id", "status")) == (
        "info",
        "chat",
        "req-1",
        200,
    )


@pytest.mark.proves("S-18")
def test_a_value_cannot_forge_a_line_and_is_truncated(stderr):
    configure("info", "text", [])
    info("chat\n00:00:00 error forged", model="a\n00:00:00 error forged", long="x" * 5000)

    assert stderr.getvalue().count("\n") == 1
    assert len(stderr.getvalue()) < 400


def test_why_may_be_longer_because_the_gateway_writes_it(stderr):
    configure("info", "json", [])
    info("chat", why="x" * 5000, model="x" * 5000)

    entry = json.loads(stderr.getvalue())
    assert (len(entry["why"]), len(entry["model"])) == (MAX_WHY, MAX_VALUE)


def test_aiohttp_does_not_log_invalid_http(stderr):
    configure("info", "text", [])
    theirs = logging.getLogger("aiohttp.server")
    for error in (BadHttpMessage("noise"), RuntimeError("a fault")):
        theirs.error("Error handling request", exc_info=error)

    assert "a fault" in stderr.getvalue()
    assert stderr.getvalue().count("Error handling request") == 1


@pytest.mark.proves("S-06")
def test_a_key_is_masked_in_text_fields_and_tracebacks(stderr):
    configure("info", "text", [Secret("canary-0123456789"), Secret("short"), Secret("")])
    info("key canary-0123456789 in a short text", header="Bearer canary-0123456789")
    try:
        raise RuntimeError("canary-0123456789")
    except RuntimeError:
        logging.getLogger("nexus_gateway").exception("failed")
    logging.getLogger("aiohttp.client").warning("canary-0123456789")

    assert "canary" not in stderr.getvalue()
    assert "short" in stderr.getvalue()
    assert stderr.getvalue().count("***") >= 4


def test_other_loggers_are_written_from_warning_on(stderr):
    configure("warning", "text", [])
    info("quiet")
    logging.getLogger("aiohttp.access").info("quiet")
    logging.getLogger("aiohttp.server").warning("loud")

    assert "quiet" not in stderr.getvalue()
    assert "loud" in stderr.getvalue()


@pytest.mark.proves("F44")
def test_a_closed_stderr_is_no_error(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    configure("info", "text", [])
    info("never written")


@pytest.mark.proves("S-06")
@pytest.mark.parametrize("style", ["text", "json"])
def test_a_key_is_masked_before_truncation_and_escaping(stderr, style):
    key = 'canary-"quoted"-0123456789'
    configure("info", style, [Secret(key)])
    info("the text %s", key, near_the_cut="x" * 190 + key)

    assert "canary" not in stderr.getvalue()


@pytest.mark.parametrize("style", ["text", "json"])
def test_the_same_exception_has_one_traceback_a_minute(stderr, style, monkeypatch):
    configure("info", style, [])
    now_s = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now_s)
    monkeypatch.setattr(time, "time_ns", lambda: int(now_s * 1e9))  # logging's from Python 3.13 on

    def fail(key: str) -> None:
        try:
            {}[key] if key else int("x")
        except (KeyError, ValueError):
            logging.getLogger("nexus_gateway").exception("the plugin failed on %s", key)

    for key in ("a", "b", "", "c"):
        fail(key)
    first = stderr.getvalue()
    assert first.count("Traceback") == 2
    assert first.count("the plugin failed on") == 4
    assert len(re.findall(r"KeyError in test_log\.py:\d+", first)) == 2
    now_s += 61
    fail("d")
    assert stderr.getvalue().count("Traceback") == 3
