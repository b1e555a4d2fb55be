"""Name, kind, help, labels and buckets of every metric.

Names that begin with `gen_ai_` are those of OpenTelemetry's semantic conventions for GenAI, as an
OpenTelemetry collector writes them for Prometheus; their buckets contain the recommended ones and
extend them to what language models need. `gen_ai_server_…` is what callers observe of the gateway,
`gen_ai_client_…` what the gateway observes of the upstreams.

The label of an instance is `provider_instance`, as Prometheus calls each of its targets `instance`.
"""

from __future__ import annotations

from dataclasses import dataclass

COUNTER = "counter"
GAUGE = "gauge"
HISTOGRAM = "histogram"

DURATION_S = tuple(0.01 * 2**power for power in range(17))
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0)
FIRST_TOKEN_S = (*_FIRST_TOKEN_S, 7.5, 10.0, 20.0, 40.0, 80.0)
_OUTPUT_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
OUTPUT_TOKEN_S = (0.001, 0.0025, 0.005, *_OUTPUT_TOKEN_S)
TOKENS = tuple(float(4**power) for power in range(14))
OVERHEAD_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
DELAY_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)

INSTANCE = ("provider", "provider_instance")
SERVED = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
ASKED = ("gen_ai_operation_name", "gen_ai_provider_name", "provider_instance")


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with all its series. `buckets` are the upper bounds of a histogram's."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        if self.buckets:
            return HISTOGRAM
        return COUNTER if self.name.endswith("_total") else GAUGE


REQUESTS = Family(
    "nexus_requests_total",
    "Requests by endpoint, status class and outcome.",
    ("endpoint", "status", "outcome"),
)
CALLER_REQUESTS = Family(
    "nexus_caller_requests_total", "Requests by gateway key and status class.", ("caller", "status")
)
REFUSED = Family(
    "nexus_refused_requests_total",
    "Requests rejected before they reached an endpoint, by HTTP status and reason.",
    ("status", "reason"),
)
ATTEMPTS = Family(
    "nexus_attempts_total", "Attempts by instance and outcome.", (*INSTANCE, "outcome")
)
FAILOVERS = Family(
    "nexus_failovers_total",
    "Attempts that were followed by an attempt on a different instance, by failed instance and "
    "outcome.",
    (*INSTANCE, "outcome"),
)
RETRIES_DENIED = Family(
    "nexus_retries_denied_total", "Retries that the retry budget did not allow."
)
HEDGED = Family(
    "nexus_hedged_requests_total", "Requests that were sent to a second instance as well."
)
RESUMPTIONS = Family("nexus_resumptions_total", "Broken answers that another instance continued.")
CALLER_TOKENS = Family(
    "nexus_caller_tokens_total", "Tokens by gateway key.", ("caller", "gen_ai_token_type")
)
INSTANCE_TOKENS = Family(
    "nexus_tokens_total", "Tokens by instance.", (*INSTANCE, "gen_ai_token_type")
)
REQUEST_DURATION = Family(
    "gen_ai_server_request_duration_seconds",
    "From a request's arrival to the end of its response, all attempts included.",
    (*SERVED, "error_type"),
    DURATION_S,
)
FIRST_TOKEN = Family(
    "gen_ai_server_time_to_first_token_seconds",
    "From a streamed request's arrival to its first content, all attempts included.",
    SERVED,
    FIRST_TOKEN_S,
)
OUTPUT_TOKEN = Family(
    "gen_ai_server_time_per_output_token_seconds",
    "Time per token after the first, of successful streams, without reasoning tokens.",
    SERVED,
    OUTPUT_TOKEN_S,
)
ATTEMPT_DURATION = Family(
    "gen_ai_client_operation_duration_seconds",
    "From an attempt's start to its failure or the end of the response.",
    (*ASKED, "error_type"),
    DURATION_S,
)
FIRST_CHUNK = Family(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "From the start of a stream's answering attempt to its first content.",
    ASKED,
    FIRST_TOKEN_S,
)
TOKEN_USAGE = Family(
    "gen_ai_client_token_usage", "Tokens per request.", (*SERVED, "gen_ai_token_type"), TOKENS
)
OVERHEAD = Family(
    "nexus_overhead_seconds",
    "Time to the first content that the gateway added, for requests with one attempt.",
    ("endpoint",),
    OVERHEAD_S,
)
FAILOVER_DELAY = Family(
    "nexus_failover_delay_seconds",
    "Time to the first content that failed attempts and pauses took before the answering attempt.",
    ("endpoint",),
    DELAY_S,
)
IN_FLIGHT = Family("nexus_requests_in_flight", "Requests in flight.")
WORKERS = Family("nexus_workers", "Worker processes that serve requests.")
BUILD = Family("nexus_build_info", "Always 1; the label is the version.", ("version",))
INSTANCE_INFO = Family(
    "nexus_instance_info", "Always 1; the model is the instance's default.", (*INSTANCE, "model")
)
ENABLED = Family("nexus_instance_enabled", "1 if the instance is enabled, otherwise 0.", INSTANCE)
AVAILABLE = Family(
    "nexus_instance_available",
    "1 if the instance is enabled and not parked and its circuit is closed, otherwise 0.",
    INSTANCE,
)
CIRCUIT = Family(
    "nexus_instance_circuit_state",
    "1 for the current state of the circuit (closed, open, half_open), 0 for the others.",
    (*INSTANCE, "state"),
)
PARKED = Family(
    "nexus_instance_parked",
    "1 for the reason why the instance is parked (bad_key, rate_limited, resting), otherwise 0.",
    (*INSTANCE, "reason"),
)
PARKED_FOR = Family(
    "nexus_instance_parked_seconds",
    "Remaining time for which the instance is parked; 0 if it is not.",
    INSTANCE,
)
HEALTH = Family("nexus_instance_health_score", "Health score, from 0.05 to 1.", INSTANCE)
SUCCESS = Family(
    "nexus_instance_success_ratio", "Recent share of successes, from 0 to 1.", INSTANCE
)
QUOTA = Family(
    "nexus_instance_quota_left_ratio",
    "Remaining share of the rate limit that is closest to its end, from 0 to 1; absent if unknown.",
    INSTANCE,
)
INSTANCE_IN_FLIGHT = Family(
    "nexus_instance_requests_in_flight", "Attempts in flight at the instance.", INSTANCE
)
MODEL_INSTANCES = Family(
    "nexus_model_instances", "Instances that are known to serve the model.", ("model",)
)
MODEL_AVAILABLE = Family(
    "nexus_model_instances_available",
    "Those of them that are available, see nexus_instance_available.",
    ("model",),
)
CPU = Family("process_cpu_seconds_total", "CPU time of all workers, user and system.")
MEMORY = Family(
    "process_resident_memory_bytes", "Resident memory of all workers, shared pages included."
)
OPEN_FDS = Family("process_open_fds", "Open file descriptors of all workers.")
MAX_FDS = Family("process_max_fds", "Limit of open file descriptors, of all workers.")

FAMILIES = tuple(value for value in list(globals().values()) if isinstance(value, Family))
BY_NAME = {family.name: family for family in FAMILIES}
