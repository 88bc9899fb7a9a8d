"""The cache for operators: statistics, and `POST /cache/clear`. Knows nothing of what is cached."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request

from vit_api.ipc.answer_table import AnswerTable
from vit_api.ipc.cache_board import CacheBoard
from vit_api.web.admission.keys import check_operator
from vit_api.web.openapi.schemas import CacheCleared, CacheInfo, ErrorResponse, RedisInfo, SharedCacheInfo

logger = logging.getLogger(__name__)

ClearRedis = Callable[[], Awaitable[int]]

_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorResponse, "description": "The operator key is missing or invalid"},
    403: {"model": ErrorResponse, "description": "The server has no operator key, so clearing is disabled"},
    503: {"model": ErrorResponse, "description": "Redis could not be cleared; the caches of this server were"},
}


def shared_entries(cache_board: CacheBoard, answer_table: AnswerTable) -> int:
    """Return the number of results that are in shared memory now."""
    return answer_table.count(time.monotonic(), cache_board.epoch)


def cache_info(cache_board: CacheBoard, answer_table: AnswerTable, *, has_redis: bool) -> CacheInfo:
    """Return the statistics of all HTTP processes' caches."""
    counts = cache_board.totals()
    shared = SharedCacheInfo(
        entries=shared_entries(cache_board, answer_table),
        hits=counts["shared_hits"],
        rejected=counts["shared_rejected"],
    )
    redis = RedisInfo(
        processes_connected=counts["redis_up"],
        hits=counts["redis_hits"],
        misses=counts["redis_misses"],
        rejected=counts["redis_rejected"],
        failures=counts["redis_failures"],
        skipped=counts["redis_skipped"],
    )
    return CacheInfo(
        entries=counts["entries"],
        hits=counts["hits"],
        misses=counts["misses"],
        coalesced=counts["coalesced"],
        shared=shared,
        redis=redis if has_redis else None,
    )


def cache_router(
    cache_boards: Sequence[CacheBoard], operator_key: str | None, clear_redis: ClearRedis | None
) -> APIRouter:
    """Return the route that clears the caches.

    Args:
        cache_boards: Make all HTTP processes clear their caches, one for each model.
        operator_key: Key that authorises clearing; None disables the endpoint.
        clear_redis: Clears Redis and returns how many entries it had; None if there is none.
    """
    router = APIRouter(tags=["operations"])

    @router.post("/cache/clear", responses=_REFUSALS)
    async def clear(request: Request) -> CacheCleared:
        """Clear the cache in all HTTP processes and in Redis. Other servers keep their local entries.

        Requires the operator key, as `Authorization: Bearer <key>` or `X-API-Key: <key>`.
        """
        check_operator(request, operator_key, "Clearing the cache")
        entries = sum(board.totals()["entries"] for board in cache_boards)
        _clear_all(cache_boards)
        redis_entries = None if clear_redis is None else await clear_redis()
        _clear_all(cache_boards)  # again: entries may have been fetched from Redis before it was cleared
        logger.info("The caches were cleared: %d entries in this server, %s in Redis.", entries, redis_entries)
        return CacheCleared(entries=entries, redis_entries=redis_entries)

    return router


def _clear_all(cache_boards: Sequence[CacheBoard]) -> None:
    for board in cache_boards:
        board.clear()
