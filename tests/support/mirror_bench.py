"""Two `InferenceClient`s on one slot table, the second one a mirror of the first; the tests act as their workers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.support.inference_bench import InferenceBench, running
from tests.support.waiting import until
from vit_api.ipc.records import AnswerRecord, unpack_requests
from vit_api.ipc.slots import Claim, SlotState, SlotTable
from vit_api.urgency import Urgency
from vit_api.web.core.mirror import Mirror, MirroredInference

_SHAPE = (1, 1, 3)
TIMEOUT_S = 60.0


class MirrorBench:
    """A version that answers, and its mirror.

    Args:
        slots: Number of slots, of both together.
        is_ready: Whether the mirror has a worker.
        share: Part of the images that the mirror gets.

    Attributes:
        answering: The version that answers.
        mirrored: The mirror.
        mirror: What connects them.
        skipped: Number of images that the mirror did not get after all.
        drawn: What is drawn next.
    """

    def __init__(self, slots: int = 32, *, is_ready: bool = True, share: float = 1.0) -> None:
        self.table = SlotTable(1, slots, _SHAPE, deployments=2)
        tables = [self.table.of_deployment(number, _SHAPE) for number in range(2)]
        self.answering = InferenceBench(slots, table=tables[0], client_class=MirroredInference)
        self.mirrored = InferenceBench(slots, is_ready, tables[1], sibling=self.answering.slots)
        self.skipped = 0
        self.drawn = 0.0
        self.mirror = Mirror(
            self.mirrored.client,
            self.mirrored.slots,
            self.mirrored.worker_board,
            share=share,
            timeout_s=TIMEOUT_S,
            skip=self._skip,
            draw=lambda: self.drawn,
        )
        assert isinstance(self.answering.client, MirroredInference)
        self.answering.client.mirror = self.mirror

    def _skip(self) -> None:
        self.skipped += 1

    async def answer(self, upload: bytes) -> AnswerRecord:
        """Have an image answered, whose class is the upload's first byte."""
        task = self.answering.submit(upload)
        self.answering.answer(await self.answering.claim())
        return await task

    async def claim(self) -> Claim:
        """Wait for an image that was sent to the mirror, and claim it."""
        pipe = self.mirrored.request_pipes[Urgency.LOW]
        while not (records := pipe.read(1)):
            await asyncio.sleep(0.001)
        request = next(unpack_requests(records))
        claim = self.mirrored.worker.claim(request.slot, request.generation)
        assert claim is not None
        return claim

    @property
    def free(self) -> int:
        """Number of free slots."""
        return self.table.count_by_state()[SlotState.FREE]

    async def until_all_free(self) -> None:
        """Wait until every slot is free, and nothing counts as the mirror's."""
        await until(lambda: self.free == len(self.table))
        await until(lambda: self.mirrored.slots.mirrored == 0)


@contextlib.asynccontextmanager
async def mirroring(bench: MirrorBench) -> AsyncIterator[MirrorBench]:
    """Start both clients, and check at the end that no slot is lost."""
    async with running(bench.answering, checks=False), running(bench.mirrored, checks=False):
        try:
            yield bench
            await bench.until_all_free()
        finally:
            bench.mirror.stop()
