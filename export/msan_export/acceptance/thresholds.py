"""What a conversion must reach to pass: read from one TOML file, set before anything is measured."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msan_runtime.errors import MsanError

__all__ = ["DEFAULT_FILE", "Threshold", "Thresholds", "ThresholdsError", "read_thresholds"]

DEFAULT_FILE = Path(__file__).with_name("thresholds.toml")


class ThresholdsError(MsanError):
    """A file of thresholds that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Bounds on the difference to PyTorch in FP32.

    Attributes:
        max_difference: largest absolute difference of any value: in [0, 1] units for float
            pictures, in grey levels for uint8.
        psnr_db: least PSNR, with peak 1.0 or 255.
        peak: 1.0 for float pictures, 255 for uint8.
    """

    max_difference: float
    psnr_db: float
    peak: float

    def allows(self, max_difference: float, psnr_db: float) -> bool:
        """Whether both figures are within bounds; not-a-number never is."""
        return max_difference <= self.max_difference and psnr_db >= self.psnr_db and not math.isnan(psnr_db)


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """All bounds of ``msan verify``; ``thresholds.toml`` says what each is for.

    Attributes:
        float_fp32, uint8, quantized: of pictures.
        steady_levels: of two runs, in levels of 255.
        black_share: of a picture's pixels that are black where the reference is not.
        pairs_loss_db: of mean PSNR against sharp pictures, by precision: the upper end of its 95 % confidence interval.
        first_node: relative RMS error from which a node is named, by precision.
    """

    float_fp32: Threshold
    uint8: Threshold
    quantized: Threshold
    steady_levels: float
    black_share: float
    pairs_loss_db: Mapping[str, float]
    first_node: Mapping[str, float]

    def of_pictures(self, precision: str) -> Threshold:
        """The bounds of saved pictures of a graph or engine of ``precision``."""
        return self.quantized if precision in ("int8", "fp8") else self.uint8

    def of_tensors(self, precision: str) -> Threshold:
        """The bounds of tensors and pictures before rounding; below FP32 those of saved pictures, in shares of 1."""
        if precision == "fp32":
            return self.float_fp32
        pictures = self.of_pictures(precision)
        return Threshold(max_difference=pictures.max_difference / pictures.peak, psnr_db=pictures.psnr_db, peak=1.0)


def read_thresholds(path: Path | None = None) -> Thresholds:
    """The bounds in ``path``, and the shipped ones where it says nothing.

    Raises:
        ThresholdsError: if it cannot be read, or names or values in it are unknown.
    """
    values = _parsed(DEFAULT_FILE)
    if path is not None:
        for table, changes in _parsed(path).items():
            checked = _checked(path, table, changes, values)
            values[table] = {**values[table], **checked}
    pictures = {
        name: Threshold(**values[name], peak=peak)
        for name, peak in (("float_fp32", 1.0), ("uint8", 255.0), ("quantized", 255.0))
    }
    return Thresholds(
        **pictures,
        steady_levels=values["steady"]["max_difference"],
        black_share=values["scan"]["black_share"],
        pairs_loss_db=values["pairs_loss_db"],
        first_node=values["first_node"],
    )


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ThresholdsError(f"cannot read the thresholds in {path}: {error}") from error


def _checked(path: Path, table: str, changes: object, known: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The changes of one table, all of them known and numbers that can bound something."""
    if table not in known or not isinstance(changes, dict):
        raise ThresholdsError(f"{path} has {table!r}; there are the tables {', '.join(known)}")
    checked: dict[str, float] = {}
    for name, value in changes.items():
        if name not in known[table]:
            raise ThresholdsError(f"{path}, [{table}] has {name!r}; there are {', '.join(known[table])}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ThresholdsError(f"{path}, [{table}] {name} is a number of 0 or more, not {value!r}")
        checked[str(name)] = float(value)
    return checked
