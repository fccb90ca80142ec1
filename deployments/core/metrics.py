"""Every metric of the service in one place, and the seam through which code records them.

Business code knows `Metrics` and the constants below, never Prometheus or Ray. The README's metrics table mirrors
`ALL`; a contract test compares them. Labels are bounded: never a text, a user or a request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKEN_BUCKETS = (16, 64, 256, 1024, 4096, 16384, 65536)
SHARE_BUCKETS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, eq=False)  # each is one constant, found by identity: hashing it costs nothing
class Metric:
    """A metric's name, kind and labels as Prometheus shows them.

    `buckets` are a histogram's upper bounds; `combine` says what replicas' values make together.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: Sequence[float] = ()
    combine: Literal["sum", "max"] = "sum"


class Metrics(Protocol):
    """Records values: a counter grows by `value`, a gauge becomes it, a histogram observes it."""

    def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Record one value; `labels` must be exactly the metric's. Cheap enough for the hot path, never raises."""


class NoMetrics:
    """Records nothing: for tests and programs that do not want metrics."""

    def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Do nothing."""


REQUESTS = Metric(
    "intent_classification_requests_total",
    "counter",
    "Texts, by outcome: cache_hit success validation_error (once a request) overloaded unavailable error.",
    ("status",),
)
DURATION = Metric(
    "intent_classification_duration_seconds",
    "histogram",
    "Time from a text's arrival at the ingress to its answer, by cache status: hit miss bypass.",
    ("cache_status",),
    LATENCY_BUCKETS_S,
)
FEEDBACK_SUBMISSIONS = Metric(
    "intent_feedback_submissions_total",
    "counter",
    "Feedback records, by type (unknown: refused unread) and outcome: recorded duplicate rejected unavailable.",
    ("feedback_type", "status"),
)
FEEDBACK_CORRECTIONS = Metric(
    "intent_feedback_corrections_total",
    "counter",
    "Corrections recorded, by the intent answered and the intent meant.",
    ("original_intent", "correct_intent"),
)
CACHE_LOOKUPS = Metric(
    "intent_cache_lookups_total",
    "counter",
    "Look-ups in the prediction store, by result: hit miss error (an error counts as a miss).",
    ("result",),
)
CACHE_CALLS = Metric(
    "intent_cache_calls_total",
    "counter",
    "Look-up calls that the cache deployment answered, by transport: direct handle (while there is no connection).",
    ("transport",),
)
LOCAL_LOOKUPS = Metric(
    "intent_cache_local_lookups_total",
    "counter",
    "Look-ups in the ingress replicas' local tiers, by result: hit (a correction too) miss (or still to be kept).",
    ("result",),
)
LOCAL_BYTES = Metric("intent_cache_local_bytes", "gauge", "Memory that the local tiers' answers take.")
JOINED = Metric(
    "intent_single_flight_joined_total", "counter", "Texts answered by a model call that another request had begun."
)
CACHE_ERRORS = Metric(
    "intent_cache_store_errors_total",
    "counter",
    "Round trips to the prediction store that failed or ran out of time, by operation: get put ping purge delete.",
    ("operation",),
)
CACHE_DROPPED = Metric(
    "intent_cache_dropped_total", "counter", "Fresh predictions, once a request, that were not kept: too many waited."
)
BREAKER_OPEN = Metric(
    "intent_cache_breaker_open",
    "gauge",
    "1 while some replica does not ask the cache deployment or the prediction store, because it did not answer.",
    ("part",),
    combine="max",
)
CACHE_CORRUPT = Metric(
    "intent_cache_corrupt_total",
    "counter",
    "Look-ups in the prediction store that found no prediction this version reads: misses, and deleted.",
)
CACHE_GROUP_SIZE = Metric(
    "intent_cache_group_size",
    "histogram",
    "Look-ups carried by one round trip to the prediction store.",
    (),
    SIZE_BUCKETS,
)
MODEL_CALLS = Metric(
    "intent_model_calls_total",
    "counter",
    "Calls that the model deployment answered, by transport: direct handle (while there is no connection).",
    ("transport",),
)
BATCH_SIZE = Metric("intent_model_batch_size", "histogram", "Texts in one forward pass.", (), SIZE_BUCKETS)
BATCH_TOKENS = Metric(
    "intent_model_batch_tokens", "histogram", "Tokens in one forward pass, padding included.", (), TOKEN_BUCKETS
)
PADDING_SHARE = Metric(
    "intent_model_padding_share", "histogram", "Share of a forward pass's tokens that is padding.", (), SHARE_BUCKETS
)
QUEUE_WAIT = Metric(
    "intent_model_queue_wait_seconds", "histogram", "Time a text waited for its batch.", (), LATENCY_BUCKETS_S
)
FORWARD_TIME = Metric(
    "intent_model_forward_seconds",
    "histogram",
    "Time of one batch's forward pass, with the repeats that find a failing text.",
    (),
    LATENCY_BUCKETS_S,
)
QUEUE_TOKENS = Metric("intent_model_queue_tokens", "gauge", "Tokens waiting for a batch.")
DROPPED = Metric(
    "intent_model_dropped_total",
    "counter",
    "Texts without an answer, each once: rejected throttled (by the ingress, because others were rejected) expired "
    "cancelled (its caller left) failed (alone) unavailable.",
    ("reason",),
)
CORRECTIONS_HELD = Metric(
    "intent_corrections_held", "gauge", "Corrections in memory, of the replica that has most.", combine="max"
)
FEEDBACK_PENDING = Metric("intent_feedback_pending", "gauge", "Corrections that wait for approval.", combine="max")
FEEDBACK_MISCOUNTED = Metric(
    "intent_feedback_miscounted_total",
    "counter",
    "Counters that a recount of the feedback log found wrong; the service's log has each.",
)
LOG_LAG = Metric(
    "intent_feedback_lag_seconds",
    "histogram",
    "Time from a log entry's acceptance to its show in an overlay.",
    (),
    LATENCY_BUCKETS_S,
)
MODEL_INFO = Metric(
    "intent_model_info",
    "gauge",
    "1 for each model version that replicas serve, and what computes it, such as `onnx fp32`.",
    ("model_version", "runtime"),
    combine="max",
)

ALL = (
    REQUESTS,
    DURATION,
    FEEDBACK_SUBMISSIONS,
    FEEDBACK_CORRECTIONS,
    CACHE_LOOKUPS,
    CACHE_CALLS,
    LOCAL_LOOKUPS,
    LOCAL_BYTES,
    JOINED,
    CACHE_ERRORS,
    CACHE_DROPPED,
    BREAKER_OPEN,
    CACHE_CORRUPT,
    CACHE_GROUP_SIZE,
    MODEL_CALLS,
    BATCH_SIZE,
    BATCH_TOKENS,
    PADDING_SHARE,
    QUEUE_WAIT,
    FORWARD_TIME,
    QUEUE_TOKENS,
    DROPPED,
    CORRECTIONS_HELD,
    FEEDBACK_PENDING,
    FEEDBACK_MISCOUNTED,
    LOG_LAG,
    MODEL_INFO,
)
