"""The arguments and the LitAPI of the baselines that use our model."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.baselines.pillow_api import PillowAPI
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.lit_api import ViTAPI

_APIS = {"ours": ViTAPI, "pillow": PillowAPI}


def arguments(*, needs_port: bool = True, decoder: str = "pillow") -> argparse.Namespace:
    """Return the command line's arguments: `port`, `model`, `dtype`, `cpu_threads`, `decoder`, `workers`.

    Args:
        needs_port: Whether the baseline serves.
        decoder: The default decoder, `ours` or `pillow`.
    """
    parser = argparse.ArgumentParser()
    if needs_port:
        parser.add_argument("port", type=int)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cpu-threads", type=int, default=1)
    parser.add_argument("--decoder", choices=sorted(_APIS), default=decoder)
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def lit_api(options: argparse.Namespace, **lit_api_options: Any) -> ViTAPI:
    """Return our server's LitAPI with the decoder of the arguments."""
    checkpoint = load_checkpoint(options.model)
    api = _APIS[options.decoder]
    return api(checkpoint, dtype=options.dtype, cpu_threads=options.cpu_threads, **lit_api_options)
