"""The commands, without a server."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from importlib import metadata

import pytest
from plugin_points import Acme, Demo, point

from nexus_gateway import __version__
from nexus_gateway.cli import check
from nexus_gateway.cli.banner import startup_report
from nexus_gateway.cli.main import main
from nexus_gateway.cli.parser import parser
from nexus_gateway.cli.serve import prepare
from nexus_gateway.hooks import Hook
from nexus_gateway.server import process
from nexus_gateway.settings import Settings

KEY = "canary-0123456789"
POINTS = (point("acme", Acme), point("demo", Demo), point("bad", ImportError("gone")))


def install(monkeypatch, *points, group="nexus_gateway.providers"):
    """Make entry points of a group those that are installed."""
    real = metadata.entry_points

    def entry_points(**selection):
        return points if selection["group"] == group else real(**selection)

    monkeypatch.setattr(metadata, "entry_points", entry_points)


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """An empty environment and folder, and the test's own plugins."""
    for name in list(os.environ):
        if not name.startswith(("PYTEST", "COV")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    install(monkeypatch, *POINTS)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    root, ours = logging.getLogger(), logging.getLogger("nexus_gateway")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def served(monkeypatch) -> list[Settings]:
    """Settings of the servers that would have run; each announces itself."""
    runs: list[Settings] = []

    def run(settings, pool, announce, **plugins):
        runs.append(settings)
        announce(settings.host, settings.port)
        return 0

    monkeypatch.setattr(process, "run", run)
    return runs


def output(capsys) -> str:
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert KEY not in text
    return text


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["check", "--help"]])
def test_help_names_the_command(arguments, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(arguments)
    assert "nexus-gateway" in output(capsys)


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert f"nexus-gateway {__version__}\n" == output(capsys)


def test_help_does_not_import_the_server():
    code = "import sys, nexus_gateway.cli; sys.exit('aiohttp' in sys.modules)"
    env = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


def test_flags_override_the_environment_which_overrides_the_file(
    served, tmp_path, monkeypatch, capsys
):
    (tmp_path / ".env").write_text(f"ACME_KEY_1={KEY}\nHOST=::1\nPORT=1\nMAX_ATTEMPTS=2\n")
    monkeypatch.setenv("PORT", "2")
    monkeypatch.setenv("HOST", "localhost")

    assert main(["serve", "--port", "3"]) == 0
    (settings,) = served
    assert (settings.host, settings.port, settings.max_attempts) == ("localhost", 3, 2)
    assert "localhost:3" in output(capsys)


def test_another_env_file_is_read(served, tmp_path, capsys):
    (tmp_path / "other.env").write_text("PORT=4\n")

    assert main(["serve", "--env-file", "other.env"]) == 0
    assert served[0].port == 4


def test_each_wrong_setting_is_one_line_and_nothing_starts(served, monkeypatch, capsys):
    monkeypatch.setenv("PORT", "abc")
    monkeypatch.setenv("ACME_KEY_1", KEY + "\n")

    assert main(["serve"]) == 2
    assert served == []
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split()[1] for line in captured.err.splitlines()] == ["PORT", "ACME_KEY_1"]
    assert KEY not in captured.err


def test_the_start_screen_shows_the_state(served, monkeypatch, capsys):
    monkeypatch.setenv("ACME_KEY_2", KEY)
    monkeypatch.setenv("ACME_KEY", KEY)

    assert main(["serve"]) == 0
    screen = output(capsys)
    for text in (
        __version__,
        "http://127.0.0.1:3000",
        "Acme (Key #2)",
        "acme-1",
        "gone",
        "ACME_KEY ",
        "curl -N http://127.0.0.1:3000/v1/chat/completions",
    ):
        assert text in screen
    assert "GATEWAY_KEY" not in screen
    assert "ADMIN_TOKEN" not in screen


@pytest.mark.parametrize(
    ("host", "admin", "line"),
    [
        ("127.0.0.1", "", "http://127.0.0.1:3000/"),
        ("0.0.0.0", "an-admin", "http://127.0.0.1:3000/"),
        ("::", "an-admin", "http://[::1]:3000/"),
        ("0.0.0.0", "", "http://127.0.0.1:3000/ (closed: ADMIN_TOKEN is not set)"),
    ],
)
def test_the_start_screen_shows_the_control_center(served, monkeypatch, capsys, host, admin, line):
    monkeypatch.setenv("ADMIN_TOKEN", admin)
    assert main(["serve", "--host", host]) == 0
    assert f"\nControl Center: {line}\n" in output(capsys)


def test_a_json_log_replaces_the_start_screen(served, monkeypatch, capsys):
    monkeypatch.setenv("LOG_FORMAT", "json")
    monkeypatch.setenv("ACME_KEY_1", KEY)
    assert main(["serve", "--host", "0.0.0.0"]) == 0
    started, *remarks = [json.loads(line) for line in output(capsys).splitlines()]
    assert started["level"] == "info"
    assert started["message"] == "the gateway listens"
    assert started["url"] == "http://0.0.0.0:3000"
    assert started["control_center"] == "http://127.0.0.1:3000/"
    assert started["live"]["Acme (Key #1)"] == "acme-1"
    assert {remark["level"] for remark in remarks} == {"warning"}
    texts = [remark["message"] for remark in remarks]
    assert [text for text in texts if text.startswith("left out: ") and "gone" in text]
    assert [text for text in texts if "GATEWAY_KEYS is not set" in text]
    assert "admin calls are closed: ADMIN_TOKEN is not set" in texts


def test_without_keys_the_screen_names_variables_to_set(served, capsys):
    assert main(["serve"]) == 0
    screen = output(capsys)
    assert "ACME_KEY_1" in screen
    assert "demo" in screen.lower()


@pytest.mark.proves("S-15")
def test_an_open_gateway_is_warned_about(served, capsys):
    assert main(["serve", "--host", "0.0.0.0"]) == 0
    screen = output(capsys)
    assert "GATEWAY_KEYS" in screen
    assert "ADMIN_TOKEN" in screen
    assert "curl -N http://127.0.0.1:3000/" in screen


@pytest.mark.parametrize(
    ("host", "admin", "line"),
    [
        ("127.0.0.1", "", "note: VIEWER_TOKEN alone restricts nothing: set ADMIN_TOKEN as well"),
        ("0.0.0.0", "", "admin calls are closed to all but VIEWER_TOKEN: ADMIN_TOKEN is not set"),
        ("127.0.0.1", "an-admin", ""),
        ("0.0.0.0", "an-admin", ""),
    ],
)
def test_a_viewer_token_alone_is_noted(served, monkeypatch, capsys, host, admin, line):
    monkeypatch.setenv("VIEWER_TOKEN", "a-viewer")
    monkeypatch.setenv("ADMIN_TOKEN", admin)
    assert main(["serve", "--host", host]) == 0
    screen = output(capsys)
    assert [li.strip() for li in screen.splitlines() if "_TOKEN" in li] == ([line] if line else [])


@pytest.mark.parametrize(
    ("workers", "store", "is_noted"),
    [("2", "memory", True), ("1", "memory", False), ("2", "off", False), ("2", "", False)],
)
def test_a_store_that_workers_do_not_share_is_noted(
    served, monkeypatch, capsys, workers, store, is_noted
):
    monkeypatch.setenv("RESPONSE_STORE", store)
    ready = prepare(parser().parse_args(["serve", "--workers", workers]))
    screen = startup_report(ready, "127.0.0.1", 3000, int(workers))["screen"]
    assert ("note: RESPONSE_STORE is memory" in "\n".join(screen)) is is_noted


def test_the_example_command_names_the_gateway_key(served, monkeypatch, capsys):
    monkeypatch.setenv("GATEWAY_KEYS", KEY)

    assert main(["serve"]) == 0
    assert '-H "Authorization: Bearer $GATEWAY_KEY"' in output(capsys)


@pytest.mark.proves("I-56")
@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_missing_provider_is_one_line(command, served, monkeypatch, capsys):
    install(monkeypatch, *POINTS[:1])

    assert main([command]) == 2
    assert served == []
    assert output(capsys).count("\n") == 1


def test_providers_are_listed(monkeypatch, capsys):
    monkeypatch.setenv("ACME_KEY_1", KEY)

    assert main(["providers"]) == 0
    listed = output(capsys)
    for text in ("nexus-acme 0.1", "nexus_acme:Cls", "acme-1, acme-2", "bad", "gone"):
        assert text in listed


@pytest.mark.parametrize("command", ["providers", "serve"])
def test_lists_fit_a_terminal(command, served, monkeypatch, capsys):
    names = [f"acme{n}" for n in range(30)]
    classes = [(n, type("Cls", (Acme,), {"name": n, "title": n.title()})) for n in names]
    install(monkeypatch, *(point(name, cls) for name, cls in classes))
    monkeypatch.setenv("ACME0_KEY_1", KEY)

    assert main([command]) == 0
    lines = output(capsys).splitlines()
    assert any("acme29" in line for line in lines)
    assert [line for line in lines if len(line) > 80 and "curl" not in line] == []


def test_a_closed_pipe_ends_the_output_silently(tmp_path):
    # The reading end is closed before the command starts.
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "nexus_gateway", "providers"],
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.parametrize(("reason", "code"), [("ok", 0), ("key refused", 1)])
def test_check_reports_which_keys_work(reason, code, monkeypatch, capsys):
    async def probe_all(settings, pool):
        return [(i, 12.3 if reason == "ok" else None, reason) for i in pool.instances]

    monkeypatch.setenv("ACME_KEY_1", KEY)
    monkeypatch.setattr(check, "probe_all", probe_all)

    assert code == main(["check"])
    table = output(capsys)
    assert "Acme (Key #1)" in table
    assert ("12 ms" if reason == "ok" else "key refused") in table


def test_reload_without_watchfiles_is_reported(served, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "watchfiles", None)

    assert main(["serve", "--reload"]) == 2
    assert "'.[dev]'" in output(capsys)


def test_an_unreadable_env_file_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.env").write_bytes(b"A=\xff\xfe")
    for file in ("missing.env", "odd.env"):
        assert main(["providers", "--env-file", file]) == 2
        assert file in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_gateway_whose_upstream_is_itself_does_not_start(host, served, monkeypatch, capsys):
    monkeypatch.setenv("ACME_KEY_1", KEY)
    monkeypatch.setenv("ACME_BASE_URL", f"http://{host}:3000/v1")

    assert main(["serve"]) == 2
    assert "ACME_BASE_URL is the gateway's own address" in output(capsys)
    assert main(["serve", "--port", "3001"]) == 0
    assert len(served) == 1


def test_a_hook_that_cannot_be_loaded_prevents_the_start(served, monkeypatch, capsys):
    install(monkeypatch, point("audit", ImportError("gone")), group="nexus_gateway.hooks")

    assert main(["serve"]) == 2
    assert served == []
    assert "the hook audit (nexus-acme 0.1, nexus_acme:Cls): it failed to load" in output(capsys)


def test_policies_and_hooks_are_listed(monkeypatch, capsys):
    install(monkeypatch, point("audit", Hook), group="nexus_gateway.hooks")

    assert main(["providers"]) == 0
    listed = output(capsys)
    for text in ("round-robin", "nexus_gateway.routing:RoundRobin", "audit", "nexus-acme 0.1"):
        assert text in listed


def test_the_start_screen_lists_active_hooks(served, monkeypatch, capsys):
    class Audit(Hook):
        async def at_end(self, exchange, used):
            """Override a method."""

    points = point("audit", Audit), point("typo", type("Typo", (Hook,), {"at_and": 1}))
    install(monkeypatch, *points, group="nexus_gateway.hooks")

    assert main(["serve"]) == 0
    screen = output(capsys)
    assert "hook audit: at_end" in screen
    assert "hook typo: overrides nothing" in screen
