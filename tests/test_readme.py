"""The README's settings are the server's; tests/test_docs_examples.py runs its commands."""

from __future__ import annotations

import re

from tests.server import ROOT
from vit_api.settings import Settings

_README = (ROOT / "README.md").read_text()


def test_the_settings_that_it_names_exist() -> None:
    """No setting is misspelt, and the defaults in the table are the real ones."""
    named = set(re.findall(r"VIT_API_([A-Z_]+)", _README))
    assert named - {name.upper() for name in Settings.model_fields} == set()
    rows = re.findall(r"^\| `VIT_API_(\w+)` \| `?([^|`]+?)`? \|", _README, re.MULTILINE)
    real = {
        name.upper(): "none" if field.default is None else str(field.default).removesuffix(".0")
        for name, field in Settings.model_fields.items()
    }
    assert [(name, real[name]) for name, default in rows if default != "one a core"] == [
        row for row in rows if row[1] != "one a core"
    ]
