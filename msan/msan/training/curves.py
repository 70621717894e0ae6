"""The curves of a training run as a picture: loss, learning rate, and PSNR on the validation pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msan.training.run_folder import RunFolder, read_log
from msan_runtime.atomic import replacing
from msan_runtime.errors import MissingExtraError, MsanError

__all__ = ["CurvesError", "save_curves"]

SMOOTHED_OVER = 25
"""Log lines that the drawn line of the loss is the mean of."""


class CurvesError(MsanError):
    """A folder without a run to draw."""


def save_curves(folder: Path, path: Path) -> None:
    """Draw the log of the run in ``folder`` to a PNG file.

    Raises:
        CurvesError: if there is no log, or nothing in it yet.
        MissingExtraError: without matplotlib.
    """
    run = RunFolder(folder)
    if not run.log.is_file():
        raise CurvesError(f"no training run in {folder}: there is no {run.log.name}")
    lines = read_log(run.log)
    losses = [line for line in lines if "loss" in line]
    if not losses:
        raise CurvesError(f"{run.log} holds no step yet")
    if path.suffix.lower() != ".png" or path.is_dir() or not path.parent.is_dir():
        raise CurvesError(f"cannot write {path}: give the name of a .png file in a folder that is there")
    figure = _figure(losses, [line for line in lines if "validation" in line])
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _figure(losses: Sequence[dict[str, Any]], validations: Sequence[dict[str, Any]]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "train") from error
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_loss(left, losses)
    _draw_validation(right, validations)
    return figure


def _draw_loss(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    steps = [line["step"] for line in lines]
    values = [line["loss"] for line in lines]
    axes.plot(steps, values, color="0.8", linewidth=0.8)
    axes.plot(steps, _smoothed(values), color="tab:blue", label="loss")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    rate = axes.twinx()
    rate.plot(steps, [line["lr"] for line in lines], color="tab:orange", linewidth=1)
    rate.set_ylabel("learning rate", color="tab:orange")


def _draw_validation(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    axes.set(xlabel="step", ylabel="PSNR on validation pictures, dB")
    if not lines:
        axes.text(0.5, 0.5, "no validation", ha="center", transform=axes.transAxes)
        return
    steps = [line["step"] for line in lines]
    axes.plot(steps, [line["validation"]["deblurred_db"] for line in lines], marker=".", label="deblurred")
    axes.axhline(lines[0]["validation"]["blurred_db"], color="0.5", linestyle="--", label="blurred")
    axes.legend()


def _smoothed(values: Sequence[float]) -> list[float]:
    """Mean over the last ``SMOOTHED_OVER`` values, as far as there are."""
    windows = (values[max(0, end - SMOOTHED_OVER) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]
