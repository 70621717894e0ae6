"""Pictures that somebody else's network made, matched to the pictures of a set."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from msan.data.readers import DatasetError, picture_files
from msan.evaluation.sets import EvaluationSet, MeasuredPair
from msan_runtime.contract import PictureArray
from msan_runtime.image import read_picture

__all__ = ["match_results", "read_result"]

NAMED_MAX = 3
"""Missing results that are named; the rest are counted."""

PATH_PARTS_MAX = 4
"""``split/scene/blur/picture``: folders further up belong to the machine, not to the data set."""


def match_results(folder: Path, chosen: EvaluationSet) -> Mapping[Path, Path]:
    """The result in ``folder`` of each picture of ``chosen`` that is to be measured, by the picture's file.

    A result carries the picture's name in the set (``GOPR0384_11_00/000001``), its path in the data set
    or the end of that, whatever its suffix; ``-`` and ``_`` may stand for ``/``. An ending counts only where it
    tells the pictures of the whole set apart. Where ``folder`` holds a folder of the set's name, the
    results are taken from that.

    Raises:
        DatasetError: if results are missing (named and counted), or two would do for one picture.
    """
    inner = folder / chosen.name
    base = inner if inner.is_dir() else folder
    results = _by_name(base)
    names = _names_in_set(chosen)
    found: dict[Path, Path] = {}
    missing: list[str] = []
    for name, file in chosen.files:
        files = next((results[key] for key in names[file] if key in results), [])
        if len(files) > 1:
            raise DatasetError(f"{files[0]} and {files[1]} could both be the result of {name}. Remove one")
        if files:
            found[file] = files[0]
        else:
            missing.append(name)
    if missing:
        raise DatasetError(_missing(base, missing, chosen))
    return found


def read_result(file: Path, pair: MeasuredPair) -> PictureArray:
    """Decode the result for ``pair``: uint8 H×W×3, of its size.

    Raises:
        DatasetError: if the size is another.
        PictureError: if it cannot be decoded.
    """
    pixels = read_picture(file).pixels
    if pixels.shape != pair.sharp.shape:
        found, wanted = (f"{shape[0]}×{shape[1]} px" for shape in (pixels.shape, pair.sharp.shape))
        raise DatasetError(f"{file} is {found}, but {pair.file} is to be {wanted}. Make the results again, uncropped")
    return pixels


def _by_name(folder: Path) -> Mapping[str, list[Path]]:
    """The pictures under ``folder`` by their path in it, as it is and flattened."""
    named: defaultdict[str, list[Path]] = defaultdict(list)
    for file in picture_files(folder):
        path = file.relative_to(folder).with_suffix("").as_posix()
        for key in {path, _flat(path)}:
            named[key].append(file)
    return named


def _names_in_set(chosen: EvaluationSet) -> Mapping[Path, Sequence[str]]:
    """What the result of each file may be called, likeliest first; each name means one picture of the set."""
    names = {file: _names(name, file) for name, file in chosen.all_files}
    uses = Counter(name for several in names.values() for name in several)
    return {file: [name for name in several if uses[name] == 1] for file, several in names.items()}


def _names(name: str, file: Path) -> list[str]:
    """The name in the set, then the file's path and its ends, longest first; each as it is and flattened."""
    parts = file.with_suffix("").parts
    paths = [name, *("/".join(parts[-length:]) for length in range(min(len(parts), PATH_PARTS_MAX), 0, -1))]
    # Scene and file name without the folder (blur) between them, which results have no use for.
    paths.append("/".join((*parts[-3:-2], parts[-1])))
    return list(dict.fromkeys(form for path in paths for form in (path, _flat(path))))


def _flat(path: str) -> str:
    return path.replace("/", "_").replace("-", "_")


def _missing(base: Path, missing: Sequence[str], chosen: EvaluationSet) -> str:
    named = ", ".join(missing[:NAMED_MAX]) + (", …" if len(missing) > NAMED_MAX else "")
    return f"{len(missing)} of {len(chosen.files)} results for {chosen.name} are missing in {base}: {named}"
