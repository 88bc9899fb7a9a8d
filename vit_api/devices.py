"""Chooses the devices that inference workers run on. Knows nothing of models, and never imports torch."""

from __future__ import annotations

import logging

from litserve.connector import check_cuda_with_nvidia_smi

from vit_api import space

logger = logging.getLogger(__name__)


def choose_devices(device: str) -> list[str]:
    """Return the devices that the setting `device` selects, as torch names them.

    `auto` selects every GPU that the driver lists, or else the CPU. LitServe's own `auto` asks torch, but only where
    torch is already imported, which it never is in the main process.

    Raises:
        ValueError: The setting is `cuda`, and the driver lists no GPU.
    """
    numbers = [int(number) for number in device.partition(":")[2].split(",") if number]
    if device.startswith("cuda:"):
        return [f"cuda:{number}" for number in numbers]
    gpus = 0 if device == "cpu" else check_cuda_with_nvidia_smi()
    if device == "cuda" and not gpus:
        raise ValueError("VIT_API_DEVICE is cuda, but nvidia-smi lists no GPU: set it to auto or cpu.")
    if device == "auto" and not gpus and (accelerator := space.accelerator()):
        logger.warning(
            "This Space's hardware is %s, but nvidia-smi lists no GPU: the model runs on the CPU, many times slower. "
            "Restart the Space; if that does not help, check that its image includes CUDA.",
            accelerator,
        )
    return [f"cuda:{number}" for number in range(gpus)] or ["cpu"]
