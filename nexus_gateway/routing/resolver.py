"""Who may serve a request, by the model that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from nexus_gateway.dialects.base import Request
from nexus_gateway.errors import NotFound
from nexus_gateway.provider import ANY_MODEL, CHAT
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.pool import Pool
from nexus_gateway.routing.scheduler import RoutingTarget

_NAMED_IN_ERROR = 10
_LONGEST_REMEMBERED = 200
_MOST_REMEMBERED = 1024


class ModelResolver:
    """Who may serve requests, remembered by what they ask for.

    Args:
        pool: the instances; whoever changes them makes new `ModelResolver`.
        strict: whether an unknown model is an error.
    """

    def __init__(self, pool: Pool, *, strict: bool) -> None:
        self._pool = pool
        self._strict = strict
        self._known: dict[Hashable, RoutingTarget] = {}

    def of(self, request: Request) -> RoutingTarget:
        """Find the instances that may serve a request; raises as `resolve_target`."""
        model, chat = request.model, request.chat is not None
        key = (model, request.dialect, request.images, request.changed_by_hook, chat)
        target = self._known.get(key)
        if target is None:
            target = resolve_target(self._pool, request, strict=self._strict)
            if model is None or len(model) <= _LONGEST_REMEMBERED:
                if len(self._known) >= _MOST_REMEMBERED:
                    self._known.clear()
                self._known[key] = target
        return target


def resolve_target(pool: Pool, request: Request, *, strict: bool) -> RoutingTarget:
    """Find the instances that may serve a request.

    Args:
        pool: the instances.
        request: what the caller asks for.
        strict: whether an unknown model is an error.

    Raises:
        NotFound: the model is unknown, and `strict`; or nobody it could be offers this endpoint.
        InvalidRequest: nobody it could be can be told what the request says.
    """
    dialect = request.dialect

    def fits(instance: Instance) -> bool:
        provider = instance.provider
        return request.can_pass_through(provider.endpoints) or (
            provider.serves_chat and request.chat is not None
        )

    found = resolve_model(pool.instances, request.model, request.images, strict, dialect.kind, fits)
    if found.instances or not pool.instances:
        return found
    if request.untranslatable is not None:
        raise request.untranslatable
    raise NotFound(
        f"No provider that is configured here, or that `model` names, offers {dialect.endpoint}; "
        "set the key of one that does.",
        code="endpoint_not_offered",
    )


def resolve_model(
    instances: Iterable[Instance],
    model: str | None,
    images: bool,
    strict: bool,
    kind: str = CHAT,
    fits: Callable[[Instance], bool] = lambda instance: True,
) -> RoutingTarget:
    """Find the instances that may serve a model.

    In this order: anybody; a model that somebody is known to serve; an instance's name; a
    provider's name or title, in small letters or large; `provider/model`; and for a name that
    nobody knows anybody again, so that unmodified clients work. A model that is no chat model is
    never exchanged for another: what nobody knows is asked for as it is, of those who do not list
    what they have, or else of all.

    Args:
        instances: all there are.
        model: what the caller asked for.
        images: whether the request holds images.
        strict: whether an unknown name is an error.
        kind: what the model is for.
        fits: who can be asked at all; of those that are named the others are left out.

    Raises:
        NotFound: the name is unknown, and `strict`.
    """
    everybody = tuple(instances)
    found = _named(everybody, model, kind)
    if found is None and strict:
        some = sorted({i.model_for(kind) for i in everybody if fits(i)})[:_NAMED_IN_ERROR]
        auto = ["auto"] if kind == CHAT else []
        raise NotFound(
            f"The model is not known here. Some that are: {', '.join([*auto, *some])}; "
            "GET /v1/models lists all.",
            param="model",
            code="model_not_found",
        )
    able, asked = found or (everybody, None)
    able = tuple(filter(fits, able))
    if found is None and kind != CHAT:
        able, asked = tuple(i for i in able if not i.knows(kind)) or able, model
    return RoutingTarget(able, asked, images, kind, is_fallback=found is None)


def _named(
    everybody: tuple[Instance, ...], model: str | None, kind: str
) -> tuple[tuple[Instance, ...], str | None] | None:
    """Return whom a model's name means, and what to ask them for; None where it means nobody."""
    if model is None or model in ANY_MODEL:
        return everybody, None
    provider, _, rest = model.partition("/")
    name = model.casefold()
    tests: tuple[tuple[Callable[[Instance], bool], str | None], ...] = (
        (lambda i: i.serves(model, kind), model),
        (lambda i: i.name.casefold() == name, None),
        (lambda i: name in (i.provider_name, i.provider.title.casefold()), None),
        (lambda i: bool(rest) and i.provider_name == provider.casefold(), rest),
    )
    for test, asked in tests:
        if found := tuple(filter(test, everybody)):
            return found, asked
    return None
