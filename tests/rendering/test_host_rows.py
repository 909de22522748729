"""Rows read ahead: what they cost, the states they pass, and what becomes of those that nobody wants."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.errors import DamagedNodeError, UnreachableError
from infnerf_tiles.rendering.accounts import ByteMeter
from infnerf_tiles.rendering.host_rows import HostRows, Item, RowState, _Row

COST = {"node": 100, "base": 300}


def item(number: int) -> Item:
    return ("base" if number % 3 == 0 else "node", number)


class Source:
    """Rows that arrive when they are let through; number 7 is damaged, 8 cannot be reached."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.read: list[Item] = []

    def __call__(self, wanted: Item) -> tuple[AnyArray, ...]:
        self.read.append(wanted)
        assert self.gate.wait(10.0)
        if wanted[1] == 7:
            raise DamagedNodeError("row 7")
        if wanted[1] == 8:
            raise UnreachableError("server")
        return (np.array([wanted[1]]),)


@pytest.fixture
def source() -> Source:
    return Source()


def rows_of(source: Source, budget: int = 10_000, threads: int = 2) -> tuple[HostRows, ByteMeter]:
    meter = ByteMeter()
    return HostRows(source, lambda wanted: COST[wanted[0]], budget, meter, threads), meter


def until(condition: object) -> Iterator[None]:
    deadline = time.monotonic() + 10.0
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.001)
        yield


ACTIONS = st.one_of(
    st.tuples(st.just("request"), st.lists(st.integers(0, 9), max_size=8, unique=True)),
    st.tuples(st.just("take"), st.lists(st.integers(0, 9), min_size=1, max_size=1)),
    st.tuples(st.just("rest"), st.just([])),
)


@settings(max_examples=60, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=14), budget=st.integers(0, 2500), threads=st.integers(1, 3))
def test_the_total_is_the_sum_whatever_happens(actions: list[tuple[str, list[int]]], budget: int, threads: int) -> None:
    source = Source()
    source.gate.set()
    rows, meter = rows_of(source, budget, threads)
    for action, numbers in actions:
        if action == "request":
            rows.request([item(number) for number in numbers])
        elif action == "take":
            held = item(numbers[0]) in rows.items
            try:
                arrays = rows.take(item(numbers[0])).arrays
                assert arrays is None or arrays[0].tolist() == numbers
                assert arrays is None or held
            except DamagedNodeError:
                assert numbers == [7]
            assert item(numbers[0]) not in rows.items
        else:
            for _ in until(lambda: rows.num_reading == 0):
                pass
            assert rows.num_bytes == sum(COST[kind] for kind, number in rows.items if number not in (7, 8))
        assert 0 <= rows.num_bytes <= budget
        assert rows.num_reading <= threads
        assert meter.now == rows.num_bytes or rows.num_reading
    rows.close()
    assert rows.num_bytes == meter.now == 0
    assert meter.peak <= budget


def test_only_so_many_are_read_at_once_and_in_order(source: Source) -> None:
    rows, _ = rows_of(source, threads=2)
    rows.request([item(n) for n in (1, 2, 4, 5)])
    for _ in until(lambda: len(source.read) == 2):
        pass
    assert rows.num_bytes == 400
    time.sleep(0.02)
    assert source.read == [item(1), item(2)]
    source.gate.set()
    for _ in until(lambda: len(source.read) == 4 and rows.num_reading == 0):
        pass
    assert rows.num_bytes == 400
    assert rows.take(item(4)).arrays is not None
    assert rows.num_bytes == 300
    rows.close()


def test_the_rest_is_read_as_room_comes_free(source: Source) -> None:
    source.gate.set()
    rows, _ = rows_of(source, budget=250)
    rows.request([item(n) for n in (1, 2, 4)])
    for _ in until(lambda: rows.num_bytes == 100 and rows.num_reading == 0 and len(rows.items) == 1):
        pass
    # a second one would take 200 while it is read
    assert source.read == [item(1)]
    assert rows.take(item(1)) == ((np.array([1]),), False)
    for _ in until(lambda: item(2) in source.read):
        pass
    rows.close()


def test_what_is_not_wanted_any_more_is_called_off(source: Source) -> None:
    rows, meter = rows_of(source)
    rows.request([item(1), item(2), item(4)])
    for _ in until(lambda: len(source.read) == 2):
        pass
    rows.request([item(5)])
    assert rows.items == ()  # nothing more is begun before a read has ended
    assert rows.take(item(1)).arrays is None
    # memory is given back when the reads have ended, not before
    assert meter.now == 400
    source.gate.set()
    for _ in until(lambda: rows.items == (item(5),) and rows.num_reading == 0):
        pass
    assert item(4) not in source.read
    assert meter.now == 100
    rows.close()


def test_taking_what_is_under_way_waits_for_it(source: Source) -> None:
    rows, _ = rows_of(source)
    rows.request([item(1), item(7), item(8)])
    threading.Timer(0.05, source.gate.set).start()
    assert rows.take(item(1)).waited
    with pytest.raises(DamagedNodeError):
        rows.take(item(7))
    assert rows.take(item(8)).arrays is None  # the next reader finds out himself
    assert rows.take(item(9)).arrays is None
    rows.close()


def test_only_legal_moves_are_made() -> None:
    row = _Row(cost=1)
    row.move(RowState.READY)
    with pytest.raises(AssertionError, match="no way from"):
        row.move(RowState.READING)
    row.move(RowState.DROPPED)
    for state in RowState:
        with pytest.raises(AssertionError):
            row.move(state)
