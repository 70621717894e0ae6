"""A bundle as `msan deblur` runs it: on every backend that this machine has, in tiles where a picture needs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from msan_calib.network import CalibrationError
from msan_export.acceptance.bisection import LIBRARIES, bisected_departure
from msan_export.acceptance.cases import sized
from msan_export.acceptance.figures import differences, levels_apart
from msan_export.acceptance.nodewise import SIDE_PX
from msan_export.acceptance.pictures import Gallery
from msan_export.acceptance.reference import Reference
from msan_export.acceptance.steadiness import steady_check
from msan_export.acceptance.thresholds import Thresholds
from msan_export.acceptance.verdict import Case, Check
from msan_runtime.backends.base import Backend
from msan_runtime.bundle import Bundle
from msan_runtime.contract import INPUT_NAME
from msan_runtime.errors import MsanError, SelfTestError
from msan_runtime.select import BACKENDS, select_backend
from msan_runtime.tiling import TiledRunner

__all__ = ["backend_checks", "backends_here"]


def backends_here(bundle: Bundle) -> Iterator[tuple[str, Backend | MsanError]]:
    """Every backend by name, one after the other: open, or why it cannot be used. Each is closed before the next."""
    for name in BACKENDS:
        try:
            backend = select_backend(bundle, name).backend
        except MsanError as error:
            yield name, error
            continue
        with backend:
            yield name, backend


def backend_checks(
    bundle: Bundle, cases: Sequence[Case], reference: Reference, bounds: Thresholds, gallery: Gallery
) -> Iterator[Check]:
    """Each case on each backend against the reference, which is cut into the same tiles; and the first case twice.

    A backend that is not here is "not run"; one that is here and fails, or fails the self-test, is a failure.
    """
    for name, backend in backends_here(bundle):
        subject = f"backend {name}"
        if isinstance(backend, MsanError):
            passed = False if isinstance(backend, SelfTestError) else None
            yield Check(section="pictures", subject=subject, quantity="uint8", passed=passed, detail=str(backend))
            continue
        checks = list(_checks(subject, backend, cases, reference, bounds, gallery))
        yield from checks
        if any(check.passed is False for check in checks):
            yield _first_node(subject, backend, bundle, cases[0], bounds)


def _checks(
    subject: str, backend: Backend, cases: Sequence[Case], reference: Reference, bounds: Thresholds, gallery: Gallery
) -> Iterator[Check]:
    for case in cases:
        try:
            yield _picture(subject, backend, case, reference, bounds, gallery)
        except MsanError as error:
            yield Check(
                section="pictures", subject=subject, quantity="uint8", case=case.name, passed=False, detail=str(error)
            )
            return
    yield _twice(subject, backend, cases[0], bounds)


def _picture(
    subject: str, backend: Backend, case: Case, reference: Reference, bounds: Thresholds, gallery: Gallery
) -> Check:
    runner = TiledRunner(backend, tile=case.tile)
    (given,) = runner.run((case.picture,))
    expected = reference.tiled(case, runner.limits)
    threshold = bounds.of_pictures(backend.precision)
    worst, psnr_db = differences(expected, given, threshold.peak)
    tiles = len(runner.plan(*case.picture.shape[:2]))
    check = Check(
        section="pictures",
        subject=subject,
        quantity="uint8",
        case=case.name,
        passed=threshold.allows(worst, psnr_db),
        max_difference=worst,
        psnr_db=psnr_db,
        threshold=threshold,
        detail=f"in {tiles} tiles" if tiles > 1 else "",
    )
    gallery.look(check, case.picture, expected, given)
    return check


def _twice(subject: str, backend: Backend, case: Case, bounds: Thresholds) -> Check:
    runner = TiledRunner(backend, tile=case.tile)
    (first,) = runner.run((case.picture,))
    (second,) = runner.run((case.picture,))
    return steady_check(subject, "twice", case, levels_apart(first, second), bounds)


def _first_node(subject: str, backend: Backend, bundle: Bundle, case: Case, bounds: Thresholds) -> Check:
    """Where the backend leaves the graph that it runs."""
    entry = bundle.graph(prefer=(backend.precision,))
    if entry is None or backend.name not in LIBRARIES:
        detail = "a native engine shows no tensor but the picture: look at the first node of its graph"
        return _fault(subject, None, detail)
    kind = "fp16" if backend.name == "openvino-bf16" else backend.precision
    feed = {INPUT_NAME: sized(case.picture, SIDE_PX, SIDE_PX)[None]}
    model = onnx.load_model_from_string(bundle.read(entry.path))
    try:
        found = bisected_departure(LIBRARIES[backend.name], model, feed, tolerance=bounds.first_node[kind])
    except (MsanError, CalibrationError) as error:
        return _fault(subject, False, str(error))
    return _fault(subject, False, str(found or f"on {SIDE_PX}×{SIDE_PX} px every node of {entry.path} is well"))


def _fault(subject: str, passed: bool | None, detail: str) -> Check:
    return Check(section="tensors", subject=subject, quantity="first node", passed=passed, detail=detail)
