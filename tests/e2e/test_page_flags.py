"""The page with a multi-label model: labels of their own probabilities, with thresholds and without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.page import SEVEN, THREE, Page, needs_browser
from tests.support.samples import edit_json
from tests.support.server import serve
from vit_api.checkpoints.checkpoint import EMBEDDED
from vit_api.labels.thresholds import Thresholds

pytestmark = needs_browser

_MARKUP = "<img src=x onerror=alert(1)>\n7"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the embedded model as a multi-label one, whose label of sevens is markup with a line break."""
    folder = tmp_path_factory.mktemp("page") / "moderator"
    shutil.copytree(EMBEDDED["digits"], folder)
    labels = json.loads((folder / "config.json").read_text())["id2label"] | {"7": _MARKUP}
    edit_json(folder / "config.json", problem_type="multi_label_classification", id2label=labels, label2id=None)
    return folder


def test_flags_are_shown(browser: Page, checkpoint: Path) -> None:
    """A flagged label is marked, the verdict is that of all labels, and several images have it in their rows."""
    thresholds = {_MARKUP: 0.5, "*": 1.0}
    with serve(model=checkpoint, api_servers=1, thresholds=json.dumps(thresholds)) as server:
        browser.open(server.url + "/")
        browser.choose(SEVEN)
        browser.wait_for(", flagged")
        assert browser.texts("#answer .bars .flagged .label") == [f"{_MARKUP} flagged"]
        verdict = f"Flagged · thresholds {Thresholds(thresholds).digest}"
        assert browser.texts("#answer .verdict.flagged") == [verdict]
        shares = [float(text.removesuffix(" %")) for text in browser.texts("#answer .value")]
        shown = server.predict(SEVEN.read_bytes()).json()["predictions"]
        assert shares == pytest.approx([100 * one["confidence"] for one in shown], abs=0.06)
        browser.choose(THREE)
        browser.wait_for("digit-3.png: 3")
        assert browser.count("#answer .flagged") == 0
        assert browser.text("#answer .verdict").startswith("Not flagged")
        browser.choose(SEVEN, THREE)
        browser.wait_for("2 images of 2 classified")
        assert [text.endswith("(flagged)") for text in browser.texts("tbody tr td:nth-child(2)")] == [True, False]
        assert browser.complaints() == []


def test_a_flag_of_a_label_that_is_not_shown(browser: Page, checkpoint: Path) -> None:
    """The verdict says so."""
    lowest = {"3": 0.0}
    with serve(model=checkpoint, api_servers=1, thresholds=json.dumps(lowest)) as server:
        shown = {one["label"] for one in server.predict(SEVEN.read_bytes()).json()["predictions"]}
        assert "3" not in shown
        browser.open(server.url + "/")
        browser.choose(SEVEN)
        browser.wait_for(", flagged")
        assert browser.count("#answer .bars .flagged") == 0
        assert browser.text("#answer .verdict").startswith("Flagged, by a label that is not shown")
        assert browser.complaints() == []


def test_without_thresholds_nothing_is_said_of_flags(browser: Page, checkpoint: Path) -> None:
    """Neither a mark nor a verdict; the labels' probabilities are their own, and need not sum to 100%."""
    with serve(model=checkpoint, api_servers=1) as server:
        browser.open(server.url + "/")
        browser.choose(SEVEN)
        browser.wait_for("digit-7.png: ")
        assert browser.texts("#answer .label")[0] == _MARKUP
        assert browser.count("#answer .verdict, #answer .flagged, #answer .mark") == 0
        assert "flagged" not in browser.text("#status")
        assert browser.complaints() == []
