"""The async client: the I/O around a `Call`. Import it from `vit_api.client`."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from types import TracebackType

import httpx

from vit_api.client.answers import HttpAnswer
from vit_api.client.base import (
    AHEAD,
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    LIMITS,
    BaseClient,
    EncodedUpload,
    Options,
    checked_concurrency,
    to_failure,
)
from vit_api.client.inputs import ImageInput, read_upload
from vit_api.client.protocol import Call, Retries, base_headers, check_options
from vit_api.client.results import Classification, ClassifyError, Outcome


class AsyncClient(BaseClient):
    """An asyncio client, for one event loop. Close it, or use it as an async context manager.

    Args:
        base_url: The server's address; see `Client` for this and the other arguments.
        api_key: Sent as `Authorization: Bearer`.
        timeout_s: Time limit of one attempt, in seconds.
        retries: How often and for how long to retry.
        clock: Returns the time in seconds.
        sleep: Waits for a number of seconds.

    Raises:
        ValueError: The address, the key or the time limit is invalid.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: Retries = DEFAULT_RETRIES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(base_url, timeout_s, retries, clock)
        self._sleep = sleep
        self._http = httpx.AsyncClient(headers=base_headers(api_key), limits=LIMITS)

    async def classify(
        self,
        image: ImageInput,
        *,
        top_k: int | str | None = None,
        fresh: bool = False,
        frames: int = 1,
        threshold: float | None = None,
    ) -> Classification:
        """Classify one image; see `Client.classify`. Files are read and Pillow images encoded in a thread.

        Raises:
            ClassifyError: There is no result; the class and `code` say why.
            ValueError: `top_k`, `threshold` or `frames` is out of range.
            TypeError: `image` has a type that is not supported.
        """
        check_options(top_k, threshold, frames)
        content = image if isinstance(image, bytes) else await asyncio.to_thread(read_upload, image)
        upload = EncodedUpload(content, Options(top_k, fresh, frames, threshold))
        call = self.begin_call()
        while True:
            verdict = call.judge(await self._send(upload, call))
            if isinstance(verdict, Classification):
                return verdict
            await self._sleep(verdict)

    def classify_many(
        self,
        images: Iterable[ImageInput],
        *,
        concurrency: int = 8,
        top_k: int | str | None = None,
        fresh: bool = False,
        frames: int = 1,
        threshold: float | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Classify many images and yield an outcome for each, in order; see `Client.classify_many`.

        A caller that stops early should close the iterator (`contextlib.aclosing`), which cancels the requests in
        flight.

        Raises:
            ValueError: `concurrency`, `top_k`, `threshold` or `frames` is out of range.
            TypeError: An image has a type that is not supported.
        """
        check_options(top_k, threshold, frames)
        return self._outcomes(images, checked_concurrency(concurrency), Options(top_k, fresh, frames, threshold))

    async def _outcomes(
        self, images: Iterable[ImageInput], concurrency: int, options: Options
    ) -> AsyncGenerator[Outcome, None]:
        turns = asyncio.Semaphore(concurrency)

        async def outcome(image: ImageInput) -> Outcome:
            async with turns:
                try:
                    return await self.classify(image, **dataclasses.asdict(options))
                except ClassifyError as error:
                    return error

        tasks: deque[asyncio.Task[Outcome]] = deque()
        try:
            for image in images:
                tasks.append(asyncio.create_task(outcome(image)))
                if len(tasks) >= AHEAD * concurrency:
                    yield await tasks.popleft()
            while tasks:
                yield await tasks.popleft()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, upload: EncodedUpload, call: Call) -> HttpAnswer | ClassifyError:
        timeout_s = call.begin()
        reception = call.reception()
        try:
            async with self._http.stream("POST", self._url, **upload.options(timeout_s)) as response:
                async for chunk in response.aiter_bytes():
                    reception.add(chunk)
                return HttpAnswer(response.status_code, response.headers, reception.body())
        except (httpx.HTTPError, ClassifyError) as error:
            return to_failure(error)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
