"""The core for animations: an upload goes in, the classification of several of its frames comes out.

Each frame is a separate cache entry, under the upload's hash and its index, so that requests for different numbers of
frames share what they can. What is not cached is decoded in one pass over the file, once for all callers that ask at
the same time, in whichever HTTP process. Knows nothing of HTTP, slots or Redis.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from vit_api.decoding.frames import FramePlan
from vit_api.ipc.cache_board import CacheTally
from vit_api.ipc.records import AnswerRecord
from vit_api.web.core.cache import AnswerCache
from vit_api.web.core.caller import ANY, Caller
from vit_api.web.core.classifier import SharedTier, claim_of
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source
from vit_api.web.core.shared_flights import SharedFlights
from vit_api.web.core.single_flight import FlightDeadline, SingleFlight

_MAX_WAIT_SHARE = 0.5
"""Part of the time until the deadline for which another HTTP process is waited for, as in `classifier`."""

_INDEX_BYTES = 4


class FrameDecoder(Protocol):
    """Finds the frames of an upload; implemented by the LitAPI."""

    def plan_frames(self, upload: bytes, count: int) -> FramePlan | None:
        """Choose up to `count` frames; None for a still picture."""


class FrameInference(Protocol):
    """Runs the frames of an upload on the model."""

    async def infer_frames(
        self,
        upload: bytes,
        plan: FramePlan,
        wanted: Sequence[int],
        deadline: FlightDeadline,
        caller: Caller = ANY,
        *,
        parts: int = 0,
    ) -> list[tuple[AnswerRecord, float]]:
        """Return the answer for each wanted frame, and how many seconds its decoding took."""


class _Wanted(NamedTuple):
    """The frames that a caller wants."""

    upload: bytes
    plan: FramePlan
    caller: Caller
    parts: int = 0


class FrameClassifier:
    """Classify the frames of uploads. For one HTTP process, on its event loop.

    Args:
        decoder: Finds the frames of an upload.
        inference: Runs what is not cached.
        tally: Counts hits, misses and coalesced frames.
        identity: See `Classifier`.
        cache: See `Classifier`.
        shared: See `Classifier`.
        flights: See `Classifier`.
        long_cache: See `Classifier`.
        parts: See `Classifier`.
    """

    def __init__(
        self,
        decoder: FrameDecoder,
        inference: FrameInference,
        tally: CacheTally,
        identity: Callable[[], str],
        *,
        cache: AnswerCache[CachedPrediction] | None = None,
        shared: SharedTier | None = None,
        flights: SharedFlights | None = None,
        long_cache: AnswerCache[CachedPrediction] | None = None,
        parts: int = 0,
    ) -> None:
        self._decoder = decoder
        self._inference = inference
        self._tally = tally
        self._identity = identity
        self._cache = cache
        self._long_cache = long_cache
        self._parts = parts
        self._shared = shared
        self._shared_flights = flights
        self._flights: SingleFlight[list[ClassifierResult]] = SingleFlight()

    async def plan(self, upload: bytes, count: int) -> FramePlan | None:
        """Choose up to `count` frames of an upload; None for a still picture, which `Classifier` takes.

        Raises:
            ViTError: The reason why they can't be classified.
        """
        return await asyncio.get_running_loop().run_in_executor(None, self._decoder.plan_frames, upload, count)

    async def classify(
        self,
        upload: bytes,
        plan: FramePlan,
        deadline: float,
        *,
        bypass_cache: bool = False,
        caller: Caller = ANY,
        parts: int = 0,
    ) -> list[ClassifierResult]:
        """Classify frames, from the cache if possible; what is computed is cached.

        Args:
            upload: The file.
            plan: The frames that were chosen of it.
            deadline: When to give up, in seconds of the monotonic clock.
            bypass_cache: Run the model even if answers are cached, here or in the shared tier.
            caller: Who sent it; callers share computations of their own urgency.
            parts: What the answers must have besides the most probable classes, see `records.ALL_CLASSES`.

        Raises:
            NotReady: No worker has started yet.
            DeadlineExceeded: The deadline passed first.
            ViTError: The reason why one of them can't be classified.
        """
        frames = _Wanted(upload, plan, caller, parts | self._parts)
        indices = [frame.index for frame in plan.frames]
        cache = self._cache_for(frames)
        if cache is None:
            run = functools.partial(self._run, frames, {}, None)
            return await self._fly(object(), deadline, run, len(indices))
        identity = f"{self._identity()} with parts {frames.parts}" if frames.parts else self._identity()
        keys = await asyncio.get_running_loop().run_in_executor(None, _keys, identity, upload, indices)
        if not bypass_cache and (cached := _find_all(cache, keys)) is not None:
            self._tally.add("hits", len(keys))
            now = time.monotonic()
            return [ClassifierResult(one, Source.HIT, looked_up_at=now) for one in cached]
        # As in `Classifier`: a caller that bypasses the cache must not join a flight that may find an old answer.
        flight = hashlib.sha256(b"".join(keys)).digest()
        flight = claim_of(flight, caller.urgency)
        if bypass_cache or self._flights.is_in_flight((flight, True)):
            compute = functools.partial(self._run, frames, {}, keys)
            return await self._fly((flight, True), deadline, compute, len(keys))
        compute = functools.partial(self._find_or_run, flight, keys, frames)
        return await self._fly((flight, False), deadline, compute, len(keys))

    def _cache_for(self, frames: _Wanted) -> AnswerCache[CachedPrediction] | None:
        return self._long_cache if frames.parts else self._cache

    async def _fly(
        self,
        key: object,
        deadline: float,
        compute: Callable[[FlightDeadline], Coroutine[Any, Any, list[ClassifierResult]]],
        count: int,
    ) -> list[ClassifierResult]:
        joins = self._flights.is_in_flight(key)
        if joins:
            self._tally.add("coalesced", count)
        looked_up_at = time.monotonic()
        results = await self._flights.join(key, deadline, compute)
        return [_joined(result, looked_up_at, joins=joins) for result in results]

    async def _find_or_run(
        self,
        flight: bytes,
        keys: Sequence[bytes],
        frames: _Wanted,
        deadline: FlightDeadline,
    ) -> list[ClassifierResult]:
        """Wait for the HTTP process that computes the frames; if none does, or it fails, find or compute them here."""
        flights, cache = self._shared_flights, self._cache_for(frames)
        if flights is None or cache is None:
            return await self._find_beyond_or_run(keys, frames, deadline)
        max_wait_s = (deadline.at - time.monotonic()) * _MAX_WAIT_SHARE
        turn = await flights.claim(flight, functools.partial(_find_all, cache, keys), max_wait_s)
        if turn.found is not None:
            self._tally.add("coalesced" if turn.has_waited else "hits", len(keys))
            source = Source.COALESCED if turn.has_waited else Source.HIT
            return [ClassifierResult(cached, source) for cached in turn.found]
        try:
            return await self._find_beyond_or_run(keys, frames, deadline)
        finally:
            if turn.is_held:
                flights.release(flight)

    async def _find_beyond_or_run(
        self, keys: Sequence[bytes], frames: _Wanted, deadline: FlightDeadline
    ) -> list[ClassifierResult]:
        cache, shared = self._cache_for(frames), self._shared
        assert cache is not None
        epoch = self._tally.cache_board.epoch
        found = {position: cached for position, key in enumerate(keys) if (cached := cache.get(key)) is not None}
        if shared is not None:
            missing = [position for position in range(len(keys)) if position not in found]
            predictions = await asyncio.gather(*(shared.get(keys[position]) for position in missing))
            for position, prediction in zip(missing, predictions, strict=True):
                if prediction is not None:
                    found[position] = CachedPrediction(prediction)
                    cache.put(keys[position], found[position], epoch)
        self._tally.add("hits", len(found))
        return await self._run(frames, found, keys, deadline)

    async def _run(
        self,
        frames: _Wanted,
        found: Mapping[int, CachedPrediction],
        keys: Sequence[bytes] | None,
        deadline: FlightDeadline,
    ) -> list[ClassifierResult]:
        """Run the model on the frames that were not found, and cache the answers under their keys, if any."""
        results = {position: ClassifierResult(cached, Source.HIT) for position, cached in found.items()}
        wanted = [position for position in range(len(frames.plan.frames)) if position not in found]
        if wanted:
            self._tally.add("misses", len(wanted))
            epoch = self._tally.cache_board.epoch
            answers = await self._inference.infer_frames(
                frames.upload, frames.plan, wanted, deadline, frames.caller, parts=frames.parts
            )
            for position, (answer, decode_s) in zip(wanted, answers, strict=True):
                cached = CachedPrediction(answer.prediction)
                results[position] = ClassifierResult(cached, Source.MISS, answer, decode_s)
                if keys is not None:
                    self._store(frames, keys[position], cached, epoch)
        return [results[position] for position in range(len(frames.plan.frames))]

    def _store(self, frames: _Wanted, key: bytes, cached: CachedPrediction, epoch: int) -> None:
        cache = self._cache_for(frames)
        if cache is not None and cache.put(key, cached, epoch) and self._shared is not None:
            self._shared.put(key, cached.prediction)


def _find_all(cache: AnswerCache[CachedPrediction], keys: Sequence[bytes]) -> list[CachedPrediction] | None:
    """Return what is cached for all keys, or None if one is not."""
    found = []
    for key in keys:
        cached = cache.get(key)
        if cached is None:
            return None
        found.append(cached)
    return found


def _keys(identity: str, upload: bytes, indices: Sequence[int]) -> list[bytes]:
    """Return the SHA-256 of the identity, the upload and each index; no other kind of upload has the same."""
    start = f"{identity}frames".encode()
    hasher = hashlib.sha256(len(start).to_bytes(8, "little") + start)
    hasher.update(upload)
    keys = []
    for index in indices:
        of_frame = hasher.copy()
        of_frame.update(index.to_bytes(_INDEX_BYTES, "little"))
        keys.append(of_frame.digest())
    return keys


def _joined(result: ClassifierResult, looked_up_at: float, *, joins: bool) -> ClassifierResult:
    source = Source.COALESCED if joins and result.source is Source.MISS else result.source
    return result._replace(source=source, looked_up_at=looked_up_at)
