"""`nexus-gateway setup`: the settings that point a client at the gateway.

They are in one table, which the Control Center shows as well: `web/static/clients.json`. A client
has parts; one with a `file` is a configuration file, into which `--write` merges it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from nexus_gateway.cli.banner import reachable
from nexus_gateway.cli.environment import environment
from nexus_gateway.errors import ConfigError
from nexus_gateway.settings import Settings
from nexus_gateway.web.handlers.page import files

_BEGIN, _END = "# >>> nexus-gateway", "# <<< nexus-gateway"
_ANY_KEY = "none-needed"  # clients insist on one
_PLAIN = re.compile(r"[\w.~+/=:@-]+", re.ASCII)


def clients() -> dict[str, dict[str, Any]]:
    """Return the table, by the names that the command takes."""
    return {client["id"]: client for client in json.loads(files()["clients.json"].body)}


def setup(arguments: argparse.Namespace) -> int:
    """Print a client's settings, or write them.

    Raises:
        ConfigError: there is no such client, or a file cannot be changed safely.
    """
    table = clients()
    if arguments.client is None:
        width = max(map(len, table))
        print("\n".join(f"{id:{width}}  {client['title']}" for id, client in table.items()))
        return 0
    if arguments.client not in table:
        raise ConfigError([f"unknown client {arguments.client!r}; one of {', '.join(table)}."])
    url, key = _address(arguments)
    if not _PLAIN.fullmatch(key):
        raise ConfigError(["--key has characters that files would need quoted: write it yourself."])
    parts = [*filled(table[arguments.client], url, key)]
    if not arguments.write:
        print("\n\n".join(map(_shown, parts)))
        return 0
    written = [part for part in parts if "file" in part]
    if not written:
        raise ConfigError([f"{arguments.client} has no configuration file; omit --write."])
    texts = [(Path(part["file"]).expanduser(), merged(part)) for part in written]
    for path, text in texts:
        try:
            _write(path, text)
        except OSError as error:
            raise ConfigError([f"{path} cannot be written: {error.strerror}."]) from None
    if rest := [part for part in parts if "file" not in part]:
        print("\n\n".join(map(_shown, rest)))
    return 0


def _address(arguments: argparse.Namespace) -> tuple[str, str]:
    settings = Settings.from_env(environment(arguments.env_file))
    url = arguments.url or f"http://{reachable(settings.host)}:{settings.port}"
    keys = settings.gateway_keys
    return url.rstrip("/").removesuffix("/v1"), (
        arguments.key or (keys[0].reveal() if keys else _ANY_KEY)
    )


def filled(client: dict[str, Any], url: str, key: str) -> Iterator[dict[str, str]]:
    """Yield a client's parts with an address and a key."""
    for part in client["parts"]:
        text = part["text"].replace("{{url}}", url).replace("{{key}}", key)
        yield {**part, "text": text}


def _shown(part: dict[str, str]) -> str:
    head = f"# {part['file']}\n" if "file" in part else ""
    note = f"{part['note']}\n" if "note" in part else ""
    return f"{note}{head}{part['text']}"


def merged(part: dict[str, str]) -> str:
    """Return a file's new content: everything that was in it, and the part.

    Raises:
        ConfigError: what is there cannot be read, or sets the same and cannot be replaced.
    """
    path = Path(part["file"]).expanduser()
    merge = {"json": _merged_json, "env": _merged_env, "toml": _merged_toml, "yaml": _merged_yaml}
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        return merge[part["format"]](old, part["text"]).strip() + "\n"
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: {error}; add the lines yourself (omit --write)."]) from None


def _merged_json(old: str, new: str) -> str:
    def joined(before: Any, after: Any) -> Any:
        if not isinstance(after, dict):
            return after
        if not isinstance(before, dict):
            raise ValueError(f"{json.dumps(before)} is there in place of an object")
        return {**before, **{k: joined(before.get(k, {}), v) for k, v in after.items()}}

    merged = joined(json.loads(old.strip() or "{}"), json.loads(new))
    return json.dumps(merged, indent=2, ensure_ascii=False)


def _merged_env(old: str, new: str) -> str:
    names = [line.partition("=")[0] for line in new.splitlines()]
    kept = [line for line in old.splitlines() if line.partition("=")[0].strip() not in names]
    return "\n".join([*kept, new])


def _merged_toml(old: str, new: str) -> str:
    """Put our keys before all tables, and our tables behind, in blocks that can be replaced."""
    keys, bracket, tables = new.partition("[")
    parts = (_block(keys.strip()), _without_blocks(old), _block(bracket + tables))
    text = "\n\n".join(part for part in parts if part)
    tomllib.loads(text)  # refuses what is set twice
    return text


def _merged_yaml(old: str, new: str) -> str:
    kept = _without_blocks(old)
    for name in re.findall(r"(?m)^([\w-]+):", new):
        if re.search(rf"(?m)^{name}\s*:", kept):
            raise ValueError(f"`{name}` is set already")
    return f"{kept}\n{_block(new)}"


def _block(text: str) -> str:
    return f"{_BEGIN}\n{text}\n{_END}"


def _without_blocks(text: str) -> str:
    return re.sub(rf"(?ms)^{_BEGIN}$.*?^{_END}$\n?", "", text).strip()


def _write(path: Path, text: str) -> None:
    """Write a file that only its user may read, as it has a key; keep what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)
    old = path.read_text(encoding="utf-8")
    if old == text:
        print(f"{path} has these settings already", file=sys.stderr)
        return
    backup = ""
    if old:
        # With microseconds: two calls in a row have two backups.
        copy = path.with_name(f"{path.name}.{datetime.now():%Y%m%d-%H%M%S-%f}.bak")
        shutil.copy2(path, copy)
        backup = f" (before: {copy})"
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}{backup}", file=sys.stderr)
