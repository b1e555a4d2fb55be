"""What is measured: the name, the sort, the labels and the buckets of each figure.

Names that begin with `gen_ai_` are those of OpenTelemetry's semantic conventions for GenAI, as an
OpenTelemetry collector writes them for Prometheus; their buckets hold the ones recommended there
and go further where language models do. `gen_ai_server_…` is what callers see of the gateway,
`gen_ai_client_…` what the gateway sees of the upstreams.

An instance's label is `provider_instance`, as Prometheus itself calls each place that it scrapes
`instance`.
"""

from __future__ import annotations

from dataclasses import dataclass

COUNTER = "counter"
GAUGE = "gauge"
HISTOGRAM = "histogram"

_DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96)
DURATION_S = (*_DURATION_S, 81.92, 163.84, 327.68, 655.36)
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0)
FIRST_TOKEN_S = (*_FIRST_TOKEN_S, 7.5, 10.0, 20.0, 40.0, 80.0)
_OUTPUT_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
OUTPUT_TOKEN_S = (0.001, 0.0025, 0.005, *_OUTPUT_TOKEN_S)
TOKENS = tuple(float(4**power) for power in range(14))
OVERHEAD_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
DELAY_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)

INSTANCE = ("provider", "provider_instance")
# Kinds of tokens, by OpenTelemetry's names.
INPUT, OUTPUT = "input", "output"
SERVED = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
ASKED = ("gen_ai_operation_name", "gen_ai_provider_name", "provider_instance")


@dataclass(frozen=True, slots=True)
class Family:
    """One figure, with all its labels' values.

    Args:
        name: as Prometheus has it.
        sort: COUNTER, GAUGE or HISTOGRAM.
        help: one sentence.
        labels: their names.
        buckets: the upper bounds of a histogram's.
    """

    name: str
    sort: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


REQUESTS = Family(
    "nexus_requests_total",
    COUNTER,
    "Requests that have ended, by door, class of the HTTP status, and how they ended.",
    ("endpoint", "status", "outcome"),
)
CALLER_REQUESTS = Family(
    "nexus_caller_requests_total",
    COUNTER,
    "Requests that have ended, by which of GATEWAY_KEYS they came with.",
    ("caller", "status"),
)
REFUSED = Family(
    "nexus_refused_requests_total",
    COUNTER,
    "Requests that were refused before a door took them in, by HTTP status and reason.",
    ("status", "reason"),
)
ATTEMPTS = Family(
    "nexus_attempts_total",
    COUNTER,
    "Attempts at instances, by how they ended.",
    (*INSTANCE, "outcome"),
)
FAILOVERS = Family(
    "nexus_failovers_total",
    COUNTER,
    "Attempts after which another instance was asked, by who failed and how.",
    (*INSTANCE, "outcome"),
)
RETRIES_DENIED = Family(
    "nexus_retries_denied_total",
    COUNTER,
    "Further attempts that were not made, as there had been too many of late.",
)
HEDGED = Family(
    "nexus_hedged_requests_total", COUNTER, "Requests for which two instances were asked at a time."
)
RESUMPTIONS = Family(
    "nexus_resumptions_total", COUNTER, "Answers that broke and that another instance went on with."
)
CALLER_TOKENS = Family(
    "nexus_caller_tokens_total",
    COUNTER,
    "Tokens used, by which of GATEWAY_KEYS they were used with.",
    ("caller", "gen_ai_token_type"),
)
INSTANCE_TOKENS = Family(
    "nexus_tokens_total", COUNTER, "Tokens used, by instance.", (*INSTANCE, "gen_ai_token_type")
)
REQUEST_DURATION = Family(
    "gen_ai_server_request_duration_seconds",
    HISTOGRAM,
    "From a request's coming to the end of its answer, all attempts included.",
    (*SERVED, "error_type"),
    DURATION_S,
)
FIRST_TOKEN = Family(
    "gen_ai_server_time_to_first_token_seconds",
    HISTOGRAM,
    "From a streamed request's coming to its first content, all attempts included.",
    SERVED,
    FIRST_TOKEN_S,
)
OUTPUT_TOKEN = Family(
    "gen_ai_server_time_per_output_token_seconds",
    HISTOGRAM,
    "Time for each token after the first, of streams that ended well; reasoning left out.",
    SERVED,
    OUTPUT_TOKEN_S,
)
ATTEMPT_DURATION = Family(
    "gen_ai_client_operation_duration_seconds",
    HISTOGRAM,
    "One attempt at an instance, from its beginning to its failure or the end of the answer.",
    (*ASKED, "error_type"),
    DURATION_S,
)
FIRST_CHUNK = Family(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    HISTOGRAM,
    "From the beginning of the attempt that brought a stream to its first content.",
    ASKED,
    FIRST_TOKEN_S,
)
TOKEN_USAGE = Family(
    "gen_ai_client_token_usage",
    HISTOGRAM,
    "Tokens that one request used.",
    (*SERVED, "gen_ai_token_type"),
    TOKENS,
)
OVERHEAD = Family(
    "nexus_overhead_seconds",
    HISTOGRAM,
    "Time to the first content that the instance did not take, where the first one answered.",
    ("endpoint",),
    OVERHEAD_S,
)
FAILOVER_DELAY = Family(
    "nexus_failover_delay_seconds",
    HISTOGRAM,
    "Time to the first content that was lost before the attempt that brought it began.",
    ("endpoint",),
    DELAY_S,
)
IN_FLIGHT = Family("nexus_requests_in_flight", GAUGE, "Requests in flight.")
WORKERS = Family("nexus_workers", GAUGE, "Worker processes that serve.")
BUILD = Family("nexus_build_info", GAUGE, "Always 1; the labels say what runs.", ("version",))
INSTANCE_INFO = Family(
    "nexus_instance_info",
    GAUGE,
    "Always 1; the model is what the instance is asked for when nobody names one.",
    (*INSTANCE, "model"),
)
ENABLED = Family(
    "nexus_instance_enabled", GAUGE, "1 where the instance is switched on, else 0.", INSTANCE
)
AVAILABLE = Family(
    "nexus_instance_available",
    GAUGE,
    "1 where the instance serves: switched on, not parked, its circuit closed; else 0.",
    INSTANCE,
)
CIRCUIT = Family(
    "nexus_instance_circuit_state",
    GAUGE,
    "1 for the state that the circuit is in (closed, open, half_open), 0 for the others.",
    (*INSTANCE, "state"),
)
PARKED = Family(
    "nexus_instance_parked",
    GAUGE,
    "1 for the reason why the instance is left alone (bad_key, rate_limited, resting), else 0.",
    (*INSTANCE, "reason"),
)
PARKED_FOR = Family(
    "nexus_instance_parked_seconds",
    GAUGE,
    "How much longer the instance is left alone; 0 where it is not.",
    INSTANCE,
)
HEALTH = Family("nexus_instance_health_score", GAUGE, "Health score, from 0.05 to 1.", INSTANCE)
SUCCESS = Family(
    "nexus_instance_success_ratio", GAUGE, "Share of successes of late, from 0 to 1.", INSTANCE
)
QUOTA = Family(
    "nexus_instance_quota_left_ratio",
    GAUGE,
    "Share left of the rate limit that is nearest, from 0 to 1; absent where none is known.",
    INSTANCE,
)
INSTANCE_IN_FLIGHT = Family(
    "nexus_instance_requests_in_flight", GAUGE, "Attempts in flight at the instance.", INSTANCE
)
MODEL_INSTANCES = Family(
    "nexus_model_instances", GAUGE, "Instances that are known to serve the model.", ("model",)
)
MODEL_AVAILABLE = Family(
    "nexus_model_instances_available",
    GAUGE,
    "Those of them that serve: see nexus_instance_available.",
    ("model",),
)
CPU = Family("process_cpu_seconds_total", COUNTER, "CPU time of all workers, user and system.")
MEMORY = Family(
    "process_resident_memory_bytes", GAUGE, "Resident memory of all workers, shared pages included."
)
OPEN_FDS = Family("process_open_fds", GAUGE, "Open file descriptors of all workers.")
MAX_FDS = Family("process_max_fds", GAUGE, "Most file descriptors that all workers may open.")

FAMILIES: tuple[Family, ...] = tuple(
    found for found in list(globals().values()) if isinstance(found, Family)
)
BY_NAME = {family.name: family for family in FAMILIES}
