"""The GPU benchmark, whose parts and their servers are forked; as the module `benchmarks.gpu`, but for that."""

from __future__ import annotations

import functools
import subprocess
import sys

from benchmarks import gpu
from benchmarks.harness import servers
from tests.support import forked_servers

IMPORTS = ("benchmarks.gpu_parts.alone", "benchmarks.gpu_parts.gate", "benchmarks.harness.checkpoints")
"""What is imported before it is forked: most of the benchmark's time is that of transformers."""

FRESH_PARTS = "--fresh-parts"
"""The option that starts each part in a new interpreter, as a user does."""

if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != FRESH_PARTS]
    start = functools.partial(forked_servers.start, is_parent=True)
    servers.running = functools.partial(servers.running, start=start)  # type: ignore[assignment]
    forked_servers.this_process()  # before there is a temporary folder
    gpu.main(arguments, start=subprocess.Popen if FRESH_PARTS in sys.argv else start)
