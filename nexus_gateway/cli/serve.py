"""`nexus-gateway serve`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from nexus_gateway.cli import banner
from nexus_gateway.cli.banner import Extras, Prepared
from nexus_gateway.cli.environment import WRONG_SETTINGS, own_command, serve_environment
from nexus_gateway.discovery import PROVIDERS, discover, load, prefix
from nexus_gateway.errors import ConfigError
from nexus_gateway.proxy.hook_runner import HOOKS
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.policies import POLICIES
from nexus_gateway.routing.pool import DEMO, Pool, build_pool
from nexus_gateway.server import process
from nexus_gateway.server.reload import LoadedConfig, keep_fixed, secrets_of
from nexus_gateway.server.watchdog import Watchdog
from nexus_gateway.settings import Settings, hosts_of
from nexus_gateway.telemetry import log


def serve(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    ready = prepare(arguments)

    def announce(host: str, port: int) -> None:
        banner.announce(banner.startup_report(ready, host, port))

    def read() -> LoadedConfig:
        return reread(arguments, ready)

    watchdog = Watchdog.from_env(os.environ)
    return process.run(
        ready.settings, ready.pool, announce, read=read, watchdog=watchdog, **ready.plugins
    )


def prepare(arguments: argparse.Namespace) -> Prepared:
    """Read the settings, load the plugins, and set up logging.

    Raises:
        ConfigError: something cannot be used, or there is no instance.
    """
    env = serve_environment(arguments)
    settings, pool = configure(env, demo=arguments.demo)
    plugins = _policies_and_hooks(pool)
    if not pool.instances:
        raise ConfigError(["no provider is usable: set a key such as GROQ_KEY_1, or use --demo."])
    log.configure(settings.log_level, settings.log_format, secrets_of(settings, pool))
    # OpenTelemetry's SDK reads os.environ itself and knows no .env.
    os.environ.update({k: v for k, v in env.items() if k.startswith("OTEL_") and v})
    return Prepared(settings, pool, plugins)


def reread(arguments: argparse.Namespace, running: Prepared) -> LoadedConfig:
    """Read the settings again, for a running gateway.

    Raises:
        ConfigError: something cannot be used, or there is no instance.
    """
    env = serve_environment(arguments)
    settings, pool = configure(env, demo=arguments.demo, running=running.settings)
    if has_keys(running.pool):
        check_keys(pool)
    # Policies and hooks are loaded at the start only, so their problems stay.
    pool.problems += [p for p in running.pool.problems if p.kind == POLICIES.word]
    fixed = keep_fixed(Settings.from_env(env), running.settings)[1]
    return LoadedConfig(settings, pool, (*fixed, *_late_plugins(running, pool)))


def has_keys(pool: Pool) -> bool:
    """Return whether there is any instance but the demo."""
    return any(instance.provider_name != DEMO for instance in pool.instances)


def check_keys(pool: Pool) -> None:
    """Prevent a gateway that had real keys from falling back to the demo.

    Raises:
        ConfigError: no key is left; most likely the file is being written right now.
    """
    if not has_keys(pool):
        raise ConfigError(["no provider has a key any more; restart to serve without keys."])


def _late_plugins(running: Prepared, pool: Pool) -> Iterator[str]:
    """Name the plugins that were installed, removed or updated, and that need a restart."""
    loaded = {plugin.name: plugin.origin for plugin in running.pool.plugins}
    for plugin in pool.plugins:
        if loaded.get(plugin.name, plugin.origin) != plugin.origin:
            yield f"the provider {plugin.name} ({plugin.origin})"
    broken = {p.name for p in pool.problems if p.kind == POLICIES.word}
    for word, group, known in (
        (POLICIES.word, POLICIES.group, running.plugins["policy_by_name"].keys() | broken),
        (HOOKS.word, HOOKS.group, running.plugins["hooks"].keys()),
    ):
        installed = {point.name for point in metadata.entry_points(group=group)}
        yield from (f"the {word} {name}" for name in sorted(installed ^ known))


def _policies_and_hooks(pool: Pool) -> Extras:
    """Load what is installed beside providers; a policy may be left out, a hook may not.

    Raises:
        ConfigError: a hook cannot be used.
    """
    policies, found_policies = load(POLICIES)
    hooks, found_hooks = load(HOOKS)
    pool.problems += found_policies.problems
    if found_hooks.problems:
        raise ConfigError([f"the {p}; fix it or uninstall it." for p in found_hooks.problems])
    return {"policy_by_name": policies, "hooks": hooks}


def configure(
    env: dict[str, str], *, demo: bool, running: Settings | None = None
) -> tuple[Settings, Pool]:
    """Build the settings and the pool from the environment.

    Args:
        env: the environment.
        demo: serve the demo also beside other instances.
        running: the current settings of a running gateway; the fixed ones are kept.

    Raises:
        ConfigError: with the problems of the settings and of the providers together.
    """
    problems: list[str] = []
    settings, pool = Settings(), Pool()
    try:
        settings = Settings.from_env(env)
        settings = settings if running is None else keep_fixed(settings, running)[0]
    except ConfigError as error:
        problems += error.problems
    try:
        pool = build_pool(env, time.monotonic, demo=demo)
    except ConfigError as error:
        problems += error.problems
    problems += _own_addresses(settings, pool)
    pool.warnings += _unused_proxies(env, settings)
    if problems:
        raise ConfigError(problems)
    return settings, pool


def _unused_proxies(env: Mapping[str, str], settings: Settings) -> Iterator[str]:
    """Name proxies that other programs would use: without them an upstream may be unreachable."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        is_set = env.get(name) or env.get(name.lower())
        if is_set and (not settings.upstream_proxy or name == "ALL_PROXY"):
            yield f"{name} is set, but not used for upstreams: that needs UPSTREAM_PROXY."
    if settings.proxies and not any(settings.proxies.values()):
        yield "UPSTREAM_PROXY is env, but neither HTTPS_PROXY nor HTTP_PROXY is set."


def _own_addresses(settings: Settings, pool: Pool) -> Iterator[str]:
    """Find instances whose upstream is this gateway: each request would loop for ever.

    It happens easily: OPENAI_BASE_URL, set to send clients here, is read by the gateway as well.
    """
    for name in dict.fromkeys(i.provider_name for i in pool.instances if _is_own(i, settings)):
        variable = f"{prefix(name)}_BASE_URL"
        yield f"{variable} is the gateway's own address; unset it for the gateway."


def _is_own(instance: Instance, settings: Settings) -> bool:
    parts = urlsplit(instance.account.base_url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    hosts = {*hosts_of(settings.host), "localhost", "127.0.0.1", "::1"}
    return port == settings.port and parts.hostname in hosts


def reload(arguments: argparse.Namespace) -> int:
    """Serve, and restart whenever the code or the .env file changes."""
    try:
        import watchfiles
    except ImportError:
        print(
            "nexus-gateway: --reload needs the extra `dev`: run pip install '.[dev]' in the clone",
            file=sys.stderr,
        )
        return WRONG_SETTINGS
    if arguments.workers not in (None, "1"):
        raise ConfigError(["--reload supports only one worker; omit --workers."])
    # The last option wins over WEB_CONCURRENCY.
    command = [word for word in own_command(arguments) if word != "--reload"] + ["--workers", "1"]
    env_file = Path(arguments.env_file).resolve()
    packages = [Path(__file__).resolve().parents[1], *_plugin_folders()]

    def matters(change: watchfiles.Change, path: str) -> bool:
        return path.endswith(".py") or Path(path) == env_file

    watchfiles.run_process(
        *dict.fromkeys([*packages, env_file.parent]),
        target=shlex.join(command),
        target_type="command",
        watch_filter=matters,
        recursive=True,
    )
    return 0


def _plugin_folders() -> list[Path]:
    modules = {sys.modules[plugin.cls.__module__] for plugin in discover(PROVIDERS).plugins}
    return sorted({Path(m.__file__).resolve().parent for m in modules if m.__file__})
