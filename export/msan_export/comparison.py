"""Two bundles side by side: what they are, what they give for the same pictures on the same backend, and how fast."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from msan_export.acceptance.figures import differences
from msan_export.acceptance.verdict import Case
from msan_export.bundle_facts import facts_of
from msan_export.versions import TOOLS
from msan_runtime import Deblurrer
from msan_runtime.bench.timing import interleaved, paired_ratio
from msan_runtime.bundle import Bundle
from msan_runtime.contract import PictureArray
from msan_runtime.errors import BackendError, BundleError
from msan_runtime.machine import describe_machine
from msan_runtime.manifest import read_manifest
from msan_runtime.select import select_backend

__all__ = ["ROUNDS", "BundleComparison", "ComparedPicture", "Fact", "Side", "Timing", "compare_bundles"]

ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two bundles.

    Attributes:
        name: of its folder; with the folder around it where both are called the same.
        manifest_sha256: of its manifest file.
        precision: of what was run.
    """

    name: str
    manifest_sha256: str
    precision: str


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One thing that both bundles are, or one of them; ``None`` where a bundle has no such thing."""

    group: str
    name: str
    a: str | None
    b: str | None

    @property
    def same(self) -> bool:
        """Whether both say the same."""
        return self.a == self.b


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedPicture:
    """What both bundles give for one picture.

    Attributes:
        case: its name.
        max_difference: largest difference between ``a`` and ``b``, in levels of 255.
        psnr_db: between ``a`` and ``b``, with peak 255; infinite if they are equal.
        blurred, a, b: the input and both results, uint8 H×W×3.
    """

    case: str
    max_difference: float
    psnr_db: float
    blurred: PictureArray
    a: PictureArray
    b: PictureArray


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of one picture, both bundles by turns in one run; they say nothing of another machine.

    Attributes:
        height, width: of the picture, in pixels.
        rounds: how often each ran.
        a_ms, b_ms: medians.
        ratio: median over the rounds of B's time over A's.
    """

    height: int
    width: int
    rounds: int
    a_ms: float
    b_ms: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class BundleComparison:
    """Everything that was compared. Differences are no failures.

    Attributes:
        a, b: the bundles.
        facts: what they are.
        backend: that both ran on.
        pictures: what they give, those that differ most first.
        timing: how long they take.
        machine: of :func:`msan_runtime.machine.describe_machine`.
    """

    a: Side
    b: Side
    facts: tuple[Fact, ...]
    backend: str
    pictures: tuple[ComparedPicture, ...]
    timing: Timing
    machine: dict[str, object]

    @property
    def different(self) -> tuple[Fact, ...]:
        """Facts that are not the same."""
        return tuple(fact for fact in self.facts if not fact.same)

    @property
    def same(self) -> tuple[Fact, ...]:
        """Facts that are the same."""
        return tuple(fact for fact in self.facts if fact.same)


def compare_bundles(
    a: Bundle, b: Bundle, cases: Sequence[Case], *, backend: str = "auto", rounds: int = ROUNDS
) -> BundleComparison:
    """Compare what two bundles are, and what they give for ``cases`` on one backend.

    Args:
        a: the one that differences are told from.
        b: the other.
        cases: pictures, at least one. The largest is timed.
        backend: by name; ``auto`` is the fastest for ``a``.
        rounds: timed runs of each.

    Raises:
        BundleError: if there is no picture, or the figures in a bundle cannot be read.
        BackendError: if one of them does not run on the backend.
    """
    if not cases:
        raise BundleError("no picture to compare on. Give a folder that holds one")
    facts = _facts(a, b)
    with ExitStack() as stack:
        first = stack.enter_context(Deblurrer(a, select_backend(a, backend)))
        second = stack.enter_context(_opened_like(first, b))
        pictures = [_compared(case, first, second) for case in cases]
        timing = _timed(max((case.picture for case in cases), key=lambda picture: picture.size), first, second, rounds)
        names = _names(a, b)
        sides = (_side(names[0], first), _side(names[1], second))
        name = first.backend.name
    return BundleComparison(
        a=sides[0],
        b=sides[1],
        facts=facts,
        backend=name,
        pictures=tuple(sorted(pictures, key=lambda picture: picture.psnr_db)),
        timing=timing,
        machine=describe_machine(TOOLS),
    )


def _facts(a: Bundle, b: Bundle) -> tuple[Fact, ...]:
    """Facts of both, a group's together."""
    of_a, of_b = facts_of(a), facts_of(b)
    names = dict.fromkeys((*of_a, *of_b))
    groups = list(dict.fromkeys(group for group, _ in names))
    return tuple(
        Fact(group=key[0], name=key[1], a=of_a.get(key), b=of_b.get(key))
        for key in sorted(names, key=lambda key: groups.index(key[0]))
    )


def _opened_like(first: Deblurrer, bundle: Bundle) -> Deblurrer:
    """``bundle`` on the backend of ``first``."""
    name = first.backend.name
    try:
        return Deblurrer(bundle, select_backend(bundle, name))
    except BackendError as error:
        raise BackendError(
            f"{bundle.folder} does not run on {name}, as {first.bundle.folder} does: {error}. "
            "Name a backend that runs both with --backend"
        ) from error


def _names(a: Bundle, b: Bundle) -> tuple[str, str]:
    """Names of their folders, with the folders around these where they are equal."""
    first, second = a.folder.resolve(), b.folder.resolve()
    if first.name != second.name:
        return first.name, second.name
    return f"{first.parent.name}/{first.name}", f"{second.parent.name}/{second.name}"


def _side(name: str, deblurrer: Deblurrer) -> Side:
    return Side(
        name=name,
        manifest_sha256=hashlib.sha256(read_manifest(deblurrer.bundle.folder)).hexdigest(),
        precision=deblurrer.backend.precision,
    )


def _compared(case: Case, first: Deblurrer, second: Deblurrer) -> ComparedPicture:
    a, b = first.deblur(case.picture), second.deblur(case.picture)
    worst, psnr_db = differences(a, b, 255.0)
    return ComparedPicture(case=case.name, max_difference=worst, psnr_db=psnr_db, blurred=case.picture, a=a, b=b)


def _timed(picture: PictureArray, first: Deblurrer, second: Deblurrer, rounds: int) -> Timing:
    contiguous = np.ascontiguousarray(picture)
    times = interleaved({"a": lambda: first.deblur(contiguous), "b": lambda: second.deblur(contiguous)}, rounds)
    a, b = times["a"], times["b"]
    height, width = picture.shape[:2]
    return Timing(
        height=height,
        width=width,
        rounds=rounds,
        a_ms=a.percentile_ms(50),
        b_ms=b.percentile_ms(50),
        ratio=paired_ratio(b, a),
    )
