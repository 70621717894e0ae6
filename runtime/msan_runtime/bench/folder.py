"""A folder of pictures from file to file: what decoding, copying, the network and encoding take, and how busy it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from msan_runtime.backends._trt import TrtBackend
from msan_runtime.batch import deblur_files
from msan_runtime.bench.competitors import BenchError
from msan_runtime.bench.watched import watched_deblurrer
from msan_runtime.bundle import Bundle
from msan_runtime.contract import PictureArray
from msan_runtime.jobs import plan_jobs
from msan_runtime.pipeline import StageTimes

__all__ = ["FolderTimes", "measure_folder", "measure_made_up_folder", "synthetic_picture"]

JPEG_QUALITY = 92


@dataclass(frozen=True, kw_only=True)
class FolderTimes:
    """What a run over a folder took.

    Decoding and encoding go on in threads beside the rest, so that the four may add up to more than the wall time.

    Attributes:
        backend: that the network ran on, in words.
        pictures: that were deblurred.
        wall_seconds: from the first file opened to the last one written.
        decode_seconds, encode_seconds: reading and writing files, summed over threads.
        infer_seconds: in the backend.
        copy_seconds: around it: padding, cutting and blending tiles.
        waited_seconds: for a decoded picture, or for a place to put a result.
        device_busy_seconds: that a GPU computed, by its own events; ``None`` where these are not taken.
    """

    backend: str
    pictures: int
    wall_seconds: float
    decode_seconds: float
    copy_seconds: float
    infer_seconds: float
    encode_seconds: float
    waited_seconds: float
    device_busy_seconds: float | None

    @property
    def busy_share(self) -> float:
        """Share of the wall time in which pictures were computed, 0 to 1: copies and network."""
        return (self.copy_seconds + self.infer_seconds) / self.wall_seconds

    @property
    def device_idle_share(self) -> float:
        """Share of the wall time in which the device did not run the network; from its events if it has them."""
        busy = self.infer_seconds if self.device_busy_seconds is None else self.device_busy_seconds
        return max(0.0, 1 - busy / self.wall_seconds)

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain JSON values."""
        shares = {"busy_share": self.busy_share, "device_idle_share": self.device_idle_share}
        rate = {"pictures_per_second": self.pictures / self.wall_seconds}
        return {name: _rounded(value) for name, value in (asdict(self) | shares | rate).items()}


def measure_folder(bundle: Bundle, backend: str, pictures: Path) -> FolderTimes:
    """Deblur the pictures in a folder to a temporary one, which is removed again.

    Raises:
        BackendError: if the backend cannot run here.
        PictureError: if there are no pictures.
        BenchError: if one of them cannot be deblurred.
    """
    times = StageTimes()
    deblurrer, watched = watched_deblurrer(bundle, backend)
    engine = watched.inner if isinstance(watched.inner, TrtBackend) else None
    with deblurrer, TemporaryDirectory(prefix="msan-bench-") as results:
        if engine is not None:
            engine.reset_busy()
        plan = plan_jobs([pictures], Path(results))
        for outcome in deblur_files(deblurrer, plan, times=times):
            if outcome.error is not None:
                raise BenchError(f"{outcome.job.source} cannot be measured: {outcome.error}")
        busy_ms = None if engine is None else engine.busy_ms
    return FolderTimes(
        backend=f"{watched.name} ({watched.device})",
        pictures=len(plan),
        wall_seconds=times.wall_seconds,
        decode_seconds=times.seconds["before"],
        copy_seconds=times.seconds["run"] - watched.seconds,
        infer_seconds=watched.seconds,
        encode_seconds=times.seconds["after"],
        waited_seconds=times.waited_seconds,
        device_busy_seconds=None if busy_ms is None else busy_ms / 1000,
    )


def measure_made_up_folder(bundle: Bundle, backend: str, count: int, height: int, width: int) -> FolderTimes:
    """:func:`measure_folder` on ``count`` JPEG files of :func:`synthetic_picture`."""
    with TemporaryDirectory(prefix="msan-bench-") as name:
        folder = Path(name)
        for index in range(count):
            picture = Image.fromarray(synthetic_picture(height, width, seed=index))
            picture.save(folder / f"{index:04}.jpg", quality=JPEG_QUALITY)
        return measure_folder(bundle, backend, folder)


def synthetic_picture(height: int, width: int, *, seed: int = 0) -> PictureArray:
    """A made-up photograph: soft shapes, edges and grain, so that it takes a codec about as long as a real one."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (max(height // 32, 2), max(width // 32, 2), 3), np.uint8)
    soft = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    edges = Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)
    picture = np.asarray(Image.blend(soft, edges, 0.3).filter(ImageFilter.GaussianBlur(1)), np.float32)
    grain = random.normal(0, 3, picture.shape).astype(np.float32)
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def _rounded(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value
