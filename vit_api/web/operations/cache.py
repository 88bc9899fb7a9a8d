"""The cache as operators see it: its figures, and `POST /cache/clear`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request

from vit_api.access.api_keys import KeyRing, digest_of
from vit_api.errors import Forbidden
from vit_api.ipc.cache_board import CacheBoard
from vit_api.web.admission.keys import check_key
from vit_api.web.openapi.schemas import CacheCleared, CacheInfo, ErrorResponse, RedisInfo

logger = logging.getLogger(__name__)

ClearRedis = Callable[[], Awaitable[int]]

_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorResponse, "description": "No key or a wrong one"},
    403: {"model": ErrorResponse, "description": "The server has no operator's key, so nobody may"},
    503: {"model": ErrorResponse, "description": "Redis can't be cleared; what this server remembers is forgotten"},
}


def cache_info(board: CacheBoard, *, has_redis: bool) -> CacheInfo:
    """Return what the caches of all HTTP processes did."""
    counts = board.totals()
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
        redis=redis if has_redis else None,
    )


def cache_router(board: CacheBoard, operator_key: str | None, clear_redis: ClearRedis | None) -> APIRouter:
    """Return the route that clears the caches.

    Args:
        board: Tells all HTTP processes to forget.
        operator_key: Who has it may clear; without one nobody may.
        clear_redis: Clears the shared tier, and returns how many entries it had.
    """
    router = APIRouter(tags=["operations"])

    @router.post("/cache/clear", responses=_REFUSALS)
    async def clear(request: Request) -> CacheCleared:
        """Forget every answer, in all HTTP processes and in Redis. Other servers keep what they remember themselves.

        The operator's key comes as `Authorization: Bearer ...` or `X-API-Key`.
        """
        _check_operator(request, operator_key)
        entries = board.totals()["entries"]
        board.clear()
        redis_entries = None if clear_redis is None else await clear_redis()
        board.clear()  # once more: what was found in Redis meanwhile is to be forgotten, too
        logger.info("caches cleared: %d entries, %s in Redis", entries, redis_entries)
        return CacheCleared(entries=entries, redis_entries=redis_entries)

    return router


def _check_operator(request: Request, operator_key: str | None) -> None:
    if operator_key is None:
        raise Forbidden("nobody may do this here: start the server with VIT_API_OPERATOR_KEY to allow it")
    check_key(KeyRing([digest_of(operator_key)]), dict(request.scope["headers"]), "the operator's key")
