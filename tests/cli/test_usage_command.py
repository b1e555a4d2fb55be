"""The command `nexus-gateway usage`."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from records import record

from nexus_gateway.cli import usage
from nexus_gateway.cli.environment import serve_environment
from nexus_gateway.cli.main import main
from nexus_gateway.settings import Settings
from nexus_gateway.telemetry.ledger import LedgerFile
from nexus_gateway.telemetry.ledger_writer import row_of

DAY_S = 86400


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEDGER", "sqlite:///ledger.db")
    return tmp_path


@pytest.fixture
def filled(folder: Path) -> None:
    now_s = time.time()
    file = LedgerFile("ledger.db")
    file.write(
        [
            row_of(record(ended_s=now_s - 3 * DAY_S), 1234.5),
            row_of(record(ended_s=now_s - 60), 0.00025),
            row_of(record(ended_s=now_s - 60, caller="", model="other"), None),
            row_of(record(usage={}, ended_s=now_s - 60, outcome="failure"), None),
        ]
    )
    file.close()


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["usage", *arguments]) == code
    captured = capsys.readouterr()
    assert not (captured.out and captured.err)
    return captured.out or captured.err


def test_a_table_has_groups_a_total_and_a_note(
    filled: None, capsys: pytest.CaptureFixture[str]
) -> None:
    head, first, second, total, note = output(capsys, "--by", "key").splitlines()
    assert head.split()[:4] == ["key", "requests", "failed", "prompt"]
    assert first.split() == ["key-2", "3", "1", "24", "0", "6", "0", "1,234.50", "-", "5", "9"]
    assert second.split()[:7] == ["(none)", "1", "0", "12", "0", "3", "0"]
    assert total.split()[:4] == ["total", "4", "1", "36"]
    assert note == "The price of 1 of these requests is unknown."


def test_since_until_and_by_select_requests(
    filled: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert output(capsys, "--since", "1h", "--by", "outcome").splitlines()[1].split()[:2] == [
        "success",
        "2",
    ]
    assert "0.000250" in output(capsys, "--since", "1h")
    assert output(capsys, "--until", "1h").splitlines()[-1].split()[:2] == ["total", "1"]
    assert (
        output(capsys, "--until", "7d") == "No requests are recorded in ledger.db in that period.\n"
    )


def test_csv_has_a_row_per_group(filled: None, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = csv.DictReader(io.StringIO(output(capsys, "--by", "model", "--format", "csv")))
    assert (first["model"], first["requests"], first["cost_usd"]) == (
        "fake-large",
        "3",
        "1234.50025",
    )
    assert (second["model"], second["cost_usd"], second["unpriced"]) == ("other", "", "1")


def test_json_has_data_and_a_total(filled: None, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(output(capsys, "--by", "provider", "--format", "json"))
    assert report["data"] == [{"provider": "fake", **report["total"]}]
    assert report["timezone"] == "local"


def test_an_empty_ledger_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys) == "No requests are recorded in ledger.db yet.\n"
    assert json.loads(output(capsys, "--format", "json"))["total"]["requests"] == 0
    assert len(output(capsys, "--format", "csv").splitlines()) == 1


def test_another_ledger_can_be_read(filled: None, capsys: pytest.CaptureFixture[str]) -> None:
    (Path("a b?.db")).write_bytes(Path("ledger.db").read_bytes())
    Path("ledger.db").unlink()
    assert "total" in output(capsys, "--ledger", "a b?.db")
    assert "yet" in output(capsys, "--ledger", "sqlite:///ledger.db")


def test_pruning_removes_old_requests(filled: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "--prune-before", "2d") == "requests removed from ledger.db: 1\n"
    assert output(capsys).splitlines()[-2].split()[:2] == ["total", "3"]


@pytest.mark.parametrize(
    ("arguments", "env", "line"),
    [
        (["--since", "soon"], "sqlite:///a", "--since must be a span"),
        (["--until", "soon"], "sqlite:///a", "--until must be a span"),
        (["--prune-before", ""], "sqlite:///a", "--prune-before must be a span"),
        (["--ledger", "sqlite:"], "sqlite:///a", "--ledger must be off, or sqlite:///"),
        ([], "mysql://a", "LEDGER must be off, or sqlite:///"),
        ([], "off", "LEDGER is off"),
    ],
)
def test_an_error_is_one_line(
    arguments: list[str],
    env: str,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEDGER", env)
    error = output(capsys, *arguments, code=2)
    assert error.startswith(f"nexus-gateway: {line}")
    assert error.count("\n") == 1


def test_an_unreadable_ledger_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "ledger.db").write_bytes(b"no database " * 1000)
    assert "ledger.db cannot be used: file is not a database." in output(capsys, code=1)


def test_costs_need_the_extra(
    filled: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "find_spec", lambda name: None)
    assert "pip install '.[prices]'" in output(capsys)


def test_only_serve_has_a_default_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEDGER", "")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    flags = dict.fromkeys(("host", "port", "workers", "log_level"))
    env = serve_environment(SimpleNamespace(env_file=".env", **flags))  # type: ignore[arg-type]
    assert Settings.from_env(env).ledger == "/state/nexus-gateway/ledger.sqlite3"
    assert Settings().ledger == ""
