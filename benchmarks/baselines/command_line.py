"""The arguments and the LitAPI of the baselines that use our LitAPI."""

from __future__ import annotations

import argparse
from typing import Any

from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.lit_api import ViTAPI


def arguments(*, needs_port: bool = True) -> argparse.Namespace:
    """Return the command line's arguments: `port`, `model`, `dtype`, `cpu_threads`."""
    parser = argparse.ArgumentParser()
    if needs_port:
        parser.add_argument("port", type=int)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cpu-threads", type=int, default=1)
    return parser.parse_args()


def lit_api(options: argparse.Namespace, **lit_api_options: Any) -> ViTAPI:
    """Return the LitAPI that our server uses, too."""
    checkpoint = load_checkpoint(options.model)
    return ViTAPI(checkpoint, dtype=options.dtype, cpu_threads=options.cpu_threads, **lit_api_options)
