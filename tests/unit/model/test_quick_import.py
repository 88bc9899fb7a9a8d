"""Tests of how torch and transformers are imported fast."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from tests.support.server import ROOT
from vit_api.model.quick_import import quick_import


def test_the_collector_rests_and_works_again() -> None:
    """Afterwards garbage is collected as before, also if an import fails."""
    with pytest.raises(ImportError), quick_import():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_unused_packages_are_not_imported() -> None:
    """The model comes without the optional packages that are of no use to it, and they can be imported later."""
    code = """
import sys
from vit_api.model.quick_import import quick_import
with quick_import():
    import vit_api.model.model
print(sorted({"sklearn", "scipy"} & set(sys.modules)))
import scipy, sklearn
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_was_imported_stays() -> None:
    """A package that this process uses already is not taken from it."""
    import sklearn

    with quick_import():
        assert sys.modules["sklearn"] is sklearn
    assert sys.modules["sklearn"] is sklearn
