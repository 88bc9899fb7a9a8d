"""What the protocol reports about the server and its model: metadata, configuration, statistics. Sees no requests.

Metadata is that of the Open Inference Protocol; configuration and statistics are those of Triton's extensions
(https://github.com/triton-inference-server/server, docs/protocol), of which perf_analyzer takes the differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vit_api import __version__, metrics
from vit_api.ipc.batch_stats import BatchStats, BatchTotals
from vit_api.ipc.cache_board import CacheBoard
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.metrics import Metric
from vit_api.urgency import Urgency
from vit_api.web.protocols.open_inference.outputs import MODEL_VERSION
from vit_api.web.protocols.open_inference.tensors import TensorSpec

SERVER: dict[str, Any] = {
    "name": "vit-api",
    "version": __version__,
    "extensions": [
        "classification",
        "binary_tensor_data",
        "model_configuration",
        "schedule_policy",
        "statistics",
    ],
}

_OK = "200"
_MS_IN_S = 1000
_NS_IN_S = 1_000_000_000
_TYPES = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "INT32": "TYPE_INT32", "FP32": "TYPE_FP32"}
_CHANNELS = 3


class ModelInfo:
    """Metadata and configuration of the model.

    Args:
        name: The name that clients use.
        inputs: The descriptions of its inputs.
        outputs: The descriptions of its outputs.
        devices: The devices that it runs on, by their torch names.
        workers_per_device: Number of worker processes on each device.
        max_batch_size: Maximum number of images in a batch.
        max_wait_ms: Maximum time that an image waits for its batch to fill.
        max_images: Maximum number of images in one request.
        has_cache: Whether results are cached.
        version: The version that this is.
        versions: All versions of the model.

    Attributes:
        name: See above.
        version: See above.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        devices: Sequence[str],
        workers_per_device: int,
        max_batch_size: int,
        max_wait_ms: float,
        max_images: int,
        has_cache: bool,
        version: str = MODEL_VERSION,
        versions: Sequence[str] = (MODEL_VERSION,),
    ) -> None:
        self.name = name
        self.version = version
        self._versions = versions
        self._inputs = inputs
        self._outputs = outputs
        self._devices = devices
        self._workers_per_device = workers_per_device
        self._max_batch_size = max_batch_size
        self._max_wait_ms = max_wait_ms
        self._max_images = max_images
        self._has_cache = has_cache

    def metadata(self) -> dict[str, Any]:
        """Return $metadata_model_response."""
        return {
            "name": self.name,
            "versions": list(self._versions),
            "platform": "pytorch",
            "inputs": [_metadata(spec) for spec in self._inputs],
            "outputs": [_metadata(spec) for spec in self._outputs],
        }

    def configuration(self) -> dict[str, Any]:
        """Return the applicable fields of Triton's ModelConfig as JSON."""
        gpus = [int(device.partition(":")[2]) for device in self._devices if device.startswith("cuda")]
        where: dict[str, Any] = {"kind": "KIND_GPU", "gpus": gpus} if gpus else {"kind": "KIND_CPU"}
        return {
            "name": self.name,
            "platform": "pytorch",
            "backend": "pytorch",
            "version_policy": {"specific": {"versions": [int(one) for one in self._versions if one.isdecimal()]}},
            "max_batch_size": self._max_batch_size,
            "dynamic_batching": {
                "max_queue_delay_microseconds": round(self._max_wait_ms * 1000),
                "priority_levels": len(Urgency),
                "default_priority_level": 1,
                "default_queue_policy": {"allow_timeout_override": True},
            },
            "instance_group": [{"name": self.name, "count": self._workers_per_device, **where}],
            "input": [_model_config(spec) | {"optional": True} for spec in self._inputs],
            "output": [_model_config(spec) for spec in self._outputs],
            "response_cache": {"enable": self._has_cache},
            "parameters": {"max_images_per_request": {"string_value": str(self._max_images)}},
        }


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    """Return $metadata_tensor, with the description as a parameter."""
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": list(spec.shape),
        "parameters": {"description": spec.description},
    }


def _model_config(spec: TensorSpec) -> dict[str, Any]:
    """Return Triton's ModelInput or ModelOutput; `dims` excludes the batch dimension."""
    dims = list(spec.shape[1:]) or [1]
    found: dict[str, Any] = {"name": spec.name, "data_type": _TYPES[spec.datatype], "dims": dims}
    if len(dims) == _CHANNELS:
        found["format"] = "FORMAT_NCHW" if dims[0] == _CHANNELS else "FORMAT_NHWC"
    return found


class Statistics:
    """Statistics of the model since the start, over all processes and all routes.

    Args:
        name: The name that clients use for the model.
        metrics_board: The counters and histograms of all processes.
        batch_stats: The times of the workers' batches.
        cache_board: The caches' counts; None if caching is off.
        version: The version that clients use.
    """

    def __init__(
        self,
        name: str,
        metrics_board: MetricsBoard,
        batch_stats: BatchStats,
        cache_board: CacheBoard | None,
        version: str = MODEL_VERSION,
    ) -> None:
        self._name = name
        self._version = version
        self._metrics_board = metrics_board
        self._batch_stats = batch_stats
        self._cache_board = cache_board

    def now(self) -> dict[str, Any]:
        """Return an element of `model_stats` in $stats_model_response."""
        batches = self._batch_stats.totals()
        return {
            "name": self._name,
            "version": self._version,
            "last_inference": int(self._batch_stats.last_at() * _MS_IN_S),
            "inference_count": sum(batch.size * batch.batches for batch in batches),
            "execution_count": sum(batch.batches for batch in batches),
            "inference_stats": self._requests() | self._queue() | _compute(batches) | self._cache(),
            "response_stats": {},  # only of models that send several responses to a request
            "batch_stats": [_batch(batch) for batch in batches],
            "memory_usage": [],  # unknown, as of most of Triton's backends
        }

    def _requests(self) -> dict[str, Any]:
        requests = self._metrics_board.totals(metrics.REQUESTS)
        succeeded = sum(count for (_, status), (count, *_) in requests.items() if status == _OK)
        total = sum(count for count, *_ in requests.values())
        (failed_s,) = self._metrics_board.totals(metrics.FAILED_DURATION)[()]
        total_s = self._total_s(metrics.DURATION)
        return {
            "success": _duration(succeeded, max(0.0, total_s - failed_s)),
            "fail": _duration(total - succeeded, failed_s),
        }

    def _queue(self) -> dict[str, Any]:
        waits = self._metrics_board.totals(metrics.QUEUE_WAIT).values()
        return {"queue": _duration(sum(sum(counts) for *counts, _ in waits), self._total_s(metrics.QUEUE_WAIT))}

    def _cache(self) -> dict[str, Any]:
        counts = {"hits": 0, "misses": 0} if self._cache_board is None else self._cache_board.totals()
        seconds = {result: total for (result,), (total,) in self._metrics_board.totals(metrics.LOOK_UP).items()}
        return {
            "cache_hit": _duration(counts["hits"], seconds["hit"]),
            "cache_miss": _duration(counts["misses"], seconds["miss"]),
        }

    def _total_s(self, metric: Metric) -> float:
        """Return the sum of a histogram of durations over all its series."""
        return sum(total for *_, total in self._metrics_board.totals(metric).values())


def _compute(batches: Sequence[BatchTotals]) -> dict[str, Any]:
    """Return the times of staging, of the model and of its results: each image counts the whole time of its batch."""
    images = sum(batch.size * batch.batches for batch in batches)
    return {
        "compute_input": _duration(images, sum(batch.size * batch.input_s for batch in batches)),
        "compute_infer": _duration(images, sum(batch.size * batch.infer_s for batch in batches)),
        "compute_output": _duration(images, sum(batch.size * batch.output_s for batch in batches)),
    }


def _batch(batch: BatchTotals) -> dict[str, Any]:
    """Return $batch_stat: each batch counts once."""
    return {
        "batch_size": batch.size,
        "compute_input": _duration(batch.batches, batch.input_s),
        "compute_infer": _duration(batch.batches, batch.infer_s),
        "compute_output": _duration(batch.batches, batch.output_s),
    }


def _duration(count: float, seconds: float) -> dict[str, int]:
    """Return $duration_stat."""
    return {"count": int(count), "ns": round(seconds * _NS_IN_S)}
