"""The same LitAPI in a plain LitServer, with LitServe's own loop, batching and processes.

It takes forms, since LitServe does not read raw bodies. Arguments: port, model.
"""

from __future__ import annotations

import litserve as ls

from benchmarks.baselines.command_line import arguments, lit_api

_MAX_BATCH_SIZE = 32
_MAX_WAIT_S = 0.005
_TIMEOUT_S = 60

if __name__ == "__main__":
    options = arguments(decoder="ours")
    api = lit_api(options, max_batch_size=_MAX_BATCH_SIZE, batch_timeout=_MAX_WAIT_S)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=options.workers, timeout=_TIMEOUT_S)
    # A lower level logs a traceback for each client that disconnects.
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="critical")
