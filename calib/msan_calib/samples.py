"""The pictures that precision is decided on: crops of a folder, chosen for diversity, the same for every step.

A folder of ``input/`` and ``target/``, or ``blur/`` and ``sharp/``, holds pairs by name: then quality can be measured
against the truth. Any other folder is searched for pictures like those that the network will get.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from msan_calib.network import CalibrationError
from msan_runtime.atomic import write_bytes
from msan_runtime.cache import cache_folder
from msan_runtime.contract import PictureArray
from msan_runtime.errors import PictureError
from msan_runtime.image import find_pictures, read_picture

__all__ = ["SHIPPED", "Sample", "SampleOptions", "SampleSet", "choose_samples"]

SHIPPED = Path(__file__).parent / "samples"
"""Eight pairs; where they are from: its README."""

PAIR_FOLDERS = (("input", "target"), ("blur", "sharp"), ("blurred", "sharp"))
VERSION = 2
MOST_FILES = 96
"""So many files of a larger folder are looked at, drawn by the seed; for many samples twice their count."""
CANDIDATES_PER_FILE = 6
HELD_OUT_SHARE = 3
"""Every third file is held out: never calibrated on, only to check the choice."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How samples are cut.

    Attributes:
        count: of crops to calibrate on; half as many are held out.
        size_px: side of the square crops; smaller pictures are taken whole, cut to multiples of 8.
        seed: of every choice.
    """

    count: int = 16
    size_px: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.size_px < 8 or self.size_px % 8 or self.seed < 0:
            raise CalibrationError(
                f"samples are 1 or more squares of a multiple of 8 px, seeds 0 or more, "
                f"not {self.count} of {self.size_px} px with seed {self.seed}"
            )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A crop: uint8 H×W×3, and what it should become, if that is known."""

    name: str
    blurred: PictureArray
    sharp: PictureArray | None = None


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """Crops to calibrate on, and crops of other files to check on.

    Attributes:
        source: the folder.
        sha256: of all pixels, in order.
    """

    source: str
    options: SampleOptions
    calibration: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    sha256: str

    @property
    def has_targets(self) -> bool:
        """Whether sharp pictures are known."""
        return all(sample.sharp is not None for sample in (*self.calibration, *self.held_out))

    def to_dict(self) -> dict[str, object]:
        """What identifies the set, for a manifest."""
        return {
            "source": self.source,
            **asdict(self.options),
            "calibration": [sample.name for sample in self.calibration],
            "held_out": [sample.name for sample in self.held_out],
            "sha256": self.sha256,
        }


@dataclass(frozen=True, kw_only=True)
class _File:
    blurred: Path
    sharp: Path | None
    name: str


def choose_samples(folder: Path | None = None, options: SampleOptions | None = None) -> SampleSet:
    """Crops of the pictures in ``folder``, or of the shipped pairs.

    From each file some crops are drawn by the seed; of all of them those are kept that lie farthest apart in colour,
    brightness, contrast and detail. The result is kept in the user's cache folder until a file changes.

    Raises:
        CalibrationError: if the folder holds no picture that can be read.
    """
    where, chosen = folder or SHIPPED, options or SampleOptions()
    files = _files(where)
    label = "shipped" if folder is None else where.name
    key = _key(files, chosen)
    cached = _recall(key, label, chosen)
    if cached is not None:
        return cached
    rng = np.random.default_rng(chosen.seed)
    most = max(MOST_FILES, 2 * chosen.count)
    if len(files) > most:
        logger.warning("%s holds %d pictures: samples are cut from %d of them", where, len(files), most)
    by_file = _candidates((files[index] for index in rng.permutation(len(files))[:most]), chosen, rng)
    if not by_file:
        raise CalibrationError(f"no picture in {where} can be used as a sample: give another folder with --samples")
    held = by_file[::HELD_OUT_SHARE] if len(by_file) > 1 else []
    rest = [crops for index, crops in enumerate(by_file) if index % HELD_OUT_SHARE or not held]
    calibration = _diverse([crop for crops in rest for crop in crops], chosen.count)
    held_out = _diverse([crop for crops in held for crop in crops], max(1, chosen.count // 2))
    found = _set(label, chosen, calibration, held_out)
    _remember(key, found)
    return found


def _files(folder: Path) -> list[_File]:
    try:
        return _listed(folder)
    except OSError as error:
        raise CalibrationError(f"cannot read the samples in {folder}: {error.strerror or error}") from error


def _listed(folder: Path) -> list[_File]:
    if not folder.is_dir():
        raise CalibrationError(f"no folder of samples at {folder}")
    named = ((folder / blurred, folder / sharp) for blurred, sharp in PAIR_FOLDERS)
    pairs = next(((one, other) for one, other in named if one.is_dir() and other.is_dir()), None)
    root = pairs[0] if pairs else folder
    found = find_pictures(root)
    if not found:
        raise CalibrationError(f"no JPEG, PNG, WebP or TIFF picture in {root}: give another folder with --samples")
    if pairs is None:
        return [_File(blurred=path, sharp=None, name=path.name) for path in found]
    targets = {path.stem: path for path in find_pictures(pairs[1])}
    missing = next((path.name for path in found if path.stem not in targets), None)
    if missing is not None:
        raise CalibrationError(f"{root / missing} has no partner in {pairs[1]}")
    return [_File(blurred=path, sharp=targets[path.stem], name=path.name) for path in found]


def _candidates(files: Iterable[_File], options: SampleOptions, rng: np.random.Generator) -> list[list[Sample]]:
    """Crops of each file that has any."""
    found: list[list[Sample]] = []
    for file in files:
        try:
            blurred = read_picture(file.blurred).pixels
            sharp = None if file.sharp is None else read_picture(file.sharp).pixels
        except PictureError as error:
            logger.warning("left out of the samples: %s", error)
            continue
        if blurred.dtype != np.uint8 or (sharp is not None and sharp.shape != blurred.shape):
            logger.warning("left out of the samples: %s is not of 8 bits, or not of its partner's size", file.blurred)
            continue
        found.append(_crops(file.name, blurred, sharp, options, rng))
    return [crops for crops in found if crops]


def _crops(
    name: str, blurred: PictureArray, sharp: PictureArray | None, options: SampleOptions, rng: np.random.Generator
) -> list[Sample]:
    height, width = (min(side // 8 * 8, options.size_px) for side in blurred.shape[:2])
    if height == 0 or width == 0:
        logger.warning("left out of the samples: %s is smaller than 8 px", name)
        return []
    places = {
        (int(rng.integers(blurred.shape[0] - height + 1)), int(rng.integers(blurred.shape[1] - width + 1)))
        for _ in range(CANDIDATES_PER_FILE)
    }
    return [
        Sample(
            name=f"{name} {height}x{width}+{left}+{top}",
            blurred=np.ascontiguousarray(blurred[top : top + height, left : left + width]),
            sharp=None if sharp is None else np.ascontiguousarray(sharp[top : top + height, left : left + width]),
        )
        for top, left in sorted(places)
    ]


def _diverse(candidates: Sequence[Sample], count: int) -> tuple[Sample, ...]:
    """Farthest-point choice: first the most unusual, then always the one farthest from all that are chosen."""
    if len(candidates) <= count:
        return tuple(candidates)
    features = np.array([_features(sample.blurred) for sample in candidates])
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    chosen = [int(np.square(features).sum(axis=1).argmax())]
    nearest = np.full(len(candidates), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.square(features - features[chosen[-1]]).sum(axis=1))
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return tuple(candidates[index] for index in sorted(chosen))


def _features(crop: PictureArray) -> list[float]:
    """Colour, contrast, darkest and brightest tone, detail along both axes."""
    values = crop.astype(np.float32)
    luma = values.mean(axis=2)
    low, high = np.percentile(luma, (2, 98))
    detail = (float(np.abs(np.diff(luma, axis=axis)).mean()) for axis in (0, 1))
    return [*(float(mean) for mean in values.mean(axis=(0, 1))), float(luma.std()), float(low), float(high), *detail]


def _set(source: str, options: SampleOptions, calibration: Sequence[Sample], held_out: Sequence[Sample]) -> SampleSet:
    digest = hashlib.sha256()
    for sample in (*calibration, *held_out):
        for pixels in (sample.blurred, sample.sharp):
            if pixels is not None:
                digest.update(repr(pixels.shape).encode() + pixels.tobytes())
    return SampleSet(
        source=source,
        options=options,
        calibration=tuple(calibration),
        held_out=tuple(held_out),
        sha256=digest.hexdigest(),
    )


def _key(files: Sequence[_File], options: SampleOptions) -> str:
    stamps = [
        (str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for f in files for p in (f.blurred, f.sharp) if p
    ]
    text = json.dumps([VERSION, asdict(options), stamps])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _path(key: str) -> Path:
    return cache_folder() / "samples" / f"{key}.npz"


def _remember(key: str, found: SampleSet) -> None:
    """Keep the crops; where the cache cannot be written they are cut again next time."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    names: list[tuple[str, str]] = []
    for group, samples in (("calibration", found.calibration), ("held_out", found.held_out)):
        for sample in samples:
            arrays[f"{len(names)}b"] = sample.blurred
            if sample.sharp is not None:
                arrays[f"{len(names)}s"] = sample.sharp
            names.append((group, sample.name))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, names=np.frombuffer(json.dumps(names).encode(), np.uint8), **arrays)
    with suppress(OSError):
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(_path(key), buffer.getvalue())


def _recall(key: str, source: str, options: SampleOptions) -> SampleSet | None:
    groups: dict[str, list[Sample]] = {"calibration": [], "held_out": []}
    try:
        with np.load(_path(key), allow_pickle=False) as arrays:
            for index, (group, name) in enumerate(json.loads(arrays["names"].tobytes())):
                sharp = arrays.get(f"{index}s")
                groups[group].append(Sample(name=name, blurred=arrays[f"{index}b"], sharp=sharp))
    except (OSError, ValueError, KeyError):
        return None
    return _set(source, options, groups["calibration"], groups["held_out"])
