"""Published figures: the peers of MSAN's Tables 1 to 3, and which data sets they may stand beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CITATION", "FULL_TEST_SETS", "PUBLISHED", "FullTestSet", "PublishedMethod", "reason_not_full"]

CITATION = "Guo, Chen, Chen, Yu, Entropy 2022, 24(10), 1414, Tables 1-3 (doi 10.3390/e24101414)"


@dataclass(frozen=True, kw_only=True)
class PublishedMethod:
    """A method's figures as the paper prints them, all trained on GoPro.

    Attributes:
        name: of the method.
        scores: (PSNR in dB, SSIM) by name of the data set. GoPro's and HIDE's SSIM is MATLAB's on H×W×3,
            RealBlur's both are measured after alignment.
        size_mb: of the weights' file.
        time_ms: of one 1280×720 picture on an RTX 2080 Ti, PyTorch FP32, synchronised.
    """

    name: str
    scores: Mapping[str, tuple[float, float]]
    size_mb: float
    time_ms: float


@dataclass(frozen=True, kw_only=True)
class FullTestSet:
    """What a published test set is: its layout on disk and its number of pairs."""

    layout: str
    pairs: int


FULL_TEST_SETS: Mapping[str, FullTestSet] = {
    "GoPro": FullTestSet(layout="gopro", pairs=1111),
    "HIDE I": FullTestSet(layout="hide", pairs=1063),
    "HIDE II": FullTestSet(layout="hide", pairs=962),
    "RealBlur-R": FullTestSet(layout="realblur-r", pairs=980),
    "RealBlur-J": FullTestSet(layout="realblur-j", pairs=980),
}


def reason_not_full(
    name: str, *, layout: str, split: str | None, pairs: int, measured: int, limited: bool
) -> str | None:
    """Why published figures may not stand beside a measurement, in words; ``None`` if they may.

    Args:
        name: of the data set.
        layout: how it lies on disk.
        split: the part measured.
        pairs: found there.
        measured: of these, how many were measured.
        limited: whether only a first few were asked for.
    """
    full = FULL_TEST_SETS.get(name)
    if full is None or layout != full.layout:
        return f"no published figures for a data set of layout {layout}"
    if split != "test":
        return f"the split is {split}, not test"
    if measured != full.pairs or pairs != full.pairs:
        return f"{measured} of {full.pairs} pairs" if pairs <= full.pairs else f"{pairs} pairs in place of {full.pairs}"
    return "--limit was given" if limited else None


def _method(name: str, figures: tuple[float, ...], *, size_mb: float, time_ms: float) -> PublishedMethod:
    """A row of the tables: PSNR and SSIM of each data set in the order of ``FULL_TEST_SETS``."""
    scores = dict(zip(FULL_TEST_SETS, zip(figures[::2], figures[1::2], strict=True), strict=True))
    return PublishedMethod(name=name, scores=scores, size_mb=size_mb, time_ms=time_ms)


# fmt: off
PUBLISHED: tuple[PublishedMethod, ...] = (
    _method("SRN-Deblur", (30.20, 0.933, 29.18, 0.912, 27.46, 0.891, 35.27, 0.937, 28.48, 0.861),
            size_mb=33.6, time_ms=814),
    _method("DeblurGAN-v2", (29.08, 0.918, 28.29, 0.896, 26.65, 0.872, 35.11, 0.935, 28.69, 0.866),
            size_mb=244.5, time_ms=142),
    _method("DSDeblur", (30.96, 0.942, 29.98, 0.923, 28.14, 0.902, 35.39, 0.938, 28.39, 0.859),
            size_mb=49.8, time_ms=805),
    _method("Stack(4)-DMPHN", (31.39, 0.948, 29.80, 0.925, 28.34, 0.910, 35.48, 0.947, 27.80, 0.847),
            size_mb=86.9, time_ms=637),
    _method("MTRNN", (31.13, 0.945, 29.98, 0.926, 28.24, 0.908, 35.79, 0.951, 28.44, 0.862),
            size_mb=10.6, time_ms=492),
    _method("HFRSN-MSGSN", (31.85, 0.951, 30.30, 0.929, 28.58, 0.911, 35.40, 0.934, 28.31, 0.854),
            size_mb=108.3, time_ms=899),
    _method("VDN", (31.65, 0.951, 30.09, 0.929, 28.43, 0.912, 35.54, 0.948, 28.18, 0.855),
            size_mb=23.4, time_ms=236),
    _method("MSAN (paper)", (32.24, 0.956, 31.42, 0.944, 29.40, 0.926, 35.96, 0.953, 28.83, 0.878),
            size_mb=35.9, time_ms=419),
)
# fmt: on
"""In the order of the tables."""
