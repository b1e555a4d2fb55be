"""GET /openapi.json: the routes as an OpenAPI 3.1 document.

Methods, paths, access and the shape of errors come from the route table. What a route takes and
returns stands here, in `OPERATIONS`. Bodies of callers are described as far as the gateway reads
them: all other fields are the dialect's, and are passed on or translated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nexus_gateway import __version__
from nexus_gateway.dialects.base import ESTIMATE
from nexus_gateway.dialects.messages import VERSION
from nexus_gateway.routing.affinity import HIT, MOVED, NONE
from nexus_gateway.web.auth import Access
from nexus_gateway.web.middleware import Route
from nexus_gateway.web.request import EXPLAIN, HEDGE, POLICY, SESSION, TIMEOUT

Schema = dict[str, Any]
REQUEST_ID = "X-Request-Id"
JSON, EVENTS = "application/json", "text/event-stream"
_STRING: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object"}
_OBJECTS: Schema = {"type": "array", "items": _OBJECT}

# When each status is returned: see docs/api.md. 4XX and 5XX are of hooks and of upstreams.
_ERRORS = {
    "400": "The body, a header or a parameter is wrong; `param` names it.",
    "401": "The key or token is missing or wrong.",
    "403": "The settings do not allow it: an admin call without ADMIN_TOKEN, or, without "
    "GATEWAY_KEYS, the call of another machine's page.",
    "404": "No such model, instance or response; or no instance offers this.",
    "408": "The body did not arrive in time.",
    "413": "The body is larger than MAX_BODY_MB.",
    "415": "The body is compressed, or of the wrong type.",
    "429": "Every instance that could serve the request is rate limited.",
    "500": "An internal error, or a hook that failed.",
    "501": "The extra for this call is not installed.",
    "503": "No instance can serve the request now, or the gateway is busy or shutting down.",
    "504": "The time in X-Request-Timeout-Ms has passed.",
    "508": "The address of a provider leads back to this gateway.",
    "4XX": "An upstream or a hook rejected the request.",
}
_OF_A_BODY = ("400", "408", "413", "415")
_OF_A_PROVIDER = (*_OF_A_BODY, "404", "429", "504", "508", "4XX")
_OF_A_REQUEST = (POLICY, SESSION, TIMEOUT, HEDGE, EXPLAIN)
_OF_ACCESS = {
    Access.PUBLIC: (),
    Access.CALLER: ("401", "403", "503"),
    Access.VIEWER: ("401", "403", "503"),
    Access.ADMIN: ("401", "403", "503"),
}


@dataclass(frozen=True, slots=True)
class Operation:
    """What one route takes and returns."""

    summary: str
    answers: Mapping[str, str]  # schemas by content type
    body: str = ""  # its schema
    body_type: str = JSON
    errors: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()  # names of query and header parameters
    also: tuple[str, ...] = ()  # further statuses with the same body


def _asks(summary: str, body: str, answer: str, *, streams: bool = True) -> Operation:
    """Describe an endpoint that reaches a provider."""
    answers = {JSON: answer, **({EVENTS: "Events"} if streams else {})}
    return Operation(summary, answers, body, errors=_OF_A_PROVIDER, parameters=_OF_A_REQUEST)


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): _asks("Complete a chat", "Chat", "ChatCompletion"),
    ("POST", "/v1/completions"): _asks("Complete a prompt", "Completion", "Any"),
    ("POST", "/v1/embeddings"): _asks("Embed texts", "Embedding", "List", streams=False),
    ("POST", "/v1/audio/transcriptions"): Operation(
        "Transcribe audio",
        {JSON: "Any", "text/plain": "Text", EVENTS: "Events"},
        "Audio",
        "multipart/form-data",
        errors=_OF_A_PROVIDER,
        parameters=_OF_A_REQUEST,
    ),
    ("POST", "/v1/responses"): _asks("Create a response", "Responses", "Response"),
    ("POST", "/v1/messages"): _asks("Create a message", "Messages", "Message"),
    ("POST", "/v1/messages/count_tokens"): _asks(
        "Count the tokens of a message", "Messages", "Tokens", streams=False
    ),
    ("POST", "/v1/responses/input_tokens"): Operation(
        "Estimate the tokens of a response's input",
        {JSON: "Tokens"},
        "Responses",
        errors=(*_OF_A_BODY, "404"),
    ),
    ("POST", "/v1/responses/compact"): Operation("Not offered", {}, errors=("404",)),
    ("GET", "/v1/responses/{id}"): Operation(
        "Read a kept response", {JSON: "Response"}, errors=("400", "404"), parameters=("stream",)
    ),
    ("DELETE", "/v1/responses/{id}"): Operation(
        "Delete a kept response", {JSON: "Deleted"}, errors=("404",)
    ),
    ("GET", "/v1/responses/{id}/input_items"): Operation(
        "List the input of a kept response",
        {JSON: "List"},
        errors=("400", "404"),
        parameters=("order", "limit", "after"),
    ),
    ("GET", "/v1/models"): Operation(
        "List the models; in Anthropic's shape if `anthropic-version` is sent",
        {JSON: "Models"},
        errors=("400",),
        parameters=("limit", "after_id", "before_id", VERSION),
    ),
    ("GET", "/v1/models/{id}"): Operation(
        "Describe a model", {JSON: "Any"}, errors=("404",), parameters=(VERSION,)
    ),
    ("GET", "/v1/providers"): Operation(
        "Describe all instances and the settings", {JSON: "Providers"}
    ),
    ("POST", "/v1/providers/toggle"): Operation(
        "Enable or disable an instance",
        {JSON: "Instance"},
        "Toggle",
        errors=(*_OF_A_BODY, "404"),
    ),
    ("GET", "/v1/usage"): Operation(
        "Report usage", {JSON: "Any"}, errors=("400", "404"), parameters=("by", "since", "until")
    ),
    ("GET", "/v1/events"): Operation("Follow what changes and what ends", {EVENTS: "Events"}),
    ("GET", "/metrics"): Operation(
        "Metrics for Prometheus",
        {"text/plain": "Text", "application/openmetrics-text": "Text"},
        errors=("404", "501"),
    ),
    ("GET", "/"): Operation("The Control Center", {"text/html": "Text"}),
    ("GET", "/static/{name}"): Operation(
        "A file of the Control Center",
        {
            "text/css": "Text",
            "text/javascript": "Text",
            "image/svg+xml": "Text",
            "text/html": "Text",
        },
        errors=("404",),
    ),
    ("GET", "/health"): Operation("The state of all instances", {JSON: "Health"}, also=("503",)),
    ("GET", "/health/live"): Operation("Whether the process responds", {JSON: "Status"}),
    ("GET", "/health/ready"): Operation(
        "Whether requests may be sent here", {JSON: "Status"}, also=("503",)
    ),
    ("GET", "/openapi.json"): Operation("This document", {JSON: "Any"}),
}

_BOOLEAN: Schema = {"enum": ["true", "false"]}
_HEADER_PARAMETERS: dict[str, tuple[str, Schema]] = {
    VERSION: ("Asks for Anthropic's shape.", _STRING),
    EXPLAIN: ("Whether to explain the choice in a header; needs what /v1/events needs.", _BOOLEAN),
    SESSION: ("Names the conversation, whose requests go to the same instance.", _STRING),
    HEDGE: ("Overrides HEDGE.", _BOOLEAN),
    POLICY: ("How to choose an instance: smart, fastest, round-robin, or a plugin's.", _STRING),
    TIMEOUT: ("Time limit for the whole answer.", {"type": "integer", "minimum": 1}),
}
_QUERY_PARAMETERS: dict[str, tuple[str, Schema]] = {
    "after": ("The id of the item before the page.", _STRING),
    "after_id": ("The id of the model before the page; only with `anthropic-version`.", _STRING),
    "before_id": ("The id of the model after the page; only with `anthropic-version`.", _STRING),
    "by": (
        "How to group.",
        {
            "enum": [
                *("instance", "model", "provider", "key"),
                *("day", "hour", "endpoint", "outcome"),
            ]
        },
    ),
    "limit": ("The length of the page.", {"type": "integer", "minimum": 1, "maximum": 1000}),
    "order": ("Oldest or newest first.", {"enum": ["asc", "desc"]}),
    "since": ("Start, inclusive: 24h or 7d (ago), today, yesterday, a date or a time.", _STRING),
    "stream": ("A kept response is not streamed: only false.", {"enum": ["false"]}),
    "until": ("End, exclusive.", _STRING),
}


_RESPONSE_HEADERS: dict[str, tuple[str, Schema]] = {
    REQUEST_ID: ("The request's id: yours, if it had one in this header.", _STRING),
    "X-Nexus-Provider": ("The instance that answered, or the last one that was tried.", _STRING),
    "X-Nexus-Model": ("The upstream's name of the model.", _STRING),
    "X-Nexus-Attempts": ("The number of attempts.", {"type": "integer", "minimum": 0}),
    "X-Nexus-Affinity": (
        "Whether the instance is the one where the conversation belongs.",
        {"enum": [HIT, MOVED, NONE]},
    ),
    "Server-Timing": ("Milliseconds in the gateway and upstream, to the first content.", _STRING),
    EXPLAIN: ("Why the instance was chosen.", _STRING),
    ESTIMATE: ("The count is the gateway's own estimate.", {"const": "true"}),
    "Retry-After": ("Seconds after which to ask again.", {"type": "integer", "minimum": 1}),
    "WWW-Authenticate": ("How to send the key.", _STRING),
}
_OF_AN_ATTEMPT = (
    *("X-Nexus-Provider", "X-Nexus-Model", "X-Nexus-Attempts", "X-Nexus-Affinity"),
    *("Server-Timing", EXPLAIN),
)


def _ref(name: str, kind: str = "schemas") -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _with(required: Iterable[str] = (), **properties: Schema) -> Schema:
    return {"type": "object", "required": [*required], "properties": properties}


_MODEL: Schema = {
    "type": ["string", "null"],
    "description": "A model, an instance, a provider, provider/model, or absent for any.",
}
_STREAM: Schema = {"type": ["boolean", "null"]}
_NON_EMPTY: Schema = {"type": "array", "minItems": 1, "items": _OBJECT}
_INSTANCE = _with(("name", "provider", "model", "enabled"), name=_STRING, models=_OBJECTS)
_ERROR = _with(
    ("message", "type"),
    message=_STRING,
    type=_STRING,
    param={"type": ["string", "null"]},
    code={"type": ["string", "integer", "null"]},
)

SCHEMAS: dict[str, Schema] = {
    "Any": _OBJECT,
    "Text": _STRING,
    "Events": {
        "description": "Server-sent events. If an answer breaks after its first content, its last "
        "event has the error, as the API of the endpoint sends it."
    },
    "Chat": _with(("messages",), model=_MODEL, messages=_NON_EMPTY, stream=_STREAM),
    "ChatCompletion": _with(("choices", "model"), model=_STRING, choices=_OBJECTS),
    "Completion": _with(("prompt",), model=_MODEL, prompt={}, stream=_STREAM),
    "Embedding": _with(("model", "input"), model=_STRING, input={}),
    "Audio": _with(
        ("file",), model=_STRING, file={"type": "string", "contentMediaType": "audio/*"}
    ),
    "Responses": _with(
        ("input",),
        model=_MODEL,
        input={"type": ["string", "array"]},
        stream=_STREAM,
        store={"type": ["boolean", "null"]},
        previous_response_id={"type": ["string", "null"]},
    ),
    "Response": _with(("id", "object"), id=_STRING, object={"const": "response"}),
    "Deleted": _with(("id", "deleted"), id=_STRING, deleted={"const": True}),
    "Messages": _with(("messages",), model=_MODEL, messages=_NON_EMPTY, stream=_STREAM),
    "Message": _with(("id", "content"), id=_STRING, content=_OBJECTS),
    "Tokens": _with(("input_tokens",), input_tokens={"type": "integer", "minimum": 0}),
    "List": _with(("data",), data={"type": "array"}),
    "Models": _with(("data",), data=_OBJECTS),
    "Toggle": _with(("name", "enabled"), name=_STRING, enabled={"type": "boolean"}),
    "Instance": _INSTANCE,
    "Providers": _with(("providers", "settings"), providers=_OBJECTS, settings=_OBJECT),
    "Health": _with(
        ("status", "version", "providers"),
        status={"enum": ["healthy", "degraded", "unhealthy", "draining"]},
        version=_STRING,
        providers={"type": "array", "items": _ref("Instance")},
    ),
    "Status": _with(("status",), status=_STRING),
    "Error": _with(("error",), error=_ERROR),
    "EitherError": {"anyOf": [_ref("AnthropicError"), _ref("Error")]},
    "AnthropicError": _with(("type", "error"), type={"const": "error"}, error=_ERROR),
}


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """Return the document of these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r"\{(\w+)[^}]*\}", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Nexus Gateway",
            "version": __version__,
            "license": {"name": "MIT", "identifier": "MIT"},
            "description": "One API in front of many provider keys. What needs a caller's key is "
            "also served without /v1.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "headers": {
                name: {"description": text, "required": name == REQUEST_ID, "schema": schema}
                for name, (text, schema) in _RESPONSE_HEADERS.items()
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(route: Route, path: str) -> dict[str, Any]:
    described = OPERATIONS[route.method, path]
    answer = {"content": {kind: _of(schema) for kind, schema in described.answers.items()}}
    error = {JSON: _of(_error_of(route, described))}
    statuses = ("200",) if described.answers else ()
    responses = {
        status: {"description": "The answer.", **answer} for status in (*statuses, *described.also)
    }
    for status in sorted({*described.errors, *_OF_ACCESS[route.access], "500"} - {*responses}):
        responses[status] = {"description": _ERRORS[status], "content": error}
    for status, response in responses.items():
        response["headers"] = _headers(status, described)
    operation: dict[str, Any] = {
        "operationId": _name(route.method, path),
        "summary": described.summary,
        "parameters": [*_parameters(path, described)],
        "responses": responses,
    }
    if described.body:
        content = {described.body_type: _of(described.body)}
        operation["requestBody"] = {"required": True, "content": content}
    if route.access is not Access.PUBLIC:
        # The empty one: no key is needed if none is set.
        operation["security"] = [{"bearer": []}, {"apiKey": []}, {}]
    return operation


def _of(schema: str) -> dict[str, Any]:
    return {"schema": _ref(schema)}


def _headers(status: str, described: Operation) -> dict[str, Any]:
    names = [REQUEST_ID]
    if POLICY in described.parameters:
        names += _OF_AN_ATTEMPT
    if status == "200" and "Tokens" in described.answers.values():
        names.append(ESTIMATE)
    names += {"401": ["WWW-Authenticate"], "429": ["Retry-After"], "503": ["Retry-After"]}.get(
        status, []
    )
    return {name: _ref(name, "headers") for name in names}


def _error_of(route: Route, described: Operation) -> str:
    if VERSION in described.parameters:
        return "EitherError"
    return "AnthropicError" if route.path.startswith("/v1/messages") else "Error"


def _name(method: str, path: str) -> str:
    words = [word for word in re.split(r"\W+", path) if word not in ("", "v1")]
    return "_".join([method.lower(), *words])


def _parameters(path: str, described: Operation) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", path):
        yield {"name": name, "in": "path", "required": True, "schema": _STRING}
    for name in described.parameters:
        where = "header" if name in _HEADER_PARAMETERS else "query"
        text, schema = {**_HEADER_PARAMETERS, **_QUERY_PARAMETERS}[name]
        yield {"name": name, "in": where, "description": text, "schema": schema}
