"""Which version answers whom: shares as configured, clients that stay, and raises that move clients one way only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest

from vit_api.deployments.listing import Deployment
from vit_api.errors import NotFound
from vit_api.web.core.deployment_choice import BUCKETS, DeploymentChoice, bucket_of

_CLIENTS = [f"198.51.{number // 256}.{number % 256}" for number in range(20_000)]
_Z = 3.29  # of the normal distribution: 99.9% of all samples are within it


def _never(_: int) -> bool:
    return False


def _versions(*shares: float, name: str = "shop") -> list[Deployment]:
    return [
        Deployment(name=name, version=str(number), model="digits", traffic=share)
        for number, share in enumerate(shares, 1)
    ]


def _choices(deployments: Sequence[Deployment], failed: Sequence[int] = ()) -> list[str]:
    choice = DeploymentChoice(deployments, failed.__contains__)
    return [choice.of(None, None, lambda client=client: client).version for client in _CLIENTS]  # type: ignore[misc]


def test_a_named_version_answers_whatever_its_traffic() -> None:
    """Who the client is is not asked."""
    deployments = [*_versions(100, 0), *_versions(100, name="other")]
    choice = DeploymentChoice(deployments, _never)

    def unasked() -> str:
        raise AssertionError

    assert choice.of("shop", "2", unasked) == (1, "shop", "2", 1)
    assert choice.of(None, "2", unasked) == (1, "shop", "2", 1)
    assert choice.of("other", None, unasked) == (2, "other", "1", 2)
    assert choice.of(None, None, unasked) == (0, "shop", "1", 0)


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        pytest.param("shopp", None, "There is no model 'shopp'. This server runs 'shop', 'other'.", id="model"),
        pytest.param("shop", "3", "The model 'shop' has no version '3'. Its versions are '1', '2'.", id="version"),
        pytest.param("other", "2", "The model 'other' has no version '2'. Its versions are '1'.", id="of another"),
        pytest.param("x" * 999, None, f"There is no model {'x' * 64!r}. This server runs", id="a long name"),
    ],
)
def test_what_there_is_not(name: str, version: str | None, message: str) -> None:
    """The error names what there is."""
    choice = DeploymentChoice([*_versions(90, 10), *_versions(100, name="other")], _never)
    with pytest.raises(NotFound) as caught:
        choice.of(name, version, str)
    assert message in caught.value.message


@pytest.mark.parametrize("shares", [(90, 10), (50, 50), (99.9, 0.1), (80, 15, 5), (0, 100)])
def test_shares_are_as_configured(shares: tuple[float, ...]) -> None:
    """Of 20,000 clients each version gets its share, within the interval of 99.9% of all samples."""
    counts = Counter(_choices(_versions(*shares)))
    for number, share in enumerate(shares, 1):
        p = share / 100
        assert abs(counts[str(number)] - len(_CLIENTS) * p) <= _Z * math.sqrt(len(_CLIENTS) * p * (1 - p))


def test_raising_a_version_moves_clients_one_way_only() -> None:
    """From 10% to 20, 50 and 100: no client goes back, and no other one moves."""
    before = _choices(_versions(90, 10))
    for share in (20, 50, 100):
        after = _choices(_versions(100 - share, share))
        moved = {(old, new) for old, new in zip(before, after, strict=True) if old != new}
        assert moved == {("1", "2")}
        before = after


def test_rolling_back_restores_the_choice() -> None:
    """The choice depends on nothing but the list and the client."""
    assert _choices(_versions(90, 10)) == _choices(_versions(90, 10))


def test_each_model_splits_clients_on_its_own() -> None:
    """Otherwise the same clients would get the new version of every model."""
    same = sum(bucket_of("a", client) < 1000 and bucket_of("b", client) < 1000 for client in _CLIENTS)
    assert abs(same - len(_CLIENTS) * 0.01) <= _Z * math.sqrt(len(_CLIENTS) * 0.01)


def test_buckets_take_any_client() -> None:
    """A header may have any bytes, which Latin-1 decodes."""
    assert 0 <= bucket_of("a", "\xff\udc80") < BUCKETS


def test_the_clients_of_a_failed_version_are_spread_and_no_other_moves() -> None:
    """By the traffic of those that are left."""
    deployments = _versions(60, 20, 20)
    healthy, impaired = _choices(deployments), _choices(deployments, failed=[2])
    moved = Counter(new for old, new in zip(healthy, impaired, strict=True) if old == "3")
    assert all(old == new for old, new in zip(healthy, impaired, strict=True) if old != "3")
    total = sum(moved.values())
    assert abs(moved["1"] - total * 0.75) <= _Z * math.sqrt(total * 0.75 * 0.25)
    assert moved.keys() == {"1", "2"}


def test_if_all_have_failed_the_answer_is_that_of_its_version() -> None:
    """Which says that its workers are gone."""
    deployments = _versions(60, 40)
    assert _choices(deployments, failed=[0, 1]) == _choices(deployments)
