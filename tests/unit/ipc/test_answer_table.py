"""The answer table: every process reads what any one writes, and never an expired, overwritten or torn entry."""

from __future__ import annotations

import hashlib
import multiprocessing as mp
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.waiting import LONG_S
from vit_api.ipc.answer_table import Answer, AnswerTable, RegionWriter

_REGIONS, _CAPACITY, _VALUE_BYTES = 3, 4, 40


def _key(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def _value(key: bytes, version: int) -> bytes:
    """Return a value from which its key and version can be verified."""
    return hashlib.sha256(key + b"%d" % version).digest() + version.to_bytes(8, "little")


def _is_value_of(key: bytes, value: bytes) -> bool:
    return value == _value(key, int.from_bytes(value[-8:], "little"))


def _table(regions: int = _REGIONS, capacity: int = _CAPACITY) -> tuple[AnswerTable, list[RegionWriter]]:
    table = AnswerTable(regions, capacity, _VALUE_BYTES)
    return table, [RegionWriter(table, region) for region in range(regions)]


def test_every_process_finds_what_one_stores() -> None:
    """A look-up searches the regions of all processes."""
    table, writers = _table()
    for number, writer in enumerate(writers):
        writer.put(_key(number), _value(_key(number), 0), 10.0, 0)
    found = [table.get(_key(number), 9.9, 0) for number in range(len(writers))]
    assert found == [Answer(_value(_key(number), 0), 10.0) for number in range(len(writers))]
    assert table.get(_key(99), 0.0, 0) is None


@pytest.mark.parametrize(
    ("now", "epoch"), [pytest.param(10.0, 0, id="expired"), pytest.param(9.0, 1, id="cleared since")]
)
def test_a_stale_entry_is_not_found(now: float, epoch: int) -> None:
    """An entry is stale after its expiry, and in a later epoch."""
    table, [writer] = _table(regions=1)
    writer.put(_key(1), _value(_key(1), 0), 10.0, 0)
    assert (table.get(_key(1), 9.0, 0) is not None, table.get(_key(1), now, epoch)) == (True, None)
    assert (table.count(9.0, 0), table.count(now, epoch)) == (1, 0)


def test_the_entry_that_expires_last_is_found() -> None:
    """A refreshed answer wins over the older one, in the same region or another."""
    table, (first, second, _) = _table()
    first.put(_key(1), _value(_key(1), 0), 10.0, 0)
    second.put(_key(1), _value(_key(1), 1), 12.0, 0)
    first.put(_key(2), _value(_key(2), 0), 10.0, 0)
    first.put(_key(2), _value(_key(2), 1), 11.0, 0)
    assert table.get(_key(1), 0.0, 0) == Answer(_value(_key(1), 1), 12.0)
    assert table.get(_key(2), 0.0, 0) == Answer(_value(_key(2), 1), 11.0)


def test_a_full_region_evicts_its_oldest_entries() -> None:
    """It holds as many entries as its capacity; other regions are not affected."""
    table, (first, second, _) = _table()
    second.put(_key(100), _value(_key(100), 0), 10.0, 0)
    for number in range(3 * _CAPACITY):
        first.put(_key(number), _value(_key(number), 0), 10.0, 0)
        assert table.count(0.0, 0) == min(number + 1, _CAPACITY) + 1
    found = [number for number in range(3 * _CAPACITY) if table.get(_key(number), 0.0, 0)]
    assert found == list(range(2 * _CAPACITY, 3 * _CAPACITY))
    assert table.get(_key(100), 0.0, 0) is not None


def test_a_full_table_finds_nearly_all_of_what_it_holds() -> None:
    """Collisions in a bucket lose at most 0.4% of the entries, even after the ring has wrapped several times."""
    table, writers = _table(regions=2, capacity=2000)
    for number in range(5 * 2 * 2000):
        writers[number % 2].put(_key(number), bytes(_VALUE_BYTES), 10.0, 0)
    newest = range(4 * 2 * 2000, 5 * 2 * 2000)
    lost = sum(table.get(_key(number), 0.0, 0) is None for number in newest)
    assert lost <= len(newest) * 0.004
    assert not any(table.get(_key(number), 0.0, 0) for number in range(4 * 2 * 2000))


def test_a_successor_continues_where_its_predecessor_stopped() -> None:
    """It keeps all entries, and its first write replaces the oldest."""
    table, (first, *_) = _table()
    for number in range(_CAPACITY):
        first.put(_key(number), _value(_key(number), 0), 10.0, 0)
    successor = RegionWriter(table, 0)
    assert all(table.get(_key(number), 0.0, 0) for number in range(_CAPACITY))
    successor.put(_key(50), _value(_key(50), 0), 10.0, 0)
    found = [number for number in (*range(_CAPACITY), 50) if table.get(_key(number), 0.0, 0)]
    assert found == [*range(1, _CAPACITY), 50]


class TableMachine(RuleBasedStateMachine):
    """Several writers, a reader, a clock and an epoch; so few keys that they collide in buckets and regions."""

    keys = st.integers(0, 11).map(_key)
    regions = st.integers(0, _REGIONS - 1)

    def __init__(self) -> None:
        super().__init__()
        self.table, self.writers = _table()
        self.now, self.epoch, self.version = 0.0, 0, 0
        self.rings: list[list[tuple[bytes, bytes, float, int]]] = [[] for _ in range(_REGIONS)]

    @rule(region=regions, key=keys)
    def put(self, region: int, key: bytes) -> None:
        self.version += 1
        entry = (key, _value(key, self.version), self.now + 10, self.epoch)
        self.writers[region].put(*entry)
        self.rings[region] = [*self.rings[region], entry][-_CAPACITY:]

    @rule(seconds=st.floats(0, 6))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def clear(self) -> None:
        self.epoch += 1

    @rule(region=regions)
    def restart(self, region: int) -> None:
        self.writers[region] = RegionWriter(self.table, region)

    @rule(region=regions, key=keys, step=st.sampled_from(["_drop_cell", "_write_entry", "_write_cell"]))
    def be_killed(self, region: int, key: bytes, step: str) -> None:
        """A writer is killed in the middle of a step and its successor continues: at most the oldest entry is lost."""
        self.version += 1
        entry = (key, _value(key, self.version), self.now + 10, self.epoch)
        with pytest.raises(_Killed):
            _dying_writer(self.table, region, step).put(*entry)
        for number in range(12):
            found = self.table.get(_key(number), self.now, self.epoch)
            assert found is None or _is_value_of(_key(number), found.value)
        self.writers[region] = RegionWriter(self.table, region)
        self.put(region, key)

    @invariant()
    def finds_what_the_rings_hold(self) -> None:
        live = [e for ring in self.rings for e in _newest(ring) if e[2] > self.now and e[3] == self.epoch]
        for key in map(_key, range(12)):
            expiries = [entry[2] for entry in live if entry[0] == key]
            found = self.table.get(key, self.now, self.epoch)
            if not expiries:
                assert found is None
            else:
                values = {entry[1] for entry in live if entry[0] == key and entry[2] == max(expiries)}
                assert found is not None
                assert found.value in values
                assert found.expires_at == max(expiries)


def _newest(ring: list[tuple[bytes, bytes, float, int]]) -> Iterator[tuple[bytes, bytes, float, int]]:
    """Yield the last entry of each key of a region."""
    yield from {entry[0]: entry for entry in ring}.values()


class _Killed(Exception):
    """Simulates a SIGKILL."""


def _dying_writer(table: AnswerTable, region: int, step: str) -> RegionWriter:
    """Return a writer that dies in one step of `put`: half-way through an entry, or right after a change of a cell."""

    class Dying(RegionWriter):
        def _write_entry(self, position: int, content: bytes) -> None:
            if step == "_write_entry":
                start = table._start_of(region, position)
                table._entries[start : start + len(content) // 2] = content[: len(content) // 2]
                raise _Killed
            super()._write_entry(position, content)

        def _drop_cell(self, position: int) -> None:
            super()._drop_cell(position)
            if step == "_drop_cell":
                raise _Killed

        def _write_cell(self, key: bytes, position: int) -> None:
            super()._write_cell(key, position)
            raise _Killed

    return Dying(table, region)


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_corrupt_table_gives_no_wrong_answer(data: st.DataObject) -> None:
    """With garbage in an entry or the index, a look-up returns the value stored for its key, or nothing."""
    table, writers = _table(regions=2)
    for number in range(2 * _CAPACITY):
        writers[number % 2].put(_key(number), _value(_key(number), 0), 10.0, 0)
    memory = getattr(table, data.draw(st.sampled_from(["_entries", "_cells"])))
    start = data.draw(st.integers(0, len(memory) - 1))
    garbage = data.draw(st.binary(min_size=1, max_size=4))  # a CRC-32 detects every burst of up to 32 bits
    memory[start : start + len(garbage)] = garbage[: len(memory) - start]
    for number in range(2 * _CAPACITY):
        found = table.get(_key(number), 0.0, 0)
        assert found in (None, Answer(_value(_key(number), 0), 10.0))


def test_torn_entries_are_counted() -> None:
    """A half-overwritten entry is a miss and counted as torn; the next write repairs it."""
    table, [writer] = _table(regions=1)
    key = _key(1)
    writer.put(key, _value(key, 0), 10.0, 0)
    table._entries[table._stride - 20] ^= 1
    assert (table.get(key, 0.0, 0), table.torn_reads) == (None, 1)
    writer.put(key, _value(key, 1), 10.0, 0)
    assert table.get(key, 0.0, 0) == Answer(_value(key, 1), 10.0)


_KEYS = 24
_REPEATS = 500  # makes values long, so that reads and writes often overlap


def _write_forever(table: AnswerTable, region: int) -> None:
    writer, order = RegionWriter(table, region), random.Random(os.getpid())
    version = 0
    while True:
        version += 1
        key = _key(order.randrange(_KEYS))
        writer.put(key, _value(key, version) * _REPEATS, time.monotonic() + LONG_S, 0)


@pytest.fixture
def start_writer() -> Iterator[Callable[[AnswerTable, int], BaseProcess]]:
    """Return a function that starts a process that writes to a region until it is killed."""
    started: list[BaseProcess] = []

    def start(table: AnswerTable, region: int) -> BaseProcess:
        process = mp.get_context("fork").Process(target=_write_forever, args=(table, region), daemon=True)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def _kill_while_writing(table: AnswerTable, region: int, process: BaseProcess) -> None:
    """Kill a writer after it has filled its region once more."""
    goal, deadline = table._written[region] + _CAPACITY, time.monotonic() + LONG_S
    while table._written[region] < goal:
        assert time.monotonic() < deadline
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()


def test_killed_writers_leave_no_wrong_answer(start_writer: Callable[[AnswerTable, int], BaseProcess]) -> None:
    """Readers beside 20 killed writers find no wrong value, and each region stays usable; an idle one stays empty."""
    table = AnswerTable(_REGIONS, _CAPACITY, _VALUE_BYTES * _REPEATS)
    processes = {region: start_writer(table, region) for region in range(2)}
    found = 0
    for number in range(20):
        for _ in range(50):
            for key in map(_key, range(_KEYS)):
                answer = table.get(key, time.monotonic(), 0)
                assert answer is None or answer.value == answer.value[:_VALUE_BYTES] * _REPEATS
                assert answer is None or _is_value_of(key, answer.value[:_VALUE_BYTES])
                found += answer is not None
        region = number % 2
        _kill_while_writing(table, region, processes[region])
        writer, key = RegionWriter(table, region), _key(1000 + number)
        for version in range(_CAPACITY):
            writer.put(key, _value(key, version) * _REPEATS, time.monotonic() + LONG_S, 0)
            answer = table.get(key, time.monotonic(), 0)
            assert answer is not None
            assert answer.value == _value(key, version) * _REPEATS
        processes[region] = start_writer(table, region)
    assert found > 0
    assert table._written[2] == 0
