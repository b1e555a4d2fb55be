"""Who may serve a request, by the model that it asks for."""

from __future__ import annotations

from collections.abc import Callable

from nexus_gateway.dialects.dialect import ANY_MODEL, Request
from nexus_gateway.errors import NotFound
from nexus_gateway.instance import Instance
from nexus_gateway.pool import Pool
from nexus_gateway.provider import CHAT
from nexus_gateway.scheduler import Target

_NAMED_IN_ERROR = 10


def target_of(pool: Pool, request: Request, *, strict: bool) -> Target:
    """Find the instances that may serve a request.

    Args:
        pool: the instances.
        request: what the caller asks for.
        strict: whether an unknown model is an error.

    Raises:
        NotFound: the model is unknown, and `strict`; or nobody offers what is asked for.
        InvalidRequest: the request cannot be put into the words of anybody who is here.
    """
    dialect = request.dialect

    def fits(instance: Instance) -> bool:
        provider = instance.provider
        return request.goes_as_it_is(provider.endpoints) or (
            provider.serves_chat and request.chat is not None
        )

    fitting = [i for i in pool.instances if fits(i)]
    if pool.instances and not fitting:
        if request.obstacle is not None:
            raise request.obstacle
        raise NotFound(
            f"No provider that is configured here offers {dialect.endpoint}; "
            "set the key of one that does.",
            code="endpoint_not_offered",
        )
    return resolve(fitting, request.model, request.images, strict, dialect.kind)


def resolve(
    instances: list[Instance],
    model: str | None,
    images: bool,
    strict: bool,
    kind: str = CHAT,
) -> Target:
    """Find the instances that may serve a model.

    In this order: anybody; a model that somebody is known to serve; an instance's name; a
    provider's name; `provider/model`; and for a name that nobody knows anybody again, so that
    unmodified clients work. A model that is no chat model is never exchanged for another: what
    nobody knows is asked for as it is, of those who do not list what they have.

    Args:
        instances: those that it may be.
        model: what the caller asked for.
        images: whether the request holds images.
        strict: whether an unknown name is an error.
        kind: what the model is for.

    Raises:
        NotFound: the name is unknown, and `strict`.
        InvalidRequest: a model must be named for this kind.
    """

    def target(found: tuple[Instance, ...], named: str | None) -> Target:
        return Target(found, named, images, kind)

    everybody = tuple(instances)
    if model is None or model in ANY_MODEL:
        return target(everybody, None)
    if serving := tuple(i for i in everybody if i.serves(model, kind)):
        return target(serving, model)
    provider, _, rest = model.partition("/")
    tests: tuple[tuple[Callable[[Instance], bool], str | None], ...] = (
        (lambda i: i.name == model, None),
        (lambda i: i.provider_name == model, None),
        (lambda i: bool(rest) and i.provider_name == provider, rest),
    )
    for test, named in tests:
        if found := tuple(filter(test, everybody)):
            return target(found, named)
    if strict:
        some = sorted({i.model_for(kind) for i in everybody})[:_NAMED_IN_ERROR]
        raise NotFound(
            f"The model is not known here. Some that are: {', '.join(['auto', *some])}; "
            "GET /v1/models lists all.",
            param="model",
            code="model_not_found",
        )
    if kind == CHAT:
        return target(everybody, None)
    return target(tuple(i for i in everybody if not i.knows(kind)) or everybody, model)
