"""The pages of the site that are not files in this folder.

README and the other texts of the root come from there, the endpoints from the OpenAPI document.
Links are written for a reader of the repository, and changed here for the site.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from nexus_gateway.web.app import ROUTES
from nexus_gateway.web.openapi import document

ROOT = Path(__file__).resolve().parents[1]
# The page of each text.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "SECURITY.md": "SECURITY.md",
    "bench/README.md": "bench.md",
}
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and the files that a page links to."""
    linked: set[Path] = set()
    for source, page in PAGES.items():
        text, targets = _for_the_site(ROOT / source)
        files.append(File.generated(config, page, content=text))
        linked |= targets
    for written in (ROOT / "docs").glob("*.md"):
        linked |= _for_the_site(written)[1]
    files.append(File.generated(config, "endpoints.md", content="\n".join(_endpoints())))
    for path in sorted(linked):
        name, content = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        files.append(File.generated(config, f"files/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    source = ROOT / "docs" / page.file.src_uri
    return _for_the_site(source)[0] if source.exists() else markdown


def _for_the_site(source: Path) -> tuple[str, set[Path]]:
    """Return a text with the site's links, and the files of the repository that it links to."""
    linked: set[Path] = set()

    def link(match: re.Match[str]) -> str:
        path = (source.parent / match[1]).resolve()
        name, anchor = path.relative_to(ROOT).as_posix(), match[2] or ""
        if name in PAGES:
            return f"]({PAGES[name]}{anchor})"
        if name.startswith("docs/"):
            return f"]({name.removeprefix('docs/')}{anchor})"
        if path.is_file():
            linked.add(path)
            return f"](files/{name})"
        return "](CONTRIBUTING.md)"  # a folder

    return LINK.sub(link, source.read_text(encoding="utf-8")), linked


def _endpoints() -> Iterator[str]:
    described = document(ROUTES)
    yield "# Endpoints\n\nFrom the document that the gateway serves at `/openapi.json`.\n"
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield f"## {method.upper()} {path}\n\n{operation['summary']}.\n"
            for parameter in operation["parameters"]:
                text = parameter.get("description", "Required.")
                yield f"- `{parameter['name']}` ({parameter['in']}): {text}"
            yield "\n| status | body | |\n|---|---|---|"
            for status, response in operation["responses"].items():
                kinds = ", ".join(f"`{kind}`" for kind in response["content"])
                yield f"| {status} | {kinds} | {response['description']} |"
            yield ""
