"""The HTTP half's core: an upload goes in, a classification comes out.

Looks the upload up by its hash, in this process and then in the shared tier, and computes what isn't known, once for
all who ask at the same time. Knows nothing of HTTP, of slots or of Redis.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import hashlib
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, NamedTuple, Protocol

from vit_api.deadline import Deadline
from vit_api.decoding.uploads import Pixels, Upload
from vit_api.ipc.cache_board import CacheTally
from vit_api.ipc.records import AnswerRecord, Prediction
from vit_api.web.core.cache import AnswerCache, SingleFlight

_LONG_UPLOAD_BYTES = 2**18
"""Above this an upload is hashed in a thread: it takes 0.15 ms, and a request may bring 32 of them."""

_MOST_S_BETWEEN_SWEEPS = 60.0


class Inference(Protocol):
    """What runs uploads on the model."""

    async def infer(self, upload: Upload, deadline: Deadline) -> tuple[AnswerRecord, float]:
        """Return the answer for one upload, and the seconds that its decoding took."""


class SharedTier(Protocol):
    """What remembers predictions for several HTTP processes and servers. It never fails and never takes long."""

    async def get(self, key: bytes) -> Prediction | None:
        """Return what is remembered of `key`."""

    def put(self, key: bytes, prediction: Prediction) -> None:
        """Remember a prediction, if possible."""


class Source(enum.Enum):
    """Where an answer comes from, by the name that clients see."""

    HIT = "hit"
    """Remembered: the model did not run."""
    MISS = "miss"
    """The model ran for it."""
    COALESCED = "coalesced"
    """The model ran for an identical upload, which was under way already."""


class CachedPrediction:
    """A prediction as it is remembered: packed, since a cache may hold millions of them.

    Attributes:
        packed: The prediction.
        rendered: What the routes made of it, by what each calls the wording; the last few.
    """

    __slots__ = ("packed", "rendered")

    _MOST_WORDINGS = 2
    _LONGEST_WORDING_BYTES = 512

    def __init__(self, prediction: Prediction) -> None:
        self.packed = prediction.pack()
        self.rendered: dict[Hashable, bytes] = {}

    @property
    def prediction(self) -> Prediction:
        """The most probable classes."""
        return Prediction.unpack(self.packed)

    def add_rendered(self, name: Hashable, wording: bytes) -> None:
        """Keep a wording in place of the oldest, so that clients who want each one can't multiply the memory.

        A long one, as of 20 classes with long names, is made anew each time.
        """
        if len(wording) > self._LONGEST_WORDING_BYTES:
            return
        if len(self.rendered) >= self._MOST_WORDINGS:
            del self.rendered[next(iter(self.rendered))]
        self.rendered[name] = wording


class ClassifierResult(NamedTuple):
    """What the model says of one upload.

    Attributes:
        known: The prediction.
        source: Where it comes from.
        answer: The worker's answer, with the times that it took; None for a hit.
        decode_s: What the decoding took, if the model ran.
    """

    known: CachedPrediction
    source: Source
    answer: AnswerRecord | None = None
    decode_s: float = 0.0

    @property
    def prediction(self) -> Prediction:
        """The most probable classes; of a remembered one, unpacked at each call."""
        return self.known.prediction if self.answer is None else self.answer.prediction

    @property
    def own_answer(self) -> AnswerRecord | None:
        """The worker's answer if the model ran for this upload; the times of one that was joined are not its own."""
        return self.answer if self.source is Source.MISS else None


class _Found(NamedTuple):
    """What a flight brings; see `ClassifierResult`."""

    known: CachedPrediction
    answer: AnswerRecord | None = None
    decode_s: float = 0.0


class Classifier:
    """Classify uploads. For one HTTP process, on its event loop.

    Args:
        inference: Runs what isn't known.
        tally: Counts.
        identity: Returns what else than the upload determines an answer: model, revision, dtype, decode mode. Called
            when the first upload comes; raises NotReady while that can't be told.
        cache: Remembers; None computes every upload.
        shared: Remembers for several processes, beside `cache`.
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
        """Forget what is too old from time to time, on the running event loop."""
        self._sweep()

    def stop(self) -> None:
        """Undo `start`."""
        if self._cache is not None:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        if self._cache is not None:
            self._cache.refresh()
            delay_s = min(self._cache.ttl_s, _MOST_S_BETWEEN_SWEEPS)
            self._sweeper = asyncio.get_running_loop().call_later(delay_s, self._sweep)

    async def classify(self, upload: Upload, deadline: float, *, is_fresh: bool = False) -> ClassifierResult:
        """Classify one upload: look it up, and compute what isn't known; see the two."""
        key, known = await self.look_up(upload, is_fresh=is_fresh)
        return known or await self.compute(key, upload, deadline, is_fresh=is_fresh)

    async def look_up(self, upload: Upload, *, is_fresh: bool = False) -> tuple[bytes | None, ClassifierResult | None]:
        """Return the upload's key, and what this process remembers of it. Never waits for others.

        Args:
            upload: What to classify.
            is_fresh: Find nothing: it is to be computed even if it is known.

        Raises:
            NotReady: No worker has started yet.
        """
        if self._cache is None:
            return None, None
        key = await self._key_of(upload)
        if is_fresh or (known := self._cache.get(key)) is None:
            return key, None
        self._tally.add("hits")
        return key, ClassifierResult(known, Source.HIT)

    async def compute(
        self, key: bytes | None, upload: Upload, deadline: float, *, is_fresh: bool = False
    ) -> ClassifierResult:
        """Classify an upload that this process doesn't remember, and remember it.

        Args:
            key: The upload's, by `look_up`.
            upload: What to classify.
            deadline: When the answer must be there, in seconds of the monotonic clock.
            is_fresh: Run the model even if the shared tier knows the answer.

        Raises:
            DeadlineExceeded: The deadline passed first.
            ViTError: Whatever kept it from being computed.
        """
        if key is None:
            return await self._fly(object(), deadline, functools.partial(self._run, None, upload))
        # Who insists on a fresh answer must not join a flight that may yet find an old one in the shared tier; the
        # other way round is fine.
        is_fresh = is_fresh or self._flights.is_in_flight((key, True))
        compute = self._run if is_fresh else self._find_or_run
        return await self._fly((key, is_fresh), deadline, functools.partial(compute, key, upload))

    async def _key_of(self, upload: Upload) -> bytes:
        """Return SHA-256 of the identity, of what kind of upload it is, and of its bytes."""
        if isinstance(upload, Pixels):
            seed, data = self._pixels_seed, upload.data
        else:
            seed, data = self._seed, upload
        if len(data) <= _LONG_UPLOAD_BYTES:
            return _hash(seed, data)
        return await asyncio.get_running_loop().run_in_executor(None, _hash, seed, data)

    @functools.cached_property
    def _seed(self) -> hashlib._Hash:
        return _seed_of(self._identity())

    @functools.cached_property
    def _pixels_seed(self) -> hashlib._Hash:
        # No file has the key of pixels with the same bytes: whoever sends them would else plant its answer.
        return _seed_of(self._identity() + "pixels")

    async def _fly(
        self,
        key: object,
        deadline: float,
        compute: Callable[[Deadline], Coroutine[Any, Any, _Found]],
    ) -> ClassifierResult:
        joins = self._flights.is_in_flight(key)
        if joins:
            self._tally.add("coalesced")
        known, answer, decode_s = await self._flights.join(key, deadline, compute)
        source = Source.HIT if answer is None else Source.COALESCED if joins else Source.MISS
        return ClassifierResult(known, source, answer, decode_s)

    async def _find_or_run(self, key: bytes, upload: Upload, deadline: Deadline) -> _Found:
        epoch = self._tally.board.epoch
        prediction = None if self._shared is None else await self._shared.get(key)
        if prediction is None:
            return await self._run(key, upload, deadline)
        self._tally.add("hits")
        known = CachedPrediction(prediction)
        self._remember(key, known, epoch)
        return _Found(known)

    async def _run(self, key: bytes | None, upload: Upload, deadline: Deadline) -> _Found:
        self._tally.add("misses")
        epoch = self._tally.board.epoch
        answer, decode_s = await self._inference.infer(upload, deadline)
        known = CachedPrediction(answer.prediction)
        if key is not None and self._remember(key, known, epoch) and self._shared is not None:
            self._shared.put(key, answer.prediction)
        return _Found(known, answer, decode_s)

    def _remember(self, key: bytes, known: CachedPrediction, epoch: int) -> bool:
        """Remember what was found or begun at `epoch`; tell whether the caches were not cleared since."""
        is_current = epoch == self._tally.board.epoch
        if self._cache is not None and is_current:
            self._cache.put(key, known)
        return is_current


def _seed_of(identity: str) -> hashlib._Hash:
    """Return a hash that has begun with an identity; its length comes first, so that no two begin alike."""
    data = identity.encode()
    return hashlib.sha256(len(data).to_bytes(8, "little") + data)


def _hash(seed: hashlib._Hash, data: bytes) -> bytes:
    hasher = seed.copy()
    hasher.update(data)
    return hasher.digest()
