"""Runs a plan on a Ray cluster: actors, one for each GPU or node, classify parts that they or tasks decode.

A part is one row of a Ray dataset, so that one actor classifies it and writes its results. If that, or a task that
decodes, dies, Ray runs it again, and the same file is written once more. Tasks are held back while a few decoded parts
wait for the actors.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from collections.abc import Generator
from typing import Any

import ray
from ray import data as ray_data
from ray.util.annotations import RayDeprecationWarning

from vit_api.classify.bulk.parts import PartDone, RunFailed
from vit_api.classify.bulk.plan import Plan
from vit_api.classify.bulk.ray_back_pressure import keep_few_ahead
from vit_api.classify.bulk.ray_nodes import DecodedParts, Task, WholeParts, decode_part
from vit_api.classify.local import computes_in_lanes
from vit_api.settings import Settings

_ATTEMPTS = 3
"""How often a part is run whose worker dies, before the others are finished first."""
_MAX_LEFT_OUT = 100
"""Parts that are left for later; past that, something else is wrong, and this run ends."""
_HOST_AND_PORT = re.compile(r"([^:/]+):(\d+)")
_REACH_S = 10.0
_LITTLE_CPU = 0.01
"""Without GPUs, decoding and the model share the cores: no core may be reserved for either."""


def run_parts(
    plan: Plan, parts: list[int], settings: Settings, *, workers: int | None
) -> Generator[PartDone, None, None]:
    """Classify the files of parts and write their results; yield each part that is done, in any order.

    The models' node may die, and several attempts of a part fail before Ray notices. So parts without results are run
    again as long as that finishes some; those whose process dies each time are left out.

    Args:
        plan: The plan, which all nodes can read.
        parts: The parts to run.
        settings: The server's settings; those of the model, the device and the images are used.
        workers: Number of models; None: one per GPU of the cluster, or per node if there is none.

    Raises:
        RunFailed: There is no cluster, or Ray gave up.
    """
    _connect()
    gpus = 0 if settings.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    nodes = max(1, sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes()))
    models = workers or gpus or nodes
    _configure(models)
    left, before = dict.fromkeys(parts), 0
    while left and len(left) != before:
        before = len(left)
        task = Task(plan.out, plan.shard, settings, ray.put(list(left)), -(-models // nodes))
        try:
            for row in _dataset(task, len(left), models, has_gpus=gpus > 0).iter_rows():
                done = PartDone(**row)
                del left[done.part]
                yield done
        except ray.exceptions.RayError as error:
            raise RunFailed(f"Ray gave up: {_reason(error)}") from error


def _dataset(task: Task, count: int, models: int, *, has_gpus: bool) -> ray_data.Dataset:
    """Return the dataset whose rows are the parts that are done."""
    rows = ray_data.range(count, override_num_blocks=count)
    on_nodes: dict[str, Any] = {
        "batch_size": None,
        "batch_format": "pyarrow",
        "fn_constructor_args": (task,),
        "num_gpus": 1 if has_gpus else None,
        "num_cpus": None if has_gpus else _LITTLE_CPU,
        "scheduling_strategy": "DEFAULT" if has_gpus else "SPREAD",  # a model computes on all cores of its node
        "max_task_retries": _ATTEMPTS - 1,
    }
    if not has_gpus and computes_in_lanes(task.settings):
        two_parts = ray_data.ActorPoolStrategy(
            size=models, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
        )
        return rows.map_batches(WholeParts, compute=two_parts, **on_nodes)
    decoded = rows.map_batches(decode_part, batch_size=None, batch_format="pyarrow", fn_args=(task,), num_cpus=1)
    return decoded.map_batches(DecodedParts, compute=ray_data.ActorPoolStrategy(size=models), **on_nodes)


def _connect() -> None:
    """Join the cluster that `RAY_ADDRESS` names, or start one on this machine.

    Raises:
        RunFailed: It can't be reached, or does not start.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address and (host_and_port := _HOST_AND_PORT.fullmatch(address)):
            # Ray itself tries for minutes.
            socket.create_connection((host_and_port[1], int(host_and_port[2])), _REACH_S).close()
        # "local": not whichever cluster Ray finds on this machine, its own default.
        new = {} if address else {"address": "local", "include_dashboard": False}
        ray.init(**new, log_to_driver=False, logging_level="warning")
    except Exception as error:  # Ray raises a plain one if a node takes too long to start
        what = f"The cluster at RAY_ADDRESS={address} can't be joined" if address else "Ray can't be started"
        raise RunFailed(f"{what}: {_reason(error)}") from error


def _configure(models: int) -> None:
    context = ray_data.DataContext.get_current()
    keep_few_ahead(context, models)
    context.enable_progress_bars = False  # ours counts images
    # The only way to limit the attempts of an actor in Ray 2.60; 2.64 is to have another.
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)
    context.max_errored_blocks = _MAX_LEFT_OUT
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # its tracebacks would be the user's only view of a bad disk


def _reason(error: BaseException) -> str:
    """Return the message of the error in the task or actor as a sentence, without the traceback of Ray's message."""
    cause = getattr(error, "cause", None) or error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    *_, last = str(cause).strip().splitlines() or [type(cause).__name__]
    return last.removesuffix(".") + "."
