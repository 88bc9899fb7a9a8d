"""Records and pipes: records arrive equal, whole and in order, from any number of writers."""

from __future__ import annotations

import gc
import multiprocessing as mp
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_api.ipc.records import (
    MAX_TOP_K,
    AnswerRecord,
    Prediction,
    RecordPipe,
    RequestRecord,
    Status,
    unpack_answers,
    unpack_requests,
)

_U32 = st.integers(0, 2**32 - 1)
_F32 = st.floats(0, 1e6, width=32)
_PREDICTIONS = st.builds(
    lambda pairs, top: Prediction(tuple(i for i, _ in pairs), tuple(logit for _, logit in pairs), top),
    st.lists(st.tuples(_U32, st.floats(-1e4, 1e4, width=32)), max_size=MAX_TOP_K),
    st.floats(0, 1, width=32),
)


@given(st.lists(st.builds(RequestRecord, _U32, _U32)))
def test_requests_survive_packing(requests: list[RequestRecord]) -> None:
    """Unpacking gives equal requests in the same order."""
    assert list(unpack_requests(b"".join(request.pack() for request in requests))) == requests


@given(
    st.lists(
        st.builds(
            AnswerRecord, _U32, _U32, st.sampled_from(Status), _PREDICTIONS, st.integers(0, 256), _F32, _F32, _U32
        )
    )
)
def test_answers_survive_packing(answers: list[AnswerRecord]) -> None:
    """Unpacking gives equal answers in the same order, with any number of classes."""
    assert list(unpack_answers(b"".join(answer.pack() for answer in answers))) == answers


def test_an_empty_pipe_gives_nothing() -> None:
    """Reading an empty pipe returns no bytes and does not block."""
    assert RecordPipe.for_requests(4).read(10) == b""


def test_a_pipe_keeps_order_and_leaves_the_rest() -> None:
    """`read` takes at most the given number of records, oldest first."""
    pipe = RecordPipe.for_requests(4)
    pipe.write([RequestRecord(slot, 1).pack() for slot in range(4)])
    assert [request.slot for request in unpack_requests(pipe.read(3))] == [0, 1, 2]
    assert [request.slot for request in unpack_requests(pipe.read(3))] == [3]


@pytest.mark.parametrize("batch", [pytest.param(1, id="one per write"), pytest.param(32, id="batches")])
def test_a_pipe_holds_its_capacity(batch: int) -> None:
    """As many records as the capacity fit, regardless of how they are grouped into writes."""
    capacity = 1024
    pipe = RecordPipe.for_answers(capacity)
    record = AnswerRecord(1, 1, Status.OK).pack()
    for _ in range(capacity // batch):
        pipe.write([record] * batch)
    assert len(list(unpack_answers(pipe.read(capacity)))) == capacity


def test_a_full_pipe_raises_instead_of_blocking() -> None:
    """The slot table rules an overflow out, so one is an error."""
    pipe = RecordPipe.for_requests(1)
    with pytest.raises(BlockingIOError):
        for _ in range(100_000):
            pipe.write([RequestRecord(0, 0).pack()])


def _write_many(pipe: RecordPipe, writer: int, count: int) -> None:
    for number in range(count):
        prediction = Prediction((writer,) * MAX_TOP_K, (0.5,) * MAX_TOP_K, 0.05)
        pipe.write([AnswerRecord(writer, number, Status.OK, prediction).pack()])


def test_records_of_concurrent_writers_do_not_interleave() -> None:
    """Four processes write at once: every record arrives whole, and each writer's records in order."""
    count = 400
    pipe = RecordPipe.for_answers(4 * count)
    context = mp.get_context("fork")
    writers = [context.Process(target=_write_many, args=(pipe, number, count)) for number in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(60)
    answers = list(unpack_answers(pipe.read(4 * count)))
    assert all(answer.prediction.indices == (answer.slot,) * MAX_TOP_K for answer in answers)
    for writer in range(4):
        assert [answer.generation for answer in answers if answer.slot == writer] == list(range(count))


def _echo(requests: RecordPipe, answers: RecordPipe) -> None:
    for request in unpack_requests(requests.read(10)):
        answers.write([AnswerRecord(request.slot, os.getpid() % 1000, Status.OK).pack()])


def test_pipes_reach_a_spawned_process() -> None:
    """LitServe spawns its workers, so pipes must survive pickling."""
    requests, answers = RecordPipe.for_requests(4), RecordPipe.for_answers(4)
    requests.write([RequestRecord(7, 1).pack()])
    process = mp.get_context("spawn").Process(target=_echo, args=(requests, answers))
    process.start()
    process.join(60)
    assert [answer.slot for answer in unpack_answers(answers.read(4))] == [7]


def test_an_unreferenced_pipe_is_closed() -> None:
    """Its descriptors are closed when it is garbage-collected."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(100):
        RecordPipe.for_requests(1)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
