"""Runs a plan in this process. Knows nothing of how files are listed, or results stored."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Generator, Iterator

from vit_api.classify.bulk.parts import PartDone
from vit_api.classify.bulk.plan import Plan
from vit_api.classify.bulk.results import write_part
from vit_api.classify.bulk.storage import read_file
from vit_api.classify.decoder import ReadUpload
from vit_api.classify.local import LocalClassifier, Shown


def run_parts(plan: Plan, parts: list[int], classifier: LocalClassifier) -> Generator[PartDone, None, None]:
    """Classify the files of parts and write their results; yield each part that is done.

    The files of the next part are decoded while those of the last are classified.

    Raises:
        BrokenDevice: The device no longer computes; what is finished stays so.
        StorageError: Results can't be written.
    """
    job = plan.job
    outcomes = classifier.classify_reads(_reads(plan, parts), Shown.of(job.top_k, job.threshold), job.frames)
    try:
        for part in parts:
            names = plan.names_of(part)
            failed = write_part(*plan.results_of(part), names, list(itertools.islice(outcomes, len(names))))
            yield PartDone(part, len(names), failed)
    finally:
        outcomes.close()


def _reads(plan: Plan, parts: list[int]) -> Iterator[ReadUpload]:
    for part in parts:
        for name in plan.names_of(part):
            yield functools.partial(read_file, name, plan.job.folder)
