"""The results of a run: Parquet, one row a file, in parts that are written whole. Knows nothing of how they came."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import pyarrow as pa
from pyarrow import fs, parquet

from vit_api.classify.bulk.storage import new_file
from vit_api.client.results import Classification, Outcome

SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "sha256": pa.string(),
        "labels": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "flagged": pa.bool_(),
        "flagged_labels": pa.list_(pa.string()),
        "thresholds_digest": pa.string(),
        "error": pa.string(),
        "code": pa.string(),
    }
)
"""One row: the file's name as it was given or found; the SHA-256 of its bytes in hexadecimal, null if it could not be
read; its labels, most probable first, and their probabilities; whether any label of the model is flagged, which of the
row's labels are, and the thresholds' digest, null without thresholds; or the error and its code, null otherwise."""


def write_part(
    filesystem: fs.FileSystem, path: str, names: Iterable[str], outcomes: Sequence[tuple[str | None, Outcome]]
) -> int:
    """Write the rows of one part and return how many of its files failed.

    Raises:
        StorageError: It can't be written.
    """
    rows = [_row(name, sha256, outcome) for name, (sha256, outcome) in zip(names, outcomes, strict=True)]
    with new_file(filesystem, path) as stream:
        parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), stream, compression="zstd")
    return sum(row["error"] is not None for row in rows)


def _row(name: str, sha256: str | None, outcome: Outcome) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(SCHEMA.names) | {"path": to_text(name), "sha256": sha256}
    if not isinstance(outcome, Classification):
        return row | {"error": to_text(outcome.message), "code": outcome.code}
    row["labels"] = [prediction.label for prediction in outcome.predictions]
    row["scores"] = [prediction.confidence for prediction in outcome.predictions]
    if outcome.flagged is not None:
        row["flagged"], row["thresholds_digest"] = outcome.flagged, outcome.thresholds_digest
        row["flagged_labels"] = [prediction.label for prediction in outcome.predictions if prediction.flagged]
    return row


def to_text(name: str) -> str:
    r"""Return a file's name, which may contain bytes that are not text, as UTF-8 can hold it: those become `\x..`."""
    return os.fsencode(name).decode(errors="backslashreplace")
