"""The traffic of a model's versions: always 100 percent together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_api.deployments.listing import Deployment, DeploymentsError
from vit_api.deployments.traffic import changed, traffic_of_new, with_new


def _versions(*traffic: float) -> list[Deployment]:
    return [
        Deployment(name="shop", version=str(number), model="digits", traffic=float(share))
        for number, share in enumerate(traffic, 1)
    ]


def test_a_new_version_has_no_traffic_unless_it_says_so() -> None:
    """But a model's only version has all."""
    assert traffic_of_new(_versions(100), None) == 0
    assert traffic_of_new(_versions(100), 12.5) == 12.5
    assert traffic_of_new([], None) == 100
    with pytest.raises(DeploymentsError, match="only version is 100 percent, not 30"):
        traffic_of_new([], 30.0)


@given(
    cuts=st.lists(st.integers(0, 10_000), max_size=5),
    traffic=st.integers(0, 10_000),
)
def test_the_others_keep_their_proportions(cuts: list[int], traffic: int) -> None:
    """Together with the new one they have 100 percent to two digits, and none has less than nothing."""
    edges = [0, *sorted(cuts), 10_000]
    before = [(after - first) / 100 for first, after in itertools.pairwise(edges)]
    after = [one.traffic or 0.0 for one in with_new(_versions(*before), traffic / 100)]
    assert round(sum(after) + traffic / 100, 6) == 100
    for share, had in zip(after, before, strict=True):
        assert share == round(share, 2)
        assert share >= 0 or round(share, 2) == 0
        assert abs(share - had * (100 - traffic / 100) / 100) <= 0.04


def test_versions_that_are_not_named_keep_theirs() -> None:
    """Several may change in one call."""
    versions = changed(_versions(50, 30, 20), {"1": 0, "3": 70})
    assert [one.traffic for one in versions] == [0, 30, 70]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        pytest.param({"1": 60}, r"100 percent together, not 110 \(1: 60, 2: 50\)", id="sum"),
        pytest.param({"3": 0}, "no version '3'; the versions are 1, 2", id="unknown"),
        pytest.param({"1": -10, "2": 110}, "greater than or equal to 0", id="negative"),
        pytest.param({"1": 33.333, "2": 66.667}, "at most 2 decimals", id="digits"),
    ],
)
def test_wrong_traffic(wanted: dict[str, object], message: str) -> None:
    """An error that names the version."""
    with pytest.raises(DeploymentsError, match=message):
        changed(_versions(50, 50), wanted)


def _shares(versions: Sequence[Deployment]) -> list[tuple[float | None, float | None]]:
    return [(one.traffic, one.mirror_traffic) for one in versions]


def test_a_mirror_is_promoted_and_demoted() -> None:
    """A version that is given traffic is no mirror, and one that becomes a mirror has no traffic."""
    first = changed(_versions(100, 0), {}, {"2": 100})
    assert _shares(first) == [(100, None), (0, 100)]
    assert _shares(changed(first, {"1": 100})) == [(100, None), (0, 100)]
    promoted = changed(first, {"1": 90, "2": 10})
    assert _shares(promoted) == [(90, None), (10, None)]
    assert _shares(changed(promoted, {"2": 100}, {"1": 5})) == [(0, 5), (100, None)]
    assert _shares(changed(first, {}, {"2": 0})) == [(100, None), (0, None)]


@pytest.mark.parametrize(
    ("wanted", "mirrored", "message"),
    [
        pytest.param({"1": 50, "2": 50}, {"2": 10}, "has 'mirror_traffic' and 'traffic'", id="both"),
        pytest.param({}, {"1": 10, "2": 10}, "Only one version of", id="two"),
        pytest.param({}, {"1": 10}, "100 percent together, not 50", id="its traffic"),
        pytest.param({}, {"3": 10}, "no version '3'", id="unknown"),
        pytest.param({"1": 100, "2": 0}, {"2": 0.125}, "at most 2 decimals", id="digits"),
    ],
)
def test_wrong_mirrors(wanted: dict[str, object], mirrored: dict[str, object], message: str) -> None:
    """An error that says what is wrong with them."""
    with pytest.raises(DeploymentsError, match=message):
        changed(_versions(50, 50), wanted, mirrored)
