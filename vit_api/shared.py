"""What all processes of one server share: shared memory, pipes, the checkpoint. Created before the first fork."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vit_api import metrics
from vit_api.access.rate_limiter import Budgets
from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.ipc.answer_table import AnswerTable
from vit_api.ipc.batch_stats import BatchStats
from vit_api.ipc.cache_board import CacheBoard
from vit_api.ipc.flight_board import FlightBoard
from vit_api.ipc.http_board import HttpBoard
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import MAX_TOP_K, PACKED_PREDICTION_BYTES, RecordPipe, max_packed_size
from vit_api.ipc.slots import SlotTable
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.labels.categories import Categories
from vit_api.labels.label_map import LabelMapError
from vit_api.labels.thresholds import Thresholds
from vit_api.settings import ENV_PREFIX, Settings
from vit_api.urgency import Urgency

MAX_LONG_CACHE_BYTES = 2**26
"""Memory of each HTTP process for cached long answers, and of its region in the table that all processes share."""

_ROUNDING = 1e-3
_MAX_SHARED_DIMENSIONS = 4096
"""Longer embeddings are not in that table, whose entries all have the same size."""


class SettingError(Exception):
    """A setting does not fit the model; the message names its variable."""


@contextlib.contextmanager
def _naming(setting: str) -> Iterator[None]:
    """Name the variable of a setting that does not fit the model."""
    try:
        yield
    except LabelMapError as error:
        raise SettingError(f"{ENV_PREFIX}{setting.upper()}: {error}") from None


def is_complete(checkpoint: Checkpoint, threshold: float) -> bool:
    """Return whether an answer record has every class with at least this score.

    A softmax gives at most 1/n to the n-th class; no more than `MAX_TOP_K` have more than 1/(`MAX_TOP_K` + 1).
    """
    if len(checkpoint.labels) <= MAX_TOP_K:
        return True
    return not checkpoint.has_sigmoid and threshold > (1 + _ROUNDING) / (MAX_TOP_K + 1)


class Shared:
    """The parts that several processes use.

    Args:
        settings: The server's settings.
        checkpoint: The model to serve.
        devices: The devices that it runs on, as torch names them.

    Attributes:
        table: The slots of the images in flight.
        requests: Carry request records to the workers, by urgency.
        answers: Carry answers to the HTTP processes, by number.
        http_board: The heartbeats of the HTTP processes.
        worker_board: The status of the workers.
        batch_stats: The times of their batches.
        cache_board: The counts of the caches, and the epoch by which they are cleared.
        answer_table: What the HTTP processes have computed; None if caching is off.
        long_table: The same of long answers.
        needs_all_classes: Whether a flagged label may be among those that are not in an answer record.
        flight_board: What they compute now.
        budgets: What each client has used; None without rate limits.
        metrics_board: The values of the metrics.
        thresholds: From which scores on labels are flagged; None if none are.
        categories: The categories of moderation.
        checkpoint_identity: Distinguishes the checkpoints of servers that share a Redis or log their decisions; else
            empty.

    Raises:
        SettingError: The model lacks a label that has a threshold or a category.
    """

    def __init__(self, settings: Settings, checkpoint: Checkpoint, devices: list[str]) -> None:
        self.settings = settings
        self.checkpoint = checkpoint
        self.devices = devices
        labels, thresholds = checkpoint.labels, settings.thresholds
        with _naming("thresholds"):
            self.thresholds = None if thresholds is None else Thresholds.load(thresholds, labels)
        with _naming("categories"):
            by_label = settings.categories
            self.categories = Categories.of_labels(labels) if by_label is None else Categories.load(by_label, labels)
        processes, slots = settings.api_servers, settings.slots_per_process
        self.needs_all_classes = self.thresholds is not None and not is_complete(checkpoint, self.thresholds.lowest)
        pixel_shape = checkpoint.preprocessing.pixel_shape
        self.table = SlotTable(processes, slots, pixel_shape, max_packed_size(len(labels)))
        self.requests = [RecordPipe.for_requests(len(self.table)) for _ in Urgency]
        self.answers = [RecordPipe.for_answers(slots) for _ in range(processes)]
        self.http_board = HttpBoard(processes)
        self.worker_board = WorkerBoard(len(devices) * settings.workers_per_device)
        self.batch_stats = BatchStats(self.worker_board.workers, settings.max_batch_size)
        self.cache_board = CacheBoard(processes)
        size = settings.cache_size
        self.answer_table = AnswerTable(processes, size, PACKED_PREDICTION_BYTES) if size else None
        long_bytes = max_packed_size(len(labels), _MAX_SHARED_DIMENSIONS)
        long_entries = min(size, max(1, MAX_LONG_CACHE_BYTES // long_bytes))
        self.long_table = AnswerTable(processes, long_entries, long_bytes) if size else None
        self.flight_board = FlightBoard(processes)
        self.budgets = Budgets(settings.rates, processes) if settings.rates else None
        names = ["main", *(f"http-{number}" for number in range(processes))]
        names += [f"worker-{number}" for number in range(self.worker_board.workers)]
        counted = metrics.counted_for(labels, has_thresholds=self.thresholds is not None)
        self.metrics_board = MetricsBoard(names, counted)
        needs_identity = settings.redis_url is not None or settings.decision_log is not None
        self.checkpoint_identity = checkpoint.identity() if needs_identity else ""
