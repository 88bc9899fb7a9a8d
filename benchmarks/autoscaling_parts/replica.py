"""Our server as a replica with a device of its own: each batch takes a fixed time, in which it uses no CPU.

All replicas share the cores of one machine. A model that computes on them would take from each what another one gets,
and more replicas would not be more capacity.
"""

from __future__ import annotations

import os
import time
from typing import Any

from vit_api.app import main
from vit_api.lit_api import ViTAPI

BATCH_S = "PACED_BATCH_S"
"""The environment variable with the seconds of a batch."""


class PacedAPI(ViTAPI):
    """Its `predict` takes as long as on a device that is slower than the cores."""

    def predict(self, x: Any, parts: int = 0) -> Any:
        """Return the predictions of a batch, at the earliest those seconds after it began."""
        began_at = time.monotonic()
        output = super().predict(x, parts)
        time.sleep(max(0.0, began_at + float(os.environ[BATCH_S]) - time.monotonic()))
        return output


if __name__ == "__main__":
    # The worker is another process, which must be able to import the class.
    from benchmarks.autoscaling_parts.replica import PacedAPI as Importable

    main(Importable)
