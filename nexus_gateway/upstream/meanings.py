"""What an upstream's error means, by its code, type and words: read before its status.

Providers use the same status for different things, and different ones for the same thing: a model
that is gone is a 400 at one and a 404 at another. `meaning_of` looks an error up in MEANINGS, one
table of what providers are known to send, the first row that matches. A row matches if the error's
status is one of its statuses (if it names any) and if its code or type is one of its codes or its
message matches its words. Messages may quote the caller: words that take a key away are matched
from the beginning of the message only, so that no caller can make a key look bad.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from nexus_gateway.provider import Outcome, Scope


@dataclass(frozen=True, slots=True)
class Meaning:
    """A row of the table.

    Args:
        outcome, scope, reason: of the verdict.
        statuses: the HTTP statuses it is limited to; none for any.
        codes: of the error's `code` or `type`.
        starts: what its message begins with, as a regular expression, ignoring case.
        has: what its message contains, likewise.
        source: where the provider says so, or which one was seen to send it.
    """

    outcome: Outcome
    scope: Scope
    reason: str
    source: str
    statuses: frozenset[int] = frozenset()
    codes: frozenset[str] = frozenset()
    starts: str = ""
    has: str = ""

    def matches(self, status: int, error: Mapping[str, Any]) -> bool:
        if self.statuses and status not in self.statuses:
            return False
        if error.get("code") in self.codes or error.get("type") in self.codes:
            return True
        message = error["message"]
        if self.starts and re.match(self.starts, message, re.IGNORECASE):
            return True
        return bool(self.has) and re.search(self.has, message, re.IGNORECASE) is not None


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# A refusal of the content, which every instance would repeat.
_MODERATED = Meaning(
    Outcome.REFUSED,
    Scope.REQUEST,
    "refused for its content",
    source="OpenAI, Azure: error codes; OpenRouter: moderation errors",
    codes=_set("content_policy_violation content_filter moderation moderation_blocked"),
)
_TOO_LARGE = "is too large for a limit of this key"
_TOO_LARGE_FOR_KEY = Meaning(
    Outcome.REFUSED,
    Scope.KEY,
    _TOO_LARGE,
    source="Groq, OpenAI: 413 or 429 `Request too large for … Limit 6000, Requested 7343`",
    statuses=frozenset({0, 400, 413, 429}),
    starts=r"request too large",
    has=r"\blimit \d+, requested \d+",
)
_TOO_MANY_TOKENS_FOR_KEY = Meaning(
    Outcome.REFUSED,
    Scope.KEY,
    _TOO_LARGE,
    source="Groq: 413 of type `tokens` with code rate_limit_exceeded",
    statuses=frozenset({413}),
    codes=_set("rate_limit_exceeded tokens tokens_limit_reached"),
)
_TOO_DEAR_FOR_KEY = Meaning(
    Outcome.REFUSED,
    Scope.KEY,
    "asks for more than the key's credit can pay",
    source="OpenRouter: 402 `… requires more credits, or fewer max_tokens. You requested up to …`",
    statuses=frozenset({402}),
    has=r"fewer max_tokens|can only afford",
)
_NO_CREDIT = Meaning(
    Outcome.BAD_KEY,
    Scope.KEY,
    "the account has no quota or credit left",
    source="OpenAI: error codes; DeepSeek: 402 `Insufficient Balance`; Anthropic: credit balance",
    codes=_set("insufficient_quota billing_hard_limit_reached billing_not_active"),
    starts=r"insufficient (balance|credits|quota)|your credit balance is too low",
)
_BAD_KEY = Meaning(
    Outcome.BAD_KEY,
    Scope.KEY,
    "the key was refused",
    source="xAI: 400 `Incorrect API key provided`; Gemini: 400 `API key not valid`",
    statuses=frozenset({400, 401}),
    codes=_set("invalid_api_key incorrect_api_key invalid_authentication"),
    starts=r"(incorrect|invalid) api.key|api key (not valid|expired|not found)",
)
_ACCOUNT_BARRED = Meaning(
    Outcome.BAD_KEY,
    Scope.KEY,
    "the account may not use this API",
    source="Groq: 400 organization_restricted; Gemini: 400 FAILED_PRECONDITION; OpenAI: 403",
    codes=_set("organization_restricted account_deactivated unsupported_country_region_territory"),
    starts=r"user location is not supported|organization has been restricted|"
    r"(your|this) (account|organization|project|api key) (has been |is |was )"
    r"(suspended|deactivated|disabled|restricted|blocked|banned)",
)
_BAD_OUTPUT = Meaning(
    Outcome.REFUSED,
    Scope.ANSWER,
    "generated a malformed tool call or JSON",
    source="Groq: https://console.groq.com/docs/tool-use, https://console.groq.com/docs/errors",
    codes=_set("tool_use_failed json_validate_failed output_parse_failed"),
)
_MODEL_GONE = Meaning(
    Outcome.REFUSED,
    Scope.MODEL,
    "does not serve the model any more",
    source="Groq: 400 model_decommissioned; OpenRouter: 400 `… is not a valid model ID`; "
    "Gemini: 404 `… is not found for API version`",
    codes=_set("model_decommissioned model_deprecated model_retired"),
    has=r"is not a valid model id|not found for api version|unexpected model name|"
    r"model.{0,200}(has been|was|is) (decommissioned|deprecated|retired|shut ?down|sunset|removed|"
    r"no longer (available|supported))",
)
_NO_ACCESS_TO_MODEL = Meaning(
    Outcome.REFUSED,
    Scope.DEPLOYMENT,
    "does not serve the model with this key",
    source="OpenAI: 403, 404 model_not_found; Groq: model_permission_blocked_org, _project, "
    "model_terms_required; Mistral: 400 invalid_model; DeepSeek: 400 `Model Not Exist`",
    codes=_set(
        "model_not_found model_not_available model_permission_blocked_org invalid_model "
        "model_permission_blocked_project model_terms_required model_not_supported unknown_model"
    ),
    starts=r"model not exist|unknown model|no such model|invalid model|"
    r"(the )?model .{0,200} (does not exist|(was )?not found|is not available)",
    has=r"must be verified to use the model|"
    r"(do(es)? not|don't) have access to (the |this )?model|"
    r"not (authorized|allowed|permitted) to (access|use) (the |this )?model",
)
_BACKEND_LIMIT = Meaning(
    Outcome.REFUSED,
    Scope.LIMITS,
    "is beyond what this model takes",
    source="OpenAI: context_length_exceeded, unsupported_parameter; vLLM, llama.cpp, OpenRouter: "
    "`maximum context length is …`; Anthropic: `prompt is too long`; Gemini: `input token count`; "
    "Groq: `logprobs is not supported with this model`; OpenRouter: `No endpoints found that …`",
    statuses=frozenset({0, 400, 404, 413, 422}),
    codes=_set(
        "context_length_exceeded context_window_exceeded exceed_context_size_error "
        "string_above_max_length max_tokens_exceeded unsupported_parameter unsupported_value"
    ),
    starts=r"(prompt|input) is too long|please reduce the length|no endpoints found that",
    has=r"\b(maximum|max|model's) (context|input|prompt) (length|window|size)|"
    r"\bcontext (length|window|size) (of|is|exceed)|"
    r"exceeds? (the )?(available |model's |maximum )?context|"
    r"input token count.{0,80}exceed|"
    r"\bmax_(completion_|output_)?tokens\b.{0,80}"
    r"(too large|less than or equal|exceed|maximum|at most|must be)|"
    r"\b(logprobs|tools?|tool_choice|tool (use|calling)|functions?|function calling|"
    r"response_format|json_schema|json (mode|schema)|images?|image (input|content)|vision|audio|"
    r"reasoning_effort|parallel_tool_calls)\b`?'? "
    r"(is|are) (not (yet )?|un)(supported|available|enabled|implemented)|"
    r"\b(does not|doesn't|do not) support (the )?['`]?"
    r"(tool|function|image|vision|audio|logprobs|json|structured|reasoning|response_format)",
)
# In order: a refusal that names the request comes before one that would take a key away.
MEANINGS = (
    _MODERATED,
    _TOO_LARGE_FOR_KEY,
    _TOO_MANY_TOKENS_FOR_KEY,
    _TOO_DEAR_FOR_KEY,
    _NO_CREDIT,
    _BAD_KEY,
    _ACCOUNT_BARRED,
    _BAD_OUTPUT,
    _MODEL_GONE,
    _NO_ACCESS_TO_MODEL,
    _BACKEND_LIMIT,
)

# What refusals say of the longest answer, in OpenAI's, Groq's, Anthropic's, DeepSeek's and Google's
# words, and in Pydantic's.
_NAME = r"max[_ ]?(?:completion|output|new)?[_ ]?tokens"
_NAMES_LENGTH = re.compile(rf"{_NAME}|output tokens|the (?:completion|output)\b", re.IGNORECASE)
_LONGEST = re.compile(
    r"(?:less than or equal to|at most|<=|> (?=\d+, which is the maximum)|"
    r"range of max_tokens (?:is|should be) \[\d+,)\W{0,3}(\d+)|to (\d+) \(exclusive\)",
    re.IGNORECASE,
)
# Of these alone it is certain that they quote no caller.
_BEGINS_WITH_LENGTH = re.compile(
    rf"(?:invalid |range of |unable to submit request because it has a )?\W?{_NAME}\b",
    re.IGNORECASE,
)
# What a context window leaves: in words of OpenAI, OpenRouter, vLLM and SGLang, of Together, and of
# Anthropic.
_WINDOW = re.compile(
    r"context (?:length|window|size)\D{1,20}(\d+)|"
    r"`inputs` tokens \+ `max_new_tokens` must be <= (\d+)"
)
_TOTAL = re.compile(r"(?:requested|total of)(?: about| at least)? (\d+) tokens")
_OUTPUT = re.compile(r"(\d+) (?:(?:tokens for|in) the (?:completion|output)|output tokens)")
_INPUT = re.compile(r"(\d+) (?:input|`inputs`) tokens")
_SUM = re.compile(r"context limit: (\d+) \+ \d+ > (\d+)")
# If less is left for the answer, the prompt is too long.
_SHORTEST_OUTPUT = 256


class OutputLimit(NamedTuple):
    """The longest answer that a backend gives, in tokens.

    Args:
        is_of_model: whether it applies to other requests as well.
    """

    tokens: int
    is_of_model: bool


def output_limit(error: Mapping[str, Any]) -> OutputLimit | None:
    """Return the longest answer that a refusal names; None if it concerns something else.

    Args:
        error: in OpenAI's shape.
    """
    message = error["message"]
    if not _NAMES_LENGTH.search(f"{message} {error.get('param')} {error.get('detail')}"):
        return None
    if (summed := _SUM.search(message)) or _WINDOW.search(message):
        tokens = int(summed[2]) - int(summed[1]) if summed else _left_of_window(message)
        is_of_model = False
    else:
        tokens = _first_number(_LONGEST, message)
        tokens -= "(exclusive)" in message
        is_of_model = bool(_BEGINS_WITH_LENGTH.match(message))
    return OutputLimit(tokens, is_of_model) if tokens >= _SHORTEST_OUTPUT else None


def _left_of_window(message: str) -> int:
    total, output = _first_number(_TOTAL, message), _first_number(_OUTPUT, message)
    prompt = total - output if total and output else _first_number(_INPUT, message)
    return _first_number(_WINDOW, message) - prompt if prompt else 0


def _first_number(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.search(text)
    return 0 if match is None else int(next(filter(None, match.groups())))


def meaning_of(status: int, error: Mapping[str, Any]) -> Meaning | None:
    """Look an error up.

    Args:
        status: 0 if it came inside a 200 and names none.
        error: in OpenAI's shape.
    """
    metadata = error.get("metadata")  # OpenRouter's
    if isinstance(metadata, dict) and ("reasons" in metadata or "flagged_input" in metadata):
        return _MODERATED
    return next((meaning for meaning in MEANINGS if meaning.matches(status, error)), None)
