"""Keeps Ray Data's decoding tasks a few parts ahead of the models, and no further. Must not know what a part is.

Ray Data's own policies hold tasks back only once half of the object store is full. Until then decoding takes the cores
that a model on the CPU needs, which is then left to finish alone on some of them, and memory grows until all files are
decoded.
"""

from __future__ import annotations

from typing import Any

from ray.data import DataContext
from ray.data._internal.execution import backpressure_policy
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

_PER_ACTOR = 4
"""Blocks that may wait for an actor: Ray gives it two, so that it never waits for the next; two are to follow."""
_AHEAD = "vit_api.blocks_ahead"


class FewBlocksAhead(backpressure_policy.BackpressurePolicy):  # type: ignore[misc]
    """Starts no task before an actor pool while its actors have enough, with what tasks on all cores make.

    While nothing runs at all, as before the first model is loaded, Ray starts one task after another all the same.
    """

    def can_add_input(self, op: Any) -> bool:
        """Return whether a task of the operator may be started."""
        limit = self._data_context.get_config(_AHEAD) + self._resource_manager.get_global_limits().cpu
        pools = (after for after in op.output_dependencies if isinstance(after, ActorPoolMapOperator))
        return all(_ahead(op, pool) < limit for pool in pools)


def keep_few_ahead(context: DataContext, actors: int) -> None:
    """Have a dataset's tasks stay a few blocks ahead of its actors.

    Args:
        context: The dataset's context.
        actors: The number of actors.
    """
    context.set_config(_AHEAD, _PER_ACTOR * actors)
    enabled = [*backpressure_policy.ENABLED_BACKPRESSURE_POLICIES, FewBlocksAhead]
    context.set_config(backpressure_policy.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, enabled)


def _ahead(tasks: Any, actors: Any) -> int:
    """Return the number of blocks that tasks have or had, and no actor has finished."""
    started = tasks.metrics.num_tasks_submitted - tasks.metrics.num_tasks_failed
    finished: int = actors.metrics.num_tasks_finished
    return int(started) - finished
