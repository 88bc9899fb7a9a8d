"""Every metric: its name, unit, labels and meaning. Must not know who records or exposes it.

Names and units follow Prometheus' conventions: seconds and bytes, and counters end in `_total`.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from vit_api.errors import error_classes
from vit_api.urgency import LABELS as URGENCIES

TIMES_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets for durations, in seconds: from a cache hit to the default request timeout."""

SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 64.0, 128.0, 256.0)
"""Upper bounds of the buckets for batch sizes, in images."""

CONFIDENCES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Upper bounds of the buckets for confidences."""

DIFFERENCES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper bounds of the buckets for differences between two versions' probabilities."""

MAX_CLASS_LABELS = 100
"""Classes of the model that have series of their own, the first ones; the rest share one."""

_MAX_LABEL_CHARACTERS = 100

OTHER_CLASSES = "other"
"""The label of the rest."""

EMBEDDINGS = "/v1/embeddings"

ENDPOINTS = ("/predict", "/predict/batch", "/", "/v2/models/infer", "/v1/moderations", EMBEDDINGS)

CLIENT_LEFT = 499
"""Status recorded for a request whose client disconnected before the response; nginx's number, not HTTP's."""


STATUSES = tuple(str(status) for status in sorted({200, CLIENT_LEFT} | {kind.status for kind in error_classes()}))
REASONS = tuple(sorted({kind.code for kind in error_classes()}))


class Kind(enum.Enum):
    """The type of a metric, as in Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: The name in Prometheus; for a histogram, without `_bucket`, `_sum` and `_count`.
        kind: Its type.
        help: Its meaning, a phrase without a full stop.
        labels: The names of its labels.
        values: The possible values of each label if they are known at startup. Otherwise the metric has no cells in
            shared memory, and is read from its source at each scrape.
        buckets: For a histogram: the upper bounds of its buckets, without infinity.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> list[tuple[str, ...]]:
        """Every combination of label values."""
        return list(itertools.product(*self.values))


def _counter(name: str, meaning: str, **values: tuple[str, ...]) -> Metric:
    return Metric(name, Kind.COUNTER, meaning, tuple(values), tuple(values.values()))


def _histogram(name: str, meaning: str, buckets: tuple[float, ...] = TIMES_S, **values: tuple[str, ...]) -> Metric:
    return Metric(name, Kind.HISTOGRAM, meaning, tuple(values), tuple(values.values()), buckets)


# Recorded by the HTTP processes.
REQUESTS = _counter(
    "inference_requests_total",
    "Classification requests, by HTTP status; 499: the client disconnected before the response",
    endpoint=ENDPOINTS,
    status=STATUSES,
)
DURATION = _histogram(
    "inference_duration_seconds",
    "Time from the arrival of a request to its response, cache hits included",
    endpoint=ENDPOINTS,
    urgency=URGENCIES,
)
FAILED_DURATION = _counter(
    "inference_failed_seconds_total", "Time from the arrival of requests to their responses other than 200"
)
RECEIVED = _counter("inference_received_bytes_total", "Size of request bodies", endpoint=ENDPOINTS)
REJECTED = _counter(
    "inference_rejected_total",
    "Requests, or images of a request with several, that failed, by error code",
    reason=REASONS,
    urgency=URGENCIES,
)
LOOK_UP = _counter("cache_lookup_seconds_total", "Time to look up images in the cache", result=("hit", "miss"))
DECODE = _histogram("inference_decode_seconds", "Time to decode an image, without the wait for a thread")
EVICTED = _counter(
    "inference_http_evicted_total", "Connections closed, the idlest first, because file descriptors ran out"
)
PREDICTIONS = _counter(
    "inference_predictions_total",
    "Answered images, cache hits included, by the most probable class",
    label=(),
)
TOP_CONFIDENCE = _histogram(
    "inference_top_confidence", "Confidence of the most probable class of an answered image", CONFIDENCES
)
FLAGGED = _counter(
    "inference_flagged_total",
    "Labels at or above their threshold in answered images, cache hits included; an image may count for several",
    label=(),
)
SHADOW = _counter(
    "inference_shadow_total",
    "Images that another version of the model has answered, by what their mirror said: the same most probable class "
    "(agree) or another one (differ), nothing since it did not run (skipped), or it failed",
    outcome=("agree", "differ", "skipped", "failed"),
)
SHADOW_DIFFERENCE = _histogram(
    "inference_shadow_probability_difference",
    "Difference between the probabilities of the answered class by the mirror and by the version that answered",
    DIFFERENCES,
)
DECISIONS_WRITTEN = _counter("decision_log_written_total", "Decisions that were written to the decision log")
DECISIONS_DROPPED = _counter(
    "decision_log_dropped_total",
    "Decisions that were not logged: the queue was full, the receiver refused them, or the server stopped",
    cause=("full", "refused", "stopped"),
)
DECISION_FAILURES = _counter(
    "decision_log_failures_total", "Attempts to write to the decision log that failed; they are repeated"
)

# Recorded by the workers.
QUEUE_WAIT = _histogram(
    "inference_queue_wait_seconds",
    "Time an image spends in the queue before its batch is dispatched",
    urgency=URGENCIES,
)
SKIPPED = _counter(
    "inference_skipped_total",
    "Images that no batch took: their callers had left (abandoned), or their deadline had passed (expired)",
    cause=("abandoned", "expired"),
    urgency=URGENCIES,
)
BATCH_SIZE = _histogram("inference_batch_size", "Images per batch", SIZES)
BATCH_DURATION = _histogram("inference_batch_duration_seconds", "Time to process a batch, from staging to its answers")
MODEL_DURATION = _histogram(
    "inference_model_duration_seconds", "Time of the model's forward pass for a batch, without staging"
)

# Recorded by the main process.
HTTP_RESTARTS = _counter("inference_http_restarts_total", "HTTP processes that ended unexpectedly and were replaced")

COUNTED = (
    REQUESTS,
    DURATION,
    FAILED_DURATION,
    RECEIVED,
    REJECTED,
    LOOK_UP,
    DECODE,
    EVICTED,
    PREDICTIONS,
    TOP_CONFIDENCE,
    DECISIONS_WRITTEN,
    DECISIONS_DROPPED,
    DECISION_FAILURES,
    QUEUE_WAIT,
    SKIPPED,
    BATCH_SIZE,
    BATCH_DURATION,
    MODEL_DURATION,
    HTTP_RESTARTS,
)
"""Metrics with cells in shared memory; all others are read from their source at each scrape."""

SERVER_WIDE = (EVICTED, DECISIONS_WRITTEN, DECISIONS_DROPPED, DECISION_FAILURES, HTTP_RESTARTS)
"""Those of them that belong to no model, if there are several."""

OF_REQUESTS = (REQUESTS, DURATION, FAILED_DURATION, RECEIVED, REJECTED)
"""Those that also count requests for which no model was chosen."""

OF_MODEL = ("model", "version")
"""Labels of what belongs to a model, with `VIT_API_MODELS`."""

MODERATION = (FLAGGED,)
"""Metrics with cells in shared memory if labels have thresholds."""

MIRROR = (SHADOW, SHADOW_DIFFERENCE)
"""Metrics with cells in shared memory of a version that may have `mirror_traffic`."""


def class_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the label of each class of a model in the metrics; classes with one name share it."""
    own = [label[:_MAX_LABEL_CHARACTERS] for label in labels[:MAX_CLASS_LABELS]]
    return (*own, *[OTHER_CLASSES] * (len(labels) - len(own)))


def counted_for(labels: Sequence[str], *, has_thresholds: bool, may_be_mirror: bool = False) -> tuple[Metric, ...]:
    """Return the metrics with cells in shared memory of a server.

    Args:
        labels: The classes of its model.
        has_thresholds: Whether labels have thresholds.
        may_be_mirror: Whether the model computes what another version answers, or may be told to.
    """
    known = tuple(dict.fromkeys(class_labels(labels)))
    counted = (*COUNTED, *(MODERATION if has_thresholds else ()), *(MIRROR if may_be_mirror else ()))
    return tuple(
        dataclasses.replace(metric, values=(known,)) if metric in (PREDICTIONS, FLAGGED) else metric
        for metric in counted
    )


def _gauge(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, meaning, labels)


def _read_counter(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, meaning, labels)


SLOTS = _gauge("inference_slots", "Queue slots by state", "state")
WORKERS = _gauge("inference_workers", "Workers by state", "state")
READY = _gauge("inference_ready", "1 if the server accepts requests, as /health/ready reports")
STARTUP = _gauge("inference_worker_startup_seconds", "Time the worker's last start took until it was ready", "worker")
WORKER_RESTARTS = _read_counter(
    "inference_worker_restarts_total", "Times a worker ended unexpectedly and was replaced", "worker"
)
IMAGES = _read_counter("inference_images_total", "Images processed by the model", "worker")
MODEL_INFO = _gauge(
    "inference_model_info",
    "Always 1; the labels describe the model and where it runs",
    *("model", "revision", "worker", "device", "device_name", "dtype", "engine"),
)
DEPLOYMENT_READY = _gauge("inference_model_ready", "1 if the version of the model accepts images", *OF_MODEL)
TRAFFIC = _gauge(
    "inference_model_traffic_ratio", "Share of the model's clients that the version is to serve", *OF_MODEL
)
VERSION_INFO = _gauge("inference_version_info", "Always 1; the label is the version of the server", "version")

CACHE_HITS = _read_counter("cache_hits_total", "Images served from the cache, shared memory and Redis included")
CACHE_MISSES = _read_counter("cache_misses_total", "Images that were neither cached nor in flight")
CACHE_COALESCED = _read_counter("cache_coalesced_total", "Images that waited for an identical one in flight")
CACHE_ENTRIES = _gauge("cache_entries", "Entries in the HTTP processes' own caches")
SHARED_HITS = _read_counter(
    "cache_shared_hits_total", "Look-ups in shared memory, after a miss in the HTTP process, that found an entry"
)
SHARED_REJECTED = _read_counter(
    "cache_shared_rejected_total", "Entries in shared memory that were being overwritten, or incomplete"
)
SHARED_ENTRIES = _gauge("cache_shared_entries", "Entries in shared memory, each found by all HTTP processes")
REDIS_UP = _gauge("cache_redis_connections", "HTTP processes that have a working connection to Redis")
REDIS_HITS = _read_counter("cache_redis_hits_total", "Redis look-ups that found an entry")
REDIS_MISSES = _read_counter("cache_redis_misses_total", "Redis look-ups that found none")
REDIS_REJECTED = _read_counter(
    "cache_redis_rejected_total", "Redis entries that were corrupt, invalid or in another format"
)
REDIS_FAILURES = _read_counter("cache_redis_failures_total", "Redis commands that failed or timed out")
REDIS_SKIPPED = _read_counter(
    "cache_redis_skipped_total", "Redis look-ups and writes skipped because Redis was slow, down or full"
)

CPU = _read_counter("process_cpu_seconds_total", "User and system CPU time", "process")
MEMORY = _gauge("process_resident_memory_bytes", "Resident memory size", "process")
VIRTUAL = _gauge("process_virtual_memory_bytes", "Virtual memory size", "process")
STARTED = _gauge("process_start_time_seconds", "Start time, in seconds since the Unix epoch", "process")
OPEN_FILES = _gauge("process_open_fds", "Open file descriptors", "process")
MAX_FILES = _gauge("process_max_fds", "Maximum number of open file descriptors", "process")

GPU_MEMORY_USED = _gauge("gpu_memory_used_bytes", "GPU memory in use, by all programs", "device")
GPU_MEMORY = _gauge("gpu_memory_total_bytes", "Total GPU memory", "device")
GPU_UTILISATION = _gauge(
    "gpu_utilization_ratio", "Fraction of the driver's last sample period in which the GPU was busy", "device"
)
GPU_POWER = _gauge("gpu_power_watts", "Power drawn by the GPU", "device")
GPU_ENERGY = _read_counter("gpu_energy_joules_total", "Energy used by the GPU since its driver was loaded", "device")

PROCESS = (CPU, MEMORY, VIRTUAL, STARTED, OPEN_FILES, MAX_FILES)
GPU = (GPU_MEMORY_USED, GPU_MEMORY, GPU_UTILISATION, GPU_POWER, GPU_ENERGY)
CACHE = (
    CACHE_HITS,
    CACHE_MISSES,
    CACHE_COALESCED,
    CACHE_ENTRIES,
    SHARED_HITS,
    SHARED_REJECTED,
    SHARED_ENTRIES,
)
REDIS = (REDIS_UP, REDIS_HITS, REDIS_MISSES, REDIS_REJECTED, REDIS_FAILURES, REDIS_SKIPPED)
SEVERAL = (DEPLOYMENT_READY, TRAFFIC)
SERVER = (SLOTS, WORKERS, READY, STARTUP, WORKER_RESTARTS, IMAGES, MODEL_INFO, VERSION_INFO)

ALL = (*COUNTED, *MODERATION, *MIRROR, *SERVER, *SEVERAL, *CACHE, *REDIS, *PROCESS, *GPU)
