"""Our server with a fault in every version whose batches are of at most `FAULTY` images: `sleeps` or `raises`."""

from __future__ import annotations

import sys
import time
from typing import Any

from vit_api.app import main
from vit_api.lit_api import ViTAPI

FAULTY = 7
SLEEP_S = 5.0


class SleepingAPI(ViTAPI):
    def predict(self, x: Any) -> Any:
        if self.max_batch_size == FAULTY:
            time.sleep(SLEEP_S)
        return super().predict(x)


class RaisingAPI(ViTAPI):
    def predict(self, x: Any) -> Any:
        if self.max_batch_size == FAULTY:
            raise RuntimeError("planted")
        return super().predict(x)


if __name__ == "__main__":
    main({"sleeps": SleepingAPI, "raises": RaisingAPI}[sys.argv.pop(1)])
