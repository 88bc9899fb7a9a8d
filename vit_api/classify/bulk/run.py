"""A run of `classify --out`: makes or finds its plan, has an engine carry it out, and reports its progress."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path

from vit_api.checkpoints.checkpoint import CheckpointError
from vit_api.classify.bulk.inputs import list_names
from vit_api.classify.bulk.parts import PartDone, RunFailed
from vit_api.classify.bulk.plan import Job, Plan, PlanError, check_folder, write_plan
from vit_api.classify.bulk.storage import StorageError
from vit_api.classify.progress import Progress
from vit_api.classify.usage import UsageError
from vit_api.environment.cores import available_cores
from vit_api.environment.garbage import exempt_from_collection
from vit_api.settings import Settings
from vit_api.worker.outcomes import BrokenDevice

_LOG_EVERY_S = 30.0


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Classify the files of the inputs, except those that are finished, and return the number of failures.

    A failure is a file with an error, an input that could not be listed, or a part without results. On an error that
    ends the run, the process exits with a message; what is finished stays so.

    Raises:
        UsageError: The folder has results of another run.
    """
    try:
        return _run(arguments, settings)
    except PlanError as error:
        raise UsageError(str(error)) from error
    except (StorageError, CheckpointError, ValueError) as error:
        sys.exit(f"error: {error}")
    except (BrokenDevice, RunFailed) as error:
        sys.exit(f"error: {error} Run the command again with --resume.")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    plan = _find_plan(arguments, settings)
    for name, why in plan.skipped:
        print(f"{name}: {why}", file=sys.stderr)
    parts = plan.unfinished()
    left = sum(map(plan.size_of, parts))
    if plan.files > left:
        print(f"{plan.files - left} of {plan.files} images were finished before.", file=sys.stderr)
    failed = missing = 0
    if parts:
        with contextlib.closing(_engine(arguments, settings, plan, parts)) as done_parts:
            failed, missing = _follow(done_parts, plan.files, left)
    if missing:
        print(f"{missing} images have no results yet: run the command again with --resume.", file=sys.stderr)
    return failed + missing + len(plan.skipped)


def _find_plan(arguments: argparse.Namespace, settings: Settings) -> Plan:
    job = Job(
        inputs=tuple(arguments.files),
        folder=str(Path.cwd()),
        model=settings.model,
        revision=settings.revision,
        top_k=arguments.top_k,
        threshold=arguments.threshold,
        frames=arguments.frames,
    )
    out, shard = arguments.out, arguments.shard
    if not check_folder(out, shard, job, resume=arguments.resume):
        skipped: list[tuple[str, str]] = []
        names = list_names(job.inputs, lambda name, why: skipped.append((name, why)))
        write_plan(out, shard, job, names, part_size=arguments.part_size, skipped=skipped)
    return Plan(out, shard)


def _engine(
    arguments: argparse.Namespace, settings: Settings, plan: Plan, parts: list[int]
) -> Generator[PartDone, None, None]:
    if arguments.engine == "ray":
        from vit_api.classify.bulk import ray_run

        return ray_run.run_parts(plan, parts, settings, workers=arguments.workers)
    from vit_api.classify.bulk import local_run
    from vit_api.classify.local import Shown, load_local

    threads = arguments.concurrency or available_cores()
    images = sum(map(plan.size_of, parts)) * arguments.frames
    shown = Shown.of(arguments.top_k, arguments.threshold)
    classifier = load_local(settings, threads, images, shown=shown, frames=arguments.frames)
    exempt_from_collection()
    return local_run.run_parts(plan, parts, classifier)


def _follow(done_parts: Iterable[PartDone], total: int, left: int) -> tuple[int, int]:
    """Report parts as they are done; return how many of their files failed, and how many are left."""
    started = time.monotonic()
    progress = Progress(sys.stderr, total, log_every_s=_LOG_EVERY_S)
    done = failed = 0
    try:
        progress.draw(total - left, failed)
        for each in done_parts:
            done += each.files
            failed += each.failed
            progress.draw(total - left + done, failed)
    finally:
        progress.clear()
        seconds = time.monotonic() - started
        print(f"{done} images in {seconds:,.1f} s ({done / seconds:,.1f} images/s), {failed} failed.", file=sys.stderr)
    return failed, left - done
