"""Readers of deblurring data sets: which layout lies in a folder, and the pairs of pictures in it.

Layouts, as published and as found on disk:

- ``gopro``, ``gopro-gamma``: ``GOPRO_Large/{train,test}/<scene>/{blur,blur_gamma,sharp}/NNNNNN.png``
  (Nah et al., CVPR 2017); ``gopro`` takes ``blur``, ``gopro-gamma`` takes ``blur_gamma``.
- ``hide``: ``HIDE_dataset/{train,test/test-close-ups,test/test-long-shot,GT}/*.png`` (Shen et al., ICCV 2019).
- ``realblur-j``, ``realblur-r``: ``RealBlur-{J,R}_…/sceneNNN/{gt/gt_M.png,blur/blur_M.png}`` with
  ``RealBlur_{J,R}_{train,test}_list.txt`` beside them (Rim et al., ECCV 2020).
- ``pairs``: ``{input,target}`` or ``{blur,sharp}``, also under ``{train,test}``; pictures of one path in
  both, whatever their suffixes.

Hidden files and whatever is no picture are not looked at. Pairs come sorted by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msan_runtime.contract import PictureArray
from msan_runtime.errors import MsanError
from msan_runtime.image import find_pictures, read_picture

__all__ = [
    "DatasetError",
    "LayoutName",
    "Pair",
    "PairSet",
    "Split",
    "find_pair_sets",
    "layout_of",
    "picture_files",
    "read_pair",
    "sharp_files",
]

LayoutName = Literal["gopro", "gopro-gamma", "hide", "realblur-j", "realblur-r", "pairs"]
Split = Literal["train", "test"]

SPLITS: tuple[Split, ...] = ("train", "test")

GOPRO_FOLDERS: dict[LayoutName, str] = {"gopro": "blur", "gopro-gamma": "blur_gamma"}
GOPRO_NAMES: dict[LayoutName, str] = {"gopro": "GoPro", "gopro-gamma": "GoPro (gamma)"}
HIDE_FOLDERS: Mapping[Split, Mapping[str, str]] = {
    "train": {"HIDE": "train"},
    "test": {"HIDE I": "test/test-long-shot", "HIDE II": "test/test-close-ups"},
}
REALBLUR_LAYOUTS: tuple[LayoutName, ...] = ("realblur-j", "realblur-r")
REALBLUR_LETTERS: dict[LayoutName, str] = {"realblur-j": "J", "realblur-r": "R"}
FLAT_FOLDERS = (("input", "target"), ("blur", "sharp"))

EXPECTED: dict[LayoutName, str] = {
    "gopro": "{train,test}/<scene>/{blur,sharp}",
    "gopro-gamma": "{train,test}/<scene>/{blur_gamma,sharp}",
    "hide": "GT beside train or test/test-long-shot and test/test-close-ups",
    "realblur-j": "RealBlur_J_test_list.txt beside RealBlur-J_…/sceneNNN/{gt,blur}",
    "realblur-r": "RealBlur_R_test_list.txt beside RealBlur-R_…/sceneNNN/{gt,blur}",
    "pairs": "input and target, or blur and sharp, there or under train and test",
}


BLURRED_FOLDERS = frozenset({"blur", "blur_gamma", "input"})
"""What folders of blurred pictures are called in the layouts of pairs."""


class DatasetError(MsanError):
    """A data set, or a folder of pictures, that cannot be trained or measured on."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The files of one blurred picture and of its sharp partner.

    Attributes:
        name: unique in its set; the path in it without suffix, such as ``GOPR0384_11_00/000001``.
        blurred: the blurred picture's file.
        sharp: the sharp picture's file.
    """

    name: str
    blurred: Path
    sharp: Path


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """The pairs that one row or column of a table is measured on.

    Attributes:
        name: ``GoPro``, ``GoPro (gamma)``, ``HIDE I`` (long-shot), ``HIDE II`` (close-ups), ``HIDE`` (train),
            ``RealBlur-J``, ``RealBlur-R``, ``RealBlur-J (all)`` without its lists; of ``pairs`` the folder's name.
        layout: how the pairs lie on disk.
        split: the part taken; ``None`` for ``pairs`` that lie there without one, and for RealBlur without lists.
        pairs: at least one, of different names.

    Raises:
        DatasetError: if there is no pair, or two have one name.
    """

    name: str
    layout: LayoutName
    split: Split | None
    pairs: tuple[Pair, ...]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise DatasetError(f"{self.name} has no pair of pictures")
        seen: set[str] = set()
        for pair in self.pairs:
            if pair.name in seen:
                raise DatasetError(f"{self.name} has two pairs named {pair.name}. Remove or rename one")
            seen.add(pair.name)


def picture_files(folder: Path) -> list[Path]:
    """Every picture file under ``folder``, sorted by its path in it; hidden ones are left out.

    Raises:
        DatasetError: if there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise DatasetError(f"no folder of pictures at {folder}")
    # Archives packed on a Mac bring a hidden ._NAME.png, which is no picture, for each picture.
    files = [file for file in find_pictures(folder) if not _hidden(file.relative_to(folder))]
    if not files:
        raise DatasetError(f"no JPEG, PNG, WebP or TIFF picture under {folder}")
    return files


def sharp_files(folder: Path) -> list[Path]:
    """Every picture file under a folder of sharp pictures, as ``picture_files``.

    Raises:
        DatasetError: besides, if blurred ones are among them, by the name of their folder.
    """
    files = picture_files(folder)
    blurred = next((f for f in files if BLURRED_FOLDERS & set(f.relative_to(folder).parts[:-1])), None)
    if blurred is not None:
        raise DatasetError(
            f"{folder} holds blurred pictures ({blurred.relative_to(folder)}), but no layout of pairs is recognised: "
            "give the data set's own folder, the one that holds train and test"
        )
    return files


def read_pair(pair: Pair) -> tuple[PictureArray, PictureArray]:
    """Decode a pair: (blurred, sharp), each uint8 H×W×3, of one size.

    Raises:
        DatasetError: if the sizes differ.
        PictureError: if one cannot be read.
    """
    blurred, sharp = read_picture(pair.blurred).pixels, read_picture(pair.sharp).pixels
    if blurred.shape != sharp.shape:
        sizes = [f"{height}×{width} px" for height, width, _ in (blurred.shape, sharp.shape)]
        raise DatasetError(f"{pair.blurred} is {sizes[0]} but its sharp partner {pair.sharp} is {sizes[1]}")
    return blurred, sharp


def layout_of(root: Path) -> LayoutName | None:
    """The layout of what lies in ``root``, or ``None`` if it is none of pairs or no folder.

    GoPro is ``gopro`` wherever ``blur`` is there. Of a RealBlur root that holds both sets, ``realblur-j``.
    """
    if not root.is_dir():
        return None
    if _flat_folders(root) is not None:
        return "pairs"
    if present := _realblur_present(root):
        return present[0]
    if _hide_base(root) is not None:
        return "hide"
    if (base := _gopro_base(root)) is not None:
        return "gopro" if any((scene / "blur").is_dir() for scene in _gopro_scenes(base)) else "gopro-gamma"
    return "pairs" if any(_flat_folders(root / split) for split in SPLITS) else None


def find_pair_sets(root: Path, *, layout: LayoutName | None = None, split: Split = "test") -> tuple[PairSet, ...]:
    """The sets of pairs under ``root``: two of HIDE's test split and of a root with both RealBlurs, else one.

    Args:
        root: the data set's folder, or (``GOPRO_Large``, ``HIDE_dataset``, ``RealBlur``) the one that holds it.
        layout: how the pairs lie there; ``None``: by ``layout_of``, both sets of a RealBlur root.
        split: the part to take. ``pairs`` that lie there without one are taken as they are.

    RealBlur's splits are told by its list files alone. Without them the test split is every scene, named
    ``RealBlur-J (all)``, of split ``None``; the train split is refused, for it would hold the test pictures.

    Raises:
        DatasetError: for a folder that is not there or empty, no such layout or split, a blurred or a sharp
            picture without its partner, two pictures of one name, or a list that names a missing file.
            (HIDE's sharp pictures of both splits lie in one folder: those left over are not looked at.)
    """
    if not root.is_dir():
        raise DatasetError(f"no folder of pairs at {root}")
    if not any(not _hidden(Path(path.name)) for path in root.iterdir()):
        raise DatasetError(f"the folder of pairs {root} is empty")
    found = layout or layout_of(root)
    if found is None:
        raise DatasetError(
            f"no pairs found under {root}: expected {EXPECTED['pairs']}; or GoPro, HIDE or RealBlur as published"
        )
    if found in GOPRO_FOLDERS:
        return (_gopro_set(_needed(_gopro_base(root), root, found), found, split),)
    if found == "hide":
        return _hide_sets(_needed(_hide_base(root), root, found), split)
    if found in REALBLUR_LAYOUTS:
        wanted: list[LayoutName] = _realblur_present(root) if layout is None else [layout]
        return tuple(_realblur_set(_needed(_realblur_base(root, one), root, one), one, split) for one in wanted)
    return (_flat_set(root, split),)


def _needed(base: Path | None, root: Path, layout: LayoutName) -> Path:
    if base is None:
        raise DatasetError(f"{root} is not laid out as {layout}: expected {EXPECTED[layout]}")
    return base


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _folders(folder: Path) -> list[Path]:
    """The folders in ``folder``, sorted; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(Path(path.name)))


def _base(root: Path, published_name: str, holds: Callable[[Path], bool]) -> Path | None:
    """``root``, or the folder of the published name in it: the first that holds the data set."""
    return next((base for base in (root, root / published_name) if holds(base)), None)


def _pictures_by_name(folder: Path, *, prefix: str = "") -> dict[str, Path]:
    """Pictures under ``folder`` by ``prefix`` and their path in it without suffix; none if it is not there."""
    named: dict[str, Path] = {}
    for file in find_pictures(folder):
        inner = file.relative_to(folder)
        if _hidden(inner):
            continue
        name = prefix + inner.with_suffix("").as_posix()
        if name in named:
            raise DatasetError(f"{named[name]} and {file} differ in their suffix only. Remove or rename one")
        named[name] = file
    return named


def _matched(blurred: Mapping[str, Path], sharp: Mapping[str, Path], where: Path) -> tuple[Pair, ...]:
    """Pairs of one name, sorted by it, if every picture has its partner."""
    _check_partners("blurred", blurred, "sharp", sharp, where)
    _check_partners("sharp", sharp, "blurred", blurred, where)
    return _pairs_of(blurred, sharp)


def _pairs_of(blurred: Mapping[str, Path], sharp: Mapping[str, Path]) -> tuple[Pair, ...]:
    return tuple(Pair(name=name, blurred=blurred[name], sharp=sharp[name]) for name in sorted(blurred))


def _check_partners(kind: str, these: Mapping[str, Path], other: str, those: Mapping[str, Path], where: Path) -> None:
    if not these:
        raise DatasetError(f"no {kind} JPEG, PNG, WebP or TIFF picture under {where}")
    lonely = sorted(these.keys() - those.keys())
    if lonely:
        raise DatasetError(
            f"{len(lonely)} of {len(these)} {kind} pictures under {where} have no {other} partner, "
            f"first: {these[lonely[0]]}"
        )


def _gopro_base(root: Path) -> Path | None:
    return _base(root, "GOPRO_Large", lambda base: any((scene / "sharp").is_dir() for scene in _gopro_scenes(base)))


def _gopro_scenes(base: Path) -> Iterable[Path]:
    return (scene for split in SPLITS for scene in _folders(base / split))


def _gopro_set(base: Path, layout: LayoutName, split: Split) -> PairSet:
    blurred: dict[str, Path] = {}
    sharp: dict[str, Path] = {}
    for scene in _folders(base / split):
        blurred |= _pictures_by_name(scene / GOPRO_FOLDERS[layout], prefix=f"{scene.name}/")
        sharp |= _pictures_by_name(scene / "sharp", prefix=f"{scene.name}/")
    pairs = _matched(blurred, sharp, base / split)
    return PairSet(name=GOPRO_NAMES[layout], layout=layout, split=split, pairs=pairs)


def _hide_base(root: Path) -> Path | None:
    blurred = [folder for split in SPLITS for folder in HIDE_FOLDERS[split].values()]
    return _base(
        root,
        "HIDE_dataset",
        lambda base: (base / "GT").is_dir() and any((base / folder).is_dir() for folder in blurred),
    )


def _hide_sets(base: Path, split: Split) -> tuple[PairSet, ...]:
    sharp = _pictures_by_name(base / "GT")
    sets: list[PairSet] = []
    for name, inner in HIDE_FOLDERS[split].items():
        blurred = _pictures_by_name(base / inner)
        _check_partners("blurred", blurred, "sharp", sharp, base / inner)
        sets.append(PairSet(name=name, layout="hide", split=split, pairs=_pairs_of(blurred, sharp)))
    return tuple(sets)


def _realblur_present(root: Path) -> list[LayoutName]:
    """The RealBlur sets there: those with pictures, or, if none has any, those with a list."""
    # The list files of both come together, also where only one of the sets was unpacked.
    pictured: list[LayoutName] = [layout for layout in REALBLUR_LAYOUTS if _pictured_base(root, layout)]
    return pictured or [layout for layout in REALBLUR_LAYOUTS if _listed_base(root, layout)]


def _realblur_base(root: Path, layout: LayoutName) -> Path | None:
    return _pictured_base(root, layout) or _listed_base(root, layout)


def _pictured_base(root: Path, layout: LayoutName) -> Path | None:
    return _base(root, "RealBlur", lambda base: bool(_realblur_folders(base, REALBLUR_LETTERS[layout])))


def _listed_base(root: Path, layout: LayoutName) -> Path | None:
    letter = REALBLUR_LETTERS[layout]
    return _base(root, "RealBlur", lambda base: any(_realblur_list(base, letter, one).is_file() for one in SPLITS))


def _realblur_folders(base: Path, letter: str) -> list[Path]:
    return [folder for folder in _folders(base) if folder.name.startswith(f"RealBlur-{letter}")]


def _realblur_set(base: Path, layout: LayoutName, split: Split) -> PairSet:
    letter = REALBLUR_LETTERS[layout]
    file = _realblur_list(base, letter, split)
    if file.is_file():
        return PairSet(name=f"RealBlur-{letter}", layout=layout, split=split, pairs=_listed_pairs(file))
    if split == "train" or any(_realblur_list(base, letter, other).is_file() for other in SPLITS):
        raise DatasetError(
            f"{base} has no {file.name}, which alone tells RealBlur-{letter}'s {split} pairs. "
            "Put it there: it comes with the data set"
        )
    return PairSet(name=f"RealBlur-{letter} (all)", layout=layout, split=None, pairs=_unlisted_pairs(base, letter))


def _realblur_list(base: Path, letter: str, split: Split) -> Path:
    return base / f"RealBlur_{letter}_{split}_list.txt"


def _listed_pairs(file: Path) -> tuple[Pair, ...]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} is not a text file. Take the list that comes with the data set") from error
    pairs = [_listed_pair(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    missing = [path for pair in pairs for path in (pair.blurred, pair.sharp) if not path.is_file()]
    if missing:
        raise DatasetError(f"{file} names {len(missing)} pictures that are not there, first: {missing[0]}")
    return tuple(sorted(pairs, key=lambda pair: pair.name))


def _listed_pair(file: Path, number: int, line: str) -> Pair:
    """A pair of a line ``RealBlur-J_…/scene230/gt/gt_7.png RealBlur-J_…/scene230/blur/blur_7.png``."""
    paths = [file.parent / word for word in line.split()]
    names = [_realblur_name(path) for path in paths]
    if [path.parent.name for path in paths] != ["gt", "blur"] or names[0] != names[1]:
        raise DatasetError(
            f"{file}, line {number}: expected '…/sceneNNN/gt/gt_M.png …/sceneNNN/blur/blur_M.png', not {line.strip()!r}"
        )
    sharp, blurred = paths
    return Pair(name=names[0], blurred=blurred, sharp=sharp)


def _realblur_name(path: Path) -> str:
    """``scene230/7`` of ``…/scene230/gt/gt_7.png`` and of ``…/scene230/blur/blur_7.png``."""
    return f"{path.parent.parent.name}/{path.stem.removeprefix(path.parent.name + '_')}"


def _unlisted_pairs(base: Path, letter: str) -> tuple[Pair, ...]:
    folders = _realblur_folders(base, letter)
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise DatasetError(
            f"{base} has {len(folders)} folders of RealBlur-{letter} ({names}). Keep one, or add its list"
        )
    scenes = _folders(folders[0])
    blurred, sharp = (
        {_realblur_name(file): file for scene in scenes for file in _pictures_by_name(scene / kind).values()}
        for kind in ("blur", "gt")
    )
    return _matched(blurred, sharp, folders[0])


def _flat_folders(root: Path) -> tuple[Path, Path] | None:
    """The folders of blurred and of sharp pictures directly in ``root``."""
    both = ((root / blurred, root / sharp) for blurred, sharp in FLAT_FOLDERS)
    return next((folders for folders in both if all(folder.is_dir() for folder in folders)), None)


def _flat_set(root: Path, split: Split) -> PairSet:
    taken: Split | None = None
    folders = _flat_folders(root)
    if folders is None:
        taken = split
        folders = _flat_folders(root / split)
    if folders is None:
        raise DatasetError(f"{root} has no {split} pairs: expected {EXPECTED['pairs']}")
    blurred, sharp = (_pictures_by_name(folder) for folder in folders)
    pairs = _matched(blurred, sharp, folders[0].parent)
    name = root.name if root.name not in ("", "..") else root.resolve().name
    return PairSet(name=name, layout="pairs", split=taken, pairs=pairs)
