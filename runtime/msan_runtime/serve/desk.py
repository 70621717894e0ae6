"""From a body to an answer: decoded, deblurred and encoded in threads, as many pictures at once as memory allows."""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.serve.admission import Ticket
from msan_runtime.serve.asgi import Reply
from msan_runtime.serve.metrics import Metrics
from msan_runtime.serve.network import Network
from msan_runtime.serve.options import Limits
from msan_runtime.serve.problems import ProblemError

__all__ = ["Desk", "PixelGate", "Task"]

T = TypeVar("T")

CODEC_THREADS = 2
MOST_RETRY_S = 300


class Task(ABC):
    """Pictures of one request. Its methods are called in this order, each in a thread, and none twice at once."""

    @abstractmethod
    def measure(self) -> int:
        """How many pixels it has, without decoding any.

        Raises:
            ProblemError: if they are too many, or the body is not what it should be.
        """

    @abstractmethod
    def decode(self) -> Sequence[PictureArray]:
        """Its pictures; the body is let go."""

    @abstractmethod
    def encode(self, sharp: Sequence[PictureArray]) -> Reply:
        """The answer that holds the deblurred pictures."""


class PixelGate:
    """Lets through as many pixels at once as it is wide, in the order of arrival."""

    def __init__(self, width_px: int) -> None:
        self._free_px = width_px
        self._width_px = width_px
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def passing(self, size_px: int) -> AsyncGenerator[None]:
        """Wait for room for ``size_px`` pixels, or for all room, and hold it until the block ends."""
        size_px = min(size_px, self._width_px)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size_px, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free_px += size_px
            else:
                self._waiting.remove((size_px, turn))
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free_px:
            size_px, turn = self._waiting[0]
            if turn.cancelled():
                return  # its own block takes it away, and admits the next
            self._waiting.popleft()
            self._free_px -= size_px
            turn.set_result(None)


class Desk:
    """Owns the network's thread, and the threads that decode and encode. Belongs to the server's thread."""

    def __init__(self, deblurrer: Deblurrer, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._gate = PixelGate(limits.pixels)
        self._codecs = ThreadPoolExecutor(CODEC_THREADS, "msan-codec")
        self._network = Network(deblurrer, metrics)
        self._queue: dict[Ticket, int] = {}
        metrics.watch_queue(lambda: self.queue_depth)

    @property
    def queue_depth(self) -> int:
        """How many requests wait for the network."""
        return sum(ticket.state == "waiting" for ticket in tuple(self._queue))

    def ahead_of(self, ticket: Ticket) -> int:
        """How many requests come before ``ticket``."""
        queue = tuple(self._queue)
        return queue.index(ticket) if ticket in queue else 0

    def refuse_full_queue(self) -> None:
        """Refuse further requests while too many wait.

        Raises:
            ProblemError: with the time after which there should be room.
        """
        depth = self.queue_depth
        if depth >= self._limits.queue:
            raise ProblemError("busy", f"{depth} requests wait already, which is the limit", self._retry_after_s())

    async def run(self, task: Task, ticket: Ticket) -> Reply:
        """The answer to ``task``. If this is cancelled, it ends when no thread works for it any more.

        Raises:
            ProblemError: if there is none.
        """
        self.refuse_full_queue()
        ticket.state = "waiting"
        self._queue[ticket] = 0
        try:
            size_px = await self._in(self._codecs, "measure", task.measure, ticket)
            self._queue[ticket] = size_px
            started = time.perf_counter()
            async with self._gate.passing(size_px):
                self._metrics.note_stage("gate", time.perf_counter() - started)
                blurred = await self._in(self._codecs, "decode", task.decode, ticket)
                sharp = await _ended(self._network.submit(blurred, ticket), ticket)
                ticket.held_bytes = 0
                del self._queue[ticket]
                ticket.state = "encoding"
                reply = await self._in(self._codecs, "encode", partial(task.encode, sharp), ticket)
            ticket.held_bytes = len(reply.body)
            self._metrics.note_pixels(size_px)
            return reply
        finally:
            self._queue.pop(ticket, None)

    def close(self) -> None:
        """End the threads and release the backend."""
        self._codecs.shutdown()
        self._network.close()

    async def _in(self, pool: ThreadPoolExecutor, stage: str, work: Callable[[], T], ticket: Ticket) -> T:
        """What ``work`` gives in a thread of ``pool``."""

        def timed() -> T:
            ticket.check()
            with self._metrics.stage(stage):
                return work()

        return await _ended(pool.submit(timed), ticket)

    def _retry_after_s(self) -> int:
        waiting_px = sum(self._queue.values())
        return min(max(math.ceil(waiting_px * self._network.s_per_px), 1), MOST_RETRY_S)


async def _ended(submitted: Future[T], ticket: Ticket) -> T:
    """What a thread gives. Cancelled, this waits for that thread, which is told to stop."""
    future = asyncio.wrap_future(submitted)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        ticket.cancel()
        submitted.cancel()
        while not future.done():
            await asyncio.wait({future})
        if not future.cancelled():
            future.exception()  # what it stopped with was asked for: nobody is to be told of it
        raise
