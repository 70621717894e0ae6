"""What a training tells: log lines, progress, TensorBoard scalars and pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from msan.training.event_file import EventFile
from msan.training.run_folder import RunFolder
from msan.training.trainer import StepResult
from msan.training.validation import ValidationResult

__all__ = ["Monitor", "Progress"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a running training tells.

    Attributes:
        step: steps done, of ``steps``.
        loss: mean since the last report.
        learning_rate: of the last step.
        gradient_norm: of the last step, before clipping.
        images_per_s: of all processes, since the last report.
        waiting: share of that time in which the step waited for its data.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    images_per_s: float
    waiting: float


class Monitor:
    """Gathers steps into reports, and writes them to the log and to TensorBoard.

    Attributes:
        window: losses since the last report; part of the state, so that a resumed run reports the same means.
    """

    def __init__(
        self, folder: RunFolder, *, batch: int, tensorboard: bool, on_progress: Callable[[Progress], None] | None
    ) -> None:
        self.folder = folder
        self.batch = batch
        self.on_progress = on_progress
        self.window: list[float] = []
        self._tensorboard = tensorboard
        self._events: EventFile | None = None
        self._earlier_s = 0.0
        self._started = self._reported = time.perf_counter()
        self._steps = 0
        self._waited_s = 0.0

    @property
    def seconds(self) -> float:
        """Time that the run has taken so far, with what it took before it was resumed."""
        return self._earlier_s + time.perf_counter() - self._started

    def start(self, step: int) -> None:
        """Go on from ``step``: what was told of later ones is taken back."""
        self.folder.trim_log(step)
        if self._tensorboard:
            with self._writing():
                self._events = EventFile(self.folder.tensorboard, first_step=step + 1)
        self._started = self._reported = time.perf_counter()

    def add(self, result: StepResult, waited_s: float) -> None:
        """Take note of a step that waited ``waited_s`` for its data."""
        self.window.append(result.loss)
        self._steps += 1
        self._waited_s += waited_s

    def report(self, result: StepResult, *, step: int, steps: int, learning_rate: float) -> None:
        """Tell of the steps since the last report."""
        elapsed = time.perf_counter() - self._reported
        progress = Progress(
            step=step,
            steps=steps,
            loss=sum(self.window) / len(self.window),
            learning_rate=learning_rate,
            gradient_norm=result.gradient_norm,
            images_per_s=self._steps * self.batch / elapsed,
            waiting=self._waited_s / elapsed,
        )
        self.window.clear()
        self._steps, self._waited_s, self._reported = 0, 0.0, time.perf_counter()
        self._write(progress)
        if self.on_progress is not None:
            self.on_progress(progress)

    def validated(self, result: ValidationResult, step: int) -> None:
        """Tell of a validation."""
        line = {"blurred_db": round(result.blurred_db, 4), "deblurred_db": round(result.deblurred_db, 4)}
        self.folder.append({"step": step, "validation": line})
        if self._events is not None:
            with self._writing():
                scores = {"validation/psnr_db": result.deblurred_db, "validation/gain_db": result.gain_db}
                self._events.add_scalars(scores, step)
                self._events.add_picture("validation/blurred_deblurred_sharp", result.example, step)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to tell the same."""
        return {"window": list(self.window), "seconds": self.seconds}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.window = [float(loss) for loss in state["window"]]
        self._earlier_s = float(state["seconds"])

    def _write(self, progress: Progress) -> None:
        self.folder.append(
            {
                "step": progress.step,
                "loss": progress.loss,
                "lr": progress.learning_rate,
                "images_per_s": round(progress.images_per_s, 2),
                "waiting": round(progress.waiting, 4),
                "s": round(self.seconds, 1),
            }
        )
        if self._events is not None:
            names = ("loss", "learning_rate", "gradient_norm", "images_per_s", "waiting")
            with self._writing():
                self._events.add_scalars({f"training/{name}": getattr(progress, name) for name in names}, progress.step)

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise self.folder.cannot_write(self.folder.tensorboard, error) from error
