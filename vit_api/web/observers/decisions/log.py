"""The decision log of one HTTP process: a bounded queue, and one thread that writes what is in it.

Theory of operation
-------------------
The event loop appends to the queue and never waits: past its limits, decisions are dropped and counted. The thread
hashes the uploads, renders the decisions, and writes them in batches. What can't be written is kept and tried again,
with growing pauses, so that a receiver may be down, or a disk full, for as long as there is room.
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from vit_api import metrics
from vit_api.ipc.metrics_board import Counter
from vit_api.web.core.classifier_result import ClassifierResult
from vit_api.web.observers.decisions.decision import Answered, Mirrored, size_of
from vit_api.web.observers.decisions.url_sink import Refused
from vit_api.web.observers.exchange import Exchange

logger = logging.getLogger(__name__)

MAX_QUEUED = 10_000
"""Maximum number of requests in the queue."""
MAX_QUEUED_BYTES = 64 * 2**20
"""Maximum size of their uploads, which are kept until they are hashed."""

_MAX_RENDERED = 20_000
_MAX_RENDERED_BYTES = 32 * 2**20
"""Number and size of the rendered decisions that are kept while writing fails."""
_MAX_BATCH = 500
_MAX_BATCH_BYTES = 2**20
_COLLECT_S = 0.1
"""Time to collect decisions for a batch: otherwise the thread would compete with the event loop for each of them."""
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.5, 15.0
_LOG_INTERVAL_S = 60.0
STOP_S = 3.0
"""Time to write what is queued when the server stops."""


class Sink(Protocol):
    """Where decisions are written to."""

    def write(self, lines: Sequence[bytes]) -> int:
        """Write rendered decisions, and return how many of them, from the first on, were written.

        Raises:
            OSError: None was written, and a later attempt may succeed.
            Refused: None was written, and none ever will be.
        """

    def reopen(self) -> None:
        """Follow a file that was renamed."""

    def close(self) -> None:
        """Close it."""


class DecisionCounters(NamedTuple):
    """The counters of one process; each has one writer, the event loop or the thread.

    Attributes:
        written: Decisions that were written.
        failures: Attempts that failed.
        full: Decisions that were dropped because the queue was full; written by the event loop.
        refused: Decisions that the receiver refused.
        stopped: Decisions that were not written before the process stopped; written by the event loop, at the end.
    """

    written: Counter
    failures: Counter
    full: Counter
    refused: Counter
    stopped: Counter


class DecisionLog:
    """Log the decisions of requests after their responses. An observer.

    Args:
        sink: Where they are written to.
        render: Renders the decisions of a request; called in the thread.
        counters: Counts them.
        sample: Fraction of the requests that are logged.
        stop_s: Seconds that `close` may take.
    """

    def __init__(
        self,
        sink: Sink,
        render: Callable[[Answered], Iterator[bytes]],
        counters: DecisionCounters,
        *,
        sample: float = 1.0,
        stop_s: float = STOP_S,
    ) -> None:
        self._sink = sink
        self._render = render
        self._counters = counters
        self._sample = sample
        self._stop_s = stop_s
        self._queue: deque[Answered] = deque()
        self._queued_bytes = 0  # ever queued, by the event loop
        self._taken_bytes = 0  # ever taken from the queue, by the thread
        self._rendered: deque[bytes] = deque()
        self._rendered_bytes = 0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._must_reopen = False
        self._logged_at = -_LOG_INTERVAL_S
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)

    def start(self) -> None:
        """Start the thread. Call it in the HTTP process, after the fork."""
        self._thread.start()

    def observe(self, exchange: Exchange) -> None:
        """Queue the decisions of a request, or drop them if the queue is full."""
        if exchange.request.endpoint == metrics.EMBEDDINGS:  # its answers have no labels
            return
        results = [outcome for outcome in exchange.outcomes if isinstance(outcome, ClassifierResult)]
        if not results or not self._is_drawn():
            return
        uploads = {id(result.upload): result.upload for result in results}
        size = sum(map(size_of, uploads.values()))
        chosen = exchange.request.deployment
        number = 0 if chosen is None else chosen.place
        self._queue_one(Answered(time.time(), exchange.request.id.decode(), results, size, number))

    def log_mirrored(self, request_id: str, result: ClassifierResult, deployment: int, mirrored: Mirrored) -> None:
        """Queue what a mirror said, or drop it if the queue is full.

        Args:
            request_id: The id of the request that another version has answered.
            result: The mirror's.
            deployment: Its place.
            mirrored: What it is compared with.
        """
        if self._is_drawn():
            size = size_of(result.upload)
            self._queue_one(Answered(time.time(), request_id, [result], size, deployment, mirrored))

    def _is_drawn(self) -> bool:
        return self._sample >= 1 or random.random() < self._sample

    def _queue_one(self, answered: Answered) -> None:
        pending = self._queued_bytes - self._taken_bytes
        if len(self._queue) >= MAX_QUEUED or (pending and pending + answered.size_bytes > MAX_QUEUED_BYTES):
            self._counters.full.add(len(answered.results))
            return
        self._queued_bytes += answered.size_bytes
        self._queue.append(answered)
        if len(self._queue) == 1:  # the thread may have gone to sleep
            self._wake.set()

    def reopen(self) -> None:
        """Have the thread follow a file that was renamed; for a signal handler."""
        self._must_reopen = True
        self._wake.set()

    def close(self) -> None:
        """Write what is queued, within a limited time; what is left then is dropped and counted."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(self._stop_s)
        left = len(self._rendered) + sum(len(answered.results) for answered in tuple(self._queue))
        if left:
            self._counters.stopped.add(left)
            logger.error("%d decisions were not logged before the server stopped", left)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if not self._stopping.is_set():
                self._stopping.wait(_COLLECT_S)
            self._wake.clear()
            is_last = self._stopping.is_set()
            if self._must_reopen:
                self._must_reopen = False
                self._sink.reopen()
            self._write_all()
            if is_last:
                self._sink.close()
                return

    def _write_all(self) -> None:
        """Write until the queue is empty, or the process stops and writing fails."""
        pause_s = _FIRST_PAUSE_S
        while self._render_queued():
            if self._try_to_write():
                pause_s = _FIRST_PAUSE_S
                continue
            if self._stopping.is_set():
                return
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)
            if self._must_reopen:
                self._must_reopen = False
                self._sink.reopen()

    def _render_queued(self) -> bool:
        """Render what is queued, as far as there is room; return whether there is anything to write."""
        while self._queue and len(self._rendered) < _MAX_RENDERED and self._rendered_bytes < _MAX_RENDERED_BYTES:
            answered = self._queue[0]
            try:
                lines = list(self._render(answered))
            except Exception:
                self._complain("a decision could not be rendered", exc_info=True)
                self._counters.refused.add(len(answered.results))
                lines = []
            self._rendered.extend(lines)
            self._rendered_bytes += sum(map(len, lines))
            self._queue.popleft()
            self._taken_bytes += answered.size_bytes
        return bool(self._rendered)

    def _next_batch(self) -> list[bytes]:
        """Return the oldest rendered decisions, at least one."""
        batch: list[bytes] = []
        size = 0
        for line in itertools.islice(self._rendered, _MAX_BATCH):
            size += len(line)
            if batch and size > _MAX_BATCH_BYTES:
                break
            batch.append(line)
        return batch

    def _try_to_write(self) -> bool:
        """Write a batch; return False if that has to be tried again."""
        batch = self._next_batch()
        try:
            done = self._sink.write(batch)
        except Refused as error:
            self._complain(f"decisions were dropped: {error}")
            self._counters.refused.add(len(batch))
            done = len(batch)
        except OSError as error:
            self._counters.failures.add()
            self._complain(f"decisions can't be logged now: {error.strerror or error}")
            return False
        else:
            self._counters.written.add(done)
        for _ in range(done):
            self._rendered_bytes -= len(self._rendered.popleft())
        return True

    def _complain(self, message: str, *, exc_info: bool = False) -> None:
        """Log an error, at most once a minute."""
        now = time.monotonic()
        if now - self._logged_at >= _LOG_INTERVAL_S:
            self._logged_at = now
            logger.error("%s; further errors are logged once a minute", message, exc_info=exc_info)
