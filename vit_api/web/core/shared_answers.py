"""The tier between an HTTP process's own cache and Redis: predictions in the answer table, for all HTTP processes.

Knows nothing of HTTP, of Redis, or of how the table is laid out.
"""

from __future__ import annotations

from vit_api.ipc.answer_table import AnswerTable, RegionWriter
from vit_api.ipc.cache_board import CacheTally
from vit_api.ipc.records import packed_size
from vit_api.web.core.classifier_result import CachedPrediction


class SharedAnswers:
    """Look up what any HTTP process has computed, and publish what this one has.

    Args:
        table: The table.
        process: The number of the HTTP process, which is the only one that writes its region.
        tally: Counts what was found, and entries that were torn.
    """

    def __init__(self, table: AnswerTable, process: int, tally: CacheTally) -> None:
        self._table = table
        self._writer = RegionWriter(table, process)
        self._tally = tally
        self._torn_reads = table.torn_reads

    def get(self, key: bytes, now: float, epoch: int) -> tuple[CachedPrediction, float] | None:
        """Return a valid prediction and when it expires, in seconds of the clock of `now`; None if there is none."""
        answer = self._table.get(key, now, epoch)
        if self._torn_reads != self._table.torn_reads:
            self._tally.add("shared_rejected", self._table.torn_reads - self._torn_reads)
            self._torn_reads = self._table.torn_reads
        if answer is None:
            return None
        self._tally.add("shared_hits")
        packed = answer.value[: packed_size(answer.value)]  # a long one is shorter than an entry
        return CachedPrediction.from_packed(packed), answer.expires_at

    def put(self, key: bytes, value: CachedPrediction, expires_at: float, epoch: int) -> None:
        """Publish a prediction to all HTTP processes, unless it is longer than an entry."""
        if len(value.packed) > self._table.value_bytes:
            return
        self._writer.put(key, value.packed, expires_at, epoch)
