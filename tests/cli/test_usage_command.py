"""`nexus-gateway usage`."""

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


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["usage", *words]) == code
    captured = capsys.readouterr()
    assert not (captured.out and captured.err)
    return captured.out or captured.err


def test_a_table(filled: None, capsys: pytest.CaptureFixture[str]) -> None:
    head, first, second, total, note = told(capsys, "--by", "key").splitlines()
    assert head.split()[:4] == ["key", "requests", "failed", "prompt"]
    assert first.split() == ["key-2", "3", "1", "24", "0", "6", "0", "1,234.50", "5", "9"]
    assert second.split()[:7] == ["(none)", "1", "0", "12", "0", "3", "0"]
    assert total.split()[:4] == ["total", "4", "1", "36"]
    assert note == "The price of 1 of these requests is unknown."


def test_since_and_by(filled: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "--since", "1h", "--by", "outcome").splitlines()[1].split()[:2] == [
        "success",
        "2",
    ]
    assert "0.000250" in told(capsys, "--since", "1h")
    assert told(capsys, "--until", "1h").splitlines()[-1].split()[:2] == ["total", "1"]
    assert (
        told(capsys, "--until", "7d") == "No requests are recorded in ledger.db in that period.\n"
    )


def test_csv(filled: None, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = csv.DictReader(io.StringIO(told(capsys, "--by", "model", "--format", "csv")))
    assert (first["model"], first["requests"], first["cost_usd"]) == (
        "fake-large",
        "3",
        "1234.50025",
    )
    assert (second["model"], second["cost_usd"], second["unpriced"]) == ("other", "", "1")


def test_json(filled: None, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads(told(capsys, "--by", "provider", "--format", "json"))
    assert said["data"] == [{"provider": "fake", **said["total"]}]
    assert said["timezone"] == "local"


def test_an_empty_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys) == "No requests are recorded in ledger.db yet.\n"
    assert json.loads(told(capsys, "--format", "json"))["total"]["requests"] == 0
    assert len(told(capsys, "--format", "csv").splitlines()) == 1


def test_another_ledger(filled: None, capsys: pytest.CaptureFixture[str]) -> None:
    (Path("a b?.db")).write_bytes(Path("ledger.db").read_bytes())
    Path("ledger.db").unlink()
    assert "total" in told(capsys, "--ledger", "a b?.db")
    assert "yet" in told(capsys, "--ledger", "sqlite:///ledger.db")


def test_pruning(filled: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "--prune-before", "2d") == "requests removed from ledger.db: 1\n"
    assert told(capsys).splitlines()[-2].split()[:2] == ["total", "3"]


@pytest.mark.parametrize(
    ("words", "env", "line"),
    [
        (["--since", "soon"], "sqlite:///a", "--since must be a span"),
        (["--until", "soon"], "sqlite:///a", "--until must be a span"),
        (["--prune-before", ""], "sqlite:///a", "--prune-before must be a span"),
        (["--ledger", "sqlite:"], "sqlite:///a", "--ledger must be off, or sqlite:///"),
        ([], "mysql://a", "LEDGER must be off, or sqlite:///"),
        ([], "off", "LEDGER is off"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    words: list[str],
    env: str,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEDGER", env)
    said = told(capsys, *words, code=2)
    assert said.startswith(f"nexus-gateway: {line}")
    assert said.count("\n") == 1


def test_a_file_that_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "ledger.db").write_bytes(b"no database " * 1000)
    assert "ledger.db cannot be used: file is not a database." in told(capsys, code=1)


def test_costs_need_the_extra(
    filled: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "find_spec", lambda name: None)
    assert "pip install '.[prices]'" in told(capsys)


def test_only_what_is_served_has_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEDGER", "")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    flags = dict.fromkeys(("host", "port", "workers", "log_level"))
    env = serve_environment(SimpleNamespace(env_file=".env", **flags))  # type: ignore[arg-type]
    assert Settings.from_env(env).ledger == "/state/nexus-gateway/ledger.sqlite3"
    assert Settings().ledger == ""
