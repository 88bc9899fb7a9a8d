"""Our server with a fault in some versions: batches of at most `SLEEPS` images sleep, those of `RAISES` fail."""

from __future__ import annotations

import time
from typing import Any

from vit_api.lit_api import ViTAPI

SLEEPS, RAISES = 7, 6
SLEEP_S = 5.0


class FaultyAPI(ViTAPI):
    """A LitAPI whose faults are chosen by the maximum batch size, which each version has of its own."""

    def predict(self, x: Any, *parts: Any) -> Any:
        """Sleep, raise or compute."""
        if self.max_batch_size == RAISES:
            raise RuntimeError("planted")
        if self.max_batch_size == SLEEPS:
            time.sleep(SLEEP_S)
        return super().predict(x, *parts)


if __name__ == "__main__":
    from vit_api.app import main  # here, since each worker that is started imports this module, as it does `server.py`

    main(FaultyAPI)
