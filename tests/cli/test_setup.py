"""`nexus-gateway setup`: what it prints, and what it writes into files that exist already."""

from __future__ import annotations

import json
import stat
import tomllib
from pathlib import Path

import pytest
import yaml

from nexus_gateway.cli import main
from nexus_gateway.cli.setup import clients, filled

ROOT = Path(__file__).resolve().parents[2]
URL, KEY = "http://gateway.example:8080", "caller-key"
PARTS = [(id, part) for id, client in clients().items() for part in filled(client, URL, KEY)]


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def setup(*words: str) -> int:
    return main(["setup", *words, "--url", URL, "--key", KEY])


@pytest.mark.parametrize(("id", "part"), PARTS)
def test_a_part_is_valid_in_its_format(id: str, part: dict[str, str]) -> None:
    assert "{{" not in part["text"]
    match part["format"]:
        case "json":
            json.loads(part["text"])
        case "toml":
            tomllib.loads(part["text"])
        case "yaml":
            yaml.safe_load(part["text"])
        case "python":
            compile(part["text"], id, "exec")
        case "env":
            assert all("=" in line for line in part["text"].splitlines())
        case other:
            assert other in ("sh", "js")


@pytest.mark.parametrize("id", clients())
def test_the_documentation_has_the_same(id: str) -> None:
    documented = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    assert f"**{clients()[id]['title']}** (`{id}`)" in documented
    for part in filled(clients()[id], "http://127.0.0.1:3000", "caller"):
        assert f"\n{part['text']}\n```" in documented
        assert part.get("file", "") in documented


@pytest.mark.parametrize("id", clients())
def test_the_settings_name_the_gateway(id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert setup(id) == 0
    out = capsys.readouterr().out
    assert URL in out
    assert KEY in out


@pytest.mark.parametrize("id", [id for id, c in clients().items() if "file" in c["parts"][0]])
def test_what_is_written_is_what_was_printed(id: str, home: Path) -> None:
    assert setup(id, "--write") == 0
    for part in clients()[id]["parts"]:
        if "file" in part:
            file = home / part["file"].removeprefix("~/")
            assert URL in file.read_text() or KEY in file.read_text()
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    # Once more changes nothing, and makes no backup.
    before = {path: path.read_text() for path in home.rglob("*") if path.is_file()}
    assert setup(id, "--write") == 0
    assert {path: path.read_text() for path in home.rglob("*") if path.is_file()} == before


def test_a_file_that_others_could_read_is_closed_to_them(home: Path) -> None:
    path = home / ".claude" / "settings.json"
    path.parent.mkdir()
    path.write_text("{}")
    path.chmod(0o644)
    assert setup("claude-code", "--write") == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_changes_in_a_row_keep_what_was_there_first(home: Path) -> None:
    path = home / ".claude" / "settings.json"
    path.parent.mkdir()
    path.write_text('{"env": {"NAME": "Zoë"}}')
    assert setup("claude-code", "--write") == 0
    assert main(["setup", "claude-code", "--write", "--key", "another"]) == 0
    kept = {copy.read_text() for copy in path.parent.glob("*.bak")}
    assert '{"env": {"NAME": "Zoë"}}' in kept
    assert len(kept) == 2
    assert '"NAME": "Zoë"' in path.read_text()


OLD_TOML = 'sandbox_mode = "read-only"\n\n[tools]\nweb_search = true\n'


@pytest.mark.parametrize(
    ("id", "file", "old", "kept"),
    [
        (
            "claude-code",
            ".claude/settings.json",
            '{"env": {"A": "1"}, "model": "opus"}',
            '"A": "1"',
        ),
        ("opencode", ".config/opencode/opencode.json", '{"theme": "dark"}', '"theme": "dark"'),
        ("codex", ".codex/config.toml", OLD_TOML, "web_search = true"),
        ("qwen-code", ".qwen/.env", "OTHER=1\nOPENAI_API_KEY=old\n", "OTHER=1"),
        ("aider", ".aider.conf.yml", "dark-mode: true\n", "dark-mode: true"),
    ],
)
def test_what_was_there_is_kept(id: str, file: str, old: str, kept: str, home: Path) -> None:
    path = home / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(old)
    assert setup(id, "--write") == 0
    text = path.read_text()
    assert kept in text
    assert KEY in text or "NEXUS_GATEWAY_KEY" in text
    assert "API_KEY=old" not in text
    (backup,) = path.parent.glob(f"{path.name}.*.bak")
    assert backup.read_text() == old
    if id == "codex":
        parsed = tomllib.loads(text)
        assert parsed["sandbox_mode"] == "read-only"
        assert parsed["model_providers"]["nexus"]["base_url"] == f"{URL}/v1"
        assert parsed["tools"] == {"web_search": True}


@pytest.mark.parametrize(
    ("id", "file", "old"),
    [
        ("claude-code", ".claude/settings.json", b"{ // a comment\n}"),
        ("claude-code", ".claude/settings.json", b'["a list"]'),
        ("claude-code", ".claude/settings.json", b'{"env": "a text"}'),
        ("aider", ".aider.conf.yml", b"name: \xff"),
        ("codex", ".codex/config.toml", b'model = "gpt"\n'),
        ("codex", ".codex/config.toml", b"this is = = no TOML"),
        ("continue", ".continue/config.yaml", b"models:\n  - name: mine\n"),
    ],
)
def test_what_cannot_be_merged_is_left(
    id: str, file: str, old: bytes, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(old)
    assert setup(id, "--write") == 2
    assert str(path) in capsys.readouterr().err
    assert path.read_bytes() == old
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("folder", [".claude/settings.json", ".claude"])
def test_what_cannot_be_written_has_one_line(
    folder: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / folder
    path.mkdir(parents=True) if folder.endswith(".json") else path.touch()
    assert setup("claude-code", "--write") == 2
    err = capsys.readouterr().err
    assert f"{home}/.claude/settings.json" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["unknown"], "unknown client 'unknown'; one of claude-code, "),
        (["litellm", "--write"], "litellm has no configuration file"),
    ],
)
def test_a_mistake_has_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup(*words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_key_that_would_need_quoting_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["setup", "codex", "--key", 'a"b']) == 2
    assert 'a"b' not in capsys.readouterr().err


def test_the_settings_of_the_gateway_are_the_defaults(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for host, shown in (("", "127.0.0.1"), ("::", "[::1]"), ("192.0.2.1,::1", "192.0.2.1")):
        env = f"HOST={host}\nPORT=4321\nGATEWAY_KEYS=the-first,the-second\n"
        (home / ".env").write_text(env)
        assert main(["setup", "openai-python"]) == 0
        out = capsys.readouterr().out
        assert f'base_url="http://{shown}:4321/v1", api_key="the-first"' in out


def test_without_a_name_the_clients_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["setup"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*clients()]
