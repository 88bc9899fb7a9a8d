"""(d) The accuracy gate for each dtype and engine, against transformers in float32 on the same pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageClassification

from benchmarks.accuracy import CLEAR_MARGINS, Probabilities, compare, probabilities_of
from benchmarks.gpu_parts.alone import release
from benchmarks.gpu_parts.part import Part
from benchmarks.harness import pictures
from vit_api.checkpoints.checkpoint import Checkpoint, load_checkpoint
from vit_api.lit_api import ViTAPI

_PICTURES = 96
_DTYPES = ("float32", "bfloat16", "float16")


def run(part: Part) -> None:
    """Judge the eager engine, and on a GPU CUDA graphs, in each dtype."""
    judge(part, _DTYPES[:1] if part.is_quick else _DTYPES, ("eager", "cudagraph") if part.is_cuda else ("eager",))


def judge(part: Part, dtypes: Sequence[str], engines: Sequence[str]) -> None:
    """Compare each dtype and engine with the reference."""
    checkpoint = load_checkpoint(str(part.folder))
    uploads = list(pictures.photos(6 if part.is_quick else _PICTURES))
    expected = _reference(checkpoint, uploads, part.device)
    for dtype in dtypes:
        for engine in engines:
            api = ViTAPI(checkpoint, dtype=dtype, engine=engine, exact_decode=True, max_batch_size=part.max_batch_size)
            api.setup(part.device)
            assert api.model is not None
            row = {"engine": api.model.engine.name, "dtype": dtype, "startup_s": round(api.startup_s, 1)}
            verdict = compare(expected, probabilities_of(api, uploads), CLEAR_MARGINS["exact"])
            part.found("rows", [row | verdict])
            device = api.model.device
            del api
            release(device)


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
