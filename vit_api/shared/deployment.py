"""What all processes of a server share of one deployment: its own workers, pipes, caches and metrics."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

from vit_api import metrics
from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.checkpoints.int8 import check_served, identity_of
from vit_api.deployments.listing import Deployment
from vit_api.ipc.answer_table import AnswerTable
from vit_api.ipc.batch_stats import BatchStats
from vit_api.ipc.cache_board import CacheBoard
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import MAX_TOP_K, PACKED_PREDICTION_BYTES, RecordPipe, max_packed_size
from vit_api.ipc.slots import SlotTable
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.labels.categories import Categories
from vit_api.labels.label_map import LabelMapError
from vit_api.labels.thresholds import Thresholds
from vit_api.settings import ENV_PREFIX, Settings
from vit_api.urgency import Urgency

logger = logging.getLogger(__name__)

MAX_LONG_CACHE_BYTES = 2**26
"""Memory of each HTTP process for cached long answers, and of its region in the table that all processes share."""

ONLY_VERSION = "1"
"""The version of a model that is the server's only one."""

_ROUNDING = 1e-3
_MAX_SHARED_DIMENSIONS = 4096
"""Longer embeddings are not in that table, whose entries all have the same size."""


class SettingError(Exception):
    """A setting does not fit the model; the message names its variable."""


def only_deployment(settings: Settings, checkpoint: Checkpoint) -> Deployment:
    """Return the deployment of a server whose settings list no models."""
    return Deployment.model_construct(
        name=checkpoint.name,
        version=ONLY_VERSION,
        model=settings.model,
        revision=settings.revision,
        traffic=100.0,
        workers_per_device=settings.workers_per_device,
        dtype=settings.dtype,
        max_batch_size=settings.max_batch_size,
        thresholds=settings.thresholds,
        categories=settings.categories,
    )


def is_complete(checkpoint: Checkpoint, threshold: float) -> bool:
    """Return whether an answer record has every class with at least this score.

    A softmax gives at most 1/n to the n-th class; no more than `MAX_TOP_K` have more than 1/(`MAX_TOP_K` + 1).
    """
    if len(checkpoint.labels) <= MAX_TOP_K:
        return True
    return not checkpoint.has_sigmoid and threshold > (1 + _ROUNDING) / (MAX_TOP_K + 1)


def check_deployable(checkpoint: Checkpoint, dtype: str | None, settings: Settings, devices: Sequence[str]) -> None:
    """Refuse what OpenVINO can't run here, and int8 models that must not be served; log it if a setting allows one.

    Raises:
        CheckpointError: It is refused.
    """
    warning = check_served(checkpoint, dtype, settings.engine, devices, allow_unverified=settings.allow_unverified_int8)
    if warning is not None:
        logger.warning("%s", warning)


def needed_identity(checkpoint: Checkpoint, dtype: str | None, settings: Settings) -> str:
    """Return what distinguishes a checkpoint, for which all of it may be read; empty if no setting needs that."""
    needs_identity = settings.redis_url is not None or settings.decision_log is not None
    return identity_of(checkpoint, dtype) if needs_identity else ""


class SharedDeployment:
    """The parts of one deployment that several processes use.

    Args:
        number: Its number in the slot table.
        spec: How it is run.
        settings: The server's settings.
        checkpoint: The model.
        table: The slots, as this deployment sees them.
        worker_board: The status of its workers.
        first_worker: The number of the first of them among all of the server.
        is_only: Whether the server has no other.
        identity: As `checkpoint_identity`, if it is known already; else it is read from the checkpoint.

    Attributes:
        number: See above.
        spec: See above.
        checkpoint: See above.
        table: See above.
        worker_board: See above.
        first_worker: See above.
        worker_names: Their names in the metrics.
        is_unloading: Whether no further requests are for it.
        requests: Carry request records to its workers, by urgency.
        answers: Carry answers to the HTTP processes, by number.
        batch_stats: The times of its workers' batches.
        cache_board: The counts of its caches, and the epoch by which they are cleared.
        answer_table: What the HTTP processes have computed; None if caching is off.
        long_table: The same of long answers.
        needs_all_classes: Whether a flagged label may be among those that are not in an answer record.
        metrics_board: The values of its metrics.
        thresholds: From which scores on labels are flagged; None if none are.
        categories: The categories of moderation.
        checkpoint_identity: Distinguishes the checkpoints of servers that share a Redis or log their decisions; else
            empty.

    Raises:
        SettingError: The model lacks a label that has a threshold or a category.
    """

    def __init__(
        self,
        number: int,
        spec: Deployment,
        settings: Settings,
        checkpoint: Checkpoint,
        *,
        table: SlotTable,
        worker_board: WorkerBoard,
        first_worker: int,
        is_only: bool,
        identity: str | None = None,
    ) -> None:
        self.number = number
        self.spec = spec
        self.checkpoint = checkpoint
        self.table = table
        self.worker_board = worker_board
        self.first_worker = first_worker
        self.worker_names = [f"worker-{first_worker + worker}" for worker in range(worker_board.workers)]
        self.is_unloading = False
        labels = checkpoint.labels
        with _naming("thresholds", None if is_only else spec):
            self.thresholds = None if spec.thresholds is None else Thresholds.load(spec.thresholds, labels)
        with _naming("categories", None if is_only else spec):
            by_label = spec.categories
            self.categories = Categories.of_labels(labels) if by_label is None else Categories.load(by_label, labels)
        self.needs_all_classes = self.thresholds is not None and not is_complete(checkpoint, self.thresholds.lowest)
        processes = settings.api_servers
        self.requests = [RecordPipe.for_requests(len(table)) for _ in Urgency]
        self.answers = [RecordPipe.for_answers(settings.slots_per_process) for _ in range(processes)]
        assert spec.max_batch_size is not None
        self.batch_stats = BatchStats(worker_board.workers, spec.max_batch_size)
        self.cache_board = CacheBoard(processes)
        size = settings.cache_size
        self.answer_table = AnswerTable(processes, size, PACKED_PREDICTION_BYTES) if size else None
        long_bytes = max_packed_size(len(labels), _MAX_SHARED_DIMENSIONS)
        long_entries = min(size, max(1, MAX_LONG_CACHE_BYTES // long_bytes))
        self.long_table = AnswerTable(processes, long_entries, long_bytes) if size else None
        names = [
            *(["main"] if is_only else []),
            *(f"http-{process}" for process in range(processes)),
            *self.worker_names,
        ]
        counted = metrics.counted_for(
            labels,
            has_thresholds=self.thresholds is not None,
            may_be_mirror=bool(spec.mirror_traffic) or settings.max_models is not None,
        )
        if not is_only:
            counted = tuple(metric for metric in counted if metric not in metrics.SERVER_WIDE)
        self.metrics_board = MetricsBoard(names, counted)
        self.checkpoint_identity = needed_identity(checkpoint, spec.dtype, settings) if identity is None else identity


@contextlib.contextmanager
def _naming(setting: str, spec: Deployment | None) -> Iterator[None]:
    """Name the variable of a setting that does not fit the model, and the entry of a list of models."""
    try:
        yield
    except LabelMapError as error:
        if spec is None:
            raise SettingError(f"{ENV_PREFIX}{setting.upper()}: {error}") from None
        raise SettingError(f"{ENV_PREFIX}MODELS: {spec.title}, '{setting}': {error}") from None
