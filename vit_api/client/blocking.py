"""The sync client: the I/O around a `Call`, in threads for many images. Import it from `vit_api.client`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
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
from vit_api.client.lookahead import map_ahead
from vit_api.client.protocol import Call, Retries, base_headers, check_options
from vit_api.client.results import Classification, ClassifyError, Outcome, TimedOut


class Client(BaseClient):
    """A sync client; threads may share it. Close it, or use it as a context manager.

    Args:
        base_url: The server's address, such as `http://host:7860`, or `https://host/models/digits` with a path prefix.
        api_key: Sent as `Authorization: Bearer`, for servers or proxies that require one.
        timeout_s: Time limit of one attempt, in seconds: connecting, sending and receiving the response. A network
            wait that has already begun when it passes may take as long again.
        retries: How often and for how long to retry when the server is busy (503, 429) or the connection fails.
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
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(base_url, timeout_s, retries, clock)
        self._sleep = sleep
        self._http = httpx.Client(headers=base_headers(api_key), limits=LIMITS)

    def classify(
        self,
        image: ImageInput,
        *,
        top_k: int | str | None = None,
        fresh: bool = False,
        frames: int = 1,
        threshold: float | None = None,
    ) -> Classification:
        """Classify one image.

        Args:
            image: A path, an image file's bytes, an open binary file or a Pillow image.
            top_k: The number of classes to return, or `all`; by default 5 or, with a threshold, all.
            fresh: Bypass the server's cache.
            frames: Maximum number of frames of an animation, or pages of a document, to classify, 1 to 32. Each counts
                as an image.
            threshold: Minimum probability of a class, from 0 to 1.

        Raises:
            ClassifyError: There is no result; the class and `code` say why.
            ValueError: `top_k`, `threshold` or `frames` is out of range.
            TypeError: `image` has a type that is not supported.
        """
        check_options(top_k, threshold, frames)
        return self._run(EncodedUpload(read_upload(image), Options(top_k, fresh, frames, threshold)), self._sleep)

    def classify_many(
        self,
        images: Iterable[ImageInput],
        *,
        concurrency: int = 8,
        top_k: int | str | None = None,
        fresh: bool = False,
        frames: int = 1,
        threshold: float | None = None,
    ) -> Generator[Outcome, None, None]:
        """Classify many images and yield an outcome for each, in order, as soon as it is available.

        A failed image yields its `ClassifyError`; the others are unaffected. At most twice `concurrency` images are
        taken from `images` ahead of the results, and at most `concurrency` files are in memory. A caller that stops
        early should close the iterator (`contextlib.closing`), which waits for the requests in flight.

        Args:
            images: Any number of images; consumed as results are taken.
            concurrency: Maximum number of concurrent requests.
            top_k: The number of classes to return, or `all`; by default 5 or, with a threshold, all.
            fresh: Bypass the server's cache.
            frames: Maximum number of frames of an animation, or pages of a document, to classify, 1 to 32. Each counts
                as an image.
            threshold: Minimum probability of a class, from 0 to 1.

        Raises:
            ValueError: `concurrency`, `top_k`, `threshold` or `frames` is out of range.
            TypeError: An image has a type that is not supported.
        """
        check_options(top_k, threshold, frames)
        return self._outcomes(images, checked_concurrency(concurrency), Options(top_k, fresh, frames, threshold))

    def _outcomes(
        self, images: Iterable[ImageInput], concurrency: int, options: Options
    ) -> Generator[Outcome, None, None]:
        is_closed = threading.Event()

        def sleep(seconds: float) -> None:
            if is_closed.is_set():
                raise TimedOut("The caller stopped waiting for this result.")
            self._sleep(seconds)

        def outcome(image: ImageInput) -> Outcome:
            try:
                return self._run(EncodedUpload(read_upload(image), options), sleep)
            except ClassifyError as error:
                return error

        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="classify")
        try:
            yield from map_ahead(pool, outcome, images, AHEAD * concurrency)
        finally:
            is_closed.set()
            pool.shutdown(cancel_futures=True)

    def _run(self, upload: EncodedUpload, sleep: Callable[[float], None]) -> Classification:
        call = self.begin_call()
        while True:
            verdict = call.judge(self._send(upload, call))
            if isinstance(verdict, Classification):
                return verdict
            sleep(verdict)

    def _send(self, upload: EncodedUpload, call: Call) -> HttpAnswer | ClassifyError:
        timeout_s = call.begin()
        reception = call.reception()
        try:
            with self._http.stream("POST", self._url, **upload.options(timeout_s)) as response:
                for chunk in response.iter_bytes():
                    reception.add(chunk)
                return HttpAnswer(response.status_code, response.headers, reception.body())
        except (httpx.HTTPError, ClassifyError) as error:
            return to_failure(error)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
