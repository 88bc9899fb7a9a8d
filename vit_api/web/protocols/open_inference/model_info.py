"""What the protocol tells of the server and its model: metadata, configuration, statistics. Reads counts, no requests.

Metadata is that of the Open Inference Protocol; configuration and statistics are as Triton's extensions have them
(https://github.com/triton-inference-server/server, docs/protocol). What is not known is left out: a 0 would say that
it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vit_api import __version__, metrics
from vit_api.ipc.cache_board import CacheBoard
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.metrics import Metric
from vit_api.web.protocols.open_inference.outputs import MODEL_VERSION
from vit_api.web.protocols.open_inference.tensors import TensorSpec

SERVER: dict[str, Any] = {
    "name": "vit-api",
    "version": __version__,
    "extensions": ["classification", "binary_tensor_data", "model_configuration", "statistics"],
}

_OK = "200"
_NS_IN_S = 1_000_000_000
_TYPES = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "INT32": "TYPE_INT32", "FP32": "TYPE_FP32"}
_CHANNELS = 3


class ModelInfo:
    """Tell of the model.

    Args:
        name: What clients call it.
        inputs: What its inputs look like.
        outputs: What its outputs look like.
        devices: Where it runs, as torch names devices.
        workers_per_device: How many processes run it on each.
        max_batch_size: Images in a batch at the most.
        max_wait_ms: How long an image waits for company at the most.
        max_images: Of one request at the most.
        has_cache: Whether answers are remembered.
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
    ) -> None:
        self.name = name
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
            "versions": [MODEL_VERSION],
            "platform": "pytorch",
            "inputs": [_metadata(spec) for spec in self._inputs],
            "outputs": [_metadata(spec) for spec in self._outputs],
        }

    def configuration(self) -> dict[str, Any]:
        """Return the JSON of Triton's ModelConfig, as far as it applies here."""
        gpus = [int(device.partition(":")[2]) for device in self._devices if device.startswith("cuda")]
        where: dict[str, Any] = {"kind": "KIND_GPU", "gpus": gpus} if gpus else {"kind": "KIND_CPU"}
        return {
            "name": self.name,
            "platform": "pytorch",
            "backend": "pytorch",
            "version_policy": {"specific": {"versions": [int(MODEL_VERSION)]}},
            "max_batch_size": self._max_batch_size,
            "dynamic_batching": {"max_queue_delay_microseconds": round(self._max_wait_ms * 1000)},
            "instance_group": [{"name": self.name, "count": self._workers_per_device, **where}],
            "input": [_configured(spec) | {"optional": True} for spec in self._inputs],
            "output": [_configured(spec) for spec in self._outputs],
            "response_cache": {"enable": self._has_cache},
            "parameters": {"max_images_per_request": {"string_value": str(self._max_images)}},
        }


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    """Return $metadata_tensor, and in a parameter what is in it."""
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": list(spec.shape),
        "parameters": {"description": spec.description},
    }


def _configured(spec: TensorSpec) -> dict[str, Any]:
    """Return Triton's ModelInput or ModelOutput; its dimensions are without the batch's."""
    dims = list(spec.shape[1:]) or [1]
    found: dict[str, Any] = {"name": spec.name, "data_type": _TYPES[spec.datatype], "dims": dims}
    if len(dims) == _CHANNELS:
        found["format"] = "FORMAT_NCHW" if dims[0] == _CHANNELS else "FORMAT_NHWC"
    return found


class Statistics:
    """Tell what the model did so far, in all processes, whichever way it was asked.

    Args:
        name: What clients call the model.
        board: What the processes count.
        workers: What the workers count.
        cache: What the caches count; None if there is none.
    """

    def __init__(self, name: str, board: MetricsBoard, workers: WorkerBoard, cache: CacheBoard | None) -> None:
        self._name = name
        self._board = board
        self._workers = workers
        self._cache = cache

    def now(self) -> dict[str, Any]:
        """Return $stats_model_response, without the fields that are not known here."""
        counts = [self._workers.counts_of(worker) for worker in range(self._workers.workers)]
        stats = {
            "name": self._name,
            "version": MODEL_VERSION,
            "inference_count": sum(images for _, images in counts),
            "execution_count": sum(batches for batches, _ in counts),
            "inference_stats": self._inference_stats(),
        }
        return {"model_stats": [stats]}

    def _inference_stats(self) -> dict[str, Any]:
        """Return $inference_stats. Requests and the cache are only counted, not timed apart."""
        requests = self._board.totals(metrics.REQUESTS)
        right = sum(count for (_, status), (count, *_) in requests.items() if status == _OK)
        every = sum(count for count, *_ in requests.values())
        found: dict[str, Any] = {
            "success": {"count": int(right)},
            "fail": {"count": int(every - right)},
            "queue": self._durations(metrics.QUEUE_WAIT),
            "compute_infer": self._durations(metrics.MODEL_DURATION),
        }
        if self._cache is not None:
            totals = self._cache.totals()
            found |= {"cache_hit": {"count": totals["hits"]}, "cache_miss": {"count": totals["misses"]}}
        return found

    def _durations(self, metric: Metric) -> dict[str, int]:
        """Return $duration_stat of a histogram without labels."""
        ((*counts, total_s),) = self._board.totals(metric).values()
        return {"count": int(sum(counts)), "ns": round(total_s * _NS_IN_S)}
