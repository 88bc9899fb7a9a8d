"""The garbage collector during imports."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from vit_api.environment.garbage import collection_paused


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    yield
    gc.enable()


def test_no_collection_runs_in_the_context() -> None:
    """It runs again afterwards."""
    with collection_paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_ends_the_pause() -> None:
    """An import that fails leaves the collector on."""
    with pytest.raises(ImportError), collection_paused():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    """The caller that turned it off decides when it runs again."""
    gc.disable()
    with collection_paused():
        pass
    assert not gc.isenabled()
