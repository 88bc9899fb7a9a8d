"""Every metric: its name, its unit, its labels and what it means. Knows nothing of who counts or who asks.

Names and units follow Prometheus' conventions: seconds and bytes, counters end in `_total`.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass

from vit_api.errors import ViTError

TIMES_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper ends of the buckets of times, in seconds: from a hit in the cache to the default time limit."""

SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 64.0, 128.0, 256.0)
"""Upper ends of the buckets of batch sizes, in images."""

ENDPOINTS = ("/predict", "/predict/batch", "/", "/v2/models/infer")

CLIENT_LEFT = 499
"""What a request counts as whose client hung up before the answer; nginx's number, not HTTP's."""


def _failures() -> list[type[ViTError]]:
    """Return every kind of failure."""
    kinds, found = [ViTError], []
    while kinds:
        kind = kinds.pop()
        found.append(kind)
        kinds += kind.__subclasses__()
    return found


STATUSES = tuple(str(status) for status in sorted({200, CLIENT_LEFT} | {kind.status for kind in _failures()}))
REASONS = tuple(sorted({kind.code for kind in _failures()}))


class Kind(enum.Enum):
    """How a metric behaves; Prometheus' words."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: As Prometheus sees it; of a histogram without `_bucket`, `_sum` and `_count`.
        kind: How it behaves.
        help: What it means.
        labels: The names of its labels.
        values: What each label may be, where that is known before the start; else nobody counts it here, and it is
            read from elsewhere at each scrape.
        buckets: Of a histogram: the upper ends, without infinity.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> list[tuple[str, ...]]:
        """Every combination of the labels' values."""
        return list(itertools.product(*self.values))


def _counter(name: str, meaning: str, **values: tuple[str, ...]) -> Metric:
    return Metric(name, Kind.COUNTER, meaning, tuple(values), tuple(values.values()))


def _histogram(name: str, meaning: str, buckets: tuple[float, ...] = TIMES_S, **values: tuple[str, ...]) -> Metric:
    return Metric(name, Kind.HISTOGRAM, meaning, tuple(values), tuple(values.values()), buckets)


# Counted by the HTTP processes.
REQUESTS = _counter(
    "inference_requests_total",
    "Requests for a classification, by their answer's HTTP status; 499: the client hung up first",
    endpoint=ENDPOINTS,
    status=STATUSES,
)
DURATION = _histogram(
    "inference_duration_seconds", "From a request's first byte to its answer, hits included", endpoint=ENDPOINTS
)
RECEIVED = _counter("inference_received_bytes_total", "Bytes of request bodies", endpoint=ENDPOINTS)
REJECTED = _counter(
    "inference_rejected_total", "Requests, or images of a batch, that got an error, by its code", reason=REASONS
)
DECODE = _histogram("inference_decode_seconds", "One image's decoding, without waiting for a thread")

# Counted by the workers.
QUEUE_WAIT = _histogram("inference_queue_wait_seconds", "One image's wait from its entry into the queue to its batch")
BATCH_SIZE = _histogram("inference_batch_size", "Images in a batch", SIZES)
BATCH_DURATION = _histogram("inference_batch_duration_seconds", "One batch, from its gathering to its answers")
MODEL_DURATION = _histogram("inference_model_duration_seconds", "The model's run for one batch, without the staging")

# Counted by the main process.
HTTP_RESTARTS = _counter("inference_http_restarts_total", "HTTP processes that died and were started again")

COUNTED = (
    REQUESTS,
    DURATION,
    RECEIVED,
    REJECTED,
    DECODE,
    QUEUE_WAIT,
    BATCH_SIZE,
    BATCH_DURATION,
    MODEL_DURATION,
    HTTP_RESTARTS,
)
"""What has a place of its own in shared memory; the rest is read at each scrape from where it is known."""


def _gauge(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, meaning, labels)


def _read_counter(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, meaning, labels)


SLOTS = _gauge("inference_slots", "Places for images, by what becomes of the image; all but free are taken", "state")
WORKERS = _gauge("inference_workers", "Workers, by what they do", "state")
READY = _gauge("inference_ready", "1 if images are welcome, as /health/ready says")
STARTUP = _gauge("inference_worker_startup_seconds", "What the worker's last start took until it was ready", "worker")
WORKER_RESTARTS = _read_counter("inference_worker_restarts_total", "How often a worker died and was replaced", "worker")
IMAGES = _read_counter("inference_images_total", "Images that the model ran for", "worker")
MODEL_INFO = _gauge(
    "inference_model_info",
    "1; the labels say what runs",
    *("model", "revision", "worker", "device", "device_name", "dtype", "engine"),
)
VERSION_INFO = _gauge("inference_version_info", "1; the labels say which version of the server runs", "version")

CACHE_HITS = _read_counter("cache_hits_total", "Images answered from the cache, Redis included")
CACHE_MISSES = _read_counter("cache_misses_total", "Images that were neither remembered nor under way")
CACHE_COALESCED = _read_counter("cache_coalesced_total", "Images that waited for an identical one under way")
CACHE_ENTRIES = _gauge("cache_entries", "Answers that are remembered now")
REDIS_UP = _gauge("cache_redis_connections", "HTTP processes for which Redis is up")
REDIS_HITS = _read_counter("cache_redis_hits_total", "Look-ups that Redis answered")
REDIS_MISSES = _read_counter("cache_redis_misses_total", "Look-ups that Redis knew nothing of")
REDIS_REJECTED = _read_counter("cache_redis_rejected_total", "Entries in Redis of another format, damaged or senseless")
REDIS_FAILURES = _read_counter("cache_redis_failures_total", "Redis commands that failed or took too long")
REDIS_SKIPPED = _read_counter("cache_redis_skipped_total", "Look-ups and writes given up, as Redis was slow or down")

CPU = _read_counter("process_cpu_seconds_total", "User and system time", "process")
MEMORY = _gauge("process_resident_memory_bytes", "Resident memory", "process")
VIRTUAL = _gauge("process_virtual_memory_bytes", "Virtual memory", "process")
STARTED = _gauge("process_start_time_seconds", "When it started, in seconds since 1970", "process")
OPEN_FILES = _gauge("process_open_fds", "Open file descriptors", "process")
MOST_FILES = _gauge("process_max_fds", "How many file descriptors may be open", "process")

GPU_MEMORY_USED = _gauge("gpu_memory_used_bytes", "Memory of the GPU in use, by whomever", "device")
GPU_MEMORY = _gauge("gpu_memory_total_bytes", "Memory of the GPU", "device")
GPU_UTILISATION = _gauge("gpu_utilization_ratio", "Share of the last moments in which the GPU computed", "device")
GPU_POWER = _gauge("gpu_power_watts", "Power that the GPU takes", "device")
GPU_ENERGY = _read_counter("gpu_energy_joules_total", "Energy that the GPU took since its driver was loaded", "device")

PROCESS = (CPU, MEMORY, VIRTUAL, STARTED, OPEN_FILES, MOST_FILES)
GPU = (GPU_MEMORY_USED, GPU_MEMORY, GPU_UTILISATION, GPU_POWER, GPU_ENERGY)
CACHE = (CACHE_HITS, CACHE_MISSES, CACHE_COALESCED, CACHE_ENTRIES)
REDIS = (REDIS_UP, REDIS_HITS, REDIS_MISSES, REDIS_REJECTED, REDIS_FAILURES, REDIS_SKIPPED)
SERVER = (SLOTS, WORKERS, READY, STARTUP, WORKER_RESTARTS, IMAGES, MODEL_INFO, VERSION_INFO)

ALL = (*COUNTED, *SERVER, *CACHE, *REDIS, *PROCESS, *GPU)
