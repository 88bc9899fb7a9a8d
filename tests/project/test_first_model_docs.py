"""The commands of docs/first-model.md, run one after the other: from a folder of images to a load test."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.page_reader import PageReader, blocks
from tests.support.server import ROOT

_PAGE = (ROOT / "docs" / "first-model.md").read_text()
_IMAGES = 50


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageReader]:
    with ExitStack() as stack:
        reader = PageReader(tmp_path_factory.mktemp("checkout"), stack)
        for language, code in blocks(_PAGE):
            reader.run(language, code)
        yield reader


def test_the_model_knows_images_that_it_did_not_see(reader: PageReader) -> None:
    """The stand-in is easy, so that all but a few are right."""
    output = reader.output_of("first_model.py")
    assert "40 images of 2 labels to train on, 10 held out." in output
    (accuracy,) = re.findall(r"Accuracy on the images that were held out: ([\d.]+)%", output)
    assert float(accuracy) >= 90


def test_the_thresholds_are_of_its_labels(reader: PageReader) -> None:
    """Each is a probability."""
    thresholds = json.loads(reader.output_of("cat my-model"))
    assert thresholds.keys() == {"three", "seven"}
    assert all(0 < value <= 1 for value in thresholds.values())


def test_the_served_model_flags_images(reader: PageReader) -> None:
    """It answers with the new labels, and most images are flagged by one of them.

    The training differs a little from machine to machine, so the first image may fall short of its threshold.
    """
    answer = json.loads(reader.output_of("/predict"))
    thresholds = json.loads(reader.output_of("cat my-model"))
    assert answer["model"] == "my-model"
    assert answer["predictions"][0]["label"] == "seven"
    assert answer["flagged"] is any(one["confidence"] >= thresholds[one["label"]] for one in answer["predictions"])
    assert int(reader.output_of("grep -c")) >= _IMAGES * 0.8


def test_the_load_test_has_a_line_for_each_load(reader: PageReader) -> None:
    """And draws them."""
    output = reader.output_of("vit-api load")
    assert "my-model" in output
    assert re.findall(r"(\d+) conn\.(?!:)", output) == ["1", "16"]  # with a colon, it is a remark on a load
    assert (reader.folder / "load.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("names", [pytest.param([], id="none"), pytest.param(["one"], id="one label")])
def test_a_folder_without_labels_is_an_error_of_a_line(tmp_path: Path, names: list[str]) -> None:
    """The message says what is needed.

    In this process, which has transformers: the script's imports take longer than its work.
    """
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes((ROOT / "examples" / "digit-7.png").read_bytes())
    script = runpy.run_path(str(ROOT / "examples" / "first_model.py"))
    with pytest.raises(SystemExit, match=r"^error: .* two labels") as caught:
        script["main"]([str(tmp_path), "--out", str(tmp_path / "out")])
    assert "\n" not in str(caught.value)
