"""The blocking client. Import it from `vit_api.client`; what to send and what comes of it is decided elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import httpx

from vit_api.client.answers import Answer
from vit_api.client.base import (
    AHEAD,
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    LIMITS,
    BaseClient,
    Upload,
    checked_concurrency,
    to_failure,
)
from vit_api.client.inputs import ImageInput, read_upload
from vit_api.client.lookahead import map_ahead
from vit_api.client.protocol import DEFAULT_TOP_K, Call, Retries, base_headers, check_top_k
from vit_api.client.results import (
    Classification,
    ClassifyError,
    Outcome,
    TimedOut,
)


class Client(BaseClient):
    """A blocking client, for one or several threads. To be closed, or used as a context manager.

    Args:
        base_url: The server's address: `http://host:7860`, also with a path prefix, `https://host/models/digits`.
        api_key: Sent as `Authorization: Bearer`, for servers or proxies that want one.
        timeout_s: Seconds for one try: to connect, to send, and until the answer is there. A wait for the network that
            has begun by then may take as long once more.
        retries: How often and how long to try when the server is busy (503, 429) or the connection fails.
        clock: The time in seconds.
        sleep: Waits for so many seconds.

    Raises:
        ValueError: The address, the key or the time limit is malformed.
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

    def classify(self, image: ImageInput, *, top_k: int = DEFAULT_TOP_K, fresh: bool = False) -> Classification:
        """Classify one image.

        Args:
            image: A path, an image file's bytes, an open binary file or a Pillow image.
            top_k: How many classes to name, 1 to 20.
            fresh: Have it computed, even if the server remembers it.

        Raises:
            ClassifyError: There is no result; the class and `code` say why.
            ValueError: `top_k` is out of its range.
            TypeError: `image` is nothing that can be one.
        """
        check_top_k(top_k)
        return self._run(Upload(read_upload(image), top_k, fresh), self._sleep)

    def classify_many(
        self, images: Iterable[ImageInput], *, concurrency: int = 8, top_k: int = DEFAULT_TOP_K, fresh: bool = False
    ) -> Generator[Outcome, None, None]:
        """Classify many images and yield what becomes of each, in their order, as soon as it is known.

        An image that fails has its `ClassifyError` in its place and costs the others nothing. At most twice
        `concurrency` inputs are taken from `images` ahead of the results, and at most `concurrency` files are in
        memory. Who stops early should close the iterator (`contextlib.closing`): that waits for the tries under way.

        Args:
            images: Any number of them; read as results are taken.
            concurrency: Requests at once.
            top_k: How many classes to name, 1 to 20.
            fresh: Have all computed, even if the server remembers them.

        Raises:
            ValueError: `concurrency` or `top_k` is out of its range.
            TypeError: An image is nothing that can be one.
        """
        return self._outcomes(images, checked_concurrency(concurrency), check_top_k(top_k), fresh)

    def _outcomes(
        self, images: Iterable[ImageInput], concurrency: int, top_k: int, fresh: bool
    ) -> Generator[Outcome, None, None]:
        is_over = threading.Event()

        def sleep(seconds: float) -> None:
            if is_over.is_set():
                raise TimedOut("given up: nobody waits for the result")
            self._sleep(seconds)

        def outcome(image: ImageInput) -> Outcome:
            try:
                return self._run(Upload(read_upload(image), top_k, fresh), sleep)
            except ClassifyError as error:
                return error

        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="classify")
        try:
            yield from map_ahead(pool, outcome, images, AHEAD * concurrency)
        finally:
            is_over.set()
            pool.shutdown(cancel_futures=True)

    def _run(self, upload: Upload, sleep: Callable[[float], None]) -> Classification:
        call = self.begin_call()
        while True:
            verdict = call.judge(self._send(upload, call))
            if isinstance(verdict, Classification):
                return verdict
            sleep(verdict)

    def _send(self, upload: Upload, call: Call) -> Answer | ClassifyError:
        timeout_s = call.begin()
        reception = call.reception()
        try:
            with self._http.stream("POST", self._url, **upload.options(timeout_s)) as response:
                for chunk in response.iter_bytes():
                    reception.add(chunk)
                return Answer(response.status_code, response.headers, reception.body())
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
