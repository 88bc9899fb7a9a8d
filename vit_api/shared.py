"""What all processes of one server have in common: shared memory, pipes, the checkpoint. Made before they start."""

from __future__ import annotations

from vit_api import metrics
from vit_api.access.rate_limiter import Budgets
from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.ipc.cache_board import CacheBoard
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import RecordPipe
from vit_api.ipc.slots import SlotTable
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.settings import Settings


class Shared:
    """The parts that several processes use.

    Args:
        settings: The server's settings.
        checkpoint: The model to serve.
        devices: Where it runs.

    Attributes:
        table: The images on their way.
        requests: Carries their records to the workers.
        answers: Carry the workers' answers to the HTTP process of each number.
        board: What the workers say of themselves.
        cache_board: What the caches count, and when they are to forget.
        budgets: What clients have used up; None if they may use what they like.
        counts: What is counted for the metrics.
        checkpoint_identity: Tells checkpoints apart that servers share a Redis for; empty without one.
    """

    def __init__(self, settings: Settings, checkpoint: Checkpoint, devices: list[str]) -> None:
        self.settings = settings
        self.checkpoint = checkpoint
        self.devices = devices
        processes, slots = settings.api_servers, settings.slots_per_process
        self.table = SlotTable(processes, slots, checkpoint.preprocessing.pixel_shape)
        self.requests = RecordPipe.for_requests(len(self.table))
        self.answers = [RecordPipe.for_answers(slots) for _ in range(processes)]
        self.board = WorkerBoard(len(devices) * settings.workers_per_device)
        self.cache_board = CacheBoard(processes)
        self.budgets = Budgets(settings.rates, processes) if settings.rates else None
        names = ["main", *map("http-{}".format, range(processes)), *map("worker-{}".format, range(self.board.workers))]
        self.counts = MetricsBoard(names, metrics.COUNTED)
        self.checkpoint_identity = checkpoint.identity() if settings.redis_url is not None else ""
