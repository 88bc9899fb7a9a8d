"""Runs whole parts on actors, one for each node: they read, decode and classify them.

Without Ray Data, which would have nothing to pass on and takes a tenth of a core. An actor that dies is started again,
on another node if its own is gone, and its parts are run again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import ray

from vit_api.classify.bulk.parts import PartDone
from vit_api.classify.bulk.ray_nodes import ATTEMPTS, LITTLE_CPU, MAX_LEFT_OUT, Task, WholeParts

_AT_ONCE = 2
"""Parts that an actor runs at the same time: its threads have work while the results of one are written."""
_GIVEN = _AT_ONCE + 1
"""Parts that it has been given; it begins the last as soon as another is done."""


def run_whole_parts(task: Task, parts: list[int], actors: int) -> Iterator[PartDone]:
    """Classify the files of parts and write their results; yield each part that is done, in any order.

    Args:
        task: The run.
        parts: The parts to run.
        actors: Number of actors.

    Raises:
        ray.exceptions.RayError: An actor could not load the model, or too many parts were left out.
    """
    new = ray.remote(WholeParts).options(
        num_cpus=LITTLE_CPU,
        scheduling_strategy="SPREAD",  # each computes on all cores of its node
        max_concurrency=_AT_ONCE,
        max_restarts=-1,
        max_task_retries=ATTEMPTS - 1,
    )
    waiting = iter(parts)
    running: dict[ray.ObjectRef, Any] = {}  # what each part is run by
    left_out = 0
    for actor in [new.remote(task) for _ in range(min(actors, len(parts)))]:
        running.update((actor.run.remote(part), actor) for part in itertools.islice(waiting, _GIVEN))
    while running:
        (done,), _ = ray.wait(list(running))
        actor = running.pop(done)
        running.update((actor.run.remote(part), actor) for part in itertools.islice(waiting, 1))
        try:
            yield ray.get(done)
        except ray.exceptions.RayError as error:
            left_out += 1
            if getattr(error, "actor_init_failed", False) or left_out > MAX_LEFT_OUT:
                raise
