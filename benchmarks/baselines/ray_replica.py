"""Our server as a replica of Ray Serve, on a Ray cluster of its own. Runs in the environment of `make ray`.

Arguments: port, model. `RAY_SERVE_ENABLE_HA_PROXY=1` in the environment puts HAProxy in place of Ray's proxy in Python.
"""

from __future__ import annotations

import signal
import sys

import ray
from ray import serve

from deploy.ray_serve import app

_CPUS = 4
"""More than Ray's own actors and the replica reserve; reservations limit nothing."""


def main() -> None:
    """Serve until SIGTERM."""
    port, model = sys.argv[1:]
    ray.init(address="local", num_cpus=_CPUS, include_dashboard=False, log_to_driver=False, logging_level="warning")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # in place of Ray's handler, which prints a stack trace
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
        serve.run(app({"settings": {"model": model, "cache_size": 0, "cpu_threads": 1, "log_level": "warning"}}))
        while True:
            signal.pause()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
