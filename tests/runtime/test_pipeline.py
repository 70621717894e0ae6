"""The pipeline: order, overlap, bounds, errors of each stage, and what a closed one leaves behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from msan_runtime.pipeline import StageTimes, overlapped

WAIT_SECONDS = 20.0
"""Long enough for a busy machine; waited for in full only if the code is wrong."""


def same(value: int) -> int:
    return value


def threads_named(prefix: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads_named("msan-") == []


class Counting:
    """Gives 0, 1, 2, …; knows how many were taken and that no two threads took one at once."""

    def __init__(self, count: int) -> None:
        self.taken = 0
        self._count = count
        self._inside = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        assert self._inside.acquire(blocking=False), "two threads at once"
        try:
            time.sleep(0)
            if self.taken == self._count:
                raise StopIteration
            self.taken += 1
            return self.taken - 1
        finally:
            self._inside.release()


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("writers", [1, 3])
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_results_come_in_order_whatever_the_threads_do(readers: int, writers: int, depth: int, count: int) -> None:
    def slower_for_some(value: int) -> int:
        time.sleep(0.001 * (value % 3))
        return value

    results = overlapped(
        Counting(count),
        before=lambda item: slower_for_some(item) + 1,
        run=lambda item: item * 10,
        after=lambda item: slower_for_some(item // 10) * 7,
        readers=readers,
        writers=writers,
        depth=depth,
    )
    assert list(results) == [(item + 1) * 7 for item in range(count)]


def test_the_three_stages_work_at_the_same_time() -> None:
    """Each stage waits until the two others are at work on their items: only possible if they overlap."""
    together = threading.Barrier(3, timeout=WAIT_SECONDS)

    def meet(value: int, turn: range) -> int:
        if value in turn:
            together.wait()
        return value

    results = overlapped(
        range(10),
        before=lambda item: meet(item, range(2, 10)),
        run=lambda item: meet(item, range(1, 9)),
        after=lambda item: meet(item, range(8)),
    )
    assert list(results) == list(range(10))


def test_run_stays_in_the_thread_that_iterates_and_the_others_do_not() -> None:
    threads: dict[str, set[int]] = {"before": set(), "run": set(), "after": set()}

    def seen(stage: str, value: int) -> int:
        threads[stage].add(threading.get_ident())
        return value

    results = overlapped(
        range(20),
        before=lambda item: seen("before", item),
        run=lambda item: seen("run", item),
        after=lambda item: seen("after", item),
    )
    assert list(results) == list(range(20))
    assert threads["run"] == {threading.get_ident()}
    assert [len(threads[stage]) for stage in ("before", "after")] == [1, 1]
    assert len(set.union(*threads.values())) == 3


def test_items_and_before_of_one_reader_take_turns_in_one_thread() -> None:
    order: list[str] = []

    def items() -> Iterator[int]:
        for item in range(5):
            order.append(f"item {item} in {threading.get_ident()}")
            yield item

    def before(item: int) -> int:
        order.append(f"before {item} in {threading.get_ident()}")
        return item

    assert list(overlapped(items(), before=before, run=same, after=same)) == list(range(5))
    reader = order[0].split()[-1]
    assert reader != str(threading.get_ident())
    assert order == [f"{what} {item} in {reader}" for item in range(5) for what in ("item", "before")]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_items_are_never_taken_further_ahead_than_the_depth(depth: int) -> None:
    items = Counting(100)
    ahead: list[int] = []

    def run(item: int) -> int:
        time.sleep(0.002)
        ahead.append(items.taken - 1 - item)
        return item

    assert len(list(overlapped(items, before=same, run=run, after=same, readers=3, depth=depth))) == 100
    assert max(ahead) <= depth


@pytest.mark.parametrize("depth", [1, 3])
def test_results_do_not_pile_up_before_a_slow_writer(depth: int) -> None:
    computed: list[int] = []
    waiting: list[int] = []

    def run(item: int) -> int:
        computed.append(item)
        return item

    def after(item: int) -> int:
        time.sleep(0.002)
        waiting.append(len(computed) - 1 - item)
        return item

    assert len(list(overlapped(range(60), before=same, run=run, after=after, depth=depth))) == 60
    assert max(waiting) <= depth


def test_nothing_starts_before_the_first_result_is_asked_for() -> None:
    items = Counting(3)
    results = overlapped(items, before=same, run=same, after=same)
    assert items.taken == 0
    assert threads_named("msan-") == []
    assert list(results) == [0, 1, 2]


@pytest.mark.parametrize("stage", ["items", "before", "run", "after"])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_out_in_its_turn_after_the_results_before_it(stage: str, threads: int) -> None:
    items = Counting(1000)

    def failing(where: str, value: int) -> int:
        if where == stage and value == 7:
            raise ZeroDivisionError(where)
        return value

    results = overlapped(
        (failing("items", item) for item in items),
        before=lambda item: failing("before", item),
        run=lambda item: failing("run", item),
        after=lambda item: failing("after", item),
        readers=threads,
        writers=threads,
    )
    given: list[int] = []
    with pytest.raises(ZeroDivisionError, match=stage):
        given.extend(iter(results.__next__, None))
    assert given == list(range(7))
    assert items.taken < 30


def test_after_a_failed_write_nothing_more_is_written() -> None:
    written: list[int] = []
    at_work = threading.Event()

    def after(item: int) -> int:
        if item == 2:
            at_work.wait(WAIT_SECONDS)
            raise OSError("disk full")
        written.append(item)
        return item

    def run(item: int) -> int:
        if item == 5:
            at_work.set()
        return item

    with pytest.raises(OSError, match="disk full"):
        list(overlapped(range(100), before=same, run=run, after=after))
    assert written == [0, 1]


def test_closing_writes_what_was_computed_and_takes_nothing_more() -> None:
    computed: list[int] = []
    written: list[int] = []

    def run(item: int) -> int:
        computed.append(item)
        return item

    def after(item: int) -> int:
        time.sleep(0.01)
        written.append(item)
        return item

    items = Counting(1000)
    results = overlapped(items, before=same, run=run, after=after)
    assert next(results) == 0
    results.close()
    taken = items.taken
    assert written == computed
    assert 1 <= len(written) < 20
    time.sleep(0.02)
    assert items.taken == taken


def test_an_interrupt_in_run_ends_the_threads_and_keeps_what_was_computed() -> None:
    written: list[int] = []

    def run(item: int) -> int:
        if item == 4:
            raise KeyboardInterrupt
        return item

    with pytest.raises(KeyboardInterrupt):
        list(overlapped(range(100), before=same, run=run, after=lambda item: written.append(item), depth=9))
    assert written == [0, 1, 2, 3]


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_no_threads_or_no_depth_is_refused(numbers: tuple[int, int, int]) -> None:
    readers, writers, depth = numbers
    with pytest.raises(ValueError, match="at least 1"):
        overlapped([], before=same, run=same, after=same, readers=readers, writers=writers, depth=depth)


def test_times_tell_the_stages_apart() -> None:
    def sleeping(value: int, seconds: float) -> int:
        time.sleep(seconds)
        return value

    times = StageTimes()
    results = overlapped(
        range(5),
        before=lambda item: sleeping(item, 0.03),
        run=lambda item: sleeping(item, 0.01),
        after=lambda item: sleeping(item, 0.005),
        times=times,
    )
    assert times.busy_share == 0
    assert list(results) == list(range(5))
    assert times.seconds["before"] >= 0.15
    assert times.seconds["run"] >= 0.05
    assert times.seconds["after"] >= 0.025
    # Reading is the slowest: the run waits for most of it.
    assert times.waited_seconds > 0.02
    assert times.wall_seconds >= times.seconds["run"] + times.waited_seconds
    assert times.busy_share == times.seconds["run"] / times.wall_seconds
