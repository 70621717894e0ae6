"""Evaluation: PSNR of deblurred pictures against the blurred input, picture by picture."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from msan.blurset import BLUR_SET_VERSION, BlurredPair
from msan.metrics import psnr_db
from msan.network import MsanNetwork
from msan_runtime.atomic import write_text
from msan_runtime.contract import PictureArray, pad_to, round_up
from msan_runtime.strictjson import strict_json

__all__ = ["Evaluation", "PictureScore", "deblur_with_network", "evaluate", "save_scores"]


@dataclass(frozen=True, kw_only=True)
class PictureScore:
    """PSNR of one picture against the sharp one, in dB, before and after deblurring."""

    name: str
    length_px: float
    blurred_db: float
    deblurred_db: float

    @property
    def gain_db(self) -> float:
        return self.deblurred_db - self.blurred_db


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of a set of pictures."""

    scores: tuple[PictureScore, ...]

    @property
    def blurred_db(self) -> float:
        """Mean PSNR of the blurred pictures."""
        return statistics.fmean(score.blurred_db for score in self.scores)

    @property
    def deblurred_db(self) -> float:
        """Mean PSNR of the deblurred pictures."""
        return statistics.fmean(score.deblurred_db for score in self.scores)

    @property
    def gain_db(self) -> float:
        """Mean gain over the blurred input."""
        return self.deblurred_db - self.blurred_db

    @property
    def worse(self) -> int:
        """Pictures that are worse after than before."""
        return sum(score.gain_db < 0 for score in self.scores)


def evaluate(
    pairs: Iterable[BlurredPair],
    deblur: Callable[[PictureArray], PictureArray],
    *,
    on_score: Callable[[PictureScore], None] | None = None,
) -> Evaluation:
    """Deblur every pair's blurred picture and score it against the sharp one."""
    scores: list[PictureScore] = []
    for pair in pairs:
        score = PictureScore(
            name=pair.name,
            length_px=pair.length_px,
            blurred_db=psnr_db(pair.blurred, pair.sharp),
            deblurred_db=psnr_db(deblur(pair.blurred), pair.sharp),
        )
        scores.append(score)
        if on_score is not None:
            on_score(score)
    return Evaluation(scores=tuple(scores))


def save_scores(evaluation: Evaluation, path: Path, model: str) -> None:
    """Write the scores as JSON, atomically; an infinite PSNR becomes ``"inf"``."""
    body = {
        "model": model,
        "blur_set_version": BLUR_SET_VERSION,
        "pictures": len(evaluation.scores),
        "blurred_db": evaluation.blurred_db,
        "deblurred_db": evaluation.deblurred_db,
        "gain_db": evaluation.gain_db,
        "worse": evaluation.worse,
        "versions": {"msan": version("msan"), "torch": version("torch")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "scores": [dataclasses.asdict(score) | {"gain_db": score.gain_db} for score in evaluation.scores],
    }
    write_text(path, strict_json(body))


def deblur_with_network(network: MsanNetwork, picture: PictureArray) -> PictureArray:
    """Deblur a uint8 H×W×3 picture with PyTorch in FP32, whole, rounded half to even: the reference."""
    height, width = picture.shape[:2]
    padded = pad_to(picture, round_up(height), round_up(width))
    blurred = torch.from_numpy(np.ascontiguousarray(padded)).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        sharp = network(blurred)[0, :, :height, :width]
    return (sharp.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
