"""The wheel in an empty environment, as users install it: its requirements come from the index."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from distributions import Built, Gateway, bare_environment

pytestmark = pytest.mark.timeout(600)
RUNNERS = {
    "uvx": ("uv", "tool", "run", "--from"),
    "pipx": ("pipx", "run", "--spec"),
}


@pytest.mark.parametrize("runner", RUNNERS)
async def test_the_wheel_serves_from_an_empty_environment(
    built: Built, runner: str, tmp_path: Path
) -> None:
    folders = {"HOME": str(tmp_path), "PIPX_HOME": str(tmp_path / "pipx")}
    # Of the environment only where packages come from.
    index = {n: v for n, v in os.environ.items() if n.startswith(("PIP_", "SSL_", "UV_"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *RUNNERS[runner], built.gateway),
        *("nexus-gateway", "serve", "--port", "0"),
        cwd=tmp_path,
        env=bare_environment(**folders, **index),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        gateway = Gateway(process)
        await gateway.started(within_s=300)
        assert "data: [DONE]" in await gateway.chat("auto", stream=True)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()
