"""What the tests of all benchmarks share."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from benchmarks.harness import servers
from tests.support import forked_servers


@pytest.fixture(autouse=True, scope="module")
def _forked_servers() -> Iterator[None]:
    """Fork our servers, since the figures measured here are meaningless; see `forked_servers`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers, "running", functools.partial(servers.running, start=forked_servers.start))
        yield
