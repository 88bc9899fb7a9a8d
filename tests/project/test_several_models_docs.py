"""docs/several-models.md: its list of models is valid, its tables have what there is, and its metrics exist."""

from __future__ import annotations

import re

from tests.support.server import ROOT
from vit_api import metrics
from vit_api.deployments.listing import Deployment, load_deployments
from vit_api.web.core.deployment_choice import BUCKETS
from vit_api.web.observers.mirroring import MAX_UPLOAD_BYTES

_PAGE = (ROOT / "docs" / "several-models.md").read_text()


def test_its_list_is_valid() -> None:
    """As the server reads it."""
    split, mirrored = re.findall(r"```json\n(.*?)```", _PAGE, re.DOTALL)
    assert [(one.title, one.traffic) for one in load_deployments(split)] == [
        ("nsfw 1", 90),
        ("nsfw 2", 10),
        ("objects 1", 100),
    ]
    assert [(one.traffic, one.mirror_traffic) for one in load_deployments(mirrored)] == [(100, None), (0, 100)]


def test_what_it_says_of_shadow_traffic() -> None:
    """The outcomes, and how much memory the uploads may take."""
    table = _PAGE[_PAGE.index("| `outcome` |") : _PAGE.index("`inference_shadow_probability_difference` is")]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == ["outcome", *metrics.SHADOW.values[0]]
    assert f"{MAX_UPLOAD_BYTES // 2**20} MiB of uploads" in _PAGE


def test_its_table_has_all_fields() -> None:
    """In their order."""
    table = _PAGE[_PAGE.index("| field |") : _PAGE.index("A list that can't be served")]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == list(Deployment.model_fields)


def test_its_metrics_exist() -> None:
    """With the labels that it groups them by."""
    known = {metric.name + end for metric in metrics.ALL for end in ("", "_bucket")}
    assert set(re.findall(r"\b(inference_\w+)", _PAGE)) <= known
    assert f"{BUCKETS:,}" in _PAGE
