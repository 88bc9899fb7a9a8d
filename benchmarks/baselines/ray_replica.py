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


def serve_until_stopped(port: int, application: serve.Application) -> None:
    """Serve until SIGTERM, on a cluster that is started for it."""
    ray.init(address="local", num_cpus=_CPUS, include_dashboard=False, log_to_driver=False, logging_level="warning")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # in place of Ray's handler, which prints a stack trace
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application)
        while True:
            signal.pause()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    settings = {"model": sys.argv[2], "cache_size": 0, "cpu_threads": 1, "log_level": "warning"}
    serve_until_stopped(int(sys.argv[1]), app({"settings": settings}))
