"""Serves the same LitAPI with a plain LitServer and LitServe's own loop: `python -m tests.stock_server PORT`."""

from __future__ import annotations

import sys

import litserve as ls

from vit_api.checkpoint import load_checkpoint
from vit_api.lit_api import ViTAPI

if __name__ == "__main__":
    api = ViTAPI(load_checkpoint("digits"), max_batch_size=32, batch_timeout=0.005)
    ls.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False
    )
