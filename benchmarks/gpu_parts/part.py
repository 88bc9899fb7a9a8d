"""The inputs of a part of the GPU benchmark, and its result. Does not import torch, which not every part needs."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path
from typing import Any, ParamSpec

_P = ParamSpec("_P")

MAX_BATCH_SIZE = 32
FLOP_PER_IMAGE = 35.1e9
"""FLOPs of ViT-B/16 at 224 x 224 pixels; a multiplication and an addition count as two."""


@dataclass
class Part:
    """One part's run.

    Attributes:
        folder: The checkpoint.
        device: The device to run on.
        is_quick: Whether only to check that it works.
        seconds: Its time limit; it is stopped some time later.
        file: Its result, written again with each finding, so that a failure loses nothing.
        settings: The server's settings, as strings.
        result: The findings so far, which fit into JSON.
    """

    folder: Path
    device: str
    is_quick: bool
    seconds: float
    file: Path
    settings: dict[str, str]
    result: dict[str, Any] = field(default_factory=dict)
    started_at: float = field(default_factory=time.monotonic)

    @property
    def is_cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.startswith("cuda")

    def processes(self) -> SpawnContext | ForkContext:
        """Return what starts processes: CUDA must not be forked, and without it, a fork saves the imports."""
        return multiprocessing.get_context("spawn") if self.is_cuda else multiprocessing.get_context("fork")

    @property
    def max_batch_size(self) -> int:
        """Maximum batch size."""
        return 4 if self.is_quick else MAX_BATCH_SIZE

    def lasting(self, seconds: float) -> float:
        """Return how long one measurement should take."""
        return min(seconds, 0.05) if self.is_quick else seconds

    def has_time(self, seconds: float = 0.0) -> bool:
        """Return whether there is time for something that takes this long."""
        return time.monotonic() + seconds < self.started_at + self.seconds

    def attempt(self, what: str, measure: Callable[_P, object], *arguments: _P.args, **options: _P.kwargs) -> None:
        """Run a measurement; if it fails, record why and continue."""
        try:
            measure(*arguments, **options)
        except Exception as error:
            traceback.print_exc()
            first_line = str(error).strip().partition("\n")[0]
            self.found("problems", [f"{what}: {type(error).__name__}: {first_line}"])

    def found(self, name: str, value: Any) -> None:
        """Record a finding; lists of the same name are joined."""
        if isinstance(value, list):
            value = [*self.result.get(name, []), *value]
        self.result[name] = value
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.result))
        partial.replace(self.file)
