"""What a span says: names and attributes by OpenTelemetry's semantic conventions.

Those for HTTP, and for generative AI as of version 1.44, where they may still change. What they
have no name for is called `nexus.…`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from nexus_gateway.provider import Verdict
from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.instance import Instance
from nexus_gateway.wire.usage import TokenUsage

Attributes = dict[str, Any]

# Endpoints by OpenTelemetry's names, where it has one; the others keep ours.
_OPERATIONS = {
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "transcriptions": "transcription",
}
# Providers by OpenTelemetry's names where ours differ.
_PROVIDERS = {
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "xai": "x_ai",
    "azure": "azure.ai.openai",
}
_PORTS = {"http": 80, "https": 443}


def operation_of(endpoint: str) -> str:
    """Name what is asked for at a door."""
    return _OPERATIONS.get(endpoint, endpoint)


def provider_of(name: str) -> str:
    """Name a provider."""
    return _PROVIDERS.get(name, name)


def of_instance(instance: Instance, operation: str) -> Attributes:
    """Return what all attempts of an instance have in common."""
    own = instance.provider_name
    found: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider_of(own),
        "nexus.instance": instance.name,
    }
    try:
        address = urlsplit(instance.account.base_url)
        if address.hostname:
            found["server.address"] = address.hostname
            found["server.port"] = address.port or _PORTS.get(address.scheme, 443)
    except ValueError:
        pass  # an address that cannot be read fails where it is used, and says so there
    return found


def request_attributes(record: RequestRecord) -> Attributes:
    """Return what is known of a request that has ended."""
    known: Attributes = {
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
    return {name: value for name, value in known.items() if value}


def error_type(verdict: Verdict) -> str:
    """Name a failure by its status, `timeout`, or its outcome: few words, for grouping."""
    if verdict.status:
        return str(verdict.status)
    late = verdict.reason.startswith(("no first token", "no answer"))
    return "timeout" if late else verdict.outcome.value


def of_tokens(tokens: TokenUsage) -> Attributes:
    """Return what an answer used, as far as it is known."""
    found = {
        "gen_ai.usage.input_tokens": tokens.prompt,
        "gen_ai.usage.output_tokens": tokens.completion,
        "gen_ai.usage.cache_read.input_tokens": tokens.cached,
        "gen_ai.usage.cache_creation.input_tokens": tokens.cache_written,
        "gen_ai.usage.reasoning.output_tokens": tokens.reasoning,
    }
    return {name: value for name, value in found.items() if value is not None}
