"""Training: the loop from pictures to checkpoints. It resumes to the bit, alone or under ``torchrun``.

Each sample is a function of the seed and its index, so a run that was stopped, at any moment and in any way,
sees when resumed what an uninterrupted one would have seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from msan.data.datasets import Batch, tensors_from_batch
from msan.data.loader import DataOptions, TrainingData, batches, open_data
from msan.data.readers import DatasetError, find_pair_sets, layout_of, sharp_files
from msan.training.distributed import Team
from msan.training.monitor import Monitor, Progress
from msan.training.recipe import TrainConfig
from msan.training.run_folder import RunFolder
from msan.training.schedule import Schedule, plan_schedule
from msan.training.trainer import NotFiniteError, StepResult, Trainer
from msan.training.validation import ValidationSet, open_validation
from msan_runtime.errors import MsanError

__all__ = ["Progress", "TrainError", "TrainOptions", "TrainResult", "TrainStoppedError", "train"]


class TrainError(MsanError):
    """A training run that cannot go on."""


class TrainStoppedError(MsanError):
    """Training was stopped as asked, and can go on."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a training runs; nothing here changes its result.

    Attributes:
        data: how pictures are read.
        validate: a folder of pairs (their test split) or of sharp pictures in place of what the recipe holds back.
        skip_bad: pass over pictures that cannot be decoded, naming and counting them; otherwise stop at the first.
        report_every: steps between log lines.
        save_every: steps between saved states.
        tensorboard: write scalars and pictures for TensorBoard.
        on_progress: called at each report.
        should_stop: asked after each step; once it says yes, the state is saved and training ends.
    """

    data: DataOptions = field(default_factory=DataOptions)
    validate: Path | None = None
    skip_bad: bool = False
    report_every: int = 20
    save_every: int = 200
    tensorboard: bool = False
    on_progress: Callable[[Progress], None] | None = None
    should_stop: Callable[[], bool] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished training: its weights, and the pictures that could not be decoded, name to reason."""

    last: Path
    best: Path | None
    bad: dict[str, str]


def train(
    roots: Sequence[Path], folder: Path, config: TrainConfig, team: Team, options: TrainOptions | None = None
) -> TrainResult:
    """Train a network; go on where ``folder`` left off.

    Args:
        roots: folders of pairs (recognised by their layout) and of sharp pictures (blurred synthetically).
        folder: of the run; made if missing.
        config: the recipe. A run in ``folder`` may be resumed with another length, but no other recipe.
        team: the processes that train together.
        options: how it runs.

    Raises:
        TrainStoppedError: if ``should_stop`` said so; the state was saved.
        TrainError: if a picture cannot be decoded, or the loss is no finite number any more.
        RunFolderError: if ``folder`` holds a run of another recipe, or cannot be written.
        DatasetError: for pictures that cannot be trained on.
    """
    options = options or TrainOptions()
    data = open_data(roots, config, options.data)
    run = _Run(data, RunFolder(folder), config, team, options)
    with ExitStack() as leaving:
        run.open(leaving)
        run.go()
    return run.result()


class _Run:
    """One training: the trainer, its data and its folder."""

    def __init__(
        self, data: TrainingData, folder: RunFolder, config: TrainConfig, team: Team, options: TrainOptions
    ) -> None:
        self.data = data
        self.folder = folder
        self.config = config
        self.team = team
        self.options = options
        self.bad: dict[str, str] = {}
        self.met: dict[str, str] = {}
        self.best_db: float | None = None
        self.schedule: Schedule = plan_schedule(config, pictures=data.samples.pictures, processes=team.processes)
        self.monitor = Monitor(
            folder,
            batch=config.batch * team.processes,
            tensorboard=options.tensorboard and team.leads,
            on_progress=options.on_progress if team.leads else None,
        )

    def open(self, leaving: ExitStack) -> None:
        """Open the folder, and load the state that is in it; ``leaving`` hears what is to be closed."""
        if self.team.leads:
            a_step = self.config.batch * self.team.processes
            leaving.callback(self.folder.close)
            prints, steps = self.data.fingerprint(), self.schedule.steps
            self.folder.open(self.config, samples_a_step=a_step, fingerprint=prints, steps=steps)
        # The others wait here, so that none loads what the leader may still refuse.
        self.team.sum(0.0)
        self.trainer = Trainer(self.config, self.schedule, self.team)
        leaving.callback(self.trainer.close)
        self.validation = self._validation() if self.team.leads else None
        state = self.folder.load_state()
        if state is not None:
            self.trainer.load_state(state)
            self._load_best(state)
            self.monitor.load_state(state["monitor"])
        if self.team.leads:
            self.monitor.start(self.trainer.step)

    def _load_best(self, state: Mapping[str, Any]) -> None:
        if state.get("validated_on") == self._validated_on:
            self.best_db = state["best_db"]
        else:
            self.options.data.announce("validation on other pictures than before: what was best there does not count")

    @property
    def _validated_on(self) -> str:
        return "held back" if self.options.validate is None else str(self.options.validate.resolve())

    def go(self) -> None:
        """Train to the last step."""
        steps = range(self.trainer.step, self.schedule.steps)
        loaded = batches(
            self.data.samples,
            steps,
            rank=self.team.rank,
            processes=self.team.processes,
            device=self.team.device,
            workers=self.options.data.workers,
        )
        for _ in steps:
            result, waited_s = self._step(loaded)
            self._after_step(result, waited_s)

    def result(self) -> TrainResult:
        """What was made."""
        best = self.folder.best if self.best_db is not None else None
        return TrainResult(last=self.folder.last, best=best, bad=self.bad)

    def _step(self, loaded: Iterator[Batch]) -> tuple[StepResult, float]:
        started = time.perf_counter()
        batch = next(loaded)
        waited_s = time.perf_counter() - started
        self.met |= {name: why for name, why in batch.bad.items() if name not in self.bad}
        blurred, sharp = self._tensors(batch)
        try:
            return self.trainer.take_step(blurred, sharp), waited_s
        except NotFiniteError as error:
            # It is so in all processes: the loss and the gradient are theirs together.
            names = self.team.union(dict.fromkeys(batch.names, ""))
            raise self._not_finite(f"{error}; its batch: {', '.join(names)}") from error

    def _tensors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return tensors_from_batch(batch, self.config, self.team.device)

    def _note_bad(self) -> None:
        met = self.team.union(self.met)
        if not self.options.skip_bad:
            why = next(iter(met.values()))
            raise TrainError(f"{why} (step {self.trainer.step}). Repair it, or train with --skip-bad")
        for name in sorted(met.keys() - self.bad.keys()):
            self.options.data.announce(f"skipped: {met[name]}")
        self.bad |= met
        self.met.clear()

    def _after_step(self, result: StepResult, waited_s: float) -> None:
        step, last = self.trainer.step, self.trainer.step == self.schedule.steps
        asked = self.options.should_stop is not None and self.options.should_stop()
        asking, met = self.team.sum(float(asked), float(len(self.met)))
        stopping = asking > 0
        if met:
            self._note_bad()
        if not self.team.leads:
            if stopping and not last:
                raise self._stopped()
            return
        self.monitor.add(result, waited_s)
        if last or step % self.options.report_every == 0:
            rate = self.schedule.at(step - 1)
            self.monitor.report(result, step=step, steps=self.schedule.steps, learning_rate=rate)
        if last or step % self.config.validate_every == 0:
            self._validate()
        if last or stopping or step % self.options.save_every == 0:
            self._save()
        if stopping and not last:
            raise self._stopped()

    def _validate(self) -> None:
        if self.validation is None:
            return
        result = self.validation.score(self.trainer.kept, self.team.device)
        self.monitor.validated(result, self.trainer.step)
        if self.best_db is None or result.deblurred_db > self.best_db:
            self.best_db = result.deblurred_db
            self._save_weights(self.folder.best)

    def _save(self) -> None:
        self._save_weights(self.folder.last)
        best = {"best_db": self.best_db, "validated_on": self._validated_on}
        state: dict[str, Any] = {**self.trainer.state(), **best, "monitor": self.monitor.state()}
        self.folder.save_state(state)

    def _save_weights(self, path: Path) -> None:
        try:
            self.trainer.check_weights()
        except NotFiniteError as error:
            raise self._not_finite(str(error)) from error
        metadata = {
            "msan.recipe": json.dumps(self.config.to_dict()),
            "msan.step": str(self.trainer.step),
            "msan.steps": str(self.schedule.steps),
        }
        self.folder.save_weights(path, self.trainer.kept.state_dict(), metadata)

    def _validation(self) -> ValidationSet | None:
        files, pairs = list(self.data.held_sharp), list(self.data.held_pairs)
        root = self.options.validate
        if root is not None:
            paired = layout_of(root) is not None
            files = [] if paired else sharp_files(root)
            pairs = [p for s in find_pair_sets(root, layout=self.config.layout) for p in s.pairs] if paired else []
        opened = open_validation(files, pairs, self.config, self.options.data.announce, skip_bad=self.options.skip_bad)
        if opened is None and root is not None:
            raise DatasetError(f"no picture in {root} can be validated on: they are too small")
        return opened

    def _stopped(self) -> TrainStoppedError:
        at = f"stopped at step {self.trainer.step} of {self.schedule.steps}"
        return TrainStoppedError(f"{at}, saved to {self.folder.path}: the same command goes on")

    def _not_finite(self, what: str) -> TrainError:
        kept = "The state of an earlier step is kept" if self.folder.state.exists() else "No state was saved yet"
        return TrainError(f"{what}. {kept}: train in another folder with a lower learning rate, or without fp16")
