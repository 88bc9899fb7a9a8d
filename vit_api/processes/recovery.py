"""What becomes of the images of a worker that died. For the main process; knows nothing of processes or HTTP."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

from vit_api.ipc.records import AnswerRecord, RecordPipe, RequestRecord, Status
from vit_api.ipc.slots import SlotTable

logger = logging.getLogger(__name__)

_RECORDS_PER_READ = 4096


class Recovery:
    """Give the images of dead workers back to their owners.

    Args:
        table: The slots.
        requests: Carries records to the workers.
        answers: One pipe for each HTTP process, by its number.
    """

    def __init__(self, table: SlotTable, requests: RecordPipe, answers: Sequence[RecordPipe]) -> None:
        self._table = table
        self._requests = requests
        self._answers = answers

    def worker_died(self, worker: int) -> None:
        """Have what `worker` was running queued again by its owners, and what waits be found by the other workers.

        An answer that the worker sent before it died is read first, since a pipe keeps its order; what is said here of
        such a slot is stale then.
        """
        self._tell(self._table.held_by(worker), Status.LOST)
        self._write_requests_again()

    def http_process_died(self) -> None:
        """Have what it had queued, perhaps without a record, found by a worker, which skips it and says so.

        Its successor has to be there, and to have marked these images as unwanted.
        """
        self._write_requests_again()

    def give_up(self) -> None:
        """Have the owners answer all that waits with a failure: no worker will come any more."""
        self._tell(self._table.with_workers(), Status.UNAVAILABLE)

    def _write_requests_again(self) -> None:
        """Write the record of every queued slot: a dead worker may have read some, a dead owner not written them.

        The pipe is emptied first, so that it can't overflow. A record that an owner writes meanwhile may be there
        twice, which is harmless: a slot can be claimed once.
        """
        while self._requests.read(_RECORDS_PER_READ):
            pass
        self._requests.write(RequestRecord(slot, generation).pack() for slot, generation in self._table.queued())

    def _tell(self, slots: Iterable[tuple[int, int]], status: Status) -> None:
        by_owner: defaultdict[int, list[bytes]] = defaultdict(list)
        for slot, generation in slots:
            by_owner[self._table.owner_of(slot)].append(AnswerRecord(slot, generation, status).pack())
        for owner, records in by_owner.items():
            try:
                self._answers[owner].write(records)
            except BlockingIOError:
                # It reads nothing, so it hangs, and its clients with it: their deadlines are all that is left.
                logger.error("HTTP process %d reads no answers; it is not told of %d images", owner, len(records))
