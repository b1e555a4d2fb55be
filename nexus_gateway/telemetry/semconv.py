"""Names and attributes of spans, by OpenTelemetry's semantic conventions.

Those for HTTP, and for generative AI as of version 1.44, where they may still change. If they have
no name for something, ours begins with `nexus.`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from nexus_gateway.provider import Verdict
from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.instance import Instance
from nexus_gateway.wire.usage import TokenUsage

Attributes = dict[str, Any]

# Only the names that differ from ours.
_OPERATIONS = {
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "transcriptions": "transcription",
}
_PROVIDERS = {
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "xai": "x_ai",
    "azure": "azure.ai.openai",
}
_PORTS = {"http": 80, "https": 443}


def operation_of(endpoint: str) -> str:
    return _OPERATIONS.get(endpoint, endpoint)


def provider_of(name: str) -> str:
    return _PROVIDERS.get(name, name)


def instance_attributes(instance: Instance, operation: str) -> Attributes:
    attributes: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider_of(instance.provider_name),
        "nexus.instance": instance.name,
    }
    try:
        address = urlsplit(instance.account.base_url)
        if address.hostname:
            attributes["server.address"] = address.hostname
            attributes["server.port"] = address.port or _PORTS.get(address.scheme, 443)
    except ValueError:
        pass  # an invalid address fails, with a reason, where the request is sent
    return attributes


def request_attributes(record: RequestRecord) -> Attributes:
    attributes: Attributes = {
        "http.response.status_code": record.status,
        "nexus.request.id": record.id,
        "nexus.request.model": record.asked_model,
        "nexus.policy": record.policy,
        "nexus.caller": record.caller,
        "nexus.instance": record.instance,
        "nexus.attempts": len(record.attempts),
        "nexus.outcome": record.outcome,
        "nexus.hedged": record.hedged,
        "nexus.resumed": record.resumed,
        "nexus.why": record.why,
    }
    return {name: value for name, value in attributes.items() if value}


def error_type(verdict: Verdict) -> str:
    """Return a failure's status, `timeout`, or its outcome: few values, for grouping."""
    if verdict.status:
        return str(verdict.status)
    is_timeout = verdict.reason.startswith(("no first token", "no answer"))
    return "timeout" if is_timeout else verdict.outcome.value


def usage_attributes(tokens: TokenUsage) -> Attributes:
    attributes = {
        "gen_ai.usage.input_tokens": tokens.prompt,
        "gen_ai.usage.output_tokens": tokens.completion,
        "gen_ai.usage.cache_read.input_tokens": tokens.cached,
        "gen_ai.usage.cache_creation.input_tokens": tokens.cache_written,
        "gen_ai.usage.reasoning.output_tokens": tokens.reasoning,
    }
    return {name: value for name, value in attributes.items() if value is not None}
