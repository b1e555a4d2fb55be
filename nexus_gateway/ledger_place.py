"""Where the ledger lies: what LEDGER says, and where it is when nothing is said."""

from __future__ import annotations

import os.path
from collections.abc import Mapping

OFF = "off"
URL = "sqlite:///"


def read_place(text: str) -> str:
    """Read a place, written as SQLAlchemy does: `sqlite:///relative` or `sqlite:////absolute`.

    Returns:
        The file's path; "" for no ledger at all.

    Raises:
        ValueError: it is neither `off` nor such an address.
    """
    place = text.strip()
    if place.lower() == OFF:
        return ""
    path = place[len(URL) :]
    wrong = not path or path.endswith(("/", os.sep)) or path.startswith(":") or "?" in path
    if not place.lower().startswith(URL) or wrong or "\0" in path:
        raise ValueError("must be off, or sqlite:/// and the path of a file")
    # Nobody means a folder that is called so.
    return os.path.expanduser(path) if path.startswith("~/") else path


def default_place(env: Mapping[str, str], platform: str) -> str:
    """Return where the ledger is kept when nobody says, as LEDGER would say it.

    Args:
        env: the environment.
        platform: as `sys.platform`.
    """
    folder = _state_folder(env, platform)
    return URL + os.path.join(folder, "nexus-gateway", "ledger.sqlite3")


def _state_folder(env: Mapping[str, str], platform: str) -> str:
    """Return where this user's programs keep what they remember."""
    home = os.path.expanduser("~")
    if home == "~":  # nobody in particular: not the current folder, and said at the start
        home = os.sep
    if platform == "win32":
        return env.get("LOCALAPPDATA") or os.path.join(home, "AppData", "Local")
    if platform == "darwin":
        return os.path.join(home, "Library", "Application Support")
    chosen = env.get("XDG_STATE_HOME", "")
    # A relative one is to be ignored (XDG Base Directory Specification).
    return chosen if os.path.isabs(chosen) else os.path.join(home, ".local", "state")
