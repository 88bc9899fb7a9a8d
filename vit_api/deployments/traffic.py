"""Changes of the traffic of a model's versions, which is always 100 percent together, and of its mirror.

Knows nothing of who applies them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vit_api.deployments.listing import Deployment, DeploymentsError, read_deployment, serving_versions

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


def changed(
    versions: Sequence[Deployment], wanted: Mapping[str, object], mirrored: Mapping[str, object] | None = None
) -> list[Deployment]:
    """Return the versions of a model with the traffic that is wanted; those that are not named keep theirs.

    A version is a mirror or has traffic: one that is given some of either loses the other.

    Args:
        versions: All of the model.
        wanted: Percentages of `traffic`, by version.
        mirrored: Percentages of `mirror_traffic`, by version.

    Raises:
        DeploymentsError: There is no such version, the traffic is not 100 percent together, or a mirror has traffic,
            has nothing to mirror, or is not the only one.
    """
    mirrored = mirrored or {}
    known = [one.version for one in versions]
    for version in (*wanted, *mirrored):
        if version not in known:
            raise DeploymentsError(f"There is no version {version[:64]!r}; the versions are {', '.join(known)}")
    result = [_with_traffic(one, wanted.get(one.version), mirrored.get(one.version)) for one in versions]
    serving_versions(versions[0].name, result)
    total = sum(one.traffic or 0.0 for one in result)
    if round(total, _DIGITS) != _PERCENT:
        found = ", ".join(f"{one.version}: {one.traffic:g}" for one in result)
        raise DeploymentsError(f"The traffic should be {_PERCENT:g} percent together, not {total:g} ({found})")
    return result


def _with_traffic(one: Deployment, traffic: object, mirror_traffic: object) -> Deployment:
    """Return a version with the percentages that are wanted of it; None leaves one as it is."""
    entry = one.model_dump(include={"name", "version", "model"})
    entry["traffic"] = (0 if mirror_traffic else one.traffic) if traffic is None else traffic
    entry["mirror_traffic"] = (None if traffic else one.mirror_traffic) if mirror_traffic is None else mirror_traffic
    checked = read_deployment(f"Version {one.version!r}", entry)
    update = {"traffic": float(checked.traffic or 0), "mirror_traffic": checked.mirror_traffic or None}
    return one.model_copy(update=update)
