"""Drivers of the sync and the async client, so that one test covers both, with a fake clock."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from vit_api.client import (
    AsyncClient,
    Classification,
    Client,
)


class Driver(ABC):
    """Drives one of the clients, with a fake clock: waits are recorded and take no time."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.tick_s = 0.0  # by how much each reading of the clock advances it
        self._now = 0.0

    def clock(self) -> float:
        self._now += self.tick_s
        return self._now

    def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._now += seconds

    @abstractmethod
    async def classify(
        self, url: str, image: Any = b"image", client: dict[str, Any] | None = None, **options: Any
    ) -> Classification:
        """Classify an image with a new client."""

    @abstractmethod
    async def classify_many(
        self, url: str, images: Iterable[Any], most: int | None = None, **options: Any
    ) -> list[Any]:
        """Return at most `most` outcomes of many images, or all."""


class SyncDriver(Driver):
    """Drives `Client`, in a thread."""

    async def classify(
        self, url: str, image: Any = b"image", client: dict[str, Any] | None = None, **options: Any
    ) -> Classification:
        def run() -> Classification:
            with Client(url, clock=self.clock, sleep=self._sleep, **client or {}) as connected:
                return connected.classify(image, **options)

        return await asyncio.to_thread(run)

    async def classify_many(
        self, url: str, images: Iterable[Any], most: int | None = None, **options: Any
    ) -> list[Any]:
        def run() -> list[Any]:
            with (
                Client(url, clock=self.clock, sleep=self._sleep) as client,
                contextlib.closing(client.classify_many(images, **options)) as outcomes,
            ):
                return list(itertools.islice(outcomes, most))

        return await asyncio.to_thread(run)


class AsyncDriver(Driver):
    """Drives `AsyncClient`."""

    async def _sleep_async(self, seconds: float) -> None:
        self._sleep(seconds)

    async def classify(
        self, url: str, image: Any = b"image", client: dict[str, Any] | None = None, **options: Any
    ) -> Classification:
        async with AsyncClient(url, clock=self.clock, sleep=self._sleep_async, **client or {}) as connected:
            return await connected.classify(image, **options)

    async def classify_many(
        self, url: str, images: Iterable[Any], most: int | None = None, **options: Any
    ) -> list[Any]:
        found: list[Any] = []
        async with (
            AsyncClient(url, clock=self.clock, sleep=self._sleep_async) as client,
            contextlib.aclosing(client.classify_many(images, **options)) as outcomes,
        ):
            while len(found) != most and (outcome := await anext(outcomes, None)) is not None:
                found.append(outcome)
        return found
