"""Which version of which model answers a request. Knows nothing of HTTP, and of models only their names and traffic.

Theory of operation
-------------------
A request may name a model, and a version of it. Without a name it is for the first model of the list. Without a version
the traffic decides: a hash of the model's name and the client is a bucket from 0 to 9,999, and the versions, in the
order of the list, have consecutive ranges of buckets, each as long as its percentage. So a client always gets the same
version, and no state has to be shared for that. When the last version gets 20 percent instead of 10, the end of the
range before it moves: clients go from the older version to the newer, and none goes back.

A version whose workers can't be restarted loses its traffic: its clients are spread over the others, and no other
client moves.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vit_api.deployments.listing import Deployment
from vit_api.errors import NotFound

BUCKETS = 10_000
"""A bucket is a hundredth of a percent."""

_MAX_SHOWN = 64


class Chosen(NamedTuple):
    """The deployment that answers a request.

    Attributes:
        number: Its number among those that the server has now.
        name: The model's name.
        version: The version's.
        place: Its number in the slot table, which stays the same when others are loaded or unloaded.
    """

    number: int
    name: str
    version: str
    place: int = 0


class _Range(NamedTuple):
    """The buckets of a version: from `start` up to `end`, which is not one of them."""

    start: int
    end: int
    chosen: Chosen


def bucket_of(name: str, client: str) -> int:
    """Return the bucket of a client, another one for each model.

    Args:
        name: The model's name.
        client: Who the client is.
    """
    digest = hashlib.sha256(f"{name}\0{client}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") % BUCKETS


class DeploymentChoice:
    """Choose among the deployments of a server.

    Args:
        deployments: All of them, with their traffic; the first one's model is the default.
        has_failed: Returns whether the workers of the deployment with this number can't be restarted.
        places: Their numbers in the slot table; None: in the same order.
    """

    def __init__(
        self,
        deployments: Sequence[Deployment],
        has_failed: Callable[[int], bool],
        places: Sequence[int] | None = None,
    ) -> None:
        places = range(len(deployments)) if places is None else places
        self._default = deployments[0].name
        self._has_failed = has_failed
        self._versions: defaultdict[str, dict[str, Chosen]] = defaultdict(dict)
        self._ranges: defaultdict[str, list[_Range]] = defaultdict(list)
        for number, (one, place) in enumerate(zip(deployments, places, strict=True)):
            chosen = self._versions[one.name][one.version] = Chosen(number, one.name, one.version, place)
            share = round((one.traffic or 0) / 100 * BUCKETS)
            if share:
                ranges = self._ranges[one.name]
                start = ranges[-1].end if ranges else 0
                ranges.append(_Range(start, start + share, chosen))

    def of(self, name: str | None, version: str | None, client: Callable[[], str]) -> Chosen:
        """Return the deployment for a request.

        Args:
            name: The model that it names, or None.
            version: The version that it names, or None.
            client: Returns who the client is, which is only asked if the traffic decides.

        Raises:
            NotFound: There is no such model or version.
        """
        name = name or self._default
        if name not in self._versions:
            known = ", ".join(map(repr, self._versions))
            raise NotFound(f"There is no model {name[:_MAX_SHOWN]!r}. This server runs {known}.")
        versions = self._versions[name]
        if version:
            if version not in versions:
                known = ", ".join(map(repr, versions))
                raise NotFound(f"The model {name!r} has no version {version[:_MAX_SHOWN]!r}. Its versions are {known}.")
            return versions[version]
        ranges = self._ranges[name]
        return ranges[0].chosen if len(ranges) == 1 else self._by_bucket(ranges, bucket_of(name, client()))

    def is_by_client(self, name: str | None, version: str | None) -> bool:
        """Return whether a request that names these, which there are, gets its version by its client."""
        return not version and len(self._ranges[name or self._default]) > 1

    def _by_bucket(self, ranges: Sequence[_Range], bucket: int) -> Chosen:
        own = next(one for one in ranges if bucket < one.end)
        if not self._has_failed(own.chosen.number):
            return own.chosen
        left = [one for one in ranges if not self._has_failed(one.chosen.number)]
        position = (bucket - own.start) / (own.end - own.start) * sum(one.end - one.start for one in left)
        end = 0
        for one in left:
            end += one.end - one.start
            if position < end:
                return one.chosen
        return own.chosen  # all have failed, which its answer says
