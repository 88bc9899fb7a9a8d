"""Our server with a model that takes 100 ms for a batch and 10 ms for each of its images, whatever else runs here."""

from __future__ import annotations

import time
from typing import Any

from vit_api.app import main
from vit_api.lit_api import ViTAPI

BATCH_S, IMAGE_S = 0.1, 0.01


class SlowAPI(ViTAPI):
    def predict(self, x: Any) -> Any:
        began_at = time.monotonic()
        output = super().predict(x)
        takes_s = BATCH_S + IMAGE_S * len(x.pixels)
        time.sleep(max(0.0, began_at + takes_s - time.monotonic()))
        return output


if __name__ == "__main__":
    main(SlowAPI)
