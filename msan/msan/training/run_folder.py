"""The folder of a training run: its recipe, its state, its log, and its best and last checkpoints.

``train.json`` recipe · ``state.pt`` what a run goes on from · ``log.jsonl`` a line every few steps and for each
validation · ``last.safetensors``, ``best.safetensors`` weights · ``tensorboard/``. Each is written whole or not at all.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from msan.checkpoint import CheckpointError
from msan.training.recipe import TrainConfig
from msan_runtime.atomic import write_bytes, write_text
from msan_runtime.errors import MsanError

__all__ = ["RunFolder", "RunFolderError", "read_log"]

MAY_CHANGE = frozenset({"steps", "epochs", "validate_every", "amp", "torch_compile", "channels_last"})
"""What a resumed run may have otherwise than the stopped one had."""


class RunFolderError(MsanError):
    """A run's folder that cannot be written, or holds another run."""


class RunFolder:
    """Reads and writes the folder of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path / "state.pt"
        self.log = path / "log.jsonl"
        self.recipe = path / "train.json"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.tensorboard = path / "tensorboard"
        self._held = FileLock(path / ".lock")

    def open(self, config: TrainConfig, *, samples_a_step: int, fingerprint: str, steps: int | None = None) -> None:
        """Make the folder, or check that the run in it is this one. A run that saved no state yet is begun anew.

        Args:
            config: the recipe.
            samples_a_step: of all processes; the same in a resumed run.
            fingerprint: eight digits a picture; those of a few may change, by a repair.
            steps: that the run is to have; not fewer than it has done.

        Raises:
            RunFolderError: if the folder holds a run of another recipe or other data, or cannot be written.
        """
        data = {"samples_a_step": samples_a_step, "fingerprint": fingerprint}
        ours: dict[str, Any] = json.loads(json.dumps({"config": config.to_dict(), "data": data}))
        if self.recipe.exists():
            self._check_same(ours)
        done = (self.load_state() or {}).get("step", 0) if steps is not None else 0
        if steps is not None and done > steps:
            raise RunFolderError(f"the run in {self.path} has done {done} steps, more than the {steps} asked for")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            for abandoned in self.path.glob(".*.tmp"):
                abandoned.unlink()
            if not self.state.exists():
                # Of a run that was ended before its first state, perhaps one of another recipe.
                self.best.unlink(missing_ok=True)
                self.last.unlink(missing_ok=True)
            write_text(self.recipe, json.dumps(ours, indent=2) + "\n")
        except OSError as error:
            raise RunFolderError(
                f"cannot write into {self.path}: {error.strerror}. Make room, or choose another folder"
            ) from error

    def close(self) -> None:
        """Let other processes open the folder."""
        self._held.release()

    def _lock(self) -> None:
        try:
            self._held.acquire(timeout=0)
        except Timeout as error:
            raise RunFolderError(f"{self.path} is in use by another training. Choose another folder") from error

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace the state that a run goes on from."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self._write(self.state, buffer.getvalue())

    def load_state(self) -> dict[str, Any] | None:
        """The saved state, or ``None`` at the start of a run.

        Raises:
            CheckpointError: if the file is damaged.
        """
        if not self.state.exists():
            return None
        try:
            return dict(torch.load(self.state, weights_only=True, map_location="cpu"))
        except Exception as error:
            # PyTorch's own words advise to load it unsafely.
            reason = type(error).__name__
            raise CheckpointError(f"cannot resume from {self.state} ({reason}). Remove it to start again") from error

    def save_weights(self, path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write ``last`` or ``best`` as safetensors; equal weights give equal files."""
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}
        self._write(path, _in_order(safetensors.torch.save(tensors, dict(metadata))))

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line to the log."""
        try:
            with self.log.open("a") as log:
                log.write(json.dumps(line) + "\n")
        except OSError as error:
            raise self.cannot_write(self.log, error) from error

    def trim_log(self, step: int) -> None:
        """Take off what was logged after ``step``: a resumed run writes it again."""
        if self.log.exists():
            kept = [line for line in read_log(self.log) if line["step"] <= step]
            self._write(self.log, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def cannot_write(self, path: Path, error: OSError) -> RunFolderError:
        """The error to raise where ``path`` in this folder could not be written."""
        return RunFolderError(
            f"cannot write {path}: {error.strerror}. What was saved before is still there: "
            "make room, and the same command goes on"
        )

    def _check_same(self, ours: Mapping[str, Any]) -> None:
        theirs = _recipe_in(self.recipe)
        different = [k for k, v in ours["config"].items() if k not in MAY_CHANGE and theirs["config"].get(k) != v]
        if theirs["data"]["samples_a_step"] != ours["data"]["samples_a_step"]:
            different.append("number of samples a step")
        if _other_pictures(theirs["data"]["fingerprint"], ours["data"]["fingerprint"]):
            different.append("set of pictures")
        if different and self.state.exists():
            raise RunFolderError(
                f"{self.path} holds a run with another {', '.join(different)}. "
                "Resume with the same values, or choose another folder"
            )

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_bytes(path, data)
        except OSError as error:
            raise self.cannot_write(path, error) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; from a line that was damaged or cut short on, they are left out."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = dict(json.loads(text))
            lines.append({**line, "step": int(line["step"])})
        except (KeyError, ValueError, TypeError):
            break
    return lines


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata sorted: their writer's order is another each time."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def _other_pictures(theirs: str, ours: str) -> bool:
    """Whether more pictures differ than may have been repaired: one, or one in a hundred, but not all."""
    if len(theirs) != len(ours):
        return True
    count = len(ours) // 8
    differing = sum(theirs[at : at + 8] != ours[at : at + 8] for at in range(0, len(ours), 8))
    return differing > max(1, count // 100) or differing == count


def _recipe_in(path: Path) -> dict[str, Any]:
    try:
        recipe = json.loads(path.read_text())
        data = {
            "samples_a_step": int(recipe["data"]["samples_a_step"]),
            "fingerprint": str(recipe["data"]["fingerprint"]),
        }
        return {"config": dict(recipe["config"]), "data": data}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is no recipe of a run ({error!r}). Choose another folder") from error
