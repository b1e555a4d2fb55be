"""The clients: where they come from, and how each is pointed at the gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.backends import FOUND
from clients.registries import Packages
from clients.scenarios import Scenario

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
    commands: Callable[[Task], Sequence[Sequence[str]]]
    env: Callable[[Task], Mapping[str, str]] = lambda task: {}
    files: Callable[[Task], Mapping[str, str]] = lambda task: {}
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


def _claude_code(task: Task) -> list[list[str]]:
    first, *later = task.scenario.prompts
    read = ("--allowedTools", "Read")
    return [["claude", "-p", first, *read], *(["claude", "-p", "-c", p, *read] for p in later)]


def _codex(task: Task) -> list[list[str]]:
    first, *later = task.scenario.prompts
    picture = ["-i", str(task.picture)] if task.scenario.image else []
    command = ["codex", "exec", "--skip-git-repo-check"]
    return [[*command, first, *picture], *([*command, "resume", "--last", p] for p in later)]


def _codex_files(model: str) -> Callable[[Task], Mapping[str, str]]:
    def files(task: Task) -> Mapping[str, str]:
        lines = (
            *(model and [f'model = "{model}"']),
            'model_provider = "gateway"',
            "[model_providers.gateway]",
            'name = "Nexus Gateway"',
            f'base_url = "{task.url}/v1"',
            'wire_api = "responses"',
            'env_key = "GATEWAY_KEY"',
        )
        return {".codex/config.toml": "\n".join(lines)}

    return files


def _codex_client(name: str, model: str) -> Client:
    return Client(
        name=name,
        packages=Packages("codex", ("@openai/codex",), npm=True),
        package="@openai/codex",
        commands=_codex,
        env=lambda task: {"GATEWAY_KEY": "caller"},
        files=_codex_files(model),
        lacks=frozenset({"plain"}),
    )


def _opencode(task: Task) -> list[list[str]]:
    first, *later = task.scenario.prompts
    picture = ["-f", str(task.picture)] if task.scenario.image else []
    return [
        ["opencode", "run", first, *picture],
        *(["opencode", "run", "--continue", prompt] for prompt in later),
    ]


def _opencode_client(name: str, npm: str) -> Client:
    def files(task: Task) -> Mapping[str, str]:
        sees = {"attachment": True, "modalities": {"input": ["text", "image"], "output": ["text"]}}
        provider = {
            "npm": npm,
            "name": "Nexus Gateway",
            "options": {"baseURL": f"{task.url}/v1", "apiKey": "caller"},
            "models": {"auto": {"name": "auto", **sees}},
        }
        config = {"provider": {"gateway": provider}, "model": "gateway/auto"}
        return {".config/opencode/opencode.json": json.dumps(config)}

    return Client(
        name=name,
        packages=Packages("opencode", ("opencode-ai",), npm=True),
        package="opencode-ai",
        commands=_opencode,
        files=files,
        lacks=frozenset({"plain"}),
    )


def _qwen_code(task: Task) -> list[list[str]]:
    first, *later = task.scenario.prompts
    picture = f" @{task.picture.name}" if task.scenario.image else ""
    return [["qwen", first + picture], *(["qwen", "--continue", prompt] for prompt in later)]


def _qwen_env(task: Task) -> Mapping[str, str]:
    key = {"OPENAI_API_KEY": "caller", "OPENAI_MODEL": "auto"}
    return {"OPENAI_BASE_URL": f"{task.url}/v1", **key}


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
    Client(
        name="claude code",
        packages=Packages("claude-code", ("@anthropic-ai/claude-code",), npm=True),
        package="@anthropic-ai/claude-code",
        commands=_claude_code,
        env=lambda task: {"ANTHROPIC_BASE_URL": task.url, "ANTHROPIC_AUTH_TOKEN": "caller"},
        lacks=frozenset({"plain", "image"}),
    ),
    _codex_client("codex", ""),
    _codex_client("codex auto", "auto"),
    _opencode_client("opencode chat", "@ai-sdk/openai-compatible"),
    _opencode_client("opencode responses", "@ai-sdk/openai"),
    _opencode_client("opencode messages", "@ai-sdk/anthropic"),
    Client(
        name="qwen code",
        packages=Packages("qwen-code", ("@qwen-code/qwen-code",), npm=True),
        package="@qwen-code/qwen-code",
        commands=_qwen_code,
        env=_qwen_env,
        # It sends pictures only to models that it knows.
        lacks=frozenset({"plain", "image"}),
    ),
)
