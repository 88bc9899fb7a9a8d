"""Staging: when a buffer may be reused. The device is simulated where order matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vit_api.model.staging import DONE, Event, HostLink, Staging

_SHAPE = (2, 2, 3)


class Copy:
    """A copy that the device performs only when it is awaited."""

    def __init__(self, source: torch.Tensor) -> None:
        self.source = source
        self.target = torch.zeros_like(source)
        self.is_complete = False
        self.waits = 0

    def query(self) -> bool:
        return self.is_complete

    def synchronize(self) -> None:
        self.waits += 1
        if not self.is_complete:
            self.target.copy_(self.source)
            self.is_complete = True


class SlowLink(HostLink):
    """A device that copies as late as possible."""

    def __init__(self) -> None:
        self.copies: list[Copy] = []
        self.buffers = 0

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        self.buffers += 1
        return super().buffer(shape, dtype)

    def send(self, host: torch.Tensor) -> tuple[torch.Tensor, Event]:
        self.copies.append(Copy(host))
        return self.copies[-1].target, self.copies[-1]

    def accept(self, sent: torch.Tensor, arrival: Event) -> None:
        arrival.synchronize()


def images(*values: int) -> list[NDArray[np.uint8]]:
    return [np.full(_SHAPE, value, np.uint8) for value in values]


def values(pixels: torch.Tensor) -> Any:
    return pixels[:, 0, 0, 0].tolist()


def test_a_batch_arrives_unchanged() -> None:
    """Images keep their order, without padding."""
    staging = Staging(HostLink(), _SHAPE, 4)
    staged = staging.stage(images(3, 1, 2))
    assert values(staging.accept(staged)) == [3, 1, 2]
    assert staged.arrival is DONE


def test_a_buffer_is_not_overwritten_while_it_is_copied() -> None:
    """The third batch waits for the copy of the first, whose buffer it reuses, but not for the second's."""
    link = SlowLink()
    staging = Staging(link, _SHAPE, 4)
    batches = []
    for value in (1, 2, 3):
        batches.append(staging.stage(images(value)))
        staging.give_back(batches[-1])  # launched, but not copied by the device yet
    assert [copy.waits for copy in link.copies] == [1, 0, 0]
    assert [values(staging.accept(staged)) for staged in batches] == [[1], [2], [3]]
    assert link.buffers == 2


@pytest.mark.parametrize("link", [HostLink(), SlowLink()], ids=["CPU", "device"])
def test_batches_that_are_staged_ahead_keep_their_pixels(link: HostLink) -> None:
    """A buffer belongs to its batch until the model has accepted it, for any number of batches."""
    staging = Staging(link, _SHAPE, 2)
    staged = [staging.stage(images(value, value + 1)) for value in range(0, 10, 2)]
    for value, batch in zip(range(0, 10, 2), staged, strict=True):
        assert values(staging.accept(batch)) == [value, value + 1]
        staging.give_back(batch)


def test_a_buffer_returned_twice_is_used_once() -> None:
    """The next two batches do not share it."""
    staging = Staging(HostLink(), _SHAPE, 1)
    first, second = staging.stage(images(1)), staging.stage(images(2))
    staging.give_back(first)
    staging.give_back(first)
    del second
    third, fourth = staging.stage(images(3)), staging.stage(images(4))
    assert (values(third.pixels), values(fourth.pixels)) == ([3], [4])


def test_an_oversized_batch_gets_its_own_buffer() -> None:
    """More images than the maximum batch size still arrive."""
    staging = Staging(HostLink(), _SHAPE, 2)
    staged = staging.stage(images(1, 2, 3))
    assert values(staging.accept(staged)) == [1, 2, 3]
    staging.give_back(staged)
    assert values(staging.stage(images(4)).pixels) == [4]


def test_buffers_are_reused() -> None:
    """Two buffers suffice for one batch at a time."""
    link = SlowLink()
    staging = Staging(link, _SHAPE, 2)
    for value in range(10):
        staged = staging.stage(images(value))
        staging.accept(staged)
        staging.give_back(staged)
    assert link.buffers == 2
