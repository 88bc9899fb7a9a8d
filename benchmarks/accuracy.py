"""The accuracy gate: how far each dtype and decode mode is from float32 and exact decoding.

    python -m benchmarks.accuracy
    python -m benchmarks.accuracy --model google/vit-base-patch16-224 --images photos/

Without --images, the images are the scans of digits that the embedded model was not trained on, as large JPEGs, so that
scaled decoding applies. Each dtype is judged with exact decoding, and scaled decoding in float32; both together are
shown only. The exit status is 1 if an option fails.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.harness import command_line, results, tables
from vit_api.checkpoints.checkpoint import Checkpoint, load_checkpoint
from vit_api.ipc.records import Prediction
from vit_api.lit_api import ViTAPI

_DTYPES = ("float32", "bfloat16", "float16")
_SIDE = 512
_BATCH_SIZE = 32

MAX_DIFFERENCE = 0.02
"""Maximum difference of a probability."""
CLEAR_MARGINS = {"exact": 0.01, "draft": 2 * MAX_DIFFERENCE}
"""By decode mode: where the reference's top two classes differ by more, the top class must be the same.

Where pixels differ, two probabilities that are each off by 0.02 can swap up to 0.04.
"""

Probabilities = npt.NDArray[np.float64]


def digit_jpegs() -> Iterator[bytes]:
    """Yield the held-out scans as JPEGs of 512 x 512 pixels."""
    from scripts.train_digits import load_split, scan_to_image

    for scan in load_split().held_out_scans:
        file = io.BytesIO()
        picture = scan_to_image(scan).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        picture.convert("RGB").save(file, "JPEG", quality=90)
        yield file.getvalue()


def probabilities(checkpoint: Checkpoint, uploads: Sequence[bytes], dtype: str, *, is_exact: bool) -> Probabilities:
    """Return float64 [uploads, classes]; 0 for a class that is not in a prediction's top k."""
    api = ViTAPI(checkpoint, dtype=dtype, exact_decode=is_exact, max_batch_size=_BATCH_SIZE)
    api.setup("cpu")
    return probabilities_of(api, uploads)


def probabilities_of(api: ViTAPI, uploads: Sequence[bytes]) -> Probabilities:
    """Return `probabilities` for a LitAPI that is set up."""
    found: list[Prediction] = []
    for start in range(0, len(uploads), api.max_batch_size):
        batch = api.batch([api.decode_request(upload) for upload in uploads[start : start + api.max_batch_size]])
        found += api.unbatch(api.predict(batch))
    result = np.zeros((len(uploads), len(api.checkpoint.labels)))
    for row, prediction in zip(result, found, strict=True):
        row[list(prediction.indices)] = prediction.probabilities
    return result


def compare(reference: Probabilities, others: Probabilities, clear_margin: float) -> dict[str, Any]:
    """Return how far others are from the reference, and whether they pass the gate."""
    top_two = np.sort(reference, axis=1)[:, -2:]
    is_clear = top_two[:, 1] - top_two[:, 0] > clear_margin
    agrees = reference.argmax(axis=1) == others.argmax(axis=1)
    clear_agreement = float(agrees[is_clear].mean()) if is_clear.any() else 1.0
    # Only the top k are known; a class that is in one top k only is 0 in the other.
    known = (reference > 0) & (others > 0)
    differences = np.abs(reference - others)[known]
    return {
        "top_1_agreement": round(float(agrees.mean()), 4),
        "top_1_agreement_where_clear": round(clear_agreement, 4),
        "largest_difference": round(float(differences.max()), 5),
        "mean_difference": round(float(differences.mean()), 6),
        "passes": bool(agrees[is_clear].all() and differences.max() <= MAX_DIFFERENCE),
    }


def run(model: str, uploads: Sequence[bytes]) -> list[dict[str, Any]]:
    """Compare each dtype and decode mode with float32 and exact decoding."""
    checkpoint = load_checkpoint(model)
    reference = probabilities(checkpoint, uploads, "float32", is_exact=True)
    results = []
    for dtype in _DTYPES:
        for mode in ("exact", "draft"):
            others = probabilities(checkpoint, uploads, dtype, is_exact=mode == "exact")
            is_judged = mode == "exact" or dtype == "float32"
            option = {"engine": "eager", "dtype": dtype, "decode": mode, "is_judged": is_judged}
            results.append(option | compare(reference, others, CLEAR_MARGINS[mode]))
            print(_row(results[-1]), flush=True)
    return results


def _row(result: dict[str, Any]) -> str:
    verdict = "passes" if result["passes"] else "FAILS"
    return (
        f"{result['dtype']:8} {result['decode']:5} top-1 agreement {result['top_1_agreement']:.2%} "
        f"({result['top_1_agreement_where_clear']:.2%} where clear), maximum difference "
        f"{result['largest_difference']:.5f}, mean {result['mean_difference']:.6f}: "
        f"{verdict if result['is_judged'] else 'not judged'}"
    )


def table(report: dict[str, Any]) -> str:
    """Return the table of a result: one line per option."""
    head = ("engine", "dtype", "decoding", "top-1 agreement", "where clear", "largest difference", "mean", "verdict")
    rows = []
    for result in report["results"]:
        verdict = ("passes" if result["passes"] else "fails") if result["is_judged"] else "not judged"
        agreement = (f"{result[name]:.2%}" for name in ("top_1_agreement", "top_1_agreement_where_clear"))
        differences = (result["largest_difference"], f"{result['mean_difference']:.6f}")
        rows.append((result["engine"], result["dtype"], result["decode"], *agreement, *differences, verdict))
    return tables.markdown(head, rows)


def add_images(to: argparse.ArgumentParser, *, default: str) -> None:
    """Add the options of a comparison of answers: `--model`, `--images` and `--max-images`."""
    to.add_argument("--model", default="digits", help="checkpoint to run (default: %(default)s)")
    to.add_argument("--images", type=Path, help=f"folder of images (default: {default})")
    to.add_argument("--max-images", type=int, default=400, help="maximum number of images (default: %(default)s)")


def chosen_uploads(options: argparse.Namespace) -> list[bytes]:
    """Return at most `--max-images` files of the folder in `--images`, or else digits."""
    if options.images:
        files = (path for path in sorted(options.images.rglob("*")) if path.is_file())
        return [path.read_bytes() for path in islice(files, options.max_images)]
    return list(islice(digit_jpegs(), options.max_images))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the gate; exit with status 1 if an option fails."""
    parser = command_line.parser("accuracy", __doc__)
    add_images(parser, default="digits")
    options = command_line.parse(parser, arguments)
    uploads = chosen_uploads(options)
    compared = run(options.model, uploads)
    what = {"model": Path(options.model).name, "pictures": len(uploads), "gate": MAX_DIFFERENCE}
    results.write(options.out, what | {"results": compared})
    if not all(result["passes"] for result in compared if result["is_judged"]):
        sys.exit("An option fails the gate: see above.")


if __name__ == "__main__":
    main()
