"""(d) The accuracy gate for each dtype and engine, against transformers in float32 on the same pixels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForImageClassification

from benchmarks.accuracy import CLEAR_MARGINS, Probabilities, compare, probabilities_of
from benchmarks.gpu_parts.alone import dtypes, release, scaled_dtypes
from benchmarks.gpu_parts.part import Part
from vit_api.checkpoints.checkpoint import Checkpoint, load_checkpoint
from vit_api.lit_api import ViTAPI
from vit_api.load import uploads

_PICTURES = 96


def run(part: Part) -> None:
    """Judge the eager engine, and on a GPU CUDA graphs, in each dtype, that of `auto` first, int8 and fp8 last."""
    checkpoint = load_checkpoint(str(part.folder))
    names = [*dtypes(part, checkpoint), *scaled_dtypes(part)]
    judge(part, names, ("eager", "cudagraph") if part.is_cuda else ("eager",))


def judge_compiled(part: Part) -> None:
    """Judge the compiled engine in the dtype of `auto`."""
    judge(part, dtypes(part, load_checkpoint(str(part.folder)))[:1], ("compile",))


def judge(part: Part, names: Sequence[str], engines: Sequence[str]) -> None:
    """Compare each dtype and engine with the reference."""
    checkpoint = load_checkpoint(str(part.folder))
    # Only the largest batches, since torch.compile compiles for each size.
    images = list(uploads.photos(part.max_batch_size if part.is_quick else _PICTURES))
    sample = _Sample(checkpoint, images, _reference(checkpoint, images, part.device))
    for dtype in names:
        if part.has_time():
            part.attempt(dtype, _judge, part, dtype, engines, sample)
        release(torch.device(part.device))


class _Sample(NamedTuple):
    """Uploads, and the probabilities of the reference."""

    checkpoint: Checkpoint
    uploads: Sequence[bytes]
    expected: Probabilities


def _judge(part: Part, dtype: str, engines: Sequence[str], sample: _Sample) -> None:
    """Load a model once, and compare each of its engines."""
    api = ViTAPI(sample.checkpoint, dtype=dtype, engine="eager", exact_decode=True, max_batch_size=part.max_batch_size)
    api.setup(part.device)
    model = api.model
    assert model is not None
    for engine in engines:
        started = time.monotonic()
        model.prepare(engine, (part.max_batch_size,) if engine == "compile" else None)
        if model.engine.name != engine:
            part.found("problems", [f"{engine} {dtype} cannot be used: see the warnings"])
            continue
        row = {"engine": engine, "dtype": dtype, "startup_s": round(time.monotonic() - started, 1)}
        found = probabilities_of(api, sample.uploads)
        part.found("rows", [row | compare(sample.expected, found, CLEAR_MARGINS["exact"])])


@torch.inference_mode()
def _reference(checkpoint: Checkpoint, uploads: Sequence[bytes], device: str) -> Probabilities:
    """Return float64 [uploads, classes], computed by transformers in float32."""
    torch.backends.cudnn.allow_tf32 = False
    network: Any = AutoModelForImageClassification.from_pretrained(checkpoint.path, dtype=torch.float32)
    network.to(device).eval()
    decoder = ViTAPI(checkpoint, exact_decode=True)
    preprocessing = checkpoint.preprocessing
    found = []
    for upload in uploads:
        scaled = decoder.decode_request(upload) * preprocessing.scale
        normalised = (scaled - np.array(preprocessing.mean)) / np.array(preprocessing.std)
        inputs = torch.from_numpy(normalised).permute(2, 0, 1)[None].to(device, torch.float32)
        found.append(network(pixel_values=inputs).logits.double().softmax(dim=-1).cpu().numpy()[0])
    return np.stack(found)
