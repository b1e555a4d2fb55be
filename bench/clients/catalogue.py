"""The clients: where they come from, and how each is pointed at the gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clients.backends import FOUND
from clients.registries import Packages
from clients.scenarios import Scenario

from nexus_gateway.cli.setup import clients, filled

KEY = "caller"
# What is not tried with a client that is asked one question.
OF_AGENTS = ("image", "tools", "second")
PROGRAMS = Path(__file__).with_name("programs")
# One white pixel.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8"
    "/5+hHgAHggJ/PchI7wAAAABJRU5ErkJggg=="
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run of a client: what it is asked, and where the gateway is."""

    scenario: Scenario
    url: str
    note: Path
    picture: Path


Commands = Callable[[Task], Sequence[Sequence[str]]]
Named = Callable[[Task], Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Client:
    """A row of the table.

    Args:
        name: in the table, and for `--only`.
        packages: what it needs.
        package: the one whose version is shown.
        commands: returns its commands, to be run one after the other.
        env: returns variables.
        files: returns files in its home, by their names.
        lacks: what it cannot do, of `Scenario.needs`.
    """

    name: str
    packages: Packages
    package: str
    commands: Commands
    env: Named = lambda task: {}
    files: Named = lambda task: {}
    lacks: frozenset[str] = frozenset()


def _told(task: Task, more: Mapping[str, Any]) -> dict[str, str]:
    """Return the variable that tells a program of ours what to do."""
    scenario = task.scenario
    told = {
        **{"url": task.url, "prompts": scenario.prompts, "stream": scenario.stream},
        **{"tools": scenario.calls > 0, "thinking": scenario.thinking, "found": FOUND},
        "image": f"data:image/png;base64,{PIXEL}" if scenario.image else "",
    }
    return {"TASK": json.dumps({**told, **more})}


def _program(name: str, packages: Packages, package: str, file: str, **more: Any) -> Client:
    def commands(task: Task) -> list[list[str]]:
        program = packages.program(PROGRAMS / file)
        return [["node" if packages.npm else "python", str(program)]]

    return Client(
        name=name,
        packages=packages,
        package=package,
        commands=commands,
        env=lambda task: _told(task, more),
    )


PYTHON = Packages(
    "python", ("openai", "anthropic", "openai-agents", "langchain-openai", "langchain-anthropic")
)
AI_SDK_6 = Packages(
    "ai-sdk-6",
    ("ai@6", "@ai-sdk/openai@3", "@ai-sdk/anthropic@3", "@ai-sdk/openai-compatible@2", "zod"),
    npm=True,
)
AI_SDK_7 = Packages(
    "ai-sdk-7",
    ("ai@7", "@ai-sdk/openai@4", "@ai-sdk/anthropic@4", "@ai-sdk/openai-compatible@3", "zod"),
    npm=True,
)


def _setup(id: str) -> tuple[Named, Named]:
    """Return the files and the variables of `nexus-gateway setup`, for a home without any."""

    def files(task: Task) -> Mapping[str, str]:
        parts = filled(clients()[id], task.url, KEY)
        return {p["file"].removeprefix("~/"): p["text"] for p in parts if "file" in p}

    def env(task: Task) -> Mapping[str, str]:
        parts = filled(clients()[id], task.url, KEY)
        lines = [line for p in parts if p["format"] == "sh" for line in p["text"].splitlines()]
        words = (line.removeprefix("export ").partition("=") for line in lines)
        return {name: value.strip("'") for name, _, value in words}

    return files, env


def _from_setup(id: str, name: str, packages: Packages, commands: Commands, *lacks: str) -> Client:
    files, env = _setup(id)
    return Client(
        name=name,
        packages=packages,
        package=packages.names[0],
        commands=commands,
        env=env,
        files=files,
        lacks=frozenset(lacks),
    )


def _claude_code(task: Task) -> list[list[str]]:
    first, *later = task.scenario.prompts
    read = ("--allowedTools", "Read")
    return [["claude", "-p", first, *read], *(["claude", "-p", "-c", p, *read] for p in later)]


def _codex(task: Task) -> list[list[str]]:
    first, *later = task.scenario.prompts
    picture = ["-i", str(task.picture)] if task.scenario.image else []
    # Its sandbox needs a home that is not temporary; what it runs here only reads a file.
    free = ("--sandbox", "danger-full-access")
    command = ["codex", "exec", "--skip-git-repo-check", *free]
    return [[*command, first, *picture], *([*command, "resume", "--last", p] for p in later)]


def _codex_default(task: Task) -> Mapping[str, str]:
    """Return its file without a model: Codex then names its own."""
    ((name, text),) = _setup("codex")[0](task).items()
    return {name: text.replace('model = "auto"\n', "")}


CODEX = Packages("codex", ("@openai/codex",), npm=True)
OPENCODE = Packages("opencode", ("opencode-ai",), npm=True)


def _opencode(task: Task) -> list[list[str]]:
    first, *later = task.scenario.prompts
    picture = ["-f", str(task.picture)] if task.scenario.image else []
    return [
        ["opencode", "run", first, *picture],
        *(["opencode", "run", "--continue", prompt] for prompt in later),
    ]


def _opencode_with(npm: str) -> Named:
    def files(task: Task) -> Mapping[str, str]:
        ((name, text),) = _setup("opencode")[0](task).items()
        return {name: text.replace("@ai-sdk/openai-compatible", npm)}

    return files


def _qwen_code(task: Task) -> list[list[str]]:
    first, *later = task.scenario.prompts
    picture = f" @{task.picture.name}" if task.scenario.image else ""
    return [["qwen", first + picture], *(["qwen", "--continue", prompt] for prompt in later)]


def _aider(task: Task) -> list[list[str]]:
    quiet = ("--yes-always", "--no-git", "--no-check-update", "--no-show-model-warnings")
    stream = () if task.scenario.stream else ("--no-stream",)
    return [["aider", *quiet, *stream, "--message", task.scenario.prompts[0]]]


def _llm(task: Task) -> list[list[str]]:
    stream = () if task.scenario.stream else ("--no-stream",)
    first, *later = task.scenario.prompts
    ask = ("llm", "prompt", "-m", "nexus", *stream)
    return [[*ask, first], *([*ask, "-c", prompt] for prompt in later)]


def _continue(task: Task) -> list[list[str]]:
    return [["cn", "-p", task.scenario.prompts[0]]]


CLIENTS = (
    _program("openai chat", PYTHON, "openai", "openai_chat.py"),
    _program("openai responses", PYTHON, "openai", "openai_responses.py", items=False),
    _program("openai items", PYTHON, "openai", "openai_responses.py", items=True),
    _program("anthropic", PYTHON, "anthropic", "anthropic_messages.py"),
    _program("anthropic runner", PYTHON, "anthropic", "anthropic_runner.py"),
    *(
        _program(f"agents {api}", PYTHON, "openai-agents", "openai_agents.py", api=api)
        for api in ("chat", "responses")
    ),
    _program("langchain chat", PYTHON, "langchain-openai", "langchain_chat.py", api="chat"),
    _program(
        "langchain responses", PYTHON, "langchain-openai", "langchain_chat.py", api="responses"
    ),
    _program(
        "langchain messages", PYTHON, "langchain-anthropic", "langchain_chat.py", api="messages"
    ),
    *(
        _program(f"ai-sdk {packages.names[0][3:]} {api}", packages, "ai", "ai_sdk.mjs", api=api)
        for packages in (AI_SDK_6, AI_SDK_7)
        for api in ("chat", "responses", "messages")
    ),
    _from_setup(
        "claude-code",
        "claude code",
        Packages("claude-code", ("@anthropic-ai/claude-code",), npm=True),
        _claude_code,
        *("plain", "image"),
    ),
    replace(_from_setup("codex", "codex", CODEX, _codex, "plain"), files=_codex_default),
    _from_setup("codex", "codex auto", CODEX, _codex, "plain"),
    _from_setup("opencode", "opencode chat", OPENCODE, _opencode, "plain"),
    *(
        replace(
            _from_setup("opencode", f"opencode {api}", OPENCODE, _opencode, "plain"),
            files=_opencode_with(npm),
        )
        for api, npm in (("responses", "@ai-sdk/openai"), ("messages", "@ai-sdk/anthropic"))
    ),
    # It sends pictures only to models that it knows.
    _from_setup(
        "qwen-code",
        "qwen code",
        Packages("qwen-code", ("@qwen-code/qwen-code",), npm=True),
        _qwen_code,
        *("plain", "image"),
    ),
    _from_setup("aider", "aider", Packages("aider", ("aider-chat",)), _aider, *OF_AGENTS),
    _from_setup("llm", "llm", Packages("llm", ("llm",)), _llm, "image", "tools"),
    _from_setup(
        "continue",
        "continue",
        Packages("continue", ("@continuedev/cli",), npm=True),
        _continue,
        *("plain", *OF_AGENTS),
    ),
)
