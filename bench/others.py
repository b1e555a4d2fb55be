"""Other gateways from package registries: how they are installed and started.

Each has its own environment below `.peers/`, created on first use; remove its folder to install it
again. Versions are pinned, so that runs are comparable.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from peers import Peer
from processes import HERE

FOLDER = HERE / ".peers"
INSTALL_S = 600
ROUTERS = {
    "sglang-router": ("sglang-router==0.3.2", ("sglang-router", "launch"), "warn"),
    "vllm-router": ("vllm-router==0.1.17", ("vllm-router",), "warning"),
    "smg": ("smg==1.13.0", ("smg", "launch"), "warn"),
}
LITELLM = "litellm[proxy]==1.106.2"
LITELLM_CONFIG = """\
model_list:
  - model_name: any
    litellm_params: {model: openai/any, api_base: os.environ/BENCH_UPSTREAM, api_key: none}
"""
# Newer versions of the overridden packages satisfy its package.json and break every stream.
PORTKEY = {
    "private": True,
    "dependencies": {"@portkey-ai/gateway": "1.15.2"},
    "overrides": {"hono": "4.9.7", "@hono/node-server": "1.13.5"},
}
# It has no option for the address, and would listen on all interfaces.
LOOPBACK = """\
const { Server } = require("net");
const listen = Server.prototype.listen;
Server.prototype.listen = function (port, ...rest) {
  const done = rest.filter((word) => typeof word === "function");
  return listen.call(this, { port: Number(port), host: "127.0.0.1" }, ...done);
};
"""


class CannotInstall(Exception):
    """A peer cannot be installed; the text is the reason."""


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the installers, with fixed words
            command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(str(error)) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"{command[0]} failed"]
        raise CannotInstall(lines[-1])
    return done.stdout


def _installed(name: str, wanted: str, install: Callable[[Path], None]) -> Path:
    """Return a peer's folder; install on first use, or if `wanted` has changed."""
    folder, stamp = FOLDER / name, FOLDER / name / "installed"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        print(f"installing {name}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        install(folder)
        stamp.write_text(wanted, encoding="utf-8")
    return folder


def _from_pypi(name: str, requirement: str) -> tuple[Path, str]:
    """Install from PyPI; return the folder of the programs, and the version."""

    def install(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", str(folder)], folder)
        _run([str(folder / "bin/pip"), "install", "--quiet", requirement], folder)

    programs = _installed(name, requirement, install) / "bin"
    code = f"from importlib.metadata import version; print(version('{name}'))"
    return programs, _run([str(programs / "python"), "-c", code], programs).strip()


def _router(name: str) -> Peer:
    requirement, (program, *words), quiet = ROUTERS[name]
    programs, version = _from_pypi(name, requirement)
    options = ["--host", "127.0.0.1", "--port", "{port}", "--worker-urls", "{upstream}"]
    options += ["--prometheus-host", "127.0.0.1", "--prometheus-port", "{spare}"]
    options += ["--log-level", quiet]
    return Peer(name, (str(programs / program), *words, *options), version=version)


def _litellm() -> Peer:
    programs, version = _from_pypi("litellm", LITELLM)
    config = programs.parent / "config.yaml"
    config.write_text(LITELLM_CONFIG, encoding="utf-8")
    command = (str(programs / "litellm"), "--config", str(config), "--telemetry", "False")
    env = {
        "BENCH_UPSTREAM": "{upstream}/v1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        "LITELLM_LOG": "ERROR",
    }
    return Peer(
        "litellm",
        (*command, "--host", "127.0.0.1", "--port", "{port}"),
        env,
        version=version,
        start_s=90,
        share=0.02,
    )


def _portkey() -> Peer:
    def install(folder: Path) -> None:
        (folder / "package.json").write_text(json.dumps(PORTKEY), encoding="utf-8")
        (folder / "loopback.cjs").write_text(LOOPBACK, encoding="utf-8")
        _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"], folder)

    folder = _installed("portkey", json.dumps(PORTKEY) + LOOPBACK, install)
    package = folder / "node_modules/@portkey-ai/gateway"
    metadata = json.loads((package / "package.json").read_text(encoding="utf-8"))
    node = ("node", "--require", str(folder / "loopback.cjs"))
    return Peer(
        "portkey",
        (*node, str(package / "build/start-server.js"), "--port={port}", "--headless"),
        headers=(
            "x-portkey-provider:openai",
            "x-portkey-custom-host:{upstream}/v1",
            "authorization:Bearer none",
        ),
        version=metadata["version"],
        share=0.25,
    )


NAMES = (*ROUTERS, "litellm", "portkey")


def install(name: str) -> Peer:
    """Return a peer, and install it if needed."""
    os.makedirs(FOLDER, exist_ok=True)
    if name in ROUTERS:
        return _router(name)
    return _litellm() if name == "litellm" else _portkey()
