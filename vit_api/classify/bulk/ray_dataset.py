"""Runs parts as the rows of a Ray dataset: tasks on CPUs decode them, and actors, one for each GPU or node, classify.

Tasks are held back while a few decoded parts wait for the actors. If a task or an actor dies, Ray runs its part again.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import ray
from ray import data as ray_data
from ray.util.annotations import RayDeprecationWarning

from vit_api.classify.bulk.parts import PartDone
from vit_api.classify.bulk.ray_back_pressure import keep_few_ahead
from vit_api.classify.bulk.ray_nodes import (
    ATTEMPTS,
    LITTLE_CPU,
    MAX_LEFT_OUT,
    DatasetTask,
    DecodedParts,
    Task,
    decode_part,
)


def run_as_dataset(task: Task, parts: list[int], models: int, *, has_gpus: bool) -> Iterator[PartDone]:
    """Classify the files of parts and write their results; yield each part that is done, in any order.

    Args:
        task: The run.
        parts: The parts to run.
        models: Number of actors.
        has_gpus: Whether each has a GPU.

    Raises:
        ray.exceptions.RayError: An actor could not load the model, or too many parts were left out.
    """
    _configure(models)
    of_dataset = DatasetTask(**vars(task), parts=ray.put(parts))
    rows = ray_data.range(len(parts), override_num_blocks=len(parts))
    decoded = rows.map_batches(decode_part, batch_size=None, batch_format="pyarrow", fn_args=(of_dataset,), num_cpus=1)
    classified = decoded.map_batches(
        DecodedParts,
        compute=ray_data.ActorPoolStrategy(size=models),
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_args=(of_dataset,),
        num_gpus=1 if has_gpus else None,
        num_cpus=None if has_gpus else LITTLE_CPU,
        scheduling_strategy="DEFAULT" if has_gpus else "SPREAD",  # a model computes on all cores of its node
        max_task_retries=ATTEMPTS - 1,
    )
    for row in classified.iter_rows():
        yield PartDone(**row)


def _configure(models: int) -> None:
    context = ray_data.DataContext.get_current()
    keep_few_ahead(context, models)
    context.enable_progress_bars = False  # ours counts images
    # The only way to limit the attempts of an actor in Ray 2.60; 2.64 is to have another.
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)
    context.max_errored_blocks = MAX_LEFT_OUT
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # its tracebacks would be the user's only view of a bad disk
