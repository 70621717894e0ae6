"""Sets of pictures to measure on: data sets of pairs, and sharp pictures under the fixed blur set."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from msan.data.readers import (
    DatasetError,
    LayoutName,
    Pair,
    PairSet,
    Split,
    find_pair_sets,
    layout_of,
    picture_files,
    read_pair,
    sharp_files,
)
from msan_runtime.contract import PictureArray
from msan_runtime.errors import MissingExtraError, MsanError

__all__ = [
    "BlurredPictures",
    "EvaluationLayout",
    "EvaluationSet",
    "MeasuredPair",
    "OnBad",
    "PairedPictures",
    "find_evaluation_sets",
]

EvaluationLayout = LayoutName | Literal["blur-set"]

OnBad = Callable[[str, str], None]
"""Called with the name of a picture that is left out, and the reason."""


@dataclass(frozen=True, kw_only=True)
class MeasuredPair:
    """A blurred and a sharp picture, uint8 H×W×3 of one shape.

    Attributes:
        name: in its set.
        file: the blurred picture's file; of the fixed blur set the sharp one's.
        length_px: of the camera's path, where that is known (the fixed blur set).
    """

    name: str
    file: Path
    blurred: PictureArray
    sharp: PictureArray
    length_px: float | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationSet(ABC):
    """A set of pictures, read one at a time.

    Attributes:
        name: for tables.
        root: the folder it was found under.
        limit: only so many from the first on are measured; ``None`` for all.
    """

    name: str
    root: Path
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise DatasetError(f"at least one picture must be measured, not {self.limit}")

    @property
    @abstractmethod
    def layout(self) -> EvaluationLayout:
        """How the pictures lie on disk."""

    @property
    @abstractmethod
    def split(self) -> Split | None:
        """The part of the data set; ``None`` where there are no parts."""

    @property
    @abstractmethod
    def all_files(self) -> tuple[tuple[str, Path], ...]:
        """Name and file of every picture found, in order."""

    @property
    def files(self) -> tuple[tuple[str, Path], ...]:
        """Name and file of each picture that is to be measured."""
        return self.all_files[: self.limit]

    @abstractmethod
    def pairs(self, *, on_bad: OnBad | None = None) -> Iterator[MeasuredPair]:
        """The pairs to be measured, each decoded when its turn comes.

        Raises:
            MsanError: for a picture that cannot be used, unless ``on_bad`` takes note of it.
        """


@dataclass(frozen=True, kw_only=True)
class PairedPictures(EvaluationSet):
    """A data set of blurred and sharp pictures."""

    source: PairSet

    @property
    def layout(self) -> EvaluationLayout:
        return self.source.layout

    @property
    def split(self) -> Split | None:
        return self.source.split

    @property
    def all_files(self) -> tuple[tuple[str, Path], ...]:
        return tuple((pair.name, pair.blurred) for pair in self.source.pairs)

    def pairs(self, *, on_bad: OnBad | None = None) -> Iterator[MeasuredPair]:
        for pair in self.source.pairs[: self.limit]:
            try:
                read = _read(pair)
            except MsanError as error:
                if on_bad is None:
                    raise
                on_bad(pair.name, str(error))
            else:
                yield read


@dataclass(frozen=True, kw_only=True)
class BlurredPictures(EvaluationSet):
    """Sharp pictures, blurred with the fixed blur set (docs/blur-set.md). Needs PyTorch.

    A picture's blur follows from its place among all, so none can be left out: a bad one always ends it.
    """

    source: tuple[Path, ...]

    @property
    def version(self) -> int:
        """Of the fixed blur set."""
        return _blur_set().BLUR_SET_VERSION

    @property
    def layout(self) -> EvaluationLayout:
        return "blur-set"

    @property
    def split(self) -> Split | None:
        return None

    @property
    def all_files(self) -> tuple[tuple[str, Path], ...]:
        ordered = sorted(self.source, key=lambda file: (file.name, file))
        return tuple((file.name, file) for file in ordered)

    def pairs(self, *, on_bad: OnBad | None = None) -> Iterator[MeasuredPair]:
        del on_bad
        blurred = _blur_set().fixed_blur_set([file for _, file in self.all_files])
        for (name, file), pair in zip(self.files, itertools.islice(blurred, self.limit), strict=True):
            yield MeasuredPair(name=name, file=file, blurred=pair.blurred, sharp=pair.sharp, length_px=pair.length_px)


def find_evaluation_sets(
    roots: Sequence[Path],
    *,
    layout: EvaluationLayout | None = None,
    split: Split = "test",
    limit: int | None = None,
) -> tuple[EvaluationSet, ...]:
    """The sets of pictures under each root, in order.

    Args:
        roots: folders of data sets, or of plain sharp pictures: these are the fixed blur set.
        layout: of all of them; ``None`` to recognise each one's.
        split: the part of those that have parts.
        limit: measure only so many of each set.

    Raises:
        DatasetError: for a root without pictures or pairs, or two sets of one name.
    """
    found = tuple(one for root in roots for one in _sets_of(root, layout, split, limit))
    for index, one in enumerate(found):
        twin = next((other for other in found[:index] if other.name == one.name), None)
        if twin is not None:
            raise DatasetError(
                f"{twin.root} and {one.root} both give a set named {one.name}. Evaluate them one after the other"
            )
    return found


def _sets_of(root: Path, layout: EvaluationLayout | None, split: Split, limit: int | None) -> tuple[EvaluationSet, ...]:
    if layout == "blur-set" or (layout is None and layout_of(root) is None):
        # Asked for by name, the pictures are taken as they are.
        files = tuple(picture_files(root) if layout == "blur-set" else sharp_files(root))
        return (BlurredPictures(name=root.resolve().name, root=root, limit=limit, source=files),)
    sets = find_pair_sets(root, layout=layout, split=split)
    return tuple(PairedPictures(name=one.name, root=root, limit=limit, source=one) for one in sets)


def _read(pair: Pair) -> MeasuredPair:
    blurred, sharp = read_pair(pair)
    return MeasuredPair(name=pair.name, file=pair.blurred, blurred=blurred, sharp=sharp)


def _blur_set() -> ModuleType:
    try:
        from msan.degradation import blurset
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "train") from error
    return blurset
