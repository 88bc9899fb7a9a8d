"""The load test: its client, its figures, and the server's metrics that it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load
from benchmarks.harness import client, scrape, summary
from tests.support.server import RunningServer

_STAGES = ("decode", "queue_wait", "batch_duration")


def read(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--concurrency", "1,6", "--processes", "2"], id="closed loop"),
        pytest.param(["--rate", "40", "--form", "--repeat-share", "0.5"], id="open loop, forms, repeats"),
        pytest.param(["--rate", "40", "--arrivals", "constant", "--unique"], id="open loop, constant"),
    ],
)
def test_load(digits_server: RunningServer, tmp_path: Path, options: list[str]) -> None:
    """All requests succeed, and the report has the client's figures and the server's metrics."""
    file, plot = tmp_path / "load.json", tmp_path / "load.png"
    common = ["--seconds", "1", "--warm-up", "0.5", "--json", str(file), "--plot", str(plot)]
    load.main([digits_server.url, *options, *common])
    runs = read(file)["runs"]
    assert len(runs) == (2 if "--concurrency" in options else 1)
    for run in runs:
        assert run["errors"] == {}
        assert run["goodput_per_s"] > 0
        assert run["latency_ms"]["p50"] > 0
        assert run["server"]["mean_batch_size"] >= 1
        assert run["metrics"]["mean_batch_size"] >= 1
        assert run["metrics"]["decode_ms"] > 0
        assert run["metrics"]["queue_ms"] > 0
        assert run["metrics"]["inference_ms"] > 0
        assert ("hit" in run["cache"]) == ("--repeat-share" in options)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_load_counts_errors(digits_server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors are counted by code."""
    images, file = tmp_path / "images", tmp_path / "load.json"
    images.mkdir()
    (images / "text").write_text("not an image")
    with pytest.raises(SystemExit, match="No request was answered"):
        load.main([digits_server.url, "--images", str(images), "--rate", "30", "--seconds", "1", "--json", str(file)])
    assert list(read(file)["runs"][0]["errors"]) == ["unsupported_image"]
    assert "unsupported_image" in capsys.readouterr().out


def test_an_unreachable_server_is_reported() -> None:
    """A port without a listener fails at once."""
    with pytest.raises(SystemExit, match="cannot be reached"):
        load.main(["http://127.0.0.1:9"])


def test_an_open_loop_hides_no_stall() -> None:
    """Latency is measured from the intended time of a request, even if it was sent later."""
    reply = client.Reply(intended_s=1.0, sent_s=3.0, done_s=3.5, outcome="ok")
    result = summary.summarise([client.Shift([reply], 0.9)], seconds=4)
    assert result["latency_ms"]["p50"] == 2500
    assert len(summary.warnings(result)) == 2


def test_the_mean_batch_size_is_a_mean_over_batches() -> None:
    """Three images in one batch and one alone have a mean of 2."""
    replies = [client.Reply(0, 0, 0.1, "ok", "miss", size) for size in (3, 3, 3, 1)]
    result = summary.summarise([client.Shift(replies, 0.1)], seconds=1)
    assert result["server"]["mean_batch_size"] == 2


def test_a_surge_changes_the_rate_of_an_open_loop() -> None:
    """From its start until its end, as many times as much; before and after, the steady rate."""
    plan = client.Plan("http://127.0.0.1:9", (), rate=40, surge=client.Surge(10, 20, 3))
    assert [plan.rate_at(seconds) for seconds in (0, 9.9, 10, 19.9, 20)] == [40, 40, 120, 120, 40]
    assert client.Plan("http://127.0.0.1:9", (), rate=40).rate_at(15) == 40


def test_late_responses_do_not_count_as_goodput() -> None:
    """Responses after the latency limit or after the end of the load are not counted."""
    replies = [client.Reply(0, 0, done_s, "ok") for done_s in (0.1, 0.3, 1.2)]
    result = summary.summarise([client.Shift(replies, 0.1)], seconds=1, goodput_ms=200)
    assert (result["requests_per_s"], result["goodput_per_s"]) == (2, 1)


def test_means_between_two_scrapes() -> None:
    """A stage without observations has no mean, and neither has a server without such metrics."""
    before = {"inference_batch_size_sum": 10.0, "inference_batch_size_count": 5.0}
    before |= {f"inference_{stage}_seconds_{end}": 1.0 for stage in _STAGES for end in ("sum", "count")}
    after = before | {"inference_batch_size_sum": 40.0, "inference_batch_size_count": 10.0}
    after |= {"inference_decode_seconds_sum": 1.5, "inference_decode_seconds_count": 101.0}
    assert scrape.means(before, after) == {"decode_ms": 5.0, "mean_batch_size": 6.0}
    assert scrape.means(None, after) == {}
