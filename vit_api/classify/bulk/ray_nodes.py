"""What a run on Ray does on its nodes: decode parts and classify them, or both in one actor.

On the CPU an actor reads, decodes and classifies whole parts, in a thread for each core, as `classify` does without
Ray: tasks that decode beside it would take its cores, and pixels would pass through shared memory. Where a GPU or
threads of its own compute, tasks decode parts on the CPUs and actors classify them.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import pyarrow as pa
import ray

from vit_api.classify.bulk.decoded_table import from_table, to_table
from vit_api.classify.bulk.parts import PartDone
from vit_api.classify.bulk.plan import Plan
from vit_api.classify.bulk.results import write_part
from vit_api.classify.bulk.storage import is_uri, read_file
from vit_api.classify.decoder import FileDecoder, ReadUpload, build_lit_api
from vit_api.classify.local import Shown, load_local
from vit_api.classify.shards import Shard
from vit_api.client.lookahead import map_ahead
from vit_api.client.results import ClassifyError, Outcome
from vit_api.environment.cores import available_cores
from vit_api.environment.garbage import exempt_from_collection
from vit_api.model.host_memory import keep_freed_memory
from vit_api.settings import Settings
from vit_api.worker.outcomes import BrokenDevice

_READERS = 8
"""Threads that read files for one task or actor: an object store takes longer to answer than a decoder to decode."""
ATTEMPTS = 3
"""How often a part is run whose worker dies, before the others are finished first."""
MAX_LEFT_OUT = 100
"""Parts that are left for later; past that, something else is wrong, and this run ends."""
LITTLE_CPU = 0.01
"""Without GPUs, decoding and the model share the cores: no core may be reserved for either."""


@dataclass(frozen=True)
class Task:
    """What tasks and actors need to know of the run, on whichever node they are.

    Attributes:
        out: The folder of the results.
        shard: The plan's shard.
        settings: The server's settings.
        actors_per_node: Models that share the cores of a node.
    """

    out: str
    shard: Shard
    settings: Settings
    actors_per_node: int

    def plan(self) -> Plan:
        """Return the plan, which is read once a process."""
        return _read_plan(self.out, self.shard)


@dataclass(frozen=True)
class DatasetTask(Task):
    """What they need to know when parts are the rows of a dataset.

    Attributes:
        parts: The parts to run, by the numbers in the dataset.
    """

    parts: ray.ObjectRef

    def part_of(self, batch: pa.Table) -> int:
        """Return the part that a row of the dataset stands for."""
        (number,) = batch["id"].to_pylist()
        part: int = ray.get(self.parts)[number]
        return part


class _Actor:
    """An actor with the model.

    Args:
        task: The run.
        threads: Threads that decode.
        cores: Cores to compute on, without a GPU; None: all.
    """

    def __init__(self, task: Task, threads: int = 1, cores: int | None = None) -> None:
        self._plan = task.plan()
        job = self._plan.job
        self._shown = Shown.of(job.top_k, job.threshold)
        self._classifier = load_local(task.settings, threads, shown=self._shown, frames=job.frames, cores=cores)
        exempt_from_collection()

    def _write(self, part: int, outcomes: list[tuple[str | None, Outcome]]) -> PartDone:
        """Write the results of a part."""
        failed = write_part(*self._plan.results_of(part), self._plan.names_of(part), outcomes)
        return PartDone(part, len(outcomes), failed)


class WholeParts(_Actor):
    """An actor that reads, decodes and classifies whole parts on the CPU. Thread-safe: two parts overlap."""

    def __init__(self, task: Task) -> None:
        keep_freed_memory()
        cores = max(1, available_cores() // task.actors_per_node)
        super().__init__(task, cores, cores)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")

    def run(self, part: int) -> PartDone:
        """Classify the files of a part and write its results."""
        job = self._plan.job
        reads = _read_files(self._readers, self._plan.names_of(part), job.folder)
        with _ended_by_a_broken_device():
            outcomes = list(self._classifier.classify_reads(reads, self._shown, job.frames))
        return self._write(part, outcomes)


def decode_part(batch: pa.Table, task: DatasetTask) -> pa.Table:
    """Decode the files of a part, in a task on a CPU."""
    part, plan = task.part_of(batch), task.plan()
    decoder = _decoder(task.settings, plan.job.frames)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="read") as pool:
        # Only reading gains from threads: the task has one core.
        files = [decoder.decode(read) for read in _read_files(pool, plan.names_of(part), plan.job.folder)]
    return to_table(part, files)


class DecodedParts(_Actor):
    """An actor that classifies decoded parts."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Classify the decoded files of a part, write its results, and return the fields of its `PartDone` as a row."""
        part, files = from_table(batch)
        with _ended_by_a_broken_device():
            outcomes = list(self._classifier.classify_decoded(files, self._shown))
        hashes = (file.sha256 for file in files)
        done = self._write(part, list(zip(hashes, outcomes, strict=True)))
        return pa.Table.from_pylist([asdict(done)])


@contextlib.contextmanager
def _ended_by_a_broken_device() -> Iterator[None]:
    """End the process if the device breaks: only a new one can use it again, and Ray starts one for the same part."""
    try:
        yield
    except BrokenDevice:
        os._exit(1)


def _read_files(pool: ThreadPoolExecutor, names: Sequence[str], folder: str) -> Iterator[ReadUpload]:
    """Yield what returns the bytes of each file; those of object stores are read ahead in threads.

    A disk answers in less time than threads take to hand over what was read.
    """
    reads = (functools.partial(read_file, name, folder) for name in names)
    if not any(map(is_uri, names)):
        return reads
    return map_ahead(pool, _read_ahead, reads, 2 * _READERS)


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


@functools.cache
def _read_plan(out: str, shard: Shard) -> Plan:
    return Plan(out, shard)


@functools.cache
def _decoder(settings: Settings, frames: int) -> FileDecoder:
    keep_freed_memory()  # once a process: Ray uses it for one part after another
    return FileDecoder(build_lit_api(settings, 1), frames)
