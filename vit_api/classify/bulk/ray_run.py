"""Runs a plan on a Ray cluster: tasks decode parts on CPUs while actors, one for each GPU or node, classify them.

A part is one row of a Ray dataset, so that one task decodes it and one actor classifies it and writes its results. If
either dies, Ray runs it again, and the same file is written once more. Tasks are held back while a few decoded parts
wait for the actors.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import socket
import warnings
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import ray
from ray import data as ray_data
from ray.util.annotations import RayDeprecationWarning

from vit_api.classify.bulk.decoded_table import from_table, to_table
from vit_api.classify.bulk.parts import PartDone, RunFailed
from vit_api.classify.bulk.plan import Plan
from vit_api.classify.bulk.ray_back_pressure import keep_few_ahead
from vit_api.classify.bulk.results import write_part
from vit_api.classify.bulk.storage import read_file
from vit_api.classify.decoder import Decoded, FileDecoder, ReadUpload, build_lit_api
from vit_api.classify.local import Shown, load_local
from vit_api.classify.shards import Shard
from vit_api.client.lookahead import map_ahead
from vit_api.client.results import ClassifyError, Outcome
from vit_api.model.host_memory import keep_freed_memory
from vit_api.settings import Settings
from vit_api.worker.outcomes import BrokenDevice

_READERS = 8
"""Threads that read files for one decoding task: an object store takes longer to answer than a decoder to decode."""
_ATTEMPTS = 3
"""How often a part is run whose worker dies, before the others are finished first."""
_MAX_LEFT_OUT = 100
"""Parts that are left for later; past that, something else is wrong, and this run ends."""
_HOST_AND_PORT = re.compile(r"([^:/]+):(\d+)")
_REACH_S = 10.0
_LITTLE_CPU = 0.01
"""Without GPUs, decoding and the model share the cores: no core may be reserved for either."""


@dataclass(frozen=True)
class _Task:
    """What tasks and actors need to know of the run, on whichever node they are.

    Attributes:
        out: The folder of the results.
        shard: The plan's shard.
        settings: The server's settings.
    """

    out: str
    shard: Shard
    settings: Settings

    def plan(self) -> Plan:
        """Return the plan, which is read once a process."""
        return _read_plan(self.out, self.shard)


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
    models = (
        workers or gpus or max(1, sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes()))
    )
    _configure(models)
    task = _Task(plan.out, plan.shard, settings)
    left, before = dict.fromkeys(parts), 0
    while left and len(left) != before:
        before = len(left)
        try:
            for row in _dataset(task, list(left), models, has_gpus=gpus > 0).iter_rows():
                done = PartDone(**row)
                del left[done.part]
                yield done
        except ray.exceptions.RayError as error:
            raise RunFailed(f"Ray gave up: {_reason(error)}") from error


def _dataset(task: _Task, parts: list[int], models: int, *, has_gpus: bool) -> ray_data.Dataset:
    """Return the dataset whose rows are the parts that are done."""
    decoded = ray_data.range(len(parts), override_num_blocks=len(parts)).map_batches(
        _decode_part, batch_size=None, batch_format="pyarrow", fn_args=(task, ray.put(parts)), num_cpus=1
    )
    return decoded.map_batches(
        _Worker,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_args=(task,),
        compute=ray_data.ActorPoolStrategy(size=models),
        num_gpus=1 if has_gpus else None,
        num_cpus=None if has_gpus else _LITTLE_CPU,
        scheduling_strategy="DEFAULT" if has_gpus else "SPREAD",  # a model computes on all cores of its node
        max_task_retries=_ATTEMPTS - 1,
    )


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


def _decode_part(batch: pa.Table, task: _Task, parts: ray.ObjectRef) -> pa.Table:
    """Decode the files of a part, in a task on a CPU."""
    (index,) = batch["id"].to_pylist()
    part = ray.get(parts)[index]
    plan = task.plan()
    decoder = _decoder(task.settings, plan.job.frames)
    names = plan.names_of(part)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="read") as pool:
        reads = [functools.partial(read_file, name, plan.job.folder) for name in names]
        # Only reading gains from threads: the task has one core.
        files = [decoder.decode(read) for read in map_ahead(pool, _read_ahead, reads, 2 * _READERS)]
    return to_table(part, files)


def _read_ahead(read: ReadUpload) -> ReadUpload:
    """Read a file now; return what yields its bytes, or raises why there are none, later."""
    try:
        upload = read()
    except ClassifyError as unreadable:
        reason = unreadable

        def fail() -> bytes:
            raise reason

        return fail
    return lambda: upload


class _Worker:
    """An actor with the model, on one GPU or on the CPU."""

    def __init__(self, task: _Task) -> None:
        self._plan = task.plan()
        job = self._plan.job
        self._shown = Shown.of(job.top_k, job.threshold)
        self._classifier = load_local(task.settings, 1, shown=self._shown, frames=job.frames)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Classify the decoded files of a part and write its results."""
        part, files = from_table(batch)
        outcomes = self._classify(files)
        failed = write_part(*self._plan.results_of(part), self._plan.names_of(part), outcomes)
        return pa.table({"part": [part], "files": [len(files)], "failed": [failed]})

    def _classify(self, files: list[Decoded]) -> list[tuple[str | None, Outcome]]:
        try:
            outcomes = list(self._classifier.classify_decoded(files, self._shown))
        except BrokenDevice:
            os._exit(1)  # only a new process can use the device again: Ray starts one, and runs the part in it
        return [(file.sha256, outcome) for file, outcome in zip(files, outcomes, strict=True)]


@functools.cache
def _read_plan(out: str, shard: Shard) -> Plan:
    return Plan(out, shard)


@functools.cache
def _decoder(settings: Settings, frames: int) -> FileDecoder:
    keep_freed_memory()  # once a process: Ray uses it for one part after another
    return FileDecoder(build_lit_api(settings, 1), frames)


def _reason(error: BaseException) -> str:
    """Return the message of the error in the task or actor as a sentence, without the traceback of Ray's message."""
    cause = getattr(error, "cause", None) or error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    *_, last = str(cause).strip().splitlines() or [type(cause).__name__]
    return last.removesuffix(".") + "."
