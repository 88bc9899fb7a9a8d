"""The slots of several deployments: none takes what is kept for another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_api.ipc.deployment_shares import DeploymentShares


@pytest.mark.parametrize(
    ("slots", "deployments", "minimum", "maximum"), [(10, 2, 2, 8), (8, 4, 1, 5), (100, 1, 50, 100)]
)
def test_half_of_the_slots_are_kept(slots: int, deployments: int, minimum: int, maximum: int) -> None:
    """A deployment can have all but those that are kept for the others."""
    shares = DeploymentShares(slots, deployments)
    assert (shares.minimum, shares.maximum, shares.free_for(0, slots)) == (minimum, maximum, maximum)


@given(
    deployments=st.integers(1, 5),
    extra=st.integers(0, 30),
    steps=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=120),
)
def test_each_can_always_have_its_minimum(deployments: int, extra: int, steps: list[tuple[int, bool]]) -> None:
    """Whatever the others took: a deployment that holds fewer slots than are kept for it finds a free one."""
    slots = 2 * deployments + extra
    shares, held = DeploymentShares(slots, deployments), [0] * deployments
    for number, takes in steps:
        one = number % deployments
        if takes and shares.free_for(one, slots - sum(held)) > 0:
            shares.add(one)
            held[one] += 1
        elif not takes and held[one]:
            shares.remove(one)
            held[one] -= 1
        free = slots - sum(held)
        for other in range(deployments):
            assert shares.free_for(other, free) <= free
            assert held[other] >= shares.minimum or shares.free_for(other, free) >= shares.minimum - held[other]


def test_shares_follow_the_deployments_that_there_are() -> None:
    """A place that is empty keeps nothing; one that is filled again has its share once others release theirs."""
    shares = DeploymentShares(12, 3)
    shares.keep_for([0])
    assert (shares.minimum, shares.free_for(0, 12)) == (6, 12)
    for _ in range(12):
        shares.add(0)
    shares.keep_for([0, 2])
    assert shares.minimum == 3
    assert shares.free_for(2, 0) == 0
    for released in range(1, 5):
        shares.remove(0)
        assert shares.free_for(2, released) == released
        assert shares.free_for(0, released) == released - 3
