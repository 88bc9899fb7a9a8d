"""docs/space.md agrees with the code and the results."""

from __future__ import annotations

import re

import pytest

from deploy.files import NEEDED
from deploy.space import Status
from scripts import space_costs
from scripts.space_costs import HARDWARE, Costs, Hardware, usd_per_million
from tests.support.server import ROOT
from vit_api.settings import Settings

_PAGE = space_costs.PAGE.read_text()


def test_the_tables_are_up_to_date() -> None:
    """After a change of prices or results, run `python -m scripts.space_costs`."""
    assert space_costs.with_tables(_PAGE) == _PAGE
    assert all(f"| `{hardware.name}` |" in _PAGE for hardware in HARDWARE)


def test_the_cost_of_a_million_images() -> None:
    """A T4 at $0.40 per hour classifies 2,013,282 images in that time, at the published throughput."""
    (t4,) = (hardware for hardware in HARDWARE if hardware.name == "t4-small")
    assert t4.model_per_s == pytest.approx(559.2, abs=0.1)
    assert usd_per_million(0.40, 32 / 57.22e-3) == pytest.approx(0.1987, abs=1e-4)


@pytest.mark.parametrize(
    ("hardware", "decode_s", "expected"),
    [
        pytest.param(Hardware("a", 5, 1, "T4", 1.0, 100.0), 0.001, 100.0, id="limited by the GPU"),
        pytest.param(Hardware("a", 5, 1, "T4", 1.0, 100.0), 0.1, 40.0, id="limited by the cores"),
        pytest.param(Hardware("a", 5, 1, "L4", 1.0), 0.1, None, id="unknown throughput"),
        pytest.param(Hardware("a", 2, 1, None, 1.0), 0.1, 4.0, id="no GPU"),
    ],
)
def test_the_slower_stage_is_the_limit(hardware: Hardware, decode_s: float, expected: float | None) -> None:
    """With a GPU, one core is reserved for the worker."""
    assert Costs(jpeg_s=0, photo_s=0, model_s=0.4).limit(hardware, decode_s) == expected


def test_names_on_the_page_exist() -> None:
    """Settings, files, exit statuses and the preloaded commit agree with the code."""
    fields = {f"VIT_API_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"VIT_API_[A-Z_]+", _PAGE)) <= fields
    assert all(re.search(rf"`{re.escape(name)}/?`", _PAGE) for name in NEEDED)
    assert re.findall(r"^\| (\d) \|", _PAGE, re.MULTILINE) == [str(int(status)) for status in Status]
    (commit,) = set(re.findall(r"\b[0-9a-f]{40}\b", _PAGE))
    assert f"model.safetensors {commit}\n" in (ROOT / "README.md").read_text()


@pytest.mark.skipif(not (ROOT / "Dockerfile").exists(), reason="needs the Dockerfile")
def test_the_image_is_built_from_pushed_files() -> None:
    """A missing file would otherwise fail only when the Space is built."""
    dockerfile = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    for line in re.findall(r"^(?:COPY|ADD)\s+(.+)$", dockerfile, re.MULTILINE):
        if "--from=" not in line:
            sources = [word for word in line.split() if not word.startswith("--")][:-1]
            for source in sources:
                assert any(source == name or source.startswith(f"{name}/") for name in NEEDED), line
