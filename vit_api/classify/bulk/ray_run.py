"""Runs a plan on a Ray cluster: joins or starts it, and has its nodes run the parts until no more can be finished."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Generator, Iterator

import ray

from vit_api.classify.bulk.parts import PartDone, RunFailed
from vit_api.classify.bulk.plan import Plan
from vit_api.classify.bulk.ray_actors import run_whole_parts
from vit_api.classify.bulk.ray_nodes import Task
from vit_api.classify.local import computes_in_lanes
from vit_api.settings import Settings

_HOST_AND_PORT = re.compile(r"([^:/]+):(\d+)")
_REACH_S = 10.0
_CLASS = re.compile(r"^vit_api\.[\w.]+: ")
"""What Python writes before the message of one of our errors, which says all there is."""


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
    task = Task(plan.out, plan.shard, settings, -(-models // nodes))
    left, before = dict.fromkeys(parts), 0
    while left and len(left) != before:
        before = len(left)
        try:
            for done in _run(task, list(left), models, has_gpus=gpus > 0):
                del left[done.part]
                yield done
        except ray.exceptions.RayError as error:
            raise RunFailed(f"Ray gave up: {_reason(error)}") from error


def _run(task: Task, parts: list[int], models: int, *, has_gpus: bool) -> Iterator[PartDone]:
    if not has_gpus and computes_in_lanes(task.settings):
        return run_whole_parts(task, parts, models)
    from vit_api.classify.bulk.ray_dataset import run_as_dataset  # here: Ray Data takes seconds to import

    return run_as_dataset(task, parts, models, has_gpus=has_gpus)


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


def _reason(error: BaseException) -> str:
    """Return the message of the error in the task or actor as a sentence, without the traceback of Ray's message."""
    cause = getattr(error, "cause", None) or error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    *_, last = str(cause).strip().splitlines() or [type(cause).__name__]
    return _CLASS.sub("", last).removesuffix(".") + "."
