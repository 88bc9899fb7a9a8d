"""The figures of a load test."""

from __future__ import annotations

from vit_api.load import client, scrape, summary

_STAGES = ("decode", "queue_wait", "batch_duration")


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
    plan = client.LoadPlan("http://127.0.0.1:9", (), rate=40, surge=client.Surge(10, 20, 3))
    assert [plan.rate_at(seconds) for seconds in (0, 9.9, 10, 19.9, 20)] == [40, 40, 120, 120, 40]
    assert client.LoadPlan("http://127.0.0.1:9", (), rate=40).rate_at(15) == 40


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
