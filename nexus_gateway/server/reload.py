"""The settings, read anew while the gateway serves.

What stays, stays as it is: an instance with the same key at the same address keeps its health, its
circuit, its rate limits and whether it is switched on. Requests that run end with the settings and
the instance that they began with. A key that was refused gets another chance. What cannot be used
is refused as a whole, and the old settings go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from nexus_gateway.errors import ConfigError
from nexus_gateway.routing.pool import Pool
from nexus_gateway.routing.resolver import ModelResolver
from nexus_gateway.secret import Secret
from nexus_gateway.settings import VARIABLES, Settings
from nexus_gateway.telemetry import log
from nexus_gateway.web.auth import is_loopback
from nexus_gateway.web.gateway import Gateway

logger = logging.getLogger("nexus_gateway")

# What the sockets that are open were made with, and what counts since the start.
FIXED = ("HOST", "PORT", "WEB_CONCURRENCY", "DIRECT_PATH", "METRICS", "LEDGER")


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """What was read.

    Args:
        settings: what the owner set, with what is fixed as it was at the start.
        pool: the instances, all of them new.
        late: the names of what has changed and is read at the start only.
    """

    settings: Settings
    pool: Pool
    late: tuple[str, ...] = ()


def keep_fixed(settings: Settings, running: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings with what is fixed as it runs, and the names of what differed."""
    differ = tuple(name for name in changed(settings, running) if name in FIXED)
    return replace(settings, **{n.lower(): getattr(running, n.lower()) for n in differ}), differ


def changed(one: Settings, other: Settings) -> list[str]:
    """Return the names of the variables in which two settings differ."""
    names = [variable.name for variable in VARIABLES]
    return [n for n in names if _plain(one, n.lower()) != _plain(other, n.lower())]


def _plain(settings: Settings, field: str) -> object:
    value = getattr(settings, field)
    if isinstance(value, tuple):
        return tuple(one.reveal() for one in value)
    return value.reveal() if isinstance(value, Secret) else value


def secrets_of(settings: Settings, pool: Pool) -> list[Secret]:
    """Return what must never be written."""
    return [*settings.secrets, *(i.key for i in pool.instances)]


class Reload:
    """Reads the settings anew whenever asked.

    Args:
        gateway: what serves.
        read: reads them; raises ConfigError. It is called in a thread: it reads files, and may
            import a provider that nobody needed before.
    """

    def __init__(self, gateway: Gateway, read: Callable[[], LoadedConfig]) -> None:
        self._gateway = gateway
        self._read = read
        self._asked = asyncio.Event()
        # What was a key may still stand in a line about a request that began with it.
        self._secrets = secrets_of(gateway.settings, gateway.pool)

    def ask(self) -> None:
        """Ask for it; however often within one reading, it is done once more."""
        self._asked.set()

    async def work(self) -> None:
        """Do as asked, for ever."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            await self.once()

    async def once(self) -> bool:
        """Read, and serve with what was read; False where that cannot be."""
        try:
            fresh = await asyncio.to_thread(self._read)
        except ConfigError as error:
            for problem in error.problems:
                logger.error("not reloaded, the old settings go on: %s", problem)
            return False
        except Exception:
            logger.exception("not reloaded, the old settings go on")
            return False
        self.apply(fresh)
        return True

    def apply(self, fresh: LoadedConfig) -> None:
        """Serve from now on with what was read, and say what that changed."""
        gateway, settings = self._gateway, fresh.settings
        self._know(secrets_of(settings, fresh.pool))
        log.configure(settings.log_level, settings.log_format, self._secrets)
        names = changed(settings, gateway.settings)
        warnings = [w for w in fresh.pool.warnings if w not in gateway.pool.warnings]
        problems = [str(p) for p in fresh.pool.problems]
        warnings += [f"left out: {p}" for p in problems if p not in map(str, gateway.pool.problems)]
        if "GATEWAY_KEYS" in names and not (settings.gateway_keys or is_loopback(settings.host)):
            warnings.append(f"{settings.host} is open to others and GATEWAY_KEYS is not set")
        succession = gateway.pool.replace_with(fresh.pool)
        gateway.settings = settings
        gateway.targets = ModelResolver(gateway.pool, strict=settings.strict_models)
        assert gateway.make_relay is not None
        gateway.relay = gateway.make_relay(settings)
        what = {**succession.as_fields(), "settings": ", ".join(names) or None}
        logger.info("reloaded", extra={"fields": what})
        for warning in warnings:
            logger.warning("%s", warning)
        if fresh.late:
            logger.warning("%s: changed, but read at the start only", ", ".join(fresh.late))

    def _know(self, secrets: Iterable[Secret]) -> None:
        known = {secret.reveal() for secret in self._secrets}
        self._secrets += [secret for secret in secrets if secret.reveal() not in known]
