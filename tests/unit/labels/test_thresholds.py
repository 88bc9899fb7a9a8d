"""Thresholds: what is read, what is refused, and what is flagged."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from benchmarks.harness.servers import free_port
from tests.support import forked_servers
from tests.support.server import ROOT, environment
from vit_api.labels.thresholds import Thresholds, ThresholdsError

LABELS = ("nsfw", "violence", "safe")
TEXT = '{"nsfw": 0.85, "*": 0.5}'


def test_own_threshold_and_that_of_the_others() -> None:
    """A label is flagged at or above its own threshold, else at or above that of `*`."""
    thresholds = Thresholds.load(TEXT, LABELS)
    assert [thresholds.flags("nsfw", score) for score in (0.849, 0.85, 1.0)] == [False, True, True]
    assert [thresholds.flags("safe", score) for score in (0.499, 0.5)] == [False, True]
    assert thresholds.flags_any(LABELS, (0.6, 0.1, 0.5))
    assert not thresholds.flags_any(LABELS, (0.6, 0.1, 0.2))


def test_label_without_a_threshold() -> None:
    """Without `*`, a label that is not named is never flagged."""
    thresholds = Thresholds.load('{"nsfw": 0}', LABELS)
    assert thresholds.of("safe") == math.inf
    assert not thresholds.flags("safe", 1.0)
    assert thresholds.flags("nsfw", 0.0)


def test_score_is_compared_as_it_is_shown() -> None:
    """A score that a response shows as the threshold is flagged."""
    assert Thresholds.load(TEXT).flags("nsfw", 0.8499997)


def test_file(tmp_path: Path) -> None:
    """The JSON may be in a file."""
    file = tmp_path / "thresholds.json"
    file.write_text(TEXT)
    assert Thresholds.load(str(file), LABELS) == Thresholds.load(TEXT, LABELS)


def test_digest() -> None:
    """It depends on the labels and their thresholds, and not on how they are written."""
    same = ['{"*": 0.5, "nsfw": 0.85}', '{"nsfw":8.5e-1,"*":0.50}', json.dumps({"nsfw": 0.85, "*": 0.5}, indent=1)]
    assert {Thresholds.load(text).digest for text in same} == {Thresholds.load(TEXT).digest}
    assert Thresholds.load('{"a": 1}').digest == Thresholds.load('{"a": 1.0}').digest
    assert len(Thresholds.load(TEXT).digest) == 16
    assert Thresholds.load('{"nsfw": 0.85, "*": 0.6}').digest != Thresholds.load(TEXT).digest


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param('{"nsfv": 0.5}', "no label 'nsfv'. Did you mean 'nsfw'", id="slip"),
        pytest.param('{"nsfw": 85}', "'nsfw' should be a number from 0 to 1", id="percent"),
        pytest.param('{"nsfw": -0.1}', "from 0 to 1", id="negative"),
        pytest.param('{"nsfw": NaN}', "from 0 to 1", id="NaN"),
        pytest.param('{"nsfw": true}', "from 0 to 1", id="truth value"),
        pytest.param('{"nsfw": "0.5"}', "from 0 to 1", id="text"),
        pytest.param('{"nsfw": 0.5, "nsfw": 0.6}', "has 'nsfw' more than once", id="twice"),
        pytest.param('{"nsfw": 0.5', "malformed", id="malformed"),
        pytest.param("{}", "an object of JSON", id="empty"),
        pytest.param("0.5", "or the path of a file", id="a number"),
        pytest.param("/nowhere/thresholds.json", "No such file", id="no file"),
        pytest.param("a\0b", "or the path of a file", id="a name with a NUL"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    """What can't be meant is refused."""
    with pytest.raises(ThresholdsError, match=reason.replace("*", r"\*")):
        Thresholds.load(text, LABELS)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param('{"eleven": 0.5}', "VIT_API_THRESHOLDS: The model has no label 'eleven'", id="unknown label"),
        pytest.param('{"7": 7}', "VIT_API_THRESHOLDS: The threshold of '7' should be a number from 0 to 1", id="range"),
    ],
)
def test_start_stops(value: str, reason: str, tmp_path: Path) -> None:
    """The server does not start with thresholds that can't apply."""
    command = [sys.executable, str(ROOT / "server.py"), "--model", "digits", "--port", str(free_port())]
    variables = {**environment(), "VIT_API_THRESHOLDS": value}
    found = forked_servers.run(command, cwd=tmp_path, env=variables, timeout_s=60)
    assert found.returncode == 1
    assert reason in found.stderr
    assert "Traceback" not in found.stderr
