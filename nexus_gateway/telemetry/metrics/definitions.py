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

INSTANCE = "provider provider_instance"
SERVED = "gen_ai_operation_name gen_ai_provider_name gen_ai_request_model"
ASKED = "gen_ai_operation_name gen_ai_provider_name provider_instance"


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


def _family(name: str, labels: str, help: str, buckets: tuple[float, ...] = ()) -> Family:
    return Family(name, help, tuple(labels.split()), buckets)


# fmt: off
REQUESTS = _family("nexus_requests_total", "endpoint status outcome",
    "Requests by endpoint, status class and outcome.")
CALLER_REQUESTS = _family("nexus_caller_requests_total", "caller status",
    "Requests by gateway key and status class.")
REFUSED = _family("nexus_refused_requests_total", "status reason",
    "Requests rejected before they reached an endpoint, by HTTP status and reason.")
ATTEMPTS = _family("nexus_attempts_total", f"{INSTANCE} outcome",
    "Attempts by instance and outcome.")
FAILOVERS = _family("nexus_failovers_total", f"{INSTANCE} outcome",
    "Attempts that were followed by an attempt on a different instance, by failed instance and "
    "outcome.")
RETRIES_DENIED = _family("nexus_retries_denied_total", "",
    "Retries that the retry budget did not allow.")
HEDGED = _family("nexus_hedged_requests_total", "",
    "Requests that were sent to a second instance as well.")
RESUMPTIONS = _family("nexus_resumptions_total", "",
    "Broken answers that another instance continued.")
CALLER_TOKENS = _family("nexus_caller_tokens_total", "caller gen_ai_token_type",
    "Tokens by gateway key.")
INSTANCE_TOKENS = _family("nexus_tokens_total", f"{INSTANCE} gen_ai_token_type",
    "Tokens by instance.")
CACHED_TOKENS = _family("nexus_cached_tokens_total", INSTANCE,
    "Input tokens that the upstream read from its prompt cache.")
AFFINITY = _family("nexus_affinity_total", "result",
    "Requests of conversations: hit if the instance is the one where it belongs, else moved.")
REQUEST_DURATION = _family("gen_ai_server_request_duration_seconds", f"{SERVED} error_type",
    "From a request's arrival to the end of its response, all attempts included.", DURATION_S)
FIRST_TOKEN = _family("gen_ai_server_time_to_first_token_seconds", SERVED,
    "From a streamed request's arrival to its first content, all attempts included.", FIRST_TOKEN_S)
OUTPUT_TOKEN = _family("gen_ai_server_time_per_output_token_seconds", SERVED,
    "Time per token after the first, of successful streams, without reasoning "
    "tokens.", OUTPUT_TOKEN_S)
ATTEMPT_DURATION = _family("gen_ai_client_operation_duration_seconds", f"{ASKED} error_type",
    "From an attempt's start to its failure or the end of the response.", DURATION_S)
FIRST_CHUNK = _family("gen_ai_client_operation_time_to_first_chunk_seconds", ASKED,
    "From the start of a stream's answering attempt to its first content.", FIRST_TOKEN_S)
TOKEN_USAGE = _family("gen_ai_client_token_usage", f"{SERVED} gen_ai_token_type",
    "Tokens per request.", TOKENS)
OVERHEAD = _family("nexus_overhead_seconds", "endpoint",
    "Time to the first content that the gateway added, for requests with one attempt.", OVERHEAD_S)
FAILOVER_DELAY = _family("nexus_failover_delay_seconds", "endpoint",
    "Time to the first content that failed attempts and pauses took before the answering "
    "attempt.", DELAY_S)
IN_FLIGHT = _family("nexus_requests_in_flight", "", "Requests in flight.")
CONNECTIONS = _family("nexus_caller_connections", "",
    "Open connections of callers, also idle ones.")
WORKERS = _family("nexus_workers", "", "Worker processes that serve requests.")
BUILD = _family("nexus_build_info", "version", "Always 1; the label is the version.")
INSTANCE_INFO = _family("nexus_instance_info", f"{INSTANCE} model",
    "Always 1; the model is the instance's default.")
ENABLED = _family("nexus_instance_enabled", INSTANCE, "1 if the instance is enabled, otherwise 0.")
AVAILABLE = _family("nexus_instance_available", INSTANCE,
    "1 if the instance is enabled and not parked and its circuit is closed, otherwise 0.")
CIRCUIT = _family("nexus_instance_circuit_state", f"{INSTANCE} state",
    "1 for the current state of the circuit (closed, open, half_open), 0 for the others.")
PARKED = _family("nexus_instance_parked", f"{INSTANCE} reason",
    "1 for the reason why the instance is parked (bad_key, unknown_model, rate_limited, resting), "
    "otherwise 0.")
PARKED_FOR = _family("nexus_instance_parked_seconds", INSTANCE,
    "Remaining time for which the instance is parked; 0 if it is not.")
HEALTH = _family("nexus_instance_health_score", INSTANCE, "Health score, from 0.05 to 1.")
SUCCESS = _family("nexus_instance_success_ratio", INSTANCE,
    "Recent share of successes, from 0 to 1.")
QUOTA = _family("nexus_instance_quota_left_ratio", INSTANCE,
    "Remaining share of the rate limit that is closest to its end, from 0 to 1; absent if unknown.")
INSTANCE_IN_FLIGHT = _family("nexus_instance_requests_in_flight", INSTANCE,
    "Attempts in flight at the instance.")
MODEL_INSTANCES = _family("nexus_model_instances", "model",
    "Instances that are known to serve the model.")
MODEL_AVAILABLE = _family("nexus_model_instances_available", "model",
    "Those of them that are available, see nexus_instance_available.")
LOG_DROPPED = _family("nexus_log_lines_dropped_total", "",
    "Lines of the log that were dropped, as nothing read it or it could not be written.")
CPU = _family("process_cpu_seconds_total", "", "CPU time of all workers, user and system.")
MEMORY = _family("process_resident_memory_bytes", "",
    "Resident memory of all workers, shared pages included.")
OPEN_FDS = _family("process_open_fds", "", "Open file descriptors of all workers.")
MAX_FDS = _family("process_max_fds", "", "Limit of open file descriptors, of all workers.")
# fmt: on

FAMILIES = tuple(value for value in list(globals().values()) if isinstance(value, Family))
BY_NAME = {family.name: family for family in FAMILIES}
