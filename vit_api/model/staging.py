"""The way of pixels to the device and of answers back, beside the device's work where it has streams.

Knows nothing of models or slots. A batch's pixels are gathered in one of two buffers in the host's memory. On a CUDA
device these are pinned, so that the device fetches them itself, on a stream of its own, while it computes the batch
before. On the CPU they are the model's input as they are, and everything is done when the call returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_KEPT_BUFFERS = 2
"""One that is being copied from, and one to gather in."""


class Event(Protocol):
    """A point in a device's work; `torch.cuda.Event` is one."""

    def query(self) -> bool:
        """Tell whether the device has come so far."""

    def synchronize(self) -> None:
        """Wait until the device has come so far."""


class Done:
    """The event of what was done at once."""

    def query(self) -> bool:
        """Say yes."""
        return True

    def synchronize(self) -> None:
        """Return at once."""


DONE = Done()


class Link(Protocol):
    """How tensors move between the host's memory and a device's."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory of the host that `send` or `fetch` can use."""

    def send(self, host: Tensor) -> tuple[Tensor, Event]:
        """Start a copy to the device; return it, and when `host` has been read."""

    def accept(self, sent: Tensor, arrival: Event) -> None:
        """Have the device's next work wait for what was sent."""

    def fetch(self, result: Tensor) -> tuple[Tensor, Event]:
        """Start a copy from the device, after all its work so far; return it, and when it is complete."""


class HostLink:
    """The way to the CPU: none. Nothing is copied, and nothing runs beside the caller."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return pageable memory."""
        return torch.empty(shape, dtype=dtype)

    def send(self, host: Tensor) -> tuple[Tensor, Event]:
        """Return the tensor itself."""
        return host, DONE

    def accept(self, sent: Tensor, arrival: Event) -> None:
        """Do nothing: it is there."""

    def fetch(self, result: Tensor) -> tuple[Tensor, Event]:
        """Return the tensor itself."""
        return result, DONE


class CudaLink:
    """The way to a CUDA device. Copies to it have a stream of their own; all else is on the current one.

    Args:
        device: The device, which must be the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return pinned memory. torch keeps what is freed for the next call, once no copy uses it any more."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def send(self, host: Tensor) -> tuple[Tensor, Event]:
        """Start a copy on the copy stream."""
        with torch.cuda.stream(self._copies):
            sent = host.to(self._device, non_blocking=True)
        return sent, self._record(self._copies)

    def accept(self, sent: Tensor, arrival: Event) -> None:
        """Have the current stream wait for the copy alone, and keep its memory until that stream has used it."""
        stream = torch.cuda.current_stream(self._device)
        assert isinstance(arrival, torch.cuda.Event)
        stream.wait_event(arrival)
        sent.record_stream(stream)

    def fetch(self, result: Tensor) -> tuple[Tensor, Event]:
        """Start a copy on the current stream, behind the work that makes the result."""
        host = self.buffer(tuple(result.shape), result.dtype)
        host.copy_(result, non_blocking=True)
        return host, self._record(torch.cuda.current_stream(self._device))

    def _record(self, stream: torch.cuda.Stream) -> Event:
        # Not a blocking event: those who wait for a batch poll it, see worker.outcomes.
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return event


class _Buffer:
    """A buffer in the host's memory; `is_read` is when the last copy from it is over."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.array: NDArray[np.uint8] = pixels.numpy()
        self.is_read: Event = DONE


class Staged(NamedTuple):
    """A batch on its way to the device.

    Attributes:
        pixels: uint8 [batch, height, width, 3] on the device.
        arrival: When they are there.
        buffer: Where they were gathered.
    """

    pixels: Tensor
    arrival: Event
    buffer: _Buffer


class Staging:
    """Gathers batches and sends them to the device.

    A buffer belongs to its batch until the model took the pixels over (`accept`); then another batch may have it, as
    soon as the copy from it is over. So however many batches are staged before one is run, none overwrites another: if
    both buffers are taken, a third one is made.

    Args:
        link: The way to the device.
        pixel_shape: (height, width, 3) of an image.
        max_batch_size: Images in a batch at the most; larger ones get a buffer of their own.
    """

    def __init__(self, link: Link, pixel_shape: tuple[int, int, int], max_batch_size: int) -> None:
        self._link = link
        self._pixel_shape = pixel_shape
        self._max_batch_size = max_batch_size
        self._free = deque(self._new_buffer(max_batch_size) for _ in range(_KEPT_BUFFERS))

    def stage(self, images: Sequence[NDArray[np.uint8]]) -> Staged:
        """Gather images, each uint8 [height, width, 3], and send them on their way."""
        size = len(images)
        buffer = self._take(size)
        np.stack(images, out=buffer.array[:size])
        pixels, buffer.is_read = self._link.send(buffer.pixels[:size])
        return Staged(pixels, buffer.is_read, buffer)

    def accept(self, staged: Staged) -> Tensor:
        """Have the device's next work wait for a batch; return its pixels."""
        self._link.accept(staged.pixels, staged.arrival)
        return staged.pixels

    def give_back(self, staged: Staged) -> None:
        """Let the next batch have the buffer: the work on this one's pixels was launched, on the CPU done."""
        buffer = staged.buffer
        if len(self._free) < _KEPT_BUFFERS and len(buffer.array) == self._max_batch_size and buffer not in self._free:
            self._free.append(buffer)

    def _take(self, size: int) -> _Buffer:
        """Return the buffer that was used the longest ago, once it was read, or a new one."""
        if size > self._max_batch_size or not self._free:
            return self._new_buffer(max(size, self._max_batch_size))
        buffer = self._free.popleft()
        buffer.is_read.synchronize()
        return buffer

    def _new_buffer(self, images: int) -> _Buffer:
        return _Buffer(self._link.buffer((images, *self._pixel_shape), torch.uint8))
