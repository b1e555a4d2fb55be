"""New settings without a restart.

An unchanged instance (same key, same address) keeps its health, circuit, rate limits and toggle.
Requests in flight end with the settings and the instance that they began with. A refused key gets
another chance. If anything is wrong, nothing is applied and the old settings stay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from nexus_gateway.errors import ConfigError
from nexus_gateway.routing.pool import Pool
from nexus_gateway.secret import Secret
from nexus_gateway.settings import PROXY_VARIABLES, VARIABLES, Settings
from nexus_gateway.telemetry import log
from nexus_gateway.web.gateway import Gateway

logger = logging.getLogger("nexus_gateway")

# Read at the start only: the open sockets depend on them, or counters that began with the process.
FIXED = (
    *("HOST", "PORT", "WEB_CONCURRENCY", "DIRECT_PATH", "METRICS", "LEDGER"),
    *("RESPONSE_STORE", "RESPONSE_STORE_MB", "RESPONSE_STORE_TTL_MS"),
    *PROXY_VARIABLES,
)


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    settings: Settings  # the fixed ones as they were at the start
    pool: Pool
    late: tuple[str, ...] = ()  # what has changed and needs a restart, by name


def keep_fixed(settings: Settings, running: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings with the running values of FIXED, and the names that differed."""
    fixed = tuple(name for name in changed(settings, running) if name in FIXED)
    return replace(settings, **{n.lower(): getattr(running, n.lower()) for n in fixed}), fixed


def changed(settings: Settings, other: Settings) -> list[str]:
    """Return the names of the variables that differ."""
    names = [variable.name for variable in VARIABLES]
    return [n for n in names if _plain(settings, n.lower()) != _plain(other, n.lower())]


def _plain(settings: Settings, field: str) -> object:
    value = getattr(settings, field)
    if isinstance(value, tuple):
        return tuple(secret.reveal() for secret in value)
    return value.reveal() if isinstance(value, Secret) else value


def secrets_of(settings: Settings, pool: Pool) -> list[Secret]:
    return [*settings.secrets, *settings.proxy_secrets, *(i.key for i in pool.instances)]


class Reload:
    """Applies the settings of `read` on request; it raises ConfigError if they are wrong.

    `read` runs in a thread: it reads files and may import a provider.
    """

    def __init__(self, gateway: Gateway, read: Callable[[], LoadedConfig]) -> None:
        self._gateway = gateway
        self._read = read
        self._requested = asyncio.Event()
        # Log lines about requests in flight may still contain a former key.
        self._secrets = secrets_of(gateway.settings, gateway.pool)

    def request(self) -> None:
        """Request a reload; several requests during one reload make one more."""
        self._requested.set()

    async def run(self) -> None:
        while True:
            await self._requested.wait()
            self._requested.clear()
            await self.once()

    async def once(self) -> bool:
        """Read and apply the settings; return False if they are wrong."""
        try:
            config = await asyncio.to_thread(self._read)
        except ConfigError as error:
            for problem in error.problems:
                logger.error("reload failed, keeping the old settings: %s", problem)
            return False
        except Exception:
            logger.exception("reload failed, keeping the old settings")
            return False
        self.apply(config)
        return True

    def apply(self, config: LoadedConfig) -> None:
        """Serve with new settings from now on, and log what changed."""
        gateway, settings = self._gateway, config.settings
        known = {secret.reveal() for secret in self._secrets}
        new = (s for s in secrets_of(settings, config.pool) if s.reveal() not in known)
        self._secrets.extend(new)
        log.configure(settings.log_level, settings.log_format, self._secrets)
        names = changed(settings, gateway.settings)
        warnings = list(self._warnings(config, names))
        changes = gateway.pool.replace_with(config.pool)
        gateway.configure(settings)
        fields = {**changes.as_fields(), "settings": ", ".join(names) or None}
        logger.info("reloaded", extra={"fields": fields})
        for warning in warnings:
            logger.warning("%s", warning)

    def _warnings(self, config: LoadedConfig, names: list[str]) -> Iterator[str]:
        running, settings = self._gateway.pool, config.settings
        yield from (w for w in config.pool.warnings if w not in running.warnings)
        known = [str(problem) for problem in running.problems]
        yield from (f"left out: {p}" for p in map(str, config.pool.problems) if p not in known)
        if "GATEWAY_KEYS" in names and not (settings.gateway_keys or settings.is_local):
            yield f"{settings.host} is open to others and GATEWAY_KEYS is not set"
        if config.late:
            yield f"{', '.join(config.late)}: changed, but read at the start only"
