"""The core of the HTTP half: an upload goes in, its classification comes out.

Looks the upload up by its hash, in memory and then in a tier beyond this server, and computes what is not cached, once
for all callers that ask at the same time, in whichever HTTP process. Knows nothing of HTTP, slots or Redis.

A caller of low urgency may wait for a computation of any urgency, one of normal urgency only for one of normal urgency,
so that it never waits in the other queue. If it comes second, the upload is computed again; the first answer counts.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol

from vit_api.decoding.uploads import Pixels, Upload
from vit_api.errors import DeadlineExceeded
from vit_api.ipc.cache_board import CacheTally
from vit_api.ipc.metrics_board import Counter
from vit_api.ipc.records import AnswerRecord, Prediction
from vit_api.urgency import Urgency
from vit_api.web.core.cache import AnswerCache
from vit_api.web.core.caller import ANY, Caller
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source, Tier
from vit_api.web.core.recent_uploads import RecentUploads
from vit_api.web.core.shared_flights import SharedFlights
from vit_api.web.core.single_flight import FlightDeadline, SingleFlight

_MAX_INLINE_HASH_BYTES = 2**18
"""Longer uploads are hashed in a thread: hashing so many bytes takes 0.15 ms, and a request may have 32 uploads."""

_MAX_SWEEP_INTERVAL_S = 60.0

_TIMER_S = 0.005
"""By how much a timer may be early; event loops round."""

_MAX_WAIT_SHARE = 0.5
"""Part of the time until the deadline for which another HTTP process is waited for; the rest suffices to compute."""


class Inference(Protocol):
    """Runs uploads on the model."""

    async def infer(
        self, upload: Upload, deadline: FlightDeadline, caller: Caller = ANY, parts: int = 0, *, is_alone: bool = False
    ) -> tuple[AnswerRecord, float]:
        """Return the answer for one upload, and how many seconds its decoding took."""


class FoundHit:
    """A hit of this process's cache that may be found again without a look-up.

    Args:
        cache: The cache.
        key: Its key.
        cached: What was found.
        tally: Counts hits.
        look_up_s: Adds up the seconds of hits; None: nothing does.
    """

    __slots__ = ("_cache", "_cached", "_key", "_look_up_s", "_tally")

    def __init__(
        self,
        cache: AnswerCache[CachedPrediction],
        key: bytes,
        cached: CachedPrediction,
        tally: CacheTally,
        look_up_s: Counter | None,
    ) -> None:
        self._cache = cache
        self._key = key
        self._cached = cached
        self._tally = tally
        self._look_up_s = look_up_s

    def is_cached(self) -> bool:
        """Return whether it is still what the cache has, where it becomes the one that was used last."""
        return self._cache.get(self._key) is self._cached

    def count(self, hits: int, seconds: float) -> None:
        """Count so many hits that took so long together."""
        self._tally.add("hits", hits)
        if self._look_up_s is not None:
            self._look_up_s.add(seconds)


class SharedTier(Protocol):
    """A cache that several servers share. It never raises and never takes long."""

    async def get(self, key: bytes) -> Prediction | None:
        """Return the cached prediction."""

    def put(self, key: bytes, prediction: Prediction) -> None:
        """Cache a prediction, if possible."""


class _Found(NamedTuple):
    """The outcome of a flight; see `ClassifierResult`."""

    cached: CachedPrediction
    source: Source
    answer: AnswerRecord | None = None
    decode_s: float = 0.0
    tier: Tier = Tier.LOCAL


class Classifier:
    """Classify uploads. For one HTTP process, on its event loop.

    Args:
        inference: Runs what is not cached.
        tally: Counts hits, misses and coalesced uploads.
        identity: Returns what determines an answer besides the upload: model, revision, dtype, decode mode. Called for
            the first upload; raises NotReady until that is known.
        cache: This process's cache; None disables caching.
        shared: A tier shared by several servers, asked after `cache`.
        flights: The computations of this server's HTTP processes, each of which others may wait for; None if there is
            only this process.
        long_cache: This process's cache of long answers, which have a key of their own for each choice of parts; None
            if there is no `cache`.
        parts: What every answer must have besides the most probable classes, see `records.ALL_CLASSES`.
    """

    def __init__(
        self,
        inference: Inference,
        tally: CacheTally,
        identity: Callable[[], str],
        cache: AnswerCache[CachedPrediction] | None = None,
        shared: SharedTier | None = None,
        *,
        flights: SharedFlights | None = None,
        look_up_s: tuple[Counter, Counter] | None = None,
        long_cache: AnswerCache[CachedPrediction] | None = None,
        parts: int = 0,
    ) -> None:
        self._inference = inference
        self._tally = tally
        self._identity = identity
        self._cache = cache
        self._long_cache = long_cache
        self._parts = parts
        self._shared = shared
        self._shared_flights = flights
        self._look_up_s = look_up_s
        self._flights: SingleFlight[_Found] = SingleFlight()
        self._low_flights: SingleFlight[_Found] = SingleFlight()
        self._hashed: tuple[bytes, int, bytes] | None = None  # what `find` missed, which is classified next; its key
        self._found: tuple[bytes, CachedPrediction] | None = None  # what the last look-up found, and its key
        self._seeds: dict[tuple[bool, int], hashlib._Hash] = {}
        self._recent = RecentUploads()

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
            self._recent.age()
            if self._long_cache is not None:
                self._long_cache.refresh()
            delay_s = min(self._cache.ttl_s, _MAX_SWEEP_INTERVAL_S)
            self._sweeper = asyncio.get_running_loop().call_later(delay_s, self._sweep)

    def find(self, upload: bytes, parts: int = 0) -> ClassifierResult | None:
        """Return the classification of a file if this server's caches have it; `classify` for what can be told at once.

        Args:
            upload: The file.
            parts: See `classify`.

        Raises:
            NotReady: No worker has started yet.
        """
        parts |= self._parts
        cached = self._look_up(upload, parts)
        if cached is None:
            return None
        return ClassifierResult(cached, Source.HIT, None, 0.0, time.monotonic(), cached.take_tier(), upload)

    def find_again(self, upload: bytes) -> CachedPrediction | None:
        """Return the prediction for a file if this server's caches have it, with its tier; see `take_tier`."""
        return self._look_up(upload, self._parts)

    def _look_up(self, upload: bytes, parts: int) -> CachedPrediction | None:
        cache = self._long_cache if parts else self._cache
        if cache is None:
            return None
        if self._was_missed(upload, parts):
            return None
        began_at = time.monotonic()
        known = self._recent.find(upload) if parts == self._parts else None
        if known is None and len(upload) > _MAX_INLINE_HASH_BYTES:
            return None
        key = known or _hash(self._long_seed(parts) if parts else self._seed, upload)
        cached = cache.get(key)
        if self._look_up_s is not None:
            self._look_up_s[cached is None].add(time.monotonic() - began_at)
        if cached is None:
            self._hashed = (upload, parts, key)
            return None
        if known is None and parts == self._parts:
            self._recent.add(upload, key)
        self._tally.add("hits")
        self._found = (key, cached)
        return cached

    def hold(self, cached: CachedPrediction) -> FoundHit | None:
        """Return what `find_again` has just found, to find it again without a look-up."""
        if self._cache is None or self._parts or self._found is None or self._found[1] is not cached:
            return None
        look_up_s = None if self._look_up_s is None else self._look_up_s[0]
        return FoundHit(self._cache, self._found[0], cached, self._tally, look_up_s)

    async def classify(
        self, upload: Upload, deadline: float, *, bypass_cache: bool = False, caller: Caller = ANY, parts: int = 0
    ) -> ClassifierResult:
        """Classify an upload, from the cache if possible; what is computed is cached. A hit waits for nothing.

        Args:
            upload: The image.
            deadline: When to give up, in seconds of the monotonic clock.
            bypass_cache: Run the model even if the answer is cached, here or in the shared tier.
            caller: Who sent it; clients get equal shares.
            parts: What the answer must have besides the most probable classes, see `records.ALL_CLASSES`.

        Raises:
            NotReady: No worker has started yet.
            DeadlineExceeded: The deadline passed first.
            ViTError: The reason why it can't be classified.
        """
        key: bytes | None = None
        parts |= self._parts
        cache = self._cache_for(parts)
        if cache is not None:
            began_at = time.monotonic()
            is_missed = self._was_missed(upload, parts)
            key = await self._key_of(upload, parts)
            cached = None if bypass_cache or is_missed else cache.get(key)
            looked_up_at = time.monotonic()
            if self._look_up_s is not None and not is_missed:
                self._look_up_s[cached is None].add(looked_up_at - began_at)
            if cached is not None:
                if parts == self._parts and not isinstance(upload, Pixels):
                    self._recent.add(upload, key)
                self._tally.add("hits")
                return ClassifierResult(cached, Source.HIT, None, 0.0, looked_up_at, cached.take_tier(), upload)
        else:
            looked_up_at = time.monotonic()
        result = await self._compute(key, upload, deadline, caller, parts, bypass_cache=bypass_cache)
        return result._replace(looked_up_at=looked_up_at, upload=upload)

    def _was_missed(self, upload: Upload, parts: int) -> bool:
        """Return whether the last look-up was for this very upload, and found nothing."""
        return self._hashed is not None and self._hashed[0] is upload and self._hashed[1] == parts

    def _cache_for(self, parts: int) -> AnswerCache[CachedPrediction] | None:
        return self._long_cache if parts else self._cache

    async def _compute(
        self, key: bytes | None, upload: Upload, deadline: float, caller: Caller, parts: int, *, bypass_cache: bool
    ) -> ClassifierResult:
        if key is None:  # nothing is shared, so there is no flight to join
            found = await self._run(None, upload, caller, parts, FlightDeadline(deadline))
            return ClassifierResult(found.cached, found.source, found.answer, found.decode_s)
        # A caller that bypasses the cache must not join a flight that may still find an old answer in another tier;
        # the opposite is fine.
        is_fresh = bypass_cache or self._flights.is_in_flight((key, True))
        if caller.urgency is Urgency.LOW:
            if is_fresh or not self._flights.is_in_flight((key, False)):
                is_fresh = is_fresh or self._low_flights.is_in_flight((key, True))
            if self._flights.is_in_flight((key, is_fresh)):
                caller = caller._replace(urgency=Urgency.NORMAL)
        compute = functools.partial(self._rerun if is_fresh else self._find_or_run, key, upload, caller, parts)
        result = await self._fly((key, is_fresh), deadline, caller.urgency, compute)
        if self._low_flights.has_any and caller.urgency is Urgency.NORMAL:
            self._settle_low(key, result)
        return result

    def _settle_low(self, key: bytes, result: ClassifierResult) -> None:
        """Give a result to the callers of low urgency that wait for the same upload."""
        is_computed = result.source is not Source.HIT
        source = Source.COALESCED if is_computed else Source.HIT
        found = _Found(result.cached, source, result.answer, result.decode_s, result.tier)
        self._low_flights.settle((key, False), found)
        if is_computed:
            self._low_flights.settle((key, True), found)

    async def _key_of(self, upload: Upload, parts: int) -> bytes:
        """Return the SHA-256 of the identity, the kind of upload, the parts of the answer, and the upload's bytes."""
        was_missed, hashed, self._hashed = self._was_missed(upload, parts), self._hashed, None
        if was_missed and hashed is not None:
            return hashed[2]
        if isinstance(upload, Pixels):
            seed, data = self._pixels_seed, upload.data
        else:
            known = self._recent.find(upload) if parts == self._parts else None
            if known is not None:
                return known
            seed, data = self._seed, upload
        if parts:
            seed = self._long_seed(parts, of_pixels=isinstance(upload, Pixels))
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

    def _long_seed(self, parts: int, *, of_pixels: bool = False) -> hashlib._Hash:
        """Return the seed for answers with further parts; with the same key, a short one might be found instead."""
        seed = self._seeds.get((of_pixels, parts))
        if seed is None:
            kind = "pixels" if of_pixels else ""
            seed = self._seeds[of_pixels, parts] = _seed_of(f"{self._identity()}{kind} with parts {parts}")
        return seed

    async def _fly(
        self,
        key: object,
        deadline: float,
        urgency: Urgency,
        compute: Callable[[FlightDeadline], Coroutine[Any, Any, _Found]],
    ) -> ClassifierResult:
        flights = self._low_flights if urgency else self._flights
        joins = flights.is_in_flight(key)
        if joins:
            self._tally.add("coalesced")
        try:
            found = await flights.join(key, deadline, compute)
        except DeadlineExceeded:
            # The computation may have given up just as this caller, which waits longer, joined it.
            if not joins or time.monotonic() >= deadline - _TIMER_S:
                raise
            found = await flights.join(key, deadline, compute)
        source = Source.COALESCED if joins and found.source is Source.MISS else found.source
        return ClassifierResult(found.cached, source, found.answer, found.decode_s, tier=found.tier)

    async def _find_or_run(
        self, key: bytes, upload: Upload, caller: Caller, parts: int, deadline: FlightDeadline
    ) -> _Found:
        """Wait for the HTTP process that computes the upload; if none does, or it fails, find or compute it here."""
        cache, flights = self._cache_for(parts), self._shared_flights
        if cache is None or flights is None:
            return await self._find_beyond_or_run(key, upload, caller, parts, deadline)
        max_wait_s = (deadline.at - time.monotonic()) * _MAX_WAIT_SHARE
        claim = claim_of(key, caller.urgency)
        turn = await flights.claim(claim, functools.partial(cache.get, key), max_wait_s)
        if turn.found is not None:
            self._tally.add("coalesced" if turn.has_waited else "hits")
            source = Source.COALESCED if turn.has_waited else Source.HIT
            return _Found(turn.found, source, tier=turn.found.take_tier())
        try:
            return await self._find_beyond_or_run(key, upload, caller, parts, deadline)
        finally:
            if turn.is_held:
                flights.release(claim)

    async def _find_beyond_or_run(
        self, key: bytes, upload: Upload, caller: Caller, parts: int, deadline: FlightDeadline
    ) -> _Found:
        epoch = self._tally.cache_board.epoch
        prediction = None if self._shared is None else await self._shared.get(key)
        if prediction is None:
            return await self._run(key, upload, caller, parts, deadline)
        self._tally.add("hits")
        cached = CachedPrediction(prediction)
        self._store(key, cached, epoch, parts)
        return _Found(cached, Source.HIT, tier=Tier.REDIS)

    async def _rerun(self, key: bytes, upload: Upload, caller: Caller, parts: int, deadline: FlightDeadline) -> _Found:
        """Run the model whatever is cached or in flight; other HTTP processes wait for it if they can."""
        flights, claim = self._shared_flights, claim_of(key, caller.urgency)
        is_held = flights is not None and flights.claim_now(claim)
        try:
            return await self._run(key, upload, caller, parts, deadline)
        finally:
            if flights is not None and is_held:
                flights.release(claim)

    async def _run(
        self, key: bytes | None, upload: Upload, caller: Caller, parts: int, deadline: FlightDeadline
    ) -> _Found:
        self._tally.add("misses")
        epoch = self._tally.cache_board.epoch
        answer, decode_s = await self._inference.infer(upload, deadline, caller, parts, is_alone=key is None)
        cached = CachedPrediction(answer.prediction)
        if key is not None and self._store(key, cached, epoch, parts) and self._shared is not None:
            self._shared.put(key, answer.prediction)
        return _Found(cached, Source.MISS, answer, decode_s)

    def _store(self, key: bytes, cached: CachedPrediction, epoch: int, parts: int) -> bool:
        """Cache what was found or begun in `epoch`; return whether the caches were not cleared since."""
        cache = self._cache_for(parts)
        return cache is not None and cache.put(key, cached, epoch)


def claim_of(key: bytes, urgency: Urgency) -> bytes:
    """Return the key under which HTTP processes claim a computation: each urgency has its own."""
    return key if urgency is Urgency.NORMAL else key[::-1]


def _seed_of(identity: str) -> hashlib._Hash:
    """Return a hash that starts with an identity and its length, so that no two identities share a prefix."""
    data = identity.encode()
    return hashlib.sha256(len(data).to_bytes(8, "little") + data)


def _hash(seed: hashlib._Hash, data: bytes) -> bytes:
    hasher = seed.copy()
    hasher.update(data)
    return hasher.digest()
