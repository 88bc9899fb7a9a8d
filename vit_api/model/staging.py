"""Transfers pixels to the device and predictions back, concurrently with the device's computation on CUDA.

Must not know models or slots. The pixels of a batch are gathered in one of two buffers in host memory. For CUDA these
are pinned, so the device copies them on a separate stream while it computes the previous batch. On the CPU they are the
model's input itself, and everything is complete when the call returns.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_KEPT_BUFFERS = 2
"""One that is being copied to the device, and one for the next batch."""


class Event(Protocol):
    """A point in the device's work, such as a `torch.cuda.Event`."""

    def query(self) -> bool:
        """Return whether the device has reached this point."""

    def synchronize(self) -> None:
        """Wait until the device has reached this point."""


class Done:
    """The event of work that is already complete."""

    def query(self) -> bool:
        """Return True."""
        return True

    def synchronize(self) -> None:
        """Return immediately."""


DONE = Done()


class Link(Protocol):
    """Moves tensors between host and device memory."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return host memory for `send` and `fetch`."""

    def send(self, host: Tensor) -> tuple[Tensor, Event]:
        """Start a copy to the device; return it, and the event at which `host` has been read."""

    def accept(self, sent: Tensor, arrival: Event) -> None:
        """Make the device's subsequent work wait for a copy."""

    def fetch(self, result: Tensor) -> tuple[Tensor, Event]:
        """Start a copy from the device behind all its work so far; return it, and the event of its completion."""


class HostLink:
    """The link to the CPU: nothing is copied, and nothing runs concurrently."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return pageable memory."""
        return torch.empty(shape, dtype=dtype)

    def send(self, host: Tensor) -> tuple[Tensor, Event]:
        """Return the tensor itself."""
        return host, DONE

    def accept(self, sent: Tensor, arrival: Event) -> None:
        """Do nothing: the copy is complete."""

    def fetch(self, result: Tensor) -> tuple[Tensor, Event]:
        """Return the tensor itself."""
        return result, DONE


class CudaLink:
    """The link to a CUDA device. Copies to it run on a separate stream, everything else on the current one.

    Args:
        device: The device, which must be the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return pinned memory. torch reuses freed buffers once no copy uses them any more."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def send(self, host: Tensor) -> tuple[Tensor, Event]:
        """Start a copy on the copy stream."""
        with torch.cuda.stream(self._copies):
            sent = host.to(self._device, non_blocking=True)
        return sent, self._record(self._copies)

    def accept(self, sent: Tensor, arrival: Event) -> None:
        """Make the current stream wait for this copy only, and keep its memory until that stream has used it."""
        stream = torch.cuda.current_stream(self._device)
        assert isinstance(arrival, torch.cuda.Event)
        stream.wait_event(arrival)
        sent.record_stream(stream)

    def fetch(self, result: Tensor) -> tuple[Tensor, Event]:
        """Start a copy on the current stream, behind the work that computes the result."""
        host = self.buffer(tuple(result.shape), result.dtype)
        host.copy_(result, non_blocking=True)
        return host, self._record(torch.cuda.current_stream(self._device))

    def _record(self, stream: torch.cuda.Stream) -> Event:
        # Not a blocking event: a batch is polled until it is done; see worker.outcomes.
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return event


class _Buffer:
    """A buffer in host memory; at the event `is_read`, the last copy from it is complete."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.array: NDArray[np.uint8] = pixels.numpy()
        self.is_read: Event = DONE


class Staged(NamedTuple):
    """A batch that is being copied to the device.

    Attributes:
        pixels: uint8 [batch, height, width, 3] on the device.
        arrival: The event at which the copy is complete.
        buffer: The buffer in host memory.
    """

    pixels: Tensor
    arrival: Event
    buffer: _Buffer


class Staging:
    """Gathers batches and sends them to the device.

    A buffer belongs to its batch until the model has accepted the pixels; then it is reused as soon as the copy from it
    is complete. If both buffers are taken, a third one is allocated, so staged batches never overwrite each other. On
    the CPU, several threads may each have a batch.

    Args:
        link: The link to the device.
        pixel_shape: (height, width, 3) of an image.
        max_batch_size: Maximum number of images in a batch; larger ones get a separate buffer.
    """

    def __init__(self, link: Link, pixel_shape: tuple[int, int, int], max_batch_size: int) -> None:
        self._link = link
        self._pixel_shape = pixel_shape
        self._max_batch_size = max_batch_size
        self._lock = threading.Lock()
        self._free = deque(self._new_buffer(max_batch_size) for _ in range(_KEPT_BUFFERS))

    def stage(self, images: Sequence[NDArray[np.uint8]]) -> Staged:
        """Gather images, each uint8 [height, width, 3], and start their copy to the device."""
        size = len(images)
        buffer = self._take(size)
        np.stack(images, out=buffer.array[:size])
        pixels, buffer.is_read = self._link.send(buffer.pixels[:size])
        return Staged(pixels, buffer.is_read, buffer)

    def accept(self, staged: Staged) -> Tensor:
        """Make the device's subsequent work wait for a batch; return its pixels."""
        self._link.accept(staged.pixels, staged.arrival)
        return staged.pixels

    def give_back(self, staged: Staged) -> None:
        """Release the buffer for another batch. The work on the pixels must be launched; on the CPU, complete."""
        buffer = staged.buffer
        with self._lock:
            is_kept = len(self._free) < _KEPT_BUFFERS and len(buffer.array) == self._max_batch_size
            if is_kept and buffer not in self._free:
                self._free.append(buffer)

    def _take(self, size: int) -> _Buffer:
        """Return the least recently used buffer, once it has been read, or a new one."""
        with self._lock:
            buffer = self._free.popleft() if size <= self._max_batch_size and self._free else None
        if buffer is None:
            return self._new_buffer(max(size, self._max_batch_size))
        buffer.is_read.synchronize()
        return buffer

    def _new_buffer(self, images: int) -> _Buffer:
        return _Buffer(self._link.buffer((images, *self._pixel_shape), torch.uint8))
