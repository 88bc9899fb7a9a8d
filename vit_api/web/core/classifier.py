"""The core of the HTTP half: an upload goes in, its classification comes out.

Looks the upload up by its hash, in this process and then in the shared tier, and computes what is not cached, once for
all callers that ask at the same time. Knows nothing of HTTP, slots or Redis.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import hashlib
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, NamedTuple, Protocol

from vit_api.decoding.uploads import Pixels, Upload
from vit_api.ipc.cache_board import CacheTally
from vit_api.ipc.records import AnswerRecord, Prediction
from vit_api.web.core.cache import AnswerCache
from vit_api.web.core.single_flight import SingleFlight

_MAX_INLINE_HASH_BYTES = 2**18
"""Longer uploads are hashed in a thread: hashing so many bytes takes 0.15 ms, and a request may have 32 uploads."""

_MAX_SWEEP_INTERVAL_S = 60.0


class Inference(Protocol):
    """Runs uploads on the model."""

    async def infer(self, upload: Upload) -> tuple[AnswerRecord, float]:
        """Return the answer for one upload, and how many seconds its decoding took."""


class SharedTier(Protocol):
    """A cache that several HTTP processes and servers share. It never raises and never takes long."""

    async def get(self, key: bytes) -> Prediction | None:
        """Return the cached prediction."""

    def put(self, key: bytes, prediction: Prediction) -> None:
        """Cache a prediction, if possible."""


class Source(enum.Enum):
    """Where a result comes from; the values are what clients see."""

    HIT = "hit"
    """From a cache; the model did not run."""
    MISS = "miss"
    """The model ran for this upload."""
    COALESCED = "coalesced"
    """The model ran for an identical upload that was already in flight."""


class CachedPrediction:
    """A prediction in the form in which it is cached: packed, since a cache may hold millions of them.

    Attributes:
        packed: The prediction.
        rendered: Parts of responses that were made from it, by a key of each protocol's own; the last few.
    """

    __slots__ = ("packed", "rendered")

    _MAX_RENDERED = 2
    _MAX_RENDERED_BYTES = 512

    def __init__(self, prediction: Prediction) -> None:
        self.packed = prediction.pack()
        self.rendered: dict[Hashable, bytes] = {}

    @property
    def prediction(self) -> Prediction:
        """The most probable classes, unpacked at each call."""
        return Prediction.unpack(self.packed)

    def add_rendered(self, key: Hashable, rendered: bytes) -> None:
        """Cache a rendered part in place of the oldest, so that clients can't multiply the memory by asking for many.

        A long part, such as one of 20 classes with long names, is not cached.
        """
        if len(rendered) > self._MAX_RENDERED_BYTES:
            return
        if len(self.rendered) >= self._MAX_RENDERED:
            del self.rendered[next(iter(self.rendered))]
        self.rendered[key] = rendered


class ClassifierResult(NamedTuple):
    """The classification of one upload.

    Attributes:
        cached: The prediction.
        source: Where it comes from.
        answer: The worker's answer, with its timings; None for a hit.
        decode_s: Seconds that decoding took, if the model ran.
        looked_up_at: When this process's cache was asked, in seconds of the monotonic clock.
    """

    cached: CachedPrediction
    source: Source
    answer: AnswerRecord | None = None
    decode_s: float = 0.0
    looked_up_at: float = 0.0

    @property
    def prediction(self) -> Prediction:
        """The most probable classes; unpacked at each call for a hit."""
        return self.cached.prediction if self.answer is None else self.answer.prediction

    @property
    def own_answer(self) -> AnswerRecord | None:
        """The worker's answer if the model ran for this upload; a coalesced one has another upload's timings."""
        return self.answer if self.source is Source.MISS else None


class _Found(NamedTuple):
    """The outcome of a flight; see `ClassifierResult`."""

    cached: CachedPrediction
    answer: AnswerRecord | None = None
    decode_s: float = 0.0


class Classifier:
    """Classify uploads. For one HTTP process, on its event loop.

    Args:
        inference: Runs what is not cached.
        tally: Counts hits, misses and coalesced uploads.
        identity: Returns what determines an answer besides the upload: model, revision, dtype, decode mode. Called for
            the first upload; raises NotReady until that is known.
        cache: This process's cache; None disables caching.
        shared: A tier shared by several processes, asked after `cache`.
    """

    def __init__(
        self,
        inference: Inference,
        tally: CacheTally,
        identity: Callable[[], str],
        cache: AnswerCache[CachedPrediction] | None = None,
        shared: SharedTier | None = None,
    ) -> None:
        self._inference = inference
        self._tally = tally
        self._identity = identity
        self._cache = cache
        self._shared = shared
        self._flights: SingleFlight[_Found] = SingleFlight()

    def start(self) -> None:
        """Start to evict expired entries periodically, on the running event loop."""
        self._sweep()

    def stop(self) -> None:
        """Stop what `start` started."""
        if self._cache is not None:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        if self._cache is not None:
            self._cache.refresh()
            delay_s = min(self._cache.ttl_s, _MAX_SWEEP_INTERVAL_S)
            self._sweeper = asyncio.get_running_loop().call_later(delay_s, self._sweep)

    async def classify(self, upload: Upload, deadline: float, *, bypass_cache: bool = False) -> ClassifierResult:
        """Classify an upload, from the cache if possible; what is computed is cached. A hit waits for nothing.

        Args:
            upload: The image.
            deadline: When to give up, in seconds of the monotonic clock.
            bypass_cache: Run the model even if the answer is cached, here or in the shared tier.

        Raises:
            NotReady: No worker has started yet.
            DeadlineExceeded: The deadline passed first.
            ViTError: The reason why it can't be classified.
        """
        key: bytes | None = None
        if self._cache is not None:
            key = await self._key_of(upload)
            if not bypass_cache and (cached := self._cache.get(key)) is not None:
                self._tally.add("hits")
                return ClassifierResult(cached, Source.HIT, looked_up_at=time.monotonic())
        looked_up_at = time.monotonic()
        result = await self._compute(key, upload, deadline, bypass_cache=bypass_cache)
        return result._replace(looked_up_at=looked_up_at)

    async def _compute(
        self, key: bytes | None, upload: Upload, deadline: float, *, bypass_cache: bool
    ) -> ClassifierResult:
        if key is None:
            return await self._fly(object(), deadline, functools.partial(self._run, None, upload))
        # A caller that bypasses the cache must not join a flight that may still find an old answer in the shared tier;
        # the opposite is fine.
        bypass_cache = bypass_cache or self._flights.is_in_flight((key, True))
        compute = self._run if bypass_cache else self._find_or_run
        return await self._fly((key, bypass_cache), deadline, functools.partial(compute, key, upload))

    async def _key_of(self, upload: Upload) -> bytes:
        """Return the SHA-256 of the identity, the kind of upload, and its bytes."""
        if isinstance(upload, Pixels):
            seed, data = self._pixels_seed, upload.data
        else:
            seed, data = self._seed, upload
        if len(data) <= _MAX_INLINE_HASH_BYTES:
            return _hash(seed, data)
        return await asyncio.get_running_loop().run_in_executor(None, _hash, seed, data)

    @functools.cached_property
    def _seed(self) -> hashlib._Hash:
        return _seed_of(self._identity())

    @functools.cached_property
    def _pixels_seed(self) -> hashlib._Hash:
        # A file and pixels with the same bytes must not share a key, or a client could plant the file's answer.
        return _seed_of(self._identity() + "pixels")

    async def _fly(
        self, key: object, deadline: float, compute: Callable[[], Coroutine[Any, Any, _Found]]
    ) -> ClassifierResult:
        joins = self._flights.is_in_flight(key)
        if joins:
            self._tally.add("coalesced")
        cached, answer, decode_s = await self._flights.join(key, deadline, compute)
        source = Source.HIT if answer is None else Source.COALESCED if joins else Source.MISS
        return ClassifierResult(cached, source, answer, decode_s)

    async def _find_or_run(self, key: bytes, upload: Upload) -> _Found:
        epoch = self._tally.cache_board.epoch
        prediction = None if self._shared is None else await self._shared.get(key)
        if prediction is None:
            return await self._run(key, upload)
        self._tally.add("hits")
        cached = CachedPrediction(prediction)
        self._store(key, cached, epoch)
        return _Found(cached)

    async def _run(self, key: bytes | None, upload: Upload) -> _Found:
        self._tally.add("misses")
        epoch = self._tally.cache_board.epoch
        answer, decode_s = await self._inference.infer(upload)
        cached = CachedPrediction(answer.prediction)
        if key is not None and self._store(key, cached, epoch) and self._shared is not None:
            self._shared.put(key, answer.prediction)
        return _Found(cached, answer, decode_s)

    def _store(self, key: bytes, cached: CachedPrediction, epoch: int) -> bool:
        """Cache what was found or begun in `epoch`; return whether the caches were not cleared since."""
        is_current = epoch == self._tally.cache_board.epoch
        if self._cache is not None and is_current:
            self._cache.put(key, cached)
        return is_current


def _seed_of(identity: str) -> hashlib._Hash:
    """Return a hash that starts with an identity and its length, so that no two identities share a prefix."""
    data = identity.encode()
    return hashlib.sha256(len(data).to_bytes(8, "little") + data)


def _hash(seed: hashlib._Hash, data: bytes) -> bytes:
    hasher = seed.copy()
    hasher.update(data)
    return hasher.digest()
