"""The gate of quantized networks."""

from __future__ import annotations

import numpy as np
import pytest

from vit_api.quantization.gate import Probabilities, compare, probabilities

_IMAGES = 1000


def _answers(top: float = 0.9) -> Probabilities:
    """Return answers of two classes, of which the first is on top."""
    return np.tile([top, 1 - top], (_IMAGES, 1))


def _swapped(answers: Probabilities, images: int) -> Probabilities:
    """Return answers of which the first few are the other way round."""
    return np.concatenate([answers[:images, ::-1], answers[images:]])


def test_equal_answers_pass() -> None:
    """Nothing differs."""
    compared = compare(_answers(), _answers())
    assert (compared.top_1_agreement, compared.mean_difference, compared.largest_difference) == (1, 0, 0)
    assert compared.failures() == []


@pytest.mark.parametrize(
    ("expected", "found", "failure"),
    [
        pytest.param(_answers()[:-1], _answers()[:-1], "Only 999 images were judged", id="too few images"),
        pytest.param(_answers(0.501), _swapped(_answers(0.501), 11), "same for 98.90% of the images", id="top class"),
        pytest.param(_answers(0.551), _swapped(_answers(0.551), 2), "0.1 apart", id="clear top class"),
        pytest.param(_answers(0.9), _answers(0.8949), "The mean difference is 0.0051", id="mean difference"),
    ],
)
def test_what_fails(expected: Probabilities, found: Probabilities, failure: str) -> None:
    """Each condition fails alone, just beyond its limit."""
    (sentence,) = compare(expected, found).failures()
    assert failure in sentence


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        pytest.param(_answers(0.501), _swapped(_answers(0.501), 10), id="top class"),
        pytest.param(_answers(0.551), _swapped(_answers(0.551), 1), id="clear top class"),
        pytest.param(_answers(0.9), _answers(0.8951), id="mean difference"),
    ],
)
def test_what_just_passes(expected: Probabilities, found: Probabilities) -> None:
    """Each limit itself passes."""
    assert compare(expected, found).failures() == []


def test_nan_fails() -> None:
    """A network that returns no numbers does not pass."""
    assert len(compare(_answers(), np.full((_IMAGES, 2), np.nan)).failures()) >= 1


def test_a_single_class_is_judged_by_its_probability() -> None:
    """It is always on top."""
    expected = probabilities(np.zeros((_IMAGES, 1), np.float32), sigmoid=True)
    assert expected[0, 0] == 0.5
    assert "mean difference" in " ".join(compare(expected, expected + 0.01).failures())


def test_probabilities_of_large_logits() -> None:
    """They do not overflow."""
    assert probabilities(np.array([[1000.0, 0.0]], np.float32), sigmoid=False).tolist() == [[1.0, 0.0]]
