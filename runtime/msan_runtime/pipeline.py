"""Three stages at once: items are read in threads, computed in the calling one, written in threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

__all__ = ["Stage", "StageTimes", "overlapped"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")

Stage = Literal["before", "run", "after"]


class StageTimes:
    """How long each stage of a pipeline worked, summed over its threads.

    Attributes:
        seconds: by stage; ``before`` and ``after`` may exceed the wall time, since threads share them.
        waited_seconds: how long ``run`` had nothing to do, or no place for its result.
        wall_seconds: from the start to the end of the pipeline; 0 until then.
    """

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = {"before": 0.0, "run": 0.0, "after": 0.0}
        self.waited_seconds = 0.0
        self.wall_seconds = 0.0
        self._lock = threading.Lock()

    @property
    def busy_share(self) -> float:
        """Time in ``run`` over the wall time, 0 to 1; 0 until the pipeline has ended."""
        return self.seconds["run"] / self.wall_seconds if self.wall_seconds else 0.0

    @contextmanager
    def measured(self, stage: Stage) -> Generator[None]:
        """Count the block's time for ``stage``; from any thread."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            with self._lock:
                self.seconds[stage] += elapsed

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Count the block's time as waiting."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.waited_seconds += time.perf_counter() - started

    @contextmanager
    def whole(self) -> Generator[None]:
        """Count the block's time as wall time."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.wall_seconds += time.perf_counter() - started


def overlapped(
    items: Iterable[A],
    *,
    before: Callable[[A], B],
    run: Callable[[B], C],
    after: Callable[[C], D],
    readers: int = 1,
    writers: int = 1,
    depth: int = 4,
    times: StageTimes | None = None,
) -> Generator[D]:
    """Give ``after(run(before(item)))`` of each item, in order, with the three stages at work at once.

    ``run`` is called in the thread that iterates, one item after the other. With one reader, ``items``
    and ``before`` belong to one thread and are used in turn; with more, ``items`` still is. With one
    writer, ``after`` is called in order. Nothing starts before the first result is asked for.

    An exception of any stage comes out in its item's turn and ends the iterator; after one of ``after``
    nothing more is written. When the iterator ends, fails otherwise or is closed, what ``run`` has given
    is still written, and the threads have ended.

    Args:
        items: taken lazily, at most ``depth`` ahead of the one in ``run``.
        before, run, after: the stages.
        readers, writers: threads for ``before`` and ``after``.
        depth: bound of the read-ahead, and of the results that wait to be written or handed out.
        times: filled with what the stages took.

    Raises:
        ValueError: if ``readers``, ``writers`` or ``depth`` is under 1.
    """
    if min(readers, writers, depth) < 1:
        raise ValueError(f"readers {readers}, writers {writers} and depth {depth} must be at least 1")
    times = times or StageTimes()
    return _overlapped(_Ahead(items, before, readers, depth, times), run, _Behind(after, writers, times), depth, times)


def _overlapped(
    ahead: _Ahead[A, B], run: Callable[[B], C], behind: _Behind[C, D], depth: int, times: StageTimes
) -> Generator[D]:
    with times.whole(), behind, ahead:
        while True:
            yield from behind.finished(depth - 1)
            try:
                value = ahead.take()
                with times.measured("run"):
                    result = run(value)
            except _EndOfItemsError:
                break
            except Exception as error:
                behind.put_error(error)
                break
            behind.put(result)
            del value, result  # they may be large, and the next ones are about to come
        yield from behind.finished(0)


class _EndOfItemsError(Exception):
    """There are no further items."""


class _Ahead(Generic[A, B]):
    """Takes items and prepares them in threads; hands them over in the items' order.

    A slot is made for each result to come. Threads claim the slots in the order in which they take
    items, under one lock, so that the order of the slots is the items'.
    """

    def __init__(
        self, items: Iterable[A], before: Callable[[A], B], threads: int, depth: int, times: StageTimes
    ) -> None:
        self._items = iter(items)
        self._before = before
        self._depth = depth
        self._times = times
        self._pool = ThreadPoolExecutor(threads, "msan-read")
        self._lock = threading.Lock()
        self._ended = False
        self._slots: deque[Future[B]] = deque()
        self._unclaimed: deque[Future[B]] = deque()

    def __enter__(self) -> Self:
        self._ask()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._pool.shutdown(cancel_futures=True)

    def take(self) -> B:
        """The next item, prepared.

        Raises:
            _EndOfItemsError: if there is none.
        """
        slot = self._slots.popleft()
        while len(self._slots) < self._depth:
            self._ask()
        with self._times.waiting():
            return slot.result()

    def _ask(self) -> None:
        slot: Future[B] = Future()
        self._slots.append(slot)
        self._unclaimed.append(slot)
        self._pool.submit(self._fill)

    def _fill(self) -> None:
        """Prepare the next item for the first unclaimed slot."""
        with self._lock:
            slot = self._unclaimed.popleft()
            try:
                item = self._next()
            except BaseException as error:
                self._fail(slot, error)
                return
        try:
            with self._times.measured("before"):
                prepared = self._before(item)
        except BaseException as error:
            self._fail(slot, error)
            return
        slot.set_result(prepared)

    def _next(self) -> A:
        if self._ended:
            raise _EndOfItemsError
        with self._times.measured("before"):
            try:
                return next(self._items)
            except StopIteration:
                raise _EndOfItemsError from None

    def _fail(self, slot: Future[B], error: BaseException) -> None:
        self._ended = True
        slot.set_exception(error)


class _Behind(Generic[C, D]):
    """Writes results in threads; gives what ``after`` returned in the order of the results."""

    def __init__(self, after: Callable[[C], D], threads: int, times: StageTimes) -> None:
        self._after = after
        self._times = times
        self._pool = ThreadPoolExecutor(threads, "msan-write")
        self._failed = False
        self._futures: deque[Future[D]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=self._failed)

    def put(self, result: C) -> None:
        """Write ``result`` as soon as a thread is free."""
        self._futures.append(self._pool.submit(self._write, result))

    def put_error(self, error: Exception) -> None:
        """Raise ``error`` in the place of a result."""
        future: Future[D] = Future()
        future.set_exception(error)
        self._futures.append(future)

    def finished(self, most: int) -> Iterator[D]:
        """What has been written, in order; waits until at most ``most`` are left."""
        while self._futures and (len(self._futures) > most or self._futures[0].done()):
            future = self._futures.popleft()
            with self._times.waiting():
                done = future.result()
            yield done

    def _write(self, result: C) -> D:
        if self._failed:
            raise RuntimeError("not written, since an earlier one could not be")
        try:
            with self._times.measured("after"):
                return self._after(result)
        except BaseException:
            self._failed = True
            raise
