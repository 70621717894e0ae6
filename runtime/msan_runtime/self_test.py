"""Whether a backend gives the picture that the bundle says it must: asked once for each of them on each machine."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from msan_runtime.backends.base import Backend, check_tiles
from msan_runtime.backends.cuda import driver_version
from msan_runtime.bundle import Bundle
from msan_runtime.cache import cache_folder
from msan_runtime.contract import PictureArray
from msan_runtime.errors import BundleError, ContractError, OutOfMemoryError, SelfTestError
from msan_runtime.machine import processor_name
from msan_runtime.manifest import MANIFEST_NAME, SelfTest
from msan_runtime.store import keep, recall

__all__ = ["pass_self_test", "run_self_test", "self_test_pictures", "self_tests_folder"]

BOUNDS = {"int8": (64, 40.0), "fp8": (64, 40.0)}
OTHER_BOUNDS = (3, 50.0)
"""Most levels of 255 and least PSNR in dB that a backend may be from PyTorch in FP32: those of ``msan verify``."""

PASSED = b"passed"


def pass_self_test(backend: Backend, bundle: Bundle) -> None:
    """Run the bundle's self-test on ``backend``, unless it has passed it here before, which is remembered.

    Does nothing if the bundle has none, or its picture is no tile that the backend takes.

    Args:
        backend: of 8-bit pictures.
        bundle: what it runs.

    Raises:
        SelfTestError: if its picture is another, black, or holds not-a-number.
        BackendError: if it fails.
    """
    test = bundle.manifest.self_test
    if test is None:
        return
    path = _path(bundle, backend)
    if recall(path) != PASSED and run_self_test(backend, bundle, test):
        keep(path, PASSED, {"network": bundle.manifest.name, "backend": backend.name, "on": backend.device})


def run_self_test(backend: Backend, bundle: Bundle, test: SelfTest) -> bool:
    """Run ``test`` now; gives whether the backend takes such a picture at all.

    Raises:
        SelfTestError, BackendError: as :func:`pass_self_test`.
    """
    blurred, deblurred = self_test_pictures(bundle, test)
    try:
        check_tiles(blurred, backend.limits)
        given = backend.infer(blurred)
    except (ContractError, OutOfMemoryError):
        return False
    _judge(backend.name, given, deblurred, BOUNDS.get(backend.precision, OTHER_BOUNDS))
    return True


def self_test_pictures(bundle: Bundle, test: SelfTest) -> tuple[PictureArray, PictureArray]:
    """What is given, and what must come of it; (1, height, width, 3) each.

    Raises:
        BundleError: if they cannot be read, or are not of one size.
    """
    blurred, deblurred = (_picture(bundle, path) for path in (test.blurred, test.deblurred))
    if blurred.shape != deblurred.shape:
        raise BundleError("the pictures of the bundle's self-test differ in size: deploy the checkpoint again")
    return blurred, deblurred


def self_tests_folder() -> Path:
    """Where it is remembered who passed. It need not exist."""
    return cache_folder() / "self-tests"


def _judge(name: str, given: PictureArray, expected: PictureArray, bounds: tuple[int, float]) -> None:
    if given.shape != expected.shape or given.dtype != expected.dtype:
        raise SelfTestError(_refusal(name, f"gives {given.dtype} of shape {given.shape}"))
    difference = given.astype(np.int32) - expected
    worst, error = int(np.abs(difference).max()), float(np.mean(np.square(difference)))
    psnr_db = math.inf if error == 0 else 10 * math.log10(255**2 / error)
    if worst <= bounds[0] and psnr_db >= bounds[1]:
        return
    # Not-a-number becomes 0 when the picture is rounded to 8 bits.
    black = float(np.mean((given == 0) & (expected > bounds[0])))
    how = f"{black:.0%} of its values are black where they should not be, as of NaN, " if black else ""
    raise SelfTestError(_refusal(name, f"{how}{worst} levels off (≤ {bounds[0]}), {psnr_db:.1f} dB (≥ {bounds[1]:g})"))


def _refusal(name: str, how: str) -> str:
    return (
        f"failed the bundle's self-test and is not used: {how}. Update the driver and {name}'s package, "
        "or choose another --backend"
    )


def _picture(bundle: Bundle, path: str) -> PictureArray:
    try:
        with Image.open(io.BytesIO(bundle.read(path)), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))[None].copy()
    except (OSError, ValueError, SyntaxError) as error:
        raise BundleError(f"the bundle's {path} is no PNG picture: deploy the checkpoint again") from error


def _path(bundle: Bundle, backend: Backend) -> Path:
    conditions: Mapping[str, str] = {
        "manifest_sha256": hashlib.sha256((bundle.folder / MANIFEST_NAME).read_bytes()).hexdigest(),
        "backend": backend.name,
        "device": backend.device,
        "precision": backend.precision,
        "driver": driver_version(),
        "processor": processor_name(),
    }
    key = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    return self_tests_folder() / f"{key[:32]}.passed"
