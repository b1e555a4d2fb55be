"""The documentation as a site: it builds without a warning, and no link of it is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "Quick start" in (tmp_path / "index.html").read_text(encoding="utf-8")
    endpoints = (tmp_path / "endpoints" / "index.html").read_text(encoding="utf-8")
    assert "POST /v1/chat/completions" in endpoints


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = str(config["nav"])
    for page in (ROOT / "docs").glob("*.md"):
        assert f"'{page.name}'" in listed
