"""What serving costs: pictures/s of ``msan serve`` with 1, 4 and 16 clients, beside the plain Deblurrer and its codecs.

Also what batches do: milliseconds per tile of the network on batches of 1, 4 and 16, interleaved; and 16 clients of a
server beside a second one that runs every picture by itself.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from machine import describe_machine
from PIL import Image

from msan_runtime import Deblurrer
from msan_runtime.contract import PictureArray
from msan_runtime.serve.pictures import PictureOptions, PictureTask

__all__ = ["main"]

CLIENTS = (1, 4, 16)
BATCHES = (1, 4, 16)
ONE_BY_ONE = "from msan_runtime.backends.ort import OrtBackend; OrtBackend.batch_size = lambda *_: 1"


def main() -> None:
    """Print and optionally write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="msan-s")
    parser.add_argument("--backend", default="ort-cpu")
    parser.add_argument("--sizes", nargs="*", default=["32x32", "64x64", "360x640"], help="HEIGHTxWIDTH")
    parser.add_argument("--tiles", nargs="+", type=int, default=[32, 64, 128, 256], help="sides of tiles in batches")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sizes = [(int(height), int(width)) for height, _, width in (text.partition("x") for text in arguments.sizes)]
    with Deblurrer.load(arguments.bundle, arguments.backend) as deblurrer:
        batches = {f"{side}x{side}": batch_ms(deblurrer, side, arguments.seconds) for side in arguments.tiles}
        rates = {f"{h}x{w}": rates_of(deblurrer, (h, w), arguments) for h, w in sizes}
    packages = ("msan", "numpy", "pillow", "onnxruntime", "starlette", "uvicorn")
    report = {
        "what": "medians; batches: ms per tile of the network; JPEG pictures: rate, processor ms for each",
        "batch_ms_per_tile": batches,
        "pictures": rates,
        "machine": describe_machine(packages),
    }
    text = json.dumps(report, indent=2) + "\n"
    print(text, end="")  # noqa: T201 - this is a command
    if arguments.json is not None:
        arguments.json.write_text(text)


def batch_ms(deblurrer: Deblurrer, side: int, seconds: float) -> dict[str, float]:
    """Median milliseconds per tile of each batch size, the sizes in turns."""
    chance = np.random.default_rng(0)
    tiles: dict[int, PictureArray] = {n: chance.integers(0, 256, (n, side, side, 3), np.uint8) for n in BATCHES}
    times: dict[int, list[float]] = {n: [] for n in BATCHES}
    for batch in tiles.values():
        deblurrer.backend.infer(batch)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times[1]) < 3:
        for count, batch in tiles.items():
            started = time.perf_counter()
            deblurrer.backend.infer(batch)
            times[count].append(1000 * (time.perf_counter() - started) / count)
    return {str(count): round(statistics.median(found), 3) for count, found in times.items()}


def rates_of(deblurrer: Deblurrer, size: tuple[int, int], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians over the rounds: the network alone, with decoding and encoding around it, and served."""
    body = jpeg(size)
    pixels = np.asarray(Image.open(io.BytesIO(body)))
    found: dict[str, list[tuple[float, float]]] = {}

    def note(
        name: str, work: Callable[[], object], clients: int = 1, busy_s: Callable[[], float] = time.process_time
    ) -> None:
        found.setdefault(name, []).append(rate(work, arguments.seconds, clients, busy_s))

    def note_served(url: str, clients: int, suffix: str = "") -> None:
        name = f"served_{clients}_clients{suffix}"
        note(name, lambda: ask(client, url, body), clients, lambda: busy_s(client, url))

    with (
        server(arguments) as url,
        server(arguments, ONE_BY_ONE) as other_url,
        httpx.Client(limits=httpx.Limits(max_connections=32)) as client,
    ):
        for _ in range(arguments.rounds):
            note("deblurrer", lambda: deblurrer.deblur(pixels))
            note("deblurrer_with_codecs", lambda: in_line(deblurrer, body))
            for clients in CLIENTS:
                note_served(url, clients)
            note_served(other_url, CLIENTS[-1], "_one_by_one")
    return {
        name: {
            "pictures_per_s": round(statistics.median(rates), 2),
            "processor_ms": round(statistics.median(costs), 2),
        }
        for name, (rates, costs) in ((name, tuple(zip(*values, strict=True))) for name, values in found.items())
    }


def busy_s(client: httpx.Client, url: str) -> float:
    """Processor seconds of the server until now."""
    lines = client.get(f"{url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_cpu_seconds_total"))


def in_line(deblurrer: Deblurrer, body: bytes) -> None:
    """One picture as the server does it, without the server."""
    task = PictureTask(body, PictureOptions(), most_pixels=10**8)
    task.encode([deblurrer.deblur(picture) for picture in task.decode()])


def ask(client: httpx.Client, url: str, body: bytes) -> None:
    client.post(f"{url}/v1/deblur", content=body, timeout=120).raise_for_status()


def rate(work: Callable[[], object], seconds: float, clients: int, busy_s: Callable[[], float]) -> tuple[float, float]:
    """Calls of ``work`` a second, made by so many threads, and the processor's milliseconds for each."""

    def repeat(_: int) -> int:
        count = 0
        while time.perf_counter() < until:
            work()
            count += 1
        return count

    work()
    busy, started = busy_s(), time.perf_counter()
    until = started + seconds
    with ThreadPoolExecutor(clients) as pool:
        total = sum(pool.map(repeat, range(clients)))
    return total / (time.perf_counter() - started), 1000 * (busy_s() - busy) / total


def jpeg(size: tuple[int, int]) -> bytes:
    """A soft picture."""
    small = np.random.default_rng(0).integers(0, 256, (max(size[0] // 8, 2), max(size[1] // 8, 2), 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


@contextmanager
def server(arguments: argparse.Namespace, before: str = "") -> Generator[str]:
    """The address of a server in a process of its own, which runs the statement ``before`` first."""
    program = f"{before or 'pass'}; from msan_runtime.cli import main; main()"
    command: list[Any] = [sys.executable, "-c", program, "serve", "--port", "0"]
    command += ["--bundle", arguments.bundle, "--backend", arguments.backend]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[3]
        process.terminate()


if __name__ == "__main__":
    main()
