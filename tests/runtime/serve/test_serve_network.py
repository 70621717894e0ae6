"""The network's thread: which requests run together, in which order, and what becomes of those who leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest
from tests.runtime.conftest import FunctionBackend

from msan_runtime.backends.base import TileLimits
from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import BackendError, ContractError
from msan_runtime.serve.admission import Ticket
from msan_runtime.serve.metrics import Metrics
from msan_runtime.serve.network import Network
from msan_runtime.serve.problems import ClientGoneError

Noise = Callable[..., PictureArray]
Results = Future[list[PictureArray]]


class Gate:
    """A network that inverts; it notes the batches that it sees, and holds the first until it is opened."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.begun = threading.Event()
        self.open = threading.Event()
        self.most = 99

    def __call__(self, tiles: PictureArray) -> PictureArray:
        self.seen.append(tiles.shape[:3])
        self.begun.set()
        assert self.open.wait(20)
        if len(tiles) > self.most:
            raise BackendError(f"{len(tiles)} are too many")
        return 255 - tiles


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """It is faster with up to four tiles of 32×32 px or less."""

    def batch_size(_: FunctionBackend, height: int, width: int) -> int:
        return 4 if height * width <= 1024 else 1

    monkeypatch.setattr(FunctionBackend, "batch_size", batch_size)
    return Gate()


@pytest.fixture
def line(gate: Gate, make_deblurrer: Callable[..., Deblurrer]) -> Network:
    pytest.importorskip("prometheus_client")
    deblurrer = make_deblurrer(gate, TileLimits(area_px=64 * 64))
    return Network(deblurrer, Metrics(deblurrer))


def tickets(count: int) -> list[Ticket]:
    """Made in an event loop, as they want it."""

    async def made() -> list[Ticket]:
        return [Ticket(str(number)) for number in range(count)]

    return asyncio.run(made())


def put(line: Network, gate: Gate, pictures: list[list[PictureArray]]) -> tuple[list[Results], list[Ticket]]:
    """Submit the pictures of several requests; the first is under way when the second comes."""
    held = tickets(len(pictures))
    futures = [line.submit(pictures[0], held[0])]
    assert gate.begun.wait(20)
    futures += [line.submit(several, ticket) for several, ticket in zip(pictures[1:], held[1:], strict=True)]
    return futures, held


def check_inverted(pictures: list[list[PictureArray]], futures: list[Results]) -> None:
    for several, future in zip(pictures, futures, strict=True):
        results = future.result(20)
        assert len(results) == len(several)
        for picture, result in zip(several, results, strict=True):
            np.testing.assert_array_equal(result, 255 - picture)


def test_small_pictures_of_one_tile_run_together(line: Network, gate: Gate, noise: Noise) -> None:
    shapes = [(8, 8), (17, 9), (30, 30), (24, 16), (60, 60), (18, 12), (19, 11), (20, 10), (17, 16), (24, 9)]
    pictures = [[noise(*shape, 3)] for shape in shapes]
    futures, _ = put(line, gate, pictures)
    gate.open.set()
    check_inverted(pictures, futures)
    assert gate.seen == [(1, 8, 8), (4, 24, 16), (1, 32, 32), (1, 64, 64), (3, 24, 16)]
    line.close()


def test_requests_of_several_pictures_fill_batches_up(line: Network, gate: Gate, noise: Noise) -> None:
    pictures = [[noise(8, 8, 3)] * count for count in (1, 2, 3, 2, 6)] + [[noise(8, 8, 3), noise(40, 40, 3)]]
    futures, _ = put(line, gate, pictures)
    gate.open.set()
    check_inverted(pictures, futures)
    assert [shape[0] for shape in gate.seen] == [1, 4, 3, 4, 2, 1, 1]
    line.close()


def test_who_leaves_is_left_out(line: Network, gate: Gate, noise: Noise) -> None:
    pictures = [[noise(8, 8, 3)] for _ in range(4)]
    futures, held = put(line, gate, pictures)
    assert futures[1].cancel()  # its turn has not come
    held[2].cancel()
    gate.open.set()
    check_inverted([pictures[0], pictures[3]], [futures[0], futures[3]])
    with pytest.raises(ClientGoneError):
        futures[2].result(20)
    assert [shape[0] for shape in gate.seen] == [1, 1]
    line.close()


def test_a_backend_that_takes_no_batches_does_them_one_by_one(
    line: Network, gate: Gate, noise: Noise, caplog: pytest.LogCaptureFixture
) -> None:
    gate.most = 1
    pictures = [[noise(8, 8, 3)] for _ in range(7)]
    futures, _ = put(line, gate, pictures)
    gate.open.set()
    check_inverted(pictures, futures)
    assert [shape[0] for shape in gate.seen] == [1, 4, 1, 1, 1, 1, 1, 1]
    assert caplog.text.count("function runs small pictures one by one from now on: 4 are too many") == 1
    line.close()


def test_pictures_that_cannot_be_are_told_to_their_own_request(line: Network, gate: Gate, noise: Noise) -> None:
    pictures = [[noise(8, 8, 3)], [noise(8, 8)], [noise(8, 8, 4)], [noise(8, 8, 3)]]
    futures, _ = put(line, gate, pictures)
    gate.open.set()
    check_inverted([pictures[0], pictures[3]], [futures[0], futures[3]])
    for future in futures[1:3]:
        with pytest.raises(ContractError):
            future.result(20)
    line.close()


def test_a_device_that_fails_is_told_to_all(line: Network, gate: Gate, noise: Noise) -> None:
    gate.most = 0
    futures, _ = put(line, gate, [[noise(8, 8, 3)] for _ in range(3)])
    gate.open.set()
    for future in futures:
        with pytest.raises(BackendError, match="are too many"):
            future.result(20)
    line.close()
