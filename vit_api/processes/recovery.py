"""Recovers the images of processes that died. For the main process; knows nothing of processes or HTTP."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

from vit_api.ipc.records import AnswerRecord, RecordPipe, RequestRecord, Status
from vit_api.ipc.slots import SlotTable
from vit_api.urgency import Urgency

logger = logging.getLogger(__name__)

_RECORDS_PER_READ = 4096


class Recovery:
    """Return the images of dead workers to their owners.

    Args:
        table: The slots.
        requests: Carry request records to the workers, by urgency.
        answers: One pipe for each HTTP process, by its number.
    """

    def __init__(self, table: SlotTable, requests: Sequence[RecordPipe], answers: Sequence[RecordPipe]) -> None:
        self._table = table
        self._requests = requests
        self._answers = answers

    def worker_died(self, worker: int) -> None:
        """Let the owners requeue the images that `worker` was running, and rewrite the records of all queued ones.

        An answer that the worker sent before it died is read first, since a pipe keeps its order; the record written
        here for such a slot is then stale.
        """
        self._notify(self._table.held_by(worker), Status.LOST)
        self._write_requests_again()

    def http_process_died(self) -> None:
        """Rewrite the records of what it had queued, so that workers answer these images as skipped.

        To be called once its successor runs and has abandoned these images.
        """
        self._write_requests_again()

    def give_up(self) -> None:
        """Let the owners fail all waiting images, since no further worker will be started."""
        self._notify(self._table.with_workers(), Status.UNAVAILABLE)

    def _write_requests_again(self) -> None:
        """Write the record of every queued slot: a dead worker may have read it, a dead owner not have written it.

        The pipes are emptied first, so that they can't overflow. A record that an owner writes meanwhile may be there
        twice, which is harmless: a slot can be claimed only once.
        """
        for requests in self._requests:
            while requests.read(_RECORDS_PER_READ):
                pass
        by_urgency: defaultdict[Urgency, list[bytes]] = defaultdict(list)
        for slot, generation in self._table.queued():
            by_urgency[self._table.urgency_of(slot)].append(RequestRecord(slot, generation).pack())
        for urgency, records in by_urgency.items():
            self._requests[urgency].write(records)

    def _notify(self, slots: Iterable[tuple[int, int]], status: Status) -> None:
        by_owner: defaultdict[int, list[bytes]] = defaultdict(list)
        for slot, generation in slots:
            by_owner[self._table.owner_of(slot)].append(AnswerRecord(slot, generation, status).pack())
        for owner, records in by_owner.items():
            try:
                self._answers[owner].write(records)
            except BlockingIOError:
                # A process that does not read hangs; its clients run into their own timeouts.
                logger.error("HTTP process %d reads no answers; %d records were dropped", owner, len(records))
