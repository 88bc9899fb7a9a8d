"""The models that one server serves: reads the setting that lists them. Knows neither checkpoints nor HTTP.

A deployment is a version of a model: a name, a version, and how it is run.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from vit_api.labels.categories import Categories
from vit_api.labels.json_setting import MAX_SHOWN, read_json
from vit_api.labels.thresholds import Thresholds

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$"
"""A name may be that of a model of the hub."""

VERSION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

MAX_DEPLOYMENTS = 16
"""Each has workers of its own, and keeps a share of the slots."""

MAX_PATH = 4096
"""Length of a path on Linux."""

DTYPES = Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"]

_PARSERS: dict[str, Callable[[str], object]] = {"thresholds": Thresholds.load, "categories": Categories.load}
_EXAMPLE = '[{"name": "nsfw", "version": "1", "model": "Falconsai/nsfw_image_detection"}]'
_PERCENT = 100.0
_TRAFFIC_DIGITS = 2
_RESERVED = "versions"
"""No part of a name, since it separates a name from a version in paths."""


class DeploymentsError(ValueError):
    """The list can't be read, or is contradictory."""


class Deployment(BaseModel):
    """A version of a model, as the setting describes it; None stands for the server's setting of the same name.

    Attributes:
        name: The model's name for clients.
        version: The version's.
        model: Where the checkpoint is, as in VIT_API_MODEL.
        revision: The branch, tag or commit of a hub model.
        traffic: Percentage of the model's clients that are served by this version.
        mirror_traffic: Percentage of the images that the model's other versions compute which this one, their mirror,
            computes as well, without being heard.
        workers_per_device: Number of workers on each device.
        dtype: Precision.
        max_batch_size: Maximum number of images in a batch.
        thresholds: As VIT_API_THRESHOLDS.
        categories: As VIT_API_CATEGORIES.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: Annotated[str, Field(pattern=VERSION_PATTERN)]
    model: Annotated[str, Field(min_length=1, max_length=MAX_PATH)]
    revision: Annotated[str, Field(max_length=MAX_PATH)] | None = None
    traffic: Annotated[float, Field(ge=0, le=_PERCENT)] | None = None
    mirror_traffic: Annotated[float, Field(ge=0, le=_PERCENT)] | None = None
    workers_per_device: Annotated[int, Field(ge=1, le=16)] | None = None
    dtype: DTYPES | None = None
    max_batch_size: Annotated[int, Field(ge=1, le=256)] | None = None
    thresholds: str | None = None
    categories: str | None = None

    @field_validator("version", mode="before")
    @classmethod
    def _to_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if _RESERVED in value.split("/"):
            raise ValueError(f"No part of a name should be '{_RESERVED}', which separates name and version in paths")
        return value

    @field_validator("traffic", "mirror_traffic")
    @classmethod
    def _check_traffic(cls, value: float | None) -> float | None:
        if value is not None and round(value, _TRAFFIC_DIGITS) != value:
            raise ValueError(f"Input should have at most {_TRAFFIC_DIGITS} decimals")
        return value

    @field_validator("thresholds", "categories", mode="before")
    @classmethod
    def _to_json(cls, value: Any) -> Any:
        return json.dumps(value) if isinstance(value, dict) else value

    @field_validator(*_PARSERS)
    @classmethod
    def _check_parts(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            _PARSERS[str(info.field_name)](value)
        return value

    @property
    def title(self) -> str:
        """Its name and version, for logs and errors."""
        return f"{self.name} {self.version}"


def load_deployments(text: str) -> tuple[Deployment, ...]:
    """Read the list of models.

    Args:
        text: JSON, or the path of a file that has it.

    Returns:
        The deployments in their order, each with its traffic.

    Raises:
        DeploymentsError: The list can't be read, a field is unknown or invalid, two entries are one version of one
            model, or the traffic of a model's versions is not 100 percent together.
    """
    entries = _read(text)
    if len(entries) > MAX_DEPLOYMENTS:
        raise DeploymentsError(f"There should be at most {MAX_DEPLOYMENTS} versions of models, not {len(entries)}")
    deployments = [_deployment_of(number, entry) for number, entry in enumerate(entries, 1)]
    repeated = [title for title, count in Counter(one.title for one in deployments).items() if count > 1]
    if repeated:
        raise DeploymentsError(f"{repeated[0]!r} is there more than once: give each version a 'version' of its own")
    return _with_traffic(deployments)


def _read(text: str) -> list[Any]:
    document = read_json(text, ("[", "{"), _EXAMPLE, DeploymentsError)
    if not isinstance(document, list) or not document:
        raise DeploymentsError(f"Input should be a list of JSON such as {_EXAMPLE}")
    return document


def _deployment_of(number: int, entry: Any) -> Deployment:
    """Return an entry of the list, or raise an error that names it."""
    if not isinstance(entry, dict):
        raise DeploymentsError(f"Model {number} of the list is not an object such as {_EXAMPLE[1:-1]}")
    named = [str(entry[name])[:MAX_SHOWN] for name in ("name", "version") if name in entry]
    where = f"Model {number} of the list ({' '.join(named)})" if named else f"Model {number} of the list"
    return read_deployment(where, entry)


def read_deployment(where: str, entry: dict[str, Any]) -> Deployment:
    """Return a deployment.

    Args:
        where: What errors call it.
        entry: Its fields.

    Raises:
        DeploymentsError: A field is unknown, missing or invalid.
    """
    for name in entry.keys() - Deployment.model_fields:
        near = get_close_matches(name, Deployment.model_fields, 1)
        hint = f"Did you mean '{near[0]}'?" if near else f"The fields are {', '.join(Deployment.model_fields)}"
        raise DeploymentsError(f"{where} has a field {name[:MAX_SHOWN]!r}, which is unknown. {hint}")
    try:
        return Deployment(**entry)
    except ValidationError as error:
        problem = error.errors()[0]
        field = problem["loc"][0]
        if problem["type"] == "missing":
            raise DeploymentsError(f"{where} has no '{field}'") from None
        message = str(problem["msg"]).removeprefix("Value error, ").removesuffix(".")
        shown = repr(problem["input"])[:MAX_SHOWN]
        raise DeploymentsError(f"{where}, '{field}': {message}, not {shown}") from None


def _with_traffic(deployments: Sequence[Deployment]) -> tuple[Deployment, ...]:
    """Return them with the traffic of each: all of it for a model's only version, none for one that does not say.

    A mirror does not count as a version here: it has no traffic.
    """
    by_name: defaultdict[str, list[Deployment]] = defaultdict(list)
    for deployment in deployments:
        by_name[deployment.name].append(deployment)
    has_one = set()
    for name, versions in by_name.items():
        serving = serving_versions(name, versions)
        total = sum(one.traffic or 0 for one in serving)
        if len(serving) == 1:
            has_one.add(name)
        is_only = len(serving) == 1 and serving[0].traffic is None
        if not is_only and round(total, _TRAFFIC_DIGITS) != _PERCENT:
            found = ", ".join(f"{one.version}: {one.traffic or 0:g}" for one in serving)
            raise DeploymentsError(
                f"The 'traffic' of the versions of {name!r} should be {_PERCENT:g} percent together, not {total:g} "
                f"({found})"
            )
    return tuple(
        one.model_copy(
            update={"traffic": _PERCENT if one.name in has_one and not one.mirror_traffic else float(one.traffic or 0)}
        )
        for one in deployments
    )


def serving_versions(name: str, versions: Sequence[Deployment]) -> list[Deployment]:
    """Return the versions of a model that may have traffic, which are all but its mirror.

    Raises:
        DeploymentsError: There are several mirrors, one has traffic of its own, or there is no other version.
    """
    mirrors = [one for one in versions if one.mirror_traffic]
    if len(mirrors) > 1:
        raise DeploymentsError(f"Only one version of {name!r} can have 'mirror_traffic', not {len(mirrors)}")
    if mirrors and mirrors[0].traffic:
        raise DeploymentsError(
            f"{mirrors[0].title!r} has 'mirror_traffic' and 'traffic': a mirror answers no clients of its own, so give "
            "it one of them"
        )
    serving = [one for one in versions if not one.mirror_traffic]
    if not serving:
        raise DeploymentsError(f"{mirrors[0].title!r} has 'mirror_traffic', but {name!r} has no other version")
    return serving


def mirrors_of(deployments: Sequence[Deployment]) -> dict[int, int]:
    """Return the number of the mirror of each deployment that has one, by number."""
    mirrors = {one.name: number for number, one in enumerate(deployments) if one.mirror_traffic}
    return {number: mirrors[one.name] for number, one in enumerate(deployments) if one.traffic and one.name in mirrors}
