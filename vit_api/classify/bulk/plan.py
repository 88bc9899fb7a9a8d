"""The plan of a run: which files it classifies, in which parts, and which of those are finished.

A plan is made once, and kept beside the results as a Parquet file with the name of each file and a row group for each
part. A part's results are one file that appears whole, so that what is finished is what is there: a run that was
killed goes on with the parts that are missing, however it was killed, and never reads a finished part again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs, parquet

from vit_api.classify.bulk.storage import StorageError, is_uri, new_file, open_location
from vit_api.classify.shards import Shard
from vit_api.client.lookahead import chunks

_FOLDER = "_plan"
"""Readers of Parquet folders skip what starts with an underscore."""
_METADATA = b"vit_api"
_SCHEMA = pa.schema({"path": pa.binary()})  # a file's name need not be text


class PlanError(Exception):
    """The folder of results can't be used for this run; the message says why and what to do."""


@dataclass(frozen=True)
class Job:
    """What a run computes. A run can only be resumed with the same job.

    Attributes:
        inputs: Files, folders and manifests, as given.
        folder: The folder that relative names are relative to.
        model: The model's name.
        revision: Its revision.
        top_k: Number of classes in a row, as `classify` has it.
        threshold: Minimum probability of a class.
        frames: Number of frames of an animation.
    """

    inputs: tuple[str, ...]
    folder: str
    model: str
    revision: str | None
    top_k: int | str | None
    threshold: float | None
    frames: int


class Plan:
    """A plan that was written.

    Args:
        out: The folder of the results, a path or URI.
        shard: The part of all files that this run has.

    Attributes:
        out: The folder, as any process can open it.
        shard: The shard.
        skipped: Inputs that could not be listed, with the reason.
    """

    def __init__(self, out: str, shard: Shard) -> None:
        self._filesystem, self._out = open_location(out)
        self._out = self._out.rstrip("/")
        self.out = out if is_uri(out) else self._out
        self.shard = shard
        with self._filesystem.open_input_file(_plan_path(self._out, shard)) as file:
            self._metadata = metadata = parquet.read_metadata(file)
        stored = json.loads(metadata.metadata[_METADATA])
        self.job = Job(**(stored["job"] | {"inputs": tuple(stored["job"]["inputs"])}))
        self.skipped: list[tuple[str, str]] = [(name, why) for name, why in stored["skipped"]]
        self._sizes: list[int] = [metadata.row_group(part).num_rows for part in range(metadata.num_row_groups)]

    @property
    def files(self) -> int:
        """The number of files in all parts."""
        return sum(self._sizes)

    def size_of(self, part: int) -> int:
        """Return the number of files in a part."""
        return self._sizes[part]

    def names_of(self, part: int) -> list[str]:
        """Return the names of a part's files."""
        with self._filesystem.open_input_file(_plan_path(self._out, self.shard)) as file:
            # Of a plan with many parts, the metadata has megabytes.
            table = parquet.ParquetFile(file, metadata=self._metadata).read_row_group(part)
        return [os.fsdecode(name) for name in table["path"].to_pylist()]

    def unfinished(self) -> list[int]:
        """Return the parts without results, in order."""
        found = self._filesystem.get_file_info(fs.FileSelector(self._out, allow_not_found=True))
        finished = {info.base_name for info in found if info.type == fs.FileType.File}
        return [part for part in range(len(self._sizes)) if self._name_of(part) not in finished]

    def results_of(self, part: int) -> tuple[fs.FileSystem, str]:
        """Return where a part's results are, or will be."""
        return self._filesystem, f"{self._out}/{self._name_of(part)}"

    def _name_of(self, part: int) -> str:
        return f"part-{self.shard.name}-{part:07}.parquet"


def write_plan(
    out: str, shard: Shard, job: Job, names: Iterable[str], *, part_size: int, skipped: list[tuple[str, str]]
) -> None:
    """List the files of a run and write its plan.

    Args:
        out: The folder of the results, a path or URI.
        shard: Names that are not of this shard are left out.
        job: What the run computes.
        names: The names of all files.
        part_size: Number of files in a part.
        skipped: Inputs that could not be listed, with the reason; complete once `names` is consumed.

    Raises:
        StorageError: It can't be written.
    """
    filesystem, folder = open_location(out)
    folder = folder.rstrip("/")
    try:
        filesystem.create_dir(f"{folder}/{_FOLDER}", recursive=True)
    except OSError as error:
        raise StorageError(f"{out!r} can't be created: {error.strerror or error}.") from error
    with (
        new_file(filesystem, _plan_path(folder, shard)) as stream,
        parquet.ParquetWriter(stream, _SCHEMA, compression="zstd") as writer,
    ):
        for part in chunks((name for name in names if shard.has(name)), part_size):
            writer.write_table(
                pa.table({"path": [os.fsencode(name) for name in part]}, _SCHEMA), row_group_size=part_size
            )
        stored = {"job": dataclasses.asdict(job), "skipped": skipped}
        writer.add_key_value_metadata({_METADATA: json.dumps(stored).encode()})


def check_folder(out: str, shard: Shard, job: Job, *, resume: bool) -> bool:
    """Return whether the folder has this run's plan, which is to be resumed.

    Raises:
        PlanError: It has results of another run, or of this one and `resume` is false.
        StorageError: It can't be read.
    """
    filesystem, folder = open_location(out)
    try:
        found = filesystem.get_file_info(fs.FileSelector(f"{folder.rstrip('/')}/{_FOLDER}", allow_not_found=True))
    except OSError as error:
        raise StorageError(f"{out!r} can't be read: {error.strerror or error}.") from error
    others = {Shard.from_name(info.base_name.removesuffix(".parquet")) for info in found if info.extension == "parquet"}
    if any(other.count != shard.count for other in others):
        count = next(iter(others)).count
        raise PlanError(f"The folder {out!r} has results in {count} shards: use as many, or another folder.")
    if shard not in others:
        return False
    if not resume:
        raise PlanError(f"The folder {out!r} has results: add --resume to go on, or use another folder.")
    before = Plan(out, shard).job
    for field in dataclasses.fields(Job):
        was, now = getattr(before, field.name), getattr(job, field.name)
        if was != now and (field.name != "folder" or not _is_absolute(job.inputs)):
            raise PlanError(
                f"The run in {out!r} was started with {field.name} {was!r}, not {now!r}:"
                " use the same, or another folder."
            )
    return True


def _is_absolute(inputs: Sequence[str]) -> bool:
    return all(os.path.isabs(name) or "://" in name for name in inputs)  # noqa: PTH117


def _plan_path(folder: str, shard: Shard) -> str:
    return f"{folder}/{_FOLDER}/{shard.name}.parquet"
