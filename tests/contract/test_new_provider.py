"""`nexus-gateway new-provider`: its output is installed, tested and served unchanged."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import aiohttp
import pytest
from distributions import INSTALL, ROOT, Installed, bare_environment, gateway, run, streamed
from plugin_points import point

from nexus_gateway.cli.main import main
from nexus_gateway.discovery import PROVIDERS, discover
from nexus_gateway.provider import Provider
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

pytestmark = pytest.mark.timeout(600)  # see test_distributions
NAMES = {"openai": "acme-ai", "custom": "made_up"}
# A made-up answer in the made-up format.
WORDS = b"""\
event: word
data: {"text": "An answer"}

event: end
data: {"why": "limit", "tokens_in": 3, "tokens_out": 2}

"""


@pytest.fixture(scope="module")
def written(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by dialect: written by the installed command, and installed as an author would."""
    folder = tmp_path_factory.mktemp("written")
    command = (installed.command("nexus-gateway"), "new-provider", "--dialect")
    for dialect, name in NAMES.items():
        run(*command, dialect, name, cwd=folder, env=bare_environment())
    folders = {dialect: folder / f"nexus-{name}" for dialect, name in NAMES.items()}
    editable = [word for written in folders.values() for word in ("-e", written)]
    run(*INSTALL, installed.command("python"), *editable, cwd=folder)
    return folders


@pytest.mark.parametrize("dialect", NAMES)
def test_its_own_tests_pass(installed: Installed, written: dict[str, Path], dialect: str) -> None:
    # An author has no other plugins of pytest; these take the longest to import.
    foreign = ("-p", "no:schemathesis", "-p", "no:hypothesispytest")
    command = (installed.command("python"), "-m", "pytest", "-W", "error", *foreign)
    out = run(*command, cwd=written[dialect], env=bare_environment())
    assert " passed" in out
    assert ("skipped" in out) == (dialect == "openai")  # there are no recordings yet


def test_both_are_listed_with_their_distributions(
    installed: Installed, written: dict[str, Path]
) -> None:
    out = run(
        installed.command("nexus-gateway"), "providers", cwd=installed.empty, env=bare_environment()
    )
    rows = [line.split() for line in out.partition("left out:")[0].splitlines() if line]
    assert ["acme-ai", "nexus-acme-ai", "0.1.0", "nexus_acme_ai:AcmeAi"] in [r[:4] for r in rows]
    assert ["made_up", "nexus-made_up", "0.1.0", "nexus_made_up:MadeUp"] in [r[:4] for r in rows]


async def test_both_answer_through_a_gateway(
    installed: Installed, written: dict[str, Path]
) -> None:
    async with FakeUpstream() as acme, FakeUpstream() as made_up:
        acme.default = Reply(text="An answer")
        made_up.default = Reply(body=WORDS, content_type="text/event-stream")
        variables = {
            "ACME_AI_KEY_1": "acme-key-secret",
            "ACME_AI_BASE_URL": acme.base_url,
            "MADE_UP_KEY_1": "made-up-key-secret",
            "MADE_UP_BASE_URL": made_up.base_url,
        }
        async with gateway(installed, **variables) as served:
            reply = streamed(await served.chat("acme-ai", stream=True))
            assert reply == ("An answer", "stop")
            reply = streamed(await served.chat("made_up", stream=True))
            assert reply == ("An answer", "length")
            assert await served.stop() == 0
    assert (acme.requests[0].key, acme.requests[0].body["model"]) == (
        "acme-key-secret",
        "acme-ai-large",
    )
    (received,) = made_up.requests
    assert (received.path, received.key) == ("/v1/generate", "made-up-key-secret")
    assert received.body["turns"][0] == {"by": "system", "parts": [{"text": "Be short."}]}


# Errors that an author can make in a plugin: its dialect, the change, and the message.
BREAKS = {
    "library": (
        "openai",
        "\nfrom nexus_",
        "\nimport a_missing_library\nfrom nexus_",
        "a_missing_library",
    ),
    "stream": (
        "custom",
        'yield answer.text(data["text"])',
        'yield answer.text(data["text"]); raise RuntimeError("a bug")',
        "failed in its stream",
    ),
}


@pytest.mark.parametrize("broken", BREAKS)
async def test_a_broken_plugin_affects_no_other(
    installed: Installed, written: dict[str, Path], broken: str
) -> None:
    dialect, old, new, message = BREAKS[broken]
    (module,) = written[dialect].glob("nexus_*.py")
    good = module.read_text(encoding="utf-8")
    assert old in good
    module.write_text(good.replace(old, new, 1), encoding="utf-8")
    try:
        async with FakeUpstream() as upstream:
            upstream.default = Reply(body=WORDS * 2, content_type="text/event-stream")
            upstream.defaults["groq-key-secret"] = Reply(text="An answer")
            names = ("ACME_AI", "MADE_UP", "GROQ")
            variables = {f"{n}_BASE_URL": upstream.base_url for n in names}
            variables |= {f"{n}_KEY_1": f"{n.lower()}-key-secret" for n in names}
            variables["MAX_ATTEMPTS"] = "1"  # without pauses
            async with gateway(installed, **variables) as served:
                body = {"model": NAMES[dialect], "messages": [{"role": "user", "content": "Hi"}]}
                for stream in (True, False):
                    async with aiohttp.ClientSession() as session:
                        url = served.url + "/v1/chat/completions"
                        async with session.post(url, json={**body, "stream": stream}) as answer:
                            text = await answer.text()
                    assert "bug" not in text
                    assert "Traceback" not in text
                assert streamed(await served.chat("groq", stream=True)) == ("An answer", "stop")
                assert await served.stop() == 0
    finally:
        module.write_text(good, encoding="utf-8")
    screen = " ".join(served.output.split())  # wrapped at the terminal's width
    assert re.search(rf"{NAMES[dialect]} \(nexus-{NAMES[dialect]} 0\.1\.0.*{message}", screen)
    assert "key-secret" not in served.output


def test_its_code_is_typed_and_lint_free(written: dict[str, Path]) -> None:
    tools, wide = Path(sys.executable).parent, ("--isolated", "--line-length", "100", ".")
    for folder in written.values():
        run(tools / "ruff", "check", *wide, cwd=folder)
        run(tools / "ruff", "format", "--check", *wide, cwd=folder)
    modules = [m for f in written.values() for m in (*f.glob("*.py"), *f.glob("tests/*.py"))]
    places = os.pathsep.join(map(str, [ROOT, *written.values()]))
    # The cache of `make lint`, which has the gateway's own types already.
    known = ("--cache-dir", ROOT / ".mypy_cache")
    command = (tools / "mypy", "--strict", *known, *modules)
    run(*command, cwd=modules[0].parent, env=bare_environment(MYPYPATH=places))


@pytest.mark.parametrize("dialect", NAMES)
def test_all_placeholders_are_marked(
    dialect: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(tmp_path, "acme", "--dialect", dialect) == 0
    module = (tmp_path / "nexus_acme.py").read_text(encoding="utf-8")
    made_up = [line for line in module.splitlines() if re.search(r"acme\.example|models = ", line)]
    assert len(made_up) == 2
    assert all("CHANGE ME" in line for line in made_up)
    assert 'grep -rn "CHANGE ME"' in (tmp_path / "README.md").read_text(encoding="utf-8")


def write(folder: Path, *words: str) -> int:
    return main(["new-provider", *words, "--dir", str(folder)])


def test_it_lists_its_files_and_the_next_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-provider", "acme"]) == 0
    listed, _, to_type = capsys.readouterr().out.partition("\nnext:\n")
    written_files = {str(p.relative_to("nexus-acme")) for p in Path("nexus-acme").rglob("*.*")}
    assert {line.strip() for line in listed.splitlines()[1:]} == written_files | {"LICENSE"}
    commands = ["cd nexus-acme", "pip install -e '.[test]'", "pytest"]
    assert [line.strip() for line in to_type.splitlines()[:3]] == commands


def test_an_empty_folder_is_used_and_its_path_is_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made for it"
    folder.mkdir()
    assert write(folder, "acme") == 0
    assert f"cd '{folder}'" in capsys.readouterr().out
    licence = (folder / "LICENSE").read_text(encoding="utf-8")
    assert f"{date.today().year} the authors of nexus-acme" in licence


NOT_NAMES = ["", "Acme", "acme ai", "acme.ai", "3acme", "_acme", "acme-", "acme\n", "a/../b"]
RESERVED = ["auto", "nexus", "response", "gateway", "gateway-plugins"]


@pytest.mark.parametrize("name", [*NOT_NAMES, *RESERVED, "groq", "local", "demo"])
def test_an_invalid_name_is_rejected(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    assert write(folder, name) == 2
    assert not folder.exists()
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"nexus-gateway: a provider cannot be called '.*': .+\.\n", err)


@pytest.mark.parametrize("name", ["a", "acme", "acme-ai", "acme_ai", "acme2", "a--b"])
def test_a_valid_name_is_accepted_by_discovery(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(tmp_path, name) == 0
    setup = configparser.ConfigParser()
    setup.read(tmp_path / "setup.cfg", encoding="utf-8")
    value = setup["options.entry_points"]["nexus_gateway.providers"].partition("=")[2].strip()
    module, _, class_name = value.partition(":")
    cls = type(class_name, (Provider,), {"title": class_name})
    assert discover(PROVIDERS, [point(name, cls)]).problems == []
    assert (tmp_path / f"{module}.py").is_file()


@pytest.mark.parametrize("name", ["none", "true", "any", "call", "translator", "wire", "chunk"])
def test_no_class_has_the_name_of_an_import(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(tmp_path, name, "--dialect", "custom") == 0
    for path in (tmp_path / f"nexus_{name}.py", tmp_path / "tests" / f"test_{name}.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        imported = [a.name for node in body if isinstance(node, ast.ImportFrom) for a in node.names]
        defined = [node.name for node in body if isinstance(node, ast.ClassDef)]
        bound = imported + defined
        assert len(bound) == len(set(bound))
        assert f"Nexus{name.capitalize()}" in bound


def test_a_folder_that_is_not_empty_is_not_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    for place in (tmp_path, tmp_path / "mine.txt"):
        assert write(place, "acme") == 2
        assert capsys.readouterr().err == (
            f"nexus-gateway: {str(place)!r} exists and is not an empty folder.\n"
        )
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_created_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-file").touch()
    assert write(tmp_path / "a-file" / "below", "acme") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written" in line


def test_an_unknown_dialect_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        write(tmp_path, "acme", "--dialect", "latin")
    assert "openai" in capsys.readouterr().err


def test_it_does_not_import_the_server() -> None:
    code = "import sys, nexus_gateway.cli.new_provider; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
