"""Made-up reports for tests of what is shown of them: passing, failing, not run, of many checks, with pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

import msan_export
from msan_export.acceptance.thresholds import Threshold, read_thresholds
from msan_export.acceptance.verdict import (
    PAIR_METRICS,
    Check,
    Exhibit,
    Interval,
    PairScores,
    ParityReport,
    Section,
    Settings,
)
from msan_export.comparison import BundleComparison, ComparedPicture, Fact, Side, Timing
from msan_runtime.contract import PictureArray

BOUNDS = read_thresholds()
HOSTILE = "<script>alert(1)</script>\"'{{ 7*7 }}{% raw %}<img src=x onerror=alert(2)> ü漢\u202e&amp;\x1b[31m"
GRAPHS = ("msan.fp16.onnx", "msan.fp32.onnx", "msan.fp32.float.onnx")
BACKENDS = ("ort-cpu", "openvino", "openvino-bf16")


@cache
def sample(name: str) -> PictureArray:
    path = Path(msan_export.__file__).parent / "samples" / f"{name}.jpg"
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def settings(bundle: str = "msan", provenance: Mapping[str, str] | None = None) -> Settings:
    machine = {
        "processor": "A Processor @ 2.00GHz",
        "cores": 2,
        "system": "Linux",
        "python": "3.11.9",
        "versions": {"torch": "2.13.0", "onnxruntime": "1.31.1"},
        "date": "2026-11-24T16:00:00+00:00",
    }
    made = {
        "checkpoint": "MSAN.pth",
        "checkpoint_sha256": "c4" * 32,
        "created": "2026-11-24T15:59:50+00:00",
        "reproduce": "msan deploy MSAN.pth -o BUNDLE --gpu 8.6,8.9,12.0 --precision fp16",
        "git_commit": "52b02ec0813d30869942ba6c8e2f05edf2925d6f",
    }
    return Settings(
        bundle=bundle,
        manifest_sha256="ab" * 32,
        checkpoint="MSAN.pth",
        checkpoint_sha256="c4" * 32,
        reference="PyTorch 2.13 float32 on the CPU",
        thresholds=BOUNDS,
        machine=machine,
        provenance=made if provenance is None else provenance,
    )


def check(
    section: Section,
    subject: str,
    quantity: str,
    figures: tuple[float, float] | None = None,
    bound: Threshold | None = None,
    *,
    case: str = "",
    detail: str = "",
    passed: bool | None = True,
) -> Check:
    if figures is None:
        return Check(section=section, subject=subject, quantity=quantity, case=case, passed=passed, detail=detail)
    limits = bound or BOUNDS.uint8
    return Check(
        section=section,
        subject=subject,
        quantity=quantity,
        case=case,
        passed=limits.allows(*figures),
        max_difference=figures[0],
        psnr_db=figures[1],
        threshold=limits,
        detail=detail,
    )


def exhibit(
    case: str,
    name: str = "square",
    *,
    levels: int = 1,
    share: float = 0.01,
    subject: str = GRAPHS[0],
    picture: PictureArray | None = None,
) -> Exhibit:
    """A picture of which a ``share`` of the values is ``levels`` off, most in its middle."""
    expected = sample(name) if picture is None else picture
    rng = np.random.default_rng(len(case))
    off = (rng.random(expected.shape) < share) * rng.integers(1, levels + 1, expected.shape)
    middle = tuple(slice(length // 3, length // 2) for length in expected.shape[:2])
    off[middle][:: max(1, 12 // levels)] = levels
    given = np.clip(expected.astype(int) + off, 0, 255).astype(np.uint8)
    worst = int(np.abs(given.astype(int) - expected).max())
    error = float(np.mean((given.astype(float) - expected) ** 2))
    psnr_db = math.inf if error == 0 else 10 * math.log10(255**2 / error)
    return Exhibit(
        subject=subject,
        case=case,
        passed=BOUNDS.uint8.allows(worst, psnr_db),
        max_difference=float(worst),
        psnr_db=psnr_db,
        threshold=BOUNDS.uint8,
        blurred=_blurred(expected),
        expected=expected,
        given=given,
    )


def _blurred(picture: PictureArray) -> PictureArray:
    moved = [np.roll(picture, shift, axis=1).astype(np.float32) for shift in range(-4, 5)]
    return np.mean(moved, axis=0).astype(np.uint8)


@cache
def passing(bundle: str = "msan") -> ParityReport:
    """A report of the usual checks on three pictures."""
    checks = [check("files", "manifest", "origin", detail="made from this checkpoint")]
    for graph in GRAPHS:
        checks += [check("files", graph, "hash"), check("files", graph, "weights", detail="156 tensors equal")]
    cases = ("odd.jpg 203×301", "square.jpg 320×320", "tall.jpg 560×96")
    checks.append(check("types", "msan.rtx.engine", "types", detail="72 convolution fp16, 6 deconvolution fp16"))
    for graph in GRAPHS[:2]:
        for place, case in enumerate(cases):
            for stage in ("d1", "d2", "d3"):
                figures = (3e-7 * (1 + place), 150.0) if "fp32" in graph else (4e-4 * (1 + place), 82.0 + place)
                bound = BOUNDS.float_fp32 if "fp32" in graph else Threshold(max_difference=0.01, psnr_db=50, peak=1)
                checks.append(check("tensors", graph, stage, figures, bound, case=case))
            figures = (0.0, math.inf) if place == 0 and "fp32" in graph else (1.0, 73.0 + place)
            checks.append(check("pictures", graph, "uint8", figures, case=case))
            if "fp32" in graph:
                figures = (2.4e-7, 155.2 + place)
                checks.append(check("pictures", graph, "float", figures, BOUNDS.float_fp32, case=case))
        checks.append(check("steadiness", graph, "twice", case=cases[0], detail="equal to the bit"))
    worst = (exhibit(cases[0], "odd"), exhibit(cases[1], "square"), exhibit(cases[2], "tall"))
    return ParityReport(settings=settings(bundle), checks=tuple(checks), worst=worst)


@cache
def failing() -> ParityReport:
    """A report with a changed file, a picture out of bounds, and not-a-number."""
    good = passing()
    checks = (
        check("files", GRAPHS[0], "hash", passed=False, detail="was changed since the bundle was made"),
        *good.checks,
        check("pictures", GRAPHS[0], "uint8", (12.0, 41.21), case="night.png 480×640"),
        check(
            "pictures", "backend openvino", "uint8", (math.nan, math.nan), case="night.png 480×640", detail="holds NaN"
        ),
        check("pictures", "backend rtx", "uint8", passed=None, detail="no NVIDIA driver"),
    )
    worst = (exhibit("night.png 480×640", levels=40, share=0.2), *good.worst)
    return ParityReport(settings=good.settings, checks=checks, worst=worst)


@cache
def not_run() -> ParityReport:
    """A report in which no picture was compared."""
    checks = (
        check("files", "manifest", "origin"),
        *(check("pictures", f"backend {name}", "uint8", passed=None, detail="not installed") for name in BACKENDS),
    )
    return ParityReport(settings=settings(), checks=checks)


@cache
def large(count: int = 8) -> ParityReport:
    """A report of hundreds of checks: six subjects, ``count`` pictures, each looked at in six ways."""
    rng = np.random.default_rng(5)
    checks: list[Check] = []
    for subject in (*GRAPHS, *(f"backend {name}" for name in BACKENDS)):
        checks.append(check("files", subject, "hash"))
        for number in range(count):
            case = f"picture-{number:02}.png 480×640"
            for quantity in ("d1", "d2", "d3", "typed"):
                bound = Threshold(max_difference=0.01, psnr_db=50, peak=1)
                figures = (float(10 ** rng.uniform(-5, -2.1)), float(rng.uniform(60, 90)))
                checks.append(check("tensors", subject, quantity, figures, bound, case=case))
            for quantity in ("uint8", "scan"):
                checks.append(check("pictures", subject, quantity, (1.0, float(rng.uniform(60, 80))), case=case))
    return ParityReport(settings=settings(), checks=tuple(checks))


def scores(
    data_set: str = "GoPro", subject: str = "backend ort-cpu", changes: Sequence[float] = (), bound_db: float = 0.02
) -> PairScores:
    """Scores whose PSNR changes by ``changes``."""
    listed = list(changes) or [float(x) for x in np.random.default_rng(3).normal(-0.004, 0.01, 24)]
    half = 2.07 * float(np.std(listed, ddof=1)) / math.sqrt(len(listed)) if len(listed) > 1 else math.nan
    mean = float(np.mean(listed))
    before = tuple(28 + 0.2 * place for place in range(len(listed)))
    after = tuple(value + change for value, change in zip(before, listed, strict=True))
    change = Interval(mean=mean, low=mean - half, high=mean + half)
    return PairScores(
        data_set=data_set,
        subject=subject,
        names=tuple(f"{place:04}.png" for place in range(len(listed))),
        before=dict.fromkeys(PAIR_METRICS, before),
        after=dict.fromkeys(PAIR_METRICS, after),
        change=dict.fromkeys(PAIR_METRICS, change),
        loss_bound_db=bound_db,
        passed=(change.low if change.known else mean) >= -bound_db,
    )


@cache
def paired() -> ParityReport:
    """A report with scores on pairs: good ones, bad ones, and a single pair."""
    good = passing()
    pairs = (
        scores(),
        scores(subject="backend openvino-bf16", changes=[-0.05, -0.04, -0.06, -0.02]),
        scores(data_set="one pair", changes=[0.01]),
    )
    checks = [
        check(
            "pairs",
            one.subject,
            "pairs",
            case=f"{one.data_set}, {len(one.names)} pairs",
            passed=one.passed,
            detail="PSNR changed",
        )
        for one in pairs
    ]
    return ParityReport(settings=good.settings, checks=(*good.checks, *checks), worst=good.worst, pairs=pairs)


@cache
def hostile() -> ParityReport:
    """A report whose every name may be taken for markup."""
    checks = (
        check("pictures", HOSTILE, HOSTILE, (12.0, 41.21), case=HOSTILE, detail=HOSTILE),
        check("files", HOSTILE, "hash", passed=None, detail=HOSTILE),
        check("pictures", f"name\udcff{HOSTILE}", "uint8", (1.0, 73.0), case=HOSTILE),
    )
    made = settings(HOSTILE, {HOSTILE: HOSTILE, "reproduce": HOSTILE})
    pairs = (scores(data_set=HOSTILE, subject=HOSTILE, changes=[-0.001, 0.002]),)
    return ParityReport(settings=made, checks=checks, worst=(exhibit(HOSTILE),), pairs=pairs)


ALL = {
    "passing": passing,
    "failing": failing,
    "not run": not_run,
    "large": large,
    "paired": paired,
    "hostile": hostile,
}


@cache
def compared(name: str = "other") -> BundleComparison:
    """Two bundles that differ in a few things, and give pictures a level apart, and one that is equal."""
    facts = (
        Fact(group="network", name="name", a="msan", b="msan"),
        Fact(group="recipe", name="budget", a="0.1dB", b="0.2dB"),
        Fact(group="graphs", name="fp16 graph, uint8: SHA-256", a="ab" * 32, b="cd" * 32),
        Fact(group="engines", name="tensorrt-rtx: version", a="1.7.1.116", b=None),
        Fact(group="origin", name=name, a=name, b=name * 2),
    )
    one, equal = exhibit("odd.jpg", "odd", levels=2), exhibit("square.jpg")
    pictures = (
        ComparedPicture(
            case=one.case, max_difference=2.0, psnr_db=61.5, blurred=one.blurred, a=one.expected, b=one.given
        ),
        ComparedPicture(
            case=f"{name}.jpg",
            max_difference=0.0,
            psnr_db=math.inf,
            blurred=equal.blurred,
            a=equal.expected,
            b=equal.expected,
        ),
    )
    return BundleComparison(
        a=Side(name="msan", manifest_sha256="ab" * 32, precision="fp32"),
        b=Side(name=name, manifest_sha256="cd" * 32, precision="fp16"),
        facts=facts,
        backend="ort-cpu",
        pictures=pictures,
        timing=Timing(height=320, width=320, rounds=5, a_ms=100.0, b_ms=50.0, ratio=0.5),
        machine=dict(settings().machine),
    )
