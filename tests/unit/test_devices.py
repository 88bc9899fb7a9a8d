"""Which devices the setting selects, and what is said when a GPU is missing."""

from __future__ import annotations

import logging

import pytest

from vit_api.devices import choose_devices


@pytest.fixture(autouse=True)
def _outside_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPACE_ID", "ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        pytest.param("auto", 0, ["cpu"], id="auto without a GPU"),
        pytest.param("auto", 2, ["cuda:0", "cuda:1"], id="auto with GPUs"),
        pytest.param("cpu", 2, ["cpu"], id="the CPU in spite of GPUs"),
        pytest.param("cuda", 2, ["cuda:0", "cuda:1"], id="every GPU"),
        pytest.param("cuda:3", 0, ["cuda:3"], id="one GPU"),
        pytest.param("cuda:0,2", 0, ["cuda:0", "cuda:2"], id="some GPUs"),
    ],
)
def test_the_setting_selects_devices(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, expected: list[str]
) -> None:
    """Numbered GPUs are taken as they are named; the others are those that the driver lists."""
    monkeypatch.setattr("vit_api.devices.check_cuda_with_nvidia_smi", lambda: gpus)
    assert choose_devices(device) == expected


def test_gpus_that_are_not_there_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable and what else it may be."""
    monkeypatch.setattr("vit_api.devices.check_cuda_with_nvidia_smi", lambda: 0)
    with pytest.raises(ValueError, match=r"VIT_API_DEVICE is cuda.*set it to auto or cpu\."):
        choose_devices("cuda")


@pytest.mark.parametrize(
    ("accelerator", "device", "gpus", "is_warned"),
    [
        pytest.param("t4-small", "auto", 0, True, id="paid for, not found"),
        pytest.param("t4-small", "auto", 1, False, id="found"),
        pytest.param("t4-small", "cpu", 0, False, id="not wanted"),
        pytest.param("none", "auto", 0, False, id="not paid for"),
        pytest.param("", "auto", 0, False, id="not said"),
    ],
)
def test_a_space_whose_gpu_is_missing_is_warned(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    accelerator: str,
    device: str,
    gpus: int,
    is_warned: bool,
) -> None:
    """A server that is slow for this reason looks healthy otherwise."""
    monkeypatch.setenv("SPACE_ID", "org/name")
    monkeypatch.setenv("ACCELERATOR", accelerator)
    monkeypatch.setattr("vit_api.devices.check_cuda_with_nvidia_smi", lambda: gpus)
    with caplog.at_level(logging.WARNING):
        assert choose_devices(device) == (["cuda:0"] if gpus else ["cpu"])
    assert ("t4-small" in caplog.text) is is_warned
