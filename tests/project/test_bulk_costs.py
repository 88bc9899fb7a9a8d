"""The costs of many images in docs/ray.md: a calculation whose assumptions are stated there."""

from __future__ import annotations

import pytest

from scripts import bulk_costs
from scripts.bulk_costs import Machine, costs_of

_MACHINE = Machine("a machine", gpu_per_s=1000, cores=5, usd_per_hour=3.6)


def test_the_page_has_the_table_of_today() -> None:
    """After a change of prices or results, run `python -m scripts.bulk_costs`."""
    page = bulk_costs.PAGE.read_text()
    assert bulk_costs.with_table(page) == page


def test_the_gpu_is_the_limit() -> None:
    """A million images at 0.85 of 1,000/s take 1,176 s, and ten minutes to start."""
    costs = costs_of(_MACHINE, decode_s=0.001, images=1e6, gpus=1)
    assert not costs.is_decoding
    assert costs.machine_per_s == pytest.approx(850)
    assert costs.hours * 3600 == pytest.approx(1e6 / 850 + 600)
    assert costs.usd_machines == pytest.approx(costs.hours * 3.6)
    assert costs.usd_requests == pytest.approx(0.40 + 1954 / 1e6 * 5)
    assert costs.usd == pytest.approx(costs.usd_machines + costs.usd_requests)
    assert costs.network_gbit_s == pytest.approx(850 * 65_000 * 8 / 1e9)


def test_the_cores_are_the_limit() -> None:
    """Four cores that take 8 ms for an image decode 500/s."""
    costs = costs_of(_MACHINE, decode_s=0.008)
    assert costs.is_decoding
    assert costs.machine_per_s == pytest.approx(0.85 * 500)


def test_more_machines_cost_only_their_start() -> None:
    """Twice as many take half as long."""
    one, two = (costs_of(_MACHINE, decode_s=0.001, gpus=count) for count in (1, 2))
    start_usd = bulk_costs.START_S / 3600 * _MACHINE.usd_per_hour
    assert two.usd_machines - one.usd_machines == pytest.approx(start_usd)


def test_the_measured_gpu() -> None:
    """Its row has the rate of the result, and is limited by the 15 cores that decode beside it."""
    machine = bulk_costs.measured()
    costs = costs_of(machine, decode_s=0.002)
    assert machine.gpu_per_s > 10_000
    assert machine.cores == 16
    assert costs.is_decoding
    assert costs.machine_per_s == pytest.approx(0.85 * 15 / 0.002)


def test_any_machine_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the table for a rate that was measured elsewhere, and leaves the page alone."""
    before = bulk_costs.PAGE.read_text()
    bulk_costs.main(["--gpu-images-per-s", "9000", "--cores", "32", "--usd-per-hour", "4"])
    assert "| 9,000/s | 7,650 | GPU |" in capsys.readouterr().out
    assert bulk_costs.PAGE.read_text() == before
