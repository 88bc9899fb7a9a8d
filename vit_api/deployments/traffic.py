"""Changes of the traffic of a model's versions: always 100 percent together. Knows nothing of who applies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vit_api.deployments.listing import Deployment, DeploymentsError, read_deployment

_PERCENT = 100.0
_DIGITS = 2


def traffic_of_new(others: Sequence[Deployment], wanted: float | None) -> float:
    """Return the traffic of a version that joins others: none unless it says so, all if there are no others.

    Raises:
        DeploymentsError: It is a model's only version, and wants a part only.
    """
    if others:
        return wanted or 0.0
    if wanted not in (None, _PERCENT):
        raise DeploymentsError(f"The 'traffic' of a model's only version is {_PERCENT:g} percent, not {wanted:g}")
    return _PERCENT


def with_new(others: Sequence[Deployment], traffic: float) -> list[Deployment]:
    """Return versions with the traffic that a new one leaves, each in proportion to what it had."""
    before = sum(one.traffic or 0.0 for one in others)
    left = _PERCENT - traffic
    parts = [round((one.traffic or 0.0) * left / before, _DIGITS) if before else 0.0 for one in others]
    carrying = [index for index, one in enumerate(others) if one.traffic]
    if carrying:  # what rounding leaves
        parts[carrying[-1]] = round(parts[carrying[-1]] + left - sum(parts), _DIGITS)
    return [one.model_copy(update={"traffic": part}) for one, part in zip(others, parts, strict=True)]


def changed(versions: Sequence[Deployment], wanted: Mapping[str, object]) -> list[Deployment]:
    """Return the versions of a model with the traffic that is wanted; those that are not named keep theirs.

    Args:
        versions: All of the model.
        wanted: Percentages, by version.

    Raises:
        DeploymentsError: There is no such version, or they do not make 100 percent together.
    """
    known = [one.version for one in versions]
    for version in wanted:
        if version not in known:
            raise DeploymentsError(f"There is no version {version[:64]!r}; the versions are {', '.join(known)}")
    result = []
    for one in versions:
        entry = one.model_dump(include={"name", "version", "model"})
        entry["traffic"] = wanted.get(one.version, one.traffic)
        traffic = read_deployment(f"Version {one.version!r}", entry).traffic or 0.0
        result.append(one.model_copy(update={"traffic": float(traffic)}))
    total = sum(one.traffic or 0.0 for one in result)
    if round(total, _DIGITS) != _PERCENT:
        found = ", ".join(f"{one.version}: {one.traffic:g}" for one in result)
        raise DeploymentsError(f"The traffic should be {_PERCENT:g} percent together, not {total:g} ({found})")
    return result
