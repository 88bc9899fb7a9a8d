"""The commands of docs/moderation.md, run one after the other as a reader would."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.page_reader import PageReader, blocks
from tests.support.server import ROOT, wait_until
from vit_api.settings import Settings

_PAGE = (ROOT / "docs" / "moderation.md").read_text()
_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageReader]:
    folder = tmp_path_factory.mktemp("checkout")
    log = folder / "decisions.jsonl"

    def wait_for_log(code: str) -> None:
        if "/v1/moderations" in code:  # a reader takes longer to the next command than the log to be written
            wait_until(lambda: log.exists() and len(log.read_text().splitlines()) == 2)

    with ExitStack() as stack:
        reader = PageReader(folder, stack, wait_for_log)
        for language, code in blocks(_PAGE):
            if "promtool" not in code or shutil.which("promtool"):
                reader.run(language, code)
        yield reader


def test_the_answers_are_flagged(reader: PageReader) -> None:
    """Each label has its own probability, and the seven is flagged, in both protocols."""
    answer = json.loads(reader.output_of("/predict"))
    assert answer["flagged"] is True
    assert [(one["label"], one["flagged"]) for one in answer["predictions"]] == [("7", True), ("9", False)]
    (moderation,) = json.loads(reader.output_of("/v1/moderations"))["results"]
    assert (moderation["flagged"], moderation["categories"]["7"]) == (True, True)


def test_the_decisions_are_found_by_the_image(reader: PageReader) -> None:
    """Both answers are in the log, with the members that the page lists and the digest of the answer."""
    decisions = [json.loads(line) for line in reader.output_of("sha256sum").splitlines()]
    answer = json.loads(reader.output_of("/predict"))
    assert [decision["flagged"] for decision in decisions] == [True, True]
    rows = [line.split("|")[1] for line in _PAGE.splitlines() if line.startswith("| `") and "ViT" not in line]
    members = set(re.findall(r"`(\w+)`", " ".join(rows)))
    for decision in decisions:
        assert decision.keys() == members - {"frame"}
        assert decision["upload_sha256"] == hashlib.sha256(_SEVEN).hexdigest()
        assert decision["thresholds"] == answer["thresholds_digest"]


def test_the_metrics_count(reader: PageReader) -> None:
    """Both answers are counted as predictions and as flags."""
    lines = reader.output_of("/metrics").splitlines()
    assert lines == ['inference_predictions_total{label="7"} 2.0', 'inference_flagged_total{label="7"} 2.0']


def test_names_on_the_page_exist() -> None:
    """Settings, alerts and the configuration of logrotate."""
    fields = {f"VIT_API_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"VIT_API_[A-Z_]+", _PAGE)) <= fields
    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
    for alert in re.findall(r"`(ViT\w+)`", _PAGE):
        assert f"alert: {alert}\n" in alerts
    assert "delaycompress" in (ROOT / "deploy" / "logrotate" / "vit-api").read_text()
