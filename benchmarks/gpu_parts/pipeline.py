"""(b) The pipeline without HTTP: pixels in slots, answers out, with a worker as in the server.

This process acts as the HTTP half: it keeps slots queued, whose pixels don't change, and reads answers. The worker
measures the model alone before and after it serves, so that all figures are of one process and of equal clocks.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from multiprocessing.connection import Connection

import numpy as np

from benchmarks.gpu_parts import clocks
from benchmarks.gpu_parts.part import Part
from vit_api.app import Application
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.ipc.records import RequestRecord, unpack_answers
from vit_api.ipc.slots import OwnerSlots
from vit_api.lit_api import ViTAPI
from vit_api.settings import Settings
from vit_api.shared.server import Shared
from vit_api.urgency import Urgency
from vit_api.worker.batching import BatchingPolicy

_SECONDS = 8.0
_WARM_UP_S = 1.0
_ALONE_S = 2.0
_START_S = 120.0
_STOPS, _STOP_S = 10, 1.0
_ANSWERS_PER_READ = 1024


class OneAtATime(BatchingPolicy):
    """A policy that never stages a batch behind another."""

    def should_stage(self, waiting: int) -> bool:
        """Return False."""
        return False


def run(part: Part) -> None:
    """Measure with two batches on the device, and with one at a time."""
    for name, policy in (("pipelined", BatchingPolicy), ("one at a time", OneAtATime)):
        if part.has_time(_SECONDS + 2 * _ALONE_S):
            part.attempt(name, _measure, part, name, policy)


def _measure(part: Part, name: str, policy: type[BatchingPolicy]) -> None:
    waiting = 4 * part.max_batch_size
    settings = Settings(
        api_servers=1, queue_size=waiting, max_batch_size=part.max_batch_size, model=str(part.folder), device="auto"
    )
    shared = Shared(settings, [load_checkpoint(str(part.folder))], [part.device])
    (lit_api,) = Application(shared, policy_class=policy).lit_apis
    noise = np.random.default_rng(0)
    shared.table.pixels[:] = noise.integers(0, 256, shared.table.pixels.shape, dtype=np.uint8)
    context = part.processes()
    ours, theirs = context.Pipe()
    seconds = part.lasting(_ALONE_S), part.lasting(_WARM_UP_S)
    worker = context.Process(target=_work, args=(lit_api, part.device, *seconds, theirs), daemon=True)
    worker.start()
    theirs.close()
    try:
        before_per_s = _received(ours)
        with clocks.watched(part.device) as watched:
            images_per_s, mean_batch = _feed(shared, waiting, part.lasting(_WARM_UP_S), part.lasting(_SECONDS))
        assert worker.pid is not None
        _stop(worker.pid, ours)
        after_per_s = _received(ours)
    finally:
        worker.kill()
        worker.join()
    alone_per_s = (before_per_s + after_per_s) / 2
    row = {"policy": name, "images_per_s": round(images_per_s, 1), "mean_batch": round(mean_batch, 2)}
    row |= {"alone_before_per_s": round(before_per_s, 1), "alone_after_per_s": round(after_per_s, 1)}
    row |= {"share_of_alone": round(images_per_s / alone_per_s, 4), "clocks": watched.summary()}
    part.found("rows", [row])


def _stop(pid: int, worker: Connection) -> None:
    """Make the worker leave its loop.

    More than one signal may be needed: Python drops an exception that a handler raises while an object is finalised.
    """
    for _ in range(_STOPS):
        os.kill(pid, signal.SIGUSR1)
        if worker.poll(_STOP_S):
            return


def _received(worker: Connection) -> float:
    if not worker.poll(_START_S):
        raise RuntimeError("the worker did not measure in time")
    rate: float = worker.recv()
    return rate


class _Stop(BaseException):
    """Ends the worker's loop, which handles every `Exception`."""


def _work(api: ViTAPI, device: str, seconds: float, warm_up_s: float, parent: Connection) -> None:
    """Run a worker: set up, report the speed of the model alone, serve until SIGUSR1, and report it again."""
    import torch

    from benchmarks.gpu_parts.timing import seconds_per_call

    def stop(*_: object) -> None:
        raise _Stop

    api.setup(device)
    assert api.model is not None
    model, size = api.model, api.max_batch_size
    pixels = torch.randint(0, 256, (size, *model.pixel_shape), dtype=torch.uint8, device=model.device)

    @torch.inference_mode()
    def send_rate() -> None:
        each_s = seconds_per_call(lambda: model.engine.run(pixels), model.device, seconds, warm_up_s)
        parent.send(size / each_s)

    send_rate()
    signal.signal(signal.SIGUSR1, stop)
    with contextlib.suppress(_Stop):
        api.loop(api, device, 0, None, None, {}, None)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    send_rate()


def _feed(shared: Shared, waiting: int, warm_up_s: float, seconds: float) -> tuple[float, float]:
    """Keep slots queued; return images/s and the mean batch size after the warm-up."""
    slots = OwnerSlots(shared.table, 0)
    _queue(shared, slots, waiting)
    _answer(shared, slots, warm_up_s)
    before, start = shared.worker_board.counts_of(0), time.monotonic()
    images = _answer(shared, slots, seconds)
    elapsed_s = time.monotonic() - start
    batches, counted = (now - then for now, then in zip(shared.worker_board.counts_of(0), before, strict=True))
    return images / elapsed_s, counted / max(1, batches)


def _answer(shared: Shared, slots: OwnerSlots, seconds: float) -> int:
    """Queue each slot again when it is answered, for some seconds; return the number of answers."""
    answers, images = shared.default.answers[0], 0
    end = time.monotonic() + seconds
    while time.monotonic() < end or not images:
        if not select.select([answers], [], [], _START_S)[0]:
            raise RuntimeError("the worker answers no more")
        answered = [answer.slot for answer in unpack_answers(answers.read(_ANSWERS_PER_READ))]
        for slot in answered:
            slots.release(slot)
        _queue(shared, slots, len(answered))
        images += len(answered)
    return images


def _queue(shared: Shared, slots: OwnerSlots, images: int) -> None:
    records = []
    for _ in range(images):
        taken = slots.take()
        assert taken is not None
        slots.queue(taken[0], time.monotonic())
        records.append(RequestRecord(*taken).pack())
    shared.default.requests[Urgency.NORMAL].write(records)
