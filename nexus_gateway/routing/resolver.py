"""Which instances may serve a request, by its `model` and its endpoint."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from itertools import chain

from nexus_gateway.dialects.base import Request
from nexus_gateway.errors import NotFound
from nexus_gateway.provider import ANY_MODEL, CHAT
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.pool import Pool
from nexus_gateway.routing.scheduler import RoutingTarget

_MODELS_IN_ERROR = 10
_LONGEST_IN_ERROR = 100
_MAX_CACHED_LENGTH = 200
_CACHE_SIZE = 1024


class ModelResolver:
    """Resolves requests to targets, and caches them: a changed pool needs a new resolver."""

    def __init__(self, pool: Pool, *, strict: bool) -> None:
        self._pool = pool
        self._strict = strict
        self._targets: dict[Hashable, RoutingTarget] = {}

    def of(self, request: Request) -> RoutingTarget:
        model, chat = request.model, request.chat is not None
        images = request.images, request.images_may_go
        key = (model, request.dialect, images, request.changed_by_hook, chat)
        target = self._targets.get(key)
        if target is None:
            target = resolve_target(self._pool, request, strict=self._strict)
            if model is None or len(model) <= _MAX_CACHED_LENGTH:
                if len(self._targets) >= _CACHE_SIZE:
                    self._targets.clear()
                self._targets[key] = target
        return target


def resolve_target(pool: Pool, request: Request, *, strict: bool) -> RoutingTarget:
    """Return the instances that may serve a request.

    NotFound if no matching instance supports the endpoint, or `strict` and the model is unknown;
    InvalidRequest if the matching ones would need a translation that is impossible.
    """
    dialect = request.dialect

    def supports(instance: Instance) -> bool:
        provider = instance.provider
        return request.can_pass_through(provider.endpoints) or (
            provider.serves_chat and request.chat is not None
        )

    target = resolve_model(
        pool.instances, request.model, request.images, strict, dialect.kind, supports
    )
    if target.deployments or not pool.instances:
        return replace(target, images_may_go=True) if request.images_may_go else target
    if request.untranslatable is not None:
        raise request.untranslatable
    raise NotFound(
        f"No configured provider that matches `model` supports {dialect.endpoint}.",
        code="endpoint_not_offered",
    )


def resolve_model(
    instances: Iterable[Instance],
    model: str | None,
    images: bool,
    strict: bool,
    kind: str = CHAT,
    supports: Callable[[Instance], bool] = lambda instance: True,
) -> RoutingTarget:
    """Return the instances that may serve a model.

    `model` is, in this order: empty or `auto` (any instance); a model that an instance is known to
    serve; an instance's name; a provider's name or title, ignoring case; `provider/model`, of which
    the model is requested, or all of it if the provider's own id begins with its name. With any
    other name, any instance serves its own model, so that unmodified clients work. But only
    chat models are replaced: another kind is requested by its unknown name, from instances that do
    not list their models of that kind, or else from all. If `strict`, an unknown name is NotFound.
    """
    all_instances = tuple(instances)
    match = _match(all_instances, model, kind)
    if match is None and strict:
        serving = tuple(filter(supports, all_instances)) or all_instances
        names = sorted({d.model for i in serving for d in i.deployments_for(kind)})
        known = [*(["auto"] if kind == CHAT else []), *names[:_MODELS_IN_ERROR]]
        asked = (model or "")[:_LONGEST_IN_ERROR]
        raise NotFound(
            f"Unknown model {asked!r}. Some known ones: {', '.join(known)}; "
            "GET /v1/models lists all. Set one of them in the client, or unset STRICT_MODELS to "
            "have any name answered by some model.",
            param="model",
            code="model_not_found",
        )
    matching, upstream_model = match or (all_instances, None)
    matching = tuple(filter(supports, matching))
    if match is None and kind != CHAT:
        matching = tuple(i for i in matching if not i.listed(kind)) or matching
        upstream_model = model
    deployments = (
        [i.on(upstream_model)] if upstream_model else i.deployments_for(kind) for i in matching
    )
    flat = tuple(chain.from_iterable(deployments))
    return RoutingTarget(flat, upstream_model, images, kind, is_fallback=match is None)


def _match(
    instances: tuple[Instance, ...], model: str | None, kind: str
) -> tuple[tuple[Instance, ...], str | None] | None:
    """Return the instances that a name matches, and the model to request (None: their own)."""
    if model is None or model in ANY_MODEL:
        return instances, None
    provider, _, rest = model.partition("/")
    name = model.casefold()
    tests: tuple[tuple[Callable[[Instance], bool], str | None], ...] = (
        (lambda i: i.serves(model, kind), model),
        (lambda i: i.name.casefold() == name, None),
        (lambda i: name in (i.provider_name, i.provider.title.casefold()), None),
    )
    for test, upstream_model in tests:
        if matching := tuple(filter(test, instances)):
            return matching, upstream_model
    named = tuple(i for i in instances if rest and i.provider_name == provider.casefold())
    return (named, _id_of(named, rest, kind)) if named else None


def _id_of(instances: tuple[Instance, ...], rest: str, kind: str) -> str:
    """Return which id `provider/rest` is for the instances of that provider: the rest or all.

    Its lists decide. If they have neither, all is meant only if each listed id has a slash and the
    rest has none: OpenRouter has `vendor/model`, so `openrouter/fusion` is not its `fusion`.
    """
    whole = f"{instances[0].provider_name}/{rest}"
    for id in (whole, rest):
        if any(i.serves(id, kind) for i in instances):
            return id
    listed = [model.id for model in instances[0].provider.models]
    has_slashes = bool(listed) and all("/" in id for id in listed)
    return whole if has_slashes and "/" not in rest else rest
