"""The self-test at load: a backend that gives the wrong picture is not used, and one that passed is not asked again."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.runtime.conftest import FunctionBackend, Network

from msan_runtime.backends.base import TileLimits
from msan_runtime.bundle import open_bundle
from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import BackendError, BundleError, SelfTestError
from msan_runtime.manifest import SelfTest, describe_file, load_manifest, save_manifest
from msan_runtime.self_test import pass_self_test, self_tests_folder

BLURRED = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
LIMITS = TileLimits(smallest=(8, 8), largest=None, area_px=1 << 20)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))


@pytest.fixture
def tested_bundle(bundle_folder: Path) -> Callable[[PictureArray], Path]:
    """A maker of bundles that invert, whose self-test expects ``deblurred``."""

    def make(deblurred: PictureArray) -> Path:
        Image.fromarray(BLURRED).save(bundle_folder / "in.png")
        Image.fromarray(deblurred).save(bundle_folder / "out.png")
        manifest = load_manifest(bundle_folder)
        files = (*manifest.files, describe_file(bundle_folder, "in.png"), describe_file(bundle_folder, "out.png"))
        test = SelfTest(blurred="in.png", deblurred="out.png")
        save_manifest(dataclasses.replace(manifest, files=files, self_test=test), bundle_folder)
        return bundle_folder

    return make


def test_the_right_picture_passes_and_is_remembered(tested_bundle: Callable[[PictureArray], Path]) -> None:
    bundle = open_bundle(tested_bundle(255 - BLURRED))
    calls: list[int] = []

    def invert(tiles: PictureArray) -> PictureArray:
        calls.append(1)
        return 255 - tiles

    for _ in range(3):
        pass_self_test(FunctionBackend(invert, LIMITS), bundle)
    assert len(calls) == 1
    other = FunctionBackend(invert, LIMITS)
    other.device = "another GPU"
    pass_self_test(other, bundle)
    assert len(calls) == 2
    assert len(list(self_tests_folder().iterdir())) == 2


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda tiles: tiles * 0, "black where they should not be, as of NaN"),
        (lambda tiles: tiles, "levels off"),
        (lambda tiles: 255 - np.roll(tiles, 1, axis=2), "levels off"),
        (lambda tiles: (255 - tiles)[:, :32], "gives uint8 of shape"),
        (lambda tiles: (255 - tiles).astype(np.float32), "gives float32"),
    ],
)
def test_another_picture_is_refused_each_time(
    tested_bundle: Callable[[PictureArray], Path], network: Network, words: str
) -> None:
    bundle = open_bundle(tested_bundle(255 - BLURRED))
    for _ in range(2):
        with pytest.raises(SelfTestError, match=words):
            pass_self_test(FunctionBackend(network, LIMITS), bundle)
    assert not self_tests_folder().exists()


def test_the_bounds_are_those_of_the_precision(tested_bundle: Callable[[PictureArray], Path]) -> None:
    """Two levels off everywhere: 42.1 dB by the formula, under the 50 dB of FP16 and over the 40 dB of INT8."""
    inverted = np.clip(255 - BLURRED.astype(int), 0, 253).astype(np.uint8)
    bundle = open_bundle(tested_bundle(inverted))
    backend = FunctionBackend(lambda tiles: np.minimum(255 - tiles, 253) + np.uint8(2), LIMITS)
    backend.precision = "int8"
    pass_self_test(backend, bundle)
    backend.precision = "fp16"
    with pytest.raises(SelfTestError, match=r"2 levels off \(≤ 3\), 42\.1 dB \(≥ 50\)"):
        pass_self_test(backend, bundle)


def test_a_backend_that_fails_it_is_not_used_and_that_is_said(
    tested_bundle: Callable[[PictureArray], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tested_bundle(BLURRED)
    with pytest.raises(SelfTestError, match="backend ort-cpu: failed the bundle's self-test"):
        Deblurrer.load(folder, "ort-cpu")
    assert any(record.levelno == logging.ERROR for record in caplog.records)
    with pytest.raises(BackendError, match=r"no backend can run this bundle here.*self-test"):
        Deblurrer.load(folder)


def test_a_bundle_that_passes_deblurs(tested_bundle: Callable[[PictureArray], Path]) -> None:
    with Deblurrer.load(tested_bundle(255 - BLURRED), "ort-cpu") as deblurrer:
        np.testing.assert_array_equal(deblurrer.deblur(BLURRED), 255 - BLURRED)
    (path,) = self_tests_folder().iterdir()
    path.write_bytes(b"damaged")
    Deblurrer.load(tested_bundle(255 - BLURRED), "ort-cpu").close()


def test_tiles_that_a_backend_does_not_take_are_no_failure(tested_bundle: Callable[[PictureArray], Path]) -> None:
    bundle = open_bundle(tested_bundle(255 - BLURRED))
    small = TileLimits(smallest=(8, 8), largest=(32, 32), area_px=1024)
    pass_self_test(FunctionBackend(lambda tiles: tiles, small), bundle)


@pytest.mark.parametrize("content", [b"no picture", b""])
def test_a_self_test_that_is_no_picture_is_a_damaged_bundle(
    tested_bundle: Callable[[PictureArray], Path], content: bytes
) -> None:
    folder = tested_bundle(255 - BLURRED)
    (folder / "out.png").write_bytes(content)
    manifest = load_manifest(folder)
    files = tuple(describe_file(folder, file.path) for file in manifest.files)
    save_manifest(dataclasses.replace(manifest, files=files), folder)
    with pytest.raises(BundleError, match=r"out\.png is no PNG picture"):
        pass_self_test(FunctionBackend(lambda tiles: tiles, LIMITS), open_bundle(folder))
