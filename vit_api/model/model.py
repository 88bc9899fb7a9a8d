"""A Vision Transformer on a device: uint8 pixels in, the most probable classes out.

Combines `vit`, `precision`, `engines` and `staging`. Must not know slots or HTTP. Only workers and `classify` import
it, because the import of torch takes seconds.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.checkpoints.int8 import INT8, SCALED_DTYPES, model_file
from vit_api.ipc.records import ALL_CLASSES, EMBEDDING, MAX_TOP_K, Prediction
from vit_api.model import cuda_graphs
from vit_api.model.cuda_graphs import Network
from vit_api.model.embeddings import ClassifierHead, black, find_head, normalise
from vit_api.model.engines import (
    OPENVINO,
    Engine,
    batch_sizes,
    choose_engine,
    compile_network,
    make_engine,
    pack,
    unpack,
    warmed_batch_sizes,
)
from vit_api.model.fusing import fuse
from vit_api.model.host_memory import keep_freed_memory
from vit_api.model.loading import load_network, read_width
from vit_api.model.memory_errors import is_out_of_memory, translate_memory_error
from vit_api.model.openvino_network import OpenVINONetwork, export
from vit_api.model.precision import (
    check_scaled_dtype,
    choose_dtypes,
    choose_threads,
    disable_cudnn_attention,
    make_exact,
)
from vit_api.model.scaled_products import FLOAT_DTYPES
from vit_api.model.staging import CudaLink, Event, HostLink, Staged, Staging
from vit_api.model.vit import FusedViT

logger = logging.getLogger(__name__)

_MAX_DEVIATION = {torch.float32: 1e-3}
_MAX_DEVIATION_ELSE = 0.05
"""Maximum `engines.deviation`: the order of summation differs, and bfloat16 has 8 significant bits."""


_NO_EMBEDDINGS = "The model has no embeddings: its last layer does not read one vector for each image."


class Launched(NamedTuple):
    """A batch that was launched on the device.

    Attributes:
        packed: The predictions in host memory; see `engines.pack`.
        arrival: The event at which they are complete.
        embeddings: float32 [batch, dimensions] in host memory, complete before the predictions; None without.
    """

    packed: torch.Tensor
    arrival: Event
    embeddings: torch.Tensor | None = None

    def is_done(self) -> bool:
        """Return whether the predictions are complete."""
        return self.arrival.query()


class VisionModel:
    """An image-classification checkpoint, loaded on a device and ready to run.

    Args:
        checkpoint: The checkpoint. Weights are loaded only from safetensors, and no code of the checkpoint is run.
        device: torch's name of the device: `cpu`, `cuda:0`.
        dtype: `auto`, `float32`, `bfloat16`, `float16`, `int8` or `fp8`. On the CPU, a quantized checkpoint runs in
            `int8` in OpenVINO. On CUDA, any ViT does in either, see `scaled_products`.
        cpu_threads: Threads for one operation on the CPU in this process; by default, see `precision`.
        max_batch_size: Maximum number of images in a batch.
        all_classes: Return all classes of each image, not only `MAX_TOP_K`.
        emulates_cuda: Compute `int8` and `fp8` on the CPU as CUDA does; to judge them, since it is slow.

    Attributes:
        device: The device that it runs on.
        dtype: The dtype that it computes in, on CUDA that of what is not in int8 or fp8; softmax is always float32.
        device_name: The name that the hardware reports.
        device_uuid: The GPU's UUID in NVML; empty for the CPU.
        pixel_shape: (height, width, 3) of an image.
        engine: The engine that runs it; eager until `prepare`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str,
        dtype: str,
        cpu_threads: int | None,
        max_batch_size: int = 32,
        *,
        all_classes: bool = False,
        emulates_cuda: bool = False,
    ) -> None:
        self.device = torch.device(device)
        width = read_width(checkpoint.path)
        torch.set_num_threads(cpu_threads or choose_threads(self.device, width))
        make_exact()
        if self.device.type == "cpu":
            keep_freed_memory()
        self.device_name, self.device_uuid = "CPU", ""
        if self.device.type == "cuda":
            disable_cudnn_attention()
            torch.cuda.set_device(self.device)  # for streams, events and graphs, which use the current device
            properties = torch.cuda.get_device_properties(self.device)
            self.device_name, self.device_uuid = properties.name, f"GPU-{properties.uuid}"
        self.pixel_shape = checkpoint.preprocessing.pixel_shape
        self._max_batch_size = max_batch_size
        self._scale, self._shift = self._normalisation(checkpoint)
        self._is_bgr = checkpoint.preprocessing.is_bgr
        self._classes = len(checkpoint.labels)
        self._top_k = self._classes if all_classes else min(MAX_TOP_K, self._classes)
        self._link = CudaLink(self.device) if self.device.type == "cuda" else HostLink()
        self._staging = Staging(self._link, self.pixel_shape, max_batch_size)
        self._logits: Network
        self._scaled = dtype if dtype in SCALED_DTYPES and (emulates_cuda or self.device.type == "cuda") else None
        if self._scaled:
            self._load_scaled(checkpoint, self._scaled, width)
        elif dtype == INT8:
            self._load_int8(checkpoint)
        else:
            self._load(checkpoint, choose_dtypes(dtype, self.device, width))
        self.engine = Engine("eager" if self._int8 is None else OPENVINO, self._run_eagerly)

    def _load(self, checkpoint: Checkpoint, dtypes: Sequence[torch.dtype]) -> None:
        self._int8: OpenVINONetwork | None = None
        self._model = load_network(
            checkpoint.path, dtypes, self.pixel_shape, self._scale, self._shift, sigmoid=checkpoint.has_sigmoid
        )
        self.dtype = self._model.dtype
        self._classes = self._model.config.num_labels
        with torch.inference_mode():
            fused = None if self._is_bgr else fuse(self._model, self._scale, self._shift, self._unfused)
            self._logits = fused or self._unfused

    def _load_scaled(self, checkpoint: Checkpoint, dtype: str, width: int) -> None:
        check_scaled_dtype(dtype, self.device)
        rest = FLOAT_DTYPES[dtype]
        self._load(checkpoint, choose_dtypes("auto", self.device, width) if rest is None else (rest,))
        if not isinstance(self._logits, FusedViT):
            raise ValueError(f"The model can't be used in {dtype}: it is not a ViT of a known form. Set another dtype.")
        with torch.inference_mode():
            self._logits = self._logits.with_scaled_products(dtype)
        logger.info("What is not in %s runs in %s", dtype, self.float_dtype)

    def _load_int8(self, checkpoint: Checkpoint) -> None:
        self._int8 = self._logits = OpenVINONetwork(model_file(checkpoint.path), torch.get_num_threads())
        self.dtype = torch.int8
        logger.info("What is not quantized runs in %s", self.float_dtype)
        if not self._int8.has_features:
            logger.warning("%s", _NO_EMBEDDINGS)

    def _normalisation(self, checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
        """Fold rescaling and normalisation, (x * scale - mean) / std, into x * a + b; a and b are float32 [3, 1, 1]."""
        preprocessing = checkpoint.preprocessing
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        scale, shift = preprocessing.scale / std, -mean / std
        return (
            scale.view(3, 1, 1).to(self.device, torch.float32),
            shift.view(3, 1, 1).to(self.device, torch.float32),
        )

    @torch.inference_mode()
    def prepare(self, engine: str, sizes: tuple[int, ...] | None = None) -> None:
        """Set up an engine and warm up, so that no request pays for one-time initialisation.

        Args:
            engine: `auto`, `eager`, `compile`, `cudagraph` or `openvino`; an int8 model has only the last. If it is not
                available, the model stays eager, and a warning says why.
            sizes: The batch sizes to prepare, in ascending order; by default, those of `engines.batch_sizes`.

        Raises:
            RuntimeError: The model's output is infinite or NaN.
        """
        name = OPENVINO if self._int8 else choose_engine(engine, self.device)
        warmed = warmed_batch_sizes(self.device, self._max_batch_size)
        prepared = sizes or (warmed if name in ("eager", OPENVINO) else batch_sizes(name, self._max_batch_size))

        def compiled() -> Network:
            if name == OPENVINO:
                exported = OpenVINONetwork(self.export(), torch.get_num_threads(), self.dtype)
                return lambda pixels: pack(exported(pixels), self._top_k)
            traceable = self._logits.without_kernels() if isinstance(self._logits, FusedViT) else self._logits
            logits = compile_network(traceable, len(prepared))
            return lambda pixels: pack(logits(pixels), self._top_k)

        self.engine = (
            self.engine
            if self._int8
            else make_engine(
                name,
                self._run_eagerly,
                compiled,
                lambda images: torch.zeros((images, *self.pixel_shape), dtype=torch.uint8, device=self.device),
                sizes=prepared,
                max_deviation=_MAX_DEVIATION.get(self.dtype, _MAX_DEVIATION_ELSE),
            )
        )
        started = time.monotonic()
        warmed = self.engine.sizes or warmed
        for size in warmed:
            black = [np.zeros(self.pixel_shape, np.uint8)] * size
            if not all(prediction.is_finite for prediction in self.collect(self.launch(self.stage(black)))):
                raise RuntimeError(f"The model's output is infinite or NaN in {self.dtype_name}: set another dtype.")
        logger.info("Warmed up batches of %s in %.1f s", list(warmed), time.monotonic() - started)

    @translate_memory_error
    def stage(self, images: Sequence[NDArray[np.uint8]]) -> Staged:
        """Gather images, each uint8 [height, width, 3], and start their copy to the device.

        Raises:
            OutOfDeviceMemory: They do not fit.
        """
        return self._staging.stage(images)

    @translate_memory_error
    @torch.inference_mode()
    def launch(self, staged: Staged, parts: int = 0) -> Launched:
        """Launch the model on a staged batch, and the copy of its predictions to the host.

        Args:
            staged: The batch.
            parts: What the predictions must have besides the most probable classes: `ALL_CLASSES`, `EMBEDDING`, both or
                0. What the engine does not return is computed without it, eagerly.

        Raises:
            OutOfDeviceMemory: The computation does not fit.
        """
        if self._top_k == self._classes:
            parts &= ~ALL_CLASSES
        try:
            pixels = self._staging.accept(staged)
            embeddings, packed = self._run_long(pixels, parts) if parts else (None, self.engine.run(pixels))
        finally:
            self._staging.give_back(staged)
        if embeddings is None:
            return Launched(*self._link.fetch(packed))
        fetched, _ = self._link.fetch(embeddings)  # first: the event of a later copy holds for both
        return Launched(*self._link.fetch(packed), fetched)

    def _run_long(self, pixels: torch.Tensor, parts: int) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the embeddings, if they are wanted and the model has them, and the packed predictions."""
        top_k = self._classes if parts & ALL_CLASSES else self._top_k
        if not parts & EMBEDDING:
            return None, pack(self._logits(pixels), top_k)
        features, logits = self.forward(pixels)
        return None if features is None else normalise(features), pack(logits, top_k)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the features [batch, size] that the last layer reads, None if there are none, and the logits."""
        if self._int8:
            return self._int8.run(pixels)
        if isinstance(self._logits, FusedViT):
            features = self._logits.features(pixels)
            return features, self._logits.classify(features)
        return (None, self._logits(pixels)) if self._head is None else self._head.run(lambda: self._unfused(pixels))

    @property
    def network(self) -> Network:
        """The function that the eager engine runs, from pixels to logits."""
        return self._logits

    @property
    def dtype_name(self) -> str:
        """The name of the dtype, as in VIT_API_DTYPE."""
        return self._scaled or str(self.dtype).removeprefix("torch.")

    @property
    def float_dtype(self) -> str:
        """The name of the dtype of what is not quantized."""
        return str(self._int8.dtype if self._int8 else self.dtype).removeprefix("torch.")

    def export(self) -> Any:
        """Return the model as an `openvino.Model`, see `openvino_network`; only for the CPU, and not in int8."""
        _ = None if isinstance(self._logits, FusedViT) else self._head  # found now: it can't be traced
        modules = self._model if isinstance(self._model, torch.nn.Module) else None
        return export(self.forward, self.pixel_shape, None if isinstance(self._logits, FusedViT) else modules)

    @functools.cached_property
    def _head(self) -> ClassifierHead | None:
        """The layer whose input is the embedding."""
        assert isinstance(self._model, torch.nn.Module)  # as every image classifier is
        head = find_head(self._model, lambda: self._unfused(black(self.pixel_shape, self.device)))
        if head is None:
            logger.warning("%s", _NO_EMBEDDINGS)
        return head

    @translate_memory_error
    def collect(self, launched: Launched) -> list[Prediction]:
        """Wait for this batch only, and return one prediction per image.

        Raises:
            OutOfDeviceMemory: The computation did not fit.
        """
        launched.arrival.synchronize()
        logits, indices, probabilities = unpack(launched.packed.numpy())
        columns = zip(indices.astype(np.int32).tolist(), logits.tolist(), probabilities[:, 0].tolist(), strict=True)
        predictions = [Prediction(tuple(i), tuple(top), p) for i, top, p in columns]
        if launched.embeddings is None:
            return predictions
        embeddings = launched.embeddings.numpy().astype("<f4")
        return [one._replace(embedding=row.tobytes()) for one, row in zip(predictions, embeddings, strict=True)]

    def _run_eagerly(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the packed predictions of uint8 [batch, height, width, 3] on the device."""
        return pack(self._logits(pixels), self._top_k)

    def _unfused(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits of uint8 [batch, height, width, 3] by the network itself, for any architecture."""
        inputs = pixels.permute(0, 3, 1, 2).to(torch.float32) * self._scale + self._shift
        if self._is_bgr:
            inputs = inputs.flip(1)
        return self._model(pixel_values=inputs.to(self.dtype)).logits

    def has_working_device(self) -> bool:
        """Return whether the device still computes.

        After an illegal memory access or a failed assertion on a GPU, every later call of the process fails: see
        "sticky errors" in the documentation of the CUDA runtime API.
        """
        try:
            return bool(torch.ones(1, device=self.device).item() == 1)
        except RuntimeError as error:
            return is_out_of_memory(error)

    def free_memory(self) -> None:
        """Release the device memory that torch caches."""
        if self.device.type == "cuda":
            cuda_graphs.free_memory()
