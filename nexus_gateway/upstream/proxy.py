"""Which proxy an upstream is asked through: UPSTREAM_PROXY, and the exceptions of NO_PROXY."""

from __future__ import annotations

from yarl import URL

from nexus_gateway.settings import Settings, is_loopback


def proxy_of(settings: Settings, url: URL) -> URL | None:
    """Return the proxy for a URL, None to connect directly; this machine needs none."""
    proxy = settings.proxies.get(url.scheme)
    if not proxy or is_loopback(url.host or "") or _is_excepted(url, settings.no_proxy):
        return None
    return URL(proxy.reveal())


def _is_excepted(url: URL, no_proxy: str) -> bool:
    """Whether a list has the host or a domain above it, with or without port and leading dot."""
    names = (f".{url.host}", f".{url.host}:{url.port}")
    for entry in no_proxy.lower().split(","):
        name = entry.strip().lstrip("*.")
        if (name and any(n.endswith(f".{name}") for n in names)) or entry.strip() == "*":
            return True
    return False
