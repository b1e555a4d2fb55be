"""Who may serve a request, by the model that it asks for."""

from __future__ import annotations

from nexus_gateway.errors import NotFound
from nexus_gateway.pool import Pool
from nexus_gateway.registry import ANY_NAMES
from nexus_gateway.scheduler import Target

# Names by which a caller leaves the choice to the gateway.
ANY_MODEL = ANY_NAMES | {""}
_NAMED_IN_ERROR = 10


def resolve(pool: Pool, model: str | None, images: bool, strict: bool) -> Target:
    """Find the instances that may serve a model.

    In this order: anybody; a model that somebody is known to serve; an instance's name; a
    provider's name; `provider/model`; and for a name that nobody knows anybody again, so that
    unmodified clients work.

    Args:
        pool: the instances.
        model: what the caller asked for.
        images: whether the request holds images.
        strict: whether an unknown name is an error.

    Raises:
        NotFound: the name is unknown, and `strict`.
    """
    everybody = tuple(pool.instances)
    if model is None or model in ANY_MODEL:
        return Target(everybody, None, images)
    if serving := tuple(i for i in everybody if i.serves(model)):
        return Target(serving, model, images)
    provider, _, rest = model.partition("/")
    for instances, named in (
        (tuple(i for i in everybody if i.name == model), None),
        (tuple(i for i in everybody if i.provider_name == model), None),
        (tuple(i for i in everybody if rest and i.provider_name == provider), rest),
    ):
        if instances:
            return Target(instances, named, images)
    if strict:
        some = sorted({i.model for i in everybody})[:_NAMED_IN_ERROR]
        raise NotFound(
            f"The model is not known here. Some that are: {', '.join(['auto', *some])}; "
            "GET /v1/models lists all.",
            param="model",
            code="model_not_found",
        )
    return Target(everybody, None, images)
